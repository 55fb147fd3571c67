//! Tests that invalid input gives a one-line error with location, problem and help, or a skipped row.

use super::live::case;
use super::*;
use crate::runs::folder::entries;

const GOOD: &str = r#"{"prompt": [{"role": "user", "content": "2 + 2?"}], "solution": "<answer>4</answer>", "problem_type": "numerical"}"#;

fn message(case: &Case) -> String {
    let e = case.run().unwrap_err().to_string();
    assert!(!e.contains('\n') && e.contains("; "), "{e}");
    e
}

#[test]
fn rows_that_cannot_be_scored_are_skipped() {
    for (row, want) in [
        (GOOD.replace("solution", "solutions"), "rows.jsonl:2: solution: is missing, and there is no custom reward"),
        (GOOD.replace("<answer>4</answer>", "4"), "rows.jsonl:2: solution: has no answer in <answer> tags"),
        (GOOD.replace("<answer>4<", "<answer>nan<"), "rows.jsonl:2: solution: `nan` is NaN, but the problem_type is numerical"),
        (GOOD.replace("numerical", "essay"), "rows.jsonl:2: problem_type: is `essay`, for which there is no accuracy rule"),
        (
            r#"{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}"#.into(),
            "rows.jsonl:2: ends with an answer of the assistant",
        ),
        // A JSON number counts as its text: 4 as "4".
        (GOOD.replace("\"<answer>4</answer>\"", "4"), "rows.jsonl:2: solution: has no answer in <answer> tags"),
        (GOOD.replace("\"<answer>4</answer>\"", "[4]"), "rows.jsonl:2: solution: is not a string"),
        ("{".into(), "rows.jsonl:2: is not JSON"),
        (GOOD.replace("2 + 2?", "<|image_pad|>"), "rows.jsonl:2: message 0: has the token <|image_pad|>, and there is no image for it"),
        (GOOD.replace("\"2 + 2?\"", "[{\"type\": \"image\"}]"), "rows.jsonl:2: message 0, part 0: is an image part"),
        (
            GOOD.replace(
                "\"2 + 2?\"",
                r#"[{"type": "video", "video": ["media/b.png", "media/b.png"]}, {"type": "text", "text": "<|video_pad|>"}]"#,
            ),
            "rows.jsonl:2: message 0, part 1: has the token <|video_pad|> in its text",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let rows = format!("{GOOD}\n{row}");
        let done = case(dir.path(), "out", &rows).with(|o| o.max_steps = Some(1)).run().unwrap();
        assert_eq!(done.skipped, 1, "{row}");
        let log = fs::read_to_string(dir.path().join("out/skipped.jsonl")).unwrap();
        let reason = serde_json::from_str::<Value>(&log).unwrap()["reason"].as_str().unwrap().to_string();
        assert!(reason.contains(want) && reason.contains("; "), "{reason}");
        let e = message(&case(dir.path(), "strict", &rows).with(|o| o.strict = true));
        assert!(e.contains(want), "{e}");
        let e = message(&case(dir.path(), "alone", &row));
        assert!(e.contains("no row of the file can be used"), "{e}");
    }
    // With a custom reward, rows need no solution. The reward program checks that it gets the token ids of the
    // completion, as in TRL.
    let command_line = r#"while read -r x; do case $x in *'"completion_ids":['*) echo 1;; *) exit 1;; esac; done"#;
    let dir = tempfile::tempdir().unwrap();
    let own = case(dir.path(), "out", &GOOD.replace("solution", "solutions"));
    own.with(|o| (o.reward_command, o.max_steps) = (vec![command_line.into()], Some(1))).run().unwrap();
}

#[test]
fn rollouts_file_is_checked_against_options_and_data() {
    let group = |row: usize| json!({"row": row, "completions": [[1], [2], [3], [4]], "rewards": [0, 1, 2, 3]});
    let with = |field: &str, value: Value| {
        let mut group = group(0);
        group[field] = value;
        group.to_string()
    };
    let video = reel_input::config::ModelConfig::open(&golden("model_a")).unwrap().tokens.video;
    for (line, want) in [
        ("{".to_string(), "r.jsonl:2: is not a group of completions"),
        (group(1).to_string(), "r.jsonl:2: row: is 1, but the data has 1 rows"),
        (
            with("completions", json!([[1], [2]])),
            "r.jsonl:2: completions: has 2 completions, but --num-generations is 4",
        ),
        (with("rewards", json!([1, 2])), "r.jsonl:2: rewards: has 2 rewards, but there are 4 completions"),
        (
            with("completions", json!([[1], [2], [3], [-4]])),
            "r.jsonl:2: is not a group of completions: invalid value: integer `-4`",
        ),
        (with("completions", json!([[1], [2], [3], [99999]])), "r.jsonl:2: completions: contain token id 99999"),
        (with("completions", json!([[1], [2], [3], [1, video, 2]])), "the pad token of an image or video"),
        (
            with("completions", json!([vec![1; 13], [2], [3], [4]])),
            "have 13 tokens, more than --max-completion-length 12",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        fs::write(&path, format!("{}\n{line}\n", group(0))).unwrap();
        let e = message(&case(dir.path(), "out", GOOD).with(|o| (o.rollouts, o.temporal) = (Some(path), false)));
        assert!(e.contains(want), "{e}");
        assert!(!dir.path().join("out").exists());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let silent = with("completions", json!([[], [], [], []]));
    fs::write(&path, format!("{silent}\n{}\n", group(0))).unwrap();
    let case = case(dir.path(), "out", GOOD).with(|o| {
        (o.rollouts, o.temporal, o.max_steps, o.no_shuffle) = (Some(path), false, Some(2), true);
    });
    assert_eq!(case.run().unwrap().skipped, 1);
    let log = fs::read_to_string(dir.path().join("out/skipped.jsonl")).unwrap();
    assert!(log.contains("r.jsonl:1: has completions without any token"), "{log}");
}

#[test]
fn failed_reward_program_ends_the_run_with_a_checkpoint() {
    for (command, want) in [
        ("exit 3", "--reward-command `exit 3`"),
        ("read -r x; echo nan; cat >/dev/null", "--reward-command"),
        ("read -r x; echo 1; read -r x", "--reward-command"),
        ("sleep 60", "--reward-command `sleep 60`"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let e = message(&case(dir.path(), "out", GOOD).with(|o| {
            (o.reward_command, o.reward_timeout) = (vec![command.into()], 0.3);
        }));
        assert!(e.contains(want), "{command}: {e}");
    }
    let dir = tempfile::tempdir().unwrap();
    // The reward command scores eight completions, which are two batches, and then exits.
    let command = "i=0; while [ $i -lt 8 ] && read -r x; do echo ${#x}; i=$((i+1)); done";
    let failing =
        case(dir.path(), "out", GOOD).with(|o| (o.reward_command, o.save_steps) = (vec![command.into()], 100));
    let e = message(&failing);
    assert!(e.contains("--reward-command"), "{e}");
    let saved = entries::checkpoints_by_step(&dir.path().join("out")).unwrap();
    assert_eq!(saved.into_keys().collect::<Vec<_>>(), [2], "finished steps are saved");
}

#[test]
fn checkpoint_of_another_command_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    case(dir.path(), "out", GOOD).with(|o| o.max_steps = Some(1)).run().unwrap();
    let sft = crate::SftOptions {
        run: RunOptions {
            model: golden("model_a").display().to_string(),
            data: dir.path().join("rows.jsonl"),
            out: dir.path().join("sft"),
            max_steps: Some(1),
            resume_from_checkpoint: Some(dir.path().join("out/checkpoint-1").display().to_string()),
            ..Default::default()
        },
        ..Default::default()
    };
    fs::write(
        dir.path().join("rows.jsonl"),
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
    )
    .unwrap();
    let (media, device, stop) = (MediaOptions::default(), Device::cpu(1), AtomicBool::new(false));
    let model = golden("model_a");
    let setup = crate::runs::run::sft::SftSetup {
        options: &sft,
        data: DataSetup { model: &model, media: &media, seed: 0 },
        trainer: TrainerSetup::new(&device, DType::F32),
        reports: ReportSetup::quiet(&Value::Null),
        control: RunControl::one_process(&stop),
    };
    let e = crate::runs::run::sft::run(&setup).unwrap_err().to_string();
    assert!(e.contains("--data: differs from the data of the run") || e.contains("belongs to a run of grpo"), "{e}");
}
