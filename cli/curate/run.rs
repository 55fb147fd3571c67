//! Runs a curation: the stages in their order, then the filters.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use reel_input::media::frames::FrameBuf;
use reel_model::siglip::SiglipConfig;
use reel_serve::folder_name;
use reel_support::client::Budget;
use reel_support::error::Error;
use reel_tools::curate::{
    ChatModel, Curation, CurationOptions, CurationRecipe, CurationSummary, DATASET_FILE, EndpointModel,
    ExistingCuration, FAILED_FILE, FilterSettings, FrameSettings, StageEnd, StageName, StagePrompt, VisualSimilarity,
    plan_stage,
};
use reel_tools::report::curation::curation_page_html;
use reel_train::rollout::siglip::SiglipScorer;

use super::endpoints::ModelLocation;
use super::local_server::LocalServer;
use super::stage_value::value_of_stage;
use super::{CurateRunFlags, status};
use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::{hub, interrupt, model, output};

/// File name of the curation's HTML page in OUT.
const REPORT_FILE: &str = "report.html";

/// Time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

pub(super) fn run(flags: &CurateRunFlags, common: &CommonOptions) -> Result<()> {
    let models = flags.endpoints.models(flags.recipe)?;
    let options = flags.curation_options(common)?;
    refuse_list_in_output(&options)?;
    if flags.dry_run {
        return plan(flags, options, &models, common);
    }
    let curation = Curation::open(options, false)?;
    flags.check_similarity(&curation)?;
    let run = Run { flags, common, budget: flags.endpoints.budget(curation.dollars_spent()), curation };
    let is_complete = run.ask(&models)?;
    run.finish(is_complete)
}

/// A curation whose options have all been checked.
struct Run<'a> {
    flags: &'a CurateRunFlags,
    common: &'a CommonOptions,
    budget: Arc<Budget>,
    curation: Curation,
}

impl Run<'_> {
    /// Runs all stages. Returns false if the limit on cost (`--max-cost`) was reached.
    fn ask(&self, models: &[(StageName, ModelLocation)]) -> Result<bool> {
        let (endpoints, stop) = (&self.flags.endpoints, interrupt::stop_flag());
        let needed = models.iter().filter(|(stage, _)| !self.curation.pending_tasks(*stage, true).is_empty());
        let needed: Vec<_> = needed.collect();
        // Connects to all endpoints before the first request costs money.
        let mut connected: BTreeMap<StageName, EndpointModel> = BTreeMap::new();
        for (stage, place) in &needed {
            let name = match place {
                ModelLocation::Url(url) => {
                    let endpoint = endpoints.connect(*stage, place, url, &self.budget, &stop, self.common.quiet)?;
                    let name = endpoint.name().to_string();
                    connected.insert(*stage, endpoint);
                    name
                }
                ModelLocation::Local(model) => folder_name(&crate::prompt::find_or_download_model(model)?),
            };
            self.curation.check_model_and_prompt_unchanged(*stage, &name)?;
        }
        self.curation.prepare_output_folder()?;
        let mut is_complete = true;
        for (stage, place) in &needed {
            let pending = self.curation.pending_tasks(*stage, false).len();
            if pending == 0 {
                continue;
            }
            let end = match place {
                ModelLocation::Url(url) => match connected.get(stage) {
                    Some(endpoint) => self.run_stage(*stage, endpoint, url, pending)?,
                    None => continue,
                },
                ModelLocation::Local(model) => {
                    let server = LocalServer::start(model, endpoints.concurrency(), &self.flags.worker, self.common)?;
                    let endpoint =
                        endpoints.connect(*stage, place, &server.url, &self.budget, &stop, self.common.quiet)?;
                    self.run_stage(*stage, &endpoint, model, pending)?
                }
            };
            match end {
                StageEnd::Finished => {}
                StageEnd::CapReached => is_complete = false,
                StageEnd::Stopped => {
                    let left = self.curation.pending_tasks(*stage, false).len();
                    let what = format!("stopped in stage {stage} with {left} of {pending} requests left");
                    let location = self.curation.output_folder().display().to_string();
                    return Err(Error::stopped(location, what, "continue with --resume").into());
                }
            }
        }
        Ok(is_complete)
    }

    fn run_stage(&self, stage: StageName, model: &EndpointModel, place: &str, pending: usize) -> Result<StageEnd> {
        let is_quiet = self.common.quiet || self.common.json;
        let concurrency = self.flags.endpoints.concurrency();
        if !is_quiet {
            let place = reel_support::diagnostic::redact_urls(place);
            reel_support::diagnostic::note!(
                "{stage}: {pending} requests to {} ({place}), {concurrency} at a time",
                model.name()
            );
        }
        let printed = Mutex::new(Instant::now());
        let progress = |done: usize| {
            let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
            if !is_quiet && printed.elapsed() >= PROGRESS_INTERVAL {
                *printed = Instant::now();
                reel_support::diagnostic::note!("{stage}: {done} of {pending}, ${:.4}", self.budget.spent());
            }
        };
        Ok(self.curation.run_stage(stage, model, concurrency, &interrupt::stop_flag(), &progress)?)
    }

    /// Filters the chains, writes the results, and prints them.
    fn finish(&self, is_complete: bool) -> Result<()> {
        let filters = &self.flags.filters;
        let mut siglip = match &filters.siglip {
            Some(folder) if self.curation.has_free_form_rows() => Some(Siglip::open(folder, self.common)?),
            _ => None,
        };
        let model = siglip.as_mut().map(|siglip| siglip as &mut dyn VisualSimilarity);
        let (summary, rows) = self.curation.finish(model)?;
        let out = self.curation.output_folder();
        let page = curation_page_html(&out.display().to_string(), &summary, &rows);
        output::write_file(&out.join(REPORT_FILE), page.as_bytes())?;
        self.print(&summary)?;
        if !is_complete {
            let cap = self.flags.endpoints.budget(0.0).cap().unwrap_or_default();
            let what = format!("${:.4} of ${cap} are spent, and {} rows have no answer", summary.cost, summary.failed);
            return Err(failed("--max-cost", what, "raise --max-cost, and continue with --resume"));
        }
        if summary.failed > 0 {
            let what = format!("{} of {} rows have no accepted answer", summary.failed, summary.rows);
            let help = "read the reasons in this file, then ask again with --resume";
            return Err(failed(out.join(FAILED_FILE).display(), what, help));
        }
        Ok(())
    }

    fn print(&self, summary: &CurationSummary) -> Result<()> {
        if self.common.json {
            return output::print_json(summary);
        }
        if self.common.hides_result {
            return Ok(());
        }
        for stage in &summary.stages {
            output::print_line(status::describe_stage(stage))?;
        }
        for (reason, count) in &summary.reasons {
            output::print_line(format!("rejected {count}: {}", reason.name()))?;
        }
        let CurationSummary { rows, kept, rejected, failed, cost, .. } = summary;
        let dataset = self.curation.output_folder().join(DATASET_FILE);
        output::print_line(format!(
            "{}: {kept} rows kept, {rejected} rejected, {failed} failed of {rows}; ${cost:.4}",
            dataset.display()
        ))
    }
}

