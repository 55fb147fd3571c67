//! `reel grpo --reward-funcs`: Python functions with TRL's signature, their names and weights, their output, and
//! their errors. `--reward-command`: output of the command on stderr.

#[path = "support/grpo_run.rs"]
mod grpo_run;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use grpo_run::{grpo_args, training_folder};
use serde_json::Value;
use support::{FinishedRun, read_metrics, run_in};

const FUNCTIONS: &str = r#"
def length(prompts, completions, completion_ids, solution, **columns):
    print("seen", len(completions), prompts[0][0]["content"])
    assert len(prompts) == len(completions) == len(solution) == len(completion_ids)
    return [0.5 + len(ids) for ids in completion_ids]

def sometimes(completions, solution, **columns):
    return [None if "<answer>2<" in text else 4.0 for text in solution]

def names(completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
    log_extra("size", [len(ids) for ids in completion_ids])
    log_metric("seen", trainer_state.global_step)
    log_metric("seen", float("nan"))
    log_metric("seen", trainer_state.max_steps + 10)
    return [1.0] * len(completions)

def partly(completions, completion_ids, **columns):
    kinds = [None, float("nan"), 2.0, 5.0]
    return [kinds[(sum(ids) + i) % 4] for i, ids in enumerate(completion_ids)]

def never(completions, **columns):
    return [None] * len(completions)

def fails(completions, **columns):
    raise ValueError("no such colour: " + completions[0][0]["role"])
"#;

/// Returns true if `python3` is installed; otherwise prints that the test is skipped.
fn has_python(test: &str) -> bool {
    let found = Command::new("python3").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("{test} is skipped: python3 is not installed");
    }
    found.is_ok()
}

/// Returns the arguments of `reel grpo` without the reward command of [`grpo_args`] and without `--quiet`.
fn args_without_rewards(out: &str, more: &[&str]) -> Vec<String> {
    let mut args = grpo_args(out, more);
    let command = args.iter().position(|arg| arg == "--reward-command").expect("a reward command");
    args.drain(command..command + 2);
    args.retain(|arg| arg != "--quiet");
    args
}

/// Runs `reel grpo` with Python functions as rewards.
fn run(at: &Path, out: &str, functions: &[&str], more: &[&str]) -> FinishedRun {
    let mut args = args_without_rewards(out, more);
    args.push("--reward-funcs".into());
    args.extend(functions.iter().map(|name| name.to_string()));
    run_in(at, args)
}

fn log(at: &Path, out: &str) -> String {
    fs::read_to_string(at.join(out).join("reward.log")).expect("reward.log")
}

#[test]
fn functions_have_names_weights_and_a_log() {
    if !has_python("functions_have_names_weights_and_a_log") {
        return;
    }
    let folder = training_folder();
    let at = folder.path();
    fs::write(at.join("my.py"), FUNCTIONS).expect("written");
    let functions = ["my.py:length", "my.py:sometimes"];
    let options = [
        "--max-steps",
        "2",
        "--no-shuffle",
        "--gradient-accumulation-steps",
        "2",
        "--reward-weights",
        "0.5,-3",
        "--save-steps",
        "1",
    ];
    let quiet = run(at, "out", &functions, &options);
    quiet.ok();
    assert!(!quiet.stderr.contains("seen 8"), "{}", quiet.stderr);
    let lines = read_metrics(&at.join("out"));
    let keys: Vec<&String> =
        lines[0].as_object().expect("an object").keys().filter(|k| k.starts_with("rewards/")).collect();
    assert_eq!(keys, ["rewards/accuracy", "rewards/format", "rewards/length", "rewards/sometimes"]);
    // The function `sometimes` returns no reward for the row 1 + 1, the second row of the first step.
    for (line, share) in [(&lines[0], 0.5), (&lines[1], 1.0)] {
        let of = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"));
        assert_eq!(of("rewards/sometimes"), 4.0);
        let want = 0.5 * of("rewards/length") - 3.0 * 4.0 * share;
        assert!((of("reward") - want).abs() < 1e-3, "accuracy and format do not count: {line}");
    }
    assert!(log(at, "out").starts_with("seen 8 What is 0 + 0?\n"), "{}", log(at, "out"));
    let about: Value = serde_json::from_slice(&fs::read(at.join("out/run.json")).expect("run.json")).expect("JSON");
    assert!(about["code_files"]["my.py"].is_string(), "{about}");
    // If the code of a reward function has changed, a resumed run names the function. -v prints the output of the
    // functions.
    fs::write(at.join("my.py"), format!("{FUNCTIONS}\n")).expect("written");
    let resumed = ["--resume-from-checkpoint", "last", "--max-steps", "3", "-v"];
    let more = run(at, "out", &functions, &[&options[2..], &resumed].concat());
    more.ok();
    assert!(more.stderr.contains("warning: my.py has changed since the run began"), "{}", more.stderr);
    assert!(more.stderr.contains("reward: seen 8 What is 4 + 4?"), "{}", more.stderr);
    assert_eq!(log(at, "out").lines().count(), 3);
    assert!(run_in(at, ["replay", "out", "--step", "2"]).ok().contains("gives the same bits"));
}

