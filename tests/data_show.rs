//! `reel data show`: a row is shown as the training command makes it, with the learned tokens of its labels.

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::path::Path;

use reel_input::MediaOptions;
use reel_input::media::profile::MediaProfile;
use reel_input::media::worker::DecodeWorker;
use reel_samples::feed::SampleSource;
use reel_support::worker::WorkerProgram;
use reel_train::options::{RunOptions, SftOptions};
use reel_train::runs::sft;
use reel_train::setup::DataSetup;
use serde_json::{Value, json};
use sft_rows::{copy_test_media, media_question_row};
use support::{check_page, reel, run_in, tiny_model};

const MULTI_TURN: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bé"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0}, {"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}]}"#;

/// Creates a folder with a tiny model and rows with a video, an image, text alone, several turns, a plain completion,
/// a prompt for rewards, a missing video and wrong fields.
fn rows_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    std::fs::create_dir(at.join("media")).expect("created");
    copy_test_media(&at.join("media"));
    let rows = [
        media_question_row("video", "good.mp4"),
        media_question_row("image", "good.png"),
        r#"{"messages": [{"role": "user", "content": "\u001b[31mred"}, {"role": "assistant", "content": "4"}]}"#.into(),
        MULTI_TURN.into(),
        r#"{"prompt": "2 + 2 =", "completion": " 4"}"#.into(),
        r#"{"prompt": [{"role": "user", "content": "2 + 2?"}], "solution": "4", "note": "n"}"#.into(),
        media_question_row("video", "none.mp4"),
        r#"{"x": 1}"#.into(),
    ];
    let text: String = rows.iter().map(|row| format!("{}\n", row.trim_end())).collect();
    std::fs::write(at.join("rows.jsonl"), text).expect("written");
    folder
}

fn show(folder: &Path, more: &str) -> support::FinishedRun {
    let words = format!("data show --model tiny rows.jsonl --media-root media{more}");
    run_in(folder, words.split(' '))
}

/// For every row, the shown token ids and targets are those of the sample that `reel sft` trains on.
#[test]
fn shown_rows_are_the_samples_of_training() {
    let folder = rows_folder();
    let at = folder.path();
    let run = RunOptions { data: at.join("rows.jsonl"), media_root: Some(at.join("media")), ..RunOptions::default() };
    let media = MediaOptions {
        profile: MediaProfile::VideorftTrain,
        decoder: DecodeWorker {
            program: WorkerProgram::new(reel().get_program()),
            ..DecodeWorker::from_this_program()
        },
        ..MediaOptions::default()
    };
    let model = at.join("tiny");
    for rule in [None, Some("text")] {
        let labels = rule.map(|rule| clap::ValueEnum::from_str(rule, false).expect("a rule"));
        let options = SftOptions { run: run.clone(), labels, ..SftOptions::default() };
        let data = DataSetup { model: &model, media: &media, seed: 0 };
        let samples = sft::open_samples(&options, &data).expect("samples");
        // With --labels text, rows with an answer that is not learned are refused.
        for row in (0..5).filter(|row| rule.is_none() || *row != 3) {
            let sample = samples.sample(row).expect("a sample");
            let more = rule.map_or(String::new(), |rule| format!(" --labels {rule}"));
            let shown = show(at, &format!(" --json --row {}{more}", row + 1)).json();
            assert_eq!(shown["input_ids"], json!(sample.tokens.input_ids), "row {row}");
            assert_eq!(shown["targets"], json!(sample.targets), "row {row}");
            // The learned runs decode to the learned tokens.
            let runs: Vec<&Value> = shown["runs"].as_array().expect("runs").iter().collect();
            let learned = runs.iter().filter(|run| run["learned"] == true);
            let count: u64 = learned.clone().filter_map(|run| run["tokens"].as_u64()).sum();
            assert_eq!(shown["learned_tokens"], json!(count), "row {row}");
            let ids: Vec<u32> = sample.targets.iter().filter_map(|target| u32::try_from(*target).ok()).collect();
            let text: String = learned.filter_map(|run| run["text"].as_str()).collect();
            if rule.is_none() {
                assert_eq!(text, samples.bundle.tokenizer.decode(&ids, false), "row {row}");
            }
            let all: u64 = runs.iter().filter_map(|run| run["tokens"].as_u64()).sum();
            assert_eq!((all, &shown["tokens"]), (sample.tokens.len() as u64, &json!(all)), "row {row}");
        }
    }
}

