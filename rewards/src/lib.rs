//! What a completion is worth: the rewards of VideoRFT and Video-R1 and a user's own, and from the rewards of a group its
//! advantages. Texts and numbers only: no device, no model, no media.
//!
//! The rules are those of the two repositories (github.com/QiWang98/VideoRFT at bba6099, github.com/tulerfeng/Video-R1 at
//! 59d65c3), which are Python: where they call on Python's white space, `float` or `round`, or on rouge_score and NLTK, the
//! results here are the same, odd corners included.

pub mod accuracy;
pub mod advantage;
pub mod answer;
mod error;
pub mod format;
pub mod group;
pub mod length;
pub mod number;
pub mod own;
pub mod parity;
pub mod problem_type;
pub mod row;
pub mod semantic;
pub mod sum;
pub mod temporal;
pub mod text;
pub mod weights;

pub use advantage::ScaleRewards;
pub use error::{Result, RewardError};
pub use group::{Group, Rules, Scores};
pub use own::OwnReward;
pub use parity::Parity;
pub use problem_type::ProblemType;
pub use row::Row;
pub use semantic::Semantic;
pub use weights::Weights;
