//! `--tensor-parallel-size`: several processes compute one model together, and the answers have the same bits as with
//! one process.

#[path = "support/server.rs"]
mod server;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Server, question, serve_command, text, wait, write_request};
use support::{
    FinishedRun, child_processes, finished_run, golden, let_children_receive_sigint, reel, run, run_in, send_signal,
    with_options,
};
use tempfile::TempDir;

/// Creates a folder with a video and the model `four`, which has 8 attention heads and 4 key-value heads of 16
/// elements.
fn folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    run(["init", "--preset", "tiny", "--seed", "5", "--out", text(&folder.path().join("four"))]).ok();
    // The preset has half as many heads of twice the size, so its weights have the same shapes and only the config
    // changes.
    let file = folder.path().join("four/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!((&config["num_attention_heads"], &config["num_key_value_heads"]), (&json!(4), &json!(2)));
    config["num_attention_heads"] = json!(8);
    config["num_key_value_heads"] = json!(4);
    config["rope_scaling"]["mrope_section"] = json!([2, 3, 3]);
    fs::write(&file, config.to_string()).expect("written");
    fs::copy(golden("clips/h264_709.mp4"), folder.path().join("v.mp4")).expect("copied");
    folder
}

/// Processes of a launcher meet in a folder of this user among the temporary files. One that others have rights to, or
/// that is a link, is refused at once.
#[test]
fn processes_meet_in_a_private_folder() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let w = folder();
    let temporary = w.path().join("tmp");
    fs::create_dir(&temporary).expect("a folder");
    let own = temporary.join(format!("reel-{}", fs::metadata(&temporary).expect("a folder").uid()));
    let start = |rank: &str| {
        let variables = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")];
        let options = ["--prompt", "Hi", "--max-new-tokens", "2", "--tensor-parallel-size", "2"];
        let words = ["generate", "--model", "four", "--device", "cpu", "--seed", "1"].into_iter().chain(options);
        let mut command = reel();
        command.current_dir(w.path()).env("TMPDIR", &temporary).envs(variables).args(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let end = |process: std::process::Child| finished_run(process.wait_with_output().expect("it ends"));
    let [first, second] = ["0", "1"].map(start).map(end);
    assert!(!first.ok().is_empty() && second.ok().is_empty());
    assert_eq!(fs::metadata(&own).expect("a folder").mode() & 0o7777, 0o700);
    assert_eq!(fs::read_dir(&own).expect("a folder").count(), 0);

    fs::set_permissions(&own, PermissionsExt::from_mode(0o777)).expect("set");
    end(start("1")).assert_refused(1, &[text(&own), "other users have rights to this folder (mode 0777)", "chmod 700"]);
    fs::rename(&own, temporary.join("other")).expect("renamed");
    symlink("other", &own).expect("a link");
    end(start("0")).assert_refused(1, &[text(&own), "is a symbolic link", "remove the link"]);
}

/// Runs `reel generate` with a model and more options.
fn generate(folder: &Path, model: &str, more: &[&str]) -> FinishedRun {
    let words = ["generate", "--model", model, "--device", "cpu", "--nframes", "4", "--max-pixels", "12544"];
    run_in(folder, with_options(&words, more))
}

/// Returns the output of `generate --json` without the times.
fn printed(folder: &Path, model: &str, size: &str, more: &[&str]) -> Value {
    let options = [&["--json", "--tensor-parallel-size", size], more].concat();
    let mut printed = generate(folder, model, &options).json();
    let all = match printed.as_array_mut() {
        Some(all) => all.iter_mut().collect(),
        None => vec![&mut printed],
    };
    for answer in all {
        assert!(answer.as_object_mut().is_some_and(|answer| answer.remove("timing").is_some()));
    }
    printed
}

/// Returns a request about the video, with penalties, biases, a grammar and log-probabilities.
fn request_about_video() -> Value {
    json!({
        "messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "Who?"}]}],
        "temperature": 0.9, "top_p": 0.95, "seed": 7, "n": 3, "max_tokens": 12, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "logit_bias": {"70": 2.5}, "logprobs": true, "top_logprobs": 3, "prompt_logprobs": 1,
        "guided_regex": "[a-z ]{4,40}",
    })
}

#[test]
fn a_prompt_is_answered_with_the_bits_of_one_process() {
    let folder = folder();
    let at = folder.path();
    fs::write(at.join("m.json"), request_about_video().to_string()).expect("written");
    let greedy = json!({"messages": question("a b c"), "max_tokens": 20, "temperature": 0, "logprobs": true});
    fs::write(at.join("greedy.json"), greedy.to_string()).expect("written");
    for dtype in ["f32", "bf16"] {
        for messages in ["m.json", "greedy.json"] {
            let answer = |size: &str| printed(at, "four", size, &["--messages", messages, "--dtype", dtype]);
            let alone = answer("1");
            assert_eq!(answer("2"), alone, "{dtype} {messages}");
            assert_eq!(answer("4"), alone, "{dtype} {messages}");
        }
    }
    let quantized = |size: &str| printed(at, "four", size, &["--messages", "m.json", "--quantize", "int8"]);
    let alone = quantized("1");
    assert!(alone != printed(at, "four", "1", &["--messages", "m.json"]), "int8 has no effect");
    assert_eq!(quantized("2"), alone);
}

/// Writes an adapter for the golden model `train/model_a`, whose embeddings are not tied.
fn adapter(folder: &Path) -> PathBuf {
    let out = folder.join("adapter");
    let (base, data) = (golden("train/model_a"), golden("train/sft_all_tokens/data.jsonl"));
    let args = ["sft", "--model", text(&base), "--data", text(&data), "--out", text(&out), "--labels", "text"];
    let rest = ["--learning-rate", "1e-1", "--max-steps", "2", "--dtype", "f32", "--quiet", "--lora-r", "3"];
    run([&args[..], &rest, &["--lora-target-modules", "all-linear"]].concat()).ok();
    out
}

#[test]
fn a_model_with_an_adapter_and_untied_embeddings_answers_with_the_bits_of_one_process() {
    let folder = TempDir::new().expect("a folder");
    let adapter = adapter(folder.path());
    let body = json!({"messages": question("a b"), "max_tokens": 10, "temperature": 0, "logprobs": true});
    fs::write(folder.path().join("m.json"), body.to_string()).expect("written");
    let answer = |size: &str| printed(folder.path(), text(&adapter), size, &["--messages", "m.json"]);
    assert_eq!(answer("2"), answer("1"));
}

#[test]
fn the_rows_of_a_file_are_answered_with_the_bytes_of_one_process() {
    let folder = folder();
    let at = folder.path();
    let row = |i: usize| {
        let media = json!([{"type": "video", "video": if i == 3 { "missing.mp4" } else { "v.mp4" }}, {"type": "text", "text": format!("Who is {i}?")}]);
        let content = if i.is_multiple_of(2) { json!(format!("What is {i}?")) } else { media };
        json!({"prompt": [{"role": "user", "content": content}], "solution": "a"}).to_string() + "\n"
    };
    fs::write(at.join("rows.jsonl"), (0..7).map(row).collect::<String>()).expect("written");
    let answers = |size: &str| {
        let out = format!("out{size}.jsonl");
        let options =
            ["--data", "rows.jsonl", "--out", &out, "--temperature", "1", "--n", "2", "--max-new-tokens", "9"];
        let more = ["--batch-size", "3", "--tensor-parallel-size", size];
        // The video of one row is missing, so the exit code is 1.
        let done = generate(at, "four", &[&options[..], &more].concat());
        assert!(done.code == Some(1) && !done.stderr.contains("[rank 1] error"), "{size}: {}", done.stderr);
        fs::read(at.join(out)).expect("a file")
    };
    let alone = answers("1");
    assert_eq!(alone.iter().filter(|&&byte| byte == b'\n').count(), 7);
    assert!(answers("2") == alone && answers("4") == alone);
}

#[test]
fn ctrl_c_stops_all_processes_and_another_number_of_them_continues() {
    let_children_receive_sigint();
    let folder = folder();
    let at = folder.path();
    let row = |i: usize| json!({"prompt": question(&format!("What is {i}?")), "solution": "a"}).to_string() + "\n";
    fs::write(at.join("rows.jsonl"), (0..40).map(row).collect::<String>()).expect("written");
    let words = |size: &'static str, out: &'static str| {
        let words = ["generate", "--model", "four", "--device", "cpu", "--data", "rows.jsonl", "--batch-size", "2"];
        [&words[..], &["--max-new-tokens", "300", "--tensor-parallel-size", size, "--out", out]].concat()
    };
    run_in(at, words("1", "whole.jsonl")).ok();
    let mut command = reel();
    command.current_dir(at).args(words("2", "out.jsonl")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let begun = Instant::now();
    let lines = || fs::read_to_string(at.join("out.jsonl.partial")).unwrap_or_default().lines().count();
    while lines() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no row is finished");
        thread::sleep(Duration::from_millis(5));
    }
    send_signal(child.id(), "-INT");
    assert_eq!(wait(&mut child), Some(130));
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(lines() < 40 && said.contains("--resume") && !said.contains("[rank 1]"), "{said}");
    run_in(at, [&words("1", "out.jsonl")[..], &["--resume"]].concat()).ok();
    let read = |name: &str| fs::read(at.join(name)).expect("a file");
    assert!(read("out.jsonl") == read("whole.jsonl"));
}

#[test]
fn a_number_of_processes_that_the_model_does_not_allow_is_refused_in_one_line() {
    let folder = folder();
    let refused = |size: &str| generate(folder.path(), "four", &["--prompt", "x", "--tensor-parallel-size", size]);
    refused("3")
        .assert_refused(1, &["config.json: num_attention_heads: is 8", "give --tensor-parallel-size 1 or 2 or 4"]);
    refused("8").assert_refused(1, &["config.json: num_key_value_heads: is 4", "which 8 processes cannot share"]);
    refused("0").assert_refused(2, &["--tensor-parallel-size"]);
    let options = ["--messages", "-", "--tensor-parallel-size", "2"];
    generate(folder.path(), "four", &options).assert_refused(2, &["--messages: is standard input"]);
    let sim = ["--prompt", "x", "--tensor-parallel-size", "2", "--device", "sim"];
    generate(folder.path(), "four", &sim).assert_refused(2, &["--device: is not possible with several processes"]);
    // The launcher has started a different number of processes than the option asks for.
    let launched = |size: &str| {
        let mut command = reel();
        command.envs([("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3")]);
        let model = folder.path().join("four");
        command.args(["generate", "--model", text(&model), "--prompt", "x", "--tensor-parallel-size", size]);
        finished_run(command.output().expect("the binary starts"))
    };
    launched("2").assert_refused(2, &["--tensor-parallel-size: is 2, but ", "has started 3 processes"]);
    launched("1").assert_refused(1, &["reel generate: runs as one process", "or give --tensor-parallel-size 3"]);
}

/// Starts a server of the model `four` with two processes, unless `args` set another number.
fn start(folder: &Path, args: &[&str]) -> Server {
    let own = TempDir::new().expect("a folder");
    Server::start_with(own, folder.join("four"), &with_options(&["--tensor-parallel-size", "2"], args))
}

/// Returns the choices in the answer to a request.
fn choices(server: &Server, body: &Value) -> Value {
    server.chat(body).ok()["choices"].take()
}

/// Returns requests of different kinds; the first one has a video.
fn bodies() -> Vec<Value> {
    let mut video = request_about_video();
    video["messages"][0]["content"][0] = json!({"type": "video_url", "video_url": {"url": format!("file://{}", golden("clips/h264_709.mp4").display())}});
    let long = "a long question ".repeat(20);
    let plain = |words: &str, temperature: f64| json!({"messages": question(words), "max_tokens": 24, "temperature": temperature, "seed": 3, "logprobs": true});
    vec![video, plain(&long, 0.0), plain("b", 1.0), plain(&format!("{long}?"), 0.8)]
}

#[test]
fn a_server_of_two_processes_answers_with_the_bits_of_one() {
    let folder = folder();
    let root = golden("clips");
    let media = ["--media-root", text(&root), "--nframes", "4", "--max-pixels", "12544"];
    let alone = start(folder.path(), &[&["--tensor-parallel-size", "1"], &media[..]].concat());
    let wanted: Vec<Value> = bodies().iter().map(|body| choices(&alone, body)).collect();
    drop(alone);
    let server = start(folder.path(), &media);
    // All requests run at the same time, twice: the second time, the prompts are in the prefix cache.
    for round in 0..2 {
        thread::scope(|scope| {
            let asked: Vec<_> = bodies()
                .into_iter()
                .map(|body| {
                    scope.spawn({
                        let server = &server;
                        move || choices(server, &body)
                    })
                })
                .collect();
            for (thread, wanted) in asked.into_iter().zip(&wanted) {
                assert_eq!(&thread.join().expect("an answer"), wanted, "round {round}");
            }
        });
    }
    let metrics = server.send("GET", "/metrics", "", "").body;
    let hits = metrics.lines().find_map(|line| line.strip_prefix("vllm:prefix_cache_hits_total{")).unwrap_or_default();
    assert!(hits.rsplit(' ').next().is_some_and(|hits| hits.parse::<f64>().is_ok_and(|hits| hits > 0.0)), "{metrics}");
    // The client of this streamed request disconnects.
    let mut stream = server.connect();
    let long = json!({"messages": question("z"), "max_tokens": 20_000, "ignore_eos": true, "stream": true});
    write_request(&mut stream, "POST", "/v1/chat/completions", "", &long.to_string());
    let mut some = [0; 600];
    stream.read_exact(&mut some).expect("the begin of the answer");
    drop(stream);
    assert_eq!(choices(&server, &bodies()[1]), wanted[1]);
    // New weights are loaded by both processes. An adapter of a wrong model is loaded by neither.
    let other = folder.path().join("other");
    run(["init", "--preset", "tiny", "--seed", "6", "--out", text(&other)]).ok();
    fs::copy(folder.path().join("four/config.json"), other.join("config.json")).expect("copied");
    server.send("POST", "/admin/weights", "", &json!({"model": other}).to_string()).ok();
    let replaced = choices(&server, &bodies()[1]);
    assert!(replaced != wanted[1]);
    server.send("POST", "/admin/weights", "", &json!({"model": folder.path().join("four")}).to_string()).ok();
    assert_eq!(choices(&server, &bodies()[1]), wanted[1]);
    server.send("POST", "/admin/weights", "", &json!({"model": folder.path()}).to_string()).error(400);
    // Rank 0 checks the values before any rank loads them.
    let file = other.join("model.safetensors");
    let mut bytes = fs::read(&file).expect("a file");
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    fs::write(&file, bytes).expect("written");
    let error = server.send("POST", "/admin/weights", "", &json!({"model": other}).to_string()).error(400);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("NaN or infinite")), "{error}");
    assert_eq!(choices(&server, &bodies()[2]), wanted[2]);
    assert_eq!(server.stop(15), Some(0));
}

