//! The settings of a server (model, limits, addresses and keys), and its errors.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reel_device::{DType, Device};
use reel_input::encode::ModelFolder;
use reel_input::media_loading::MediaOptions;
use reel_model::checkpoint::Checkpoint;
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::QwenVl;

use crate::divided_model::DividedModel;
use crate::error::{Error, Result};
use crate::http::{ConnectionLimits, Tls};

/// The model that a server answers with, without its weights. The engine's thread owns the weights.
#[derive(Debug)]
pub struct ServedModel {
    /// The name of the model in answers and in `/v1/models`.
    pub name: String,
    /// Further names by which requests may name the model.
    pub aliases: Vec<String>,
    /// The tokenizer, chat template and configuration.
    pub folder: ModelFolder,
    /// The device that holds the weights.
    pub device: Device,
    /// The dtype of activations.
    pub dtype: DType,
    /// How the decoder's weights are stored.
    pub quantization: Quantization,
    /// On a CPU, whether the weights are copied into memory; if false, they are mapped from their files.
    pub is_copied: bool,
    /// The processes that serve the model together with this one, if there are several.
    pub divided: Option<DividedModel>,
}

impl ServedModel {
    /// Whether `name` in a request means this model. `name` may be the model's name, an alias, or a hub id or path
    /// that ends with the model's name (`Qwen/Qwen2.5-VL-7B-Instruct` for a folder `Qwen2.5-VL-7B-Instruct`).
    pub fn is_named(&self, name: &str) -> bool {
        let is_path = || name.rsplit_once('/').is_some_and(|(_, last)| last == self.name);
        name == self.name || self.aliases.iter().any(|alias| alias == name) || is_path()
    }

    /// Opens the model in `folder` on one thread of the CPU, in f32, with weights that are mapped from their files. The
    /// model gets the name of the folder.
    ///
    /// # Errors
    /// The folder is not a model folder.
    pub fn open_on_cpu(folder: &Path) -> Result<(ServedModel, ServedWeights)> {
        let (device, bundle, dtype) = (Device::cpu(1), ModelFolder::open(folder)?, DType::F32);
        let weights = QwenVl::open(&device, &Checkpoint::open(folder)?, &bundle.config, dtype)?;
        let (name, quantization) = (folder_name(folder), Quantization::None);
        let weights = ServedWeights { weights, name: name.clone() };
        Ok((
            ServedModel {
                name,
                aliases: Vec::new(),
                folder: bundle,
                device,
                dtype,
                quantization,
                is_copied: false,
                divided: None,
            },
            weights,
        ))
    }
}

/// Weights of a model, and the name of the folder that they were loaded from.
#[derive(Debug)]
pub struct ServedWeights {
    /// The weights, on the model's device.
    pub weights: QwenVl,
    /// The name of the folder that the weights were loaded from. Clients see this name.
    pub name: String,
}

/// How the images and videos of requests are read.
#[derive(Clone, Debug)]
pub struct RequestMedia {
    /// Limits, decoder and access.
    pub options: MediaOptions,
    /// The folder that file paths in requests are relative to. With `None`, requests may not name files.
    pub root: Option<PathBuf>,
    /// Maximum number of images of a request.
    pub max_images: Option<usize>,
    /// Maximum number of videos of a request.
    pub max_videos: Option<usize>,
}

/// Limits of the server and of one request.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Maximum number of sequences that decode together.
    pub batch: usize,
    /// Maximum number of requests that run or wait. Further requests are refused with status 429.
    pub requests: usize,
    /// Maximum bytes of a request's body.
    pub body_bytes: usize,
    /// Maximum number of requests with media that are encoded at the same time; at least 2. As many more may have small
    /// images.
    pub encoders: usize,
    /// Maximum size of the KV cache of all running sequences, in bytes.
    pub kv_bytes: u64,
    /// Maximum number of new tokens of a request that gives no maximum.
    pub new_tokens: usize,
    /// Maximum time of a request. A request that takes longer fails.
    pub request_time: Option<Duration>,
}

