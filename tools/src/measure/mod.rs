//! Measures speed: times rounds of some work, shows what limits their speed on this machine, and tests whether two
//! results differ.
//!
//! [`rounds`] times work of a model and then profiles one more round, and splits the time of this round by op
//! ([`ops`]) and by part ([`parts`]). [`ceilings`] measures the highest rates of this machine; [`machine`] has the
//! rates of GPUs by their data sheets ([`data_sheet`]), [`pricing`] predicts times from measurements on a GPU, or by
//! the model of [`kernel_model`], and [`predicted_time`] says how far such a time can be trusted. [`timing`] times single kernels, [`counters`] reads the GPU's counters for them.
//! [`compare`] tests whether two results differ by more than chance, [`turns`] whether two programs do. [`page`] and
//! [`roofline_page`] write results as HTML. [`trace`] records where the time of any command went, also as folded
//! stacks for flame graphs. [`job`] predicts training jobs of several GPUs, whose links are in [`links`];
//! [`job_page`] is their page.

pub mod cache;
pub mod catalogue;
pub mod ceilings;
pub mod clocks;
pub mod compare;
pub mod counters;
pub mod data_sheet;
pub mod job;
pub mod job_page;
pub mod kernel_model;
mod kernel_times;
pub mod links;
pub mod lm_head;
pub mod machine;
pub mod op;
pub mod ops;
pub mod page;
pub mod parts;
pub mod predicted_time;
pub mod pricing;
pub mod rollout;
pub mod roofline_page;
pub mod rounds;
pub mod stats;
pub mod timing;
pub mod trace;
mod trace_slices;
pub mod train;
