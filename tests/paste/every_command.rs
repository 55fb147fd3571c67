//! Runs every published command to its end on a tiny model: training for one step, a server that gets a request for
//! the published model name, an evaluation, a load test. All commands together take minutes, so that test is ignored
//! by default; `paste.rs` always runs some of them.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::server::{self, Server};
use crate::support::{FinishedRun, finished_run, golden, reel, run};
use crate::{commands, corrected, published, shell, workshop};

/// The model name that the commands of servers and their clients use.
const PUBLISHED_MODEL: &str = "Qwen/Qwen2.5-VL-7B-Instruct";

/// Small values for options that would make a command run for minutes: the option or key as the commands spell it,
/// and its new value.
const SIZES: [(&str, &str); 17] = [
    ("--max_completion_length", "8"),
    ("data.max_response_length", "8"),
    ("max_response_length", "8"),
    ("data.train_batch_size", "8"),
    ("actor_rollout_ref.actor.ppo_mini_batch_size", "2"),
    ("data.mini_rollout_batch_size", "8"),
    ("rollout_batch_size", "8"),
    ("global_batch_size", "2"),
    ("--max_steps", "1"),
    ("max_steps", "1"),
    ("trainer.max_steps", "1"),
    ("--random-input-len", "64"),
    ("--random-output-len", "8"),
    ("--num-prompts", "4"),
    // The tiny model has two key-value heads, so it can be divided by at most 2.
    ("--tensor-parallel-size", "2"),
    ("--gradient_accumulation_steps", "1"),
    ("gradient_accumulation_steps", "1"),
];

/// The result of running a published command.
pub struct CommandReport {
    /// The number of error messages before the command was accepted.
    pub rounds: usize,
    pub what: String,
}

/// Sets the options of [`SIZES`] on a command line to their small values.
fn with_small_sizes(words: Vec<String>) -> Vec<String> {
    let size = |name: &str| SIZES.iter().find(|(own, _)| *own == name).map(|(_, size)| *size);
    let mut previous = String::new();
    let small = |word: String| {
        let key = word.split_once('=').and_then(|(key, _)| Some(format!("{key}={}", size(key)?)));
        let small = key.or(size(&previous).map(String::from)).unwrap_or(word.clone());
        previous = word;
        small
    };
    words.into_iter().map(small).collect()
}

/// Sets the options of [`SIZES`] in a configuration file to their small values. Returns true if the file limits the
/// number of steps.
fn shorten_file(path: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else { return false };
    let line = |line: &str| match line.split_once(": ") {
        Some((key, _)) => match SIZES.iter().find(|(name, _)| *name == key.trim()) {
            Some((_, size)) => format!("{key}: {size}\n"),
            None => format!("{line}\n"),
        },
        None => format!("{line}\n"),
    };
    let short: String = text.lines().map(line).collect();
    std::fs::write(path, &short).expect("a file");
    short.contains("max_steps: ")
}

/// Runs a published command, or the corrected command in its one error message.
pub fn run_published(id: &str) -> CommandReport {
    let folder = workshop();
    let at = folder.path();
    let (words, environment) = published(at, id);
    let mut words = with_small_sizes(words);
    let has_steps = shorten_file(&at.join("run.yaml")) || words.iter().any(|word| word.contains("max_steps"));
    let kind = words[0].clone();
    match kind.as_str() {
        "sft" | "grpo" => {
            let steps = if has_steps { "" } else { "--max_steps 1" };
            let has_length = base_names_length(at) || words.iter().any(|word| word.contains("max_completion_length"));
            let has_length = has_length || words.iter().any(|word| word.contains("max_response_length"));
            let length = if kind == "grpo" && !has_length { "--max_completion_length 8" } else { "" };
            words.extend(format!("{steps} {length} --device cpu").split_whitespace().map(String::from));
            // The media are in the test's folder, so the media folder becomes `.`.
            for at in 1..words.len() {
                if ["--image_folder", "--image_folders"].contains(&words[at - 1].as_str()) {
                    words[at] = ".".into();
                }
            }
            let (rounds, done) = finish(at, &words, &environment);
            CommandReport { rounds, what: trained(at, &done) }
        }
        "serve" => served(at, words, &environment),
        _ => measured(at, words, environment),
    }
}

