//! `reel serve`: answers equal those of `reel generate`, also in a batch and streamed; errors have OpenAI's form; a
//! disconnected client frees its request; a signal ends the server after the running requests.

#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{REQUEST_TIMEOUT, Reply, Server, question, serve_command, text, write_request};
use support::{reel, reel_with_address_space, run};
use tempfile::TempDir;

#[test]
fn answers_equal_those_of_generate_alone_in_a_batch_and_streamed() {
    let server = Server::start(&["--batch-size", "5"]);
    let prompts: Vec<String> = (0..12).map(|i| format!("question {i}: {}", "why? ".repeat(i * 7))).collect();
    let wanted: Vec<Value> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| server.generate(&question(prompt), &["--max-new-tokens", &format!("{}", 3 + 2 * i)]))
        .collect();
    let body = |i: usize, stream: bool| {
        let options = if stream { json!({"include_usage": true}) } else { Value::Null };
        json!({"model": "tiny", "messages": question(&prompts[i]), "max_tokens": 3 + 2 * i, "stream": stream,
            "stream_options": options})
    };
    let first = server.chat(&body(0, false)).ok();
    assert_eq!(first["object"], "chat.completion");
    assert_eq!(first["usage"]["prompt_tokens"], wanted[0]["prompt_tokens"]);
    // All requests are sent at the same time; every second answer is streamed.
    std::thread::scope(|scope| {
        for i in 0..prompts.len() {
            let (server, body, wanted) = (&server, &body, &wanted[i]);
            scope.spawn(move || {
                let reply = server.chat(&body(i, i % 2 == 1));
                let (text, reason, usage) = if i % 2 == 1 { streamed(&reply) } else { whole(&reply.ok()) };
                let tokens = wanted["token_ids"].as_array().unwrap().len();
                assert_eq!(text, wanted["text"].as_str().unwrap(), "prompt {i}");
                assert_eq!(reason, wanted["finish_reason"].as_str().unwrap(), "prompt {i}");
                assert_eq!(usage["completion_tokens"], tokens, "prompt {i}");
            });
        }
    });
}

/// Returns the text, finish reason and usage of an answer that is not streamed.
fn whole(answer: &Value) -> (String, String, Value) {
    let choice = &answer["choices"][0];
    let part = |value: &Value| value.as_str().unwrap().to_string();
    (part(&choice["message"]["content"]), part(&choice["finish_reason"]), answer["usage"].clone())
}

/// Returns the text, finish reason and usage of a streamed answer with one completion.
fn streamed(reply: &Reply) -> (String, String, Value) {
    let mut events = reply.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"]));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    let reason = chunks.iter().find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
    (text, reason.unwrap().to_string(), chunks.last().unwrap()["usage"].clone())
}

#[test]
fn samples_stop_strings_and_several_completions_as_generate_does() {
    let server = Server::start(&[]);
    let messages = question("Tell me a story.");
    let wanted =
        server.generate(&messages, &["--n", "3", "--temperature", "1.5", "--seed", "9", "--max-new-tokens", "24"]);
    let body = json!({"messages": messages, "n": 3, "temperature": 1.5, "seed": 9, "max_completion_tokens": 24});
    let answer = server.chat(&body).ok();
    let texts = |list: &Value, path: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one.pointer(path).unwrap().as_str().unwrap().to_string()).collect()
    };
    assert_eq!(texts(&answer["choices"], "/message/content"), texts(&wanted, "/text"));
    // Without a seed, each request is sampled with different random numbers.
    let unseeded = json!({"messages": messages, "temperature": 1.5, "max_tokens": 24});
    let answers = [server.chat(&unseeded).ok(), server.chat(&unseeded).ok()];
    assert_ne!(answers[0]["choices"][0]["message"], answers[1]["choices"][0]["message"]);
    // The stop string is taken from the middle of the first completion.
    let whole = &texts(&wanted, "/text")[0];
    let stop: String = whole.chars().skip(whole.chars().count() / 2).take(2).collect();
    let cut = whole.find(&stop).unwrap();
    let mut stopped = body.clone();
    (stopped["n"], stopped["stop"], stopped["stream"]) = (json!(1), json!(stop), json!(true));
    let reply = server.chat(&stopped);
    let events = reply.events();
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let text: String =
        chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(String::from)).collect();
    assert_eq!(text, whole[..cut]);
}

