//! An HTTP endpoint with OpenAI's chat API on this machine. The stand-in for large models
//! ([`crate::showcase::stand_in`]) answers its requests. Like a paid endpoint, it has faults that curation must handle:
//! the first request is refused for a second (status 429), one description is cut, and one chain lacks its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use reel_input::media::image::{self, ExifOrientation};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::showcase::stand_in::{self, SeenFrame};

/// The models of the endpoint, each with the stage of curation that asks it.
pub const STAND_IN_MODELS: [(&str, &str); 3] =
    [("caption", "stand-in-describer"), ("reason", "stand-in-reasoner"), ("revise", "stand-in-reviser")];

/// Value of the header `Retry-After` of the refused first request, in seconds.
const REFUSED_SECONDS: &str = "1";

/// The number of requests of each model so far, in the order of [`STAND_IN_MODELS`].
#[derive(Debug, Default)]
struct Counts([AtomicUsize; 3]);

/// The running endpoint. It ends when it is dropped.
#[derive(Debug)]
pub struct StandInEndpoint {
    /// The URL of the endpoint's API.
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandInEndpoint {
    /// Starts the endpoint on a free port of the loopback interface.
    ///
    /// # Errors
    /// The system gives no port or no thread.
    pub fn start() -> Result<Self> {
        let failed = |e: std::io::Error| {
            let what = format!("cannot listen: {e}");
            Error::failed("127.0.0.1", what, "allow programs to listen on this address")
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).map_err(failed)?;
        let url = format!("http://{}/v1", listener.local_addr().map_err(failed)?);
        let routes = Router::new()
            .route("/v1/models", get(list_models))
            .route("/v1/chat/completions", post(chat))
            .with_state(Arc::new(Counts::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = async {
            tokio::select! {
                // This branch runs only if the listener of the server fails. Later requests then report the failure.
                _ = axum::serve(listener, routes) => {}
                _ = stopped => {}
            }
        };
        let thread = std::thread::Builder::new().name("stand-in".into()).spawn(move || runtime.block_on(serve));
        Ok(Self { url, stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }
}

impl Drop for StandInEndpoint {
    fn drop(&mut self) {
        // Dropping the sender ends the server. If its thread has panicked, the panic was printed already.
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn list_models() -> Json<Value> {
    let models =
        STAND_IN_MODELS.map(|(_, name)| json!({"id": name, "object": "model", "created": 0, "owned_by": "reel"}));
    Json(json!({"object": "list", "data": models}))
}

async fn chat(State(counts): State<Arc<Counts>>, Json(body): Json<Value>) -> Response {
    let error = |status: StatusCode, message: &str| (status, Json(json!({"error": {"message": message}})));
    let model = body["model"].as_str().unwrap_or_default();
    let Some(index) = STAND_IN_MODELS.iter().position(|(_, name)| *name == model) else {
        return error(StatusCode::NOT_FOUND, "there is no such model").into_response();
    };
    let number = counts.0[index].fetch_add(1, Ordering::SeqCst);
    let stage = STAND_IN_MODELS[index].0;
    if (stage, number) == ("caption", 0) {
        let wait = [(header::RETRY_AFTER, REFUSED_SECONDS)];
        return (wait, error(StatusCode::TOO_MANY_REQUESTS, "too many requests")).into_response();
    }
    let request = Request::parse(&body);
    let answer = match stage {
        "caption" => Some(stand_in::describe_frames(&request.frames)),
        "reason" => stand_in::answer_question(&request.text),
        _ => stand_in::revise_chain(&request.text, &request.frames),
    };
    let Some(mut answer) = answer else {
        return error(StatusCode::BAD_REQUEST, "this stand-in server answers only the requests of reel demo")
            .into_response();
    };
    match (stage, number) {
        ("caption", 1) => answer.truncate(answer.len() / 2),
        ("reason", 1) => answer.truncate(answer.find("<answer>").unwrap_or_default()),
        _ => {}
    }
    // The stand-in counts each word as a token.
    let [prompt, completion] = [&request.text, &answer].map(|text| text.split_whitespace().count());
    let message = json!({"role": "assistant", "content": answer});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion});
    Json(json!({"id": format!("{stage}-{number}"), "object": "chat.completion", "created": 0, "model": model,
        "choices": [choice], "usage": usage}))
    .into_response()
}

/// The parts of a request's messages that the stand-in uses.
struct Request {
    /// The last text of the messages, which contains the question.
    text: String,
    /// The images, each with the time that the text before it names.
    frames: Vec<SeenFrame>,
}

impl Request {
    fn parse(body: &Value) -> Self {
        let (mut text, mut frames, mut seconds) = (String::new(), Vec::new(), 0.0);
        let messages = body["messages"].as_array().into_iter().flatten();
        let contents = messages.map(|message| &message["content"]);
        for content in contents {
            if let Some(whole) = content.as_str() {
                text = whole.to_string();
            }
            for part in content.as_array().into_iter().flatten() {
                if let Some(given) = part["text"].as_str() {
                    seconds = frame_seconds(given).unwrap_or(seconds);
                    text = given.to_string();
                }
                let image = part["image_url"]["url"]
                    .as_str()
                    .and_then(|url| image::from_data_uri(url, ExifOrientation::Apply).ok());
                frames.extend(image.map(|image| SeenFrame { seconds, image }));
            }
        }
        Self { text, frames }
    }
}

/// The time in seconds in a line such as `Frame at 1.5 s:`.
fn frame_seconds(text: &str) -> Option<f64> {
    text.strip_prefix("Frame at ")?.strip_suffix(" s:")?.parse().ok()
}
