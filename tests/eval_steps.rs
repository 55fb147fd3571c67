//! `--eval-steps` of `reel sft` and `reel grpo`: the scores equal those of `reel eval` on the checkpoint of the same
//! step, and an evaluation does not affect training. A resumed run has the same evaluations as an uninterrupted one,
//! and the best checkpoint is the one with the highest score.

#[path = "support/own_task.rs"]
mod own_task;
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use own_task::CUSTOM_TASK_TOML;
use serde_json::{Value, json};
use support::{
    check_page, file_names_in, golden, metrics_without_times, run_in, send_signal, tiny_model_of, tiny_preset,
};

/// Creates a folder with a tiny model, rows for both commands, and a benchmark of four rows, the second of which has
/// a video.
fn folder() -> tempfile::TempDir {
    folder_with_model(&tiny_preset())
}

fn folder_with_model(preset: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model_of(at, preset);
    let write = |name: &str, rows: &mut dyn Iterator<Item = Value>| {
        let text: Vec<String> = rows.map(|row| row.to_string()).collect();
        fs::create_dir_all(at.join(name).parent().expect("a folder")).expect("a folder");
        fs::write(at.join(name), text.join("\n")).expect("written");
    };
    let asked = |i: usize| json!({"role": "user", "content": format!("What is {i} + {i}?")});
    write("rows.jsonl", &mut (0..12).map(|i| json!({"messages": [asked(i), {"role": "assistant", "content": "A"}]})));
    let prompt =
        |i: usize| json!({"prompt": [asked(i)], "solution": "<answer>A</answer>", "problem_type": "multiple choice"});
    write("prompts.jsonl", &mut (0..12).map(prompt));
    let question = |i: usize| json!({"q": format!("Which {i}?"), "o": ["x", "y", "z"], "a": i % 3, "v": if i == 1 { "clip" } else { "none" }});
    write("bench/rows.jsonl", &mut (0..4).map(question));
    // The video is a clip of nine frames: with a longer video, the evaluations would take most of the test's time.
    fs::copy(golden("clips/h264_709.mp4"), at.join("bench/clip.mp4")).expect("copied");
    fs::write(at.join("mine.toml"), CUSTOM_TASK_TOML).expect("written");
    folder
}

/// Splits the parts of a command line into words. An option in a later part replaces the same option of earlier
/// parts.
fn words(parts: &[&str]) -> Vec<String> {
    let mut all: Vec<&str> = Vec::new();
    for part in parts {
        all = support::with_options(&all, &part.split_whitespace().collect::<Vec<_>>());
    }
    all.into_iter().map(String::from).collect()
}

const SFT: &str = "sft --model tiny --data rows.jsonl --max-steps 6 --gradient-accumulation-steps 1 --learning-rate 1e-3 \
                   --save-steps 2 --threads 1";
const GRPO: &str = "grpo --model tiny --data prompts.jsonl --max-steps 4 --num-generations 4 \
                    --per-device-train-batch-size 4 --max-completion-length 8 --learning-rate 1e-3 --save-steps 2 \
                    --threads 1";
const EVAL: &str = "--eval-steps 2 --eval-benchmark mine.toml --eval-data bench --eval-max-new-tokens 6";

fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))).expect("JSON")
}

/// Returns the lines of eval.jsonl without the times.
fn evaluations(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("eval.jsonl")).expect("eval.jsonl");
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for line in lines.iter_mut().filter_map(Value::as_object_mut) {
        assert!(line.shift_remove("eval_seconds").is_some_and(|seconds| seconds.is_number()));
    }
    lines
}

fn steps(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["step"].as_u64().expect("a step")).collect()
}

