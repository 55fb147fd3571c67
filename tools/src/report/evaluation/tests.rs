use std::sync::LazyLock;

use proptest::prelude::*;
use reel_eval::{Extraction, Task, score_benchmark};
use serde_json::json;

use super::data::data_for_test;
use super::*;

fn settings() -> Value {
    json!({
        "command": "eval", "version": "1", "model": {"path": "/cache/models--Qwen--Q/snapshots/0", "fingerprint": "f"},
        "options": {"profile": "videorft-eval", "temperature": 0.01, "top_p": 0.001, "top_k": 0, "dtype": "bf16",
            "repetition_penalty": 1.0, "max_new_tokens": 1024,
            "data_files": {"layout": "authors", "files": [{"name": "v<1>.json", "fingerprint": "x", "rows": 3}],
                "left_out": {"open-ended question": 2}}},
        "device": "cuda", "rows": 3, "media_root": "/nowhere",
    })
}

/// A run with these outputs as its answers to the questions 0, 1, …
fn run(name: &str, outputs: &[&str]) -> EvaluationRun {
    let task = Task::from_names("mmvu").unwrap().remove(0);
    let answers: Vec<AnsweredRow> = outputs
        .iter()
        .enumerate()
        .map(|(i, output)| {
            let row = json!({
                "benchmark": "mmvu", "problem_id": format!("id{i}"), "problem": format!("Why {i}?"),
                "problem_type": "multiple choice", "options": ["A. x", "B. y"], "solution": "<answer>A</answer>",
                "category": if i % 2 == 0 { "Art & <i>" } else { "Biology" }, "path": "v.mp4", "output": output,
                "prompt": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"},
                    {"type": "text", "text": "Why? <b>"}]}],
                "generation": {"finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 2},
            });
            AnsweredRow { line: i + 1, ..AnsweredRow::from_json_line(&row.to_string()).unwrap() }
        })
        .collect();
    let rows: Vec<_> = answers.iter().map(|answer| answer.prediction.clone()).collect();
    let report = score_benchmark(&task, &rows, Extraction::Tags).unwrap();
    EvaluationRun {
        name: name.into(),
        benchmarks: vec![BenchmarkAnswers { task, report, settings: settings(), answers }],
    }
}

fn page(run: &EvaluationRun, against: Option<&EvaluationRun>) -> String {
    evaluation_page_html(run, against, &FrameStrips::default()).unwrap()
}

/// The JSON data of the page, parsed as a browser does.
fn page_json(html: &str) -> Value {
    let data = html.split("<script type=\"application/json\">").nth(1).unwrap();
    serde_json::from_str(data.split("</script>").next().unwrap()).unwrap()
}

#[test]
fn page_has_scores_beside_published_ones_and_says_what_differs() {
    let mut own = run("r", &["A", "B", "<think>so</think><answer>A</answer>"]);
    let html = page(&own, None);
    assert_eq!(html, page(&own, None), "the same run gives other bytes");
    assert!(html.contains("Evaluation of Qwen/Q") && html.contains("<b>66.7</b><sup>†</sup>"), "{html}");
    for part in
        ["VideoRFT-7B", "68.5", "arXiv 2503.21776", "v&lt;1&gt;.json", "docs/protocol.md", "2 left out: open-ended"]
    {
        assert!(html.contains(part), "no {part}");
    }
    assert!(html.contains("MMVU (multiple choice)</b>: 3 of 625 questions.</li>"), "{html}");
    assert!(html.contains("#b=mmvu&amp;c=Art%20%26%20%3Ci%3E\">Art &amp; &lt;i&gt;</a>"), "{html}");
    // Only settings that differ from the protocol are listed as not comparable.
    let differing = |options: &[(&str, Value)]| {
        let mut own = own.clone();
        own.benchmarks[0].task.rows = Some(3);
        let settings = &mut own.benchmarks[0].settings["options"];
        options.iter().for_each(|(name, value)| settings[*name] = value.clone());
        let html = page(&own, None);
        let notes = html.split("not comparable").nth(1).map(|rest| rest.split("</ul>").next().unwrap().to_string());
        notes.unwrap_or_default()
    };
    assert_eq!(differing(&[("temperature", json!(0.1))]), "");
    for (name, value, words) in [
        ("temperature", json!(0.7), "--temperature 0.7"),
        ("nframes", json!(16), "16 frames instead of 32"),
        ("text_only", json!(true), "asked without the videos"),
        ("limit", json!(3), "only the first 3 questions"),
        ("profile", json!("qwen"), "the profile qwen instead of videorft-eval"),
        ("max_pixels", json!(5000), "--max-pixels 5000"),
        ("quantize", json!("int8"), "quantised to int8"),
        ("max_new_tokens", json!(16), "--max-new-tokens 16"),
        ("data_files", json!({"left_out": {"video is missing": 4}}), "4 rows left out (video is missing)"),
    ] {
        let notes = differing(&[(name, value)]);
        assert!(notes.contains(words) && notes.matches("<li>").count() == 1, "{name}: {notes}");
    }
    own.benchmarks[0].report.errors = 1;
    assert!(page(&own, None).contains("1 row has an error instead of an answer"));
}

