//! `reel grpo` and `reel replay` as commands: resume of killed runs, replay of steps, planned memory, invalid input.

#[path = "support/grpo_run.rs"]
mod grpo_run;
mod support;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/training.rs"]
mod training;

use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use grpo_run::{grpo_args, training_folder};
use serde_json::{Value, json};
use support::http::read_request;
use support::{check_page, golden, metrics_without_times, read_metrics, reel, run, run_in};

/// Returns the options that continue the run in `out` after a kill: from its last checkpoint, or from the start if it
/// has none.
fn again(out: &Path) -> &'static [&'static str] {
    let names = if out.exists() { support::file_names_in(out) } else { Vec::new() };
    let has_checkpoint = names.iter().any(|name| name.starts_with("checkpoint-"));
    if has_checkpoint { &["--resume-from-checkpoint", "last"] } else { &["--overwrite"] }
}

#[test]
fn golden_grpo_steps_match_the_reference() {
    for case in support::file_names_in(&golden("grpo")) {
        training::check_training_case(reel(), &format!("grpo/{case}"), &[]);
    }
}

/// If the media folder is temporarily missing, no row is skipped: the run saves its steps and ends, and can be
/// resumed.
#[test]
fn outage_of_the_media_folder_loses_no_row() {
    let folder = training_folder();
    let at = folder.path();
    fs::create_dir(at.join("media")).expect("a folder");
    let image = golden("grpo/grpo_clip_iter2/media/b.png");
    let row = |i: usize| {
        fs::copy(&image, at.join(format!("media/{i}.png"))).expect("copied");
        let content = json!([{"type": "image", "image": format!("media/{i}.png")}, {"type": "text", "text": "Which?"}]);
        json!({"prompt": [{"role": "user", "content": content}], "solution": "<answer>1</answer>",
               "problem_type": "numerical"})
        .to_string()
    };
    fs::write(at.join("rows.jsonl"), (0..24).map(row).collect::<Vec<_>>().join("\n")).expect("rows");
    // In the first step, the reward command renames the media folder.
    let rewards = "[ -e taken ] || { touch taken; mv media gone; }; while read -r line; do echo ${#line}; done";
    let train = |more: &[&str]| {
        let mut arguments = grpo_args(
            "out",
            &support::with_options(&["--max-steps", "24", "--save-steps", "100", "--media-root", "."], more),
        );
        let command = arguments.iter().position(|a| a == "--reward-command").expect("the option");
        arguments[command + 1] = rewards.into();
        run_in(at, arguments)
    };
    let resume = ["--resume-from-checkpoint", "last"];
    let words =
        "and now there is no such file; make the media available again; then resume with --resume-from-checkpoint last";
    train(&[]).assert_refused(1, &[words]);
    let done = read_metrics(&at.join("out")).len();
    assert!((1..24).contains(&done), "{done}");
    fs::rename(at.join("gone"), at.join("media")).expect("renamed");
    train(&resume).ok();
    assert_eq!(read_metrics(&at.join("out")).len(), 24);
    assert_eq!(fs::read_to_string(at.join("out/skipped.jsonl")).expect("skipped.jsonl"), "");
}

#[test]
fn repeatedly_killed_run_equals_uninterrupted_run() {
    let folder = training_folder();
    let at = folder.path();
    let more = ["--max-steps", "30", "--num-iterations", "2", "--save-steps", "2", "--save-total-limit", "2"];
    let begun = Instant::now();
    run_in(at, grpo_args("whole", &more)).ok();
    let whole = begun.elapsed();
    let mut kills = 0;
    // The run is killed at moments that are spread over its whole duration, so that some of them lie within the writing
    // of a checkpoint.
    for i in 0u32.. {
        let resumed = grpo_args("broken", &[&more[..], again(&at.join("broken"))].concat());
        let mut child = reel().current_dir(at).args(resumed).stdout(Stdio::null()).spawn().expect("it starts");
        let life = if i < 20 { whole.mul_f64(0.08 + 0.013 * f64::from(i * 7 % 20)) } else { Duration::from_secs(600) };
        let born = Instant::now();
        while born.elapsed() < life && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        kills += 1;
    }
    assert!(kills >= 3, "the run was killed only {kills} times before it ended; 3 are needed");
    let (whole, broken) = (at.join("whole"), at.join("broken"));
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&broken));
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).expect("weights");
    assert!(weights(&whole) == weights(&broken));
    let rollouts = |out: &Path| {
        let mut all: Vec<_> = fs::read_dir(out.join("rollouts"))
            .expect("rollouts")
            .map(|e| e.expect("an entry").path())
            .filter(|path| path.is_file())
            .collect();
        all.sort();
        all.iter().map(|path| fs::read_to_string(path).expect("a file")).collect::<Vec<_>>()
    };
    assert_eq!(rollouts(&whole), rollouts(&broken));
}

