//! GRPO runs that sample their own completions.

use std::sync::Arc;

use crate::metrics::StepMetrics;
use crate::options::GradientCheckpointing;
use proptest::prelude::*;

use super::*;
use crate::runs::folder::resume;
use crate::runs::testing::{assert_same_files, metrics_without_times};

/// Returns three data rows: text alone, an image, and a video of four frames, each with its solution.
pub(super) fn data_rows() -> String {
    let answer = |row: Value, kind: &str, solution: &str| {
        let mut row = row;
        row["problem_type"] = json!(kind);
        row["solution"] = json!(format!("<answer>{solution}</answer>"));
        row.to_string()
    };
    let ask = |content: Value| json!({"prompt": [{"role": "user", "content": content}]});
    let frames: Vec<String> = (0..4).map(|i| format!("media/frames/{i:03}.png")).collect();
    [
        answer(ask(json!("2 + 2?")), "numerical", "4"),
        answer(
            ask(json!([{"type": "video", "video": frames}, {"type": "text", "text": "Where?"}])),
            "free-form",
            "left",
        ),
        answer(
            ask(json!([{"type": "image", "image": "media/b.png"}, {"type": "text", "text": "What?"}])),
            "OCR",
            "a b",
        ),
        answer(ask(json!("Name a colour.")), "free-form", "green"),
    ]
    .join("\n")
}

/// Makes a run of four steps on the data rows `rows`, with output folder `out` in `dir`.
pub(super) fn case(dir: &Path, out: &str, rows: &str) -> Case {
    let data = dir.join("rows.jsonl");
    fs::write(&data, rows).unwrap();
    let run = RunOptions {
        model: golden("model_a").display().to_string(),
        data,
        media_root: Some(golden("../grpo/grpo_clip_iter2")),
        out: dir.join(out),
        learning_rate: 1e-3,
        lr_scheduler_type: LrScheduler::Constant,
        per_device_train_batch_size: 4,
        gradient_accumulation_steps: 1,
        max_steps: Some(4),
        ..Default::default()
    };
    Case::new(GrpoOptions { run, num_generations: 4, max_completion_length: 12, temporal: true, ..Default::default() })
}

/// A reward command whose rewards differ between completions: the length of the JSON row that it gets.
pub(super) const DIFFERENT_REWARDS: &str = "while read -r line; do echo ${#line}; done";

/// Makes a run ([`case`]) on three data rows, with rewards that differ between completions.
fn live(dir: &Path, out: &str) -> Case {
    case(dir, out, &data_rows()).with(|o| o.reward_command = vec![DIFFERENT_REWARDS.into()])
}

#[test]
fn sampled_log_probs_equal_trained_log_probs() {
    let dir = tempfile::tempdir().unwrap();
    // With full recompute, training computes every matrix product itself and reuses none from the rollout.
    let case = live(dir.path(), "out").with(|o| o.gradient_checkpointing = GradientCheckpointing::Full);
    case.run().unwrap();
    let lines = read_metrics(&dir.path().join("out"));
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert_eq!(line.grpo.rollout_drift, Some(0.0), "step {}", line.step);
        assert!(
            line.grpo.entropy.unwrap() > 0.5 && line.grpo.rewards.iter().any(|(name, _)| name == "rewards/accuracy")
        );
        assert!(line.grpo.completion_length.unwrap() > 0.0);
    }
    // In the first step the policy equals the reference model (KL 0); the weights change in each step, so later KL is
    // above 0.
    assert!(lines[0].grpo.kl == Some(0.0) && lines[3].grpo.kl.unwrap() > 0.0);
}

#[test]
fn recorded_rollouts_train_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), "drawn").with(|o| o.no_shuffle = true).run().unwrap();
    let drawn = dir.path().join("drawn");
    let all: String =
        (1..=4).map(|n| fs::read_to_string(records::rollouts_file_path(&drawn.join("rollouts"), n)).unwrap()).collect();
    assert!(all.lines().count() == 4 && all.contains("\"shuffled_texts\":"), "{all}");
    let rollouts = dir.path().join("rollouts.jsonl");
    fs::write(&rollouts, all).unwrap();
    let given = live(dir.path(), "given").with(|o| {
        (o.no_shuffle, o.temporal, o.reward_command, o.rollouts) = (true, false, Vec::new(), Some(rollouts));
    });
    given.run().unwrap();
    let hashes = |out: &str| read_metrics(&dir.path().join(out)).into_iter().map(|m| m.hash).collect::<Vec<_>>();
    assert_eq!(hashes("drawn"), hashes("given"));
}

