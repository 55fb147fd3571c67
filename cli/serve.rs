//! `reel serve`: answers requests over HTTP with OpenAI's API.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_device::Device;
use reel_input::encode::ModelFolder;
use reel_input::fetch::{MediaAccess, RemoteMedia};
use reel_model::features::FeatureCache;
use reel_model::lora::{ADAPTER_CONFIG_FILE, is_adapter_folder};
use reel_model::tensor_parallel::TensorParallel;
use reel_serve::{
    ConnectionLimits, DividedModel, RequestMedia, ServeOptions, ServedModel, ServedWeights, ServerLimits,
    ServerProfiler, Tls, folder_name,
};
use reel_support::diagnostic::input;
use reel_tools::measure::machine;
use serde_json::{Map, Value, json};

use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::media::{MediaFlags, WorkerFlags, check_fits_model};
use crate::model::{self, LoadedModel, QuantizeFlag, WeightLocation};
use crate::profiler::ServerTraceProfiler;
use crate::prompt::{ModelFlags, find_or_download_model, media_options};
use crate::tensor_parallel::{TensorParallelFlag, TensorParallelProcess};
use crate::{interrupt, output};

/// The options of `reel serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Ends at Ctrl-C or SIGTERM: requests that run are answered, new ones get status
503. A second Ctrl-C, or a SIGTERM 10 s later, ends it at once.

Example:
  reel init --preset tiny --out tiny
  reel serve --model tiny --port 8000
  curl http://127.0.0.1:8000/v1/chat/completions -d \\
    '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}],
      \"max_tokens\": 16, \"stream\": true}'")]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    quantize: QuantizeFlag,
    #[command(flatten)]
    parallel: TensorParallelFlag,
    /// Where the weights are on a CPU [default: copied, if their files take at most half of the free memory]
    #[arg(long, value_name = "PLACE", value_enum)]
    weights: Option<WeightLocation>,
    #[command(flatten)]
    listen: ListenFlags,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    connections: ConnectionFlags,
    /// Answer requests that name files, if the files lie in this folder; without it requests carry their media as data:
    /// URIs
    #[arg(long, value_name = "DIR", help_heading = "Media options")]
    media_root: Option<PathBuf>,
    /// Download the images and videos that requests name by http or https address; addresses of private networks and of
    /// this machine stay refused
    #[arg(long, help_heading = "Media options")]
    allow_remote_media: bool,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

/// Options for the server's address and for access to it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server options")]
struct ListenFlags {
    /// Address or host name to listen on; an address that other machines can reach needs an API key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Key that requests must carry (Authorization: Bearer KEY); may be given several times [default: $VLLM_API_KEY if
    /// it is set]. Other users of this machine can see it; --api-key-file hides it
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// File with one API key per line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Allow an address that other machines can reach without an API key
    #[arg(long)]
    no_auth: bool,
    /// Name of the model in requests and answers; may be given several times: the first is the name in answers
    /// [default: the name of its folder; requests may also use the hub id]
    #[arg(long, value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Also serve a LoRA adapter of the model, under its own model name; may be given several times
    #[arg(long, value_name = "NAME=DIR")]
    lora: Vec<String>,
    /// Certificate chain (PEM) for encrypted connections; needs --tls-key
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate; needs --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let web pages of this origin, such as https://example.org, use the server; may be given several times; * is
    /// every page
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Let clients on this machine trace the server with POST /start_profile and /stop_profile, into files of this
    /// folder
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// Write a line of JSON to stderr for each request: time, request id, path, status, duration, tokens; never texts
    /// or keys
    #[arg(long)]
    access_log: bool,
}

