//! Reads data files row by row. [`Table`] returns the rows of a file as JSON values. Other crates interpret the
//! fields of a row. Start reading at `table/`. `text.rs` reads JSON and JSONL, `columnar/` reads Parquet and Arrow,
//! and `worker/` runs `columnar/` in another process. `folder/` finds the files of a data set's folder. [`convert()`]
//! writes a table in another format.

mod columnar;
mod columnar_rows;
mod convert;
mod folder;
mod limits;
mod spec;
mod table;
mod text;
pub mod worker;

pub use crate::error::Result;
pub use convert::{DataFormat, WriteError, check_output, convert, write_parquet};
pub use spec::{WeightedPath, input_paths, media_root, parse_data_paths};
pub use table::Table;
