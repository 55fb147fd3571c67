//! The source of the answers to a benchmark's questions: a model in this process (`--model`) or a server
//! (`--endpoint`).

use std::sync::Arc;

use anyhow::Result;
use reel_eval::predict::{
    ChatRequests, EndpointRun, EndpointSummary, FingerprintedInput, PredictionFile, PredictionSettings,
    SamplingSettings,
};
use reel_input::MediaOptions;
use reel_input::fetch::MediaAccess;
use reel_support::client::ChatClient;
use serde_json::{Map, Value, json};

use super::EvalRunFlags;
use crate::common::CommonOptions;
use crate::endpoint::{ServedModel, model_name};
use crate::fail::usage_error;
use crate::media::{MediaFlags, media_error_to_usage_error};
use crate::model::WeightLocation;
use crate::predictor::{PredictionJob, Predictor, WorkDivision, sampling_options, shortest_decimal};
use crate::prompt::{ModelFlags, media_options};
use crate::ranks::RunProcess;
use crate::{interrupt, model};

/// The source of the answers: a model in this process, or a server.
pub(super) enum AnswerSource<'c> {
    Model(Box<Predictor<'c>>),
    Server(Box<ChatApiServer<'c>>),
}

/// A server with OpenAI's chat API.
pub(super) struct ChatApiServer<'c> {
    client: ChatClient,
    url: String,
    /// The name of the model in the server's list of models.
    model: String,
    served: ServedModel,
    options: &'c EvalRunFlags,
    common: &'c CommonOptions,
}

impl<'c> AnswerSource<'c> {
    /// Opens the model of `--model`, or asks the server of `--endpoint` for the name of its model. `process` is this
    /// process if several processes share the rows.
    pub(super) fn open(
        options: &'c EvalRunFlags,
        common: &'c CommonOptions,
        process: Option<&'c RunProcess>,
    ) -> Result<Self> {
        match (&options.model, &options.endpoint) {
            (Some(model), None) => {
                let flags = ModelFlags { model: model.clone(), adapter: options.adapter.clone() };
                let device = model::open_device(common)?;
                // Several processes on this machine may evaluate at the same time: other parts (`--shard`) or other
                // ranks. They share the memory-mapped weight files.
                let has_others = options.shard.is_some() || process.is_some_and(|p| p.processes_on_machine() > 1);
                let place = has_others.then_some(WeightLocation::Mapped);
                let processes = process.map_or(WorkDivision::One, WorkDivision::ShareRows);
                let (quantize, batch) = (options.quantize, options.batch_size);
                let predictor = Predictor::open(&flags, quantize, place, device, batch, common, processes)?;
                Ok(Self::Model(Box::new(predictor)))
            }
            (None, Some(url)) => {
                let quiet = common.quiet || common.json;
                let client = options.server.client("--endpoint", url, options.endpoint_model.as_deref(), quiet)?;
                options.server.concurrency()?;
                let model = model_name(&client)?;
                let served = ServedModel::ask(&client, &model);
                Ok(Self::Server(Box::new(ChatApiServer { client, url: url.clone(), model, served, options, common })))
            }
            _ => Err(usage_error("--model", "is missing", "give the model to evaluate, or --endpoint to ask a server")),
        }
    }

    /// Returns the options for loading images and videos. Limits that no option sets are those of the run that
    /// trained the model.
    pub(super) fn media_options(
        &self,
        flags: &MediaFlags,
        access: MediaAccess,
        options: &EvalRunFlags,
        common: &CommonOptions,
    ) -> Result<MediaOptions> {
        let trained_folder = match self {
            Self::Model(predictor) => Some(predictor.trained_folder()),
            Self::Server(_) => None,
        };
        media_options(flags, &options.worker, trained_folder, access, false, common)
    }

