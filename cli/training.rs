//! Code that `reel sft` and `reel grpo` share: merging options of command line and configuration file, training, and
//! printing the result.

use std::ops::DerefMut;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ArgMatches;
use clap::parser::ValueSource;
use reel_device::MatmulImplementation;
use reel_input::MediaOptions;
use reel_input::config::ModelConfig;
use reel_input::media::profile::MediaProfile;
use reel_support::ranks::World;
use reel_tools::measure::{machine, trace};
use reel_train::file_names::RUN_FILE;
use reel_train::options::{RunOptions, SftOptions, TrainingOptions};
use reel_train::rollout::tools::ToolSet;
use reel_train::runs::config_file::ConfigFile;
use reel_train::runs::run::{DataCheckResult, RunSummary, ValidationCheckResult};
use reel_train::setup::{DataSetup, PolicyEvaluator, ReportSetup, RunControl, RunSetup, StepProfiler, TrainerSetup};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags, check_fits_model, open_disk_cache};
use crate::profiler::RunProfiler;
use crate::rank_flags::JobFlags;
use crate::ranks::RunProcess;
use crate::training_evaluator::{EvaluationSetup, TrainingRunEvaluator};
use crate::{hub, interrupt, launch, model, output, prompt, ranks, replaced};

/// Every option of a run, as configuration files contain them and run.json records them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolvedOptions<O> {
    #[serde(flatten)]
    pub options: O,
    #[serde(flatten)]
    pub media: MediaFlags,
    #[serde(flatten)]
    pub access: MediaAccessFlags,
    #[serde(flatten)]
    pub worker: WorkerFlags,
    #[serde(flatten)]
    pub job: JobFlags,
    #[serde(flatten)]
    pub common: CommonOptions,
    /// Whether neither the command line nor the configuration file sets the learning rate.
    #[serde(skip)]
    pub has_default_rate: bool,
}

/// Returns the `run.json` of the run that `--resume-from-checkpoint` continues, if the command names no model or no
/// data. The run then continues with its recorded options.
fn record_of_resumed_run(options: &RunOptions) -> Option<PathBuf> {
    let checkpoint = options.resume_from_checkpoint.as_deref()?;
    if !options.model.is_empty() && !options.data.as_os_str().is_empty() {
        return None;
    }
    let folder = match checkpoint {
        "last" => options.out.clone(),
        folder => std::path::absolute(folder).ok()?.parent()?.to_path_buf(),
    };
    Some(folder.join(RUN_FILE)).filter(|file| file.is_file())
}

/// Returns which code computes matrix products in a training command without `--products`. GRPO compares the
/// log-probabilities of training with those of decode steps (`rollout_drift`), so the bits of its forward products must
/// not depend on the number of rows. SFT samples nothing that it learns from.
pub fn default_products(command: &str) -> MatmulImplementation {
    MatmulImplementation::ByWaveShare { batch_invariant: command != SftOptions::COMMAND }
}

