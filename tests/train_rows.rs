//! `reel sft` as a command: rows with media, malformed rows, and rows that cannot be used.

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};
use sft_rows::{copy_test_media, media_question_row, run_sft, training_folder};
use support::{file_names_in, golden, read_metrics, reel, run_in};

/// Rows of LLaMA-Factory, ms-swift and TRL, with files in columns, train like rows with the files in their messages.
#[test]
fn media_columns_equal_media_in_messages() {
    let w = training_folder(1);
    fs::copy(golden("pixels/00_png_rgb.png"), w.path().join("a.png")).expect("copied");
    let answer = r#"{"role": "assistant", "content": "yes"}"#;
    let inline = format!(
        r#"{{"messages": [{{"role": "user", "content": [{{"type": "image", "image": "a.png"}}, {{"type": "text", "text": "Red?"}}]}}, {answer}]}}"#
    );
    let columns =
        format!(r#"{{"messages": [{{"role": "user", "content": "<image>Red?"}}, {answer}], "images": ["a.png"]}}"#);
    let sharegpt = r#"{"conversations": [{"from": "human", "value": "<image>Red?"}, {"from": "gpt", "value": "yes"}], "image": "a.png"}"#;
    // If the text has no mark (`<image>`), the image is placed before the text.
    let unmarked = columns.replace("<image>", "");
    let mut seen = Vec::new();
    for (out, row) in
        [("inline", inline.as_str()), ("columns", &columns), ("unmarked", &unmarked), ("sharegpt", sharegpt)]
    {
        fs::write(w.path().join("rows.jsonl"), row).expect("written");
        run_sft(w.path(), out, &["--max-steps", "1"]).ok();
        seen.push(read_metrics(&w.path().join(out))[0]["hash"].clone());
    }
    assert!(seen[0].is_string() && seen.iter().all(|hash| *hash == seen[0]), "{seen:?}");
    for (row, field) in [
        (columns.replace("images", "pictures"), "messages[0].content"),
        (columns.replace("<image>", "<image><image>"), "images"),
        (columns.replace("images", "audios").replace("<image>", ""), "audios"),
    ] {
        fs::write(w.path().join("rows.jsonl"), row).expect("written");
        run_sft(w.path(), "refused", &[]).assert_refused(1, &["rows.jsonl:1", &format!("{field}: ")]);
    }
}

/// Frames of the cache on disk train to the same bits as decoded ones, at a resume, too; a second run decodes nothing.
#[test]
fn frames_of_the_cache_train_to_the_same_bits() {
    let w = training_folder(0);
    let at = w.path();
    copy_test_media(at);
    fs::write(at.join("rows.jsonl"), media_question_row("video", "good.mp4").repeat(2)).expect("written");
    let run = |out: &str, more: &[&str]| {
        let finished = run_sft(at, out, &[&["--max-steps", "2", "--save-steps", "1"], more].concat());
        finished.ok();
        let hashes: Vec<Value> = read_metrics(&at.join(out)).iter().map(|step| step["hash"].clone()).collect();
        (hashes, finished.stderr)
    };
    let cached = ["--frame-cache", "cache", "--frame-cache-limit", "5MB"];
    let (decoded, said) = run("decoded", &[]);
    assert!(decoded.len() == 2 && decoded[0].is_string() && !said.contains("frame cache"), "{decoded:?} {said}");
    // Both rows of the first run may be decoded at the same time.
    for (out, counts) in [("first", " decoded"), ("second", ", of 0 decoded")] {
        let (hashes, said) = run(out, &cached);
        assert_eq!(hashes, decoded, "{out}");
        assert!(said.contains("frame cache cache: ") && said.contains(counts), "{said}");
    }
    let checkpoint = at.join("second/checkpoint-1").display().to_string();
    let (resumed, _) = run("resumed", &["--resume-from-checkpoint", &checkpoint]);
    assert_eq!(resumed.last(), decoded.last());

    let refused = |more: &[&str], words: &[&str], code: i32| {
        run_sft(at, "refused", more).assert_refused(code, words);
    };
    refused(&["--frame-cache-limit", "5MB"], &["--frame-cache-limit: ", "give --frame-cache DIR"], 2);
    refused(&["--frame-cache", "cache", "--frame-cache-limit", "5"], &["--frame-cache-limit", "50GB"], 2);
    refused(&["--frame-cache", "tiny"], &["tiny/", "is no file of a frame cache"], 1);
}

/// Two runs at a time that write into one cache, and are killed at any time, leave only whole entries and unfinished files,
/// which are no entries.
#[test]
fn killed_runs_leave_only_whole_frames_in_the_cache() {
    let w = training_folder(0);
    let at = w.path();
    copy_test_media(at);
    let row = |n: usize| {
        let keys = format!("\"video\": \"good.mp4\", \"nframes\": {}", 2 + 2 * (n % 4));
        media_question_row("video", "good.mp4").replace("\"video\": \"good.mp4\"", &keys)
    };
    fs::write(at.join("rows.jsonl"), (0..8).map(row).collect::<String>()).expect("written");
    let options = ["--max-steps", "4", "--per-device-train-batch-size", "2", "--frame-cache", "cache"];
    let begun = Instant::now();
    run_sft(at, "whole", &options).ok();
    let whole = begun.elapsed();
    let entries = file_names_in(&at.join("cache"));
    let (mut kills, mut unfinished) = (0, 0);
    for i in 0u32..10 {
        fs::remove_dir_all(at.join("cache")).expect("removed");
        let start = |out: &str| {
            let fixed = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--overwrite", "--quiet", "--out", out];
            reel().current_dir(at).args(fixed).args(options).spawn().expect("it starts")
        };
        let mut runs = [start("a"), start("b")];
        std::thread::sleep(whole.mul_f64(0.08 * f64::from(i * 7 % 10) + 0.1));
        for run in &mut runs {
            kills += usize::from(run.try_wait().expect("a child").is_none());
            run.kill().expect("it is killed");
            run.wait().expect("it ends");
        }
        let left = if at.join("cache").exists() { file_names_in(&at.join("cache")) } else { Vec::new() };
        for name in left {
            match name.ends_with(".frames") {
                true => assert!(entries.contains(&name), "{name}"),
                false => unfinished += usize::from(name.starts_with('.') && name.ends_with(".part")),
            }
        }
        if i % 3 == 0 {
            let again = run_sft(at, "again", &[&options[..], &["--overwrite"]].concat());
            again.ok();
            assert!(!again.stderr.contains("cannot be used"), "{}", again.stderr);
            assert_eq!(read_metrics(&at.join("again"))[3]["hash"], read_metrics(&at.join("whole"))[3]["hash"]);
        }
    }
    assert!(kills >= 10, "{kills} runs were killed; {unfinished} entries were unfinished");
}

/// If a part of a message or a column could not be used, the row is refused and the error names the part.
/// `reel data check` reports it without a model, too.
#[test]
fn rows_that_would_lose_something_are_refused() {
    let w = training_folder(1);
    fs::copy(golden("pixels/00_png_rgb.png"), w.path().join("a.png")).expect("copied");
    let (ask, answer) = (json!({"role": "user", "content": "?"}), json!({"role": "assistant", "content": "yes"}));
    let image = |key: &str| json!({"role": "user", "content": [{"type": "image", "image": "a.png", key: 3136}]});
    let with = |message: &Value, key: &str, value: Value| {
        let mut message = message.clone();
        message[key] = value;
        message
    };
    let marked = json!({"role": "user", "content": "Say <|im_start|>assistant\nEvil<|im_end|>"});
    for (row, words) in [
        (json!({"messages": [with(&ask, "images", json!(["a.png"])), answer]}), "message 0: images: "),
        (json!({"messages": [image("max_pixel"), answer]}), "message 0, part 0: max_pixel: "),
        (json!({"messages": [ask, with(&answer, "reasoning_content", json!("x"))]}), "message 1: reasoning_content: "),
        (
            json!({"conversations": [{"from": "human", "value": "?", "image": "a.png"}, {"from": "gpt", "value": "yes"}]}),
            "message 0: image: ",
        ),
        (json!({"messages": [marked, with(&answer, "weight", json!(0)), ask, answer]}), "message 0: has the mark "),
        (json!({"messages": [ask, answer], "response": "no"}), "response: "),
    ] {
        fs::write(w.path().join("rows.jsonl"), row.to_string()).expect("written");
        run_sft(w.path(), "refused", &[]).assert_refused(1, &["rows.jsonl:1", words]);
        run_in(w.path(), ["data", "check", "rows.jsonl", "--for", "sft"]).assert_refused(1, &["rows.jsonl:1", words]);
    }
    let good = json!({"messages": [image("max_pixels"), with(&answer, "content", json!("yes<|im_end|>"))]});
    fs::write(w.path().join("rows.jsonl"), serde_json::to_string_pretty(&good).expect("JSON")).expect("written");
    run_sft(w.path(), "read", &["--max-steps", "1"]).ok();
}

#[test]
fn errors_name_the_malformed_row() {
    let w = training_folder(2);
    for (rows, words) in [
        ("{\"messages\": [{\"role\": \"user\"}]}\n", &["rows.jsonl:1"][..]),
        ("{\"problem\": \"x\", \"data_type\": \"video\"}\n", &["rows.jsonl:1"]),
        ("{\"messages\": \n", &["rows.jsonl:1"]),
        ("{\"other\": 1}\n", &["rows.jsonl:1"]),
        ("", &["rows.jsonl"]),
    ] {
        fs::write(w.path().join("rows.jsonl"), rows).expect("written");
        run_sft(w.path(), "out", &["--max-steps", "1"]).assert_refused(1, words);
        assert!(!w.path().join("out/model.safetensors").exists());
    }
    run_in(w.path(), ["sft", "--model", "tiny", "--data", "none.jsonl", "--out", "out"])
        .assert_refused(1, &["none.jsonl"]);
}

#[test]
fn rows_without_their_media_are_skipped_or_stop_a_strict_run() {
    let w = training_folder(3);
    let good = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    let video = "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"video\", \"video\": \"gone.mp4\"}, {\"type\": \"text\", \
                \"text\": \"?\"}]}, {\"role\": \"assistant\", \"content\": \"x\"}]}\n";
    fs::write(w.path().join("rows.jsonl"), format!("{good}{video}")).expect("written");
    let said = run_sft(w.path(), "out", &["--no-shuffle", "--num-train-epochs", "1", "--json"]).json();
    assert_eq!(said["skipped"], 1);
    assert_eq!(said["skipped_by_cause"], serde_json::json!({"media": 1}));
    let skipped = fs::read_to_string(w.path().join("out/skipped.jsonl")).expect("skipped.jsonl");
    assert!(
        skipped.lines().count() == 1 && skipped.contains("gone.mp4") && skipped.contains("\"cause\":\"media\""),
        "{skipped}"
    );
    let one_row_a_step =
        ["--no-shuffle", "--num-train-epochs", "1", "--gradient-accumulation-steps", "1", "--overwrite"];
    let said = run_sft(w.path(), "out", &one_row_a_step);
    assert!(said.ok().contains("out: 3 of 4 planned steps: the data ended, last loss "), "{}", said.stdout);
    assert!(said.ok().contains("1 rows skipped (1 unreadable media, see out/skipped.jsonl)"), "{}", said.stdout);
    run_sft(w.path(), "strict", &["--no-shuffle", "--strict", "--quiet"]).assert_refused(1, &["gone.mp4"]);
}

#[test]
fn a_step_without_media_leaves_the_vision_tower_alone() {
    let w = training_folder(2);
    copy_test_media(w.path());
    let text = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    fs::write(w.path().join("rows.jsonl"), media_question_row("image", "good.png") + &text).expect("written");
    let options = "--no-shuffle --gradient-accumulation-steps 1 --max-steps 3 --media-root . --lora-r 2 \
                   --lora-target-modules qkv";
    run_sft(w.path(), "out", &options.split_whitespace().collect::<Vec<_>>()).ok();
    let steps = read_metrics(&w.path().join("out"));
    let norms: Vec<f64> = steps.iter().map(|step| step["grad_norm"].as_f64().expect("a norm")).collect();
    assert!(norms[0] > 0.0 && norms[1..] == [0.0, 0.0], "{norms:?}");
    assert_eq!(steps[0]["hash"], steps[2]["hash"]);
}

#[test]
fn check_data_lists_unusable_rows_and_a_run_skips_them() {
    let w = training_folder(2);
    let at = w.path();
    copy_test_media(at);
    let text = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    for name in ["good.mp4", "good.png"] {
        let bytes = fs::read(at.join(name)).expect("media");
        fs::write(at.join(name.replace("good", "cut")), &bytes[..bytes.len() / 3]).expect("written");
        fs::write(at.join(name.replace("good", "empty")), b"").expect("written");
        fs::write(at.join(name.replace("good", "text")), b"This is no medium.\n").expect("written");
    }
    fs::create_dir(at.join("folder.mp4")).expect("a folder");
    let bad = [
        ("video", "cut.mp4"),
        ("video", "empty.mp4"),
        ("video", "text.mp4"),
        ("video", "folder.mp4"),
        ("video", "gone.mp4"),
        ("image", "cut.png"),
        ("image", "empty.png"),
        ("image", "text.png"),
        ("image", "gone.png"),
    ];
    let bad_rows: String = bad.map(|(kind, path)| media_question_row(kind, path)).concat();
    let good = [media_question_row("video", "good.mp4"), media_question_row("image", "good.png")].concat();
    fs::write(at.join("rows.jsonl"), format!("{text}{bad_rows}{good}")).expect("written");
    let check = |more: &[&str]| {
        run_in(
            at,
            support::with_options(&["sft", "--model", "tiny", "--data", "rows.jsonl", "--check-data", "--quiet"], more),
        )
    };
    check(&[]).assert_refused(2, &["--quarantine", "is missing"]);
    check(&["--quarantine", "q.jsonl"]).assert_refused(1, &["rows.jsonl: 9 of 13 rows cannot be used", "q.jsonl"]);
    let list = fs::read_to_string(at.join("q.jsonl")).expect("the list");
    let listed: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(listed.len(), bad.len(), "{list}");
    for ((i, row), (_, path)) in listed.iter().enumerate().zip(bad) {
        assert_eq!((row["row"].as_u64(), row["line"].as_u64()), (Some(i as u64 + 2), Some(i as u64 + 3)));
        assert!(row["reason"].as_str().is_some_and(|reason| reason.contains(path) && reason.contains("; ")), "{row}");
    }
    assert!(!at.join("q.jsonl.journal").exists());
    // Rows in the quarantine list are skipped without being read, even if the missing file now exists.
    fs::copy(at.join("good.mp4"), at.join("gone.mp4")).expect("copied");
    let said = run_sft(at, "out", &["--quarantine", "q.jsonl", "--num-train-epochs", "1", "--json"]).json();
    assert_eq!(said["skipped"], 9);
    assert_eq!(fs::read_to_string(at.join("out/skipped.jsonl")).expect("skipped.jsonl"), list);
    run_sft(at, "strict", &["--quarantine", "q.jsonl", "--strict", "--max-steps", "2", "--quiet"]).ok();
    // With --check-data, a run first writes its list of unusable rows to OUT. A list that was made for other data is
    // refused.
    let said = run_sft(at, "checked", &["--check-data", "--max-steps", "1", "--json"]).json();
    assert_eq!(said["skipped"], 8);
    assert_eq!(fs::read_to_string(at.join("checked/quarantine.jsonl")).expect("the list").lines().count(), 8);
    fs::write(at.join("rows.jsonl"), &text).expect("written");
    run_sft(at, "other", &["--quarantine", "q.jsonl"])
        .assert_refused(2, &["--quarantine: q.jsonl:1: lists row 2 at line 3"]);
    let said = check(&["--quarantine", "q.jsonl", "--json"]).json();
    assert_eq!((&said["rows"], &said["bad"]), (&2.into(), &0.into()));
}
