use std::sync::atomic::Ordering;

use arrow_array::builder::*;
use arrow_array::types::*;
use arrow_array::*;
use arrow_schema::{DataType, Field, Fields, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use serde_json::{Value, json};

use super::*;
use crate::error::Error;
use crate::rows::columnar::ColumnarFormat;
use crate::rows::columnar_rows::ColumnarRows;

fn open_path(path: &Path) -> Result<ColumnarRows> {
    ColumnarRows::open(path, ColumnarFormat::Parquet, None)
}

/// Writes a Parquet file with one row group per batch.
fn write(path: &Path, batches: &[RecordBatch], properties: WriterProperties) {
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batches[0].schema(), Some(properties)).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|c| c.1).collect()).unwrap()
}

/// Makes an array of images in the form in which the library `datasets` stores them.
fn images(values: &[(Option<&[u8]>, Option<&str>)]) -> ArrayRef {
    let bytes: BinaryArray = values.iter().map(|v| v.0).collect();
    let paths: StringArray = values.iter().map(|v| v.1).collect();
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    Arc::new(StructArray::new(fields, vec![Arc::new(bytes), Arc::new(paths)], None))
}

fn open(batches: &[RecordBatch]) -> ColumnarRows {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    write(&path, batches, WriterProperties::default());
    open_path(&path).unwrap()
}

/// The number of rows is known before any is decoded.
#[test]
fn a_file_with_very_many_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    let million = batch(vec![("a", Arc::new(Int32Array::from(vec![1; 1_000_000])))]);
    write(&path, &vec![million; 11], WriterProperties::default());
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    let e = open_path(&path).unwrap_err().to_string();
    assert_eq!(e, format!("{}: has more than 10000000 rows; split it into several files", path.display()));
}

#[test]
fn each_type_has_its_json() {
    let mut lists = ListBuilder::new(Int64Builder::new());
    lists.append_value([Some(1), None]);
    lists.append_null();
    let mut maps = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    maps.keys().append_value("k");
    maps.values().append_value(7);
    maps.append(true).unwrap();
    maps.append(true).unwrap();
    let people = StructArray::from(vec![
        (Arc::new(Field::new("a", DataType::Int32, true)), Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef),
        (Arc::new(Field::new("b", DataType::Utf8, true)), Arc::new(StringArray::from(vec![None, Some("x\n\"")])) as _),
    ]);
    let colors: DictionaryArray<Int8Type> = vec![Some("red"), None].into_iter().collect();
    let micros = |zone: Option<&str>| {
        let values = TimestampMicrosecondArray::from(vec![Some(1_700_000_000_123_456), Some(-1)]);
        Arc::new(match zone {
            Some(zone) => values.with_timezone(zone),
            None => values,
        })
    };
    let decimals = Decimal128Array::from(vec![Some(-12345), None]).with_precision_and_scale(38, 2).unwrap();
    let rows = open(&[batch(vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("i8", Arc::new(Int8Array::from(vec![-128, 127]))),
        ("i64", Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX]))),
        ("u64", Arc::new(UInt64Array::from(vec![0, u64::MAX]))),
        ("f32", Arc::new(Float32Array::from(vec![0.1, f32::NAN]))),
        ("f64", Arc::new(Float64Array::from(vec![0.1, f64::INFINITY]))),
        ("large", Arc::new(LargeStringArray::from(vec!["ü", "\u{0}"]))),
        ("view", Arc::new(StringViewArray::from(vec!["a", "a long text that is not kept inline"]))),
        ("colour", Arc::new(colors)),
        ("decimal", Arc::new(decimals)),
        ("date", Arc::new(Date32Array::from(vec![0, -1]))),
        ("time", Arc::new(Time64MicrosecondArray::from(vec![1_500_000, 0]))),
        ("utc", micros(Some("+02:00"))),
        ("local", micros(None)),
        ("list", Arc::new(lists.finish())),
        ("map", Arc::new(maps.finish())),
        ("struct", Arc::new(people)),
        ("null", Arc::new(NullArray::new(2))),
        ("raw", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
    ])]);
    let wanted = [
        json!({
            "bool": true, "i8": -128, "i64": i64::MIN, "u64": 0, "f32": f64::from(0.1f32), "f64": 0.1, "large": "ü",
            "view": "a", "colour": "red", "decimal": "-123.45", "date": "1970-01-01", "time": "00:00:01.500",
            "utc": "2023-11-14T22:13:20.123456Z", "local": "2023-11-14T22:13:20.123456", "list": [1, null],
            "map": {"k": 7}, "struct": {"a": 1, "b": null}, "null": null, "raw": "AP8=",
        }),
        json!({
            "bool": null, "i8": 127, "i64": i64::MAX, "u64": u64::MAX, "f32": null, "f64": null, "large": "\u{0}",
            "view": "a long text that is not kept inline", "colour": null, "decimal": null, "date": "1969-12-31",
            "time": "00:00:00", "utc": "1969-12-31T23:59:59.999999Z", "local": "1969-12-31T23:59:59.999999",
            "list": null, "map": {}, "struct": {"a": 2, "b": "x\n\""}, "null": null, "raw": null,
        }),
    ];
    assert_eq!(rows.len(), 2);
    for (i, wanted) in wanted.iter().enumerate() {
        let row = rows.value(i).unwrap();
        assert_eq!(&row, wanted);
        assert_eq!(
            row.as_object().unwrap().keys().collect::<Vec<_>>(),
            wanted.as_object().unwrap().keys().collect::<Vec<_>>()
        );
    }
    assert!(rows.location(1).ends_with("d.parquet: row 2"), "{}", rows.location(1));
}