/// Returns the groups that are recorded for step 1.
fn groups_of_step_1(at: &Path, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(at.join(out).join("rollouts/000001.jsonl")).expect("rollouts");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn numbers(list: &Value) -> Vec<Option<f64>> {
    list.as_array().expect("a list").iter().map(Value::as_f64).collect()
}

/// A completion without any reward has no advantage, and mean and deviation are those of the others: in sampling, on
/// several ranks, in a replay, and in a file of `--rollouts`.
#[test]
fn completions_without_any_reward_are_left_out() {
    if !has_python("completions_without_any_reward_are_left_out") {
        return;
    }
    let folder = training_folder();
    let at = folder.path();
    fs::write(at.join("my.py"), FUNCTIONS).expect("written");
    let options = ["--max-steps", "1", "--no-shuffle", "--gradient-accumulation-steps", "2", "--scale-rewards", "none"];
    let told = run(at, "out", &["my.py:partly"], &options);
    told.ok();
    assert!(told.stderr.contains("completions have no reward, because every reward function"), "{}", told.stderr);
    assert!(told.stderr.contains("returned NaN"), "{}", told.stderr);
    let groups = groups_of_step_1(at, "out");
    let mut all = Vec::new();
    for group in &groups {
        let (rewards, advantages) = (numbers(&group["rewards"]), numbers(&group["scores"]["advantage"]));
        let known: Vec<f64> = rewards.iter().flatten().copied().collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        for (reward, advantage) in rewards.iter().zip(advantages) {
            let (want, got) = (reward.map_or(0.0, |reward| reward - mean), advantage.expect("a number"));
            assert!((want - got).abs() < 1e-5, "{rewards:?}: {got} is not {want}");
        }
        all.extend(rewards);
    }
    let known: Vec<f64> = all.iter().flatten().copied().collect();
    let line = &read_metrics(&at.join("out"))[0];
    assert!(!known.is_empty() && known.len() < all.len(), "the test needs completions with and without a reward");
    assert_eq!(line["completions_without_reward"], all.len() - known.len());
    assert!(line["nan_rewards"].as_u64().is_some_and(|n| n > 0), "{line}");
    let mean = known.iter().sum::<f64>() / known.len() as f64;
    assert!((line["reward"].as_f64().expect("a mean") - mean).abs() < 1e-5, "{line}");
    assert!(run_in(at, ["replay", "out", "--step", "1"]).ok().contains("gives the same bits"));

    run(at, "two", &["my.py:partly"], &[&options[..], &["--gpus", "2"]].concat()).ok();
    let hash = |out: &str| read_metrics(&at.join(out))[0]["hash"].clone();
    assert_eq!((hash("two"), &read_metrics(&at.join("two"))[0]["nan_rewards"]), (hash("out"), &line["nan_rewards"]));
    let rollouts = ["--rollouts", "out/rollouts/000001.jsonl"];
    run_in(at, args_without_rewards("given", &[&options[..], &rollouts].concat())).ok();
    assert_eq!(hash("given"), hash("out"));
    assert_eq!(read_metrics(&at.join("given"))[0]["completions_without_reward"], line["completions_without_reward"]);

    run(at, "none", &["my.py:never"], &[&options[..], &["--logging-steps", "1"]].concat()).ok();
    let line = &read_metrics(&at.join("none"))[0];
    assert!(line.get("reward").is_none() && line.get("reward_std").is_none(), "{line}");
    assert_eq!(line["grad_norm"], 0.0, "{line}");
    let dynamic = [&options[..], &["--dynamic-sampling"]].concat();
    let told = run(at, "dynamic", &["my.py:never"], &dynamic);
    assert_eq!(told.code, Some(1), "{}", told.stderr);
    assert!(told.stderr.contains("error: --dynamic-sampling: in step 1, each of the "), "{}", told.stderr);
}

#[test]
fn functions_get_the_state_of_the_run_and_log_metrics() {
    if !has_python("functions_get_the_state_of_the_run_and_log_metrics") {
        return;
    }
    let folder = training_folder();
    let at = folder.path();
    fs::write(at.join("my.py"), FUNCTIONS).expect("written");
    let options = ["--max-steps", "2", "--no-shuffle", "--gradient-accumulation-steps", "2"];
    for (out, more) in [("out", &[][..]), ("two", &["--gpus", "2"])] {
        run(at, out, &["my.py:names", "my.py:length"], &[&options[..], more].concat()).ok();
        // The values are the number of finished steps, and 10 more than the steps of the run.
        let seen: Vec<Value> = read_metrics(&at.join(out)).iter().map(|line| line["logged/seen"].clone()).collect();
        assert_eq!(seen, [6.0, 6.5], "{out}");
        let group = &groups_of_step_1(at, out)[1];
        let sizes: Vec<usize> = group["completions"]
            .as_array()
            .expect("ids")
            .iter()
            .map(|ids| ids.as_array().expect("ids").len())
            .collect();
        let logged: Vec<Value> = group["extra"].as_array().expect("extra").iter().map(|x| x["size"].clone()).collect();
        assert_eq!(logged, sizes, "{out}");
    }
}

#[test]
fn errors_of_functions_name_file_and_line() {
    if !has_python("errors_of_functions_name_file_and_line") {
        return;
    }
    let folder = training_folder();
    let at = folder.path();
    fs::write(at.join("my.py"), FUNCTIONS).expect("written");
    fs::write(at.join("broken.py"), "def f(completions, **columns):\n    return [1.0 for x in\n").expect("written");
    let one = ["--max-steps", "1"];
    let failed = run(at, "out", &["my.py:fails"], &one);
    failed.assert_refused(
        1,
        &["--reward-funcs `my.py:fails`", "my.py:25: ValueError: no such colour: assistant", "reward.log"],
    );
    assert!(log(at, "out").contains("Traceback"), "{}", log(at, "out"));
    run(at, "b", &["broken.py:f"], &one).assert_refused(2, &["--reward-funcs: broken.py:2: SyntaxError"]);
    run(at, "c", &["my.py:none"], &one)
        .assert_refused(2, &["--reward-funcs: my.py has no function none; give one that it has: length, sometimes"]);
    run(at, "c", &["nomodule:f"], &one).assert_refused(2, &["--reward-funcs: there is no module nomodule; install"]);
    run(at, "d", &["none.py:f"], &one).assert_refused(2, &["--reward-funcs: there is no file none.py"]);
    assert!(!at.join("d").exists());
}

#[test]
fn standard_error_of_a_command_is_logged() {
    let folder = training_folder();
    let at = folder.path();
    let command = "echo started >&2; while read -r line; do echo ${#line}; done";
    run_in(at, grpo_args("out", &["--max-steps", "1", "--reward-command", command])).ok();
    assert_eq!(log(at, "out"), "started\n");
    let ranks = ["--max-steps", "1", "--reward-command", command, "--gpus", "2", "--gradient-accumulation-steps", "2"];
    run_in(at, grpo_args("two", &ranks)).ok();
    let text = log(at, "two");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[rank 0] started", "[rank 1] started"]);
}
