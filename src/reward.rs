//! `reel reward`: what given completions are worth.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_model::save::AtomicFile;
use reel_rewards::{Recipe, RewardRow, RewardRules, Scores, SemanticModel};
use reel_train::rollout::siglip::SiglipScorer;
use serde_json::json;

use crate::common::Common;
use crate::fail::failed;
use crate::{lines, model, output, trace};

/// Say what given completions are worth: accuracy, format, length, temporal and semantic rewards, advantages.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '{\"problem_type\": \"numerical\", \"solution\": \"<answer>4</answer>\",
    \"completions\": [\"<think>2 + 2</think><answer>4</answer>\", \"5\"]}' |
    tr -d '\\n' > given.jsonl
  reel reward --input given.jsonl --output worth.jsonl")]
pub struct Reward {
    /// The completions, an object a line: problem_type, solution, and completion or completions; where known, lengths (tokens of
    /// each), shuffled_completions (answers to shuffled frames), data_type (image or video) and frames (picture files, relative to
    /// this one)
    #[arg(long, value_name = "R.jsonl")]
    input: PathBuf,
    /// Where to write what they are worth, an object a line: what applies of accuracy, temporal, format, semantic and length, and
    /// reward and advantage; numbers for a completion, lists for completions
    #[arg(long, value_name = "O.jsonl")]
    output: PathBuf,
    /// Whose rules to follow where a reference's code and its paper differ
    #[arg(long, value_enum, default_value_t)]
    parity: Recipe,
    /// A SigLIP folder (so400m-patch14-384): rows with frames get the semantic reward, for thoughts that agree with what they show
    #[arg(long, value_name = "DIR")]
    siglip: Option<PathBuf>,
}

impl Reward {
    /// Scores every row; one that is malformed refuses the file.
    pub fn run(&self, common: &Common) -> Result<()> {
        let rules = RewardRules { recipe: self.parity, ..RewardRules::default() };
        let rows = lines::parse(&self.input, RewardRow::parse)?;
        if rows.is_empty() {
            return Err(failed(self.input.display(), "has no rows", "give a row of JSON a line"));
        }
        let mut judge = self.siglip.as_deref().map(|folder| open(folder, common)).transpose()?;
        let mut draft = AtomicFile::create(&self.output)?;
        let mut rewards = Vec::new();
        for mut row in rows {
            let single = row.is_single;
            row.frames = row.frames.iter().map(|frame| self.beside_input(frame)).collect();
            let scores = row.score(&rules, judge.as_mut().map(|judge| judge as &mut dyn SemanticModel))?;
            write(&mut draft, &self.output, &scores, single)?;
            rewards.push(scores.reward);
        }
        draft.commit()?;
        self.report(common, &rewards, judge.map(|judge| judge.frames_encoded()))
    }

    /// A path as the input file means it.
    fn beside_input(&self, path: &Path) -> PathBuf {
        self.input.parent().map_or_else(|| path.to_path_buf(), |folder| folder.join(path))
    }

    /// `frames_encoded`: how many frames went through SigLIP, where there is one.
    fn report(&self, common: &Common, rewards: &[Vec<f32>], frames_encoded: Option<u64>) -> Result<()> {
        let all = rewards.concat();
        let mean = all.iter().map(|&r| f64::from(r)).sum::<f64>() / all.len() as f64;
        if common.json {
            let (rows, completions) = (rewards.len(), all.len());
            let output = &self.output;
            let mut said = json!({"rows": rows, "completions": completions, "reward": mean, "output": output});
            if let Some(n) = frames_encoded {
                said["frames_encoded"] = json!(n);
            }
            return output::json(&said);
        }
        if common.quiet {
            return Ok(());
        }
        let rows = rewards.len();
        let out = self.output.display();
        output::line(format!("{out}: {rows} rows, {} completions, mean reward {mean:.4}", all.len()))
    }
}

/// The judge of the semantic reward.
fn open(folder: &Path, common: &Common) -> Result<SiglipScorer> {
    let (device, dtype) = (model::device(common)?, model::dtype(common));
    let judge = trace::span("load", || SiglipScorer::open(&device, folder, dtype))?;
    trace::record_launches(&device, dtype);
    Ok(judge)
}

fn write(draft: &mut AtomicFile, to: &Path, scores: &Scores, single: bool) -> Result<()> {
    let line = if single { serde_json::to_string(&scores.single())? } else { serde_json::to_string(scores)? };
    writeln!(draft, "{line}").map_err(|e| output::not_written(to, e))
}
