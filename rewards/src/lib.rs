//! What a completion is worth: the rewards of VideoRFT and Video-R1 and a user's own, and from the rewards of a group its
//! advantages. Texts and numbers only: no device, no model, no media.
//!
//! The rules are those of the two repositories (github.com/QiWang98/VideoRFT at bba6099, github.com/tulerfeng/Video-R1 at
//! 59d65c3), which are Python: where they call on Python's white space, `float` or `round`, or on rouge_score and NLTK, the
//! results here are the same, odd corners included.

mod accuracy;
mod advantage;
mod answer;
mod custom;
mod error;
mod format;
mod group;
mod length;
mod problem_type;
mod python_number;
mod python_text;
mod recipe;
mod row;
mod semantic;
mod temporal;
mod torch_stats;
mod weights;

pub use accuracy::{accuracy_reward, multiple_choice_accuracy, numerical_accuracy};
pub use advantage::{ScaleRewards, group_advantages};
pub use answer::extract_answer;
pub use custom::CustomReward;
pub use error::{Result, RewardError};
pub use group::{RewardRules, Scores, ScoringGroup, SingleScores};
pub use problem_type::ProblemType;
pub use python_number::parse_number;
pub use python_text::strip;
pub use recipe::Recipe;
pub use row::RewardRow;
pub use semantic::{SemanticModel, reasoning_text, semantic_reward};
pub use weights::RewardWeights;
