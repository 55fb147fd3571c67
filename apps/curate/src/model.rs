//! The models that a curation asks, as it sees them: a request goes in, an accepted answer comes out. The client of an
//! HTTP endpoint is one; tests have scripted ones.

use std::sync::atomic::AtomicBool;

use reel_client::{ChatAnswer, ChatClient, ChatFailure, ChatRequest};

/// A model that is asked.
pub trait ChatModel: Sync {
    /// The name of the model in requests.
    fn name(&self) -> &str;

    /// The most that [`Self::ask`] can cost in US dollars, with all attempts.
    fn max_cost(&self, request: &ChatRequest) -> f64;

    /// Sends a request until `accept` takes the text of an answer; returns what `accept` made of it.
    ///
    /// # Errors
    /// There is no accepted answer.
    fn ask(
        &self,
        request: &ChatRequest,
        stop: &AtomicBool,
        accept: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<(String, ChatAnswer), ChatFailure>;
}

/// A model behind an HTTP endpoint.
#[derive(Debug)]
pub struct Endpoint {
    client: ChatClient,
    model: String,
    max_attempts: u32,
}

impl Endpoint {
    /// The model of a client; if the client's options do not name it, the endpoint is asked. `max_attempts` is that of
    /// these options.
    ///
    /// # Errors
    /// The endpoint does not say which models it has.
    pub fn connect(client: ChatClient, max_attempts: u32, stop: &AtomicBool) -> Result<Self, ChatFailure> {
        let model = client.model(stop)?;
        Ok(Self { client, model, max_attempts })
    }
}

impl ChatModel for Endpoint {
    fn name(&self) -> &str {
        &self.model
    }

    fn max_cost(&self, request: &ChatRequest) -> f64 {
        self.client.max_cost(request) * f64::from(self.max_attempts)
    }

    fn ask(
        &self,
        request: &ChatRequest,
        stop: &AtomicBool,
        accept: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<(String, ChatAnswer), ChatFailure> {
        self.client.chat_parsed(request, stop, accept)
    }
}