/// Options that limit requests.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server options")]
struct LimitFlags {
    /// Maximum number of completions that decode together [default: 256 on cuda, else 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,
    /// Memory for the keys and values of all requests and of earlier prompts, in MiB, of all processes of
    /// --tensor-parallel-size together [default: half of the free memory; on a CPU at most 4096 tokens per completion
    /// of --batch-size]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    kv_memory: Option<u32>,
    /// Maximum number of requests that run or wait; further ones get status 429
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    max_requests: u16,
    /// Maximum size of a request in MiB, with its media
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    max_body: u16,
    /// Maximum number of requests whose images and videos are decoded at the same time [default: one per core, as far
    /// as half of the free memory has 2 GiB for each]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_encoders: Option<u16>,
    /// Maximum number of tokens of an answer if the request does not say
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Maximum number of tokens of a prompt with its answer [default: the positions of the model]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_model_len: Option<u32>,
    /// Maximum number of images and videos of a request: image=N,video=N, or {"image": N, "video": N} [default: no
    /// limit]
    #[arg(long, value_name = "LIMITS")]
    limit_mm_per_prompt: Option<MediaLimit>,
    /// Seconds after which a request that is not answered fails [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    request_timeout: Option<u32>,
}

/// The value of `--limit-mm-per-prompt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct MediaLimit {
    images: Option<usize>,
    videos: Option<usize>,
}

impl FromStr for MediaLimit {
    type Err = String;

    /// Parses vLLM's two forms: `image=2,video=0`, and a JSON object, whose values may be objects with a `count`.
    fn from_str(text: &str) -> Result<Self, String> {
        let help = "give image=N,video=N";
        let pairs: Vec<(String, Option<u64>)> = match serde_json::from_str::<Map<String, Value>>(text) {
            Ok(object) => {
                let count = |value: &Value| value.as_u64().or_else(|| value.get("count")?.as_u64());
                object.iter().map(|(name, value)| (name.clone(), count(value))).collect()
            }
            Err(_) => {
                let pair =
                    |part: &str| part.split_once('=').map(|(name, n)| (name.trim().to_string(), n.trim().parse().ok()));
                text.split(',').map(pair).collect::<Option<_>>().ok_or(help)?
            }
        };
        let mut limit = Self::default();
        for (name, count) in pairs {
            let count = count.and_then(|count| usize::try_from(count).ok()).ok_or(help)?;
            match name.as_str() {
                "image" => limit.images = Some(count),
                "video" => limit.videos = Some(count),
                // The model reads no audio, so a limit on audio inputs is ignored.
                "audio" => {}
                _ => return Err(format!("{name} is not a kind of media; {help}")),
            }
        }
        Ok(limit)
    }
}

impl LimitFlags {
    /// Lowers the number of positions of the model to `--max-model-len`.
    fn limit_positions(&self, bundle: &mut ModelFolder) -> Result<()> {
        let Some(length) = self.max_model_len.map(|length| length as usize) else { return Ok(()) };
        let positions = bundle.config.text.max_position_embeddings;
        if length > positions {
            let what = format!("is {length}, but the model has {positions} positions");
            return Err(usage_error("--max-model-len", what, format!("give at most {positions}")));
        }
        bundle.config.text.max_position_embeddings = length;
        Ok(())
    }
}

/// Options that limit connections.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server options")]
struct ConnectionFlags {
    /// Maximum number of open connections; further clients wait until one is closed
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Time limit in seconds for the header of a request, for an idle connection, and for each MiB of a request
    /// body
    #[arg(long, value_name = "S", default_value_t = 30.0)]
    read_timeout: f64,
    /// Time limit in seconds for a client that reads nothing of its answer; then the connection is closed and the
    /// request dropped
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    write_timeout: f64,
}

/// Host memory for the vision tokens of images and videos (1 GiB).
const VISION_CACHE_BYTES: usize = 1 << 30;

/// The environment variable with the API key if no option has one, as in vLLM.
const KEY_VARIABLE: &str = "VLLM_API_KEY";

/// Maximum size of a file with API keys in bytes (1 MiB).
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;