/// Writes a profile to a file, and returns its path. The error is one line.
pub type WriteProfile = Box<dyn FnOnce() -> Result<PathBuf, String> + Send>;

/// Records profiles of a server. Both methods are called on the engine's thread, between two steps.
pub trait ServerProfiler: Debug + Send + Sync {
    /// Begins to record. `dtype` is the dtype of activations.
    ///
    /// # Errors
    /// The device has failed; the reason in one line.
    fn start(&self, device: &Device, dtype: DType) -> Result<(), String>;
    /// Ends the recording. The returned function is called on another thread.
    ///
    /// # Errors
    /// The device has failed; the reason in one line.
    fn stop(&self, device: &Device) -> Result<WriteProfile, String>;
}

/// Where and how a server runs.
#[derive(Debug)]
pub struct ServeOptions {
    /// The address to listen on. With port 0, the system chooses a free port.
    pub address: SocketAddr,
    /// The host name of this address, if it was given by name. Without keys, requests may name only some hosts.
    pub host_name: Option<String>,
    /// The valid API keys. A request must carry one as `Authorization: Bearer KEY`; if the list is empty, no key is
    /// needed.
    pub api_keys: Vec<String>,
    /// The LoRA adapters that requests can name as their model, as (name, folder).
    pub adapters: Vec<(String, PathBuf)>,
    /// Limits of the server and of one request.
    pub limits: ServerLimits,
    /// Limits of connections.
    pub connections: ConnectionLimits,
    /// The certificate and key of encrypted connections. With `None`, connections are not encrypted.
    pub tls: Option<Tls>,
    /// The origins whose web pages may use the server (CORS); `*` allows every origin.
    pub allowed_origins: Vec<String>,
    /// Whether each request writes a line to stderr.
    pub access_log: bool,
    /// Media of requests.
    pub media: RequestMedia,
    /// Operations per second of the device by its data sheet, for `/metrics`; `None` if they are not known.
    pub peak_flops_per_second: Option<f64>,
    /// Records profiles when a client asks for them.
    pub profiler: Option<Arc<dyn ServerProfiler>>,
    /// Set to stop the server: it then refuses new requests, and ends when the running requests are answered.
    pub stop: Arc<AtomicBool>,
}

impl ServeOptions {
    /// The options of a server for programs on this machine: a free port, no keys, no encryption and no access log.
    /// Requests may not name files.
    pub fn for_local_programs(
        limits: ServerLimits,
        connections: ConnectionLimits,
        media: MediaOptions,
    ) -> ServeOptions {
        ServeOptions {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            host_name: None,
            api_keys: Vec::new(),
            adapters: Vec::new(),
            limits,
            connections,
            tls: None,
            allowed_origins: Vec::new(),
            access_log: false,
            media: RequestMedia { options: media, root: None, max_images: None, max_videos: None },
            peak_flops_per_second: None,
            profiler: None,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }
}

/// Why a server ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be used.
    #[error("{address}: cannot be listened on: {cause}; give another --port or --host")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The runtime of the server cannot start, or accepting connections failed.
    #[error("server: {0}; check the limits of this user (ulimit -a)")]
    Io(#[from] std::io::Error),
    /// A LoRA adapter cannot be loaded.
    #[error("--lora {name}: {cause}")]
    Adapter {
        /// The adapter's name.
        name: String,
        /// Why.
        cause: String,
    },
    /// The engine cannot start.
    #[error(transparent)]
    Engine(#[from] Error),
    /// The engine's thread panicked, which ended the server.
    #[error("engine: its thread has panicked; requests were answered with errors; start the server again")]
    EnginePanicked,
}

/// The last part of a folder's path, so that clients do not learn the rest of the path. If the path has no last part,
/// the whole path.
pub fn folder_name(folder: &Path) -> String {
    let canonical = folder.canonicalize();
    let name = canonical.as_deref().unwrap_or(folder).file_name();
    name.map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned())
}
