//! `reel serve`: answers equal those of `reel generate`, also in a batch and streamed; errors have OpenAI's form; a
//! client that is gone frees its request; a signal ends the server after the running requests.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{reel, run};
use tempfile::TempDir;

/// Time in which every request of these tests is answered.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; it is killed when it is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
    model: PathBuf,
}

/// The status and the body of an answer.
struct Reply {
    status: u16,
    body: String,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("tiny");
        run(["init", "--preset", "tiny", "--seed", "3", "--out", text(&model)]).ok();
        Server::start_with(folder, model, args)
    }

    fn start_with(folder: TempDir, model: PathBuf, args: &[&str]) -> Server {
        let mut child = serve_command(&model, args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("the server said {line:?}"));
        Server { child, address, _folder: folder, model }
    }

    /// Sends a request with these header lines, and reads the whole answer.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let mut stream = self.connect();
        write_request(&mut stream, method, path, headers, body);
        read_reply(&mut stream)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn chat(&self, body: &Value) -> Reply {
        self.send("POST", "/v1/chat/completions", "", &body.to_string())
    }

    /// What `reel generate` answers to the messages file `messages` with the options `args`.
    fn generated(&self, messages: &Value, args: &[&str]) -> Value {
        let file = self.model.with_extension("messages.json");
        std::fs::write(&file, messages.to_string()).unwrap();
        let all = ["generate", "--model", text(&self.model), "--messages", text(&file), "--device", "cpu", "--json"];
        serde_json::from_str(run(all.iter().chain(args)).ok()).unwrap()
    }

    fn stop(mut self, signal: i32) -> Option<i32> {
        let number = format!("-{signal}");
        assert!(Command::new("kill").args([&number, &self.child.id().to_string()]).status().unwrap().success());
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve_command(model: &Path, args: &[&str]) -> Command {
    let mut command = reel();
    command.args(["serve", "--model", text(model), "--device", "cpu", "--port", "0"]).args(args);
    command
}

fn wait(child: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the server does not end")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn write_request(stream: &mut TcpStream, method: &str, path: &str, headers: &str, body: &str) {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server may refuse a request before it has read the body.
    let _ = stream.write_all(body.as_bytes());
}

fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let all = String::from_utf8(bytes).unwrap();
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no header in {all:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Reply { status, body: if chunked { without_chunk_sizes(body) } else { body.to_string() } }
}

/// The body of a chunked answer: each chunk is a line with its size in hexadecimal digits, its bytes, and a line end.
fn without_chunk_sizes(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        body = &rest[size..][2.min(rest.len() - size)..];
    }
    whole
}

impl Reply {
    #[track_caller]
    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// The error object, after a check of the status.
    #[track_caller]
    fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let mut body: Value = serde_json::from_str(&self.body).unwrap();
        let error = body["error"].take();
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()) && error["type"].is_string(), "{error}");
        error
    }

    /// The data of the server-sent events.
    #[track_caller]
    fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).map(String::from).collect()
    }
}

fn question(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn answers_equal_those_of_generate_alone_in_a_batch_and_streamed() {
    let server = Server::start(&["--batch-size", "5"]);
    let prompts: Vec<String> = (0..12).map(|i| format!("question {i}: {}", "why? ".repeat(i * 7))).collect();
    let wanted: Vec<Value> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| server.generated(&question(prompt), &["--max-new-tokens", &format!("{}", 3 + 2 * i)]))
        .collect();
    let body = |i: usize, stream: bool| {
        json!({"model": "tiny", "messages": question(&prompts[i]), "max_tokens": 3 + 2 * i, "stream": stream,
            "stream_options": {"include_usage": true}})
    };
    let first = server.chat(&body(0, false)).ok();
    assert_eq!(first["object"], "chat.completion");
    assert_eq!(first["usage"]["prompt_tokens"], wanted[0]["prompt_tokens"]);
    // All at once, every second one streamed.
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

/// Text, finish reason and usage of an answer in one object.
fn whole(answer: &Value) -> (String, String, Value) {
    let choice = &answer["choices"][0];
    let part = |value: &Value| value.as_str().unwrap().to_string();
    (part(&choice["message"]["content"]), part(&choice["finish_reason"]), answer["usage"].clone())
}

/// Text, finish reason and usage of a streamed answer with one completion.
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
        server.generated(&messages, &["--n", "3", "--temperature", "1.5", "--seed", "9", "--max-new-tokens", "24"]);
    let body = json!({"messages": messages, "n": 3, "temperature": 1.5, "seed": 9, "max_completion_tokens": 24});
    let answer = server.chat(&body).ok();
    let texts = |list: &Value, path: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one.pointer(path).unwrap().as_str().unwrap().to_string()).collect()
    };
    assert_eq!(texts(&answer["choices"], "/message/content"), texts(&wanted, "/text"));
    // Without a seed, other random numbers are drawn each time.
    let unseeded = json!({"messages": messages, "temperature": 1.5, "max_tokens": 24});
    let answers = [server.chat(&unseeded).ok(), server.chat(&unseeded).ok()];
    assert_ne!(answers[0]["choices"][0]["message"], answers[1]["choices"][0]["message"]);
    // A stop string that appears inside of the first completion.
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
fn wrong_requests_get_openai_errors_and_the_server_goes_on() {
    let server = Server::start(&["--max-body", "1"]);
    let messages = question("x");
    for (body, status, param) in [
        (json!({"messages": messages, "temperature": "hot"}), 400, Some("temperature")),
        (json!({"messages": messages, "temprature": 1}), 400, Some("temprature")),
        (json!({"messages": messages, "n": 0}), 400, Some("n")),
        (json!({"messages": messages, "n": 129}), 400, Some("n")),
        (json!({"messages": messages, "model": "gpt-4o"}), 404, Some("model")),
        (json!({"messages": messages, "max_tokens": 1u64 << 40}), 400, Some("messages")),
        (json!({"messages": messages, "stream": "yes"}), 400, None),
        (json!({"messages": []}), 400, None),
        (json!({"messages": [{"role": "user"}]}), 400, None),
        (json!({"temperature": 1}), 400, None),
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
    send("GET", "/v1/chat/completions", "").error(405);
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
    // A PNG of one grey pixel, enlarged by the model's preprocessor.
    let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
    let messages = json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{png}")}},
        {"type": "text", "text": "What is this?"},
    ]}]);
    let wanted = server.generated(&messages, &["--max-new-tokens", "8"]);
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
fn a_client_that_is_gone_frees_its_request() {
    // One request at a time: the second one is answered only after the first one is dropped. Greedy decoding with this
    // model samples no end token, so the first one would take minutes.
    let server = Server::start(&["--max-requests", "1", "--batch-size", "1"]);
    let long = json!({"messages": question("x"), "max_tokens": 120_000, "temperature": 0, "stream": true});
    let mut stream = server.connect();
    write_request(&mut stream, "POST", "/v1/chat/completions", "", &long.to_string());
    // The first bytes of the answer: the request runs.
    stream.read_exact(&mut [0; 64]).unwrap();
    let short = json!({"messages": question("x"), "max_tokens": 2});
    assert_eq!(server.chat(&short).error(503)["code"], "unavailable");
    drop(stream);
    let begun = Instant::now();
    while server.chat(&short).status != 200 {
        assert!(begun.elapsed() < PATIENCE, "the request of a client that is gone still runs");
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