#[test]
fn embedded_media_become_data_uris_and_paths_stay() {
    let png = b"\x89PNG\r\n\x1a\n".as_slice();
    let images_column = images(&[(Some(png), Some("a.png")), (None, Some("b.png")), (None, None)]);
    let mut all = ListBuilder::new(StructBuilder::from_fields(
        Fields::from(vec![Field::new("path", DataType::Utf8, true), Field::new("bytes", DataType::Binary, true)]),
        3,
    ));
    for row in [vec![Some(png), None], vec![], vec![None]] {
        for bytes in row {
            all.values().field_builder::<StringBuilder>(0).unwrap().append_value("v.mp4");
            all.values().field_builder::<BinaryBuilder>(1).unwrap().append_option(bytes);
            all.values().append(true);
        }
        all.append(true);
    }
    let batch = batch(vec![
        ("image", images_column),
        ("text", Arc::new(StringArray::from(vec!["1", "2", "3"]))),
        ("images", Arc::new(all.finish())),
    ]);
    let uri = "data:image/png;base64,iVBORw0KGgo=";
    for rows in [open(std::slice::from_ref(&batch)), open(&[batch.slice(0, 1), batch.slice(1, 2)])] {
        assert_eq!(rows.value(0).unwrap(), json!({"image": uri, "text": "1", "images": [uri, "v.mp4"]}));
        assert_eq!(rows.value(1).unwrap(), json!({"image": "b.png", "text": "2", "images": []}));
        assert_eq!(rows.value(2).unwrap(), json!({"image": null, "text": "3", "images": ["v.mp4"]}));
        assert_eq!(rows.value(0).unwrap().as_object().unwrap().keys().collect::<Vec<_>>(), ["image", "text", "images"]);
    }
}

/// Bytes are read in each form in which libraries store them: with and without a path, beside other fields, and as
/// plain binary columns. Empty bytes count as null.
#[test]
fn bytes_of_media_are_kept_in_each_form() {
    let png = b"\x89PNG\r\n\x1a\n".as_slice();
    let uri = "data:image/png;base64,iVBORw0KGgo=";
    let bytes = || -> ArrayRef { Arc::new(BinaryArray::from(vec![Some(png), Some(b"".as_slice()), None])) };
    let text = |texts: [Option<&str>; 3]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
    let fields = |list: Vec<(&str, ArrayRef)>| -> ArrayRef {
        let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
        let fields: Vec<Field> = list.iter().map(field).collect();
        Arc::new(StructArray::new(fields.into(), list.into_iter().map(|(_, array)| array).collect(), None))
    };
    let mut lists = ListBuilder::new(LargeBinaryBuilder::new());
    lists.append_value([Some(png), None]);
    lists.append_value([] as [Option<&[u8]>; 0]);
    lists.append_null();
    let path = || text([Some("a.png"); 3]);
    let rows = open(&[batch(vec![
        ("only", fields(vec![("bytes", bytes())])),
        ("both", fields(vec![("bytes", bytes()), ("path", path())])),
        ("more", fields(vec![("bytes", bytes()), ("path", path()), ("kind", text([Some("x"), Some("y"), None]))])),
        ("image", bytes()),
        ("videos", Arc::new(lists.finish())),
        ("raw", bytes()),
    ])]);
    let row = |index: usize| rows.value(index).unwrap();
    assert_eq!(
        row(0),
        json!({"only": uri, "both": uri, "more": {"bytes": uri, "path": "a.png", "kind": "x"}, "image": uri,
            "videos": [uri, null], "raw": "iVBORw0KGgo="})
    );
    assert_eq!(
        row(1),
        json!({"only": null, "both": "a.png", "more": {"bytes": null, "path": "a.png", "kind": "y"}, "image": null,
            "videos": [], "raw": ""})
    );
    assert_eq!(
        row(2),
        json!({"only": null, "both": "a.png", "more": "a.png", "image": null, "videos": null, "raw": null})
    );
}

