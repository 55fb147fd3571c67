use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

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
    assert!(matches!(e, crate::DataError::Io(_)) && e.to_string().contains("there is no such file"), "{e}");
}

proptest! {
    /// A JSON list and JSONL lines with the same rows are parsed to the same rows, whatever characters they contain.
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
