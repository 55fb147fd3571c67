//! An endpoint with OpenAI's chat API whose answers, and whose ways to fail, a test decides.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// Tokens that each answer states in its usage.
pub const PROMPT_TOKENS: u64 = 100;
pub const ANSWER_TOKENS: u64 = 50;

/// What the endpoint does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answers with this text.
    Text(String),
    /// Answers with this status and a header `Retry-After` in seconds.
    RetryAfter(u16, &'static str),
    /// Answers with this status.
    Status(u16),
    /// Answers after this time.
    Late(Duration, String),
    /// Closes the connection in the middle of the body.
    CutBody(String),
    /// Sends a body that is no JSON.
    BrokenJson,
    /// Closes the connection without an answer.
    Reset,
}

/// A request that the endpoint got: the body, and how many equal ones came before.
pub type Decide = dyn Fn(&Value, usize) -> Reply + Send + Sync;

/// The running endpoint. It ends with the test program.
pub struct ChatEndpoint {
    /// `http://ADDRESS/v1`
    pub url: String,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl ChatEndpoint {
    pub fn start(decide: Box<Decide>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (log, decide) = (seen.clone(), Arc::new(decide));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, decide) = (log.clone(), decide.clone());
                // An error is a client that is gone.
                std::thread::spawn(move || answer(stream, &log, &**decide).ok());
            }
        });
        Self { url, seen }
    }

    /// The bodies of all chat requests so far.
    pub fn seen(&self) -> Vec<Value> {
        self.seen.lock().unwrap().clone()
    }

    /// Number of chat requests so far.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn answer(mut stream: TcpStream, log: &Mutex<Vec<Value>>, decide: &Decide) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((_, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if first.starts_with("GET /v1/models ") {
        return send(&mut stream, 200, "", &json!({"data": [{"id": "scripted"}]}).to_string());
    }
    assert!(first.starts_with("POST /v1/chat/completions "), "{first}");
    let body: Value = serde_json::from_slice(&body).unwrap();
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|other| **other == body).count();
        log.push(body.clone());
        before
    };
    match decide(&body, before) {
        Reply::Text(text) => send(&mut stream, 200, "", &completion(&text)),
        Reply::Late(time, text) => {
            std::thread::sleep(time);
            send(&mut stream, 200, "", &completion(&text))
        }
        Reply::RetryAfter(status, seconds) => send(
            &mut stream,
            status,
            &format!("Retry-After: {seconds}\r\n"),
            "{\"error\": {\"message\": \"slow down\"}}",
        ),
        Reply::Status(status) => send(&mut stream, status, "", "{\"error\": {\"message\": \"scripted\"}}"),
        Reply::BrokenJson => send(&mut stream, 200, "", "{\"choices\": [{\"message\": {\"cont"),
        Reply::CutBody(text) => {
            let body = completion(&text);
            let head = format!("HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body.as_bytes()[..body.len() / 2])
        }
        Reply::Reset => Ok(()),
    }
}

fn completion(text: &str) -> String {
    let message = json!({"role": "assistant", "content": text});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS,
        "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS});
    json!({"id": "x", "object": "chat.completion", "model": "scripted", "choices": [choice], "usage": usage})
        .to_string()
}

fn send(stream: &mut TcpStream, status: u16, headers: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}Content-Type: application/json\r\n");
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())
}
