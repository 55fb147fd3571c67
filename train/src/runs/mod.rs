//! A training run, from its options to a folder with the trained model: starting and resuming ([`run`]), the output
//! folder with its checkpoints and logs ([`folder`]), reports to a terminal, TensorBoard and Weights & Biases
//! ([`reporting`]), configuration files ([`config_file`]), commands of other programs ([`paste`]), and the
//! memory and time that a run needs ([`plan`]). The result of a run depends only on its options, data and seed: a run
//! can be stopped at any point, and a resumed run gives the same bits as an uninterrupted run.
//!
//! Read `run/mod.rs` first.

pub mod config_file;
pub mod folder;
pub mod number_kind;
pub mod option_names;
pub mod paste;
pub mod plan;
pub mod reporting;
pub mod run;
#[cfg(test)]
mod testing;

pub use run::{grpo, replay, sft};
