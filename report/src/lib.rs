//! HTML pages about training runs and measurements: one shared style, line charts as SVG, and the page of a training
//! run.
//!
//! A page is a single file that loads nothing from elsewhere. [`run::run_page`] reads the output folder of a run and
//! returns its page; crates with pages of their own (measurements, the demo) use [`html`] and [`chart`].

pub mod chart;
mod curves;
mod error;
pub mod html;
mod rollouts;
pub mod run;

pub use error::{ReportError, Result};
