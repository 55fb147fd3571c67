//! `reel bench serve`: sends requests to a server with OpenAI's API and measures its throughput and latency.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use clap::{Args, ValueEnum};
use reel_device::Device;
use reel_support::diagnostic::input;
use reel_tools::loadgen::{
    LoadProgress, LoadReport, LoadSettings, MediaFile, MediaKind, OnProgress, OpenAiApi, RequestAmount, ServerUrl,
};
use reel_tools::measure::rounds::hardware_json;
use serde_json::{Map, Value, json};

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::output;

/// Measure a running server with OpenAI's API: requests/s, tokens/s and latency.
#[derive(Args, Debug)]
#[command(after_help = "\
Output: TTFT is the time to the first token, TPOT the time per token after it,
ITL the time between two events with text, E2EL the time of a whole answer.
Requests that fail count only as failed. If all fail, the exit code is 1.

Example:
  reel init --preset tiny --out tiny
  reel serve --model tiny            # in another terminal
  reel bench serve --num-prompts 20 --max-concurrency 4 --out serve.json")]
pub struct ServeArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    load: ScheduleFlags,
    #[command(flatten)]
    request: RequestFlags,
    /// Also write the result to this file, as JSON
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
}

/// Options that name the server.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server options")]
struct ServerFlags {
    /// Address of the server, with or without /v1
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Model name in the requests [default: the first one that the server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// File whose first line is the server's API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// API to measure: chat (/v1/chat/completions) or completions (/v1/completions)
    #[arg(long, value_enum, value_name = "API", default_value_t = EndpointName::Chat, hide_possible_values = true)]
    endpoint: EndpointName,
}

/// Options that say how many requests are sent and when.
#[derive(Args, Debug)]
#[command(next_help_heading = "Load options")]
struct ScheduleFlags {
    /// Number of requests
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    num_prompts: u32,
    /// Instead of a number of requests: send requests for this time, then wait for those that still run
    #[arg(long, value_name = "SECONDS", conflicts_with = "num_prompts")]
    duration: Option<f64>,
    /// Mean number of requests per second, with random (Poisson) arrival times; inf: send as soon as --max-concurrency
    /// permits
    #[arg(long, value_name = "RATE", default_value_t = f64::INFINITY)]
    request_rate: f64,
    /// Regularity of arrival times with --request-rate: 1 is a Poisson process, less gives bursts, more gives even
    /// intervals (shape of their gamma distribution)
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    burstiness: f64,
    /// Maximum number of requests at the same time; further requests wait in the client, and their latency does not
    /// include this wait [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_concurrency: Option<u32>,
    /// Number of warm-up requests before the measurement; all must be answered
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: u16,
    /// Maximum time of a request in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    timeout: f64,
}

/// Options that say what a request contains.
#[derive(Args, Debug)]
#[command(next_help_heading = "Request options")]
struct RequestFlags {
    /// Words of each prompt: random common words, about one token each; the result has the server's count of tokens,
    /// chat template included
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    prompt_tokens: u32,
    /// Further words at the start of each prompt that are the same in all prompts, to measure prefix caches
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1 << 22))]
    shared_prefix_tokens: u32,
    /// Maximum number of tokens of an answer (max_tokens)
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    output_tokens: u32,
    /// Ask the server to ignore end tokens, so that all answers have --output-tokens tokens; not every server knows
    /// this field
    #[arg(long)]
    ignore_eos: bool,
    /// Image to send with each prompt; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Video to send with each prompt; may be given several times
    #[arg(long, value_name = "FILE")]
    video: Vec<PathBuf>,
    /// Further fields of each request, such as '{"temperature": 0, "n": 4}'
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    extra_body: Option<Map<String, Value>>,
}

/// Values of `--endpoint`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum EndpointName {
    Chat,
    Completions,
}

/// Maximum bytes of a file with API keys (1 MiB).
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;
/// Minimum time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

