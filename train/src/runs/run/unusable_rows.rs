//! Finds rows that cannot be used without loading their media: rows with invalid fields or in the `--quarantine` list,
//! and data whose media files are missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use reel_samples::no_usable_row;
use reel_samples::quarantine;
use reel_samples::skipped_row::SkippedRow;
use reel_samples::source::DataSource;

use crate::Result;
use crate::error::Error;
use crate::options::RunOptions;

/// Returns, in file order, the rows that are known to be unusable before media are loaded: rows in the `--quarantine`
/// list, and rows with invalid fields.
///
/// # Errors
/// No row is left for training; in a strict run, a row has wrong fields.
pub(crate) fn unusable_rows<R: DataSource>(options: &RunOptions, rows: &R) -> Result<Vec<SkippedRow>> {
    let all: Vec<usize> = (0..rows.row_count()).collect();
    let quarantine = options.quarantine.as_deref().filter(|_| !options.check_data);
    let found = unusable_rows_among(options, rows, &all, quarantine)?;
    let held_out = rows.held_out_rows();
    let of_training: Vec<&SkippedRow> = found.iter().filter(|bad| held_out.binary_search(&bad.row).is_err()).collect();
    match of_training.first() {
        Some(first) if of_training.len() == rows.row_count() - held_out.len() => {
            Err(no_usable_row(&rows.location(first.row).0, &first.reason, false))
        }
        _ => Ok(found),
    }
}

/// Returns those rows of `among` (ascending row numbers) that are in the list `quarantine` or have invalid fields. In
/// a strict run, the first row with invalid fields is an error.
pub(super) fn unusable_rows_among<R: DataSource>(
    options: &RunOptions,
    rows: &R,
    among: &[usize],
    quarantine: Option<&Path>,
) -> Result<Vec<SkippedRow>> {
    let line_of = |row| (row < rows.row_count()).then(|| rows.location(row).1);
    let listed = quarantine.map(|list| quarantine::read_quarantine_list(list, line_of)).transpose()?;
    let mut found = listed.unwrap_or_default();
    found.retain(|bad| among.binary_search(&bad.row).is_ok());
    let listed: BTreeSet<usize> = found.iter().map(|bad| bad.row).collect();
    let all = || among.par_iter().copied().filter(|row| !listed.contains(row));
    let row_error = |row| rows.validate_row(row).err().map(|e| (row, e));
    let skipped = |(row, e): (usize, Error)| SkippedRow::new(row, rows.location(row).1, &e);
    if options.strict {
        return all().find_map_first(row_error).map_or(Ok(found), |(_, e)| Err(e));
    }
    found.extend(all().filter_map(row_error).map(skipped).collect::<Vec<_>>());
    found.sort_by_key(|bad| bad.row);
    match found.first() {
        Some(first) if found.len() == among.len() => {
            Err(no_usable_row(&rows.location(first.row).0, &first.reason, false))
        }
        _ => Ok(found),
    }
}

/// The maximum number of rows whose media are looked for before the model is loaded.
const MAX_ROWS_LOOKED_AT: usize = 1000;

/// Refuses data whose media files are missing, so that a wrong or missing `--media-root` is found before the model is
/// loaded. Looks at some rows, spread over the file, up to the first one whose files all exist. Malformed rows are left
/// out.
///
/// # Errors
/// Each of these rows names a media file that does not exist.
pub(super) fn refuse_missing_media<R: DataSource>(options: &RunOptions, rows: &R) -> Result<()> {
    let count = rows.row_count();
    let mut first = None;
    for row in (0..count).step_by(count.div_ceil(MAX_ROWS_LOOKED_AT).max(1)) {
        // A folder that cannot be read now is reported when the row is loaded.
        let is_missing = |path: &PathBuf| path.try_exists().is_ok_and(|exists| !exists);
        let Ok(files) = rows.media_files(row) else { continue };
        let Some(missing) = files.into_iter().find(is_missing) else { return Ok(()) };
        first.get_or_insert((row, missing));
    }
    let Some((row, missing)) = first else { return Ok(()) };
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or(path.to_path_buf());
    let (missing, root) = (absolute(&missing), absolute(&options.media_root().join(".")));
    let what = format!(
        "no row of the file can be used, because its media do not exist, such as {}; relative paths are below {}",
        missing.display(),
        root.display()
    );
    let help = "correct the paths, or give their folder by --media-root";
    Err(Error::data(rows.location(row).0, what, help))
}
