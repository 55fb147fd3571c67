//! `reel data show`: shows what a row of a data file becomes for a training command. The row is made by the code of
//! that command, so what is shown is what is trained on.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use reel_input::prompt_media::{PromptMedium, media_in_prompt_order};
use reel_input::{ModelFolder, ModelInput};
use reel_samples::feed::{SampleSource, is_row_error};
use reel_samples::inspect::TrainingCommand;
use reel_samples::labels::LabelRule;
use reel_samples::token_runs::{TokenRun, learned_tokens, token_runs};
use reel_support::error::Error;
use reel_tools::report::data_row::{ShownRow, data_row_page_html};
use reel_train::options::{GrpoOptions, RunOptions, SftOptions};
use reel_train::rollout::PromptSource;
use reel_train::runs::sft;
use reel_train::setup::DataSetup;
use serde_json::{Map, Value, json};

use super::RowFlags;
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::media::check_fits_model;
use crate::prompt::find_or_download_model;
use crate::{hub, output};

/// Maximum number of characters of a reward column in the text; the JSON has the whole value.
const MAX_VALUE_CHARACTERS: usize = 300;
/// Colours of terminals: green for learned tokens, cyan for vision tokens.
const LEARNED_COLOR: u8 = 32;
const MEDIA_COLOR: u8 = 36;

/// Show what a row becomes for reel sft or reel grpo.
///
/// Prints the text that the chat template makes of the row, with its special tokens; the tokens that sft learns, in
/// colour on a terminal, else between ⟦ and ⟧; and the frames of each image and video with their times, size and
/// patches. For grpo it prints the prompt and the columns that rewards see. The row is made by the code of the training
/// command, without --max-length and --max-prompt-length. The model's weights are not needed.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel data show --model tiny rows.json --html row.html")]
pub struct ShowArgs {
    #[command(flatten)]
    rows: RowFlags,
    /// Model folder, or Hugging Face model id; its weights are not needed
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Row to show, counted from 1 over all files [default: 1]
    #[arg(long, value_name = "N")]
    row: Option<usize>,
    /// Show the row as this command uses it: sft or grpo [default: sft, or grpo if sft cannot use the row]
    #[arg(long = "for", value_name = "COMMAND", value_enum, hide_possible_values = true)]
    command: Option<TrainingCommand>,
    /// Tokens that sft learns [default: assistant; videorft with --parity videorft or video-r1]
    #[arg(long, value_enum)]
    labels: Option<LabelRule>,
    /// HTML page with pictures of the frames to write
    #[arg(long, value_name = "F.html")]
    html: Option<PathBuf>,
}

/// A row as a training command uses it.
struct UsedRow {
    command: TrainingCommand,
    location: String,
    /// Number of rows of the data.
    rows: usize,
    tokens: Arc<ModelInput>,
    /// The next-token targets of sft; -1 for all tokens of a prompt of grpo.
    targets: Vec<i32>,
    runs: Vec<TokenRun>,
    /// The columns that rewards see; `None` for sft.
    reward_columns: Option<Map<String, Value>>,
    /// Why sft cannot use the row, if grpo is shown for that reason.
    sft_refusal: Option<String>,
}

/// The inputs of the training commands.
struct Inputs<'a> {
    run: RunOptions,
    data: DataSetup<'a>,
}

