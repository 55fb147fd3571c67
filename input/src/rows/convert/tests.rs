use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::error::Kind;

fn table(rows: &[Value]) -> Table {
    Table::parse(Path::new("in.json"), Value::from(rows.to_vec()).to_string()).unwrap()
}

fn rows(path: &Path) -> Vec<Value> {
    let table = Table::open(path).unwrap();
    (0..table.len()).map(|row| table.value(row).unwrap()).collect()
}

/// Converts rows to Parquet and reads them again.
fn through_parquet(given: &[Value]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.parquet");
    convert(&table(given), &path, false).unwrap();
    rows(&path)
}

#[test]
fn columns_have_types_where_all_values_agree() {
    let given = [
        json!({"i": 1, "u": 1, "f": 0.5, "t": "a", "l": [1, null], "o": {"x": [true], "y": null}, "m": 1, "n": null}),
        json!({"i": -1, "u": u64::MAX, "f": -0.0, "t": null, "l": [], "o": {"y": "z", "x": []}, "m": "1", "n": null}),
    ];
    let mut columns = shape::ColumnTypes::default();
    given.iter().for_each(|row| columns.add_row(row.as_object().unwrap()));
    let types: Vec<String> = columns.finish().iter().map(|c| arrays::arrow_type(&c.value_type).to_string()).collect();
    let simple = ["Int64", "UInt64", "Float64", "Utf8"];
    assert_eq!(types[..4], simple);
    assert!(types[4].starts_with("List(") && types[5].starts_with("Struct("), "{types:?}");
    assert_eq!(types[6..], ["Utf8", "Utf8"]);
    assert_eq!(through_parquet(&given), given);
}

#[test]
fn values_without_a_common_type_stay_the_same() {
    let given = [
        json!({"a": 1, "b": {}, "c": [1, "x"], "d": null, "": "empty name", "e.f": -1}),
        json!({"a": 1.0, "b": null, "d": 7, "e.f": u64::MAX}),
        json!({"b": {"k": [{"k": {}}]}, "c": null, "g": "last"}),
    ];
    assert_eq!(through_parquet(&given), given);
    // In a column with a type, a missing field stays missing.
    let given = [json!({"a": 1}), json!({"b": [2]}), json!({})];
    assert_eq!(through_parquet(&given), given);
}

#[test]
fn nothing_is_overwritten_and_failures_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    let given = table(&[json!({"a": 1})]);
    for name in ["a.json", "a.jsonl", "a.ndjson", "a.PARQUET"] {
        let path = dir.path().join(name);
        std::fs::write(&path, "before").unwrap();
        let e = convert(&given, &path, false).unwrap_err().to_string();
        assert!(e.ends_with("exists; choose another name, or give --overwrite"), "{e}");
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        convert(&given, &path, true).unwrap();
        assert_eq!(rows(&path), [json!({"a": 1})], "{name}");
    }
    let before = files();
    let e = convert(&given, &dir.path().join("a.csv"), false).unwrap_err().to_string();
    assert!(e.contains("names no format") && e.contains(".parquet"), "{e}");
    let lines = Table::parse(Path::new("d.jsonl"), "{\"a\": 1}\n[1]\n".into()).unwrap();
    let e = convert(&lines, &dir.path().join("b.parquet"), false).unwrap_err().to_string();
    assert!(e.starts_with("d.jsonl:2: is not an object; "), "{e}");
    let e = convert(&table(&[json!({})]), &dir.path().join("b.parquet"), false).unwrap_err().to_string();
    assert!(e.contains("has no columns: every row is an empty object"), "{e}");
    let e = convert(&given, &dir.path().join("none/b.json"), false).unwrap_err();
    assert!(e.kind == Kind::Io, "{e}");
    assert_eq!(files(), before);
}

/// A full disk gives an error of the kind `StorageFull`, although the writer of the format wraps this error in its
/// own.
#[test]
fn full_disk_keeps_its_kind() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let e = write_parquet(&table(&[json!({"a": 1})]), &mut Full).unwrap_err();
    assert!(matches!(&e, WriteError::Io(e) if e.kind() == std::io::ErrorKind::StorageFull), "{e:?}");
}

/// Generates any JSON value.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no NaN", |x| x.is_finite()).prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[ab]{0,1}", inner, 0..3).prop_map(Value::from_iter),
        ]
    })
}

/// Generates the values of a column: either all of one type, as in most files, or of mixed types.
fn column() -> impl Strategy<Value = BoxedStrategy<Value>> {
    prop_oneof![
        Just(any::<i64>().prop_map(Value::from).boxed()),
        Just("\\PC{0,6}".prop_map(Value::from).boxed()),
        Just(prop::collection::vec("[a-c]", 0..3).prop_map(Value::from).boxed()),
        Just(
            prop::collection::vec(prop::option::of(("[a-c]", any::<bool>())), 0..3)
                .prop_map(|v| v.into_iter().map(|o| o.map(|(a, b)| json!({"a": a, "b": b}))).collect())
                .boxed()
        ),
        Just(any_value().boxed()),
    ]
}

proptest! {
    /// Rows keep their values through the conversions from JSON to Parquet, to JSONL and back to JSON.
    #[test]
    fn no_format_changes_a_value(
        given in prop::collection::vec(column(), 1..4).prop_flat_map(|columns| {
            let row: Vec<_> = columns.into_iter().map(prop::option::of).collect();
            prop::collection::vec(row, 1..8)
        }),
        rest in prop::collection::vec(prop::collection::btree_map("\\PC{0,3}", any_value(), 0..3), 1..4),
    ) {
        let named = given.into_iter().map(|row| {
            let fields = row.into_iter().enumerate().filter_map(|(i, v)| Some((format!("c{i}"), v?)));
            fields.collect::<Value>()
        });
        let mut given: Vec<Value> = named.collect();
        given.extend(rest.into_iter().map(Value::from_iter));
        given.push(json!({"last": 1}));
        let dir = tempfile::tempdir().unwrap();
        let names = ["a.parquet", "b.jsonl", "c.parquet", "d.json"].map(|name| dir.path().join(name));
        convert(&table(&given), &names[0], false).unwrap();
        for pair in names.windows(2) {
            prop_assert_eq!(&rows(&pair[0]), &given);
            convert(&Table::open(&pair[0]).unwrap(), &pair[1], false).unwrap();
        }
        prop_assert_eq!(&rows(&names[3]), &given);
    }
}