    /// Returns the options that influence the predictions. A resumed run must have the same values.
    ///
    /// # Errors
    /// Media options that do not fit the model, or that a server would not see.
    pub(super) fn options_that_must_match(
        &self,
        sampling: &SamplingSettings,
        media: &MediaOptions,
    ) -> Result<Map<String, Value>> {
        match self {
            Self::Model(predictor) => predictor.options_that_must_match(sampling, media),
            Self::Server(server) => {
                let of_prompts =
                    [("--video-marks", media.video_marks.is_some()), ("--add-vision-id", media.add_vision_id)];
                if let Some((name, _)) = of_prompts.iter().find(|(_, is_given)| *is_given) {
                    let what = "has no effect on the answers of a server, which writes the prompts itself";
                    return Err(usage_error(name, what, "leave it out, or give it to the server"));
                }
                media.check_fits(server.served.family).map_err(media_error_to_usage_error)?;
                let mut options = sampling_options(sampling, media, server.served.family, server.common);
                options.insert("endpoint_video".into(), json!(server.options.endpoint_video));
                let fields = server.options.server.request_fields();
                if !fields.is_empty() {
                    options.insert("request_field".into(), Value::Object(fields));
                }
                Ok(options)
            }
        }
    }

    /// Writes the predictions of a job; continues the file if an earlier run has left one.
    pub(super) fn run(&mut self, job: PredictionJob<'_>) -> Result<()> {
        match self {
            Self::Model(predictor) => predictor.run(job).map(drop),
            Self::Server(server) => server.run(job),
        }
    }
}

impl ChatApiServer<'_> {
    fn run(&self, job: PredictionJob<'_>) -> Result<()> {
        let rows = job.rows.data().len();
        let data = (job.data.0, job.data.1, rows);
        let model = FingerprintedInput::of_endpoint(&self.url, &self.model);
        let mut settings = PredictionSettings::new(job.command, (model, None), data, job.options, None);
        if let Some(folder) = job.media_root {
            settings = settings.with_media_root(folder);
        }
        let columns = |row| job.rows.columns(row);
        let file = PredictionFile::open(job.out, job.existing, settings, columns)?;
        if file.is_complete() {
            return Ok(());
        }
        let params = self.params(&job.sampling);
        let max_tokens = u32::try_from(job.sampling.max_new_tokens).unwrap_or(u32::MAX);
        let requests =
            ChatRequests::new(job.rows, (self.served.family, self.options.endpoint_video), max_tokens, params);
        let stop = interrupt::stop_flag();
        let run = EndpointRun {
            requests: Arc::new(requests),
            client: &self.client,
            concurrency: self.options.server.concurrency()?,
            strict: job.strict,
            quiet: self.common.quiet || self.common.json,
            stop: &stop,
        };
        let summary = run.run(file)?;
        if !self.common.quiet && !self.common.json {
            reel_support::diagnostic::note!("{}: {}", job.out.display(), self.describe(&summary));
        }
        Ok(())
    }

    /// Returns the sampling fields of every request. Fields that are not part of OpenAI's API are left out if they
    /// have their default value, except for a server that would take another value from the model's folder.
    fn params(&self, sampling: &SamplingSettings) -> Map<String, Value> {
        let of = &sampling.params;
        let mut params = Map::new();
        params.insert("temperature".into(), shortest_decimal(of.temperature));
        params.insert("top_p".into(), shortest_decimal(of.top_p));
        let always = self.served.has_own_sampling;
        if always || of.top_k != 0 {
            // All of these servers take -1 for all tokens.
            params.insert("top_k".into(), if of.top_k == 0 { json!(-1) } else { json!(of.top_k) });
        }
        if always || of.repetition_penalty != 1.0 {
            params.insert("repetition_penalty".into(), shortest_decimal(of.repetition_penalty));
        }
        params.extend(self.options.server.request_fields());
        params
    }

    fn describe(&self, summary: &EndpointSummary) -> String {
        let EndpointSummary { answered, attempts, prompt_tokens, completion_tokens, cost, seconds, .. } = summary;
        let cost = if self.options.server.has_prices() { format!(", ${cost:.4}") } else { String::new() };
        format!(
            "{answered} answers of {} in {seconds:.1} s: {attempts} attempts, {prompt_tokens} prompt tokens, \
             {completion_tokens} answer tokens{cost}",
            self.model
        )
    }
}
