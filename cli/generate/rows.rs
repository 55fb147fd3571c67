//! `reel generate --data`: generates completions for each row of a data file and writes them to a predictions file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use reel_engine::resolve_sampling;
use reel_eval::predict::{ExistingOutput, PredictionSummary, SamplingSettings};
use reel_input::sampling::SamplingOptions;
use reel_samples::conversations::RowConversations;
use reel_samples::dataset::Dataset;
use reel_samples::prompts::QuestionTemplate;
use serde_json::{Value, json};

use super::GenerateArgs;
use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::predictor::{self, PredictionJob, Predictor, WorkDivision};
use crate::prompt::media_files;
use crate::tensor_parallel::TensorParallelProcess;
use crate::{hub, model, output, replaced};

/// Options for generating answers to the rows of a data file.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options for many prompts")]
pub struct DataFileFlags {
    /// Data file instead of a single prompt: JSON, JSONL, Parquet or the folder of a data set (DIR@split), rows as for
    /// sft, grpo and eval; several files are separated by commas. If a row holds a whole chat, the answer at its end is
    /// left out of the prompt
    #[arg(long, value_name = "D.jsonl", requires = "out")]
    #[arg(conflicts_with_all = ["messages", "video", "image", "prompt"])]
    pub data: Option<PathBuf>,
    /// File for the predictions: one line per row with the row's columns and the answer (output). The file is named
    /// OUT.partial until all rows are done
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// Continue OUT after its last complete line; the result has the same bytes as that of an uninterrupted run
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Replace OUT when the new file is complete
    #[arg(long)]
    overwrite: bool,
    /// Maximum number of completions that decode together; memory may allow fewer [default: 256 on cuda, else 32]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Text around the question of a row with VideoRFT's fields: evaluation (with the options of a multiple-choice
    /// question) or training [default: evaluation]
    #[arg(long, value_enum, value_name = "USE", hide_possible_values = true)]
    question_template: Option<QuestionTemplate>,
    /// Stop at the first row that cannot be used. Without it, such a row gets a line with its error
    #[arg(long)]
    strict: bool,
}

impl DataFileFlags {
    /// Refuses options that need `--data`, such as `--out`, if `--data` is not given. clap cannot check this: if
    /// `--prompt` is given, which conflicts with `--data`, clap does not require `--data`.
    pub fn refuse_row_options_without_data(&self) -> Result<()> {
        let given = [
            ("--out", self.out.is_some()),
            ("--resume", self.resume),
            ("--overwrite", self.overwrite),
            ("--batch-size", self.batch_size.is_some()),
            ("--question-template", self.question_template.is_some()),
            ("--strict", self.strict),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(usage_error(option, "needs --data", "give a data file instead of a prompt")),
            None => Ok(()),
        }
    }

    fn existing_output(&self) -> ExistingOutput {
        match (self.resume, self.overwrite) {
            (true, _) => ExistingOutput::Resume,
            (_, true) => ExistingOutput::Overwrite,
            (false, false) => ExistingOutput::Refuse,
        }
    }
}