/// Checks that the files of an evaluation during training equal those of `reel eval` on the checkpoint.
fn assert_equals_reel_eval(at: &Path, out: &str, step: u64, more: &str) {
    let alone = format!("alone-{out}-{step}");
    let args = format!(
        "eval --model {out}/checkpoint-{step} --benchmark mine.toml --data bench --max-new-tokens 6 --threads 1 --quiet \
         --out {alone} {more}"
    );
    run_in(at, words(&[&args])).ok();
    let during = at.join(format!("{out}/eval/step-{step}"));
    assert_eq!(file_names_in(&during), ["mine.json", "mine.jsonl", "mine.jsonl.run.json", "mine.toml"]);
    let [a, b] = [&during, &at.join(&alone)].map(|run| fs::read(run.join("mine.jsonl")).expect("answers"));
    assert!(a == b, "{out}, step {step}: {}", String::from_utf8_lossy(&a));
    let [mut a, mut b] = [&during, &at.join(&alone)].map(|run| read(&run.join("mine.json")));
    assert_eq!(a["protocol"]["options"], b["protocol"]["options"]);
    assert_eq!(a["protocol"]["model"]["path"], json!(format!("{out}/checkpoint-{step}")));
    for report in [&mut a, &mut b] {
        report.as_object_mut().expect("an object").shift_remove("protocol");
    }
    assert_eq!(a, b);
    let lines = evaluations(&at.join(out));
    let line = lines.iter().find(|line| line["step"] == step).expect("a line");
    assert_eq!(line["benchmarks"]["mine"]["score"], a["overall"]);
    assert_eq!(line["benchmarks"]["mine"]["ci95"], a["overall_ci95"]);
    // `reel eval compare` and `reel report` treat the folder of an evaluation during training like a folder of
    // `reel eval`.
    let compared = run_in(at, ["eval", "compare", &format!("{out}/eval/step-{step}"), &alone]);
    assert!(
        compared.ok().contains("only A right 0, only B right 0") && compared.stderr.is_empty(),
        "{}",
        compared.stderr
    );
}

/// A model of which prompts have another form in training is evaluated with prompts of this form, in training and by
/// `reel eval`.
#[test]
fn prompts_of_evaluations_have_the_form_of_those_in_training() {
    let folder = folder_with_model("qwen3-tiny");
    let at = folder.path();
    run_in(at, words(&[SFT, EVAL, "--max-steps 2 --video-marks outer --add-vision-id --out a"])).ok();
    assert_equals_reel_eval(at, "a", 2, "");
    let options = &read(&at.join("alone-a-2/mine.json"))["protocol"]["options"];
    assert_eq!((&options["video_marks"], &options["add_vision_id"]), (&json!("outer"), &json!(true)));
    assert_eq!(options["family"], "qwen3_vl");
}

#[test]
fn scores_of_sft_are_those_of_reel_eval_and_training_is_unchanged() {
    let folder = folder();
    let at = folder.path();
    let done = run_in(at, words(&[SFT, EVAL, "--eval-on-start --out a --report-to tensorboard,wandb"]));
    done.ok();
    assert!(done.stderr.contains("step 2: evaluating on mine\nstep 2: mine "), "{}", done.stderr);
    assert_eq!(steps(&evaluations(&at.join("a"))), [0, 2, 4, 6]);
    assert_equals_reel_eval(at, "a", 2, "");
    assert_equals_reel_eval(at, "a", 6, "");
    let rows = fs::read_to_string(at.join("a/eval/step-2/mine.jsonl")).expect("answers");
    assert!(!rows.contains("\"error\""), "{rows}");
    run_in(at, words(&[SFT, "--out plain"])).ok();
    assert_eq!(metrics_without_times(&at.join("a")), metrics_without_times(&at.join("plain")));
    for file in ["model.safetensors", "hashes.bin", "checkpoint-4/training/optimizer.safetensors"] {
        let [a, b] = ["a", "plain"].map(|run| fs::read(at.join(run).join(file)).expect("a file"));
        assert!(a == b, "{file}");
    }
    assert!(!at.join("plain/eval.jsonl").exists());
    assert!(read(&at.join("plain/trainer_state.json"))["best_global_step"].is_null());
    // A replay repeats a training step without its evaluation.
    assert!(run_in(at, ["replay", "a", "--step", "5"]).ok().contains("gives the same bits"));
    // The page shows the scores, and the logs of TensorBoard and Weights & Biases have the name of the score.
    run_in(at, ["report", "a", "--out", "page.html"]).ok();
    let page = fs::read_to_string(at.join("page.html")).expect("a page");
    assert!(check_page(&page).iter().any(|chart| chart["name"] == "eval/mine"), "no chart of the scores");
    let has_name = |folder: &Path| {
        let files = file_names_in(folder).into_iter().map(|name| folder.join(name)).filter(|path| path.is_file());
        let bytes: Vec<u8> = files.flat_map(|file| fs::read(file).expect("a file")).collect();
        bytes.windows(9).any(|part| part == b"eval/mine")
    };
    let part = file_names_in(&at.join("a/wandb")).remove(0);
    assert!(has_name(&at.join("a")) && has_name(&at.join("a/wandb").join(part)));
}