/// Returns the names of incomplete checkpoints in an output folder. The folder of a checkpoint is hidden while it is
/// written (`.checkpoint-…`).
fn drafts(out: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(out) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.starts_with(".checkpoint-")).collect()
}

#[test]
fn run_killed_while_writing_a_checkpoint_keeps_the_others() {
    let folder = training_folder();
    let at = folder.path();
    let more = ["--max-steps", "24", "--num-iterations", "2", "--save-steps", "2", "--save-total-limit", "2"];
    run_in(at, grpo_args("whole", &more)).ok();
    let (whole, broken) = (at.join("whole"), at.join("broken"));
    let (mut kills, mut left) = (0, 0);
    // Each run is killed while it writes its first, second or third checkpoint, so that some checkpoints are
    // complete.
    for life in 0..9 {
        let resumed = grpo_args("broken", &[&more[..], again(&at.join("broken"))].concat());
        let mut child = reel().current_dir(at).args(resumed).stdout(Stdio::null()).spawn().expect("it starts");
        // Incomplete checkpoints of earlier, killed runs do not count as checkpoints of this run, which removes them
        // when it starts.
        let old = drafts(&broken);
        let (mut seen, begun) = (Vec::new(), Instant::now());
        while seen.len() <= life % 3 && child.try_wait().expect("a child").is_none() {
            assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint was begun in two minutes");
            let new = drafts(&broken).into_iter().filter(|name| !old.contains(name) && !seen.contains(name));
            seen.extend(new.collect::<Vec<_>>());
            std::thread::sleep(Duration::from_micros(200));
        }
        if child.try_wait().expect("a child").is_none() {
            child.kill().expect("it is killed");
            kills += 1;
        }
        child.wait().expect("it ends");
        left += usize::from(!drafts(&broken).is_empty());
    }
    assert!(
        kills >= 3 && left > 0,
        "{kills} runs were killed (3 are needed), and {left} left an incomplete checkpoint (1 is needed)"
    );
    run_in(at, grpo_args("broken", &[&more[..], again(&broken)].concat())).ok();
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&broken));
    assert_eq!(drafts(&broken), Vec::<String>::new());
    for file in
        ["model.safetensors", "checkpoint-24/training/state.json", "checkpoint-24/training/optimizer.safetensors"]
    {
        assert!(fs::read(whole.join(file)).expect(file) == fs::read(broken.join(file)).expect(file), "{file} differs");
    }
}

/// A run with --overwrite that is killed in its first step leaves the earlier run unchanged.
#[test]
fn run_killed_in_its_first_step_leaves_the_earlier_run() {
    let folder = training_folder();
    let at = folder.path();
    run_in(at, grpo_args("out", &["--max-steps", "2", "--save-steps", "1"])).ok();
    let out = at.join("out");
    let (names, weights) = (support::file_names_in(&out), fs::read(out.join("model.safetensors")).expect("weights"));
    let slow = ["--max-steps", "2", "--overwrite", "--reward-command", "touch started; sleep 600"];
    let mut child = reel()
        .current_dir(at)
        .args(&grpo_args("out", &[])[..5])
        .args("--data rows.jsonl --quiet".split(' '))
        .args(slow)
        .spawn()
        .expect("it starts");
    let begun = Instant::now();
    while !at.join("started").exists() {
        assert!(begun.elapsed() < Duration::from_secs(120) && child.try_wait().expect("a child").is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(!out.join("model.safetensors").exists(), "the earlier run is set aside");
    // A second process is refused; the error has the id of the first process.
    let holder = format!("out: is in use by process {}", child.id());
    run_in(at, grpo_args("out", &["--overwrite"])).assert_refused(1, &[&holder]);
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    run_in(at, grpo_args("out", &[])).assert_refused(1, &["out: is not empty"]);
    assert_eq!(support::file_names_in(&out), names);
    assert!(fs::read(out.join("model.safetensors")).expect("weights") == weights);
    run_in(at, grpo_args("out", &["--max-steps", "3", "--resume-from-checkpoint", "last"])).ok();
}

/// Starts a reward server and returns its host and port. The reward of a completion is the length of its JSON row.
/// The server never answers a request whose number (from 0) satisfies `hangs`.
fn reward_server(hangs: impl Fn(usize) -> bool + Send + 'static) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut kept_open = Vec::new();
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let asked = read_request(&mut BufReader::new(&stream)).expect("a request").expect("a request").json();
            if hangs(number) {
                kept_open.push(stream);
                continue;
            }
            let rewards: Vec<usize> =
                asked["rows"].as_array().expect("rows").iter().map(|row| row.to_string().len()).collect();
            let text = json!({"rewards": rewards}).to_string();
            let _ =
                write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len());
        }
    });
    address
}

