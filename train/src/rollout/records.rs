//! `OUT/rollouts/`: every completion that was drawn, with its rewards; a file a step, a line a group. A line is one that `--rollouts` takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{fs, io};

use reel_media::strip::{Png, frame_strip};
use reel_rewards::Scores;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::prompts::PromptSource;
use super::worker::{Answer, Rollout};
use crate::options::GrpoOptions;
use crate::rollout::group::{Completion, Group};
use crate::run_folder::checkpoint::write_synced;
use crate::{Result, TrainError};

/// The folder in OUT.
pub const ROLLOUTS: &str = "rollouts";

/// The folder in it with a picture of the first prompt of some steps.
pub const STRIPS: &str = "strips";
/// How many of them.
const MAX_STRIPS: u64 = 24;

/// Writes what was drawn.
pub(crate) struct RolloutRecorder {
    folder: PathBuf,
    /// A strip of frames is kept every so many steps.
    every: u64,
    /// The step at hand and its lines.
    step: u64,
    text: String,
    /// The file that is being written meanwhile.
    writing: Option<(PathBuf, JoinHandle<io::Result<()>>)>,
}

impl Drop for RolloutRecorder {
    fn drop(&mut self) {
        // Nothing is written behind the back of who comes next; an error is the caller's who did not ask for it.
        let _ = self.settle();
    }
}

impl RolloutRecorder {
    /// Of a run of `steps`. The folder is made with the first record: a run that cannot begin leaves nothing.
    pub(crate) fn new(out: &Path, steps: u64) -> Self {
        Self {
            folder: out.join(ROLLOUTS),
            every: steps.div_ceil(MAX_STRIPS).max(1),
            step: 0,
            text: String::new(),
            writing: None,
        }
    }

    /// What a step's first prompt is about as one picture, in a file for `reel report`; only of some steps.
    pub(crate) fn strip(&self, step: u64, drawn: &Rollout) -> Result<Option<Png>> {
        let frames = &drawn.prompt.tokens.frames;
        let Some(seen) = frames.videos.first().or(frames.images.first()) else { return Ok(None) };
        if !(step - 1).is_multiple_of(self.every) {
            return Ok(None);
        }
        let strip = frame_strip(seen, 8, 96).map_err(reel_model::ModelError::from)?;
        let path = self.folder.join(STRIPS).join(format!("{step:06}.png"));
        write_synced(&path, &strip.bytes).map_err(|e| TrainError::write(&path, e))?;
        Ok(Some(strip))
    }

    /// Adds the groups of a step. The step's file is replaced whole, so that it never ends in half a line; it is written while the caller
    /// goes on, until [`settle`](Self::settle). `used` tells which are trained on.
    pub(crate) fn add(
        &mut self,
        step: u64,
        round: u64,
        drawn: &[Rollout],
        scores: &[Scores],
        used: impl Fn(&Scores) -> bool,
    ) -> Result<()> {
        if round == 0 {
            fs::create_dir_all(self.folder.join(STRIPS)).map_err(|e| TrainError::write(&self.folder, e))?;
            (self.step, self.text) = (step, String::new());
        }
        for (drawn, scores) in drawn.iter().zip(scores) {
            self.text.push_str(&line(step, drawn, scores, used(scores)).to_string());
            self.text.push('\n');
        }
        self.settle()?;
        let (path, text) = (file(&self.folder, step), self.text.clone().into_bytes());
        let to = path.clone();
        let write = move || {
            let part = to.with_extension("jsonl.part");
            write_synced(&part, &text)?;
            fs::rename(&part, &to)
        };
        let begun = thread::Builder::new().name("rollouts".into()).spawn(write);
        self.writing = Some((path.clone(), begun.map_err(|e| TrainError::write(&path, e))?));
        Ok(())
    }

    /// Waits until what was added is on disk.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let Some((path, writing)) = self.writing.take() else { return Ok(()) };
        let done = writing.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes it has failed")));
        done.map_err(|e| TrainError::write(&path, e))
    }
}

/// A line as far as it is trained on.
#[derive(Deserialize)]
struct Recorded {
    row: usize,
    completions: Vec<Vec<i32>>,
    rewards: Vec<f32>,
    used: bool,
    log_probs: Vec<Vec<f32>>,
}

/// The groups that a run trained on from step `step`.
pub(crate) fn read(folder: &Path, step: u64, options: &GrpoOptions, prompts: &PromptSource) -> Result<Vec<Group>> {
    let path = file(folder, step);
    let text = fs::read_to_string(&path).map_err(|e| TrainError::read(&path, e))?;
    let mut groups = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let damaged = |what: String| {
            TrainError::output(format!("{}:{number}", path.display()), what, "give the OUT of a run as it was left")
        };
        let r: Recorded = serde_json::from_str(line).map_err(|e| damaged(format!("is no record of a group: {e}")))?;
        if r.row >= prompts.data_rows() || r.completions.len() != r.rewards.len() {
            return Err(damaged("does not fit the data".into()));
        }
        let completion = |(ids, log_probs)| {
            let c = Completion::new(ids, prompts.stop_ids(), options.mask_truncated_completions);
            Completion { log_probs, ..c }
        };
        if r.used {
            groups.push(Group {
                prompt: Arc::new(prompts.prompt(r.row)?),
                completions: r.completions.into_iter().zip(r.log_probs).map(completion).collect(),
                rewards: r.rewards,
                advantages: Vec::new(),
            });
        }
    }
    Ok(groups)
}

/// The file of a step.
pub(crate) fn file(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{step:06}.jsonl"))
}

fn line(step: u64, drawn: &Rollout, scores: &Scores, used: bool) -> Value {
    let each = |f: &dyn Fn(&Answer) -> Value| drawn.completions.iter().map(f).collect::<Vec<_>>();
    let mut line = Map::new();
    line.insert("step".into(), json!(step));
    line.insert("row".into(), json!(drawn.prompt.row));
    line.insert("prompt".into(), drawn.prompt.asked.clone());
    line.insert("solution".into(), drawn.prompt.columns.get("solution").cloned().unwrap_or(Value::Null));
    line.insert("completions".into(), json!(each(&|a| json!(a.ids))));
    line.insert("rewards".into(), json!(scores.reward));
    line.insert("used".into(), json!(used));
    line.insert("scores".into(), json!(scores));
    line.insert("texts".into(), json!(each(&|a| json!(a.text))));
    line.insert("finish_reasons".into(), json!(each(&|a| json!(a.finish.name()))));
    line.insert("log_probs".into(), json!(each(&|a| json!(a.log_probs))));
    if !drawn.shuffled.is_empty() {
        line.insert("shuffled_texts".into(), json!(drawn.shuffled.iter().map(|a| &a.text).collect::<Vec<_>>()));
    }
    Value::Object(line)
}
