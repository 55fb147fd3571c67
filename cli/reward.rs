//! `reel reward`: scores given completions with the reward functions.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_samples::rewards::{Recipe, RewardRow, RewardRules, Scores, SemanticModel};
use reel_support::files::AtomicFile;
use reel_tools::measure::trace;
use reel_train::rollout::siglip::SiglipScorer;
use serde_json::json;

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::{lines, model, output, replaced};

/// Score given completions: accuracy, format, length, temporal and semantic rewards, and advantages within a group.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '{\"problem_type\": \"numerical\", \"solution\": \"<answer>4</answer>\",
    \"completions\": [\"<think>2 + 2</think><answer>4</answer>\", \"5\"]}' |
    tr -d '\\n' > given.jsonl
  reel reward --input given.jsonl --output scores.jsonl")]
pub struct RewardArgs {
    /// Completions, one JSON object per line: problem_type, solution, and completion or completions; optional: lengths
    /// (tokens of each), shuffled_completions (answers to shuffled frames), data_type (image or video) and frames
    /// (image files, relative to this file)
    #[arg(long, value_name = "R.jsonl")]
    input: PathBuf,
    /// Scores to write, one JSON object per line: accuracy, temporal, format, semantic and length where they apply,
    /// reward and advantage; a number for completion, a list for completions
    #[arg(long, value_name = "O.jsonl")]
    output: PathBuf,
    /// Recipe to follow where a paper and its reference code differ
    #[arg(long, value_enum, default_value_t)]
    parity: Recipe,
    /// SigLIP model folder (so400m-patch14-384): rows with frames get the semantic reward, the similarity of the
    /// reasoning to the frames
    #[arg(long, value_name = "DIR")]
    siglip: Option<PathBuf>,
}

impl RewardArgs {
    /// Scores every row and writes the scores. A malformed row is an error, and nothing is written.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let rules = RewardRules { recipe: self.parity, ..RewardRules::default() };
        let rows = lines::parse_json_lines(&self.input, RewardRow::parse)?;
        if rows.is_empty() {
            return Err(failed(self.input.display(), "has no rows", "give one JSON object per line"));
        }
        if !common.quiet {
            self.note_unused_fields(&rows);
        }
        let unusable = lines::warn_of_unusable_solutions(&self.input, &rows, RewardRow::check_solution, common.quiet);
        let mut scorer = self.siglip.as_deref().map(|folder| open(folder, common)).transpose()?;
        let mut draft = AtomicFile::create(&self.output)?;
        let mut rewards = Vec::new();
        for (_, mut row) in rows {
            let single = row.is_single;
            row.frames = row.frames.iter().map(|frame| self.beside_input(frame)).collect();
            row.frames
                .iter()
                .try_for_each(|frame| replaced::refuse_input_that_is_output(frame, "a frame of --input"))?;
            let scores = row.score(&rules, scorer.as_mut().map(|scorer| scorer as &mut dyn SemanticModel))?;
            write(&mut draft, &self.output, &scores, single)?;
            rewards.push(scores.reward);
        }
        draft.commit()?;
        self.report(common, &rewards, unusable, scorer.map(|scorer| scorer.frames_encoded()))
    }

    /// Prints which fields of the rows these options do not use.
    fn note_unused_fields(&self, rows: &[(usize, RewardRow)]) {
        let with_frames = rows.iter().filter(|(_, row)| !row.frames.is_empty()).count();
        let shuffled = rows.iter().filter(|(_, row)| row.group.shuffled.is_some()).count();
        let of = rows.len();
        if with_frames > 0 && self.siglip.is_none() {
            reel_support::diagnostic::note!(
                "note: {with_frames} of {of} rows have frames, which are not used: the semantic reward needs --siglip"
            );
        }
        if with_frames == 0 && self.siglip.is_some() {
            reel_support::diagnostic::note!(
                "note: no row has frames, so --siglip is not used: there is no semantic reward"
            );
        }
        if shuffled > 0 && self.parity == Recipe::Videorft {
            reel_support::diagnostic::note!(
                "note: {shuffled} of {of} rows have shuffled_completions, which are not used: --parity videorft has no \
                 temporal reward"
            );
        }
    }

    /// Returns the path of a frame. Relative paths are relative to the folder of the input file.
    fn beside_input(&self, path: &Path) -> PathBuf {
        self.input.parent().map_or_else(|| path.to_path_buf(), |folder| folder.join(path))
    }

    /// Prints the mean reward. `unusable` is the number of rows whose solution cannot be compared with answers,
    /// `frames_encoded` the number of frames that SigLIP encoded, or `None` without SigLIP.
    fn report(
        &self,
        common: &CommonOptions,
        rewards: &[Vec<f32>],
        unusable: usize,
        frames_encoded: Option<u64>,
    ) -> Result<()> {
        let all = rewards.concat();
        let mean = all.iter().map(|&r| f64::from(r)).sum::<f64>() / all.len() as f64;
        if common.json {
            let (rows, completions) = (rewards.len(), all.len());
            let output = &self.output;
            let mut result = json!({"rows": rows, "completions": completions, "reward": mean,
                "unusable_solutions": unusable, "output": output});
            if let Some(n) = frames_encoded {
                result["frames_encoded"] = json!(n);
            }
            return output::print_json(&result);
        }
        let rows = rewards.len();
        let out = self.output.display();
        output::print_line(format!("{out}: {rows} rows, {} completions, mean reward {mean:.4}", all.len()))
    }
}

/// Opens the SigLIP model for the semantic reward.
fn open(folder: &Path, common: &CommonOptions) -> Result<SiglipScorer> {
    let (device, dtype) = (model::open_device(common)?, model::activation_dtype(common));
    let scorer = trace::span("load", || SiglipScorer::open(&device, folder, dtype))?;
    trace::start_recording_launches(&device, dtype);
    Ok(scorer)
}

fn write(draft: &mut AtomicFile, to: &Path, scores: &Scores, single: bool) -> Result<()> {
    let line =
        if single { serde_json::to_string(&scores.first_completion_scores())? } else { serde_json::to_string(scores)? };
    writeln!(draft, "{line}").map_err(|e| output::cannot_write(to, e))
}