#[test]
fn rows_without_categories_settings_or_media_have_a_page() {
    let mut own = run("r", &["A"]);
    let benchmark = &mut own.benchmarks[0];
    benchmark.settings = Value::Null;
    benchmark.report.by_category.clear();
    let answer = &mut benchmark.answers[0];
    (answer.prediction.categories, answer.prediction.id, answer.prediction.question) = (Vec::new(), None, None);
    (answer.media, answer.prompt) = (Vec::new(), Vec::new());
    let html = page(&own, None);
    assert!(html.contains("Evaluation of given predictions") && html.contains("1 question of MMVU"), "{html}");
    let data = page_json(&html);
    assert_eq!(data["reasons"], json!(["the question was asked without a video"]));
    assert_eq!(data["answers"][0]["runs"][0]["score"], 1);
}

#[test]
fn two_runs_are_paired_by_their_questions() {
    let (a, mut b) = (run("a", &["A", "B", "A"]), run("b", &["B", "B", "A", "A"]));
    b.benchmarks[0].answers.reverse();
    let html = page(&a, Some(&b));
    assert!(html.contains("B minus A") && html.contains("0 questions are only in A and 1 only in B"), "{html}");
    assert!(
        html.contains("runs=a\">1</a>") && html.contains("runs=b\">0</a>") && html.contains(", run B</b>: 4 of 625")
    );
    let data = page_json(&html);
    let outputs = |run: usize| -> Vec<&str> {
        let answers = data["answers"].as_array().unwrap();
        answers.iter().map(|answer| answer["runs"][run]["output"].as_str().unwrap()).collect()
    };
    assert_eq!((outputs(0), outputs(1)), (vec!["A", "B", "A"], vec!["B", "B", "A"]));
    let fewer = run("c", &["A"]);
    assert!(data_for_test(&a, Some(&fewer))["answers"][1]["runs"][1].is_null());
    // A comparison is refused if questions with the same name differ, or if the runs have no benchmark in common. The
    // error names their file.
    b.benchmarks[0].answers[0].prediction.question = Some("Another?".into());
    b.benchmarks[0].answers[0].prediction.id = Some("id0".into());
    let error = |b: &EvaluationRun| evaluation_page_html(&a, Some(b), &FrameStrips::default()).unwrap_err().to_string();
    assert!(error(&b).starts_with("b/mmvu.jsonl: ") && error(&b).contains("different questions"), "{}", error(&b));
    b.benchmarks[0].task.name = "other".into();
    assert!(error(&b).starts_with("b: has no benchmark in common with a; "), "{}", error(&b));
}

#[test]
fn videos_that_are_not_there_are_no_error() {
    let own = run("r", &["A", "B"]);
    let decoder = reel_input::media::worker::DecodeWorker::new("/nowhere/program");
    let source = |max_bytes| FrameSource { media_root: None, decoder: decoder.clone(), threads: 2, max_bytes };
    let note = |run: &EvaluationRun, max_bytes| {
        let html = evaluation_page_html(run, None, &FrameStrips::load(run, &source(max_bytes), |_| ())).unwrap();
        page_json(&html)["reasons"].clone()
    };
    assert_eq!(note(&own, 1 << 20), json!(["the video is not there any more"]));
    assert_eq!(note(&own, 0), json!(["the page was written without frames"]));
    let mut without = own;
    without.benchmarks[0].settings["media_root"] = Value::Null;
    assert!(note(&without, 1 << 20)[0].as_str().unwrap().contains("give it as --media-root"));
}

