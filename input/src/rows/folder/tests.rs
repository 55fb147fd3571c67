use super::*;
use crate::error::Kind;
use crate::rows::Table;

/// Creates a folder with one row per file. The row holds the file's name.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{{\"file\": \"{name}\"}}\n")).unwrap();
    }
    dir
}

/// Reads the data set `DIR` + `rest` and returns the file names in its rows.
fn read(dir: &Path, rest: &str) -> Result<Vec<String>> {
    let table = Table::open(Path::new(&format!("{}{rest}", dir.display())))?;
    Ok((0..table.len()).map(|row| table.value(row).unwrap()["file"].as_str().unwrap().to_string()).collect())
}

fn refusal(dir: &Path, rest: &str) -> String {
    let e = read(dir, rest).unwrap_err().to_string();
    assert!(e.starts_with(&dir.display().to_string()) && !e.contains('\n'), "{e}");
    e.replace(&dir.display().to_string(), "DIR")
}

#[test]
fn names_say_the_split() {
    for (files, rest, wanted) in [
        (
            &[
                "data/train-00001-of-00002.jsonl",
                "data/train-00000-of-00002.jsonl",
                "data/test-00000-of-00001.jsonl",
                "extra.json",
            ][..],
            "",
            &["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"][..],
        ),
        (&["data/my_split-00000-of-00001.jsonl"], "@my_split", &["data/my_split-00000-of-00001.jsonl"]),
        (&["train.jsonl", "test.jsonl", "val.jsonl"], "", &["train.jsonl"]),
        (&["train.jsonl", "test.jsonl", "val.jsonl"], "@validation", &["val.jsonl"]),
        (&["my-train_2.json", "eval.json"], "@test", &["eval.json"]),
        (&["train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"], "@train", &["train/a.jsonl", "train/b.jsonl"]),
        (&["b.jsonl", "a.jsonl", ".hidden.jsonl", "dataset_infos.json", "x.txt"], "", &["a.jsonl", "b.jsonl"]),
        (&["contest.jsonl", "trained.jsonl"], "", &["contest.jsonl", "trained.jsonl"]),
    ] {
        let dir = folder(files);
        assert_eq!(read(dir.path(), rest).unwrap(), wanted, "{files:?}{rest}");
    }
}