#[test]
fn scores_of_an_adapter_and_of_grpo_are_those_of_reel_eval() {
    let folder = folder();
    let at = folder.path();
    run_in(at, words(&[SFT, EVAL, "--lora-r 4 --max-steps 2 --dtype bf16 --quiet --out lora"])).ok();
    assert_equals_reel_eval(at, "lora", 2, "--dtype bf16");
    run_in(at, words(&[GRPO, EVAL, "--quiet --out grpo"])).ok();
    assert_equals_reel_eval(at, "grpo", 4, "");
    run_in(at, words(&[GRPO, "--quiet --out plain"])).ok();
    assert_eq!(metrics_without_times(&at.join("grpo")), metrics_without_times(&at.join("plain")));
}

#[test]
fn best_checkpoint_has_the_highest_score_and_stays() {
    let folder = folder();
    let at = folder.path();
    run_in(at, words(&[SFT, EVAL, "--save-total-limit 1 --quiet --out a"])).ok();
    let lines = evaluations(&at.join("a"));
    let score = |line: &Value| line["score"].as_f64().expect("a score");
    let best = lines.iter().fold(&lines[0], |best, line| if score(line) > score(best) { line } else { best });
    let state = read(&at.join("a/trainer_state.json"));
    assert_eq!((&state["best_global_step"], &state["best_metric"]), (&best["step"], &best["score"]));
    assert_eq!(state["stateful_callbacks"]["reel"]["args"]["metric_for_best_model"], "eval/mine(4)");
    let kept = format!("checkpoint-{}", best["step"]);
    assert!(at.join("a").join(&kept).is_dir() && at.join("a/checkpoint-6").is_dir());
    let checkpoints = file_names_in(&at.join("a")).into_iter().filter(|name| name.starts_with("checkpoint-"));
    assert_eq!(checkpoints.count(), if kept == "checkpoint-6" { 1 } else { 2 });
}

/// Starts a run and sends it a signal during the evaluation of step `step`, once `is_time` returns true. Waits for
/// its end.
fn stop_in_evaluation(at: &Path, args: Vec<String>, step: u64, signal: &str, is_time: impl Fn() -> bool) {
    support::let_children_receive_sigint();
    let mut command = support::reel();
    let mut child =
        command.current_dir(at).args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut said = BufReader::new(child.stderr.take().expect("stderr")).lines().map(|line| line.expect("text"));
    let begun = format!("step {step}: evaluating on mine");
    let mut before = Vec::new();
    while before.last() != Some(&begun) {
        before.push(said.next().unwrap_or_else(|| panic!("the run ended before the evaluation: {before:?}")));
    }
    while !is_time() {
        assert!(child.try_wait().expect("a state").is_none(), "the run ended before it was stopped");
        std::thread::sleep(Duration::from_millis(1));
    }
    send_signal(child.id(), signal);
    said.for_each(drop);
    child.wait().expect("it ends");
}

