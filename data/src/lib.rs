//! Reads data files row by row. [`Table`] has the rows of a file as JSON values; what the fields of a row mean is
//! decided by the crates that use them. `table.rs` is the place to start; `text.rs` reads JSON and JSONL.

mod error;
pub mod fingerprint;
mod table;
mod text;

pub use error::{DataError, Result};
pub use table::Table;
