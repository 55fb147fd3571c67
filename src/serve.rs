//! `reel serve`: answers requests over HTTP with OpenAI's API.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_diagnostic::input;
use reel_model::input::encode::ModelFolder;
use reel_model::input::fetch::{MediaAccess, RemoteMedia};
use reel_serve::{Limits, RequestMedia, ServeOptions, ServedModel};

use crate::common::CommonOptions;
use crate::fail::{bad_usage, failed};
use crate::media::{MediaFlags, WorkerFlags};
use crate::model::{self, LoadedModel};
use crate::prompt::{ModelFlags, find_or_download_model, media_options};
use crate::{interrupt, output};

/// The options of `reel serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Ends at Ctrl-C or SIGTERM: requests that run are answered, new ones get status
503. A second signal ends it at once.

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
    listen: ListenFlags,
    #[command(flatten)]
    limits: LimitFlags,
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

/// Options that say where the server listens and who may use it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server options")]
struct ListenFlags {
    /// Address to listen on; another one than this machine's own needs an API key
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Key that requests must carry (Authorization: Bearer KEY); may be given several times. Other users of this
    /// machine can see it; --api-key-file hides it
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// File with one API key per line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Listen on other addresses than this machine's own without an API key
    #[arg(long)]
    no_auth: bool,
    /// Name of the model in requests and answers [default: the name of its folder]
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
}

/// Options that limit requests.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server options")]
struct LimitFlags {
    /// Maximum number of completions that decode together [default: 256 on cuda, else 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,
    /// Maximum number of requests that run or wait; further ones get status 503
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    max_requests: u16,
    /// Maximum size of a request in MiB, with its media
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    max_body: u16,
    /// Maximum number of tokens of an answer if the request does not say
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
}

/// Maximum bytes of a file with API keys (1 MiB).
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;

impl ServeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let api_keys = self.listen.api_keys()?;
        let (base, adapter) = self.model.base_model_and_adapter_folder()?;
        let folder = find_or_download_model(&base)?;
        let media = self.media(adapter.as_deref().unwrap_or(&folder), common)?;
        let bundle = ModelFolder::open(&folder)?;
        let device = model::open_device(common)?;
        let loaded = LoadedModel::open_on(&device, &folder, adapter.as_deref(), &bundle.config, common)?;
        let name =
            self.listen.served_model_name.clone().unwrap_or_else(|| folder_name(adapter.as_ref().unwrap_or(&folder)));
        let options = ServeOptions {
            address: SocketAddr::new(self.listen.host, self.listen.port),
            api_keys,
            limits: Limits {
                batch: self.limits.batch_size.map_or_else(|| model::default_batch_size(&device), usize::from),
                requests: self.limits.max_requests.into(),
                body_bytes: usize::from(self.limits.max_body) << 20,
                kv_bytes: model::kv_bytes(&device),
                new_tokens: self.limits.max_new_tokens as usize,
            },
            media,
            stop: interrupt::stop_flag(),
        };
        let dtype = model::activation_dtype(common);
        let served = ServedModel { name: name.clone(), folder: bundle, weights: loaded.weights, device, dtype };
        let listening = |address| {
            // A closed stdout does not end a server.
            let _ = output::print_line(format!("{name}: listening on http://{address}"));
        };
        Ok(reel_serve::serve(served, options, listening)?)
    }

    fn media(&self, trained_folder: &Path, common: &CommonOptions) -> Result<RequestMedia> {
        if let Some(root) = &self.media_root
            && !root.is_dir()
        {
            return Err(bad_usage("--media-root", format!("{} is not a folder", root.display()), "give a folder"));
        }
        let access = MediaAccess {
            remote: if self.allow_remote_media { RemoteMedia::Public } else { RemoteMedia::Refused },
            confined_to: self.media_root.clone(),
        };
        let options = media_options(&self.media, &self.worker, trained_folder, access, !common.quiet, common)?;
        Ok(RequestMedia { options, root: self.media_root.clone() })
    }
}

impl ListenFlags {
    /// The API keys. Refuses an address that other machines can reach if there is no key.
    fn api_keys(&self) -> Result<Vec<String>> {
        let mut keys = self.api_key.clone();
        if let Some(file) = &self.api_key_file {
            let text = input::read_text(file, MAX_KEY_FILE_BYTES).map_err(|e| output::cannot_read(file, e))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let before = keys.len();
            keys.extend(lines.map(String::from));
            if keys.len() == before {
                return Err(failed(file.display().to_string(), "has no API key", "write one key per line"));
            }
        }
        if keys.iter().any(String::is_empty) {
            return Err(bad_usage("--api-key", "is an empty text", "give a key, or leave it out"));
        }
        if keys.is_empty() && !self.host.is_loopback() && !self.no_auth {
            return Err(bad_usage(
                "--host",
                format!("{} can be reached from other machines, and there is no API key", self.host),
                "give --api-key-file FILE, or --no-auth to serve everybody",
            ));
        }
        Ok(keys)
    }
}

/// The last part of a folder's path; the whole path if it has none.
fn folder_name(folder: &PathBuf) -> String {
    let canonical = folder.canonicalize();
    let name = canonical.as_ref().unwrap_or(folder).file_name();
    name.map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned())
}
