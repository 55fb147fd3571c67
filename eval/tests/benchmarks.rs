//! The benchmarks of grounding and long video: published files become the expected questions, predictions get the scores
//! that the benchmarks' own scorers gave (`tests/golden/bench`), and both published layouts of a benchmark are read.

use std::fs;
use std::path::{Path, PathBuf};

use reel_eval::{Extraction, LoadedBenchmark, Prediction, Task, load_benchmark, score_benchmark};
use reel_samples::rewards::Recipe;
use serde_json::{Map, Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/bench").join(name)
}

fn expected() -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(golden("expected.json")).unwrap()).unwrap()
}

fn task(name: &str) -> Task {
    Task::from_names(name).unwrap().remove(0)
}

/// The numbers and texts in a solution, in the order of keys.
fn truth(solution: &Value) -> Vec<Value> {
    fn leaves(value: &Value, all: &mut Vec<Value>) {
        match value {
            Value::Object(map) => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort();
                keys.into_iter().for_each(|key| leaves(&map[key], all));
            }
            Value::Array(list) => list.iter().for_each(|entry| leaves(entry, all)),
            Value::Number(number) => all.push(json!(number.as_f64())),
            other => all.push(other.clone()),
        }
    }
    let text = solution.as_str().unwrap().strip_prefix("<answer>").unwrap().strip_suffix("</answer>").unwrap();
    let mut all = Vec::new();
    leaves(&serde_json::from_str(text).unwrap_or_else(|_| json!(text)), &mut all);
    all
}

#[test]
fn published_files_become_the_expected_questions() {
    for (name, want) in expected() {
        let task = task(&name);
        let loaded = load_benchmark(&task, &golden(&name).join("data"), None, false).unwrap();
        let wanted = want["rows"].as_array().unwrap();
        assert_eq!(loaded.rows.len(), wanted.len(), "{name}");
        let rows: Vec<Map<String, Value>> = loaded.rows.iter().map(|row| row.to_json(&task, Recipe::Paper)).collect();
        for (row, want) in rows.iter().zip(wanted) {
            assert_eq!(row["problem_type"], want["problem_type"], "{name}");
            assert_eq!(truth(&row["solution"]), truth(&want["solution"]), "{name}: {row:?}");
            for key in ["options", "part"] {
                assert!(want.get(key).is_none_or(|want| *want == row[key]), "{name} {key}: {row:?}");
            }
            let sorted = |row: Option<&Value>| {
                let list = row.and_then(Value::as_array).into_iter().flatten();
                let mut all: Vec<String> = list.map(|category| category.as_str().unwrap().into()).collect();
                all.sort();
                all
            };
            if let Some(categories) = want.get("categories") {
                assert_eq!(sorted(row.get("categories")), sorted(Some(categories)), "{name}");
            }
        }
        let left_out = loaded.left_out.values().sum::<usize>();
        // The count of the golden data has no questions without a location (NExT-GQA).
        let without_location = loaded.left_out.get("question without a location").copied().unwrap_or(0);
        assert_eq!(json!(left_out - without_location), want["left_out"], "{name}");
        // Every row has the columns that its score needs.
        let predictions: Vec<Prediction> = rows
            .into_iter()
            .map(|mut row| {
                row.insert("output".into(), json!(""));
                Prediction::from_json_line(&Value::Object(row).to_string()).unwrap()
            })
            .collect();
        score_benchmark(&task, &predictions, Extraction::Tags).unwrap();
    }
}

#[test]
fn reference_prompts_end_as_those_of_the_harness() {
    for (name, want) in expected() {
        let Some(end) = want["prompt_ends"].as_str() else { continue };
        let task = task(&name).with_reference_prompt().unwrap();
        let loaded = load_benchmark(&task, &golden(&name).join("data"), None, false).unwrap();
        for row in &loaded.rows {
            let row = row.to_json(&task, Recipe::Paper);
            let content = row["prompt"][0]["content"].as_array().unwrap();
            let text = content.last().unwrap()["text"].as_str().unwrap();
            assert!(text.trim_end().ends_with(end.trim_end()), "{name}: {text}");
            assert!(
                row["options"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|option| { text.contains(option.as_str().unwrap().split_once(' ').unwrap().1) })
            );
        }
    }
}

#[test]
fn scores_equal_those_of_the_harness() {
    for (name, want) in expected() {
        let task = task(&name);
        for (kind, extraction) in [("plain", Extraction::Tags), ("raw", Extraction::Reference)] {
            let text = fs::read_to_string(golden(&name).join(format!("{kind}.jsonl"))).unwrap();
            let rows: Vec<Prediction> = text.lines().map(|line| Prediction::from_json_line(line).unwrap()).collect();
            let report = json!(score_benchmark(&task, &rows, extraction).unwrap());
            let near =
                |got: &Value, want: &Value| got.as_f64().is_some_and(|got| (got - want.as_f64().unwrap()).abs() < 1e-9);
            let want = &want[kind];
            for key in ["n", "overall", "task_mean", "mean_acc"] {
                assert!(want.get(key).is_none_or(|want| near(&report[key], want)), "{name} {kind} {key}: {report}");
            }
            for (category, want) in want["by_category"].as_object().into_iter().flatten() {
                let got = &report["by_category"][category];
                assert!(
                    got["n"] == want["n"] && near(&got["score"], &want["score"]),
                    "{name} {kind} {category}: {got}"
                );
            }
            for (metric, want) in want["metrics"].as_object().into_iter().flatten() {
                let got = &report["metrics"][metric];
                assert!(near(&got["score"], want), "{name} {kind} {metric}: {got}, not {want}");
            }
        }
    }
}