impl ServeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        self.parallel.run("serve", &self.model, common, |process, common| self.serve(process, common))
    }

    /// Serves the model. `process` is this process if several processes serve the model together; only rank 0
    /// listens.
    fn serve(&self, process: Option<&TensorParallelProcess>, common: &CommonOptions) -> Result<()> {
        let address = self.listen.address()?;
        let api_keys = self.listen.api_keys(address.ip())?;
        self.listen.check_model_name()?;
        let tls = self.listen.tls()?;
        let allowed_origins = self.listen.allowed_origins()?;
        let connections = self.connections.limits()?;
        let profiler = self.listen.profiler(common)?;
        let (base, adapter) = self.model.base_model_and_adapter_folder()?;
        let adapters = self.listen.adapters(adapter.as_deref())?;
        let folder = find_or_download_model(&base)?;
        let media = self.media(adapter.as_deref().unwrap_or(&folder), common)?;
        let mut bundle = ModelFolder::open(&folder)?;
        check_fits_model(&media.options, &bundle.config)?;
        self.limits.limit_positions(&mut bundle)?;
        let device = model::open_device(common)?;
        let quantization = self.quantize.quantization();
        let divided = match process {
            Some(process) => {
                let parallel = process.divide_model(&bundle.config, &device)?;
                Some(DividedModel { parallel, ranks: process.ranks().clone() })
            }
            None => None,
        };
        let loaded = LoadedModel::open_on_device(
            &device,
            &folder,
            adapter.as_deref(),
            &bundle.config,
            quantization,
            self.weights,
            divided.as_ref().map(|divided| &divided.parallel),
            common,
        )?;
        let dtype = model::activation_dtype(common);
        let batch = self.limits.batch_size.map_or_else(|| model::default_batch_size(&device), usize::from);
        let ranks = process.map_or(1, |process| process.ranks().size());
        let default_kv_bytes = || {
            let text = TensorParallel::config_of_one_rank(&bundle.config.text, ranks);
            // On CPUs, all processes share the machine's memory.
            let sharers = if device.capabilities().own_memory { 1 } else { ranks as u64 };
            model::serving_kv_bytes(&device, device.free_bytes().map(|free| free / sharers), &text, dtype, batch)
        };
        let kv_bytes = match self.limits.kv_memory {
            // The option counts the memory of all processes together. Each process stores a part of every key and
            // value.
            Some(mib) => (u64::from(mib) << 20) / ranks as u64,
            None => default_kv_bytes(),
        };
        // The engines of all processes must have the same number of blocks.
        let kv_bytes =
            process.map_or(Ok(kv_bytes), |process| process.min_over_ranks("memory for the KV cache", kv_bytes))?;
        let mut names = self.listen.served_model_name.clone();
        if names.is_empty() {
            names = vec![folder_name(adapter.as_ref().unwrap_or(&folder))];
            // The model can also be requested by the name on the command line, unless that is an absolute path:
            // clients must not learn the folders of this machine.
            if base != names[0] && !Path::new(&base).is_absolute() {
                names.push(base.clone());
            }
        }
        let (name, aliases) = (names.remove(0), names);
        let options = ServeOptions {
            address,
            host_name: Some(self.listen.host.clone()).filter(|host| host.parse::<IpAddr>().is_err()),
            api_keys,
            adapters,
            limits: ServerLimits {
                batch,
                requests: self.limits.max_requests.into(),
                encoders: self.limits.max_encoders.map_or_else(default_encoders, usize::from),
                body_bytes: usize::from(self.limits.max_body) << 20,
                kv_bytes,
                new_tokens: self.limits.max_new_tokens as usize,
                request_time: self.limits.request_timeout.map(|seconds| Duration::from_secs(seconds.into())),
            },
            connections,
            tls,
            allowed_origins,
            access_log: self.listen.access_log,
            media,
            peak_flops_per_second: machine::peak_flops_per_second(&device, dtype),
            profiler,
            stop: interrupt::stop_flag(),
        };
        let mut weights = loaded.weights;
        // Vision tokens are cached, so that repeated requests about a video do not compute them again.
        weights.features = Some(Arc::new(FeatureCache::new(VISION_CACHE_BYTES)));
        let is_copied = loaded.is_copied;
        let served = ServedModel {
            name: name.clone(),
            aliases,
            folder: bundle,
            device,
            dtype,
            quantization,
            is_copied,
            divided: divided.clone(),
        };
        if let Some(divided) = divided.filter(|divided| divided.ranks.rank() > 0) {
            return Ok(reel_serve::follow_rank_0(served, weights, &divided, options.limits)?);
        }
        let weights = ServedWeights { weights, name: folder_name(&adapter.unwrap_or(folder)) };
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let listening = |address| {
            let url = format!("{scheme}://{address}");
            // A write error, because stdout is closed, must not end the server.
            let _ = match common.json {
                true => output::print_json(&json!({"model": name, "address": url})),
                false => output::print_line(format!("{name}: listening on {url}")),
            };
        };
        Ok(reel_serve::serve(served, weights, options, listening)?)
    }

    fn media(&self, trained_folder: &Path, common: &CommonOptions) -> Result<RequestMedia> {
        if let Some(root) = &self.media_root
            && !root.is_dir()
        {
            return Err(usage_error("--media-root", format!("{} is not a folder", root.display()), "give a folder"));
        }
        let access = MediaAccess {
            remote: if self.allow_remote_media { RemoteMedia::Public } else { RemoteMedia::Refused },
            confined_to: self.media_root.clone(),
        };
        let options = media_options(&self.media, &self.worker, Some(trained_folder), access, !common.quiet, common)?;
        let limit = self.limits.limit_mm_per_prompt.unwrap_or_default();
        let (max_images, max_videos) = (limit.images, limit.videos);
        Ok(RequestMedia { options, root: self.media_root.clone(), max_images, max_videos })
    }
}

