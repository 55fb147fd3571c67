//! The interface of the models that `reel curate` asks: a request goes in, an accepted answer comes out.
//! [`EndpointModel`] is a model behind an HTTP endpoint; tests implement models with scripted answers.

use std::sync::atomic::AtomicBool;

use reel_support::client::{ChatAnswer, ChatClient, ChatFailure, ChatRequest};

/// A model that answers chat requests.
pub trait ChatModel: Sync {
    /// The name of the model in requests.
    fn name(&self) -> &str;

    /// Maximum cost of one call of [`Self::ask`] in US dollars, including all attempts.
    fn max_cost(&self, request: &ChatRequest) -> f64;

    /// Sends a request, if need be several times, until `accept` returns `Ok` for the text of an answer; returns this
    /// `Ok` value and the answer.
    ///
    /// # Errors
    /// `accept` refused the answer of every attempt, or no attempt got an answer.
    fn ask(
        &self,
        request: &ChatRequest,
        stop: &AtomicBool,
        accept: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<(String, ChatAnswer), ChatFailure>;
}

/// A model behind an HTTP endpoint.
#[derive(Debug)]
pub struct EndpointModel {
    client: ChatClient,
    model: String,
    max_attempts: u32,
}

impl EndpointModel {
    /// Creates the model that `client` sends requests to. If the client's options name no model, asks the endpoint
    /// for its list of models. `max_attempts` is the number of attempts in the client's options.
    ///
    /// # Errors
    /// The endpoint does not say which models it has.
    pub fn connect(client: ChatClient, max_attempts: u32, stop: &AtomicBool) -> Result<Self, ChatFailure> {
        let model = client.model(stop)?;
        Ok(Self { client, model, max_attempts })
    }
}

impl ChatModel for EndpointModel {
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