impl<O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned> ResolvedOptions<O> {
    /// Merges the options of the command line with those of the file of `--config`. The command line wins.
    pub fn new(
        options: &O,
        media: &MediaFlags,
        access: &MediaAccessFlags,
        worker: &WorkerFlags,
        job: &JobFlags,
        common: &CommonOptions,
        matches: &ArgMatches,
    ) -> Result<Self> {
        let parsed = Self {
            options: options.clone(),
            media: media.clone(),
            access: access.clone(),
            worker: worker.clone(),
            job: job.clone(),
            common: common.clone(),
            has_default_rate: false,
        };
        let given = |field: &str| matches.value_source(field) == Some(ValueSource::CommandLine);
        let file = options.config.clone().or_else(|| record_of_resumed_run(options));
        let config = file.as_deref().map(ConfigFile::read).transpose()?;
        if let Some(config) = &config {
            config.check_run_record(O::COMMAND, |field| field == "out" || given(field))?;
        }
        let is_record = config.as_ref().is_some_and(ConfigFile::is_run_record);
        let in_file =
            config.iter().flat_map(ConfigFile::entries).any(|(name, _)| name.replace('-', "_") == "learning_rate");
        let mut resolved = match &config {
            None => parsed,
            Some(file) => file.apply(&parsed, given)?,
        };
        // A run's description does not include the options for starting and printing. The merge above therefore
        // leaves them out, and they are set here.
        let start = config.map(|file| file.start_flags()).transpose()?.unwrap_or_default();
        let run: &mut RunOptions = &mut resolved.options;
        // The record of a run is written again by the run, so it is not an input to be kept.
        run.config = options.config.clone().filter(|_| !is_record);
        run.resume_from_checkpoint = options.resume_from_checkpoint.clone().or(start.resume_from_checkpoint);
        run.overwrite = if given("overwrite") { options.overwrite } else { start.overwrite };
        run.profile_steps = options.profile_steps.or(start.profile_steps);
        run.gpus = options.gpus.or(start.gpus);
        let absolute = |to: PathBuf| std::path::absolute(&to).unwrap_or(to);
        let trace_of_file = start.trace.map(absolute);
        // A file has no number of machines, because each machine has its own number.
        let ranks = std::mem::replace(&mut resolved.job, job.clone()).ranks;
        resolved.job.ranks = ranks;
        resolved.common = CommonOptions {
            json: common.json || start.json,
            quiet: common.quiet || start.quiet,
            verbose: common.verbose || start.verbose,
            offline: common.offline || start.offline,
            trace: common.trace.clone().or(trace_of_file.clone()),
            ..resolved.common
        };
        if resolved.common.offline {
            reel_input::network::forbid_downloads();
        }
        if let (Some(_), Some(file)) = (trace_of_file, &resolved.common.trace) {
            trace::start_trace(file.clone());
        }
        resolved.has_default_rate = !in_file && !given("learning_rate");
        run.data = hub::local_data_path("--data", &run.data)?;
        resolved.media.profile = Some(resolved.media.profile(MediaProfile::VideorftTrain)?.name().to_string());
        Ok(resolved)
    }

    /// Options for reading images and videos.
    pub fn media_options(&self) -> Result<MediaOptions> {
        self.media.training_options(&self.access, &self.worker, &self.options.media_root(), &self.common)
    }

    /// Checks the options, finds the model folder, opens the device, and calls `f` with the result. `process` is this
    /// process if the run has several.
    pub fn with_setup<T>(&self, process: Option<&RunProcess>, f: impl FnOnce(&RunSetup<O>) -> Result<T>) -> Result<T> {
        self.options.validate()?;
        self.common.validate()?;
        let media = &self.media_options()?;
        self.refuse_replaced_inputs()?;
        self.options.check_programs()?;
        // Processes that `--gpus` has started do not repeat the check of their parent.
        ToolSet::check(self.options.tools().filter(|_| process.is_none()), self.common.verbose)?;
        open_disk_cache(&self.options.frame_cache)?;
        let folder = prompt::find_or_download_model(&self.options.model)?;
        check_fits_model(media, &ModelConfig::open(&folder)?)?;
        let device = model::open_device_with_products(&self.common, default_products(O::COMMAND))?;
        trace::start_recording_launches(&device, model::activation_dtype(&self.common));
        let stop = interrupt::stop_flag();
        let quiet = self.common.quiet || self.common.json;
        let dtype = model::activation_dtype(&self.common);
        let evaluation = EvaluationSetup {
            model: &folder,
            device: &device,
            dtype,
            access: &self.access,
            worker: &self.worker,
            media: &self.media,
            tools: self.options.tools(),
            common: &self.common,
        };
        let evaluator = TrainingRunEvaluator::new(&self.options, evaluation)?;
        let profiler = self.options.profile_steps.map(|steps| {
            let default = || self.options.out.join(format!("trace-{steps}.json"));
            let file =
                process.is_none_or(RunProcess::is_rank_0).then(|| self.common.trace.clone().unwrap_or_else(default));
            RunProfiler::new(steps, &device, dtype, file)
        });
        let done = f(&RunSetup {
            options: &self.options,
            data: DataSetup { model: &folder, media, seed: self.common.seed() },
            trainer: TrainerSetup {
                device: &device,
                dtype,
                profiler: profiler.as_ref().map(|profiler| profiler as &dyn StepProfiler),
                peak_flops_per_second: machine::peak_flops_per_second(&device, dtype),
            },
            reports: ReportSetup {
                resolved: &serde_json::to_value(self)?,
                quiet,
                verbose: self.common.verbose,
                evaluator: evaluator.as_ref().map(|evaluator| evaluator as &dyn PolicyEvaluator),
            },
            control: RunControl {
                // Processes of one run agree on when to stop, so they use the common flag.
                stop: process.map_or(&*stop, |process| &process.stop),
                save: Some(&*interrupt::save_flag()),
                ranks: process.map(RunProcess::ranks),
            },
        });
        let profiled = profiler.as_ref().map_or(Ok(()), |profiler| profiler.finish(done.is_ok()));
        done.and_then(|done| profiled.map(|()| done))
    }

