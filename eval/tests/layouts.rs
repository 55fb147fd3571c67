//! Reads each benchmark in each layout in which it is published. The rows are made up; their columns, spellings and
//! folders are those of the publications that `eval/tasks/*.toml` name.

use std::fs;
use std::path::Path;

use reel_eval::{BenchmarkRow, LoadedBenchmark, Result, Task, load_benchmark};
use serde_json::{Value, json};

fn task(name: &str) -> Task {
    Task::from_names(name).unwrap().remove(0)
}

fn write(folder: &Path, file: &str, content: impl AsRef<[u8]>) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Loads a benchmark from files that are given as (name, content).
fn load(benchmark: &str, files: &[(&str, String)], videos: &[&str]) -> Result<LoadedBenchmark> {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(file, content)| write(folder.path(), file, content));
    videos.iter().for_each(|video| write(folder.path(), video, ""));
    load_benchmark(&task(benchmark), folder.path(), None, false)
}

fn list(rows: &[Value]) -> String {
    Value::Array(rows.to_vec()).to_string()
}

/// Returns the kind, answer, category and video of a row.
fn facts(row: &BenchmarkRow) -> (&str, &str, &str, &str) {
    let video = row.video.as_ref().map_or("", |clip| &clip.path);
    (row.kind.name(), &row.answer, row.categories.first().map_or("", String::as_str), video)
}

#[test]
fn preprocessed_files_of_the_papers_have_one_layout() {
    let path = "./Evaluation/MMVU/videos/Civil_Engineering/7.mp4";
    let mut row = json!({
        "problem_id": 1, "problem": "Which?", "data_type": "video", "problem_type": "multiple choice",
        "options": ["A. left", "B. right"], "solution": "<answer>B</answer>", "path": path,
        "original_question_type": "multiple-choice", "process": "", "data_source": "",
    });
    let loaded =
        load("mmvu", &[("eval_mmvu.json", list(&[row.clone()]))], &["MMVU/videos/Civil_Engineering/7.mp4"]).unwrap();
    assert_eq!(loaded.layout, "videorft");
    let want = ("multiple choice", "B", "Engineering", "MMVU/videos/Civil_Engineering/7.mp4");
    assert_eq!(facts(&loaded.rows[0]), want);
    // The media folder may also be the benchmark's own folder (here `MMVU`).
    let loaded =
        load("mmvu", &[("eval_mmvu.json", list(&[row.clone()]))], &["videos/Civil_Engineering/7.mp4"]).unwrap();
    assert_eq!(facts(&loaded.rows[0]).3, "videos/Civil_Engineering/7.mp4");
    // MVBench's file has the same columns as MMVU's. The path in the row shows that the row belongs to MMVU.
    let e = load("mvbench", &[("eval_mvbench.json", list(&[row.clone()]))], &[]).unwrap_err().to_string();
    let wanted = "eval_mvbench.json:1: path: shows that the row belongs to MMVU (multiple choice), not to MVBench";
    assert!(e.contains(wanted), "{e}");
    row["path"] = json!("./mmvu/7.mp4");
    row["data_source"] = json!("tempcompass");
    let e = load("mmvu", &[("eval_mmvu.json", list(&[row.clone()]))], &[]);
    assert!(e.is_ok(), "a row in the folder of its own benchmark is accepted");
    row["path"] = json!("./7.mp4");
    let e = load("mmvu", &[("eval_mmvu.json", list(&[row]))], &[]).unwrap_err().to_string();
    assert!(e.contains("data_source: shows that the row belongs to TempCompass"), "{e}");
}

#[test]
fn vsibench_has_ten_kinds_of_questions() {
    let row = |kind: &str, options: Value, truth: &str| {
        json!({"id": 7, "dataset": "scannet", "scene_name": "scene0999_01", "question_type": kind,
            "question": "How many stools?", "ground_truth": truth, "options": options})
    };
    let letters = json!(["A. left", "B. right", "C. back"]);
    let number = ["object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation"];
    let letter = [
        "object_rel_distance",
        "object_rel_direction_easy",
        "object_rel_direction_medium",
        "object_rel_direction_hard",
        "route_planning",
        "obj_appearance_order",
    ];
    let rows: Vec<Value> = number
        .iter()
        .map(|kind| row(kind, Value::Null, "1.8"))
        .chain(letter.iter().map(|kind| row(kind, letters.clone(), "C")))
        .collect();
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let loaded = load("vsibench", &[("vsibench/test.jsonl", text)], &[]).unwrap();
    assert_eq!(loaded.rows.len(), 10);
    for (row, kind) in loaded.rows.iter().zip(number.iter().chain(&letter)) {
        let want = if number.contains(kind) { ("regression", "1.8") } else { ("multiple choice", "C") };
        assert_eq!(facts(row), (want.0, want.1, *kind, "scannet/scene0999_01.mp4"));
    }
}

