//! The answers of the model that may call tools, as `reel eval` writes them.

use std::path::Path;
use std::time::Duration;

use reel_eval::{Prediction, Task};
use reel_support::diagnostic::input;
use reel_train::rollout::tools::content::AnsweredCall;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::showcase::benchmarks::EXTRACTION;
use crate::showcase::clips::flashes::FlashClip;
use crate::showcase::evaluation::AnswerTally;

/// The results of the stage.
#[derive(Clone, Debug)]
pub struct ToolOutcome {
    /// The answers of the model that may call `crop_video`.
    pub with_tools: AnswerTally,
    /// The answers of the same weights without tools.
    pub without_tools: AnswerTally,
    /// The answer about the first held-out clip, with tools.
    pub example: Trajectory,
    /// The duration of the training.
    pub took: Duration,
}

/// A question, the calls of tools, and the answer.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// The clip of the question.
    pub clip: FlashClip,
    /// The calls in their order; each is a turn of the model, which a turn of the tool follows.
    pub calls: Vec<AnsweredCall>,
    /// The last turn of the model.
    pub answer: String,
}

/// The answers of an evaluation.
pub(crate) struct ToolAnswers {
    pub(crate) tally: AnswerTally,
    /// The answer about the first clip.
    pub(crate) example: Trajectory,
}

impl ToolAnswers {
    /// Reads the answers that `reel eval` has written.
    pub(crate) fn read(file: &Path, clips: &[FlashClip]) -> Result<Self> {
        /// The calls of a line; a line of a run without tools has none.
        #[derive(Deserialize)]
        struct Calls {
            #[serde(default)]
            tool_calls: Vec<AnsweredCall>,
        }
        let text = input::read_text(file, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(file, &e))?;
        let (mut correct, mut example) = (0, None);
        for line in text.lines() {
            let row = Prediction::from_json_line(line)?;
            correct += usize::from(row.score(&Task::of_own_rows(), EXTRACTION) == 1.0);
            let clip = &clips[0];
            if row.path.is_some_and(|path| path.ends_with(&clip.file)) {
                let calls = serde_json::from_str::<Calls>(line)
                    .map_err(|e| lacks(file, &format!("readable calls: {e}")))?
                    .tool_calls;
                example = Some(Trajectory { clip: clip.clone(), calls, answer: row.output });
            }
        }
        let example = example.ok_or_else(|| lacks(file, &format!("answer about {}", clips[0].file)))?;
        Ok(Self { tally: AnswerTally { correct, total: clips.len() }, example })
    }
}

fn lacks(file: &Path, what: &str) -> Error {
    Error::failed(file.display().to_string(), format!("has no {what}"), "run the demo again")
}
