//! Builds data sets of chains of thought from questions about videos and images, with models that answer over HTTP.
//!
//! ```text
//! VideoRFT   list ─► caption ─► reason ─► revise ─► filters ─► dataset.jsonl, rejected.jsonl, failed.jsonl
//! Video-R1   list ───────────── answer ───────────► filters ─► dataset.jsonl, rejected.jsonl, failed.jsonl
//! ```
//! Each stage has a table in the output folder (`table.rs`), to which every answer is appended as soon as it arrives,
//! so a run that was killed continues without asking any question twice. Start at [`Curation`]. The prompts are in
//! `prompts.toml`.

mod answers;
mod complete_file;
mod curation;
mod filters;
mod finish;
mod frames;
mod list_keys;
mod media_hash;
mod model;
mod plan;
mod prompts;
mod recipe;
mod record;
mod requests;
mod row_layout;
mod rows;
mod similarity;
mod stage;
mod summary;
mod table;

pub use answers::ReasoningChain;
pub use curation::{Curation, CurationOptions, CurationSettings, ExistingCuration, SETTINGS_FILE, read_settings};
pub use filters::{ChainMeasurements, FilterSettings, RejectionReason, word_count};
pub use finish::{DATASET_FILE, FAILED_FILE, FinishedRow, REJECTED_FILE, RowOutcome, SUMMARY_FILE};
pub use frames::FrameSettings;
pub use list_keys::ListKeys;
pub use media_hash::MEDIA_HASHES_FILE;
pub use model::{ChatModel, EndpointModel};
pub use plan::{PlannedStage, plan_stage};
pub use prompts::{ResponseFormat, StagePrompt};
pub use recipe::{CurationRecipe, StageName};
pub use row_layout::RowLayout;
pub use similarity::VisualSimilarity;
pub use stage::{StageEnd, StageTask};
pub use summary::{CurationSummary, StageSummary};
pub use table::StageTable;