#[test]
fn configurations_of_the_readme_come_first() {
    let files = ["a/x1.jsonl", "a/x2.jsonl", "b/y.jsonl", "train.jsonl", "c/train.jsonl", "c/test.jsonl"];
    let dir = folder(&files);
    let card = [
        "---\nlicense: mit\nconfigs:",
        "- config_name: en\n  data_files:\n  - split: train\n    path: a/x*.jsonl",
        "  - split: test\n    path:\n    - b/y.jsonl",
        "- config_name: de\n  data_files: \"**/y.jsonl\"",
        "- config_name: dir\n  data_dir: c",
        "- config_name: map\n  data_files:\n    train: [./a/x2.jsonl, a/x1.jsonl]",
        "- config_name: none\n  data_files: z*.jsonl\n---\n# Title\n",
    ];
    let card = card.join("\n");
    std::fs::write(dir.path().join("README.md"), &card).unwrap();
    for (rest, wanted) in [
        ("#en", &["a/x1.jsonl", "a/x2.jsonl"][..]),
        ("#en@test", &["b/y.jsonl"]),
        ("#de@train", &["b/y.jsonl"]),
        ("#dir@test", &["c/test.jsonl"]),
        ("#map", &["a/x2.jsonl", "a/x1.jsonl"]),
    ] {
        assert_eq!(read(dir.path(), rest).unwrap(), wanted, "{rest}");
    }
    for (rest, wanted) in [
        ("", "DIR: has several configurations: en, de, dir, map, none; choose one: DIR#en"),
        ("#fr", "DIR: has no configuration fr; it has en, de, dir, map, none"),
        ("#en@dev", "DIR: has no split dev; it has test, train; choose one: DIR@test"),
        ("#none", "DIR: configuration none: no data file matches z*.jsonl; correct its README.md"),
    ] {
        assert_eq!(refusal(dir.path(), rest), wanted);
    }
    std::fs::write(dir.path().join("README.md"), card.replace("config_name: de", "config_name: default")).unwrap();
    assert_eq!(read(dir.path(), "").unwrap(), ["b/y.jsonl"]);
    std::fs::write(dir.path().join("README.md"), "---\nconfigs: 3\n---\n").unwrap();
    let e = read(dir.path(), "").unwrap_err().to_string();
    assert!(e.contains("README.md: has `configs` that are not a list; "), "{e}");
    std::fs::write(dir.path().join("README.md"), "---\na: [\n---\n").unwrap();
    let e = read(dir.path(), "").unwrap_err().to_string();
    assert!(e.contains("README.md: has front matter that is not YAML") && !e.contains('\n'), "{e}");
    // If README.md lists no configurations, the file names determine the splits.
    std::fs::write(dir.path().join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    assert_eq!(read(dir.path(), "@test").unwrap(), ["c/test.jsonl"]);
}

#[test]
fn unclear_folders_are_refused_with_what_they_have() {
    let dir = folder(&["test.jsonl", "val.jsonl"]);
    assert_eq!(refusal(dir.path(), ""), "DIR: has no split train; it has test, validation; choose one: DIR@test");
    let dir = folder(&["train.jsonl", "train.json"]);
    assert!(refusal(dir.path(), "").starts_with("DIR: has files of several formats for one split: json, jsonl; "));
    let dir = folder(&["a.csv"]);
    assert!(refusal(dir.path(), "").starts_with("DIR: has no data files"));
    assert!(refusal(dir.path(), "#x").starts_with("DIR: has no configuration x"));
    let missing = Table::open(&dir.path().join("none@train")).unwrap_err();
    assert!(missing.kind == Kind::Io, "{missing}");
}

#[test]
fn an_existing_name_wins() {
    let dir = folder(&["d@x/train.jsonl", "d@x/test.jsonl", "d#y@z.jsonl"]);
    assert_eq!(read(dir.path(), "/d@x").unwrap(), ["d@x/train.jsonl"]);
    assert_eq!(read(dir.path(), "/d@x@test").unwrap(), ["d@x/test.jsonl"]);
    assert_eq!(read(dir.path(), "/d#y@z.jsonl").unwrap(), ["d#y@z.jsonl"]);
}

#[test]
fn saved_data_sets_are_read() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data");
    let expected: Value = serde_json::from_slice(&std::fs::read(golden.join("expected.json")).unwrap()).unwrap();
    let row = |i: usize| {
        let mut row = expected["datasets"][i].clone();
        row.as_object_mut().unwrap().shift_remove("video");
        row
    };
    for (rest, rows) in [("saved", &[1, 2, 4, 5][..]), ("saved_splits", &[1, 2]), ("saved_splits@test", &[4])] {
        let table = Table::open(&golden.join(rest)).unwrap();
        assert_eq!(table.len(), rows.len());
        for (i, &wanted) in rows.iter().enumerate() {
            assert_eq!(table.value(i).unwrap(), row(wanted), "{rest} {i}");
        }
    }
    let table = Table::open(&golden.join("saved")).unwrap();
    assert!(table.location(3).ends_with("data-00001-of-00002.arrow: row 2"), "{}", table.location(3));
    assert_eq!(table.line_number(3), 2);
    let e = Table::open(&golden.join("saved_splits@dev")).unwrap_err().to_string();
    assert!(e.contains("has no split dev; it has test, train; "), "{e}");
    let e = Table::open(&golden.join("saved@train")).unwrap_err().to_string();
    assert!(e.contains("without splits"), "{e}");
}

/// Reading a damaged Arrow file returns an error or rows, and never panics.
#[test]
fn damaged_arrow_files_are_refused() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/saved");
    let content = std::fs::read(golden.join("data-00000-of-00002.arrow")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.arrow");
    let read = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        match Table::open(&path) {
            Ok(table) => (0..table.len()).all(|row| table.value(row).is_ok()),
            Err(e) => {
                let e = e.to_string();
                assert!(e.contains("d.arrow") && e.contains("; ") && !e.contains('\n'), "{e}");
                false
            }
        }
    };
    assert!(read(&content));
    for length in (4..content.len()).step_by(5) {
        read(&content[..length]);
    }
    for at in 0..content.len() {
        let mut content = content.clone();
        content[at] ^= 1 << (at % 8);
        read(&content);
    }
}