impl ServeArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let settings = self.settings(common)?;
        let shows_progress = !common.quiet && output::stderr_is_terminal();
        let report =
            reel_tools::loadgen::run(&settings, if shows_progress { progress_line() } else { Arc::new(|_| {}) });
        if shows_progress {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        let report = report?;
        let record = record(&report);
        if let Some(out) = &self.out {
            output::write_file(out, format!("{record:#}\n").as_bytes())?;
        }
        if common.json {
            output::print_json(&record)?
        } else {
            output::print_line(report.table())?
        }
        match report.failures.values().next() {
            Some(group) if report.answers.is_empty() => {
                let what = format!("all {} requests failed; the first: {}", report.failed_requests(), group.first);
                Err(failed(&settings.url, what, group.first.help()))
            }
            _ => {
                for note in report.notes().iter().filter(|_| !common.quiet) {
                    reel_support::diagnostic::note!("warning: {}", reel_support::diagnostic::escape_controls(note));
                }
                Ok(())
            }
        }
    }

    fn settings(&self, common: &CommonOptions) -> Result<LoadSettings> {
        let Self { server, load, request, .. } = self;
        let mut media = Vec::new();
        for (kind, files) in [(MediaKind::Image, &request.image), (MediaKind::Video, &request.video)] {
            for file in files {
                media.push(MediaFile { kind, bytes: output::read_file(file)?.into() });
            }
        }
        Ok(LoadSettings {
            url: server.url.parse::<ServerUrl>()?,
            model: server.model.clone(),
            api_key: server.api_key_file.as_deref().map(first_key).transpose()?,
            endpoint: match server.endpoint {
                EndpointName::Chat => OpenAiApi::Chat,
                EndpointName::Completions => OpenAiApi::Completions,
            },
            amount: match load.duration {
                Some(time) => RequestAmount::Time(seconds("--duration", time)?),
                None => RequestAmount::Requests(load.num_prompts as usize),
            },
            request_rate: Some(load.request_rate).filter(|rate| *rate != f64::INFINITY),
            burstiness: load.burstiness,
            max_concurrency: load.max_concurrency.map(|n| n as usize),
            prompt_tokens: request.prompt_tokens as usize,
            shared_prefix_tokens: request.shared_prefix_tokens as usize,
            output_tokens: request.output_tokens as usize,
            ignore_eos: request.ignore_eos,
            media,
            extra_body: request.extra_body.clone().unwrap_or_default(),
            seed: common.seed(),
            warmup: load.warmup.into(),
            timeout: seconds("--timeout", load.timeout)?,
        })
    }
}

/// Returns the benchmark's result as JSON, together with the program's version and the client's machine.
fn record(report: &LoadReport) -> Value {
    let mut machine = hardware_json(&Device::cpu(1));
    machine["cpus"] = json!(std::thread::available_parallelism().map_or(1, usize::from));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut record = json!({
        "op": "serve", "version": env!("CARGO_PKG_VERSION"), "machine": machine, "seconds_since_1970": now.as_secs(),
    });
    if let (Some(all), Value::Object(figures)) = (record.as_object_mut(), report.json()) {
        all.extend(figures);
    }
    record
}

/// Returns a callback that redraws one line of progress on stderr, at most ten times per second.
fn progress_line() -> OnProgress {
    let last = Mutex::new(None::<Instant>);
    Arc::new(move |progress: LoadProgress| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL) {
            *last = Some(Instant::now());
            let LoadProgress { answered, failed, running, .. } = progress;
            // Write errors are ignored, because a closed stderr must not end the measurement.
            let _ = write!(std::io::stderr(), "\r\x1b[K{answered} answered, {failed} failed, {running} running");
        }
    })
}

/// Returns the first line of the file that is not blank: the API key.
fn first_key(file: &Path) -> Result<String> {
    let text = input::read_text(file, MAX_KEY_FILE_BYTES).map_err(|e| output::cannot_read(file, e))?;
    let key = text.lines().map(str::trim).find(|line| !line.is_empty());
    let help = "write the key into the first line of this file";
    key.map(String::from).ok_or_else(|| failed(file.display(), "has no API key", help))
}

fn seconds(option: &str, value: f64) -> Result<Duration> {
    let help = "give a number of seconds above 0";
    Duration::try_from_secs_f64(value).map_err(|_| crate::fail::usage_error(option, format!("is {value}"), help))
}

fn json_object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("give a JSON object, such as {{\"temperature\": 0}} ({e})"))
}