/// Returns the texts of all files below a folder.
fn all_texts(folder: &Path) -> Vec<(String, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = String::from_utf8_lossy(&fs::read(&path).expect("a file")).into_owned();
                found.push((path.display().to_string(), text));
            }
        }
    }
    found
}

#[test]
fn secrets_of_urls_reach_no_file_and_no_message() {
    use std::os::unix::fs::PermissionsExt;
    let folder = training_folder();
    let at = folder.path();
    let rows = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    let image = json!({"type": "image", "image": "http://user:SECRET@127.0.0.1:1/a.png?sig=SECRET"});
    let prompt = json!([{"role": "user", "content": [image]}]);
    let row = json!({"prompt": prompt, "solution": "<answer>1</answer>", "problem_type": "numerical"});
    fs::write(at.join("rows.jsonl"), format!("{row}\n{rows}")).expect("rows");
    let url = format!("http://user:SECRET@{}/reward?key=SECRET", reward_server(|_| false));
    let given = ["--reward-url", &url, "--report-to", "tensorboard,wandb", "--max-steps", "2", "--no-shuffle"];
    let args = grpo_args("out", &given).into_iter().filter(|arg| arg != "--quiet");
    let command = "while read -r line; do echo ${#line}; done # https://user:SECRET@host/?token=SECRET";
    let args: Vec<String> = args.map(|arg| if arg.starts_with("while") { command.into() } else { arg }).collect();
    let run = run_in(at, args);
    run.ok();
    assert!(!run.stderr.contains("SECRET") && !run.stdout.contains("SECRET"), "{}", run.stderr);
    let out = at.join("out");
    for (name, text) in all_texts(&out) {
        assert!(!text.contains("SECRET"), "{name} has a secret");
    }
    let recorded = fs::read_to_string(out.join("run.json")).expect("run.json");
    assert!(recorded.contains("http://127.0.0.1:") && recorded.contains("while read -r line"), "{recorded}");
    let skipped = fs::read_to_string(out.join("skipped.jsonl")).expect("skipped.jsonl");
    assert!(skipped.contains("http://127.0.0.1:1/a.png"), "{skipped}");
    let logged: String = all_texts(&out.join("wandb")).into_iter().map(|(_, text)| text).collect();
    assert!(!logged.contains("while read"), "Weights & Biases gets no command");
    for name in ["run.json", "checkpoint-2/training/state.json"] {
        let mode = fs::metadata(out.join(name)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name} holds a command");
    }
    // A resumed run may use another secret in an option (here in the query of a URL), and a replay needs no secret.
    let other = url.replace("SECRET", "OTHER");
    let resumed = grpo_args(
        "out",
        &[
            &given[2..4],
            &["--no-shuffle", "--max-steps", "3", "--resume-from-checkpoint", "last", "--reward-url", &other],
        ]
        .concat(),
    );
    let resumed: Vec<String> =
        resumed.into_iter().map(|arg| if arg.starts_with("while") { command.into() } else { arg }).collect();
    run_in(at, resumed).ok();
    assert!(run_in(at, ["replay", "out", "--step", "1"]).ok().contains("same bits"));
    // The reward command gets only the environment variables that --reward-env names.
    let own = "while read -r line; do case $OTHER$NAMED in named) echo ${#line};; *) echo no; esac; done";
    let args = grpo_args("env", &["--max-steps", "1", "--reward-env", "NAMED"]);
    let args = args.into_iter().map(|arg| if arg.starts_with("while") { own.into() } else { arg });
    let env = reel().current_dir(at).args(args).envs([("OTHER", "x"), ("NAMED", "named")]).output().expect("it runs");
    support::finished_run(env).ok();
}

