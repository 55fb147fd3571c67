//! Options for the models of a curation's stages: addresses, names, keys, prices, and limits on requests.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_support::client::{Budget, ChatClient, ChatFailure, ClientOptions, FailureKind, Prices};
use reel_support::error::Error;
use reel_tools::curate::{CurationRecipe, EndpointModel, StageName};

use super::stage_value::{StageValue, value_of_stage};
use crate::endpoint::PricesArgument;
use crate::fail::usage_error;

/// Options of the models.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model options")]
pub struct CurationEndpointFlags {
    /// Model that describes videos
    #[arg(long, value_name = "URL|MODEL")]
    caption: Option<String>,
    /// Model that writes chains without seeing the video
    #[arg(long, value_name = "URL|MODEL")]
    reason: Option<String>,
    /// Model that revises chains against the video
    #[arg(long, value_name = "URL|MODEL")]
    revise: Option<String>,
    /// Model of --recipe video-r1, which answers with chains
    #[arg(long, value_name = "URL|MODEL")]
    model: Option<String>,
    /// Name of the model at an endpoint [default: the first model that the endpoint lists]
    #[arg(long, value_name = "[STAGE=]NAME")]
    name: Vec<StageValue<String>>,
    /// Environment variable with the API key of an endpoint
    #[arg(long, value_name = "[STAGE=]VARIABLE")]
    api_key_env: Vec<StageValue<String>>,
    /// Price of an endpoint in US dollars per million tokens of requests and of answers
    #[arg(long, value_name = "[STAGE=]IN,OUT")]
    price: Vec<StageValue<PricesArgument>>,
    /// Maximum cost of the whole curation in US dollars, earlier runs included; it is never exceeded
    #[arg(long, value_name = "USD")]
    max_cost: Option<f64>,
    /// Maximum number of tokens that an endpoint counts for one image, for --max-cost; 85 to 10000 at commercial
    /// endpoints
    #[arg(long, value_name = "[STAGE=]N")]
    image_tokens: Vec<StageValue<u32>>,
    /// Maximum number of requests in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Maximum number of requests per minute
    #[arg(long, value_name = "[STAGE=]N")]
    requests_per_minute: Vec<StageValue<f64>>,
    /// Maximum number of tokens per minute
    #[arg(long, value_name = "[STAGE=]N")]
    tokens_per_minute: Vec<StageValue<f64>>,
    /// Time limit of one request, in seconds
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    timeout: f64,
    /// Maximum number of times a request is sent until its answer is accepted
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    max_attempts: u32,
    /// Wait before the second attempt, in seconds; the wait doubles with each further attempt and has a random part. A
    /// server's Retry-After takes precedence
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    first_wait: f64,
}

/// Where the model of a curation stage runs: on a server, or in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelLocation {
    /// The model behind the endpoint with this URL.
    Url(String),
    /// The model in this folder, or with this id on the Hugging Face hub.
    Local(String),
}

/// Maximum number of tokens of an image if `--image-tokens` is not given.
const DEFAULT_IMAGE_TOKENS: u32 = 1500;

impl CurationEndpointFlags {
    /// Checks all options and returns the model of each stage of a recipe.
    pub fn models(&self, recipe: CurationRecipe) -> Result<Vec<(StageName, ModelLocation)>> {
        self.check()?;
        let mut models = Vec::new();
        for stage in StageName::ALL {
            let option = stage.model_option();
            match (self.model_of(stage), recipe.stages().contains(&stage)) {
                (Some(model), true) => models.push((stage, place(model))),
                (None, true) => {
                    let what = "is missing";
                    return Err(usage_error(option, what, "give the URL of an endpoint, or a model folder"));
                }
                (Some(_), false) => {
                    let what = "has no effect with this --recipe";
                    return Err(usage_error(option, what, "leave this option out, or give the other recipe"));
                }
                (None, false) => {}
            }
        }
        if self.max_cost.is_some() {
            let without = models.iter().find(|(stage, place)| {
                matches!(place, ModelLocation::Url(_)) && value_of_stage(&self.price, *stage).is_none()
            });
            if let Some((stage, _)) = without {
                let what = format!("needs the price of the endpoint of stage {stage}");
                let help = format!("give --price {stage}=IN,OUT in dollars per million tokens; 0,0 is free");
                return Err(usage_error("--max-cost", what, help));
            }
        }
        Ok(models)
    }

    fn model_of(&self, stage: StageName) -> Option<&str> {
        match stage {
            StageName::Caption => self.caption.as_deref(),
            StageName::Reason => self.reason.as_deref(),
            StageName::Revise => self.revise.as_deref(),
            StageName::Answer => self.model.as_deref(),
        }
    }