#[test]
fn same_seed_gives_the_same_run_on_any_threads() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), "two").run().unwrap();
    Case { device: Device::cpu(1), ..live(dir.path(), "one") }.run().unwrap();
    Case { seed: 1, ..live(dir.path(), "other") }.run().unwrap();
    let [two, one, other] = ["two", "one", "other"].map(|out| dir.path().join(out));
    assert_eq!(metrics_without_times(&two), metrics_without_times(&one));
    assert_same_files(&two, &one);
    assert_ne!(metrics_without_times(&two), metrics_without_times(&other));
}

#[test]
fn resumed_run_equals_uninterrupted_run_also_inside_a_rollout_set() {
    for (iterations, first) in [(1, 2), (2, 1), (2, 3), (3, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let case = |out: &str, steps: i64, resume: Option<&str>| {
            let resume = resume.map(String::from);
            live(dir.path(), out).with(|o| {
                (o.num_iterations, o.max_steps, o.resume_from_checkpoint) = (iterations, Some(steps), resume);
                o.save_steps = 1;
            })
        };
        case("whole", 4, None).run().unwrap();
        case("broken", first, None).run().unwrap();
        case("broken", 4, Some("last")).run().unwrap();
        let [whole, broken] = ["whole", "broken"].map(|out| dir.path().join(out));
        assert_eq!(
            metrics_without_times(&whole),
            metrics_without_times(&broken),
            "{iterations} iterations, stopped after {first}"
        );
        for line in read_metrics(&broken) {
            let drew = (line.step - 1).is_multiple_of(iterations);
            assert_eq!(line.grpo.rollout_seconds > Some(0.0), drew, "step {}", line.step);
        }
        // Checkpoints of the run's first part are not compared, because they store the planned number of steps, and the
        // first part planned fewer steps.
        for step in first + 1..=4 {
            let name = format!("checkpoint-{step}");
            assert_same_files(&whole.join(&name), &broken.join(&name));
        }
        assert_eq!(resume::read_run_state(&broken.join("checkpoint-4")).unwrap().step, 4);
    }
}

#[test]
fn dynamic_sampling_replaces_groups_of_equal_rewards() {
    let dir = tempfile::tempdir().unwrap();
    // The reward command gives 1 to every completion of the row about a colour, so the rewards of that row's group
    // are equal.
    let command = "while read -r line; do case $line in *colour*) echo 1;; *) echo ${#line};; esac; done";
    let plain = live(dir.path(), "plain").with(|o| o.reward_command = vec![command.into()]);
    plain.run().unwrap();
    let zero = |m: &StepMetrics| m.grpo.frac_reward_zero_std > Some(0.0);
    let lines = read_metrics(&dir.path().join("plain"));
    assert!(lines.iter().any(zero) && !lines.iter().all(zero));
    assert!(lines.iter().filter(|m| m.grpo.reward_std == Some(0.0)).all(|m| m.grpo.frac_reward_zero_std == Some(1.0)));
    let dynamic = live(dir.path(), "dynamic");
    dynamic.with(|o| (o.reward_command, o.dynamic_sampling) = (vec![command.into()], true)).run().unwrap();
    let lines = read_metrics(&dir.path().join("dynamic"));
    assert!(!lines.iter().any(zero), "{lines:?}");
    assert!(lines.iter().any(|m| m.grpo.dropped_groups > Some(0)));
    let same = live(dir.path(), "same").with(|o| {
        (o.reward_command, o.dynamic_sampling) = (vec!["while read -r line; do echo 1; done".into()], true);
    });
    let e = same.run().unwrap_err();
    assert!(!e.is_usage_error(), "the options are fine");
    let e = e.to_string();
    assert!(
        e.starts_with(
            "--dynamic-sampling: in step 1, each of the 10 sampled groups has the same reward for all of its completions"
        ),
        "{e}"
    );
}

#[test]
fn run_ends_normally_when_its_last_groups_have_equal_rewards() {
    let dir = tempfile::tempdir().unwrap();
    let command = "while read -r line; do case $line in *colour*) echo 1;; *) echo ${#line};; esac; done";
    let epoch = live(dir.path(), "out").with(|o| {
        (o.reward_command, o.dynamic_sampling) = (vec![command.into()], true);
        (o.max_steps, o.no_shuffle, o.save_steps) = (None, true, 100);
    });
    assert_eq!(epoch.run().unwrap().last.unwrap().step, 3);
    assert!(dir.path().join("out/model.safetensors").is_file() && dir.path().join("out/checkpoint-3").is_dir());
}

/// The frames of a sampling step are reported even if that step's metrics are not reported.
#[test]
fn event_file_has_frames_although_the_sampling_steps_are_not_reported() {
    let dir = tempfile::tempdir().unwrap();
    let video = data_rows().lines().nth(1).unwrap().to_string();
    let case = case(dir.path(), "out", &video).with(|o| {
        (o.num_iterations, o.logging_steps, o.max_steps, o.save_steps) = (2, 2, Some(3), 0);
    });
    case.run().unwrap();
    let entries = fs::read_dir(dir.path().join("out")).unwrap().map(|entry| entry.unwrap().path());
    let events =
        entries.filter(|path| path.display().to_string().contains("tfevents")).map(|path| fs::read(path).unwrap());
    let events = events.collect::<Vec<_>>().concat();
    let count = |tag: &str| events.windows(tag.len()).filter(|part| *part == tag.as_bytes()).count();
    assert_eq!((count("rollouts/frames"), count("rollouts/completions"), count("train/loss")), (2, 2, 2));
}

#[test]
fn siglip_encodes_each_frame_once() {
    let dir = tempfile::tempdir().unwrap();
    let video = data_rows().lines().nth(1).unwrap().to_string();
    let case = case(dir.path(), "out", &video).with(|o| {
        (o.siglip, o.max_steps) = (Some(golden("../siglip/model")), Some(3));
        (o.num_generations, o.per_device_train_batch_size) = (8, 8);
    });
    case.run().unwrap();
    let lines = read_metrics(&dir.path().join("out"));
    // SigLIP encodes the four frames in the first step; later steps find them in its cache. Shuffled frames get no
    // semantic reward, so they are never encoded.
    let encoded: Vec<Option<u64>> = lines.iter().map(|m| m.grpo.frames_encoded).collect();
    assert_eq!(encoded, [Some(4), Some(0), Some(0)]);
    assert!(lines.iter().all(|m| m.grpo.rewards.iter().any(|(name, _)| name == "rewards/semantic")), "{lines:?}");
    let e = super::live::case(dir.path(), "none", &video).with(|o| o.siglip = Some(dir.path().to_path_buf()));
    let e = e.run().unwrap_err().to_string();
    assert!(e.contains("config.json") && e.contains("; "), "{e}");
    assert!(!dir.path().join("none").exists(), "a run that fails to start leaves no files");
}

#[test]
fn min_completion_length_and_mask_truncated_completions_work() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), "fixed").with(|o| o.min_completion_length = 12).run().unwrap();
    for line in read_metrics(&dir.path().join("fixed")) {
        assert_eq!(line.grpo.completion_length, Some(12.0));
    }
    let masked = live(dir.path(), "masked").with(|o| {
        (o.min_completion_length, o.mask_truncated_completions, o.beta) = (12, true, 0.0);
    });
    // The minimum length bans end tokens, so every completion reaches the maximum length and is masked: no token is
    // learned.
    masked.run().unwrap();
    for line in read_metrics(&dir.path().join("masked")) {
        assert_eq!((line.loss, line.grad_norm), (0.0, 0.0));
    }
}

