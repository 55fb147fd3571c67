use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, ListArray, RecordBatch, StringArray, StructArray};
use arrow_buffer::OffsetBuffer;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::error::Kind;

fn parse(text: &str) -> Result<Table> {
    Table::parse(Path::new("d.jsonl"), text.to_string())
}

const ROW: &str = r#"{"prompt": "a", "solution": "b"}"#;

#[test]
fn rows_have_line_numbers() {
    let d = parse(&format!("\n{ROW}\n\n  {ROW}  \r\n")).unwrap();
    assert_eq!((d.len(), d.line_number(0), d.line_number(1)), (2, 2, 4));
    let d = parse(&format!(" [\n{ROW},\n\n{ROW}\n]\n")).unwrap();
    assert_eq!((d.len(), d.line_number(0), d.line_number(1)), (2, 2, 4));
    assert_eq!(d.location(1), "d.jsonl:4");
    // If several rows share a line, the location of a row has the number of the row instead of the line.
    let d = parse(&format!("[{ROW},\n{ROW}, {ROW}]")).unwrap();
    assert_eq!((d.line_number(2), d.location(2)), (3, "d.jsonl: row 3".into()));
}

#[test]
fn malformed_files_are_refused_with_the_line() {
    for (text, start) in [
        (String::new(), "d.jsonl: has no rows"),
        (" [ ] ".into(), "d.jsonl: has no rows"),
        (format!("{ROW}\n{{\"messages\": "), "d.jsonl:2: is not JSON"),
        (format!("[{ROW},\n{{\"messages\": ]"), "d.jsonl:2: is not JSON"),
        (format!("{ROW} {ROW}"), "d.jsonl:1: is not JSON"),
    ] {
        let opened = parse(&text).and_then(|d| (0..d.len()).try_for_each(|row| d.value(row).map(drop)));
        let e = opened.unwrap_err().to_string();
        assert!(e.starts_with(start) && !e.contains('\n') && e.contains("; "), "{text:?}: {e}");
    }
}

#[test]
fn invalid_utf8_damages_one_line_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let bad = [b"{\"messages\": \"\xff".as_slice(), b"\"}"].concat();
    std::fs::write(&path, [ROW.as_bytes(), b"\n", &bad, b"\n", ROW.as_bytes()].concat()).unwrap();
    let d = Table::open(&path).unwrap();
    assert_eq!((d.len(), d.value(0).unwrap()), (3, d.value(2).unwrap()));
    let e = d.value(1).unwrap_err().to_string();
    assert!(e.contains("x.jsonl:2: is not UTF-8"), "{e}");
    std::fs::write(&path, [b"[", ROW.as_bytes(), b",\n", &bad, b"]"].concat()).unwrap();
    let e = Table::open(&path).unwrap_err().to_string();
    assert!(e.contains("x.jsonl:2: is not UTF-8"), "{e}");
    let e = Table::open(&dir.path().join("none")).unwrap_err();
    assert!(e.kind == Kind::Io && e.to_string().contains("there is no such file"), "{e}");
}

proptest! {
    /// A JSON list and JSONL lines with the same rows parse to the same rows, for any characters in them.
    #[test]
    fn both_layouts_hold_the_same_rows(texts in prop::collection::vec("\\PC{0,12}", 1..6), gap in "[ \n\r\t]{0,3}") {
        let rows: Vec<Value> = texts.iter().map(|t| json!({"prompt": [{"role": "user", "content": t}]})).collect();
        let list = parse(&format!("{gap}{}", serde_json::to_string_pretty(&rows).unwrap())).unwrap();
        let lines: Vec<String> = rows.iter().map(|r| format!("{r}\n{gap}")).collect();
        let lines = parse(&lines.concat()).unwrap();
        prop_assert_eq!(list.len(), rows.len());
        prop_assert_eq!(lines.len(), rows.len());
        for (i, row) in rows.iter().enumerate() {
            prop_assert_eq!(&list.value(i).unwrap(), row);
            prop_assert_eq!(&lines.value(i).unwrap(), row);
        }
    }
}

