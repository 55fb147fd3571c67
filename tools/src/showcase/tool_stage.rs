//! The third stage of the demo: a model with random weights learns to call `crop_video`, by SFT on the rows of
//! [`ToolRows`]. Then it answers held-out questions with the tool, and the same weights answer them without it.
//!
//! The stage does not start from trained weights: after 120 steps of 32 rows, half of the calls named a wrong second if
//! training had started from the weights of the first stage, and none if it had started from random weights.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::measure::trace;
use crate::showcase::clips::flashes::FlashClip;
use crate::showcase::command_line::CommandLine;
use crate::showcase::pipeline::Demo;
use crate::showcase::tool_answers::{ToolAnswers, ToolOutcome};
use crate::showcase::tool_rows::{TOOL_BENCHMARK, TOOL_ROWS_FOLDER, TOOL_STAGE, ToolRows};

/// The folder of the answers without tools, in the folder of the evaluations.
const WITHOUT_TOOLS: &str = "tools-off";

/// The number of held-out clips of the first two stages for each held-out question of this stage.
const CLIPS_PER_QUESTION: usize = 4;

impl Demo {
    /// Writes the clips and rows of the stage; returns the held-out clips.
    pub(crate) fn make_tool_rows(&self) -> Result<Vec<FlashClip>> {
        let held_out = self.held_out.div_ceil(CLIPS_PER_QUESTION);
        let rows = ToolRows { seed: self.seed, rl: 0, held_out, in_quarters: false };
        rows.write(&self.path_in_folder(TOOL_ROWS_FOLDER))
    }

    /// Trains by calling `train`, and evaluates with and without tools.
    pub(crate) fn run_tool_stage<E: From<Error>>(
        &self,
        held_out: &[FlashClip],
        command: impl Fn(&CommandLine) -> std::result::Result<(), E>,
        train: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<ToolOutcome, E> {
        let started = Instant::now();
        train()?;
        let took = started.elapsed();
        let evaluate = |with_tools: bool| {
            trace::span("evaluation", || command(&self.tool_eval_command(with_tools)))?;
            let file = self.tool_evaluation_folder(with_tools).join(format!("{TOOL_BENCHMARK}.jsonl"));
            Ok::<_, E>(ToolAnswers::read(&file, held_out)?)
        };
        let (with, without) = (evaluate(true)?, evaluate(false)?);
        let (with_tools, without_tools) = (with.tally, without.tally);
        self.progress(format!(
            "after SFT with tool calls: {} of {} held-out questions answered correctly with crop_video, {} without it",
            with_tools.correct, with_tools.total, without_tools.correct
        ));
        Ok(ToolOutcome { with_tools, without_tools, example: with.example, took })
    }

    /// The folder with the answers of the stage's model.
    fn tool_evaluation_folder(&self, with_tools: bool) -> std::path::PathBuf {
        self.evaluation_folder(if with_tools { TOOL_STAGE } else { WITHOUT_TOOLS })
    }

    /// The command that asks the stage's model the held-out questions.
    pub(crate) fn tool_eval_command(&self, with_tools: bool) -> CommandLine {
        let rows = self.path_in_folder(TOOL_ROWS_FOLDER);
        let command = CommandLine::new("eval")
            .with_path("--model", &self.path_in_folder(TOOL_STAGE))
            .with_path("--benchmark", &rows.join(format!("{TOOL_BENCHMARK}.toml")))
            .with_path("--data", &rows)
            .with_path("--media-root", &rows)
            .with_path("--out", &self.tool_evaluation_folder(with_tools));
        let command = self.with_eval_options(command, 2, 240);
        if !with_tools {
            return command;
        }
        let command = command.with_option("--tools", "crop_video").with_option("--max-tool-calls", "2");
        command.with_option("--max-tool-frames", "8")
    }
}
