//! `reel demo`: a tiny model learns to answer questions about films, from nothing to a page of results.

mod chart;
mod clips;
mod report;