/// A reward server that hangs ends the run after the time limit. If the run itself was stopped in the meantime
/// (Ctrl-Z), the elapsed time says nothing about the server, and the batch is sent again.
#[test]
fn reward_url_is_asked_again_only_if_the_run_was_stopped() {
    let folder = training_folder();
    let (asked, requests) = channel();
    let address = reward_server(move |number| {
        asked.send(()).expect("the test waits");
        number == 0
    });
    let url = format!("http://{address}/reward");
    let mut args = grpo_args("out", &["--max-steps", "1", "--reward-timeout", "1"]);
    let command = args.iter().position(|arg| arg == "--reward-command").expect("the option");
    args.splice(command..command + 2, ["--reward-url".to_string(), url]);
    let mut child = reel().current_dir(&folder).args(args).stderr(Stdio::piped()).spawn().expect("it starts");
    requests.recv_timeout(Duration::from_secs(60)).expect("the first request");
    support::send_signal(child.id(), "-STOP");
    std::thread::sleep(Duration::from_millis(3500));
    assert!(child.try_wait().expect("a child").is_none());
    support::send_signal(child.id(), "-CONT");
    support::finished_run(child.wait_with_output().expect("it ends")).ok();
    assert_eq!(requests.try_iter().count(), 1, "the batch is sent once more");

    let address = reward_server(|_| true);
    let mut args = grpo_args("hung", &["--max-steps", "1", "--reward-timeout", "0.5"]);
    args.splice(command..command + 2, ["--reward-url".to_string(), format!("http://{address}/reward")]);
    run_in(folder.path(), args)
        .assert_refused(1, &["--reward-url", "timed out after 0.5 s; check that the server runs"]);
}

#[test]
fn best_checkpoint_is_named_and_kept() {
    let folder = training_folder();
    let at = folder.path();
    run_in(at, grpo_args("out", &["--max-steps", "9", "--save-steps", "2", "--save-total-limit", "1"])).ok();
    let rewards: Vec<f64> =
        metrics_without_times(&at.join("out")).iter().map(|line| line["reward"].as_f64().expect("a reward")).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let means: Vec<f64> = rewards.chunks(2).map(mean).collect();
    let most = means.iter().copied().fold(f64::MIN, f64::max);
    let step = (2 * (means.iter().position(|&m| m == most).expect("one") + 1)).min(9);
    let said: Value =
        serde_json::from_slice(&fs::read(at.join("out/trainer_state.json")).expect("the file")).expect("JSON");
    assert_eq!(said["best_model_checkpoint"], json!(format!("out/checkpoint-{step}")), "{means:?}");
    assert_eq!((said["best_metric"].as_f64(), &said["global_step"]), (Some(most), &json!(9)));
    let mut kept: Vec<String> =
        support::file_names_in(&at.join("out")).into_iter().filter(|name| name.starts_with("checkpoint-")).collect();
    kept.sort();
    let mut want = vec![format!("checkpoint-{step}"), "checkpoint-9".to_string()];
    want.sort();
    want.dedup();
    assert_eq!(kept, want);
}

#[test]
fn the_recipes_bound_the_log_ratio_of_the_kl_term() {
    let w = training_folder();
    fs::write(w.path().join("given.jsonl"), "{\"row\":0,\"completions\":[[5,6,460],[7,8,9,460]],\"rewards\":[0,1]}\n")
        .expect("written");
    // The learning rate is so large that the log-ratio exceeds its bound.
    let fixed = "grpo --model tiny --data rows.jsonl --rollouts given.jsonl --num-generations 2 \
                 --per-device-train-batch-size 2 --max-steps 3 --max-completion-length 8 --learning-rate 0.3 \
                 --lr-scheduler-type constant --quiet --parity";
    let losses = |parity: &str| -> Vec<f64> {
        run_in(w.path(), fixed.split_whitespace().chain([parity, "--out", parity])).ok();
        read_metrics(&w.path().join(parity)).iter().map(|step| step["loss"].as_f64().expect("a loss")).collect()
    };
    let (videorft, video_r1, paper) = (losses("videorft"), losses("video-r1"), losses("paper"));
    assert_eq!(videorft, video_r1);
    assert!(paper[2] > 2.0 * videorft[2], "{paper:?} {videorft:?}");
}

#[test]
fn a_resumed_run_may_wait_longer_for_its_reward() {
    let w = training_folder();
    let run = |more: &[&str]| run_in(w.path(), grpo_args("out", more));
    run(&["--max-steps", "1", "--reward-timeout", "30"]).ok();
    run(&["--max-steps", "2", "--reward-timeout", "60", "--resume-from-checkpoint", "last"]).ok();
}