#[test]
#[cfg(target_os = "linux")]
fn the_memory_of_keys_and_values_is_taken_at_the_start() {
    let server = Server::start(&["--kv-memory", "200"]);
    let resident_kib = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    let begun = Instant::now();
    while resident_kib() < 200 << 10 {
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "{} KiB are resident", resident_kib());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_without_memory_for_keys_and_values_does_not_listen() {
    let folder = TempDir::new().unwrap();
    let model = support::tiny_model(folder.path());
    // The KV cache for 32 sequences of this model takes 5.9 GiB, more than the limit of the address space.
    let mut command = reel_with_address_space(2_500_000);
    command.args(["serve", "--port", "0", "--threads", "2", "--kv-memory", "100000", "--model"]).arg(&model);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: device memory: cannot allocate") && said.lines().count() == 1, "{said}");
    assert!(said.contains("for kv_cache") && said.contains("--kv-memory"), "{said}");
}

#[test]
fn wrong_requests_get_openai_errors_and_the_server_goes_on() {
    let server = Server::start(&["--max-body", "1"]);
    let messages = question("x");
    for (body, status, param) in [
        (json!({"messages": messages, "temperature": "hot"}), 400, Some("temperature")),
        (json!({"messages": messages, "best_of": 3}), 400, Some("best_of")),
        (json!({"messages": messages, "n": 0}), 400, Some("n")),
        (json!({"messages": messages, "n": 129}), 400, Some("n")),
        (json!({"messages": messages, "model": "gpt-4o"}), 404, Some("model")),
        (json!({"messages": messages, "max_tokens": 1u64 << 40}), 400, Some("messages")),
        (json!({"messages": messages, "stream": "yes"}), 400, Some("stream")),
        (json!({"messages": messages, "stream_options": {"include_usage": true}}), 400, Some("stream_options")),
        (json!({"messages": messages, "max_tokens": 0}), 400, Some("max_tokens")),
        (json!({"messages": messages, "logprobs": 3}), 400, Some("logprobs")),
        (json!({"messages": messages, "top_logprobs": 3}), 400, Some("top_logprobs")),
        (json!({"messages": messages, "response_format": {"type": "yaml"}}), 400, Some("response_format")),
        (json!({"messages": messages, "guided_regex": "["}), 400, Some("guided_regex")),
        (json!({"messages": messages, "guided_json": {"type": "colour"}}), 400, Some("guided_json")),
        (json!({"messages": messages, "tools": [{"type": "function"}]}), 400, Some("tools[0].function")),
        (json!({"messages": []}), 400, Some("messages")),
        (json!({"messages": [{"role": "user"}]}), 400, Some("messages")),
        (json!({"temperature": 1}), 400, Some("messages")),
        (json!([1, 2]), 400, None),
        (json!({"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]}), 400, None),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url",
            "image_url": {"url": "http://127.0.0.1/x.png"}}]}]}),
            400,
            None,
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url",
            "image_url": {"url": "data:image/png;base64,!!!"}}]}]}),
            400,
            None,
        ),
    ] {
        let error = server.chat(&body).error(status);
        if let Some(param) = param {
            assert_eq!(error["param"], param, "{error}");
        }
    }
    let send = |method: &str, path: &str, body: &str| server.send(method, path, "", body);
    send("POST", "/v1/chat/completions", "{").error(400);
    send("POST", "/v1/chat/completions", &"x".repeat(2 << 20)).error(413);
    let message = send("GET", "/v1/chat/completions", "").error(405)["message"].to_string();
    assert!(message.contains("does not take GET; /docs lists the methods"), "{message}");
    send("POST", "/v2/nothing", "").error(404);
    send("GET", "/v1/models/other", "").error(404);
    assert_eq!(send("GET", "/v1/models", "").ok()["data"][0]["id"], "tiny");
    assert_eq!(send("GET", "/v1/models/tiny", "").ok()["id"], "tiny");
    assert_eq!((send("GET", "/health", "").status, send("GET", "/ready", "").status), (200, 200));
    server.chat(&json!({"messages": messages, "max_tokens": 2})).ok();
}

#[test]
fn an_image_in_a_data_uri_gives_the_answer_of_generate() {
    let server = Server::start(&[]);
    // A PNG of one grey pixel, which the model's preprocessor enlarges.
    let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
    let messages = json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{png}")}},
        {"type": "text", "text": "What is this?"},
    ]}]);
    let wanted = server.generate(&messages, &["--max-new-tokens", "8"]);
    let answer = server.chat(&json!({"messages": messages, "max_tokens": 8})).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], wanted["text"]);
    assert_eq!(answer["usage"]["prompt_tokens"], wanted["prompt_tokens"]);
}