/// Tests every compression of the Parquet format except LZO, which is deprecated, with both versions of data pages.
#[test]
fn compressions_are_read() {
    let text: StringArray = (0..500).map(|i| Some(format!("row {i} of many"))).collect();
    let batch = batch(vec![("text", Arc::new(text))]);
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("d.parquet");
            let properties = WriterProperties::builder().set_compression(compression).set_writer_version(version);
            write(&path, std::slice::from_ref(&batch), properties.build());
            let rows = open_path(&path).unwrap();
            assert_eq!((rows.len(), rows.value(499).unwrap()), (500, json!({"text": "row 499 of many"})));
        }
    }
}

/// Reading one row of an image column reads about one page, not the whole row group. Without a page index, only the
/// headers of the other pages are read in addition.
#[test]
fn a_row_with_bytes_does_not_read_its_row_group() {
    let image: Vec<u8> = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let content: Vec<Vec<u8>> = (0..400u32).map(|i| [&i.to_le_bytes()[..], &image].concat()).collect();
    let values: Vec<(Option<&[u8]>, Option<&str>)> = content.iter().map(|c| (Some(&c[..]), Some("x.png"))).collect();
    let batch = batch(vec![("image", images(&values))]);
    for index in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.parquet");
        let mut properties = WriterProperties::builder()
            .set_offset_index_disabled(!index)
            .set_data_page_size_limit(100_000)
            .set_write_batch_size(4)
            .set_dictionary_enabled(false);
        if !index {
            properties = properties.set_statistics_enabled(EnabledStatistics::None);
        }
        write(&path, std::slice::from_ref(&batch), properties.build());
        let rows = open_path(&path).unwrap();
        assert_eq!(rows.parquet().metadata.metadata().num_row_groups(), 1);
        assert_eq!(rows.parquet().metadata.metadata().row_group(0).column(0).offset_index_offset().is_some(), index);
        let size = std::fs::metadata(&path).unwrap().len();
        for row in [0, 7, 399, 200] {
            let before = rows.parquet().file.bytes_read.load(Ordering::Relaxed);
            let value = rows.value(row).unwrap();
            let read = rows.parquet().file.bytes_read.load(Ordering::Relaxed) - before;
            assert!(read < size / 10, "index {index}: row {row} read {read} of {size} bytes");
            let wanted = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &content[row]);
            assert_eq!(value["image"], format!("data:application/octet-stream;base64,{wanted}"));
        }
    }
}

/// Threads that read different rows at the same time each get the right rows.
#[test]
fn rows_are_read_by_several_threads() {
    let content: Vec<Vec<u8>> = (0..300u32).map(|i| i.to_le_bytes().repeat(50)).collect();
    let values: Vec<(Option<&[u8]>, Option<&str>)> = content.iter().map(|c| (Some(&c[..]), None)).collect();
    let texts: StringArray = (0..300).map(|i| Some(i.to_string())).collect();
    let rows = open(&[batch(vec![("image", images(&values)), ("n", Arc::new(texts))])]);
    let first: Vec<Value> = (0..300).map(|i| rows.value(i).unwrap()).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (rows, first) = (&rows, &first);
            scope.spawn(move || {
                for i in (0..300).map(|i| (i * 7 + thread * 31) % 300) {
                    assert_eq!(rows.value(i).unwrap(), first[i]);
                }
            });
        }
    });
}