#[test]
fn progress_lines_show_reward_and_remaining_time() {
    let folder = training_folder();
    let args: Vec<String> =
        grpo_args("out", &["--max-steps", "2"]).into_iter().filter(|arg| arg != "--quiet").collect();
    let run = run_in(folder.path(), args);
    let line =
        run.stderr.lines().find(|line| line.starts_with("step 1/2  ")).unwrap_or_else(|| panic!("{}", run.stderr));
    for part in ["reward ", "kl ", "length ", "loss ", "tok/s", " left"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn replay_repeats_any_step_and_names_a_difference() {
    let folder = training_folder();
    let at = folder.path();
    run_in(at, grpo_args("out", &["--max-steps", "5", "--save-steps", "3", "--num-iterations", "2"])).ok();
    let replay = |step: &str| run_in(at, ["replay", "out", "--step", step, "--json"]);
    for (step, from) in [("1", 0), ("3", 0), ("4", 3), ("5", 3)] {
        let said = replay(step).json();
        assert_eq!(said, json!({"step": step.parse::<u64>().unwrap(), "from": from, "same": true, "tensor": null}));
    }
    // If a file that a replay reads has changed, the replay names the file.
    let out = at.join("out");
    let changed = |name: &str, from: &str, to: &str, step: &str, words: &[&str]| {
        let path = out.join(name);
        let before = fs::read(&path).expect("a file");
        let text = String::from_utf8_lossy(&before).replacen(from, to, 1);
        assert!(text.as_bytes() != before, "{name} has no {from}");
        fs::write(&path, text).expect("written");
        replay(step).assert_refused(1, &[&[name], words].concat());
        fs::write(&path, before).expect("written");
    };
    let optimizer = "checkpoint-3/training/optimizer.safetensors";
    let path = out.join(optimizer);
    let before = fs::read(&path).expect("a file");
    let mut bytes = before.clone();
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&path, bytes).expect("written");
    replay("4").assert_refused(
        1,
        &[optimizer, "is damaged", "remove this checkpoint to repeat the step from the previous checkpoint"],
    );
    assert!(replay("2").json()["same"] == true, "step 2 does not need the checkpoint of step 3");
    fs::write(&path, before).expect("written");
    changed("checkpoint-3/training/set.json", "\"uses\":1", "\"uses\":2", "4", &["is damaged"]);
    changed("rollouts/000005.jsonl", "\"used\":true", "\"used\":false", "5", &["rollouts/000005.jsonl:1: is damaged"]);
    changed("run.json", "0.001", "0.002", "5", &["is damaged"]);
    let hash = metrics_without_times(&out)[4]["hash"].as_str().expect("a hash").to_string();
    changed("metrics.jsonl", &hash, "0123456789abcdef", "5", &["is damaged: its hash of step 5"]);
    let model = at.join("tiny/model.safetensors");
    let before = fs::read(&model).expect("weights");
    let mut bytes = before.clone();
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&model, bytes).expect("written");
    replay("1").assert_refused(1, &["tiny: is not the model that the run was started with"]);
    fs::write(&model, before).expect("written");
    // Runs of earlier versions recorded no digests. A replay then detects changed rewards only by the different
    // weights.
    let path = out.join("rollouts/000005.jsonl");
    let mut line: Value = serde_json::from_str(fs::read_to_string(&path).expect("rollouts").trim()).expect("JSON");
    line["rewards"] = json!([3.0, 2.0, 1.0, 0.0]);
    line.as_object_mut().expect("an object").remove("digest");
    fs::write(&path, line.to_string()).expect("rollouts");
    let other = replay("5");
    other.assert_refused(1, &["out: step 5 gives different weights"]);
    let said: Value = serde_json::from_str(&other.stdout).expect("JSON");
    assert!(said["same"] == json!(false) && said["tensor"].is_string(), "{said}");
    replay("6").assert_refused(2, &["--step: is 6", "give 1 to 5"]);
    run_in(at, ["replay", "none", "--step", "1"])
        .assert_refused(1, &["none: is not the output folder of a run", "give the --out"]);
    fs::remove_file(&path).expect("removed");
    replay("5").assert_refused(1, &["000005.jsonl"]);
}

