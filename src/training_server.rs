//! `--serve` of `reel sft` and `reel grpo`: a server that answers with the weights in training.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use reel_device::{DType, Device};
use reel_input::MediaOptions;
use reel_input::encode::ModelFolder;
use reel_input::fetch::{MediaAccess, RemoteMedia};
use reel_measure::machine;
use reel_model::quantization::Quantization;
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_serve::{ConnectionLimits, ServeError, ServeOptions, ServedModel, ServerLimits, TrainingServer, folder_name};
use reel_train::TrainError;
use reel_train::live_server::{LiveServer, SERVED_BATCH_SIZE};
use reel_train::options::RunOptions;

use crate::serve::default_encoders;

/// Fixed limits of the server in a training run. `reel serve` has options for these limits; the training commands
/// have none.
const REQUESTS: usize = 256;
const CONNECTIONS: usize = 256;
const BODY_BYTES: usize = 64 << 20;
const NEW_TOKENS: usize = 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The server of a training run with `--serve`.
#[derive(Debug)]
pub struct TrainingRunServer {
    server: TrainingServer,
    /// The model's name in requests.
    name: String,
    quiet: bool,
}

impl TrainingRunServer {
    /// Returns the server of a training run with these options, which starts from the model in `folder`; `None`
    /// without `--serve`. The server listens once the run has started it. Requests must contain their media; they may
    /// not name files or addresses.
    pub fn new(
        options: &RunOptions,
        folder: &Path,
        device: &Device,
        dtype: DType,
        media: &MediaOptions,
        quiet: bool,
    ) -> Result<Option<Self>> {
        let Some(port) = options.serve.filter(|_| !options.is_check_only()) else { return Ok(None) };
        let name = folder_name(&options.out);
        let model = ServedModel {
            name: name.clone(),
            aliases: Vec::new(),
            folder: ModelFolder::open(folder)?,
            device: device.clone(),
            dtype,
            quantization: Quantization::None,
            is_copied: false,
            divided: None,
        };
        let access = MediaAccess { remote: RemoteMedia::Refused, confined_to: None };
        let limits = ServerLimits {
            batch: SERVED_BATCH_SIZE,
            requests: REQUESTS,
            encoders: default_encoders(),
            body_bytes: BODY_BYTES,
            kv_bytes: u64::from(options.serve_kv_memory) << 20,
            new_tokens: NEW_TOKENS,
            request_time: None,
        };
        let connections =
            ConnectionLimits { connections: CONNECTIONS, read_timeout: READ_TIMEOUT, write_timeout: WRITE_TIMEOUT };
        // The server does not share the run's stop flag: a signal stops the run, and the run then ends the server.
        let serve = ServeOptions {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            peak_flops_per_second: machine::peak_flops_per_second(device, dtype),
            ..ServeOptions::for_local_programs(limits, connections, MediaOptions { access, ..media.clone() })
        };
        Ok(Some(Self { server: TrainingServer::new(model, serve, options.serve_share), name, quiet }))
    }

    /// Ends the server after the run. A server error is only a warning, because the run has already done its work.
    pub fn finish(&self) {
        if let Err(e) = self.server.finish() {
            reel_diagnostic::note!("warning: --serve: {e}");
        }
    }
}

impl LiveServer for TrainingRunServer {
    fn start(&self, model: &Qwen25Vl, step: u64) -> reel_train::Result<()> {
        let address = self.server.start(model, step).map_err(|e| match e {
            ServeError::Engine(e) => e.into(),
            ServeError::Address { address, cause } => {
                TrainError::option("--serve", format!("cannot listen on {address}: {cause}"), "give another port")
            }
            e => TrainError::option("--serve", e.to_string(), "leave --serve out, or start again"),
        })?;
        if !self.quiet {
            reel_diagnostic::note!("{}: listening on http://{address}", self.name);
        }
        Ok(())
    }

    fn lend_device(&self) {
        self.server.lend_device();
    }

    fn begin_host_work(&self) {
        self.server.begin_host_work();
    }

    fn end_host_work(&self) {
        self.server.end_host_work();
    }

    fn weights_changed(&self, step: u64) {
        self.server.weights_changed(step);
    }
}