/// Makes an Arrow field whose texts are marked as JSON.
fn json_field(name: &str) -> Field {
    let keys = [("ARROW:extension:name", "arrow.json"), ("ARROW:extension:metadata", "")];
    let metadata = keys.map(|(key, value)| (key.to_string(), value.to_string()));
    Field::new(name, DataType::Utf8, true).with_metadata(HashMap::from(metadata))
}

/// Opens a column of lists of structs, as Parquet and as Arrow. Each struct has a text (`role`) and a JSON text
/// (`content`).
fn open_lists(contents: &[Option<&str>]) -> [Result<Table>; 2] {
    let fields = Fields::from(vec![Field::new("role", DataType::Utf8, true), json_field("content")]);
    let roles: StringArray = contents.iter().map(|_| Some("\"user\"")).collect();
    let texts: StringArray = contents.iter().copied().collect();
    let messages = StructArray::new(fields.clone(), vec![Arc::new(roles) as ArrayRef, Arc::new(texts)], None);
    let item = Arc::new(Field::new("item", DataType::Struct(fields), true));
    let one_list = OffsetBuffer::from_lengths([contents.len()]);
    let lists = ListArray::new(item, one_list, Arc::new(messages), None);
    let schema = Arc::new(Schema::new(vec![Field::new("messages", lists.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(lists)]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [parquet, arrow] = ["d.parquet", "d.arrow"].map(|name| dir.path().join(name));
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&parquet).unwrap(), schema.clone(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let mut writer = StreamWriter::try_new(std::fs::File::create(&arrow).unwrap(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    [parquet, arrow].map(|path| Table::open_in_this_process(&path))
}

#[test]
fn json_inside_of_lists_and_structs_is_read_as_its_value() {
    let contents = [Some(r#""a""#), Some(r#" [{"type": "text", "text": "\"b\""}] "#), None, Some("null"), Some("7")];
    let values = [json!("a"), json!([{"type": "text", "text": "\"b\""}]), json!(null), json!(null), json!(7)];
    for table in open_lists(&contents) {
        let messages = table.unwrap().value(0).unwrap()["messages"].clone();
        // A text that is not marked as JSON stays text.
        let want: Vec<Value> = values.iter().map(|value| json!({"role": "\"user\"", "content": value})).collect();
        assert_eq!(messages, Value::Array(want));
    }
    for (bad, what) in [("a", "is not JSON: "), ("[184467440737095516160]", "which does not fit in 64 bits")] {
        for table in open_lists(&[Some("1"), Some(bad)]) {
            let error = table.unwrap_err().to_string();
            assert!(error.contains(": row 1: messages: ") && error.contains(what), "{error}");
        }
    }
}

/// Tests files that the library `datasets` wrote. In them, `content` is sometimes a text and sometimes a list of
/// parts.
#[test]
fn json_of_datasets_is_read_as_its_value() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/json");
    let message = |role: &str, content: Value| json!({"role": role, "content": content});
    let parts = json!([{"type": "image", "image": "a.png"}, {"type": "text", "text": "What color?"}]);
    let mixed = [
        json!([message("user", parts), message("assistant", json!("Green."))]),
        json!([message("user", json!("Say hi")), message("assistant", json!("Hi."))]),
    ];
    let text = |text: &str| json!([{"type": "text", "text": text}]);
    let lists = [
        json!([message("user", json!("Hi")), message("assistant", text("Yes"))]),
        json!([message("user", text("Bye")), message("assistant", json!("No"))]),
    ];
    for (name, rows) in [
        ("mixed_parts.parquet", &mixed),
        ("mixed_parts.arrow", &mixed),
        ("list_of_json.parquet", &lists),
        ("json_messages.arrow", &lists),
    ] {
        let table = Table::open_in_this_process(&golden.join(name)).unwrap();
        for (i, messages) in rows.iter().enumerate() {
            assert_eq!(&table.value(i).unwrap()["messages"], messages, "{name}");
        }
    }
}