#[test]
fn replay_repeats_steps_with_dynamic_sampling() {
    let folder = training_folder();
    let at = folder.path();
    // The reward command gives 1 to every completion for four of the seven rows. Their groups have no advantage, so
    // dynamic sampling drops them. Each step needs three groups with different rewards: one round of sampling gives
    // too few, two rounds give more than needed.
    let own = "while read -r line; do case $line in *'is 1'*|*'is 3'*|*'is 4'*|*'is 6'*) echo 1;; *) echo ${#line};; esac; done";
    let more =
        ["--max-steps", "3", "--dynamic-sampling", "--scale-rewards", "batch", "--gradient-accumulation-steps", "3"];
    let more = [&more[..], &["--reward-command", own, "--save-steps", "0"]].concat();
    run_in(at, grpo_args("out", &more)).ok();
    let text = fs::read_to_string(at.join("out/rollouts/000001.jsonl")).expect("rollouts");
    assert!(text.lines().count() > 3 && text.contains("\"used\":false"), "{text}");
    for step in ["1", "2", "3"] {
        assert!(run_in(at, ["replay", "out", "--step", step]).ok().contains("gives the same bits"));
    }
}

/// The rewards of several commands are summed with their weights, as TRL does with a list of functions. The metrics
/// have the mean reward of each command. A resumed run and a replay run the same commands.
#[test]
fn several_reward_commands_are_summed() {
    let folder = training_folder();
    let at = folder.path();
    let run = |steps: &str, second: &str, rest: &[&str]| {
        let mut args = grpo_args(
            "out",
            &support::with_options(&["--max-steps", steps, "--reward-weights", "0.5,-3", "--save-steps", "1"], rest),
        );
        args.extend(["--reward-command".to_string(), second.to_string()]);
        run_in(at, args)
    };
    let second = "while read -r line; do echo 2; done";
    run("2", second, &[]).ok();
    let resume = ["--resume-from-checkpoint", "last"];
    run("3", "while read -r line; do echo 3; done", &resume).assert_refused(2, &["--reward-command: is [", "echo 2"]);
    run("3", second, &resume).ok();
    let lines = read_metrics(&at.join("out"));
    assert_eq!(lines.len(), 3);
    for line in &lines {
        let of = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"));
        let [one, two] = ["rewards/command_1", "rewards/command_2"].map(of);
        let rest = of("rewards/accuracy") + of("rewards/format");
        assert!(one > 50.0 && two == 2.0, "{line}");
        assert!((of("reward") - (rest + 0.5 * one - 3.0 * two)).abs() < 1e-3, "{line}");
    }
    assert!(run_in(at, ["replay", "out", "--step", "3"]).ok().contains("gives the same bits"));
}

#[test]
fn replay_follows_changed_run_lengths() {
    let folder = training_folder();
    let at = folder.path();
    // The learning rate depends on the planned number of steps (warmup and cosine decay), so a replay must use the
    // number that was planned at the replayed step.
    let more = ["--save-steps", "3", "--warmup-ratio", "0.3", "--lr-scheduler-type", "cosine"];
    let run = |steps: &str, rest: &[&str]| {
        run_in(at, grpo_args("out", &[&["--max-steps", steps], &more[..], rest].concat())).ok().len()
    };
    run("4", &[]);
    run("9", &["--resume-from-checkpoint", "last"]);
    run("7", &["--resume-from-checkpoint", "out/checkpoint-6"]);
    let again = |step: &str, from: u64| {
        let said = run_in(at, ["replay", "out", "--step", step, "--json"]).json();
        assert_eq!(said, json!({"step": step.parse::<u64>().unwrap(), "from": from, "same": true, "tensor": null}));
    };
    for (step, from) in [("1", 0), ("4", 3), ("5", 4), ("6", 4), ("7", 6)] {
        again(step, from);
    }
    // Without these checkpoints the replay starts at step 0. It must use the number of steps that was planned at each
    // step: 4, then 9, then 7.
    for n in ["3", "4", "6", "7"] {
        fs::remove_dir_all(at.join(format!("out/checkpoint-{n}"))).expect("removed");
    }
    again("7", 0);
}

#[test]
fn replay_repeats_sft_steps() {
    let folder = training_folder();
    let at = folder.path();
    let row = json!({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]});
    fs::write(at.join("chats.jsonl"), row.to_string()).expect("rows");
    run_in(at, "sft --model tiny --data chats.jsonl --out out --max-steps 4 --save-steps 2 --quiet".split(' ')).ok();
    for step in ["1", "4"] {
        assert!(run_in(at, ["replay", "out", "--step", step]).ok().contains("gives the same bits"));
    }
    // Paths in a run's options are relative to the folder in which the run was started; a replay can be started in
    // any folder.
    let elsewhere = at.join("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    let replayed = run_in(&elsewhere, ["replay", "../out", "--step", "3", "--trace", "trace.json"]);
    assert!(replayed.ok().contains("gives the same bits"));
    assert!(elsewhere.join("trace.json").exists());
}

