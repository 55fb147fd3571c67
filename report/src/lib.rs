//! HTML pages about training runs and measurements: one shared style, line charts as SVG, and the page of a training
//! run.
//!
//! A page is a single file that loads no other files. [`run::run_page_html`] reads the output folder of a run and returns
//! its page; crates with other pages (measurements, the demo) use [`html`] and [`chart`].

pub mod chart;
mod curves;
mod error;
pub mod html;
mod rollouts;
pub mod run;

pub use error::{ReportError, Result};
