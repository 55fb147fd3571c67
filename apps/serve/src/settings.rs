//! What a server serves, and how: the model, the limits, the addresses and keys, and the error of a server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reel_device::{DType, Device};
use reel_input::encode::{MediaOptions, ModelFolder};
use reel_model::ModelError;
use reel_model::checkpoint::Checkpoint;
use reel_model::quantization::Quantization;
use reel_model::qwen2_5_vl::Qwen25Vl;

use crate::http::{ConnectionLimits, Tls};

/// The model that a server answers with, without its weights, which the engine's thread owns.
#[derive(Debug)]
pub struct ServedModel {
    /// The name of the model in answers and in `/v1/models`.
    pub name: String,
    /// The tokenizer, chat template and configuration.
    pub folder: ModelFolder,
    /// The device that holds the weights.
    pub device: Device,
    /// The dtype of activations.
    pub dtype: DType,
    /// How the decoder's weights are stored.
    pub quantization: Quantization,
    /// Whether a CPU's weights are a copy in memory, instead of being read in place from their files.
    pub is_copied: bool,
}

impl ServedModel {
    /// Opens the model in `folder` on one thread of the CPU, in f32, with weights that are read in place. Its name is
    /// that of the folder.
    ///
    /// # Errors
    /// The folder is not that of a model.
    pub fn open_on_cpu(folder: &Path) -> Result<(ServedModel, ServedWeights), ModelError> {
        let (device, bundle, dtype) = (Device::cpu(1), ModelFolder::open(folder)?, DType::F32);
        let weights = Qwen25Vl::open(&device, &Checkpoint::open(folder)?, &bundle.config, dtype)?;
        let (name, quantization) = (folder_name(folder), Quantization::None);
        let weights = ServedWeights { weights, name: name.clone() };
        Ok((ServedModel { name, folder: bundle, device, dtype, quantization, is_copied: false }, weights))
    }
}

/// Weights of a model, and where they come from.
#[derive(Debug)]
pub struct ServedWeights {
    /// The weights, on the model's device.
    pub weights: Qwen25Vl,
    /// The name of the folder that they were loaded from, which clients see.
    pub name: String,
}

/// How images and videos of requests are read.
#[derive(Debug)]
pub struct RequestMedia {
    /// Limits, decoder and access.
    pub options: MediaOptions,
    /// The folder that paths of requests are relative to; `None`: requests may name no files.
    pub root: Option<PathBuf>,
}

/// Limits of the server and of one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of sequences that decode together.
    pub batch: usize,
    /// Maximum number of requests that are being answered or wait; further ones are refused with status 503.
    pub requests: usize,
    /// Maximum bytes of a request's body.
    pub body_bytes: usize,
    /// Maximum number of requests whose media are decoded at the same time.
    pub encoders: usize,
    /// Maximum bytes of keys and values of all running sequences.
    pub kv_bytes: u64,
    /// Number of tokens to generate at most if a request does not say.
    pub new_tokens: usize,
    /// The time after which a request that is not answered fails.
    pub request_time: Option<Duration>,
}

/// Where and how a server runs.
#[derive(Debug)]
pub struct ServeOptions {
    /// The address to listen on; port 0 takes a free port.
    pub address: SocketAddr,
    /// A request must carry one of these keys as `Authorization: Bearer KEY`; empty: none is needed.
    pub api_keys: Vec<String>,
    /// The LoRA adapters that requests can name as their model: names and folders.
    pub adapters: Vec<(String, PathBuf)>,
    /// Limits.
    pub limits: Limits,
    /// Limits of connections.
    pub connections: ConnectionLimits,
    /// The certificate and key of encrypted connections; `None`: connections are not encrypted.
    pub tls: Option<Tls>,
    /// The origins of web pages that browsers may let use this server; `*` is any.
    pub allowed_origins: Vec<String>,
    /// Whether each request writes a line to stderr.
    pub access_log: bool,
    /// Media of requests.
    pub media: RequestMedia,
    /// Once this is set, new requests are refused, and the server ends when the running ones are answered.
    pub stop: Arc<AtomicBool>,
}

impl ServeOptions {
    /// The options of a server for programs on this machine: at a free port, without keys, encryption and access log.
    /// Requests may name no files.
    pub fn local(limits: Limits, connections: ConnectionLimits, media: MediaOptions) -> ServeOptions {
        ServeOptions {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            api_keys: Vec::new(),
            adapters: Vec::new(),
            limits,
            connections,
            tls: None,
            allowed_origins: Vec::new(),
            access_log: false,
            media: RequestMedia { options: media, root: None },
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
    Engine(#[from] reel_engine::EngineError),
    /// The engine's thread has ended before the server.
    #[error("engine: its thread has panicked; requests were answered with errors; start the server again")]
    EnginePanicked,
}

/// The last part of a folder's path, which tells clients nothing about the rest; the whole path if it has none.
pub fn folder_name(folder: &Path) -> String {
    let canonical = folder.canonicalize();
    let name = canonical.as_deref().unwrap_or(folder).file_name();
    name.map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned())
}
