//! Tests that invalid input gives a one-line error with location, problem and help, and leaves no incomplete files.

use super::*;

/// Makes a run on the data rows `rows`, with the images of a golden case.
pub(super) fn case_with_rows(dir: &Path, rows: &str) -> Case {
    let data = dir.join("rows.jsonl");
    fs::write(&data, rows).unwrap();
    Case::new("sft_all_tokens", "model_a", &dir.join("out")).with(|o| {
        o.data = data;
        o.media_root = Some(golden("sft_all_tokens"));
        o.no_shuffle = true;
    })
}

pub(super) const GOOD_ROW: &str =
    r#"{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}"#;
pub(super) const IMAGE_ROW: &str = r#"{"messages": [{"role": "user", "content": [{"type": "image", "image": "media/a.png"}]}, {"role": "assistant", "content": "A dog."}]}"#;
pub(super) const MISSING_IMAGE_ROW: &str = r#"{"messages": [{"role": "user", "content": [{"type": "image", "image": "media/none.png"}]}, {"role": "assistant", "content": "?"}]}"#;

pub(super) fn run_error(case: &Case) -> String {
    let e = case.run().unwrap_err().to_string();
    assert!(!e.contains('\n') && e.contains("; "), "{e}");
    e
}

pub(super) fn read_skipped_rows(out: &Path) -> Vec<SkippedRow> {
    let text = fs::read_to_string(out.join(SKIPPED_FILE)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn row_without_its_image_is_skipped_or_stops_a_strict_run() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [GOOD_ROW, MISSING_IMAGE_ROW, IMAGE_ROW].join("\n");
    let case = case_with_rows(dir.path(), &rows).with(|o| (o.max_steps, o.num_train_epochs) = (None, 2.0));
    let done = case.run().unwrap();
    let out = dir.path().join("out");
    // The run has two epochs of three rows. The unusable row is skipped in both epochs, so four of the six rows are
    // left, with one step each.
    assert_eq!((read_metrics(&out).len(), done.skipped), (4, 1));
    // The data ended before the planned number of steps.
    assert_eq!((done.steps, done.planned_steps), (4, 6));
    let skipped_rows = read_skipped_rows(&out);
    assert_eq!((skipped_rows.len(), skipped_rows[0].row, skipped_rows[0].line), (1, 1, 2));
    assert!(
        skipped_rows[0].reason.contains("rows.jsonl:2: ") && skipped_rows[0].reason.contains("none.png"),
        "{skipped_rows:?}"
    );

    let e = run_error(&case_with_rows(dir.path(), &rows).with(|o| (o.strict, o.overwrite) = (true, true)));
    assert!(e.contains("rows.jsonl:2: ") && e.contains("none.png"), "{e}");
    // The step before the unusable row is saved, and the run can be resumed without `--strict`.
    assert!(e.ends_with("; then resume with --resume-from-checkpoint last, without --strict to skip such rows"), "{e}");
    let resumed =
        case_with_rows(dir.path(), &rows).with(|o| o.resume_from_checkpoint = Some("last".into())).run().unwrap();
    assert_eq!((resumed.resumed_after, resumed.steps, resumed.skipped), (1, 4, 1));
    let checked =
        case_with_rows(dir.path(), &rows).with(|o| (o.check_data, o.max_steps, o.overwrite) = (true, None, true));
    assert_eq!(checked.run().unwrap().steps, 2);
    assert_eq!(read_skipped_rows(&out), skipped_rows);
}

/// Some errors of a row are found only when its sample is made. Such an error makes only its row unusable, and
/// --check-data also finds it.
#[test]
fn rows_without_a_valid_sample_are_skipped() {
    for (row, want) in [
        (
            GOOD_ROW.replace("Hello", "<|image_pad|>"),
            "rows.jsonl:2: message 0: has the token <|image_pad|>, and there is no image for it",
        ),
        (
            IMAGE_ROW.replace("A dog.", "<|image_pad|>"),
            "rows.jsonl:2: message 1: has the token <|image_pad|> in its text",
        ),
        (
            IMAGE_ROW.replace("\"image\": \"media/a.png\"", "\"x\": 1"),
            "rows.jsonl:2: message 0, part 0: is an image part",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let rows = [GOOD_ROW, &row, IMAGE_ROW].join("\n");
        for check in [false, true] {
            let case = case_with_rows(dir.path(), &rows);
            let done = case.with(|o| (o.check_data, o.max_steps, o.overwrite) = (check, None, true)).run().unwrap();
            assert_eq!(done.skipped, 1, "{row}");
            let skipped_rows = read_skipped_rows(&dir.path().join("out"));
            assert!(skipped_rows[0].line == 2 && skipped_rows[0].reason.contains(want), "{skipped_rows:?}");
        }
    }
}

#[test]
fn check_data_can_be_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let case = case_with_rows(dir.path(), GOOD_ROW).with(|o| o.check_data = true);
    case.stop.store(true, Ordering::Relaxed);
    assert!(run_error(&case).contains("rows.jsonl:1: stopped before the first step; run the command again"));
    // OUT has only the journal of the check and no run, so the next command may start a new run in OUT.
    let left: Vec<_> = fs::read_dir(dir.path().join("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["quarantine.jsonl.journal"]);
    case.stop.store(false, Ordering::Relaxed);
    case.run().unwrap();
}

#[test]
fn resumed_run_skips_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [MISSING_IMAGE_ROW, GOOD_ROW, IMAGE_ROW, MISSING_IMAGE_ROW].join("\n");
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let case = |out: &Path, steps, resume: Option<&str>| {
        let resume = resume.map(String::from);
        case_with_rows(dir.path(), &rows)
            .with(|o| (o.out, o.max_steps, o.resume_from_checkpoint) = (out.into(), Some(steps), resume))
    };
    case(&whole, 4, None).run().unwrap();
    case(&broken, 1, None).run().unwrap();
    assert_eq!(read_skipped_rows(&broken).len(), 1);
    case(&broken, 4, Some("last")).run().unwrap();
    assert_eq!(read_skipped_rows(&whole), read_skipped_rows(&broken));
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&broken));
}