/// Returns true if the command's configuration file limits the length of completions.
fn base_names_length(at: &Path) -> bool {
    std::fs::read_to_string(at.join("run.yaml")).is_ok_and(|text| text.contains("max_response_length: "))
}

/// Runs a command. If it is refused, runs the corrected command in its message. Returns the number of refusals (0 or
/// 1) and the result.
fn finish(at: &Path, words: &[String], environment: &[(String, String)]) -> (usize, FinishedRun) {
    let mut first = reel();
    first.current_dir(at).args(words).envs(environment.iter().cloned());
    let first = finished_run(first.output().expect("the binary starts"));
    if first.code != Some(2) {
        return (0, first);
    }
    let second = corrected(&first.stderr).replace("--data DATA", "--data src/r1-v/Evaluation");
    (1, shell(at, &second))
}

/// Describes the result of a run of one step of the other program: its loss.
fn trained(at: &Path, done: &FinishedRun) -> String {
    // Dynamic sampling needs groups with different rewards, which the tiny model does not produce.
    if done.stderr.contains("has the same reward for all of its completions") {
        return "each group of completions of the tiny model has equal rewards".into();
    }
    // A step of verl and EasyR1 is a rollout, which may have several optimizer steps.
    let out_of = |line: &str| {
        let (out, rest) = line.split_once(": ")?;
        rest.split_once(" steps")?.0.parse::<u64>().ok().map(|_| out.to_string())
    };
    let out = done.ok().lines().find_map(out_of).expect("a line with OUT");
    let metrics = std::fs::read_to_string(at.join(out).join("metrics.jsonl")).expect("metrics");
    let step: Value = serde_json::from_str(metrics.lines().last().expect("a step")).expect("JSON");
    let loss = step["loss"].as_f64().expect("a loss");
    assert!(loss.is_finite(), "{step}");
    match step["reward"].as_f64() {
        Some(reward) => format!("1 step, loss {loss:.4}, reward {reward:.3}"),
        None => format!("1 step, loss {loss:.4}"),
    }
}

/// Creates a model folder with the published name.
fn published_model(at: &Path) -> PathBuf {
    let folder = at.join(PUBLISHED_MODEL);
    std::fs::create_dir_all(folder.parent().expect("a folder")).expect("a folder");
    run(["init", "--preset", "tiny", "--out", server::text(&folder)]).ok();
    folder
}

/// Starts a server and sends it a request with the published model name.
fn served(at: &Path, words: Vec<String>, environment: &[(String, String)]) -> CommandReport {
    published_model(at);
    let on_free_port = |word: String| match word.as_str() {
        "8000" => "0".to_string(),
        "tiny" => PUBLISHED_MODEL.to_string(),
        _ => word,
    };
    let mut words: Vec<String> = words.into_iter().map(on_free_port).collect();
    words.extend(["--device".into(), "cpu".into()]);
    let mut command = reel();
    command.current_dir(at).args(&words).envs(environment.iter().cloned());
    let (mut rounds, mut server) = (0, Running::start(command));
    if let Err(message) = &server {
        let program = reel();
        let mut command = Command::new("sh");
        command.current_dir(at).args(["-c", &format!("exec \"$0\" {}", corrected(message))]).arg(program.get_program());
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        (rounds, server) = (1, Running::start(command));
    }
    let server = server.unwrap_or_else(|message| panic!("{words:?}: {message}"));
    let body = json!({"model": PUBLISHED_MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]});
    let mut stream = TcpStream::connect(server.address).expect("a connection");
    server::write_request(&mut stream, "POST", "/v1/chat/completions", "", &body.to_string());
    let reply = server::read_reply(&mut stream);
    assert_eq!(reply.status, 200, "{words:?}: {}", reply.body);
    CommandReport { rounds, what: format!("answered a request for {PUBLISHED_MODEL}") }
}

/// A running server; dropping it kills the server.
struct Running {
    child: Child,
    address: SocketAddr,
}

