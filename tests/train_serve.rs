//! `--serve` of `reel grpo` and `reel sft`: answers come from the weights in training, and requests do not affect the
//! results of the run.

#[path = "support/grpo_run.rs"]
mod grpo_run;
#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use grpo_run::{grpo_args, training_folder};
use serde_json::{Value, json};
use server::{Server, question, text, wait, write_request};
use support::{golden, metrics_without_times, reel, reel_with_address_space, run, run_in};
use tempfile::TempDir;

/// Returns a command with `folder` as its working directory.
fn command_in(folder: &Path, args: impl IntoIterator<Item = String>) -> Command {
    let mut command = reel();
    // Without --quiet, the run prints the server's address.
    command.current_dir(folder).args(args.into_iter().filter(|arg| arg != "--quiet"));
    command
}

/// Returns the arguments of a GRPO run whose reward command pauses in every step as long as the file `held` exists.
/// Meanwhile the server uses the device. The reward command creates the file; [`in_held_steps`] removes it.
fn held_grpo(out: &str, more: &[&str]) -> Vec<String> {
    let mut args = grpo_args(out, more);
    let reward = args.iter().position(|arg| arg == "--reward-command").expect("a reward") + 1;
    let hold = "case $line in *'\"index\":0'*) touch held; while [ -e held ]; do sleep 0.01; done;; esac";
    let held = args[reward].replace("do echo", &format!("do {hold}; echo"));
    assert_ne!(held, args[reward]);
    args[reward] = held;
    args
}

/// Calls `during(server, step)` for each of `steps` steps, while the run in `folder` is paused within that step.
fn in_held_steps(server: &mut Server, folder: &Path, steps: u64, mut during: impl FnMut(&Server, u64)) {
    for step in 0..steps {
        let begin = Instant::now();
        while !folder.join("held").exists() {
            assert!(begin.elapsed() < Duration::from_secs(120), "step {step} was not reached in two minutes");
            assert!(server.child.try_wait().unwrap().is_none(), "the run ended after {step} steps");
            std::thread::sleep(Duration::from_millis(1));
        }
        during(server, step);
        fs::remove_file(folder.join("held")).unwrap();
    }
}

/// Returns the training step whose weights the server uses, from `/v1/models`.
fn step_in_service(server: &Server) -> Option<u64> {
    let model = server.send("GET", "/v1/models", "", "").ok()["data"][0].take();
    model["root"].as_str()?.rsplit_once("/step-")?.1.parse().ok()
}

fn ask(server: &Server) -> Value {
    let body = json!({"messages": question("What is 2 + 2?"), "max_tokens": 2, "temperature": 0, "logprobs": true});
    server.chat(&body).ok()["choices"][0].take()
}

/// Returns the metrics of a run without times and without the peak memory, which requests increase.
fn metrics(out: &Path) -> Vec<Value> {
    let mut lines = metrics_without_times(out);
    lines.iter_mut().filter_map(Value::as_object_mut).for_each(|line| drop(line.remove("peak_bytes")));
    lines
}

#[test]
fn answers_are_those_of_the_checkpoints_and_change_no_step() {
    let folder = training_folder();
    let at = folder.path().to_path_buf();
    let more = ["--max-steps", "6", "--save-steps", "1"];
    run_in(&at, grpo_args("alone", &more)).ok();
    let more = [&more[..], &["--serve", "0", "--serve-kv-memory", "16"]].concat();
    let mut server = Server::start_training_run(folder, at.join("tiny"), command_in(&at, held_grpo("served", &more)));
    let mut answers: BTreeMap<u64, Value> = BTreeMap::new();
    in_held_steps(&mut server, &at, 6, |server, step| {
        assert_eq!(step_in_service(server), Some(step));
        answers.insert(step, ask(server));
    });
    assert_eq!(wait(&mut server.child), Some(0), "the run ends");
    assert_eq!(metrics(&at.join("served")), metrics(&at.join("alone")), "requests have changed the metrics");
    let weights = |out: &str| fs::read(at.join(out).join("model.safetensors")).unwrap();
    assert!(weights("served") == weights("alone"));
    for (step, answer) in &answers {
        let checkpoint = match step {
            0 => at.join("tiny"),
            _ => at.join(format!("served/checkpoint-{step}")),
        };
        let wanted = ask(&Server::start_with(TempDir::new().unwrap(), checkpoint, &["--threads", "1"]));
        assert_eq!(*answer, wanted, "step {step}");
    }
    assert!(answers.values().any(|answer| *answer != answers[answers.keys().next().unwrap()]), "no step shows");
}

