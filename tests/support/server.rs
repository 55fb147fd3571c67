//! Starts `reel serve` and sends requests to it.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{reel, run, tiny_model, tiny_preset, with_options};

/// Time limit of every request in tests.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server; dropping it kills the process.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    _folder: TempDir,
    pub model: PathBuf,
}

/// The status and the body of an answer.
pub struct Reply {
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    pub body: String,
}

impl Server {
    pub fn start(args: &[&str]) -> Server {
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("tiny");
        run(["init", "--preset", &tiny_preset(), "--seed", "3", "--out", text(&model)]).ok();
        Server::start_with(folder, model, args)
    }

    /// Starts a server whose stderr the test can read.
    pub fn start_with_piped_stderr(args: &[&str]) -> Server {
        let folder = TempDir::new().unwrap();
        let model = tiny_model(folder.path());
        let mut command = serve_command(&model, args);
        command.stderr(Stdio::piped());
        Server::spawn(folder, model, command)
    }

    pub fn start_with(folder: TempDir, model: PathBuf, args: &[&str]) -> Server {
        let command = serve_command(&model, args);
        Server::spawn(folder, model, command)
    }

    fn spawn(folder: TempDir, model: PathBuf, mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = address_in(&line).unwrap_or_else(|| panic!("the server said {line:?}"));
        Server { child, address, _folder: folder, model }
    }

    /// Sends a request with these header lines, and reads the complete answer.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let mut stream = self.connect();
        write_request(&mut stream, method, path, headers, body);
        read_reply(&mut stream)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(REQUEST_TIMEOUT)).unwrap();
        stream
    }

    pub fn chat(&self, body: &Value) -> Reply {
        self.send("POST", "/v1/chat/completions", "", &body.to_string())
    }

    /// Checks that the server answers a plain request within the time limit.
    #[track_caller]
    pub fn assert_still_answers(&self) {
        let begun = Instant::now();
        self.chat(&json!({"messages": question("x"), "max_tokens": 2})).ok();
        assert!(begun.elapsed() < Duration::from_secs(20), "an answer took {:?}", begun.elapsed());
    }

    /// Returns the output of `reel generate` for the chat messages `messages` with the options `args`.
    pub fn generate(&self, messages: &Value, args: &[&str]) -> Value {
        let file = self.model.with_extension("messages.json");
        std::fs::write(&file, messages.to_string()).unwrap();
        let all = ["generate", "--model", text(&self.model), "--messages", text(&file), "--device", "cpu", "--json"];
        serde_json::from_str(run(with_options(&all, args)).ok()).unwrap()
    }

    /// Returns the output of `reel generate` for the request `body` with the LoRA adapter in `adapter`.
    pub fn generate_with_adapter(&self, adapter: &Path, body: &Value) -> Value {
        let adapter = ["--adapter", text(adapter)];
        self.generate(body, &adapter)
    }

    pub fn stop(mut self, signal: i32) -> Option<i32> {
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

/// Returns the address at the end of a line.
fn address_in(line: &str) -> Option<SocketAddr> {
    line.trim().rsplit_once("://")?.1.parse().ok()
}

pub fn serve_command(model: &Path, args: &[&str]) -> Command {
    let mut command = reel();
    command.args(with_options(&["serve", "--model", text(model), "--device", "cpu", "--port", "0"], args));
    command
}

pub fn wait(child: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < REQUEST_TIMEOUT {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the server does not end")
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn write_request(stream: &mut impl Write, method: &str, path: &str, headers: &str, body: &str) {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server may refuse a request before it has read the body.
    let _ = stream.write_all(body.as_bytes());
}

pub fn read_reply(stream: &mut impl Read) -> Reply {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let all = String::from_utf8(bytes).unwrap();
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no header in {all:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { without_chunk_sizes(body) } else { body.to_string() };
    Reply { status, head: head.to_string(), body }
}

/// Decodes a body in chunked encoding: each chunk has a line with its size in hexadecimal digits, its bytes, and a
/// line end.
pub fn without_chunk_sizes(mut body: &str) -> String {
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
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// Checks the status and returns the error object of the answer.
    #[track_caller]
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let mut body: Value = serde_json::from_str(&self.body).unwrap();
        let error = body["error"].take();
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()) && error["type"].is_string(), "{error}");
        error
    }

    /// Returns the data of the server-sent events.
    #[track_caller]
    pub fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).map(String::from).collect()
    }
}

pub fn question(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}