/// `--dry-run`: prints how many requests each stage would send, and their maximum cost.
fn plan(
    flags: &CurateRunFlags,
    options: CurationOptions,
    models: &[(StageName, ModelLocation)],
    common: &CommonOptions,
) -> Result<()> {
    let curation = Curation::open(options, true)?;
    flags.check_similarity(&curation)?;
    let stages: Vec<_> = models
        .iter()
        .map(|(stage, place)| {
            let prices = flags.endpoints.prices(*stage, place);
            plan_stage(&curation, *stage, &prices, flags.endpoints.image_tokens(*stage))
        })
        .collect();
    if common.json {
        return output::print_json(&serde_json::json!({"rows": curation.row_count(), "stages": stages}));
    }
    output::print_line(format!(
        "{} rows; nothing was sent. Upper bounds of tokens and cost, if every request is accepted at the first \
         attempt:",
        curation.row_count()
    ))?;
    stages.iter().try_for_each(|stage| {
        output::print_line(format!(
            "{:8} {} requests, {} + {} tokens, ${:.4}",
            stage.stage.name(),
            stage.requests,
            stage.prompt_tokens,
            stage.completion_tokens,
            stage.max_cost
        ))
    })
}

impl CurateRunFlags {
    fn curation_options(&self, common: &CommonOptions) -> Result<CurationOptions> {
        let list = hub::local_data_path("--videos", self.videos.as_deref().unwrap_or(Path::new("")))?;
        let media_root = self.media_root.clone().unwrap_or_else(|| reel_input::rows::media_root(&list));
        if self.limit == Some(0) {
            return Err(usage_error("--limit", "is 0", "give 1 or more"));
        }
        if !(self.sampling.fps > 0.0 && self.sampling.fps <= 1000.0) {
            return Err(usage_error("--fps", format!("is {}", self.sampling.fps), "give a rate above 0"));
        }
        if let Some(stage) = self.redo.filter(|stage| !self.recipe.stages().contains(stage)) {
            let what = format!("is {stage}, which this --recipe does not have");
            return Err(usage_error("--redo", what, "name a stage of the recipe"));
        }
        let existing = match (self.resume, self.overwrite) {
            (true, _) => ExistingCuration::Resume,
            (_, true) => ExistingCuration::Overwrite,
            (false, false) => ExistingCuration::Refuse,
        };
        Ok(CurationOptions {
            list,
            media_root,
            out: self.out.clone().unwrap_or_default(),
            recipe: self.recipe,
            existing,
            accept_changes: self.accept_changes,
            redo: self.redo,
            skip_bad_rows: self.skip_bad_rows,
            limit: self.limit,
            prompts: self.prompts()?,
            frames: FrameSettings {
                fps: self.sampling.fps,
                max_frames: self.sampling.max_frames,
                max_pixels: self.sampling.max_pixels,
            },
            response_format: self.sampling.response_format,
            seed: common.seed,
            filters: self.filter_settings()?,
            keep_paths: self.keep_paths,
            layout: self.layout,
            decoder: self.worker.decode_worker(common)?,
        })
    }