fn load(benchmark: &str, files: &[(&str, String)]) -> reel_eval::Result<LoadedBenchmark> {
    let folder = tempfile::tempdir().unwrap();
    for (file, content) in files {
        fs::write(folder.path().join(file), content).unwrap();
    }
    load_benchmark(&task(benchmark), folder.path(), None, false)
}

/// Reads a row in a published layout and returns its question, options, answer, categories and columns for the score.
fn read(benchmark: &str, layout: &str, file: &str, row: &Value) -> Value {
    let loaded = load(benchmark, &[(file, format!("{row}\n"))]).unwrap();
    assert_eq!(loaded.layout, layout, "{benchmark}");
    let row = &loaded.rows[0];
    json!([row.question, row.options, row.answer, row.categories, row.scored])
}

#[test]
fn other_published_layouts_give_the_same_questions() {
    let none: [&str; 0] = [];
    let lvb = json!({"video_id": "v", "question": "Who?", "option0": "he", "option1": "she", "option2": "N/A",
        "option3": "N/A", "option4": "N/A", "correct_choice": 1, "duration_group": 600, "question_category": "S2E",
        "id": "v_0", "video_path": "v.mp4", "subtitle_path": "v_en.json", "duration": 500.0});
    let want = json!(["Who?", ["A. he", "B. she"], "B", ["600", "S2E"], {}]);
    assert_eq!(read("longvideobench", "lmms-eval", "rows.jsonl", &lvb), want);
    let lv = json!({"uid": "7", "question": "Who?", "options": ["he", "she"], "answer": "A",
        "question_type": ["reasoning", "summarization"], "video_path": "v.mp4"});
    let want = json!(["Who?", ["A. he", "B. she"], "A", ["reasoning", "summarization"], {}]);
    assert_eq!(read("lvbench", "lmms-eval", "rows.jsonl", &lv), want);
    let mlvu = json!({"video_name": "1_plotQA/v.mp4", "question": "Who?\n(A) he\n(B) she", "answer": "B",
        "task_type": "plotQA", "duration": 9.0});
    assert_eq!(
        read("mlvu", "lmms-eval", "rows.jsonl", &mlvu),
        json!(["Who?", ["A. he", "B. she"], "B", ["plotQA"], {}])
    );
    for timestamp in [json!([24.3, 30.4]), json!("[24.3, 30.4]")] {
        let charades = json!({"video": "A.mp4", "caption": "person sits down", "timestamp": timestamp});
        let want = json!(["person sits down", none, "{\"time\":[24.3,30.4]}", none, {}]);
        assert_eq!(read("charadessta", "lmms-eval", "rows.jsonl", &charades), want);
    }
    // The solution of EasyVideoR1's file has a placeholder instead of <answer> tags.
    let easy = json!([{"data_type": "video", "data_source": "charades_sta", "problem_type": "temporal grounding",
        "path": "A.mp4", "problem": "person sits down.", "problem_id": 0, "options": [],
        "solution": "<think>{\"time\": [24.3, 30.4], \"boxes\": {}}</think><[placeholder]>"}]);
    let want = json!(["person sits down", none, "{\"time\":[24.3,30.4]}", none, {}]);
    assert_eq!(read("charadessta", "easyvideor1", "charades_sta.json", &easy), want);
    let timelens = json!({"video_path": "v.mp4", "query": "He sits.", "span": [[1.5, 3.0]], "duration": 20.0});
    let want = json!(["He sits.", none, "{\"time\":[1.5,3.0]}", none, {"duration": 20.0}]);
    assert_eq!(read("activitynettvg", "timelens", "rows.jsonl", &timelens), want);
    let videos = json!({"v": {"duration": 20.0, "spans": [[1.5, 3.0]], "queries": ["He sits."]}});
    assert_eq!(read("activitynettvg", "timelens-videos", "activitynet-timelens.json", &videos), want);
    let gqa = json!([{"id": "1_8", "video": "11/1.mp4", "question": "Who?", "options": ["(A) he", "(B) she"], "duration": 30,
        "glue": [[2.0, 4.0], [7.0, 9.0]], "type": "TP", "answer": "(B)"}]);
    let want =
        json!(["Who?", ["A. he", "B. she"], "B", ["TN"], {"duration": 30, "evidence": [[2.0, 4.0], [7.0, 9.0]]}]);
    assert_eq!(read("nextgqa", "videochat-r1", "nextgqa_test.json", &gqa), want);
    for (name, source) in [("longvideoreason", "LongVideo-Reason"), ("lvbench", "LVBench"), ("mlvu", "MLVU")] {
        let easy = json!([{"data_type": "video", "data_source": source, "problem_type": "multiple choice",
            "path": "./v.mp4", "problem": "Who?", "problem_id": 1, "options": ["A. he", "B. she"],
            "solution": "<answer>B</answer>"}]);
        let want = json!(["Who?", ["A. he", "B. she"], "B", none, {}]);
        assert_eq!(read(name, "preprocessed", &format!("{name}.json"), &easy), want);
    }
}