/// If a row failed after the checkpoint, the resumed run also skips the row, even if the row would no longer fail.
#[test]
fn resumed_run_keeps_rows_that_failed_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let late = dir.path().join("late.png");
    let rows =
        [GOOD_ROW, IMAGE_ROW, &MISSING_IMAGE_ROW.replace("media/none.png", &late.display().to_string()), GOOD_ROW]
            .join("\n");
    let case = |out: &Path| case_with_rows(dir.path(), &rows).with(|o| (o.out, o.save_steps) = (out.into(), 1));
    let [whole, broken] = ["whole", "broken"].map(|name| dir.path().join(name));
    for out in [&whole, &broken] {
        let done = case(out).run().unwrap();
        assert_eq!(done.skipped_by_cause.into_iter().collect::<Vec<_>>(), [(SkipCause::Media, 1)]);
    }
    fs::copy(golden("sft_all_tokens/media/a.png"), &late).unwrap();
    let resume = |step: u64| {
        (step + 1..=4).for_each(|n| drop(fs::remove_dir_all(broken.join(format!("checkpoint-{n}")))));
        case(&broken).with(|o| (o.resume_from_checkpoint, o.max_steps) = (Some("last".into()), Some(4)))
    };
    // The first resumed process is stopped before it reaches the failed row again.
    let stopped = resume(1);
    stopped.stop.store(true, Ordering::Relaxed);
    stopped.run().unwrap_err();
    assert!(read_skipped_rows(&broken).is_empty());
    resume(1).run().unwrap();
    assert_eq!(read_skipped_rows(&whole), read_skipped_rows(&broken));
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&broken));
    assert_same_files(&whole, &broken);
}