impl ListenFlags {
    /// Returns the names and folders of the LoRA adapters of `--lora`. Returns an error if there are any and the
    /// served model is itself an adapter (`of_model`).
    fn adapters(&self, of_model: Option<&Path>) -> Result<Vec<(String, PathBuf)>> {
        let option = |lora: &String| match lora.split_once('=') {
            Some((name, folder)) if is_adapter_folder(Path::new(folder)) => Ok((name.to_string(), folder.into())),
            Some((_, folder)) => {
                let what = format!("{folder} is not the folder of an adapter: it has no {ADAPTER_CONFIG_FILE}");
                Err(usage_error("--lora", what, "give a folder that reel sft, reel grpo or PEFT has written"))
            }
            None => Err(usage_error("--lora", format!("{lora} has no name"), "give NAME=DIR")),
        };
        match of_model {
            Some(adapter) if !self.lora.is_empty() => {
                let what = format!("the served model already has the adapter {}", adapter.display());
                Err(usage_error("--lora", what, "give the base model as --model, and each adapter with --lora"))
            }
            _ => self.lora.iter().map(option).collect(),
        }
    }

    /// Returns the address of `--host` and `--port`. If a name has several addresses, the first IPv4 address is used:
    /// `localhost` may list ::1 first, and most clients use 127.0.0.1.
    fn address(&self) -> Result<SocketAddr> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        let unknown = |cause: &str| {
            let what = format!("{:?} is not an address, and no host with this name is found{cause}", self.host);
            usage_error("--host", what, "give an address of this machine, such as 127.0.0.1, or its host name")
        };
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let found: Vec<SocketAddr> = found.map_err(|e| unknown(&format!(" ({e})")))?.collect();
        let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
        first.copied().ok_or_else(|| unknown(""))
    }

    /// Refuses an empty model name, which no request can use.
    fn check_model_name(&self) -> Result<()> {
        match self.served_model_name.iter().find(|name| name.trim().is_empty()) {
            Some(name) => {
                Err(usage_error("--served-model-name", format!("is {name:?}"), "give a name, or leave this option out"))
            }
            None => Ok(()),
        }
    }

    /// Returns the API keys. Refuses keys that no request can carry. If there is no key, also refuses an address that
    /// other machines can reach.
    fn api_keys(&self, address: IpAddr) -> Result<Vec<String>> {
        // Error messages do not contain the key.
        for key in &self.api_key {
            check_key(key).map_err(|what| usage_error("--api-key", what, "give a key, or leave this option out"))?;
        }
        let mut keys = self.api_key.clone();
        if keys.is_empty()
            && self.api_key_file.is_none()
            && let Some(key) = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty())
        {
            check_key(&key)
                .map_err(|what| usage_error(KEY_VARIABLE, what, "set this variable to a key, or unset it"))?;
            keys.push(key);
        }
        if let Some(file) = &self.api_key_file {
            let text = input::read_text(file, MAX_KEY_FILE_BYTES).map_err(|e| output::cannot_read(file, e))?;
            let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
            let before = keys.len();
            for (i, key) in lines {
                check_key(key).map_err(|what| {
                    let what = format!("line {} of {} {what}", i + 1, file.display());
                    usage_error("--api-key-file", what, "write one key per line, in ASCII")
                })?;
                keys.push(key.to_string());
            }
            if keys.len() == before {
                return Err(failed(file.display().to_string(), "has no API key", "write one key per line"));
            }
        }
        if keys.is_empty() && !address.is_loopback() && !self.no_auth {
            return Err(usage_error(
                "--host",
                format!("{address} can be reached from other machines, and there is no API key"),
                "give --api-key-file FILE, or --no-auth to serve everybody",
            ));
        }
        Ok(keys)
    }

    /// Returns the profiler of `--profile-dir`, if given. Only one trace can be written at a time, so this option
    /// excludes `--trace`.
    fn profiler(&self, common: &CommonOptions) -> Result<Option<Arc<dyn ServerProfiler>>> {
        let Some(folder) = &self.profile_dir else { return Ok(None) };
        if common.trace.is_some() {
            let what = "cannot record a part of the run while --trace records the whole run";
            return Err(usage_error("--profile-dir", what, "leave out one of them"));
        }
        Ok(Some(Arc::new(ServerTraceProfiler::new(folder)?)))
    }

    /// The certificate and key, read before the model is loaded.
    fn tls(&self) -> Result<Option<Tls>> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                Tls::open(certificate, key).map(Some).map_err(|e| failed(e.location, e.what, e.help))
            }
            _ => Ok(None),
        }
    }

    /// Returns the origins of the web pages that may use the server. Refuses texts that no browser sends as an
    /// origin, because they would have no effect.
    fn allowed_origins(&self) -> Result<Vec<String>> {
        let is_origin = |origin: &str| match origin.split_once("://") {
            Some((scheme, host)) => {
                let is_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:[]".contains(c);
                ["http", "https"].contains(&scheme) && !host.is_empty() && host.chars().all(is_host)
            }
            None => origin == "*",
        };
        match self.allow_origin.iter().find(|origin| !is_origin(origin)) {
            None => Ok(self.allow_origin.clone()),
            Some(origin) => Err(usage_error(
                "--allow-origin",
                format!("{origin:?} is not an origin"),
                "give scheme and host in lower-case letters without a path, such as https://example.org, or *",
            )),
        }
    }
}

