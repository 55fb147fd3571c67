//! Tests with damaged files. For any damage, the caller gets rows or a one-line error, and continues.

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder};
use arrow_array::*;
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use reel_input::rows::Table;

use super::{golden, one_line};

/// A batch with columns of texts, numbers, nested lists, structs and bytes.
fn batch(rows: usize) -> RecordBatch {
    let text: StringArray =
        (0..rows).map(|i| (i % 7 > 0).then(|| format!("row {i} of {}", "many ".repeat(i % 5)))).collect();
    let mut lists = ListBuilder::new(ListBuilder::new(Int64Builder::new()));
    for i in 0..rows {
        for j in 0..i % 3 {
            lists.values().append_value((0..j as i64).map(Some));
        }
        lists.append(i % 5 > 0);
    }
    let mut names = ListBuilder::new(StringBuilder::new());
    for i in 0..rows {
        names.append_value((0..i % 4).map(|n| Some(format!("{n}"))));
    }
    let bytes: BinaryArray = (0..rows).map(|i| (i % 3 > 0).then(|| vec![i as u8; i % 50])).collect();
    let paths: StringArray = (0..rows).map(|i| Some(format!("{i}.png"))).collect();
    let media =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("number", Arc::new(Int64Array::from_iter_values((0..rows as i64).map(|i| i * i)))),
        ("float", Arc::new(Float64Array::from_iter_values((0..rows).map(|i| i as f64 / 3.0)))),
        ("bool", Arc::new(BooleanArray::from_iter((0..rows).map(|i| Some(i % 3 == 0))))),
        ("text", Arc::new(text)),
        ("lists", Arc::new(lists.finish())),
        ("names", Arc::new(names.finish())),
        ("image", Arc::new(StructArray::new(media, vec![Arc::new(bytes), Arc::new(paths)], None))),
    ];
    let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|c| c.1).collect()).unwrap()
}

/// A Parquet file with two row groups.
fn parquet_file(batch: &RecordBatch, properties: WriterProperties) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).unwrap();
    let half = batch.num_rows() / 2;
    for part in [batch.slice(0, half), batch.slice(half, batch.num_rows() - half)] {
        writer.write(&part).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    file
}

fn delta(encoding: Encoding) -> WriterProperties {
    WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_dictionary_enabled(false)
        .set_column_encoding("text".into(), encoding)
        .set_column_encoding("number".into(), Encoding::DELTA_BINARY_PACKED)
        .set_column_encoding("image.list.bytes".into(), encoding)
        .build()
}

/// Makes small files of every encoding and format.
fn files() -> Vec<Vec<u8>> {
    let batch = batch(60);
    let properties = WriterProperties::builder;
    let mut files = vec![
        parquet_file(&batch, delta(Encoding::DELTA_LENGTH_BYTE_ARRAY)),
        parquet_file(&batch, delta(Encoding::DELTA_BYTE_ARRAY)),
        parquet_file(&batch, properties().set_dictionary_enabled(false).build()),
        parquet_file(&batch, properties().build()),
        parquet_file(&batch, properties().set_compression(Compression::SNAPPY).build()),
        parquet_file(&batch, properties().set_compression(Compression::ZSTD(ZstdLevel::default())).build()),
    ];
    let mut stream = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    stream.write(&batch).unwrap();
    files.push(stream.into_inner().unwrap());
    let mut file = FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    file.write(&batch).unwrap();
    files.push(file.into_inner().unwrap());
    files.extend(["types_v1.parquet", "types_v2.parquet"].map(|name| std::fs::read(golden(name)).unwrap()));
    files
}

/// Reads the rows of a file and checks that each error message has one line. Returns the number of rows.
fn read(path: &Path) -> usize {
    match Table::open(path) {
        Err(e) => {
            one_line(e, path);
            0
        }
        Ok(table) => {
            for row in 0..table.len().min(20) {
                let _ = table.value(row).map_err(|e| one_line(e, path));
            }
            table.len()
        }
    }
}

