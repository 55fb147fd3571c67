//! Targets for data files in binary formats.

use std::fs;

use reel_data::Table;

use super::{Target, repository_file, scratch_folder};
use crate::mutate::{Kind, Seed};
use crate::verdict::value_of;

/// Parquet files, as pyarrow and the library `datasets` write them.
pub const PARQUET: Target = Target {
    name: "parquet",
    words: &["PAR1", "PARE", "bytes", "path", "ARROW:schema", "schema", "list", "element", "key_value"],
    seeds: || {
        let files = ["datasets.parquet", "types_v1.parquet", "types_v2.parquet"];
        let seed = |name| Ok(Seed::new(Kind::Bytes, repository_file(&format!("tests/golden/data/{name}"))?));
        files.into_iter().map(seed).collect()
    },
    open: || {
        let path = scratch_folder()?.join("rows.parquet");
        Ok(Box::new(move |input| {
            fs::write(&path, input).map_err(|e| e.to_string())?;
            let Some(rows) = value_of(Table::open(&path))? else { return Ok(false) };
            let mut all = true;
            for row in 0..rows.len().min(100) {
                all &= value_of(rows.value(row))?.is_some();
            }
            Ok(all)
        }))
    },
};