/// Checks that the header `Authorization: Bearer KEY` can carry a key: the server reads visible ASCII, and drops white
/// space around the key. The error says what is wrong.
fn check_key(key: &str) -> Result<(), &'static str> {
    let is_carried = |c: char| matches!(c, ' '..='~' | '\t');
    match key {
        "" => Err("is an empty text"),
        key if !key.chars().all(is_carried) => {
            Err("has characters other than visible ASCII, which an HTTP header cannot carry")
        }
        key if key.trim() != key => Err("begins or ends with white space, which is not part of a key in a header"),
        _ => Ok(()),
    }
}

impl ConnectionFlags {
    fn limits(&self) -> Result<ConnectionLimits> {
        let seconds = |option: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .ok()
                .filter(|duration| !duration.is_zero() && *duration <= MAX_TIMEOUT)
                .ok_or_else(|| {
                    usage_error(option, format!("{value} is not a time limit"), "give seconds, 0.001 to 86400")
                })
        };
        Ok(ConnectionLimits {
            connections: self.max_connections as usize,
            read_timeout: seconds("--read-timeout", self.read_timeout)?,
            write_timeout: seconds("--write-timeout", self.write_timeout)?,
        })
    }
}

/// Maximum time limit of a connection: one day.
const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

/// Memory in bytes (2 GiB) that decoding the media of one request may take. Larger images and videos are refused.
const ENCODER_BYTES: u64 = 2 << 30;