    /// Refuses outputs that would replace inputs (see [`replaced`]), for the paths on the command line and in the
    /// configuration file together.
    fn refuse_replaced_inputs(&self) -> Result<()> {
        let run: &RunOptions = &self.options;
        let all = serde_json::to_value(self)?;
        let texts = all.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name, value.as_str()?)));
        let mut given: Vec<(String, String)> =
            texts.filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name.clone(), text.to_string())).collect();
        // These paths are not recorded in a run's description, so they are added here.
        for (name, path) in [("config", &run.config), ("trace", &self.common.trace)] {
            given.extend(path.iter().map(|path| (name.to_string(), path.display().to_string())));
        }
        replaced::refuse_replaced_files(O::COMMAND, &given, run.check_data)
    }

    /// Trains with `run` until the end or Ctrl-C and prints the result. If `--check-data` is given without `--out`,
    /// only checks the data with `check`.
    pub fn run(
        &self,
        run: impl FnOnce(&RunSetup<O>) -> reel_train::Result<RunSummary>,
        check: impl FnOnce(&RunSetup<O>) -> reel_train::Result<DataCheckResult>,
    ) -> Result<()> {
        let media_root = self.options.media_root.as_deref().filter(|folder| !folder.is_dir());
        if let Some(folder) = media_root {
            let what = format!("is {}, which is not a folder", folder.display());
            return Err(failed(
                "--media-root",
                what,
                "give the folder that the media paths in the data are relative to",
            ));
        }
        let world = ranks::world_from_environment()?.map(|world| self.job.place(world));
        let local = self.job.processes_to_start(self.options.gpus, world.as_ref())?;
        let is_check_only = self.options.is_check_only();
        if self.options.max_steps == Some(0) && !is_check_only && !self.common.quiet && !self.common.json {
            reel_support::diagnostic::note!("--max-steps 0 sets no limit, as in TRL: the number of epochs decides");
        }
        if !is_check_only && local.is_none() && world.as_ref().is_none_or(|world| world.rank == 0) {
            self.explain_default_rate_of_lora();
        }
        if let Some(local) = local {
            self.options.validate()?;
            ToolSet::check(self.options.tools(), self.common.verbose)?;
            return launch::launch_processes("--gpus", &local);
        }
        match (world, is_check_only) {
            (None, true) => self.print_check(self.with_setup(None, |setup| Ok(check(setup)?))?),
            (Some(world), true) => self.check_as_rank(world, check),
            (None, false) => self.print(&self.with_setup(None, |setup| Ok(run(setup)?))?),
            (Some(world), false) => self.run_as_rank(world, run),
        }
    }

    /// Prints the default learning rate of LoRA if none is given, because the recipes' default is for training all
    /// weights.
    fn explain_default_rate_of_lora(&self) {
        let run: &RunOptions = &self.options;
        let is_resumed = run.resume_from_checkpoint.is_some();
        if run.lora_r == 0 || !self.has_default_rate || is_resumed || self.common.quiet || self.common.json {
            return;
        }
        let usual = if O::COMMAND == "grpo" { "1e-5" } else { "1e-4 to 2e-4" };
        reel_support::diagnostic::note!(
            "--learning-rate is not given: LoRA trains at {:e}, the rate of the recipes, which train all weights; an \
             adapter begins without effect and changes the weights in few directions, so it usually takes about 10 \
             times the rate of full fine-tuning, here {usual}",
            run.learning_rate
        );
    }

    /// Trains as one process of several.
    fn run_as_rank(
        &self,
        world: World,
        run: impl FnOnce(&RunSetup<O>) -> reel_train::Result<RunSummary>,
    ) -> Result<()> {
        self.options.validate()?;
        let (common, flags) = (&self.common, &self.job.ranks);
        let process = RunProcess::join(world, &self.options, common, flags, &serde_json::to_value(self)?)?;
        let mut own = self.clone();
        process.adapt_options_to_rank(&mut own.options);
        own.common = process.common_options(&self.common);
        let done = own.with_setup(Some(&process), |setup| Ok(run(setup)?));
        let prints = process.is_rank_0();
        let summary = process.finish(done)?;
        if prints { self.print(&summary) } else { Ok(()) }
    }

    /// Checks a share of the data as one process of several.
    fn check_as_rank(
        &self,
        world: World,
        check: impl FnOnce(&RunSetup<O>) -> reel_train::Result<DataCheckResult>,
    ) -> Result<()> {
        self.options.validate()?;
        let list = std::path::absolute(self.options.quarantine_list_path())?;
        let (folder, flags) = (list.parent().unwrap_or(Path::new("")), &self.job.ranks);
        let resolved = serde_json::to_value(self)?;
        let process = RunProcess::join_data_check(world, folder, &self.common, flags, &resolved)?;
        let own = Self { common: process.common_options(&self.common), ..self.clone() };
        let done = own.with_setup(Some(&process), |setup| Ok(check(setup)?));
        let prints = process.is_rank_0();
        let result = process.finish(done)?;
        if prints { self.print_check(result) } else { Ok(()) }
    }

    /// Prints the result of a run.
    fn print(&self, summary: &RunSummary) -> Result<()> {
        let out = self.options.out.display();
        let last = summary.last.as_ref();
        if self.common.json {
            return output::print_json(&serde_json::json!({
                "out": self.options.out, "steps": summary.steps, "planned_steps": summary.planned_steps, "resumed_after": summary.resumed_after,
                "skipped": summary.skipped, "skipped_by_cause": summary.skipped_by_cause, "last": last,
            }));
        }
        let mut loss = last.map_or(String::new(), |l| format!(", last loss {:.4}", l.loss));
        if let Some(validation) = last.and_then(|l| l.validation.as_ref()) {
            loss += &format!(", eval_loss {:.4}", validation.eval_loss);
        }
        let skipped = match summary.skipped {
            0 => String::new(),
            n => {
                let causes = summary.skipped_by_cause.iter().map(|(cause, n)| format!("{n} {}", cause.name()));
                let causes: String = causes.map(|cause| cause + ", ").collect();
                format!(", {n} rows skipped ({causes}see {out}/skipped.jsonl)")
            }
        };
        let steps = match (summary.steps, summary.planned_steps) {
            (done, planned) if done < planned => format!("{done} of {planned} planned steps: the data ended"),
            (done, _) => format!("{done} steps"),
        };
        output::print_line(format!("{out}: {steps}{loss}{skipped}"))
    }

    /// Prints the result of `--check-data`. Returns an error (exit code 1) if rows cannot be used.
    fn print_check(&self, result: DataCheckResult) -> Result<()> {
        let DataCheckResult { rows, bad, list, validation } = result;
        let data = self.options.data.display();
        if self.common.json {
            let mut line = serde_json::json!({"rows": rows, "bad": bad, "quarantine": list});
            if let Some(of_file) = &validation {
                line["eval_rows"] = of_file.rows.into();
                line["eval_unusable"] = serde_json::to_value(&of_file.unusable)?;
            }
            output::print_json(&line)?;
        } else if bad == 0 {
            output::print_line(format!("{data}: all {rows} rows can be used"))?;
        }
        let of_file = validation.map_or(Ok(()), |of_file| self.print_validation_check(&of_file));
        if bad == 0 {
            return of_file;
        }
        let help = format!("fix the rows listed in {}, or exclude them with --quarantine", list.display());
        Err(failed(data, format!("{bad} of {rows} rows cannot be used"), help))
    }

    /// Prints what `--check-data` found in the rows of `--eval-file`. Returns an error if rows cannot be used.
    fn print_validation_check(&self, found: &ValidationCheckResult) -> Result<()> {
        let (rows, bad) = (found.rows, found.unusable.len());
        found.print_unusable(self.common.quiet);
        if bad == 0 {
            return match self.common.json {
                true => Ok(()),
                false => output::print_line(format!("--eval-file: all {rows} rows can be used")),
            };
        }
        let help = "fix these rows; a run skips them in each evaluation";
        Err(failed("--eval-file", format!("{bad} of {rows} rows cannot be used"), help))
    }
}