#[test]
fn text_prompt_is_used_without_chat_template() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"prompt": "2 + 2 =", "solution": "<answer>4</answer>", "problem_type": "numerical"});
    let run = case(dir.path(), "out", &row.to_string()).with(|o| o.max_steps = Some(1));
    run.run().unwrap();
    let recorded = fs::read_to_string(dir.path().join("out/rollouts/000001.jsonl")).unwrap();
    let recorded: Value = serde_json::from_str(recorded.trim()).unwrap();
    assert_eq!(recorded["prompt"], json!("2 + 2 ="));
    // A text prompt gets no chat template and no system message, so the number of trained tokens is that of the plain
    // text and its completions.
    let words = reel_input::ModelFolder::open(&golden("model_a")).unwrap().tokenizer.encode("2 + 2 =").unwrap().len();
    let drawn: usize = recorded["completions"].as_array().unwrap().iter().map(|c| c.as_array().unwrap().len()).sum();
    assert_eq!(read_metrics(&dir.path().join("out"))[0].tokens as usize, words - 1 + drawn);
}

#[test]
fn simulator_samples_the_log_probs_that_it_trains() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let dir = tempfile::tempdir().unwrap();
    let device = Device::sim(reel_device::SimOptions { threads: 2, ..Default::default() }).unwrap();
    let case = Case { device, ..live(dir.path(), "sim") };
    case.with(|o| {
        (o.num_generations, o.per_device_train_batch_size, o.max_completion_length) = (2, 2, 3);
        (o.max_steps, o.no_shuffle, o.temporal) = (Some(1), true, false);
    })
    .run()
    .unwrap();
    let lines = read_metrics(&dir.path().join("sim"));
    // The log-probabilities differ by rounding: the sampling kernel and the training kernel sum the exponentials over
    // the vocabulary in different orders.
    let drift = lines[0].grpo.rollout_drift.unwrap();
    assert!(drift <= 1e-6, "{drift:e}");
}