#[test]
fn a_server_of_two_processes_loads_adapters_and_ends_late_requests() {
    let folder = TempDir::new().expect("a folder");
    let adapter = adapter(folder.path());
    let body = |model: &str| json!({"model": model, "messages": question("a b"), "max_tokens": 20, "temperature": 0, "logprobs": true});
    let begin = |args: &[&str]| Server::start_with(TempDir::new().expect("a folder"), golden("train/model_a"), args);
    let named = format!("first={}", adapter.display());
    let ask = |server: &Server, model: &str| choices(server, &body(model));
    let alone = begin(&["--lora", &named]);
    let wanted = ["model_a", "first"].map(|model| ask(&alone, model));
    assert!(wanted[0] != wanted[1]);
    drop(alone);
    let server = begin(&["--lora", &named, "--tensor-parallel-size", "2", "--request-timeout", "2"]);
    thread::scope(|scope| {
        let asked = ["model_a", "first", "first"].map(|model| scope.spawn(|| ask(&server, model)));
        let answers = asked.map(|thread| thread.join().expect("an answer"));
        assert_eq!(answers, [wanted[0].clone(), wanted[1].clone(), wanted[1].clone()]);
    });
    let load = json!({"lora_name": "second", "lora_path": adapter}).to_string();
    server.send("POST", "/v1/load_lora_adapter", "", &load);
    assert_eq!(ask(&server, "second"), wanted[1]);
    server.send("POST", "/v1/unload_lora_adapter", "", &json!({"lora_name": "first"}).to_string());
    server.chat(&body("first")).error(404);
    let late = json!({"messages": question("z"), "max_tokens": 100_000, "ignore_eos": true});
    let error = server.chat(&late).error(504);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("time limit")), "{error}");
    assert_eq!(ask(&server, "second"), wanted[1]);
}

