//! `reel reward`: scores given completions with the reward functions.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_samples::rewards::{
    AdvantageEstimator, AdvantageRules, AnswerRules, EmaMoments, EmaRules, OverlongPenalty, Recipe, RewardAggregation,
    RewardRow, RewardRules, ScaleRewards, Scores, SemanticModel, TemporalIou, ema_task,
};
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
    /// (tokens of each), shuffled_completions (answers to shuffled frames), data_type (image or video), frames (image
    /// files, relative to this file), options, duration (seconds), answer_space (pixel or 0-1000) with width and
    /// height, and step (rows of one step are one batch)
    #[arg(long, value_name = "R.jsonl")]
    input: PathBuf,
    /// Scores to write, one JSON object per line: accuracy, temporal, format, semantic, length, structure and overlong
    /// where they apply, reward and advantage; a number for completion, a list for completions; malformed has the
    /// reasons why answers cannot be read
    #[arg(long, value_name = "O.jsonl")]
    output: PathBuf,
    /// Recipe to follow where a paper and its reference code differ
    #[arg(long, value_enum, default_value_t)]
    parity: Recipe,
    /// SigLIP model folder (so400m-patch14-384): rows with frames get the semantic reward, the similarity of the
    /// reasoning to the frames
    #[arg(long, value_name = "DIR")]
    siglip: Option<PathBuf>,
    /// How segments of time are compared
    #[arg(long, value_enum, default_value_t)]
    temporal_iou: TemporalIou,
    /// Structure reward (OneThinker): up to 0.5 for an answer in the required format that is JSON with the fields of
    /// its problem_type
    #[arg(long)]
    structure_reward: bool,
    /// Soft overlong penalty (DAPO): down to -1 over the last N tokens before --max-completion-length; needs lengths
    #[arg(long, value_name = "N", requires = "max_completion_length")]
    overlong_cache: Option<usize>,
    /// Maximum tokens of a completion
    #[arg(long, value_name = "TOKENS", requires = "overlong_cache")]
    max_completion_length: Option<usize>,
    /// Standard deviation that advantages are divided by: of the group, of the rows with the same step, none, or the
    /// moving deviation of the problem_type, which needs step
    #[arg(long, value_enum, default_value_t)]
    scale_rewards: ScaleRewards,
    /// Baseline of advantages: the mean of the group, or the mean of its other completions
    #[arg(long, value_enum, default_value_t)]
    advantage_estimator: AdvantageEstimator,
    /// Whether the sum of the rewards is normalized, or each reward in its group and their sum over a step (GDPO)
    #[arg(long, value_enum, default_value_t)]
    multi_objective_aggregation: RewardAggregation,
    #[command(flatten)]
    ema: EmaRules,
}

/// The scores of a row, with what the advantages of its step depend on.
struct ScoredRow {
    scores: Scores,
    is_single: bool,
    step: Option<u64>,
    /// The key of its kind of problem in the moments of `--scale-rewards ema`.
    task: String,
}

impl RewardArgs {
    /// Scores every row and writes the scores. A malformed row is an error, and nothing is written.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let (rules, advantages) = self.rules()?;
        let rows = lines::parse_json_lines(&self.input, |line| RewardRow::parse(line, &rules))?;
        if rows.is_empty() {
            return Err(failed(self.input.display(), "has no rows", "give one JSON object per line"));
        }
        if !common.quiet {
            self.note_unused_fields(&rows);
        }
        let unusable = lines::warn_of_unusable_solutions(&self.input, &rows, RewardRow::check_solution, common.quiet);
        let mut scorer = self.siglip.as_deref().map(|folder| open(folder, common)).transpose()?;
        let mut draft = AtomicFile::create(&self.output)?;
        let mut scored = Vec::new();
        for (_, mut row) in rows {
            let (is_single, step) = (row.is_single, row.step);
            let task = ema_task(row.group.problem_type, row.group.fields.is_video);
            row.frames = row.frames.iter().map(|frame| self.beside_input(frame)).collect();
            row.frames
                .iter()
                .try_for_each(|frame| replaced::refuse_input_that_is_output(frame, "a frame of --input"))?;
            let scores = row.score(&rules, scorer.as_mut().map(|scorer| scorer as &mut dyn SemanticModel))?;
            scored.push(ScoredRow { scores, is_single, step, task });
        }
        set_advantages(&mut scored, &advantages);
        for row in &scored {
            write(&mut draft, &self.output, &row.scores, row.is_single)?;
        }
        draft.commit()?;
        let rewards: Vec<&[f32]> = scored.iter().map(|row| &row.scores.reward[..]).collect();
        self.report(common, &rewards, unusable, scorer.map(|scorer| scorer.frames_encoded()))
    }

    /// The rules that the options select.
    fn rules(&self) -> Result<(RewardRules, AdvantageRules)> {
        let lengths = self.overlong_cache.zip(self.max_completion_length);
        let scale = self.scale_rewards;
        let advantages = AdvantageRules {
            scale,
            estimator: self.advantage_estimator,
            aggregation: self.multi_objective_aggregation,
            ema: self.ema,
            ..AdvantageRules::default()
        };
        advantages.validate()?;
        let rules = RewardRules {
            answers: AnswerRules { recipe: self.parity, temporal_iou: self.temporal_iou },
            has_structure_reward: self.structure_reward,
            overlong: lengths.map(|(cache, max)| OverlongPenalty::new(cache, max)).transpose()?,
            scale,
            ..RewardRules::default()
        };
        Ok((rules, advantages))
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
        rewards: &[&[f32]],
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

/// Computes the advantages of each step, in the order of the steps. Rows without a step are one batch, the first one.
fn set_advantages(rows: &mut [ScoredRow], rules: &AdvantageRules) {
    let mut by_step: BTreeMap<Option<u64>, Vec<usize>> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        by_step.entry(row.step).or_default().push(i);
    }
    let mut moments = EmaMoments::default();
    for indices in by_step.values() {
        let groups: Vec<_> = indices.iter().map(|&i| (&rows[i].scores, rows[i].task.clone())).collect();
        let advantages = rules.of_step(&groups, &mut moments);
        // A single completion has no advantage.
        for (&i, advantage) in indices.iter().zip(advantages).filter(|(_, advantage)| advantage.len() > 1) {
            rows[i].scores.advantage = advantage;
        }
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