#[test]
fn stopped_runs_have_the_evaluations_of_an_unbroken_one() {
    let folder = folder();
    let at = folder.path();
    // Answers are generated one at a time, so that the signal arrives between two answers.
    let run = |out: &str, more: &str| words(&[SFT, EVAL, "--max-steps 8 --eval-batch-size 1 --out", out, more]);
    run_in(at, run("whole", "")).ok();
    let answers = |step: u64| {
        let partial = at.join(format!("broken/eval/step-{step}/mine.jsonl.partial"));
        fs::read(partial).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count()
    };
    // The run is killed during the evaluation of step 6. After a resume it starts from an earlier checkpoint and
    // reaches step 6 with the same weights.
    stop_in_evaluation(at, run("broken", ""), 6, "-KILL", || answers(6) >= 1);
    assert_eq!(steps(&evaluations(&at.join("broken"))), [2, 4]);
    let early = fs::read(at.join("broken/eval/step-6/mine.jsonl.partial")).expect("answers");
    // The run is interrupted during the evaluation of step 6, after the checkpoint of that step.
    stop_in_evaluation(at, run("broken", "--resume-from-checkpoint last"), 6, "-INT", || true);
    assert!(at.join("broken/checkpoint-6").is_dir());
    assert_eq!(steps(&evaluations(&at.join("broken"))), [2, 4]);
    let later = fs::read(at.join("broken/eval/step-6/mine.jsonl.partial")).expect("answers");
    let whole_lines = early.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    assert!(later.starts_with(&early[..whole_lines]), "the answers were asked again");
    let resumed = run_in(at, run("broken", "--resume-from-checkpoint last"));
    resumed.ok();
    let [whole, broken] = ["whole", "broken"].map(|out| at.join(out));
    assert_eq!(evaluations(&broken), evaluations(&whole));
    assert_eq!(metrics_without_times(&broken), metrics_without_times(&whole));
    let mut files: Vec<String> =
        ["model.safetensors", "checkpoint-6/training/optimizer.safetensors"].map(Into::into).into();
    files.extend([2, 4, 6, 8].map(|step| format!("eval/step-{step}/mine.jsonl")));
    for file in files {
        assert!(
            fs::read(broken.join(&file)).expect("a file") == fs::read(whole.join(&file)).expect("a file"),
            "{file}"
        );
    }
    let best = |out: &Path| {
        let mut state = read(&out.join("trainer_state.json"));
        state.as_object_mut().expect("an object").shift_remove("best_model_checkpoint");
        state
    };
    assert_eq!(best(&broken), best(&whole));
}

/// The test replaces recorded answers by correct ones, so the score shows which answers a resumed run has reused.
#[test]
fn answers_of_the_same_weights_are_not_asked_again() {
    let folder = folder();
    let at = folder.path();
    let run = |more: &str| run_in(at, words(&[SFT, EVAL, "--max-steps 4 --out a", more]));
    run("").ok();
    let out = at.join("a");
    let (during, state) = (out.join("eval/step-4"), || read(&out.join("trainer_state.json")));
    assert!(state()["best_metric"].as_f64().is_some_and(|score| score < 1.0), "random answers: {}", state());
    let own = fs::read_to_string(during.join("mine.jsonl")).expect("answers");
    let right = |line: &str| {
        let mut row: Value = serde_json::from_str(line).expect("JSON");
        row["output"] = row["solution"].clone();
        format!("{row}\n")
    };
    let resume = |more: &str| {
        fs::remove_dir_all(out.join("checkpoint-4")).expect("removed");
        let resumed = run(&format!("--resume-from-checkpoint last {more}"));
        resumed.ok();
        assert!(!resumed.stderr.contains("step 2: evaluating"), "{}", resumed.stderr);
        (fs::read_to_string(during.join("mine.jsonl")).expect("answers"), evaluations(&out))
    };
    // A complete evaluation is only scored again, and its checkpoint becomes the best one.
    let all: String = own.lines().map(right).collect();
    fs::write(during.join("mine.jsonl"), &all).expect("written");
    let (answers, lines) = resume("");
    assert!(answers == all, "{answers}");
    assert_eq!((steps(&lines), &lines[1]["score"]), (vec![2, 4], &json!(1.0)));
    assert_eq!((&state()["best_global_step"], &state()["best_metric"]), (&json!(4), &json!(1.0)));
    // An evaluation with two recorded answers continues after these answers.
    let begun: String = own.lines().take(2).map(right).collect();
    fs::write(during.join("mine.jsonl.partial"), &begun).expect("written");
    fs::rename(during.join("mine.jsonl.run.json"), during.join("mine.jsonl.partial.run.json")).expect("renamed");
    fs::remove_file(during.join("mine.jsonl")).expect("removed");
    let (answers, lines) = resume("");
    let rest: String = own.lines().skip(2).map(|line| format!("{line}\n")).collect();
    assert!(answers == begun + &rest, "{answers}");
    assert!(lines[1]["score"].as_f64().is_some_and(|score| (0.5..1.0).contains(&score)), "{}", lines[1]);
    // With another number of questions (--eval-limit), the recorded answers are replaced, and the score is not compared
    // with earlier scores.
    let (answers, lines) = resume("--eval-limit 2");
    assert_eq!((answers.lines().count(), &lines[1]["benchmarks"]["mine"]["n"]), (2, &json!(2)));
    let metric = &state()["stateful_callbacks"]["reel"]["args"]["metric_for_best_model"];
    assert_eq!((&state()["best_global_step"], metric), (&json!(4), &json!("eval/mine(2)")));
}

