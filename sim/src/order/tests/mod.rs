//! The clocks and the shadow against a graph of events whose ancestors are enumerated, and rule by rule.

mod graph;
mod history;
mod lists;
mod memos;
mod rows;
mod rules;