    fn check(&self) -> Result<()> {
        if let Some(cap) = self.max_cost.filter(|cap| !(cap.is_finite() && *cap >= 0.0)) {
            return Err(usage_error("--max-cost", format!("is {cap}"), "give US dollars, 0 or more"));
        }
        for (option, seconds) in [("--timeout", self.timeout), ("--first-wait", self.first_wait)] {
            if !(seconds > 0.0 && seconds <= 86_400.0) {
                return Err(usage_error(option, format!("is {seconds}"), "give seconds above 0, at most 86400"));
            }
        }
        let rates =
            [("--requests-per-minute", &self.requests_per_minute), ("--tokens-per-minute", &self.tokens_per_minute)];
        for (option, values) in rates {
            let of_stages = StageName::ALL.into_iter().filter_map(|stage| value_of_stage(values, stage));
            if let Some(rate) = of_stages.into_iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
                return Err(usage_error(option, format!("is {rate}"), "give a finite number above 0"));
            }
        }
        Ok(())
    }

    /// The limit on cost (`--max-cost`), with `spent` US dollars already spent by earlier runs.
    pub fn budget(&self, spent: f64) -> Arc<Budget> {
        Arc::new(Budget::with_spent(self.max_cost, spent))
    }

    /// Maximum number of requests in flight.
    pub fn concurrency(&self) -> usize {
        self.concurrency.into()
    }

    /// Returns the prices of a stage's model. A local model is free.
    pub fn prices(&self, stage: StageName, place: &ModelLocation) -> Prices {
        match place {
            ModelLocation::Url(_) => value_of_stage(&self.price, stage).map(|price| price.0).unwrap_or_default(),
            ModelLocation::Local(_) => Prices::default(),
        }
    }

    /// Maximum number of tokens that a stage's endpoint counts for one image.
    pub fn image_tokens(&self, stage: StageName) -> u32 {
        value_of_stage(&self.image_tokens, stage).copied().unwrap_or(DEFAULT_IMAGE_TOKENS)
    }

    /// Connects to the server at `url` for the model of a stage. `place` is the model that the options name; for a
    /// local model, `url` is the address of the server that this process has started. Unless `quiet`, the client
    /// prints how long the server asks it to wait.
    pub fn connect(
        &self,
        stage: StageName,
        place: &ModelLocation,
        url: &str,
        budget: &Arc<Budget>,
        stop: &AtomicBool,
        quiet: bool,
    ) -> Result<EndpointModel> {
        let is_local = matches!(place, ModelLocation::Local(_));
        let seconds = Duration::from_secs_f64;
        let options = ClientOptions {
            api_key: if is_local { None } else { self.api_key(stage)? },
            model: value_of_stage(&self.name, stage).filter(|_| !is_local).cloned(),
            timeout: seconds(self.timeout),
            max_attempts: self.max_attempts,
            first_wait: seconds(self.first_wait),
            requests_per_minute: value_of_stage(&self.requests_per_minute, stage).copied(),
            tokens_per_minute: value_of_stage(&self.tokens_per_minute, stage).copied(),
            prices: self.prices(stage, place),
            budget: Arc::clone(budget),
            image_tokens: self.image_tokens(stage),
            prints_waits: !quiet,
            ..ClientOptions::new(url)
        };
        let client = ChatClient::new(options).map_err(|e| of_client(stage, e))?;
        EndpointModel::connect(client, self.max_attempts, stop).map_err(|e| of_client(stage, e))
    }

    fn api_key(&self, stage: StageName) -> Result<Option<String>> {
        let Some(variable) = value_of_stage(&self.api_key_env, stage) else { return Ok(None) };
        match std::env::var(variable) {
            Ok(key) if !key.is_empty() => Ok(Some(key)),
            _ => {
                let what = format!("names the environment variable {variable}, which is not set");
                Err(usage_error("--api-key-env", what, "set it to the key"))
            }
        }
    }
}

fn place(model: &str) -> ModelLocation {
    match model.starts_with("http://") || model.starts_with("https://") {
        true => ModelLocation::Url(model.into()),
        false => ModelLocation::Local(model.into()),
    }
}

/// Converts a client's error, which occurs before the first request about a row, to an error that names the stage's
/// option.
fn of_client(stage: StageName, failure: ChatFailure) -> anyhow::Error {
    let location = stage.model_option();
    match failure.kind {
        FailureKind::Stopped => Error::stopped(location, failure.message, "").into(),
        _ => Error::failed(location, failure.message, "").into(),
    }
}