/// Returns the default number of encoders (requests whose media are decoded at the same time): one per core, limited
/// by half of the free memory.
pub fn default_encoders() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let free = Device::cpu(1).free_bytes();
    let by_memory = free.map_or(cores, |free| usize::try_from(free / 2 / ENCODER_BYTES).unwrap_or(cores));
    cores.min(by_memory).max(1)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Listen {
        #[command(flatten)]
        flags: ListenFlags,
    }

    fn flags(args: &[&str]) -> ListenFlags {
        Listen::try_parse_from(["serve"].iter().chain(args)).expect("the options are known").flags
    }

    fn keys(args: &[&str]) -> Result<Vec<String>, String> {
        let flags = flags(args);
        flags.api_keys(flags.address().unwrap().ip()).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_that_no_request_can_carry_are_refused() {
        assert_eq!(keys(&["--api-key", "sk-1", "--api-key", "a b"]), Ok(vec!["sk-1".into(), "a b".into()]));
        for key in ["sécret", "secret ", " secret", "\tsecret", "secret\u{7f}", "secret\n", ""] {
            let e = keys(&["--api-key", "first", "--api-key", key]).unwrap_err();
            assert!(e.starts_with("--api-key: ") && e.contains("; give a key"), "{key:?}: {e}");
            assert!(!e.contains("cret"), "the error shows the key: {e}");
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "first\n\n second \n").unwrap();
        let path = file.path().to_str().unwrap().to_string();
        assert_eq!(keys(&["--api-key-file", &path]), Ok(vec!["first".into(), "second".into()]));
        writeln!(file, "ké").unwrap();
        let e = keys(&["--api-key-file", &path]).unwrap_err();
        assert!(e.starts_with(&format!("--api-key-file: line 4 of {path} has characters")), "{e}");
    }

    #[test]
    fn media_limits_have_the_forms_of_vllm() {
        let parse = |text: &str| text.parse::<MediaLimit>();
        let limit = |images, videos| Ok(MediaLimit { images, videos });
        assert_eq!(parse("image=5,video=5"), limit(Some(5), Some(5)));
        assert_eq!(parse("{\"image\":2,\"video\":0}"), limit(Some(2), Some(0)));
        assert_eq!(parse("{\"image\": {\"count\": 3, \"width\": 512}, \"audio\": 0}"), limit(Some(3), None));
        for wrong in ["image", "image=x", "{\"image\": -1}", "picture=1", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_name_of_the_model_is_not_empty() {
        for name in ["", " "] {
            let e = flags(&["--served-model-name", name]).check_model_name().unwrap_err().to_string();
            assert!(e.starts_with("--served-model-name: is \""), "{e}");
        }
        flags(&["--served-model-name", "m"]).check_model_name().unwrap();
    }

    #[test]
    fn host_names_are_resolved() {
        assert_eq!(flags(&[]).address().unwrap(), SocketAddr::from(([127, 0, 0, 1], 8000)));
        assert_eq!(flags(&["--host", "::1", "--port", "0"]).address().unwrap().to_string(), "[::1]:0");
        let local = flags(&["--host", "localhost", "--port", "9"]).address().unwrap();
        assert!(local.ip().is_loopback() && local.port() == 9, "{local}");
        for host in ["", "no such host", "127.0.0.1:80"] {
            let e = flags(&["--host", host]).address().unwrap_err().to_string();
            assert!(e.starts_with(&format!("--host: {host:?} is not an address")), "{e}");
            assert!(e.contains("; give an address of this machine") && e.lines().count() == 1, "{e}");
        }
        assert!(keys(&["--host", "0.0.0.0"]).unwrap_err().starts_with("--host: 0.0.0.0 can be reached"));
    }
}