    /// Returns the prompt of each stage, with the sampling parameters that the options set.
    fn prompts(&self) -> Result<BTreeMap<StageName, StagePrompt>> {
        let flags = &self.sampling;
        let mut prompts = BTreeMap::new();
        for &stage in self.recipe.stages() {
            let own = StagePrompt::of_stage(stage);
            let temperature = value_of_stage(&flags.temperature, stage).copied().unwrap_or(own.temperature);
            let top_p = value_of_stage(&flags.top_p, stage).copied().unwrap_or(own.top_p);
            let max_tokens = value_of_stage(&flags.max_tokens, stage).copied().unwrap_or(own.max_tokens);
            if !(0.0..=2.0).contains(&temperature) {
                return Err(usage_error("--temperature", format!("is {temperature}"), "give 0 to 2"));
            }
            if !(top_p > 0.0 && top_p <= 1.0) {
                return Err(usage_error("--top-p", format!("is {top_p}"), "give a number above 0, at most 1"));
            }
            if max_tokens == 0 {
                return Err(usage_error("--max-tokens", "is 0", "give 1 or more"));
            }
            prompts.insert(stage, StagePrompt { temperature, top_p, max_tokens, ..own.clone() });
        }
        Ok(prompts)
    }

    fn filter_settings(&self) -> Result<FilterSettings> {
        let flags = &self.filters;
        let shares = [
            ("--min-accuracy", f64::from(flags.min_accuracy)),
            ("--min-similarity", f64::from(flags.min_similarity)),
            ("--max-overlap", flags.max_overlap),
        ];
        for (option, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(usage_error(option, format!("is {value}"), "give a number from 0 to 1"));
            }
        }
        if flags.min_words > flags.max_words {
            let what = format!("is {}, above --max-words {}", flags.min_words, flags.max_words);
            return Err(usage_error("--min-words", what, "give a smaller number"));
        }
        Ok(FilterSettings {
            min_accuracy: flags.min_accuracy,
            min_similarity: (!flags.no_similarity).then_some(flags.min_similarity),
            min_words: flags.min_words,
            max_words: flags.max_words,
            max_overlap: flags.max_overlap,
            is_blind: self.recipe == CurationRecipe::Videorft,
        })
    }

    /// Checks, before requests cost money, that a SigLIP model is given if the list has free-form questions: their
    /// chains of thought are compared with the frames.
    fn check_similarity(&self, curation: &Curation) -> Result<()> {
        match &self.filters.siglip {
            Some(folder) => SiglipConfig::open(folder).map(drop).map_err(Into::into),
            None if curation.has_free_form_rows() && !self.filters.no_similarity => Err(usage_error(
                "--siglip",
                "is missing, but there are free-form rows, whose chains of thought are compared with the frames",
                "give the folder of a SigLIP model, or --no-similarity to keep such rows without this test",
            )),
            None => Ok(()),
        }
    }
}

/// Refuses a list inside the output folder, because result files there could have the list's name.
fn refuse_list_in_output(options: &CurationOptions) -> Result<()> {
    let Ok(out) = options.out.canonicalize() else { return Ok(()) };
    for source in reel_input::rows::input_paths(&options.list) {
        if source.canonicalize().is_ok_and(|source| source.starts_with(&out)) {
            let what = format!("is {}, which contains the list {}", options.out.display(), source.display());
            return Err(usage_error("--out", what, "choose another folder"));
        }
    }
    Ok(())
}

/// The SigLIP model that the filters use.
struct Siglip {
    scorer: SiglipScorer,
    id: String,
}

impl Siglip {
    fn open(folder: &Path, common: &CommonOptions) -> Result<Self> {
        let (device, dtype) = (model::open_device(common)?, model::activation_dtype(common));
        let scorer = SiglipScorer::open(&device, folder, dtype)?;
        // The id consists of the weights' folder name and total size. Hashing gigabytes of weights in each run would
        // take too long.
        let files = std::fs::read_dir(folder).map_err(|e| output::cannot_read(folder, e))?;
        let bytes: u64 = files.flatten().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        Ok(Self { scorer, id: format!("{} {bytes} {}", folder_name(folder), dtype.name()) })
    }
}

impl VisualSimilarity for Siglip {
    fn id(&self) -> &str {
        &self.id
    }

    fn cosines(&mut self, text: &str, frames: &FrameBuf) -> Result<Vec<f32>, String> {
        let cosines = self.scorer.similarities_of(&[text], std::slice::from_ref(frames), false);
        let first = cosines.map_err(|e| e.to_string())?.into_iter().next();
        first.ok_or_else(|| "SigLIP gave no similarity; report this as a defect".to_string())
    }
}