#[test]
fn unusable_files_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    let refused = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        let e = open_path(&path).unwrap_err().to_string();
        let e = e.strip_prefix(&format!("{}", path.display())).unwrap_or_else(|| panic!("{e}")).to_string();
        assert!(!e.contains('\n') && e.contains("; "), "{e}");
        e
    };
    assert!(refused(b"PAR1").starts_with(": is not a whole Parquet file"), "{}", refused(b"PAR1"));
    assert!(refused(b"PAR1\0\0\0\0\0\0\0\0PARE").starts_with(": is encrypted; "));
    assert!(refused(b"PAR1\0\0\0\0\xff\xff\xff\0PAR1").starts_with(": cannot be read as Parquet: "));
    assert!(refused(b"PAR1\0\0\0\0\0\0\0\0PAR1").starts_with(": cannot be read as Parquet: "));
    let mut intervals = IntervalYearMonthBuilder::new();
    intervals.append_value(3);
    write(&path, &[batch(vec![("t", Arc::new(intervals.finish()))])], WriterProperties::default());
    let e = open_path(&path).unwrap_err().to_string();
    assert!(e.contains(": column t: has the type Interval"), "{e}");
    let none = batch(vec![("t", Arc::new(StringArray::from(Vec::<&str>::new())))]);
    write(&path, &[none], WriterProperties::default());
    let e = open_path(&path).unwrap_err().to_string();
    assert!(e.contains(": has no rows; "), "{e}");
}

/// If all columns stay in the file, reading the last row checks the number of rows that the metadata claims.
#[test]
fn rows_of_images_alone_are_counted() {
    let rows = open(&[batch(vec![("image", images(&[(Some(b"x"), None), (None, Some("b"))]))])]);
    assert_eq!((rows.len(), rows.value(1).unwrap()), (2, json!({"image": "b"})));
}

/// A file with texts, lists and images.
fn mixed_file() -> Vec<u8> {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for i in 0..40 {
        lists.append_value((0..i % 3).map(|n| Some(format!("{i} {n}"))));
    }
    let content: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; 30]).collect();
    let values: Vec<(Option<&[u8]>, Option<&str>)> = content.iter().map(|c| (Some(&c[..]), None)).collect();
    let batch = batch(vec![
        ("n", Arc::new(Int64Array::from_iter_values(0..40))),
        ("time", Arc::new(TimestampMillisecondArray::from_iter_values((0..40).map(|i| i * 1_000_000)))),
        ("list", Arc::new(lists.finish())),
        ("image", images(&values)),
    ]);
    assert_eq!(*batch.schema().field(1).data_type(), DataType::Timestamp(TimeUnit::Millisecond, None));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    write(&path, &[batch.slice(0, 25), batch.slice(25, 15)], properties.build());
    std::fs::read(&path).unwrap()
}

/// Reads all rows of a damaged file and checks that each error message has one line.
fn read_damaged(content: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.parquet");
    std::fs::write(&path, content).unwrap();
    let message = |e: Error| {
        let e = e.to_string();
        assert!(e.contains("d.parquet") && e.contains("; ") && !e.contains('\n'), "{e}");
    };
    match open_path(&path) {
        Err(e) => message(e),
        Ok(rows) => (0..rows.len().min(100)).filter_map(|row| rows.value(row).err()).for_each(message),
    }
}

#[test]
fn cut_files_are_refused() {
    let content = mixed_file();
    for length in (0..content.len()).step_by(7) {
        read_damaged(&content[..length]);
    }
}

/// Returns the path of a file in the folder `tests/golden/data`. Python libraries have written these files.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

#[test]
fn files_of_pyarrow_and_datasets_are_read() {
    let expected: Value = serde_json::from_slice(&std::fs::read(golden("expected.json")).unwrap()).unwrap();
    for (file, rows) in [("datasets", "datasets"), ("types_v1", "types"), ("types_v2", "types")] {
        let file = open_path(&golden(&format!("{file}.parquet"))).unwrap();
        let rows = expected[rows].as_array().unwrap();
        assert_eq!(file.len(), rows.len());
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(&file.value(i).unwrap(), row);
        }
    }
}
