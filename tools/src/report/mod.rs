//! HTML pages about training runs, evaluations and measurements. This crate has the parts that all pages share, and the
//! pages of training runs, evaluations and data files.
//!
//! A page is a single file that loads no other files ([`html::HtmlPage`]). It has tables ([`table`]) and charts
//! ([`chart`]), whose data is JSON that the page's script (`page.js`) draws with uPlot. [`run_page::run_page_html`]
//! reads the output folder of a run and returns its page; [`evaluation::evaluation_page_html`] makes the page of an
//! evaluation. Crates with other pages (measurements, the demo) build their pages from the same parts.

pub mod chart;
pub mod curation;
mod curves;
pub mod data_row;
pub mod data_stats;
pub mod escape;
pub mod evaluation;
mod evaluations;
pub mod html;
mod rollouts;
mod run;
pub mod run_page;
pub mod table;