/// Flips one to three random bits in files of every encoding. Reading such a file never ends the calling process.
pub fn damaged_files_never_end_the_caller() {
    // This table keeps a worker alive between the files.
    let _table = Table::open(&golden("datasets.parquet")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = files();
    for (i, file) in files.iter().enumerate() {
        let path = dir.path().join(format!("{i}.bin"));
        std::fs::write(&path, file).unwrap();
        assert!(read(&path) > 0, "file {i} without damage");
    }
    let flips = prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4);
    let config = Config { cases: 600, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let damaged = dir.path().join("damaged.bin");
    let held = runner.run(&(0..files.len(), flips), |(file, flips)| {
        let mut content = files[file].clone();
        for (at, bit) in flips {
            *at.get_mut(&mut content) ^= 1 << bit;
        }
        std::fs::write(&damaged, content).unwrap();
        read(&damaged);
        Ok(())
    });
    held.unwrap();
}

/// Reads 400 Parquet files that `change` has damaged. Reading such a file never ends the calling process.
fn read_changed<T: std::fmt::Debug>(changes: impl Strategy<Value = T>, change: impl Fn(&mut [u8], T)) {
    // This table keeps a worker alive between the files.
    let _table = Table::open(&golden("datasets.parquet")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let file = parquet_file(&batch(40), properties.build());
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let held = runner.run(&changes, |changes| {
        let mut content = file.clone();
        change(&mut content, changes);
        std::fs::write(&path, content).unwrap();
        read(&path);
        Ok(())
    });
    held.unwrap();
}

/// Sets one to five random bytes.
pub fn changed_bytes_never_end_the_caller() {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    read_changed(changes, |content, changes| {
        for (at, value) in changes {
            *at.get_mut(content) = value;
        }
    });
}

/// Flips a bit of the metadata. Most bytes of a small file are metadata, so damaged metadata has a separate test.
pub fn damaged_metadata_never_ends_the_caller() {
    read_changed((any::<prop::sample::Index>(), 0u8..8), |content, (at, bit)| {
        let end = content.len();
        let length = u32::from_le_bytes(content[end - 8..end - 4].try_into().unwrap()) as usize;
        content[end - 8 - length + at.index(length)] ^= 1 << bit;
    });
}

/// A schema with many levels is refused. The reader recurses into it, with one stack frame per level, so a schema
/// with very many levels ends the worker.
pub fn deep_schemas_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    for levels in [100usize, 200_000] {
        // The metadata: version 1, then a list of schema elements.
        let mut metadata = vec![0x15, 2, 0x19, 0xfc];
        let mut count = levels;
        while count >= 0x80 {
            metadata.push(count as u8 | 0x80);
            count >>= 7;
        }
        metadata.push(count as u8);
        // The root has the name "a" (field 4) and one child (field 5). Each further element is optional (field 3) and
        // has the same two fields; the last one has the type INT32 (field 1) instead of a child.
        metadata.extend([0x48, 1, b'a', 0x15, 2, 0]);
        metadata.extend([0x35, 2, 0x18, 1, b'a', 0x15, 2, 0].repeat(levels - 2));
        metadata.extend([0x15, 2, 0x25, 2, 0x18, 1, b'a', 0]);
        // No rows and no row groups.
        metadata.extend([0x16, 0, 0x19, 0x0c, 0]);
        let length = (metadata.len() as u32).to_le_bytes();
        std::fs::write(&path, [b"PAR1", &metadata[..], &length, b"PAR1"].concat()).unwrap();
        let e = one_line(Table::open(&path).unwrap_err(), &path);
        let wanted = ": column a: has the type with more than 64 nested levels, which is not supported; ";
        assert!(levels > 100 || e.starts_with(wanted), "{e}");
    }
}

/// Damages the first byte of a page's header. The error names the row group and the column.
pub fn page_with_a_damaged_header_is_named() {
    let mut file = parquet_file(&batch(60), WriterProperties::builder().set_dictionary_enabled(false).build());
    let reader = SerializedFileReader::new(bytes::Bytes::from(file.clone())).unwrap();
    let column = reader.metadata().row_group(1).column(3);
    assert_eq!(column.column_path().string(), "text");
    file[column.data_page_offset() as usize] = 0xff;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    std::fs::write(&path, file).unwrap();
    let e = one_line(Table::open(&path).unwrap_err(), &path);
    assert!(e.starts_with(": row group 2: text: cannot be read as Parquet: "), "{e}");
}

/// Sets the count of values in the header of a delta-encoded page to more than fits in any memory. The error names
/// the row group and the column.
pub fn page_that_claims_all_memory_is_named() {
    let texts: StringArray = (0..600).map(|i| Some("x".repeat(i % 50))).collect();
    let numbers = Int64Array::from_iter_values(0..600);
    let batch = RecordBatch::try_from_iter([("n", Arc::new(numbers) as ArrayRef), ("text", Arc::new(texts))]).unwrap();
    let mut file = parquet_file(&batch, delta(Encoding::DELTA_LENGTH_BYTE_ARRAY));
    // The start of the page header: blocks of 128 values in 4 parts, and 300 values in all.
    let header = [0x80, 0x01, 0x04, 0xac, 0x02];
    let found: Vec<usize> = (0..file.len()).filter(|&at| file[at..].starts_with(&header)).collect();
    assert_eq!(found.len(), 2, "the lengths of the texts of two row groups");
    // The count becomes a varint of 8 bytes with 7 bits each.
    let count = &mut file[found[1] + 3..][..8];
    count.iter_mut().for_each(|byte| *byte |= 0x80);
    count[7] = 0x7f;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    std::fs::write(&path, file).unwrap();
    let e = one_line(Table::open(&path).unwrap_err(), &path);
    assert!(e.starts_with(": row group 2: text: is damaged, or too large: decoding needs more than 1024 MiB"), "{e}");
}