#[test]
fn videommmu_has_three_tracks_and_open_questions() {
    let row = |id: &str, kind: Value, options: Value, answer: &str| {
        json!({"id": id, "question": "Which chord is marked in <image 1>?", "options": options, "answer": answer,
            "question_type": kind})
    };
    let entries = json!({"Adaptation": {
        "0": row("validation_Art_Theory_42", json!("multiple-choice"), json!(["major", "minor"]), "B"),
        "1": row("dev_Math_3", json!("open"), json!([]), "2.5"),
        "2": row("dev_Math_4", json!("open"), json!([]), "[\"2\", \"3\"]"),
        "3": row("new_Finance_1", Value::Null, json!(["a", "b", "c"]), "C"),
    }});
    let videos = ["Art/validation_Art_Theory_42.mp4", "new_Finance_1.mp4"];
    let loaded = load("videommmu", &[("data/adaptation_video.json", entries.to_string())], &videos).unwrap();
    let got: Vec<_> = loaded.rows.iter().map(facts).collect();
    assert_eq!(
        got,
        [
            ("multiple choice", "B", "Adaptation", "Art/validation_Art_Theory_42.mp4"),
            ("numerical", "2.5", "Adaptation", "Science/dev_Math_3.mp4"),
            ("multiple choice", "C", "Adaptation", "new_Finance_1.mp4"),
        ]
    );
    assert_eq!(
        loaded.left_out.into_iter().collect::<Vec<_>>(),
        [("open question whose answer is not one number".into(), 1)]
    );
    assert!(!loaded.rows[0].question.contains("<image"));
    assert_ne!(loaded.rows[0].id, loaded.rows[1].id);
}

#[test]
fn mmvu_has_options_by_letter_and_videos_by_address() {
    let row = |kind: &str| {
        json!({"id": "validation_3", "video": "https://example.org/resolve/main/videos/Modern_Physics/4.mp4",
            "youtube_url": "", "question_type": kind, "question": "Which?",
            "choices": {"A": "x", "B": "y", "C": "z", "D": "u", "E": "v"}, "answer": "D",
            "metadata": {"subject": "Modern Physics", "textbook": "", "rationale": ""}})
    };
    let loaded = load("mmvu", &[("validation.json", list(&[row("multiple-choice"), row("open-ended")]))], &[]).unwrap();
    assert_eq!(loaded.rows.len(), 1);
    assert_eq!(facts(&loaded.rows[0]), ("multiple choice", "D", "Science", "videos/Modern_Physics/4.mp4"));
    assert_eq!(loaded.rows[0].options[4], "E. v");
    assert_eq!(loaded.left_out["open-ended question"], 1);
}

#[test]
fn mvbench_has_a_file_for_each_task_and_parts_of_videos() {
    let plain = json!({"video": "17.webm", "question": "What happens?", "candidates": ["It closes", "It stays open"],
        "answer": "It stays open"});
    let part = json!({"video": "ABC.mp4", "question": "Next?", "candidates": ["a", "b", "c"], "answer": "c",
        "start": 3.5, "end": 12.0});
    let frames = json!({"video": "show_clip_01", "question": "Why?", "candidates": ["a", "b"], "answer": "a",
        "start": 0.4, "end": 1.0, "fps": 3, "subtitle": ""});
    let files = [
        ("json/action_antonym.json", list(&[plain])),
        ("json/action_sequence.json", list(&[part])),
        ("json/episodic_reasoning.json", list(&[frames])),
    ];
    let videos: Vec<String> = (0..5).map(|i| format!("tvqa/frames_fps3_hq/show_clip_01/{i:05}.jpg")).collect();
    let videos: Vec<&str> = videos.iter().map(String::as_str).collect();
    let loaded = load("mvbench", &files, &videos).unwrap();
    let got: Vec<_> = loaded.rows.iter().map(facts).collect();
    assert_eq!(
        got,
        [
            ("multiple choice", "B", "action_antonym", "ssv2_video/17.webm"),
            ("multiple choice", "C", "action_sequence", "star/Charades_v1_480/ABC.mp4"),
            ("multiple choice", "A", "episodic_reasoning", "tvqa/frames_fps3_hq/show_clip_01"),
        ]
    );
    let clip = loaded.rows[1].video.clone().unwrap();
    assert_eq!((clip.start, clip.end), (Some(3.5), Some(12.0)));
    let clip = loaded.rows[2].video.clone().unwrap();
    assert_eq!((clip.frames.len(), clip.fps), (5, Some(3.0)));
    // Rows of VideoRFT's file have no column for the task; the row number determines the task.
    let row = |i: usize| {
        json!({"problem_id": i + 1, "problem": "Q?", "problem_type": "multiple choice", "options": ["A. x", "B. y"],
            "solution": "<answer>A</answer>", "path": "./Evaluation/MVBench/star/x.mp4"})
    };
    let loaded = load("mvbench", &[("eval_mvbench.json", list(&(0..4000).map(row).collect::<Vec<_>>()))], &[]).unwrap();
    let category = |i: usize| &loaded.rows[i].categories[0];
    assert_eq!([category(0), category(199), category(200)], ["action_antonym", "action_antonym", "action_count"]);
    assert_eq!(category(3999), "unexpected_action");
}

