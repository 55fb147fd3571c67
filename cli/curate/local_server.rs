//! Serves a local model on a free port of this process, so that a curation stage can send it requests like any other
//! endpoint.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use reel_input::encode::ModelFolder;
use reel_input::fetch::{MediaAccess, RemoteMedia};
use reel_model::quantization::Quantization;
use reel_serve::{ConnectionLimits, ServeError, ServeOptions, ServedModel, ServedWeights, ServerLimits, folder_name};

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::media::{MediaFlags, WorkerFlags};
use crate::model::{self, LoadedModel};
use crate::prompt::{find_or_download_model, media_options};
use crate::serve::default_encoders;

/// Maximum size of a request in bytes (1 GiB). A request has the frames of one video; 4096 frames need far less.
const BODY_BYTES: usize = 1 << 30;
const NEW_TOKENS: usize = 1024;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(3600);

/// A running server, which ends when `LocalServer` is dropped.
pub struct LocalServer {
    /// The URL of the server's API.
    pub url: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl LocalServer {
    /// Loads a model and serves it to at most `concurrency` requests at a time.
    pub fn start(model: &str, concurrency: usize, worker: &WorkerFlags, common: &CommonOptions) -> Result<Self> {
        let folder = find_or_download_model(model)?;
        let media = media(&folder, worker, common)?;
        let bundle = ModelFolder::open(&folder)?;
        let device = model::open_device(common)?;
        let quantization = Quantization::None;
        let loaded =
            LoadedModel::open_on_device(&device, &folder, None, &bundle.config, quantization, None, None, common)?;
        let dtype = model::activation_dtype(common);
        let batch = concurrency.min(model::default_batch_size(&device));
        let kv_bytes = model::serving_kv_bytes(&device, device.free_bytes(), &bundle.config.text, dtype, batch);
        let limits = ServerLimits {
            batch,
            requests: 2 * concurrency,
            encoders: default_encoders(),
            body_bytes: BODY_BYTES,
            kv_bytes,
            new_tokens: NEW_TOKENS,
            request_time: None,
        };
        let connections = ConnectionLimits {
            connections: 4 * concurrency,
            read_timeout: CONNECTION_TIMEOUT,
            write_timeout: CONNECTION_TIMEOUT,
        };
        let options = ServeOptions::for_local_programs(limits, connections, media);
        let stop = Arc::clone(&options.stop);
        let name = folder_name(&folder);
        let served = ServedModel {
            name: name.clone(),
            aliases: Vec::new(),
            folder: bundle,
            device,
            dtype,
            quantization,
            is_copied: loaded.is_copied,
            divided: None,
        };
        let weights = ServedWeights { weights: loaded.weights, name };
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("local server".into()).spawn(move || {
            reel_serve::serve(served, weights, options, move |address| {
                // Sends the address once the server listens; the starting thread waits for it. If the server ends
                // before that, the sender is dropped.
                let _ = sender.send(address);
            })
        })?;
        match receiver.recv() {
            Ok(address) => Ok(Self { url: format!("http://{address}/v1"), stop, thread: Some(thread) }),
            // The server ended before it listened, so the sender was dropped.
            Err(_) => match thread.join() {
                Ok(Err(e)) => Err(e.into()),
                _ => Err(failed(model, "the server of this model ended before it accepted connections", "start again")),
            },
        }
    }
}

/// Returns the server's media options. Requests carry their frames as data: URIs and may not name files or addresses.
fn media(folder: &Path, worker: &WorkerFlags, common: &CommonOptions) -> Result<reel_input::MediaOptions> {
    let access = MediaAccess { remote: RemoteMedia::Refused, confined_to: None };
    media_options(&MediaFlags::default(), worker, Some(folder), access, false, common)
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(Ok(Err(e))) = self.thread.take().map(JoinHandle::join) {
            reel_support::diagnostic::note!("warning: the server of a local model: {e}");
        }
    }
}