#[test]
fn interrupted_first_evaluation_leaves_the_folder_as_it_was() {
    let folder = folder();
    let at = folder.path();
    run_in(at, words(&[SFT, EVAL, "--max-steps 2 --quiet --out a"])).ok();
    fs::write(at.join("a/eval/notes.txt"), "mine").expect("written");
    let before = file_names_in(&at.join("a"));
    let args = words(&[SFT, EVAL, "--eval-on-start --eval-batch-size 1 --out a --overwrite"]);
    stop_in_evaluation(at, args, 0, "-INT", || true);
    assert_eq!(file_names_in(&at.join("a")), before);
    assert_eq!(file_names_in(&at.join("a/eval")), ["notes.txt", "step-2"]);
}

#[test]
fn wrong_use_is_refused_before_the_first_step() {
    let folder = folder();
    let at = folder.path();
    let refused = |more: &str, code: i32, expected: &[&str]| {
        run_in(at, words(&[SFT, "--out o --quiet", more])).assert_refused(code, expected);
        assert!(!at.join("o/metrics.jsonl").exists(), "{more}");
    };
    refused("--eval-steps 2", 2, &["--eval-benchmark: is missing", "--eval-steps"]);
    refused("--eval-steps 2 --eval-benchmark mmvu", 2, &["--eval-data: is missing", "folder"]);
    refused("--eval-data bench", 2, &["--eval-data: has no effect without --eval-steps"]);
    refused("--eval-steps 4 --eval-benchmark mmvu --eval-data bench", 2, &["--save-steps: is 2", "--eval-steps 4"]);
    refused("--eval-steps 2 --eval-benchmark none --eval-data bench", 2, &["--eval-benchmark: unknown", "videomme"]);
    refused("--eval-steps 2 --eval-benchmark mine.toml --eval-data gone", 1, &["gone"]);
    refused(&format!("{EVAL} --eval-media-root gone"), 2, &["--eval-media-root: is gone"]);
    refused(&format!("{EVAL} --eval-media-root tiny"), 1, &["has none of the 1 videos", "--eval-media-root"]);
    refused(&format!("{EVAL} --metric-for-best-model reward"), 2, &["--metric-for-best-model", "no rewards"]);
    let of_trl = run_in(at, words(&[SFT, "--out o --quiet --load-best-model-at-end"]));
    assert!(of_trl.code == Some(2) && of_trl.stderr.contains("trainer_state.json"), "{}", of_trl.stderr);
}
