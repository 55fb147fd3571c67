//! Tests that a resumed run equals an uninterrupted run, bit for bit.

use super::*;
use crate::error::Kind;

pub(super) fn case(out: &Path) -> Case {
    Case::new("sft_all_tokens", "model_a", out).with(|o| (o.save_steps, o.weight_decay) = (2, 0.1))
}

#[test]
fn same_seed_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    case(&a).run().unwrap();
    Case { threads: 1, ..case(&b) }.run().unwrap();
    assert_same_files(&a, &b);
    assert_eq!(metrics_without_times(&a), metrics_without_times(&b));
    Case { seed: 7, ..case(&c) }.run().unwrap();
    assert_ne!(metrics_without_times(&a)[3].hash, metrics_without_times(&c)[3].hash);
}

#[test]
fn gradient_checkpointing_gives_the_same_bits_in_less_memory() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, checkpointing| {
        let out = dir.path().join(name);
        case(&out).with(|o| o.gradient_checkpointing = checkpointing).run().unwrap();
        metrics_without_times(&out)
    };
    let none = run("none", GradientCheckpointing::None);
    let (selective, full) = (run("selective", Selective), run("full", Full));
    for other in [&selective, &full] {
        assert!(
            none.iter().zip(other).all(|(a, b)| a.hash == b.hash && a.loss == b.loss && a.grad_norm == b.grad_norm)
        );
    }
    let peaks = [&full, &selective, &none].map(|steps| steps[3].peak_bytes);
    assert!(peaks[0] < peaks[1] && peaks[1] < peaks[2], "{peaks:?}");
    // `auto` keeps all activations, because memory is sufficient for those of this small model.
    assert_eq!(run("auto", Auto)[3].peak_bytes, none[3].peak_bytes);
}

/// Does a run in two parts: the first `first` steps, then the rest, resumed from the last checkpoint.
fn broken(out: &Path, first: i64, change: impl Fn(&mut SftOptions) + Copy, dtype: DType) {
    let part = |steps: i64, resume: Option<String>| {
        let case = case(out).with(change).with(|o| (o.max_steps, o.resume_from_checkpoint) = (Some(steps), resume));
        Case { dtype, ..case }.run().unwrap()
    };
    part(first, None);
    assert_eq!(part(4, Some("last".into())).resumed_after, first as u64);
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    let dir = tempfile::tempdir().unwrap();
    type Change = fn(&mut SftOptions);
    let kinds: [(&str, DType, Change); 7] = [
        ("f32", DType::F32, |_| ()),
        ("bf16", DType::BF16, |o| o.per_device_train_batch_size = 2),
        ("frozen", DType::F32, |o| o.freeze_vision = true),
        ("adapter", DType::F32, |o| o.lora_r = 2),
        ("adapter-of-both-towers", DType::BF16, |o| {
            (o.lora_r, o.lora_target_modules) = (3, Some(vec!["all-linear".into()]));
        }),
        ("moments-of-bf16", DType::BF16, |o| o.optim = Optim::AdamwBf16),
        ("moments-of-8-bits", DType::F32, |o| o.optim = Optim::Adamw8bit),
    ];
    for (name, dtype, change) in kinds {
        let whole = dir.path().join(name);
        Case { dtype, ..case(&whole).with(change) }.run().unwrap();
        for first in [1, 3] {
            let out = dir.path().join(format!("{name}-{first}"));
            broken(&out, first, change, dtype);
            assert_eq!(metrics_without_times(&whole), metrics_without_times(&out), "{name} after {first}");
            assert_same_weights_and_state(&whole.join("checkpoint-4"), &out.join("checkpoint-4"));
            let file = if name.starts_with("adapter") { "adapter_model.safetensors" } else { "model.safetensors" };
            assert_eq!(fs::read(whole.join(file)).unwrap(), fs::read(out.join(file)).unwrap());
        }
    }
}

/// Compares the run states and all files of two checkpoints.
fn assert_same_weights_and_state(a: &Path, b: &Path) {
    assert_eq!(resume::read_run_state(a).unwrap(), resume::read_run_state(b).unwrap());
    assert_same_files(a, b);
}

