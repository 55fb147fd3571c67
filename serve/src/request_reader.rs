//! Reads requests as the server does, from the body to the engine's queue, without an engine and without connections.
//! Tests give it hostile bodies.

use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use reel_input::ModelInput;
use reel_input::request::RequestSettings;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::api::shared::ServerState;
use crate::engine_thread::{EngineCommand, EngineQueue};
use crate::hardware_gauges::HardwareGauges;
use crate::metrics::Metrics;
use crate::server::{router, start_runtime};
use crate::settings::{ServeOptions, ServedModel};

/// How often the engine's queue is read while a request is handled.
const QUEUE_INTERVAL: Duration = Duration::from_millis(1);

/// Handles requests up to the engine's queue.
#[derive(Debug)]
pub struct RequestReader {
    runtime: Runtime,
    router: Router,
    commands: Receiver<EngineCommand>,
}

/// A prompt that a request has put into the engine's queue.
#[derive(Debug)]
pub struct QueuedRequest {
    /// The prompt.
    pub prompt: ModelInput,
    /// The sampling settings, with the limit of new tokens.
    pub settings: RequestSettings,
}

/// What a request led to.
#[derive(Debug)]
pub struct ReadRequest {
    /// The status of the answer; 500 if the request has put prompts into the queue, because there is no engine.
    pub status: u16,
    /// The body of the answer.
    pub body: Vec<u8>,
    /// The prompts that are in the queue now.
    pub queued: Vec<QueuedRequest>,
}

impl RequestReader {
    /// Creates a reader of requests to a server of this model with these options.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(model: ServedModel, options: &ServeOptions) -> std::io::Result<Self> {
        let runtime = start_runtime(options.limits)?;
        let (queue, commands) = EngineQueue::without_engine();
        let (model, gauges) = (Arc::new(model), HardwareGauges::new);
        let positions = model.folder.config.text.max_position_embeddings;
        let metrics = Metrics::new(&model.name, positions, gauges(&model, None));
        let state = ServerState::new(model, String::new(), options, queue, Arc::new(metrics));
        Ok(Self { runtime, router: router(Arc::new(state), options, None), commands })
    }

    /// Handles a POST request to `path`.
    ///
    /// # Errors
    /// `path` is no path, or the answer has no end.
    pub fn post(&self, path: &str, body: Vec<u8>) -> Result<ReadRequest, String> {
        let request = Request::post(path).header("host", "localhost").body(Body::from(body));
        let request = request.map_err(|e| e.to_string())?;
        let mut queued = Vec::new();
        let answered = self.runtime.block_on(async {
            let mut answer = pin!(async {
                let Ok(answer) = TowerToHyperService::new(self.router.clone()).call(request).await;
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await.map_err(|e| e.to_string())?;
                Ok::<_, String>((status, body.to_bytes().to_vec()))
            });
            loop {
                let answered = timeout(QUEUE_INTERVAL, answer.as_mut()).await;
                // Dropping the channel of a request's events tells its handler that the engine has ended.
                queued.extend(self.commands.try_iter().filter_map(|command| match command {
                    EngineCommand::Generate(job, _) => {
                        Some(QueuedRequest { prompt: job.prompt, settings: job.settings })
                    }
                    _ => None,
                }));
                if let Ok(answered) = answered {
                    return answered;
                }
            }
        });
        let (status, body) = answered?;
        Ok(ReadRequest { status, body, queued })
    }
}