/// This test needs no worker process, because images are decoded in this process. Images of wrong answers come first,
/// each image once, and their bytes stay within the limit.
#[test]
fn images_of_wrong_answers_come_first_within_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut own = run("r", &["A", "A", "B", "B"]);
    for (i, answer) in own.benchmarks[0].answers.iter_mut().enumerate() {
        // The last two questions are about the same image.
        let name = format!("{}.bmp", i.min(2));
        std::fs::write(folder.path().join(&name), bitmap(40 * i.min(2) as u8)).unwrap();
        answer.media = vec![json!({"type": "image", "image": name})];
    }
    let load = |max_bytes: usize, threads: usize| {
        let decoder = reel_input::media::worker::DecodeWorker::new("/nowhere/program");
        let source = FrameSource { media_root: Some(folder.path().into()), decoder, threads, max_bytes };
        FrameStrips::load(&own, &source, |_| ())
    };
    let shown = |frames: &FrameStrips| -> Vec<bool> {
        let data = page_json(&evaluation_page_html(&own, None, frames).unwrap());
        data["answers"].as_array().unwrap().iter().map(|answer| answer.get("strip").is_some()).collect()
    };
    let all = load(1 << 20, 3);
    assert_eq!((all.strips.len(), shown(&all)), (3, vec![true; 4]));
    let src = all.strips[0][0]["src"].as_str().unwrap();
    assert!(src.starts_with("data:image/jpeg;base64,"), "{src}");
    let one = all.strips[0].to_string().len();
    for threads in [1, 8] {
        let few = load(one + 10, threads);
        assert_eq!((few.strips.len(), shown(&few)), (1, vec![false, false, true, true]));
        assert_eq!(few.strips[0], all.strips[0]);
    }
}

/// A bitmap of 56 x 56 pixels of one grey.
fn bitmap(grey: u8) -> Vec<u8> {
    let mut bmp = b"BM".to_vec();
    let bytes = 56 * 56 * 3;
    let numbers: [u32; 13] = [54 + bytes, 0, 54, 40, 56, 56, 1 | 24 << 16, 0, bytes, 2835, 2835, 0, 0];
    bmp.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bmp.extend([grey; 56 * 56 * 3]);
    bmp
}

#[test]
fn huge_outputs_are_cut_in_the_page() {
    let huge = format!("<answer>{}</answer>", "é".repeat(300_000));
    let data = page_json(&page(&run("r", &[&huge]), None));
    let own = &data["answers"][0]["runs"][0];
    let (kept, omitted) = (own["output"].as_str().unwrap().len(), own["omitted"].as_u64().unwrap() as usize);
    assert!(
        kept <= 256 << 10 && kept + omitted == huge.len() && own["answer"].as_str().unwrap().chars().count() == 500
    );
}

/// Texts with control characters and with the characters that end HTML elements, strings, comments and attributes.
fn hostile() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("</script><script>alert(1)</script>".to_string()),
        Just("<!--<script>".to_string()),
        Just("\"'>&\u{2028}\u{202e}\u{1b}\0\r\n".to_string()),
        Just("<think>a</think><answer>A</answer>".to_string()),
        "(?s).{0,8}"
    ];
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Parsing the page's JSON gives every output, question and error unchanged, and no text adds an element to the
    /// page.
    #[test]
    fn texts_round_trip_through_the_page(output in hostile(), question in hostile(), error in hostile()) {
        let with = |output: &str, question: &str, error: &str| {
            // The scores do not depend on the texts, so they are computed once for all cases.
            static RUN: LazyLock<EvaluationRun> = LazyLock::new(|| run("r", &["A", "B"]));
            let mut own = RUN.clone();
            let answers = &mut own.benchmarks[0].answers;
            answers[0].prediction.output = output.into();
            answers[0].prediction.question = Some(question.into());
            answers[0].prompt = vec![question.into()];
            answers[1].prediction.error = Some(error.into());
            page(&own, None)
        };
        let html = with(&output, &question, &error);
        let tags = |html: &str| html.matches('<').count();
        prop_assert_eq!(tags(&html), tags(&with("x", "x", "x")));
        prop_assert!(!html.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
        let data = page_json(&html);
        let answers = &data["answers"];
        prop_assert_eq!(answers[0]["runs"][0]["output"].as_str(), Some(&output[..]));
        prop_assert_eq!(answers[0]["question"].as_str(), Some(&question[..]));
        prop_assert_eq!(answers[1]["runs"][0]["error"].as_str(), Some(&error[..]));
    }
}