#[test]
fn keys_are_checked_and_strangers_need_one() {
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "first\n\nsecond\n").unwrap();
    let server = Server::start(&["--api-key-file", text(&keys)]);
    let models = |headers: &str| server.send("GET", "/v1/models", headers, "");
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Bearer \r\n", "Authorization: first\r\n"] {
        assert_eq!(models(headers).error(401)["code"], "invalid_api_key", "{headers:?}");
    }
    for key in ["first", "second"] {
        models(&format!("Authorization: Bearer {key}\r\n")).ok();
    }
    assert_eq!(server.send("GET", "/health", "", "").status, 200);
    let refused = |args: &[&str], words: &str| {
        let run = support::finished_run(serve_command(&server.model, args).output().unwrap());
        assert_eq!((run.code, run.stderr.contains(words)), (Some(2), true), "{}", run.stderr);
    };
    refused(&["--host", "0.0.0.0"], "--host: 0.0.0.0 can be reached from other machines");
    refused(&["--api-key", ""], "--api-key: is an empty text");
    refused(&["--api-key", "ké"], "--api-key: has characters other than visible ASCII");
    refused(&["--served-model-name", ""], "--served-model-name: is \"\"; give a name");
    refused(&["--host", "no such host"], "--host: \"no such host\" is not an address");
    refused(&["--media-root", "/nowhere"], "--media-root: /nowhere is not a folder");
    let taken = support::finished_run(
        reel()
            .args(["serve", "--model", text(&server.model), "--device", "cpu"])
            .args(["--port", &server.address.port().to_string()])
            .output()
            .unwrap(),
    );
    assert_eq!(taken.code, Some(1));
    assert!(taken.stderr.contains("cannot be listened on") && taken.stderr.lines().count() == 1, "{}", taken.stderr);
}

#[test]
fn with_json_the_line_on_stdout_is_an_object() {
    let folder = TempDir::new().unwrap();
    let model = support::tiny_model(folder.path());
    let mut command = serve_command(&model, &["--json", "--host", "localhost", "--served-model-name", "m"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().unwrap()).read_line(&mut line);
    child.kill().unwrap();
    child.wait().unwrap();
    let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{read:?}: {line:?}: {e}"));
    assert_eq!(line["model"], "m");
    assert!(line["address"].as_str().is_some_and(|url| url.starts_with("http://")), "{line}");
}

#[test]
fn a_client_that_is_gone_frees_its_request() {
    // The server runs one request at a time, so the second one is answered only after the first one is dropped.
    // Greedy decoding with this model never samples an end token, so the first request would take minutes.
    let server = Server::start(&["--max-requests", "1", "--batch-size", "1"]);
    let long = json!({"messages": question("x"), "max_tokens": 120_000, "temperature": 0, "stream": true});
    let mut stream = server.connect();
    write_request(&mut stream, "POST", "/v1/chat/completions", "", &long.to_string());
    // Once the first bytes of the answer arrive, the request is running.
    stream.read_exact(&mut [0; 64]).unwrap();
    let short = json!({"messages": question("x"), "max_tokens": 2});
    let busy = server.chat(&short);
    assert_eq!(busy.error(429)["code"], "rate_limit_exceeded");
    assert!(busy.head.to_ascii_lowercase().contains("retry-after: 1"), "{}", busy.head);
    drop(stream);
    let begun = Instant::now();
    while server.chat(&short).status != 200 {
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "the request of a client that is gone still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_signal_lets_running_requests_finish() {
    let server = Server::start(&[]);
    let body = json!({"messages": question("x"), "max_tokens": 400, "temperature": 0});
    let mut streamed_body = body.clone();
    streamed_body["stream"] = json!(true);
    let mut stream = server.connect();
    write_request(&mut stream, "POST", "/v1/chat/completions", "", &streamed_body.to_string());
    stream.read_exact(&mut [0; 64]).unwrap();
    assert_eq!(server.stop(15), Some(0));
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"") && rest.contains("data: [DONE]"), "{rest}");
}

#[test]
fn answers_do_not_depend_on_where_the_weights_are() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("tiny");
    run(["init", "--preset", "tiny", "--dtype", "bf16", "--out", text(&model)]).ok();
    let body = json!({"messages": question("Hello"), "max_tokens": 12, "temperature": 0, "logprobs": true});
    let answers = [&["--weights", "mapped"][..], &["--weights", "copied"], &[]].map(|args| {
        let all = [args, &["--dtype", "bf16"]].concat();
        let server = Server::start_with(TempDir::new().unwrap(), model.clone(), &all);
        server.chat(&body).ok()["choices"].take()
    });
    assert!(answers[0] == answers[1] && answers[1] == answers[2], "{answers:?}");
    run(["serve", "--model", text(&model), "--weights", "lent"]).assert_refused(2, &["--weights", "lent"]);
}
