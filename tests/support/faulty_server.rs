//! A server with OpenAI's chat API whose replies a test chooses, request by request: answers, and every kind of failure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers with a text, after a wait. Prompt and answer have 100 and 10 tokens.
    Say(String, Duration),
    /// Replies with a status, header lines that end in CR LF, and a body.
    Status(u16, &'static str, &'static str),
    /// Replies with status 200 and this body.
    Body(String),
    /// Announces more bytes than it sends.
    Cut,
    /// Closes the connection without a reply.
    Reset,
    /// Keeps the connection open without a reply.
    Silence,
}

impl Act {
    /// An answer without a wait.
    pub fn say(text: impl Into<String>) -> Self {
        Self::Say(text.into(), Duration::ZERO)
    }
}

/// A running server. It ends with the test program.
pub struct FaultyServer {
    /// Base URL of the API.
    pub url: String,
    /// The bodies of all chat requests so far.
    requests: Arc<Mutex<Vec<Value>>>,
}

impl FaultyServer {
    /// Starts a server that does `act(body, n)` with a chat request, of which it has seen `n` equal ones before.
    pub fn start(act: impl Fn(&Value, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (requests, act) = (Arc::new(Mutex::new(Vec::new())), Arc::new(act));
        let seen = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, act) = (seen.clone(), act.clone());
                // An error is a client that is gone.
                thread::spawn(move || serve(stream, &seen, &*act));
            }
        });
        Self { url, requests }
    }

    /// The bodies of all chat requests so far.
    pub fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }
}

/// The text of the last user message.
pub fn question(body: &Value) -> String {
    let content = &body["messages"].as_array().and_then(|messages| messages.last()).expect("a message")["content"];
    let text = content.as_array().into_iter().flatten().find_map(|part| part["text"].as_str());
    text.or(content.as_str()).unwrap_or_default().to_string()
}

/// Answers the requests of a connection, of which a client may send several.
fn serve(stream: TcpStream, seen: &Mutex<Vec<Value>>, act: &dyn Fn(&Value, usize) -> Act) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let (mut length, mut lines) = (0, Vec::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().ok()?;
            }
            lines.push(line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let mut reply = |status: u16, headers: &str, body: &str, announced: usize| {
            let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {announced}\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).ok()
        };
        if lines.first()?.starts_with("GET") {
            let models = json!({"data": [{"id": "scripted"}]}).to_string();
            reply(200, "", &models, models.len())?;
            continue;
        }
        let body: Value = serde_json::from_slice(&body).ok()?;
        let before = {
            let mut seen = seen.lock().unwrap();
            seen.push(body.clone());
            seen.iter().filter(|earlier| **earlier == body).count() - 1
        };
        match act(&body, before) {
            Act::Say(text, wait) => {
                thread::sleep(wait);
                let said = json!({"model": "scripted", "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                    "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": text}}]});
                let said = said.to_string();
                reply(200, "", &said, said.len())?;
            }
            Act::Status(status, headers, body) => reply(status, headers, body, body.len())?,
            Act::Body(body) => reply(200, "", &body, body.len())?,
            Act::Cut => {
                reply(200, "", "{\"choices\": [", 100)?;
                return None;
            }
            Act::Reset => return None,
            Act::Silence => thread::sleep(Duration::from_secs(5)),
        }
    }
}