#[test]
fn report_is_one_page_with_curves_rollouts_and_frames() {
    let folder = training_folder();
    let at = folder.path();
    // Rows in the layout of VideoRFT and Video-R1, with videos as lists of images, train with T-GRPO.
    let frames: Vec<String> = (0..4)
        .map(|i| golden(&format!("grpo/grpo_clip_iter2/media/frames/{i:03}.png")).display().to_string())
        .collect();
    let row = json!({"prompt": [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "Where <b>does</b> it go?"}]}],
        "solution": "<answer>left</answer>", "problem_type": "free-form"});
    fs::write(at.join("rows.jsonl"), row.to_string()).expect("rows");
    run_in(at, grpo_args("out", &["--max-steps", "3", "--temporal", "--save-steps", "0"])).ok();
    assert!(at.join("out/rollouts/strips/000001.png").exists());
    let page = at.join("out/report.html");
    assert_eq!(run_in(at, ["report", "out"]).ok().trim(), "out/report.html");
    let html = fs::read_to_string(&page).expect("the page");
    for part in [
        "rewards/accuracy",
        "rewards/temporal",
        "completion_length",
        "step 3, row 0",
        "data:image/png;base64,",
        "solution: ",
    ] {
        assert!(html.contains(part), "no {part}");
    }
    assert!(html.contains("Where &lt;b&gt;does") && !html.contains("<b>does"));
    assert!(check_page(&html).iter().all(|chart| chart["kind"] == "lines"));
    // For each of the three steps, the page shows one group. The slider of the page selects the step.
    assert_eq!(html.matches("<article class=\"group\" data-run=\"0\" data-step=").count(), 3);

    // A page shows the curves of two runs in the same charts.
    run_in(at, grpo_args("two", &["--max-steps", "2", "--temporal", "--save-steps", "0", "--learning-rate", "1e-4"]))
        .ok();
    assert_eq!(run_in(at, ["report", "out", "two"]).ok().trim(), "compare.html");
    let html = fs::read_to_string(at.join("compare.html")).expect("the page");
    let losses = check_page(&html)
        .into_iter()
        .find(|chart| chart["name"] == "step_seconds" || chart["name"] == "tokens_per_second");
    let series = losses.expect("a chart of speed")["series"].clone();
    assert_eq!(
        (&series[0]["name"], &series[1]["name"], &series[1]["x"]),
        (&json!("out"), &json!("two"), &json!([1, 2]))
    );
    assert!(
        html.contains("Options that differ") && html.contains(">learning_rate</td>") && html.contains("data-run=\"1\"")
    );
    run_in(at, ["report", "out", "./out"]).assert_refused(2, &["./out: is given twice"]);
    run_in(at, ["report", "out", "two", "--out", "two/metrics.jsonl"])
        .assert_refused(2, &["--out", "would be replaced"]);
    let log = at.join("two/metrics.jsonl");
    let first = fs::read_to_string(&log).expect("metrics").lines().next().expect("a line").to_string();
    fs::write(&log, format!("{first}\n{{\"step\": 2\n")).expect("a damaged log");
    let page = run_in(at, ["report", "out", "two"]);
    page.ok();
    assert!(page.stderr.contains("line 2 is damaged: it and the lines after it are left out"), "{}", page.stderr);
    run_in(at, ["report"]).assert_refused(2, &["OUT"]);
    run_in(at, ["report", "none"]).assert_refused(1, &["none: ", "no such file or folder"]);
}

#[test]
fn plan_and_run_agree_on_peak_bytes() {
    let folder = training_folder();
    let at = folder.path();
    // The seed determines which rows the run uses. All rows have the same length, so the planned memory does not
    // depend on the seed.
    let row = json!({"prompt": [{"role": "user", "content": "2 + 2?"}], "solution": "<answer>4</answer>", "problem_type": "numerical"});
    fs::write(at.join("rows.jsonl"), row.to_string()).expect("rows");
    for more in [&[][..], &["--beta", "0", "--optim", "adamw-bf16", "--dtype", "bf16"], &["--lora-r", "2"]] {
        let more = support::with_options(&["--min-completion-length", "8", "--max-steps", "2", "--overwrite"], more);
        run_in(at, grpo_args("out", &more)).ok();
        let ran = metrics_without_times(&at.join("out")).last().expect("a step")["peak_bytes"].clone();
        let planned = [&["plan".to_string()][..], &grpo_args("out", &more)].concat();
        let planned = run_in(at, [&planned[..], &["--device".into(), "cpu".into(), "--json".into()]].concat()).json();
        assert_eq!(planned["peak_bytes"], ran, "{more:?}");
        assert_eq!(planned["command"], "grpo");
    }
}

