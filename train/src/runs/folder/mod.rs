//! Manages the output folder of a run: its files, its checkpoints, and resuming from a checkpoint. `docs/run.md` lists
//! the files.

pub mod best;
pub mod checkpoint;
pub mod digests;
pub mod entries;
pub mod evaluations;
pub mod hashes;
pub mod later_skipped;
pub mod logs;
pub mod output;
pub mod previous;
pub mod resume;
pub mod trainer_state;