impl Running {
    /// Starts a server. If it ends instead of listening, returns its output as the error.
    fn start(mut command: Command) -> Result<Self, String> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit_once("://").and_then(|(_, address)| address.parse::<SocketAddr>().ok());
        if let Some(address) = address {
            return Ok(Self { child, address: SocketAddr::from(([127, 0, 0, 1], address.port())) });
        }
        let mut message = String::new();
        child.stderr.take().expect("stderr").read_to_string(&mut message).expect("text");
        child.wait().expect("an exit code");
        Err(message)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs an evaluation of one question per benchmark, or a load test. If the command needs a server, one is started
/// for it.
fn measured(at: &Path, mut words: Vec<String>, mut environment: Vec<(String, String)>) -> CommandReport {
    published_model(at);
    let names = [PUBLISHED_MODEL, "Qwen/Qwen3-VL-4B-Instruct", "GPT4o"].map(|name| ["--served-model-name", name]);
    let server = Server::start(&names.concat());
    let port = server.address.port().to_string();
    for text in words.iter_mut().chain(environment.iter_mut().map(|(_, value)| value)) {
        *text = text.replace("8000", &port);
        if text == "tiny" {
            *text = PUBLISHED_MODEL.into();
        }
    }
    if words[0] == "bench" && !words.contains(&"--port".to_string()) {
        words.extend(["--port".into(), port]);
    }
    if words[0] == "eval" {
        questions(&at.join("src/r1-v/Evaluation"));
        environment.push(("LMUData".into(), "src/r1-v/Evaluation".into()));
        let mut short = vec!["--max-new-tokens", "8", "--min-pixels", "3136", "--max-pixels", "12544"];
        // Benchmark names of VLMEvalKit may already contain a number of frames or a rate.
        if !words.iter().any(|word| word.contains("frame") || word.contains("fps")) {
            short.extend(["--nframes", "2"]);
        }
        let pairs =
            short.chunks(2).filter(|pair| !words.iter().any(|word| word.contains(&pair[0][2..].replace('-', "_"))));
        let short: Vec<String> = pairs.flatten().map(|word| word.to_string()).collect();
        words.extend(short);
    }
    let (rounds, done) = finish(at, &words, &environment);
    // The line of the output with the score of a benchmark, or with the number of answered requests of a load test.
    let is_result =
        |line: &&str| line.contains("Successful requests:") || (words[0] == "eval" && line.contains("rows"));
    let result = done.ok().lines().find(is_result).unwrap_or_else(|| panic!("{words:?}: {}", done.stdout));
    CommandReport { rounds, what: result.split_whitespace().collect::<Vec<_>>().join(" ") }
}

/// Writes one question of each benchmark, in the file format of VideoRFT and Video-R1.
fn questions(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::copy(golden("train/sft_videorft_mp4/media/clip.mp4"), folder.join("clip.mp4")).expect("copied");
    for benchmark in ["mmvu", "mvbench", "tempcompass", "videomme", "videommmu", "vsibench"] {
        let rows = std::fs::read_to_string(golden(&format!("rewards/eval/{benchmark}.jsonl"))).expect("rows");
        let mut row: Value = serde_json::from_str(rows.lines().next().expect("a row")).expect("JSON");
        row.as_object_mut().expect("an object").remove("output");
        row["path"] = "./clip.mp4".into();
        std::fs::write(folder.join(format!("eval_{benchmark}.json")), json!([row]).to_string()).expect("written");
    }
}

/// Commands of servers and load tests are quick, so this test always runs them.
#[test]
fn servers_and_load_tests_run() {
    let mut rounds = 0;
    for id in ["C24", "C26", "C27", "C29", "C30", "C32", "C37", "C39"] {
        rounds += run_published(id).rounds;
    }
    assert_eq!(rounds, 5);
}

#[test]
#[ignore = "takes minutes; --ignored --nocapture prints a table, REEL_PASTE=\"C01 D02\" names the commands"]
fn every_published_command_runs() {
    let (mut rounds, mut count) = (0, 0);
    let only = std::env::var("REEL_PASTE").unwrap_or_default();
    for command in commands() {
        let id = command["id"].as_str().expect("an id");
        if !only.is_empty() && !only.split(' ').any(|wanted| wanted == id) {
            continue;
        }
        let begun = Instant::now();
        let report = run_published(id);
        let source = command["source"].as_str().unwrap_or_default();
        let seconds = begun.elapsed().as_secs_f64();
        println!("{id} | {source} | {} | {} | {seconds:.1} s", report.rounds, report.what);
        (rounds, count) = (rounds + report.rounds, count + 1);
    }
    println!("{count} commands, {rounds} messages before they ran");
    assert!(rounds <= count);
}
