//! Fuzz targets for data files in binary formats. A worker process decodes the files, as in `reel` itself: for some
//! inputs the decoder allocates all memory or crashes, which must end only the worker.

use std::fs;
use std::time::Duration;

use reel_input::rows::Table;
use reel_support::worker::{WorkerProgram, set_worker_program};

use super::{FuzzTarget, InputRunner, repository_file, scratch_folder};
use crate::mutate::{PartFormat, Seed};
use crate::verdict::value_if_accepted;

/// Parquet files, as pyarrow and the library `datasets` write them.
pub const PARQUET: FuzzTarget = FuzzTarget {
    name: "parquet",
    words: &["PAR1", "PARE", "bytes", "path", "ARROW:schema", "schema", "list", "element", "key_value"],
    seeds: || seeds(&["datasets.parquet", "types_v1.parquet", "types_v2.parquet"]),
    open: || rows_of("rows.parquet"),
};

/// Arrow files, as the library `datasets` writes them.
pub const ARROW: FuzzTarget = FuzzTarget {
    name: "arrow",
    words: &["ARROW1", "bytes", "path", "list", "item", "huggingface"],
    seeds: || seeds(&["saved/data-00000-of-00002.arrow"]),
    open: || rows_of("rows.arrow"),
};

fn seeds(names: &[&str]) -> anyhow::Result<Vec<Seed>> {
    let seed = |name: &&str| Ok(Seed::new(PartFormat::Bytes, repository_file(&format!("tests/golden/data/{name}"))?));
    names.iter().map(seed).collect()
}

/// Returns a function that writes each input to the file `name` and reads its first rows. Each input has its own
/// worker process, so that the worker's processor time counts for this input. A worker that does not end is killed
/// after half a second, and the file is tried at most three times.
fn rows_of(name: &str) -> anyhow::Result<InputRunner> {
    let timeout = Duration::from_millis(500);
    set_worker_program(WorkerProgram { timeout, ..WorkerProgram::of_current_executable() });
    let path = scratch_folder()?.join(name);
    Ok(Box::new(move |input| {
        fs::write(&path, input).map_err(|e| e.to_string())?;
        let Some(rows) = value_if_accepted(Table::open(&path))? else { return Ok(false) };
        let mut all = true;
        for row in 0..rows.len().min(100) {
            all &= value_if_accepted(rows.value(row))?.is_some();
        }
        Ok(all)
    }))
}