#[test]
fn killed_run_resumes_from_its_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| dir.path().join(name));
    case(&whole).run().unwrap();
    case(&killed).with(|o| o.max_steps = Some(3)).run().unwrap();
    // Simulates a kill while checkpoint 3 is written: its folder is incomplete and hidden, and the last line of
    // metrics is cut off.
    fs::rename(killed.join("checkpoint-3"), killed.join(".checkpoint-3.part")).unwrap();
    fs::remove_file(killed.join(".checkpoint-3.part/training/state.json")).unwrap();
    fs::write(killed.join(".model.safetensors.1.part"), "half").unwrap();
    let log = killed.join(METRICS_FILE);
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, &text[..text.len() - 9]).unwrap();
    let done = case(&killed).with(|o| o.resume_from_checkpoint = Some("last".into())).run().unwrap();
    assert_eq!(done.resumed_after, 2);
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&killed));
    // Checkpoint 2 is not compared: it stores the planned number of steps, which was 3 in the killed run and 4 in the
    // whole run.
    let without_2 = |out: &Path| fs::remove_dir_all(out.join("checkpoint-2")).unwrap();
    without_2(&whole);
    without_2(&killed);
    assert_same_files(&whole, &killed);
}

#[test]
fn run_killed_before_its_first_checkpoint_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| dir.path().join(name));
    case(&whole).run().unwrap();
    case(&killed).with(|o| (o.max_steps, o.save_steps) = (Some(1), 0)).run().unwrap();
    let e = case(&killed).with(|o| o.resume_from_checkpoint = Some("last".into())).run().unwrap_err();
    assert!(e.is_usage_error() && e.to_string().contains("killed has no checkpoint; give --overwrite instead"), "{e}");
    case(&killed).with(|o| o.overwrite = true).run().unwrap();
    assert_same_files(&whole, &killed);
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&killed));
}

#[test]
fn resume_beyond_the_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    case(&out).run().unwrap();
    let before = read_output_files(&out);
    let last = |o: &mut SftOptions| o.resume_from_checkpoint = Some("last".into());
    let refused = |case: Case, start: &str| {
        let e = case.run().unwrap_err();
        assert!(e.is_usage_error() && e.to_string().starts_with(start) && e.to_string().contains("; "), "{e}");
        assert_eq!(read_output_files(&out), before);
    };
    refused(case(&out).with(last), "--resume-from-checkpoint: ");
    refused(case(&out).with(last).with(|o| o.max_steps = Some(3)), "--max-steps: gives a run of 3 steps, but ");
    let fewer = |o: &mut SftOptions| (o.max_steps, o.num_train_epochs) = (None, 0.01);
    refused(case(&out).with(last).with(fewer), "--num-train-epochs: gives a run of 1 steps, but ");
    // If a run was killed after its last checkpoint, resuming it writes the trained model.
    let model = out.join("model.safetensors");
    let weights = fs::read(&model).unwrap();
    fs::remove_file(&model).unwrap();
    case(&out).with(last).run().unwrap();
    assert!(fs::read(&model).unwrap() == weights);
}

#[test]
fn interrupted_run_writes_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| dir.path().join(name));
    case(&whole).run().unwrap();
    let asked = case(&stopped);
    asked.stop.store(true, Ordering::Relaxed);
    let e = asked.run().unwrap_err();
    assert!(e.kind == Kind::Stopped && e.to_string().contains("stopped after step 0; "), "{e}");
    // Sets the stop flag as soon as the first line of metrics is written, so that the run stops in a later step.
    let running = case(&stopped).with(|o| (o.overwrite, o.save_steps) = (true, 100));
    let e = std::thread::scope(|scope| {
        let work = scope.spawn(|| running.run());
        let log = stopped.join(METRICS_FILE);
        while fs::metadata(&log).map_or(0, |m| m.len()) == 0 && !work.is_finished() {
            std::thread::yield_now();
        }
        running.stop.store(true, Ordering::Relaxed);
        work.join().unwrap()
    });
    if let Err(e) = e {
        let message = e.to_string();
        assert!(
            message.contains("stopped after step ") && message.contains("--resume-from-checkpoint last"),
            "{message}"
        );
        assert!(e.kind == Kind::Stopped && entries::checkpoints_by_step(&stopped).unwrap().len() == 1, "{message}");
        case(&stopped).with(|o| (o.resume_from_checkpoint, o.save_steps) = (Some("last".into()), 100)).run().unwrap();
    }
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&stopped));
    assert_same_files(&whole.join("checkpoint-4"), &stopped.join("checkpoint-4"));
}