impl GenerateArgs {
    /// Generates the completions of all rows of the file `data` and writes them to `--out`. `process` is this process
    /// if several processes compute the model together.
    pub(super) fn run_rows(
        &self,
        data: &Path,
        process: Option<&TensorParallelProcess>,
        common: &CommonOptions,
    ) -> Result<()> {
        let data = hub::local_data_path("--data", data)?;
        let data = data.as_path();
        let processes = process.map_or(WorkDivision::One, WorkDivision::DivideModel);
        let out = self.rows.out.as_deref().unwrap_or(Path::new(""));
        self.messages.validate()?;
        let device = model::open_device(common)?;
        predictor::checked_batch_size(self.rows.batch_size, &device)?;
        for own in reel_eval::predict::companion_paths(out) {
            for input in reel_input::rows::input_paths(data) {
                replaced::refuse_output_file_over_input("--out", &own, "--data", &input)?;
            }
        }
        let dataset = Dataset::open(data)?;
        dataset.refuse_weights()?;
        let mut predictor =
            Predictor::open(&self.model, self.quantize, None, device, self.rows.batch_size, common, processes)?;
        let media_root = &self.messages.media_root_of_rows(data);
        let access = self.messages.media_access(media_root);
        let media = self.messages.media_options(predictor.trained_folder(), access, !common.quiet, common)?;
        let sampling = SamplingSettings {
            params: resolve_sampling(
                SamplingOptions { seed: common.seed, ..self.sampling.options },
                &predictor.bundle.generation,
            ),
            max_new_tokens: self.sampling.options.max_new_tokens.unwrap_or(1024),
            n: self.n.unwrap_or(1),
            stop: self.sampling.stop.clone(),
        };
        let rules = (self.messages.parity, self.rows.question_template.unwrap_or_default());
        let mut options = predictor.options_that_must_match(&sampling, &media)?;
        options.insert("parity".into(), json!(rules.0));
        options.insert("question_template".into(), json!(rules.1));
        let rows = Arc::new(RowConversations::new(dataset, media, media_root, rules, common.seed()));
        self.check_rows(&rows, data, common)?;
        let data = (data, rows.data().fingerprint());
        let existing = self.rows.existing_output();
        let strict = self.rows.strict;
        let summary = predictor.run(PredictionJob {
            command: "generate",
            rows,
            data,
            media_root: None,
            out,
            existing,
            options,
            sampling,
            tools: None,
            strict,
        })?;
        // A row without an output fails the whole command, not this process, so the other processes must not report a
        // failed rank.
        process.into_iter().for_each(TensorParallelProcess::set_common_work_done);
        summary.map_or(Ok(()), |summary| report(out, &summary, common))
    }

    /// Prints how many rows cannot be used; with `--strict`, returns the error of the first such row instead. Also
    /// returns an error if `--out` would replace an image or a video of a row.
    fn check_rows(&self, rows: &RowConversations, data: &Path, common: &CommonOptions) -> Result<()> {
        let unusable = rows.find_unusable_rows();
        if let Some(first) = unusable.first {
            if self.rows.strict {
                return Err(first.into());
            }
            if !common.quiet {
                predictor::warn_of_unusable_rows(data, unusable.count, rows.data().len(), &first);
            }
        }
        if self.rows.out.as_ref().is_some_and(|out| out.exists()) {
            for conversation in (0..rows.data().len()).filter_map(|row| rows.conversation(row).ok().flatten()) {
                media_files(&conversation)
                    .try_for_each(|(path, location)| replaced::refuse_input_that_is_output(path, location))?;
            }
        }
        Ok(())
    }
}

/// Prints the summary of the run. Returns an error (exit code 1) if some rows have an error instead of an output.
fn report(out: &Path, summary: &PredictionSummary, common: &CommonOptions) -> Result<()> {
    let PredictionSummary { rows, resumed_after, errors, first_error, .. } = summary;
    if common.json {
        let mut printed = json!({"out": out});
        let fields = serde_json::to_value(summary)?;
        if let (Some(to), Value::Object(fields)) = (printed.as_object_mut(), fields) {
            to.extend(fields);
        }
        output::print_json(&printed)?;
    } else {
        let speed = match rows - resumed_after {
            0 => "complete already".to_string(),
            _ => format!("{:.2} rows/s, {:.0} tokens/s", summary.rows_per_second, summary.tokens_per_second),
        };
        output::print_line(format!("{}: {rows} rows, {speed}", out.display()))?;
    }
    let Some(first) = first_error else { return Ok(()) };
    let what = format!("{errors} of {rows} rows have an error instead of an output; the first: {first}");
    let help = "remove the cause, then give the lines with `error` as --data of another run";
    Err(failed(out.display(), what, help))
}