#[test]
fn tempcompass_has_options_in_the_question() {
    let entry = |question: &str, answer: &str| json!({"question": question, "answer": answer});
    let file = |question: &str, answer: &str| json!({"10": {"speed": [entry(question, answer)]}}).to_string();
    let files = [
        (
            "questions/caption_matching.json",
            file("Which?\nCaption A: it sits\nCaption B: it stands", "Caption B: it stands"),
        ),
        ("questions/captioning.json", file("Describe.\nGenerated Caption:", "x")),
        ("questions/multi-choice.json", file("What?\nA. it sits\nB. it stands\nC. it lies", "C. it lies")),
        ("questions/yes_no.json", file("Is it standing?", "no")),
    ];
    let loaded = load("tempcompass", &files, &["videos/10.mp4"]).unwrap();
    let answers: Vec<_> = loaded.rows.iter().map(|row| (facts(row).1, facts(row).2, row.options.len())).collect();
    assert_eq!(answers, [("B", "speed", 2), ("C", "speed", 3), ("B", "speed", 2)]);
    assert_eq!(loaded.rows[1].question, "What?");
    assert_eq!(loaded.left_out.values().sum::<usize>(), 1);
    assert_eq!(facts(&loaded.rows[0]).3, "videos/10.mp4");
}

#[test]
fn videomme_and_videoholmes_have_their_own_columns() {
    let row = json!({"video_id": "901", "duration": "long", "domain": "Knowledge", "sub_category": "s", "url": "",
        "videoID": "AbCdEfGhIjk", "question_id": "901-2", "task_type": "Counting Problem", "question": "How many?",
        "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."], "answer": "D"});
    let loaded = load("videomme", &[("test.jsonl", row.to_string())], &["data/AbCdEfGhIjk.mkv"]).unwrap();
    assert_eq!(facts(&loaded.rows[0]), ("multiple choice", "D", "long", "data/AbCdEfGhIjk.mkv"));
    let row = json!({"video ID": "xyz", "Question ID": 12, "Question Type": "TA", "Question": "Order?\n1\n2",
        "Options": {"A": "1 2", "B": "2 1", "C": "u", "D": "v", "E": "w", "F": "x"}, "Answer": "F", "Explanation": ""});
    let loaded = load("videoholmes", &[("test_Video-Holmes.json", list(&[row]))], &["videos_cropped/xyz.mp4"]).unwrap();
    assert_eq!(facts(&loaded.rows[0]), ("multiple choice", "F", "TA", "videos_cropped/xyz.mp4"));
    assert_eq!((loaded.rows[0].id.as_str(), loaded.rows[0].question.as_str()), ("xyz-12", "Order?\n1\n2"));
}