/// On an H100, prefill, decode steps and training sum in the same order and round the same results, and sampling sums
/// exponentials exactly. So a log-probability has the same bits in a rollout and in its training step. The test
/// varies the number of completions, because there are different matrix-product kernels for up to 8, up to 16 and
/// more rows.
#[test]
fn hopper_trains_the_log_probs_that_it_sampled() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let dir = tempfile::tempdir().unwrap();
    let frames: Vec<String> = (0..4).map(|i| format!("media/frames/{i:03}.png")).collect();
    // An adapter only adds zeros before its first step, so the run with an adapter has two steps.
    for (completions, words, lora, steps) in [(2, 1, 0, 1), (7, 20, 4, 2), (16, 1, 0, 1), (20, 1, 0, 1)] {
        let text = "Where? ".repeat(words);
        let content = json!([{"type": "video", "video": frames}, {"type": "text", "text": text}]);
        let message = json!({"role": "user", "content": content});
        let row = json!({"prompt": [message], "problem_type": "free-form", "solution": "<answer>left</answer>"});
        let options = reel_device::SimOptions { arch: reel_device::Arch::H100, threads: 2, ..Default::default() };
        let (device, out) = (Device::sim(options).unwrap(), completions.to_string());
        let case = Case { device, dtype: DType::BF16, ..case(dir.path(), &out, &row.to_string()) };
        case.with(|o| {
            o.model = golden("../model/image_hd128_bf16/model").display().to_string();
            (o.num_generations, o.per_device_train_batch_size, o.max_completion_length) = (completions, completions, 3);
            (o.max_steps, o.temporal, o.lora_r) = (Some(steps), false, lora);
            o.reward_command = vec![DIFFERENT_REWARDS.into()];
        })
        .run()
        .unwrap();
        let lines = read_metrics(&dir.path().join(&out));
        let drifts: Vec<_> = lines.iter().map(|line| line.grpo.rollout_drift).collect();
        assert_eq!(drifts, vec![Some(0.0); steps as usize], "{completions} completions, LoRA {lora}");
        assert!(lines[0].grad_norm > 0.0, "{completions} completions: rewards that do not differ change no weight");
    }
}

proptest! {
    /// Shuffling a video keeps its frames and changes only their order, which depends on the seed.
    #[test]
    fn shuffling_moves_whole_frames(frames in 1usize..20, seed: u64) {
        use reel_input::media::frames::FrameBuf;
        let video = FrameBuf { data: Arc::new((0..frames * 12).map(|i| (i / 12) as u8).collect()), frames, height: 2, width: 2 };
        let mut tokens = reel_input::ModelInput::default();
        tokens.frames.videos = vec![video.clone(), video];
        let moved = crate::rollout::with_shuffled_frames(&tokens, seed);
        for video in &moved.frames.videos {
            let first: Vec<u8> = video.data.chunks(12).map(|frame| frame[0]).collect();
            prop_assert!(video.data.chunks(12).all(|frame| frame.iter().all(|b| *b == frame[0])));
            let mut sorted = first.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..frames as u8).collect::<Vec<_>>());
        }
        prop_assert_eq!(crate::rollout::with_shuffled_frames(&tokens, seed).frames, moved.frames);
    }
}
