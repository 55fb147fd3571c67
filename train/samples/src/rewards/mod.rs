//! Scores completions: the reward functions of VideoRFT and Video-R1, custom rewards of the user, and the advantages
//! within a group. Input and output are texts and numbers; the crate uses no device, model or media.
//!
//! ```text
//! completion, solution -> accuracy, format, temporal, semantic, length, custom rewards      one number per completion
//! reward               =  sum of weight * reward function
//! advantage            =  (reward - group mean) / (group standard deviation + 1e-4)
//! ```
//! The rules are those of the repositories github.com/QiWang98/VideoRFT (bba6099) and github.com/tulerfeng/Video-R1
//! (59d65c3). Both are Python: where they use Python's white space, `float`, `round`, rouge_score or NLTK, the
//! results here are equal, including corner cases. Times, boxes, yes or no, and mathematical answers are scored as
//! `docs/rewards.md` says. Start at [`ScoringGroup::score`].

mod accuracy;
mod advantage;
mod answer;
mod built_in;
mod custom;
mod ema;
mod format;
pub mod grounding;
mod group;
mod length;
mod malformed;
mod option_letter;
mod overlong;
mod problem;
mod problem_type;
mod python_number;
mod python_text;
mod recipe;
mod row;
mod semantic;
mod solution;
mod step_advantages;
mod structure;
mod temporal;
mod torch_stats;
mod weights;

pub use accuracy::{
    accuracy_reward, are_equal_math, free_form_accuracy, mean_relative_accuracy, multiple_choice_accuracy,
    numerical_accuracy, ocr_accuracy, open_ended_accuracy, parse_boolean, score_answer,
};
pub use advantage::{ScaleRewards, group_advantages};
pub use answer::extract_answer;
pub use built_in::BuiltInReward;
pub use custom::{
    BASIC_ENVIRONMENT, CustomReports, CustomReward, ProgramLog, RewardReply, ToolProgram, TrainerState,
    find_python_function, function_name,
};
pub use ema::{EmaMoments, EmaRules, ema_task};
pub use group::{FirstCompletionScores, RewardRules, Scores, ScoringGroup};
pub use malformed::Malformed;
pub use option_letter::{leading_letter, option_letter};
pub use overlong::OverlongPenalty;
pub use problem::{AnswerRules, ProblemFields, TemporalIou};
pub use problem_type::ProblemType;
pub use python_number::parse_number;
pub use python_text::strip_white_space;
pub use recipe::Recipe;
pub use row::{RewardRow, parse_json_object, string_field};
pub use semantic::{SemanticModel, reasoning_text, semantic_reward};
pub use solution::check_solution;
pub use step_advantages::{AdvantageEstimator, AdvantageRules, RewardAggregation};
pub use weights::RewardWeights;