impl ShowArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let data = hub::local_data_path("--data", &self.rows.data())?;
        let media_root = self.rows.media_root.clone();
        let run = RunOptions { data, media_root, parity: self.rows.parity, ..RunOptions::default() };
        let media = &self.rows.media_options(&run.media_root(), common)?;
        let folder = &find_or_download_model(&self.model)?;
        let config = ModelFolder::open(folder)?.config;
        check_fits_model(media, &config)?;
        let inputs = Inputs { run, data: DataSetup { model: folder, media, seed: common.seed() } };
        let row = self.used_row(&inputs)?;
        let media = media_in_prompt_order(&row.tokens, &config);
        let descriptions: Vec<String> = media.iter().enumerate().map(|(i, medium)| describe(i + 1, medium)).collect();
        if let Some(page) = &self.html {
            let html = data_row_page_html(&ShownRow {
                title: row.location.clone(),
                summary: self.summary(&row, ""),
                runs: row.runs.clone(),
                media: media.iter().copied().zip(descriptions.iter().cloned()).collect(),
                reward_columns: row.reward_columns.iter().flatten().map(column_text).collect(),
            })?;
            output::write_file(page, html.as_bytes())?;
        }
        if common.json {
            return output::print_json(&self.json(&row, &media));
        }
        self.print(&row, &descriptions)?;
        match &self.html {
            Some(page) if !common.quiet => output::print_line(format!("\npage: {}", page.display())),
            _ => Ok(()),
        }
    }

    /// Makes the row for the command of `--for`, or for the first command that can use it.
    fn used_row(&self, inputs: &Inputs) -> Result<UsedRow> {
        if self.command == Some(TrainingCommand::Grpo) {
            return self.row_of_grpo(inputs);
        }
        let of_sft = self.row_of_sft(inputs);
        let Err(e) = &of_sft else { return of_sft };
        let is_of_row = e.downcast_ref::<Error>().is_some_and(is_row_error);
        if self.command.is_some() || self.labels.is_some() || !is_of_row {
            return of_sft;
        }
        let refusal = Some(e.to_string());
        self.row_of_grpo(inputs).map(|row| UsedRow { sft_refusal: refusal, ..row }).or(of_sft)
    }

    /// Returns the index of the row; an error if the data has fewer rows.
    fn index(&self, rows: usize) -> Result<usize> {
        match self.row.unwrap_or(1) {
            row if (1..=rows).contains(&row) => Ok(row - 1),
            row => {
                let what = format!("is {row}, but {} has {rows} rows", self.rows.data().display());
                Err(usage_error("--row", what, format!("give 1 to {rows}")))
            }
        }
    }

    fn row_of_sft(&self, inputs: &Inputs) -> Result<UsedRow> {
        let options = SftOptions { run: inputs.run.clone(), labels: self.labels, ..SftOptions::default() };
        let source = sft::open_samples(&options, &inputs.data)?;
        let sample = source.sample(self.index(source.row_count())?)?;
        let runs = token_runs(&source.bundle, &sample.tokens.input_ids, &learned_tokens(&sample.targets));
        let row = self.row_without_rewards(TrainingCommand::Sft, &source, sample.tokens.into(), runs)?;
        Ok(UsedRow { targets: sample.targets, ..row })
    }

    fn row_of_grpo(&self, inputs: &Inputs) -> Result<UsedRow> {
        if self.labels.is_some() {
            return Err(usage_error("--labels", "has no effect on grpo, which learns completions", "leave it out"));
        }
        let options = GrpoOptions { run: inputs.run.clone(), ..GrpoOptions::default() };
        let source = PromptSource::open(&options, &inputs.data)?;
        let prompt = source.sample(self.index(source.row_count())?)?;
        let ids = &prompt.tokens.input_ids;
        let runs = token_runs(source.bundle(), ids, &vec![false; ids.len()]);
        let row = self.row_without_rewards(TrainingCommand::Grpo, &source, prompt.tokens, runs)?;
        Ok(UsedRow { reward_columns: Some(prompt.columns), ..row })
    }

    fn row_without_rewards(
        &self,
        command: TrainingCommand,
        source: &impl SampleSource,
        tokens: Arc<ModelInput>,
        runs: Vec<TokenRun>,
    ) -> Result<UsedRow> {
        let rows = source.row_count();
        let location = source.location(self.index(rows)?).0;
        let targets = vec![-1; tokens.len()];
        Ok(UsedRow { command, location, rows, tokens, targets, runs, reward_columns: None, sft_refusal: None })
    }

    fn json(&self, row: &UsedRow, media: &[PromptMedium]) -> Value {
        let media = media.iter().map(|m| {
            json!({
                "kind": m.kind, "frames": m.frames.frames, "width": m.frames.width, "height": m.frames.height,
                "grid_thw": m.grid, "vision_tokens": m.vision_tokens, "timestamps": m.times,
            })
        });
        json!({
            "row": self.row.unwrap_or(1), "rows": row.rows, "location": row.location,
            "command": if row.command == TrainingCommand::Sft { "sft" } else { "grpo" },
            "tokens": row.tokens.len(), "learned_tokens": learned_count(&row.targets),
            "input_ids": row.tokens.input_ids, "targets": row.targets, "runs": row.runs,
            "media": media.collect::<Vec<_>>(), "reward_columns": row.reward_columns, "sft_refusal": row.sft_refusal,
        })
    }

    /// Describes the row: the command that uses it and its number of tokens. `marks` says how learned tokens are shown.
    fn summary(&self, row: &UsedRow, marks: &str) -> Vec<String> {
        let which = match self.row {
            Some(n) => format!("row {n}"),
            None => "row 1, the first (--row N shows another),".to_string(),
        };
        let mut lines = vec![format!("{which} of {}, as {} uses it", row.rows, row.command.name())];
        lines.extend(row.sft_refusal.iter().map(|refusal| format!("reel sft cannot use it: {refusal}")));
        let tokens = row.tokens.len();
        lines.push(match row.command {
            TrainingCommand::Sft => {
                format!("{tokens} tokens, of which {} are learned{marks}", learned_count(&row.targets))
            }
            TrainingCommand::Grpo => format!("{tokens} tokens of the prompt; completions are sampled after it"),
        });
        lines
    }

    fn print(&self, row: &UsedRow, descriptions: &[String]) -> Result<()> {
        let is_colored = output::stdout_shows_colors();
        let marks = if is_colored { " (green)" } else { " (between ⟦ and ⟧)" };
        output::print_line(format!("{}: {}", row.location, self.summary(row, marks).join("\n")))?;
        descriptions.iter().try_for_each(output::print_line)?;
        output::print_line("")?;
        let mut texts = Vec::new();
        for run in &row.runs {
            let color = if run.learned { Some(LEARNED_COLOR) } else { run.is_media.then_some(MEDIA_COLOR) };
            let is_marked = run.learned && !is_colored;
            texts.extend(is_marked.then_some(("⟦", None)));
            texts.push((&*run.text, color.filter(|_| is_colored)));
            texts.extend(is_marked.then_some(("⟧", None)));
        }
        output::print_colored_line(texts)?;
        let Some(columns) = &row.reward_columns else { return Ok(()) };
        output::print_line("\nrewards see these columns:")?;
        columns.iter().map(column_text).try_for_each(|(name, value)| output::print_line(format!("  {name}: {value}")))
    }
}

fn learned_count(targets: &[i32]) -> usize {
    targets.iter().filter(|&&target| target >= 0).count()
}

/// The name and the value of a column, shortened to [`MAX_VALUE_CHARACTERS`].
fn column_text((name, value): (&String, &Value)) -> (String, String) {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let count = text.chars().count();
    let text = match count > MAX_VALUE_CHARACTERS {
        true => format!("{}… ({count} characters)", text.chars().take(MAX_VALUE_CHARACTERS).collect::<String>()),
        false => text,
    };
    (name.clone(), text)
}

/// Describes image or video `number`: its frames with their times, their size in pixels, its patches and tokens.
fn describe(number: usize, medium: &PromptMedium) -> String {
    let PromptMedium { kind, frames, grid: [t, h, w], vision_tokens, times } = medium;
    let size = format!("{} x {} pixels (width x height)", frames.width, frames.height);
    let patches = format!("{t} x {h} x {w} patches (time, height, width), {vision_tokens} tokens");
    if *kind == "image" {
        return format!("image {number}: {size}, {patches}");
    }
    let times: Vec<String> = times.iter().map(|time| format!("{time:.2}")).collect();
    format!("video {number}: {} frames of {size}, {patches}; frames at {} s", frames.frames, times.join(" "))
}