/// Files on the Hugging Face hub are Parquet, with the same rows as the JSON files.
#[test]
fn parquet_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let parquet = |file: &str, rows: &[Value]| {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let table = reel_input::rows::Table::parse(Path::new("rows.jsonl"), text).unwrap();
        let to = folder.path().join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        reel_input::rows::convert(&table, &to, false).unwrap();
    };
    parquet(
        "videomme/videomme/test-00000-of-00001.parquet",
        &[json!({"video_id": "901", "duration": "short",
        "videoID": "AbC", "question_id": "901-2", "question": "How many?", "options": ["A. 1.", "B. 2."], "answer": "B"})],
    );
    for track in ["Adaptation", "Perception"] {
        let file = format!("videommmu/{track}/test-00000-of-00001.parquet");
        parquet(&file, &[json!({"id": "test_Music_1", "question": "Which?", "options": ["x", "y"], "answer": "A"})]);
    }
    parquet(
        "tempcompass/yes_no/test-00000-of-00001.parquet",
        &[json!({"video_id": "7", "question": "Is it?",
        "answer": "yes", "dim": "order"})],
    );
    let rows = |name: &str| load_benchmark(&task(name), folder.path(), None, false).unwrap().rows;
    assert_eq!(facts(&rows("videomme")[0]), ("multiple choice", "B", "short", "data/AbC.mp4"));
    let tracks = rows("videommmu");
    assert_eq!(tracks.iter().map(|row| facts(row).2).collect::<Vec<_>>(), ["Adaptation", "Perception"]);
    assert_eq!(facts(&tracks[1]).3, "Art/test_Music_1.mp4");
    assert_eq!(facts(&rows("tempcompass")[0]), ("multiple choice", "A", "order", "videos/7.mp4"));
    // The file is truncated.
    let file = folder.path().join("videomme/videomme/test-00000-of-00001.parquet");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let e = load_benchmark(&task("videomme"), folder.path(), None, false).unwrap_err().to_string();
    assert!(e.contains("test-00000-of-00001.parquet: ") && !e.contains('\n'), "{e}");
}

/// The invalid inputs are: a folder without the files, another benchmark's file, wrong JSON, and rows whose columns
/// are missing or wrong.
#[test]
fn wrong_data_names_file_row_and_column() {
    let holmes = json!({"video ID": "xyz", "Question ID": 1, "Question Type": "TA", "Question": "Q?",
        "Options": {"A": "1", "B": "2"}, "Answer": "B"});
    let with = |column: &str, value: Value| {
        let mut row = holmes.clone();
        row[column] = value;
        list(&[holmes.clone(), row])
    };
    let mme = json!({"videoID": "v", "question_id": "1", "question": "Q?", "options": ["A. x"], "answer": "A", "duration": "long"});
    let error = |file: &str, content: String| load("videoholmes", &[(file, content)], &[]).unwrap_err().to_string();
    let file = "test_Video-Holmes.json";
    for (content, words) in [
        (
            with("Answer", json!("F")),
            "test_Video-Holmes.json: row 2: Answer: `F` is not the letter of any of the 2 options",
        ),
        (with("Answer", Value::Null), "Answer: is missing or empty"),
        (with("Options", json!({})), "Options: has no options"),
        (with("Question", json!(["x"])), "Question: is a list or an object"),
        (list(std::slice::from_ref(&mme)), "has the columns of Video-MME, not those of Video-Holmes"),
        (
            list(&[json!({"a": 1, "b": 2})]),
            "its first row has no `video ID` (layout authors), no `problem` (layout videorft); it has a, b",
        ),
        ("[{".into(), "is not JSON"),
        ("[]".into(), "has no rows"),
        (list(&[json!(7)]), "is not an object"),
    ] {
        let e = error(file, content);
        assert!(e.contains(words) && e.contains(file) && !e.contains('\n'), "{words}: {e}");
    }
    let e = error("other.json", list(std::slice::from_ref(&holmes)));
    assert!(e.contains("has no data file of Video-Holmes; put one of ") && e.contains("test_Video-Holmes.json"), "{e}");
    // The file has the columns of one layout and the name of another layout's file.
    let e = load("videomme", &[("videomme.json", list(&[mme]))], &[]).unwrap_err().to_string();
    assert!(e.contains("has the columns of layout authors of Video-MME, whose files have other names"), "{e}");
    // With `skip_bad_rows` bad rows are counted instead of being an error.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), file, with("Answer", json!("F")));
    let loaded = load_benchmark(&task("videoholmes"), &folder.path().join(file), None, true).unwrap();
    assert_eq!((loaded.rows.len(), loaded.left_out["bad row"]), (1, 1));
    let e = load_benchmark(&task("videoholmes"), Path::new("no/such"), None, true).unwrap_err().to_string();
    assert!(e.contains("no/such"), "{e}");
    // The file has nested objects around its rows.
    let rows = json!({"10": {"speed": [{"question": "Is it?", "answer": "no"}, 1]}});
    let e = load("tempcompass", &[("questions/yes_no.json", rows.to_string())], &[]).unwrap_err().to_string();
    assert!(e.contains("yes_no.json: 10: speed[1]: is not an object"), "{e}");
}
