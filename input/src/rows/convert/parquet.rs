//! Writes rows as a Parquet file.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use reel_support::diagnostic::{catch_panic, one_line};
use serde_json::{Map, Value};

use super::WriteError;
use super::arrays::{arrow_array, arrow_type};
use super::shape::{ColumnTypes, InferredColumn, ValueType};
use crate::error::{Error, Result};
use crate::rows::Table;
use crate::rows::columnar::parquet::OPTIONAL_COLUMNS;

/// The limits of a batch of rows that is written at once: the number of rows, and their approximate size in bytes.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;

/// The approximate limit of a row group's size in bytes.
const GROUP_BYTES: usize = 64 << 20;

/// Writes all rows of `table` as a Parquet file, compressed with zstd and with a page index.
///
/// # Errors
/// A row cannot be read or is not an object; no row has a field; writing fails.
pub fn write_parquet(table: &Table, out: &mut (impl Write + Send)) -> Result<(), WriteError> {
    let mut columns = ColumnTypes::default();
    for row in 0..table.len() {
        columns.add_row(&object(table, row)?);
    }
    let columns = columns.finish();
    if columns.is_empty() {
        let what = "has no columns: every row is an empty object";
        return Err(Error::data(table.location(0), what, "write the rows as JSON or JSONL").into());
    }
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let optional: Vec<&str> = columns.iter().filter(|c| c.is_optional).map(|c| c.name.as_str()).collect();
    let optional = KeyValue::new(OPTIONAL_COLUMNS.to_string(), Value::from(optional).to_string());
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(concat!("reel version ", env!("CARGO_PKG_VERSION")).to_string())
        .set_key_value_metadata(Some(vec![optional]))
        .build();
    let mut writer = caught(|| ArrowWriter::try_new(out, schema.clone(), Some(properties)))?;
    let mut next = 0;
    while next < table.len() {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while next < table.len() && rows.len() < BATCH_ROWS && bytes < BATCH_BYTES {
            let row = object(table, next)?;
            bytes += row.iter().map(|(name, value)| name.len() + text_bytes(value)).sum::<usize>();
            rows.push(row);
            next += 1;
        }
        caught(|| writer.write(&batch(&schema, &columns, &rows)?))?;
        if writer.in_progress_size() > GROUP_BYTES {
            caught(|| writer.flush())?;
        }
    }
    caught(|| writer.close()).map(drop)
}

fn object(table: &Table, row: usize) -> Result<Map<String, Value>> {
    match table.value(row)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(Error::data(table.location(row), "is not an object", "write the rows as JSON or JSONL")),
    }
}

/// Returns the approximate size of a value in bytes: the length of its texts, and 8 for each number, bool or null.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 8,
    }
}

fn field(column: &InferredColumn) -> Field {
    let field = Field::new(&column.name, arrow_type(&column.value_type), true);
    if column.value_type != ValueType::Mixed {
        return field;
    }
    // Marks the texts as JSON by Arrow's extension type, which the Parquet writer turns into the logical type JSON.
    let keys = [("ARROW:extension:name", "arrow.json"), ("ARROW:extension:metadata", "")];
    field.with_metadata(HashMap::from(keys.map(|(key, value)| (key.to_string(), value.to_string()))))
}

fn batch(
    schema: &Arc<Schema>,
    columns: &[InferredColumn],
    rows: &[Map<String, Value>],
) -> parquet::errors::Result<RecordBatch> {
    let array = |column: &InferredColumn| -> ArrayRef {
        let values: Vec<Option<&Value>> = rows.iter().map(|row| row.get(&column.name)).collect();
        arrow_array(&column.value_type, &values)
    };
    Ok(RecordBatch::try_new(schema.clone(), columns.iter().map(array).collect())?)
}

/// Calls the Parquet writer and turns its panics into errors. It panics if one batch has more than 2 GiB of text.
fn caught<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, WriteError> {
    let failed = |reason: &str| WriteError::Io(io::Error::other(one_line(reason)));
    match catch_panic(call) {
        Ok(result) => result.map_err(|e| match e {
            // An I/O error inside the writer's error keeps its kind, such as a full disk.
            ParquetError::External(source) => match source.downcast::<io::Error>() {
                Ok(e) => WriteError::Io(*e),
                Err(source) => failed(&source.to_string()),
            },
            other => failed(&other.to_string()),
        }),
        Err(panic) => Err(failed(&panic)),
    }
}
