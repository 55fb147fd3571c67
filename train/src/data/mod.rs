//! From a data file to micro-batches of samples: rows are parsed, checked, ordered, turned into tokens and grouped.
//! Read [`feed`] first; [`sample`] makes a training sample of a row.

pub mod dataset;
pub mod feed;
pub mod inspect;
pub mod labels;
pub mod length;
mod media_columns;
pub mod media_files;
pub mod mixture;
pub mod order;
pub mod quarantine;
pub mod rows;
pub mod sample;
pub mod source;
