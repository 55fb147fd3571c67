//! The limits of a data file, so that a small file cannot take all memory: compressed Parquet may have any number of
//! rows, and a row of JSON needs many times its length when it is parsed.

use std::fmt::Display;

use crate::error::{Error, Result};

/// The maximum number of rows of a file.
pub(crate) const MAX_ROWS: usize = 10_000_000;

/// The maximum number of bytes of a row's JSON text, without images and videos that stay in a Parquet file. Parsed, a
/// list of numbers needs up to 16 times as much.
pub(crate) const MAX_ROW_BYTES: usize = 64 << 20;

/// Refuses a file with more than [`MAX_ROWS`] rows. `at_least` is the number of rows, or a lower bound.
pub(crate) fn check_row_count(file: impl Display, at_least: usize) -> Result<()> {
    if at_least <= MAX_ROWS {
        return Ok(());
    }
    let what = format!("has more than {MAX_ROWS} rows");
    Err(Error::data(file.to_string(), what, "split it into several files"))
}

/// Refuses a row whose text is longer than [`MAX_ROW_BYTES`]. `location` returns the place of the row.
pub(crate) fn check_row_bytes(location: impl FnOnce() -> String, bytes: usize) -> Result<()> {
    if bytes <= MAX_ROW_BYTES {
        return Ok(());
    }
    let what = format!("is a row of {bytes} bytes, above the limit of {MAX_ROW_BYTES} bytes");
    let help = "split it; write images and videos to files of their own and give their paths";
    Err(Error::data(location(), what, help))
}
