//! Tests that only one process at a time can use an output folder, and that an earlier run in the folder is kept until
//! the first step of the new run is done.

use super::errors::{GOOD_ROW, MISSING_IMAGE_ROW, case_with_rows, run_error};
use super::resumed::case;
use super::*;

#[test]
fn folder_in_use_is_refused_with_the_process_id() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    case(&out).run().unwrap();
    let before = read_output_files(&out);
    let lock = output::lock_output_folder(&out).unwrap();
    type Change = fn(&mut SftOptions);
    let commands: [Change; 4] = [
        |_| (),
        |o| o.overwrite = true,
        |o| (o.resume_from_checkpoint, o.max_steps) = (Some("last".into()), Some(9)),
        |o| (o.check_data, o.overwrite) = (true, true),
    ];
    for change in commands {
        let e = run_error(&case(&out).with(change));
        assert!(e.contains(&format!("out: is in use by process {}; ", std::process::id())), "{e}");
    }
    // A resume with another output folder succeeds, because it locks only its own output folder.
    let from = |o: &mut SftOptions| o.resume_from_checkpoint = Some(out.join("checkpoint-2").display().to_string());
    case(&dir.path().join("other")).with(from).run().unwrap();
    drop(lock);
    assert_eq!(read_output_files(&out), before);
    // `--check-data` without `--out` locks the list file that it writes.
    let list = dir.path().join("list.jsonl");
    let _lock = reel_support::files::FileLock::acquire(&reel_samples::quarantine::lock_path(&list)).unwrap();
    let check = case_with_rows(dir.path(), GOOD_ROW)
        .with(|o| (o.check_data, o.quarantine, o.out) = (true, Some(list), PathBuf::new()));
    let e = run_error(&check);
    assert!(e.contains("list.jsonl: is in use by process "), "{e}");
}

#[test]
fn earlier_run_stays_until_the_first_step_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let fresh = dir.path().join("fresh");
    case_with_rows(dir.path(), GOOD_ROW).with(|o| (o.max_steps, o.save_steps) = (Some(2), 1)).run().unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let all_files = |folder: &Path| {
        let mut all = read_output_files(folder);
        all.extend([METRICS_FILE, RUN_FILE].map(|name| (name.to_string(), fs::read(folder.join(name)).unwrap())));
        all
    };
    let before = all_files(&out);
    // If the first step fails, or the run is stopped before the first step, the earlier run is restored; a new folder
    // is removed.
    for (folder, is_left) in [(&out, true), (&fresh, false)] {
        let begin = |rows: &str| {
            case_with_rows(dir.path(), rows).with(|o| (o.out, o.overwrite, o.strict) = (folder.clone(), true, true))
        };
        let e = run_error(&begin(MISSING_IMAGE_ROW));
        assert!(e.contains("none.png"), "{e}");
        assert!(folder.exists() == is_left && (!is_left || all_files(folder) == before));
        let stopped = begin(GOOD_ROW);
        stopped.stop.store(true, Ordering::Relaxed);
        let e = run_error(&stopped);
        assert!(e.contains("stopped after step 0; no step was finished and the folder is unchanged"), "{e}");
        assert!(folder.exists() == is_left && (!is_left || all_files(folder) == before));
    }
    // A run whose first step is done replaces the earlier run, even if the new run fails later.
    let rows = [GOOD_ROW, MISSING_IMAGE_ROW].join("\n");
    let e = run_error(
        &case_with_rows(dir.path(), &rows).with(|o| (o.overwrite, o.strict, o.max_steps) = (true, true, Some(2))),
    );
    assert!(e.contains("none.png"), "{e}");
    assert_eq!(read_metrics(&out).len(), 1);
    let has = |name: &str| out.join(name).exists();
    assert!(has("notes.txt") && !has("model.safetensors") && !has("checkpoint-2"));
    let saved = out.join("checkpoint-1/training/state.json");
    let state: Value = serde_json::from_slice(&fs::read(saved).unwrap()).unwrap();
    assert!(state["steps"] == 2 && state["position"]["slot"] == 1, "the new run saved its step: {state}");
    assert!(!has(".previous-run") && !has(".previous-run.part"));
}