/// If a completion ends early, some rows of the stored matrix products stay unused. The memory still does not exceed
/// the plan.
#[test]
fn completions_that_end_early_take_at_most_the_planned_memory() {
    let folder = training_folder();
    let at = folder.path();
    // Every third token ends a completion.
    let ends: Vec<u32> = (0..450).step_by(3).collect();
    fs::write(at.join("tiny/generation_config.json"), json!({"eos_token_id": ends}).to_string()).expect("a file");
    for more in [&["--beta", "0", "--dtype", "bf16"][..], &["--lora-r", "2", "--per-device-train-batch-size", "8"]] {
        let fixed = ["--temperature", "1", "--gradient-checkpointing", "none", "--max-steps", "2", "--overwrite"];
        let more = support::with_options(&fixed, more);
        run_in(at, grpo_args("out", &more)).ok();
        let steps = metrics_without_times(&at.join("out"));
        let lengths: Vec<f64> = steps.iter().filter_map(|step| step["completion_length"].as_f64()).collect();
        assert!(lengths.len() == 2 && lengths.iter().all(|length| *length < 6.0), "{lengths:?}");
        let planned = [&["plan".to_string()][..], &grpo_args("out", &more)].concat();
        let planned = run_in(at, [&planned[..], &["--device".into(), "cpu".into(), "--json".into()]].concat()).json();
        let (planned, ran) = (planned["peak_bytes"].as_f64(), steps[1]["peak_bytes"].as_f64());
        assert!(ran.is_some() && ran <= planned, "{more:?}: planned {planned:?}, ran {ran:?}");
    }
}

#[test]
fn full_7b_training_with_reference_fits_one_141_gb_gpu() {
    let sizes = ["--tokens", "2048", "--vision-patches", "4096", "--gpu", "h200", "--json"];
    let plan = |more: &[&str]| run([&["plan", "grpo", "--preset", "7b"][..], &sizes, more].concat()).plan_json();
    let small = plan(&["--optim", "adamw-bf16"]);
    // Bytes per parameter: 2 each for the weight, the low bits of the master weight, the two moments and the
    // reference weight, and 4 for the gradient. The model has 8.29e9 parameters.
    let peak = small["peak_bytes"].as_f64().expect("a number");
    assert!((14.0 * 8.29e9..130e9).contains(&peak) && small["fits"] == true, "{peak}");
    for phase in ["prefill", "decode", "reference", "forward", "backward", "optimizer"] {
        assert!(small["phases"][phase].as_f64() > Some(0.0), "{phase}");
    }
    // A checkpoint has 8 bytes per parameter: the weight, the low bits of the master weight, and two moments, 2 bytes
    // each.
    assert!(
        small["checkpoint_bytes"].as_f64().is_some_and(|n| (n / 8.29e9 - 8.0).abs() < 0.01),
        "{}",
        small["checkpoint_bytes"]
    );
    assert_eq!(plan(&[])["fits"], false, "the plan with f32 moments should not fit into 150.8 GB");
    let mistake = |args: &[&str], words: &[&str]| {
        run([&["plan", "grpo"][..], args].concat()).assert_refused(2, words);
    };
    mistake(&["--preset", "tiny"], &["--tokens", "is missing"]);
    mistake(&["--preset", "tiny", "--tokens", "9", "--num-generations", "1"], &["--num-generations"]);
    mistake(&["--tokens", "9"], &["--model", "--preset"]);
}

#[test]
fn invalid_options_are_refused_before_files_are_written() {
    let folder = training_folder();
    let at = folder.path();
    for (more, words) in [
        (&["--num-generations", "1"][..], &["--num-generations: is 1", "give 2 or more"][..]),
        (&["--reward-weights", "beauty=1"], &["--reward-weights", "beauty"]),
        (&["--rollouts", "none.jsonl"], &["--rollouts", "already contains the rewards"]),
        (&["--reward-timeout", "0"], &["--reward-timeout"]),
        (&["--reward-env", "A=B"], &["--reward-env: is \"A=B\"", "none"]),
    ] {
        run_in(at, grpo_args("out", more)).assert_refused(2, words);
        assert!(!at.join("out").exists());
    }
}
