//! The names of the files and folders in the output folder of a run (OUT) and in its checkpoints.

/// The log in OUT with one line of metrics per step.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The log of unusable rows, in OUT.
pub const SKIPPED_FILE: &str = "skipped.jsonl";
/// The file in OUT that lists rows that a stopped run skipped after its last checkpoint. The run that resumes from
/// this checkpoint skips the same rows.
pub const SKIPPED_AFTER_CHECKPOINT_FILE: &str = ".skipped-later.jsonl";
/// The file in OUT in which a run records its options, data and weights.
pub const RUN_FILE: &str = "run.json";
/// The file in OUT with the fields of transformers' `TrainerState`, such as the best checkpoint.
pub const TRAINER_STATE_FILE: &str = "trainer_state.json";
/// The file in OUT with the hashes of all trained tensors after each step.
pub const HASHES_FILE: &str = "hashes.bin";
/// The log in OUT with one line per evaluation.
pub const EVALUATIONS_FILE: &str = "eval.jsonl";
/// The folder of evaluations in OUT, with one subfolder for each evaluated step.
pub const EVALUATIONS_FOLDER: &str = "eval";
/// The file in OUT that lists the unusable rows, unless `--quarantine` names another file.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";
/// The folder in OUT with the recorded rollouts.
pub const ROLLOUTS_FOLDER: &str = "rollouts";
/// The folder below [`ROLLOUTS_FOLDER`] with strips: PNG images that show some frames of a step's first prompt side
/// by side.
pub const FRAME_STRIPS_FOLDER: &str = "strips";
/// Number of completions of a group whose texts and pictures `reel report` shows.
pub const SHOWN_COMPLETIONS: usize = 8;
/// The file in OUT for the lines that reward programs write to standard error.
pub const REWARD_LOG_FILE: &str = "reward.log";
/// The file in a checkpoint that stores the run state.
pub const RUN_STATE_FILE: &str = "training/state.json";
/// The file in a checkpoint that lists the fingerprints of the files that a resume reads.
pub const DIGESTS_FILE: &str = "training/digests.json";
/// The file in a checkpoint that stores the rollout set (groups of completions) on which further steps train.
pub const ROLLOUT_SET_FILE: &str = "training/set.json";
/// The file in a checkpoint that stores the moving moments of the rewards (`--scale-rewards ema`).
pub const REWARD_MOMENTS_FILE: &str = "training/reward-moments.json";