#[test]
fn save_total_limit_keeps_the_newest_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    case(&out).with(|o| (o.save_steps, o.save_total_limit) = (1, Some(2))).run().unwrap();
    assert_eq!(entries::checkpoints_by_step(&out).unwrap().into_keys().collect::<Vec<_>>(), [3, 4]);
    for limit in [0, -1] {
        case(&out).with(|o| (o.save_steps, o.save_total_limit, o.overwrite) = (1, Some(limit), true)).run().unwrap();
        let kept = entries::checkpoints_by_step(&out).unwrap();
        assert_eq!(kept.into_keys().collect::<Vec<_>>(), [1, 2, 3, 4], "{limit}");
    }
}

#[test]
fn a_norm_of_0_clips_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let weights = |norm: f64| {
        let out = dir.path().join(format!("norm-{norm}"));
        case(&out).with(|o| (o.max_grad_norm, o.save_steps) = (norm, 0)).run().unwrap();
        fs::read(out.join("model.safetensors")).unwrap()
    };
    let unclipped = weights(0.0);
    assert!(unclipped == weights(1e9) && unclipped != weights(1e-6));
}

#[test]
fn a_missing_checkpoint_is_named_beside_those_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    case(&out).with(|o| o.save_steps = 2).run().unwrap();
    let missing = out.join("checkpoint-99").display().to_string();
    let e = case(&out).with(|o| o.resume_from_checkpoint = Some(missing.clone())).run().unwrap_err().to_string();
    assert_eq!(e, format!("{missing}: does not exist; {} has checkpoint-4, checkpoint-2", out.display()));
}

#[test]
fn checkpoint_resumes_in_another_folder() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, first, second] = ["whole", "first", "second"].map(|name| dir.path().join(name));
    case(&whole).run().unwrap();
    case(&first).with(|o| o.max_steps = Some(2)).run().unwrap();
    let from = |o: &mut SftOptions| o.resume_from_checkpoint = Some(first.join("checkpoint-2").display().to_string());
    fs::create_dir(&second).unwrap();
    fs::write(second.join(METRICS_FILE), "of another run").unwrap();
    let e = case(&second).with(from).run().unwrap_err().to_string();
    assert!(e.contains("second: has files that do not belong to the run of the checkpoint; "), "{e}");
    case(&second).with(from).with(|o| o.overwrite = true).run().unwrap();
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&second));
    assert_same_files(&whole.join("checkpoint-4"), &second.join("checkpoint-4"));
    assert!(!second.join("checkpoint-2").exists() && first.join("checkpoint-2").exists());
}

#[test]
fn checkpoint_of_another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    case(&out).with(|o| o.max_steps = Some(2)).run().unwrap();
    let resume = |o: &mut SftOptions| o.resume_from_checkpoint = Some("last".into());
    let message = |case: Case| case.run().unwrap_err().to_string();
    let e = message(case(&out).with(resume).with(|o| o.learning_rate = 1.0));
    assert!(e.starts_with("--learning-rate: is 1.0, but was 0.001 in "), "{e}");
    let e = message(Case { max_pixels: Some(3136), ..case(&out).with(resume) });
    assert!(e.starts_with("--max-pixels: is 3136, but was not given in "), "{e}");
    let e = message(Case { seed: 5, ..case(&out).with(resume) });
    assert!(e.starts_with("--seed: is 5, but was 0 in "), "{e}");
    let e = message(case(&out).with(resume).with(|o| o.model = golden("model_b").display().to_string()));
    assert!(e.starts_with("--model: is not the model"), "{e}");
    let e = message(case(&out).with(resume).with(|o| o.data = golden("sft_assistant_only/data.jsonl")));
    assert!(e.starts_with("--data: differs from the data of the run"), "{e}");
    let e =
        message(case(&out).with(|o| o.resume_from_checkpoint = Some(dir.path().join("none").display().to_string())));
    assert!(e.contains("none: does not exist; "), "{e}");
    let empty = out.join("empty");
    fs::create_dir(&empty).unwrap();
    let e = message(case(&out).with(|o| o.resume_from_checkpoint = Some(empty.display().to_string())));
    assert!(e.contains("empty: is not a checkpoint of a run"), "{e}");
    let optimizer = out.join("checkpoint-2/training/optimizer.safetensors");
    let bytes = fs::read(&optimizer).unwrap();
    fs::write(&optimizer, &bytes[..bytes.len() - 1]).unwrap();
    let e = message(case(&out).with(resume));
    assert!(e.contains("training/optimizer.safetensors: is damaged: "), "{e}");
}
