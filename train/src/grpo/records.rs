//! `OUT/rollouts/`: every completion that was drawn, with its rewards; a file a step, a line a group. A line is one that `--rollouts` takes.

use std::fs;
use std::path::{Path, PathBuf};

use reel_rewards::Scores;
use serde_json::{Map, Value, json};

use super::rollout::{Answer, Drawn};
use crate::checkpoint::write_synced;
use crate::{Result, TrainError};

/// The folder in OUT.
pub const ROLLOUTS: &str = "rollouts";

/// Writes what was drawn.
pub(super) struct Records {
    folder: PathBuf,
    /// The step at hand and its lines.
    step: u64,
    text: String,
}

impl Records {
    pub(super) fn open(out: &Path) -> Result<Self> {
        let folder = out.join(ROLLOUTS);
        fs::create_dir_all(&folder).map_err(|e| TrainError::write(&folder, e))?;
        Ok(Self { folder, step: 0, text: String::new() })
    }

    /// Adds the groups of a step. The step's file is replaced whole, so that it never ends in half a line.
    pub(super) fn add(&mut self, step: u64, round: u64, drawn: &[Drawn], scores: &[Scores]) -> Result<()> {
        if round == 0 {
            (self.step, self.text) = (step, String::new());
        }
        for (drawn, scores) in drawn.iter().zip(scores) {
            self.text.push_str(&line(step, drawn, scores).to_string());
            self.text.push('\n');
        }
        let path = file(&self.folder, step);
        let part = path.with_extension("jsonl.part");
        let failed = |e| TrainError::write(&path, e);
        write_synced(&part, self.text.as_bytes()).map_err(failed)?;
        fs::rename(&part, &path).map_err(failed)
    }
}

/// The file of a step.
pub(super) fn file(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{step:06}.jsonl"))
}

fn line(step: u64, drawn: &Drawn, scores: &Scores) -> Value {
    let each = |f: &dyn Fn(&Answer) -> Value| drawn.completions.iter().map(f).collect::<Vec<_>>();
    let mut line = Map::new();
    line.insert("step".into(), json!(step));
    line.insert("row".into(), json!(drawn.prompt.row));
    line.insert("completions".into(), json!(each(&|a| json!(a.ids))));
    line.insert("rewards".into(), json!(scores.reward));
    line.insert("scores".into(), json!(scores));
    line.insert("texts".into(), json!(each(&|a| json!(a.text))));
    line.insert("finish_reasons".into(), json!(each(&|a| json!(a.finish.name()))));
    line.insert("log_probs".into(), json!(each(&|a| json!(a.log_probs))));
    if !drawn.shuffled.is_empty() {
        line.insert("shuffled_texts".into(), json!(drawn.shuffled.iter().map(|a| &a.text).collect::<Vec<_>>()));
    }
    Value::Object(line)
}