#[test]
fn text_marks_learned_tokens_and_folds_vision_tokens() {
    let folder = rows_folder();
    let at = folder.path();
    let first = show(at, "").ok().to_string();
    assert!(first.starts_with("rows.jsonl:1: row 1, the first (--row N shows another), of 8, as reel sft uses it\n"));
    for words in [
        "of which 2 are learned (between ⟦ and ⟧)",
        "video 1: 16 frames of ",
        "frames at 0.00 ",
        "<|vision_start|><|video_pad|> x ",
        "<|im_start|>assistant\n⟦x<|im_end|>⟧",
    ] {
        assert!(first.contains(words), "{words}: {first}");
    }
    let image = show(at, " --row 2").ok().to_string();
    assert!(
        image.contains("image 1: ") && image.contains("<|image_pad|> x ") && !image.contains("frames at"),
        "{image}"
    );
    // A row cannot send control characters to the terminal.
    let text = show(at, " --row 3").ok().to_string();
    assert!(!text.contains('\u{1b}') && text.contains("[31mred") && text.contains("⟦4<|im_end|>⟧"), "{text}");
    // An answer of weight 0 is not learned.
    let turns = show(at, " --row 4").ok().to_string();
    assert!(turns.contains("⟦bé<|im_end|>⟧") && turns.contains("assistant\nd<|im_end|>"), "{turns}");
    // A row for rewards: the prompt, no learned tokens, and the columns that rewards see.
    let prompt = show(at, " --row 6").ok().to_string();
    for words in [
        "as reel grpo uses it",
        "reel sft cannot use it: rows.jsonl:6: has a prompt without",
        "problem_type: numerical",
    ] {
        assert!(prompt.contains(words), "{words}: {prompt}");
    }
    assert!(prompt.contains("solution: <answer>4</answer>") && !prompt.contains('⟦'), "{prompt}");
    let json = show(at, " --row 6 --for grpo --json").json();
    assert!(
        json["learned_tokens"] == 0 && json["reward_columns"]["note"] == "n" && json["command"] == "grpo",
        "{json}"
    );
}

#[test]
fn page_has_the_frames_and_wrong_rows_have_the_error_of_training() {
    let folder = rows_folder();
    let at = folder.path();
    assert!(show(at, " --html row.html").ok().ends_with("page: row.html\n"));
    let page = std::fs::read_to_string(at.join("row.html")).expect("a page");
    check_page(&page);
    assert_eq!(page.matches("<img ").count(), 16, "a picture for each frame");
    assert!(page.contains("<mark>x&lt;|im_end|&gt;</mark>") && page.contains("frame 1: 0.00 s"));
    for (row, words) in [(7, "rows.jsonl:7: media/none.mp4: cannot be read"), (8, "rows.jsonl:8: has no `messages`")] {
        let shown = show(at, &format!(" --row {row}"));
        shown.assert_refused(1, &[words]);
        // A strict run ends with the same error.
        let rows = std::fs::read_to_string(at.join("rows.jsonl")).expect("rows");
        let blank = "\n".repeat(row - 1);
        let only = rows.lines().nth(row - 1).expect("a row");
        // Without a row that can be used, a run is refused before its first row.
        let usable = r#"{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]}"#;
        std::fs::write(at.join("only.jsonl"), format!("{blank}{only}\n{usable}\n")).expect("written");
        let strict = "sft --model tiny --data only.jsonl --media-root media --out out --strict --max-steps 1 \
                      --no-shuffle --device cpu";
        let trained = run_in(at, strict.split_whitespace());
        trained.assert_refused(1, &[]);
        let error = |text: &str| text.lines().last().expect("an error").replace("only.jsonl", "rows.jsonl");
        assert_eq!(error(&shown.stderr), error(&trained.stderr));
    }
    show(at, " --row 9").assert_refused(2, &["--row: is 9, but rows.jsonl has 8 rows"]);
    show(at, " --row 0").assert_refused(2, &["--row: is 0"]);
    show(at, " --row 6 --for sft").assert_refused(1, &["rows.jsonl:6: has a prompt without an answer"]);
    show(at, " --row 1 --for grpo --labels text").assert_refused(2, &["--labels: has no effect on grpo"]);
    let elsewhere = run_in(at, "data show --model none rows.jsonl".split(' '));
    assert_ne!(elsewhere.code, Some(0));
}