#[test]
fn broken_annotations_name_file_and_column() {
    let data = |name: &str, file: &str| fs::read_to_string(golden(name).join("data").join(file)).unwrap();
    let csv = data("nextgqa", "test.csv");
    for (name, file, text, words) in [
        (
            "lvbench",
            "video_info.meta.jsonl",
            data("lvbench", "video_info.meta.jsonl").replacen("\"answer\"", "\"a\"", 1),
            "qa.answer",
        ),
        (
            "charadessta",
            "charades_sta_test.txt",
            data("charadessta", "charades_sta_test.txt").replacen("##", "#", 1),
            ":1: ",
        ),
        ("charadessta", "charades_sta_test.txt", "A 9.0 1.0##a dog.\n".into(), "is not a start and an end"),
        (
            "activitynettvg",
            "val_2.json",
            data("activitynettvg", "val_2.json").replace("\"timestamps\"", "\"t\""),
            "timestamps",
        ),
        (
            "activitynettvg",
            "val_2.json",
            "{\"v\": {\"duration\": 1, \"timestamps\": [[0, 1]], \"sentences\": []}}".into(),
            "sentences: has 0 entries, but timestamps has 1",
        ),
        ("nextgqa", "test.csv", csv.replacen(",CW,", ",CW,more,", 1), "is not a table in CSV"),
        ("nextgqa", "test.csv", csv, "gsub_test.json"),
        (
            "vstar",
            "V_STaR_test.json",
            data("vstar", "V_STaR_test.json").replacen("\"xmin\": 232", "\"xmin\": \"x\"", 1),
            "bboxes: is not a list of boxes",
        ),
    ] {
        let e = load(name, &[(file, text)]).unwrap_err().to_string();
        assert!(e.contains(file.split('.').next().unwrap()) || words.contains(".json"), "{name}: {e}");
        assert!(e.contains(words) && !e.contains('\n'), "{name}: {e}");
    }
}

#[test]
fn infinite_means_are_null_and_unknown_groups_are_refused() {
    let row = |part: &str, kind: &str, solution: Value, output: &str| {
        let mut row = json!({"problem_type": kind, "solution": format!("<answer>{solution}</answer>"), "group": "v",
            "part": part, "output": format!("<answer>{output}</answer>")});
        if part == "what" {
            row["judge"] = json!(3);
        }
        Prediction::from_json_line(&row.to_string()).unwrap()
    };
    let boxes = json!({"boxes": {"1": [0, 0, 4, 4]}});
    let mut rows = vec![row("what", "open-ended", json!("x"), "x")];
    for chain in 1..=2 {
        rows.push(row(&format!("when {chain}"), "temporal grounding", json!({"time": [1, 3]}), "1 to 2"));
        // Of several boxes in a second, the best counts.
        let several = r#"{"1": [[0, 0, 1, 1], [0, 0, 4, 2]]}"#;
        rows.push(row(&format!("where {chain}"), "tracking", boxes.clone(), several));
    }
    let report = json!(score_benchmark(&task("vstar"), &rows, Extraction::Tags).unwrap());
    let metric = |name: &str| report["metrics"][name]["score"].clone();
    assert_eq!((metric("m_tiou_1"), metric("m_viou_2"), metric("ap@0.5_1")), (json!(0.5), json!(0.5), json!(1.0)));
    assert_eq!((metric("acc"), metric("lgm_1"), metric("mlgm")), (json!(1.0), Value::Null, Value::Null));
    assert!((metric("mam").as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-12);
    let without_judge = json!(score_benchmark(&task("vstar"), &rows[1..], Extraction::Tags).unwrap());
    assert_eq!(
        (&without_judge["metrics"]["acc"], &without_judge["metrics"]["am_1"]["score"]),
        (&Value::Null, &Value::Null)
    );

    let mut other = json!({"problem_type": "multiple choice", "solution": "<answer>A</answer>", "output": "A", "group": "1",
        "group_type": "logic", "group_structure": "[1, 2]", "level": 1});
    let e = |row: &Value| {
        let rows = [Prediction::from_json_line(&row.to_string()).unwrap()];
        score_benchmark(&task("videommev2"), &rows, Extraction::Tags).unwrap_err().to_string()
    };
    assert!(e(&other).contains("group 1 has the unknown type `logic` or structure `[1, 2]`"), "{}", e(&other));
    other["group_type"] = Value::Null;
    assert!(e(&other).starts_with("group_type: "));
}
