//! Tests of clocks and shadow memory: against a graph of events with enumerated ancestors, and rule by rule.

mod caches;
mod graph;
mod history;
mod lists;
mod rows;
mod rules;