#[test]
fn malformed_rows_are_skipped_or_stop_a_strict_run() {
    for (row, want) in [
        ("{", "rows.jsonl:2: is not JSON"),
        (r#"{"problem": "x", "path": "a.mp4"}"#, "rows.jsonl:2: data_type: is missing"),
        (r#"{"prompt": [{"role": "user", "content": "x"}]}"#, "rows.jsonl:2: has a prompt without an answer"),
        (r#"{"messages": [{"role": "user", "content": [{"type": "sound", "sound": "x"}]}]}"#, "rows.jsonl:2: "),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let rows = format!("{GOOD_ROW}\n{row}\n");
        let e = run_error(&case_with_rows(dir.path(), &rows).with(|o| o.strict = true));
        assert!(e.contains(want), "{e}");
        assert!(!dir.path().join("out").exists());
        assert_eq!(case_with_rows(dir.path(), &rows).with(|o| o.max_steps = Some(2)).run().unwrap().skipped, 1);
        let skipped_rows = read_skipped_rows(&dir.path().join("out"));
        assert!(
            skipped_rows.len() == 1 && skipped_rows[0].line == 2 && skipped_rows[0].reason.contains(want),
            "{skipped_rows:?}"
        );
        let e = run_error(&case_with_rows(dir.path(), &format!("{row}\n{row}")).with(|o| o.overwrite = true));
        assert!(e.contains("no row of the file can be used"), "{e}");
    }
}

#[test]
fn too_long_rows_and_rows_without_an_answer_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mute = r#"{"messages": [{"role": "user", "content": "Hello"}]}"#;
    let long = GOOD_ROW.replace("Hello", &"Hello ".repeat(99));
    let case = case_with_rows(dir.path(), &[GOOD_ROW, mute, &long].join("\n"));
    case.with(|o| (o.labels, o.max_length, o.max_steps) = (None, Some(60), Some(2))).run().unwrap();
    let reasons: Vec<String> = read_skipped_rows(&dir.path().join("out")).into_iter().map(|s| s.reason).collect();
    assert!(reasons[0].contains("rows.jsonl:2: has no token to learn"), "{reasons:?}");
    assert!(
        reasons[1].contains("rows.jsonl:3: has ") && reasons[1].contains("more than --max-length 60"),
        "{reasons:?}"
    );
    assert_eq!(reasons.len(), 2);
    let e = run_error(&case_with_rows(dir.path(), MISSING_IMAGE_ROW).with(|o| o.overwrite = true));
    assert!(e.contains("no row of the file can be used"), "{e}");
}

#[test]
fn nan_weight_of_the_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(golden("model_a")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let name = "model.layers.0.mlp.up_proj.weight";
    let file = model.join("model.safetensors");
    let (offset, shape) = {
        let files = Checkpoint::open(&model).unwrap();
        let view = files.tensor(name).unwrap();
        (view.offset, view.shape.to_vec())
    };
    let mut bytes = fs::read(&file).unwrap();
    let element = 2 * shape[1] + 3;
    bytes[offset + 4 * element..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let case = case_with_rows(dir.path(), GOOD_ROW).with(|o| o.model = model.display().to_string());
    let e = run_error(&case);
    let want = format!("model.safetensors: {name}: has a value that is NaN or infinite, at [2][3]; ");
    assert!(e.contains(&want), "{e}");
    assert!(!dir.path().join("out").exists(), "a run that never began leaves nothing behind");
}

#[test]
fn non_finite_loss_stops_the_run_and_keeps_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let case = case_with_rows(dir.path(), GOOD_ROW)
        .with(|o| (o.learning_rate, o.save_steps, o.max_steps) = (1e30, 1, Some(9)));
    let e = run_error(&case);
    assert!(
        e.starts_with("step ")
            && e.contains("(rows ")
            && e.contains("rows.jsonl:1)")
            && e.contains("lower --learning-rate"),
        "{e}"
    );
    let steps = read_metrics(&out);
    let (last, folder) = entries::checkpoints_by_step(&out).unwrap().pop_last().unwrap();
    assert_eq!(steps.len() as u64, last);
    assert!(e.starts_with(&format!("step {}: ", last + 1)), "{e}");
    assert!(Checkpoint::open(&folder).is_ok() && !out.join("model.safetensors").exists());
}

#[test]
fn non_empty_folder_and_model_inside_out_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let case = case_with_rows(dir.path(), GOOD_ROW).with(|o| o.max_steps = Some(1));
    case.run().unwrap();
    let e = run_error(&case);
    assert!(e.contains("out: is not empty; "), "{e}");
    case.with(|o| o.overwrite = true).run().unwrap();
    let model = dir.path().join("out").display().to_string();
    let e = run_error(&case_with_rows(dir.path(), GOOD_ROW).with(|o| (o.model, o.overwrite) = (model, true)));
    assert!(e.contains("holds the model to train"), "{e}");
}