/// If the process of rank 1 is killed, the server ends with an error that names rank 1. This holds while the server
/// is idle and while it decodes.
#[test]
fn a_server_ends_when_one_of_its_processes_is_killed() {
    let folder = folder();
    for is_busy in [false, true] {
        let mut command = serve_command(&folder.path().join("four"), &["--tensor-parallel-size", "2"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit_once("://").expect("an address").1.to_string();
        let mut stream = std::net::TcpStream::connect(address).expect("a connection");
        if is_busy {
            let long = json!({"messages": question("z"), "max_tokens": 20_000, "ignore_eos": true, "stream": true});
            write_request(&mut stream, "POST", "/v1/chat/completions", "", &long.to_string());
            stream.read_exact(&mut [0; 600]).expect("the begin of the answer");
        }
        let ranks = child_processes(&child);
        assert_eq!(ranks.len(), 2);
        let begun = Instant::now();
        send_signal(ranks[1], "-KILL");
        let code = wait(&mut child);
        let mut said = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert!(code == Some(1) && begun.elapsed() < Duration::from_secs(20), "{code:?} {:?}: {said}", begun.elapsed());
        assert!(said.contains("error: rank 1"), "busy {is_busy}: {said}");
    }
}

/// While rank 1 is stopped, requests wait and /health is 503. When it continues, the server answers again.
#[test]
fn the_health_of_a_server_fails_while_one_of_its_processes_is_silent() {
    let folder = folder();
    let server = start(folder.path(), &["--heartbeat-timeout", "30"]);
    let health = |path: &str| server.send("GET", path, "", "");
    assert_eq!((health("/health").status, health("/ready").status), (200, 200));
    let rank_1 = child_processes(&server.child)[1];
    send_signal(rank_1, "-STOP");
    let begun = Instant::now();
    while health("/health").status == 200 {
        assert!(begun.elapsed() < Duration::from_secs(20), "rank 1 is silent for {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    let error = health("/health").error(503);
    assert!(error["message"].as_str().is_some_and(|text| text.starts_with("rank 1 (")), "{error}");
    assert_eq!(health("/ready").status, 503);
    send_signal(rank_1, "-CONT");
    while health("/health").status == 503 {
        assert!(begun.elapsed() < Duration::from_secs(40), "rank 1 is silent for {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    server.assert_still_answers();
    assert_eq!(server.stop(15), Some(0));
}