/// A request does not wait for the end of an evaluation (`--eval-steps`): between its decode steps, the evaluation
/// lets the server use the device.
#[test]
fn requests_are_answered_during_an_evaluation_and_change_no_score() {
    let folder = training_folder();
    let at = folder.path().to_path_buf();
    let task = "name = \"mine\"\ntitle = \"Mine\"\nversion = 1\nsource = \"https://example.org\"\n\
        [prompt]\ntemplate = \"{question}\\n{options}\"\n\
        [[layout]]\nname = \"own\"\nfiles = [\"*.jsonl\"]\ncolumns = [\"q\", \"o\", \"a\"]\n\
        row = { id = \"{row.number}\", question = \"{q}\", kind = \"multiple choice\", options = \"o\", \
        answer = \"{a}\", answer-form = \"index\" }\n";
    fs::write(at.join("mine.toml"), task).unwrap();
    fs::create_dir(at.join("bench")).unwrap();
    let rows: Vec<String> =
        (0..60).map(|i| json!({"q": format!("Which {i}?"), "o": ["x", "y"], "a": i % 2}).to_string()).collect();
    fs::write(at.join("bench/rows.jsonl"), rows.join("\n")).unwrap();
    let evaluated = "--max-steps 1 --save-steps 1 --eval-steps 1 --eval-benchmark mine.toml --eval-data bench \
                     --eval-max-new-tokens 32 --eval-batch-size 1";
    let more: Vec<&str> = evaluated.split_whitespace().collect();
    run_in(&at, grpo_args("alone", &more)).ok();
    let more = [&more[..], &["--serve", "0", "--serve-kv-memory", "16"]].concat();
    let mut server = Server::start_training_run(folder, at.join("tiny"), command_in(&at, grpo_args("served", &more)));
    let is_evaluating = || at.join("served/eval/step-1/mine.jsonl.partial").exists();
    let mut answers = 0;
    while answers < 2 {
        assert!(server.child.try_wait().unwrap().is_none(), "{answers} requests were answered during the evaluation");
        match is_evaluating() {
            true => {
                ask(&server);
                answers += usize::from(is_evaluating());
            }
            false => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert_eq!(wait(&mut server.child), Some(0), "the run ends");
    for file in ["eval/step-1/mine.jsonl", "model.safetensors"] {
        assert!(fs::read(at.join("served").join(file)).unwrap() == fs::read(at.join("alone").join(file)).unwrap());
    }
}

#[test]
fn a_request_goes_on_over_steps_and_finishes_after_the_run_was_stopped() {
    let folder = training_folder();
    let at = folder.path().to_path_buf();
    let more = ["--max-steps", "100000", "--serve", "0"];
    let mut server = Server::start_training_run(folder, at.join("tiny"), command_in(&at, grpo_args("out", &more)));
    let body = json!({"messages": question("x"), "max_tokens": 5_000, "temperature": 0, "stream": true,
        "ignore_eos": true, "stream_options": {"include_usage": true}});
    let mut stream = server.connect();
    write_request(&mut stream, "POST", "/v1/chat/completions", "", &body.to_string());
    let mut start = [0; 600];
    stream.read_exact(&mut start).unwrap();
    let begun = step_in_service(&server);
    while step_in_service(&server) <= begun {
        std::thread::sleep(Duration::from_millis(20));
    }
    for path in ["/admin/weights", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
        let error = server.send("POST", path, "", &json!({"model": at.join("tiny")}).to_string()).error(409);
        assert!(error["message"].as_str().unwrap().contains("training run"), "{error}");
    }
    assert!(Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    let tail = &rest[rest.len().saturating_sub(600)..];
    assert!(rest.contains("\"completion_tokens\":5000") && rest.contains("data: [DONE]"), "{tail}");
    assert_eq!(wait(&mut server.child), Some(143));
    assert!(support::file_names_in(&at.join("out")).iter().any(|name| name.starts_with("checkpoint-")));
}

#[test]
fn fine_tuning_serves_too() {
    let folder = TempDir::new().unwrap();
    let at = folder.path().to_path_buf();
    let (base, data) = (golden("train/model_a"), golden("train/sft_all_tokens/data.jsonl"));
    let sft = |out: &str, more: &[&str]| {
        let args = ["sft", "--model", text(&base), "--data", text(&data), "--out", out, "--labels", "text"];
        let fixed = "--learning-rate 1e-3 --max-steps 300 --save-steps 0 --dtype f32 --threads 1 --quiet";
        args.into_iter().chain(fixed.split(' ')).chain(more.iter().copied()).map(String::from).collect::<Vec<_>>()
    };
    // The port is below 32768, because the system never assigns such a port to a program that asks for any free port.
    let port = (20_000..30_000).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port");
    let more = ["--serve", &port.to_string(), "--serve-share", "0.9"];
    let mut server = Server::start_training_run(folder, base.clone(), command_in(&at, sft("served", &more)));
    let answered = (0..3).filter(|_| ask(&server)["finish_reason"].is_string()).count();
    assert_eq!(answered, 3);
    assert_eq!(wait(&mut server.child), Some(0));
    run(sft(text(&at.join("alone")), &[])).ok();
    assert_eq!(metrics(&at.join("served")), metrics(&at.join("alone")));

    // A replay starts no server: the port may be in use.
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert!(run_in(&at, ["replay", "served", "--step", "1"]).ok().contains("same bits"));
}

#[test]
fn wrong_options_are_refused_before_the_run_begins() {
    let folder = training_folder();
    let at = folder.path();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = [
        (vec!["--serve", &port], "error: --serve: cannot listen on 127.0.0.1:"),
        (vec!["--serve", "0", "--serve-share", "1"], "error: --serve-share: is 1"),
        (vec!["--serve", "0", "--serve-share", "0"], "error: --serve-share: is 0"),
        (vec!["--serve", "0", "--serve-kv-memory", "0"], "error: --serve-kv-memory: is 0"),
    ];
    for (more, wanted) in refused {
        let output = command_in(at, grpo_args("out", &more)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.lines().any(|line| line.starts_with(wanted)), "{more:?}: {said}");
        let written = if at.join("out").exists() { support::file_names_in(&at.join("out")) } else { Vec::new() };
        assert!(written.iter().all(|name| name.contains("lock")), "{written:?}");
    }
    drop(taken);
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_without_memory_ends_the_run_before_its_first_step() {
    let folder = training_folder();
    let at = folder.path();
    // The KV cache for the server's 16 sequences takes 2.9 GiB, more than the limit of the address space.
    let more = ["--max-steps", "1", "--serve", "0", "--serve-kv-memory", "100000"];
    let mut command = reel_with_address_space(2_500_000);
    command.current_dir(at).args(grpo_args("out", &more));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: device memory: cannot allocate") && said.lines().count() == 1, "{said}");
    assert!(said.contains("for kv_cache") && said.contains("--serve-kv-memory"), "{said}");
    assert!(!at.join("out/metrics.jsonl").exists(), "a step was done");
}

#[test]
fn the_plan_counts_the_memory_of_a_server_without_requests() {
    let folder = training_folder();
    let at = folder.path();
    let more = ["--max-steps", "1", "--serve", "0", "--serve-kv-memory", "3"];
    run_in(at, grpo_args("out", &more)).ok();
    let planned = |more: &[&str]| {
        let args = grpo_args("out", more);
        let plan = run_in(at, [&["plan".to_string()], &args[..], &["--json".to_string()]].concat());
        serde_json::from_str::<Value>(plan.ok()).unwrap()["peak_bytes"].as_u64().unwrap()
    };
    let peak = support::read_metrics(&at.join("out"))[0]["peak_bytes"].as_u64().unwrap();
    assert_eq!(peak, planned(&more));
    let cache = peak - planned(&more[..2]);
    assert!((2 << 20..4 << 20).contains(&cache), "the KV cache of 3 MiB has {cache} bytes");
}
