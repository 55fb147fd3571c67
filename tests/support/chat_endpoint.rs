//! A fake endpoint with OpenAI's chat API. For each request, the test decides the answer or the kind of failure.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::io::{BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::http::read_request;

/// Token counts in the usage of each answer.
pub const PROMPT_TOKENS: u64 = 100;
pub const ANSWER_TOKENS: u64 = 50;

/// Time for which the endpoint keeps a connection open without a reply.
const SILENCE: Duration = Duration::from_secs(5);

/// The reply of the fake endpoint to a request.
#[derive(Clone, Debug)]
pub enum EndpointReply {
    /// Answers with this text.
    Text(String),
    /// Answers with this text after this delay.
    Late(Duration, String),
    /// Replies with a status, header lines that end in CR LF, and a body.
    Status(u16, &'static str, &'static str),
    /// Replies with status 200 and this body.
    Body(String),
    /// Closes the connection in the middle of an answer that has this text.
    Cut(String),
    /// Closes the connection without a reply.
    Reset,
    /// Keeps the connection open without a reply.
    Silence,
}

impl EndpointReply {
    /// Creates a reply that answers with this text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

/// The running endpoint. It runs until the test program ends.
pub struct ChatEndpoint {
    /// The base URL, `http://ADDRESS/v1`.
    pub url: String,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl ChatEndpoint {
    /// Starts an endpoint that replies to a chat request with `decide(body, n)`; `n` is the number of earlier
    /// requests with the same body.
    pub fn start(decide: impl Fn(&Value, usize) -> EndpointReply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (log, decide) = (seen.clone(), Arc::new(decide));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, decide) = (log.clone(), decide.clone());
                // An error means that the client has closed the connection.
                thread::spawn(move || serve(stream, &log, &*decide).ok());
            }
        });
        Self { url, seen }
    }

    /// Returns the bodies of all chat requests so far.
    pub fn received_requests(&self) -> Vec<Value> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns the number of chat requests so far.
    pub fn request_count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

/// Serves a connection, on which a client may send several requests.
fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Value>>,
    decide: &dyn Fn(&Value, usize) -> EndpointReply,
) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        if request.has_method_and_path("GET", "/v1/models") {
            send(
                &mut stream,
                200,
                "",
                &json!({"data": [{"id": "scripted"}, {"id": "of vllm", "owned_by": "vllm"}]}).to_string(),
            )?;
            continue;
        }
        assert!(request.has_method_and_path("POST", "/v1/chat/completions"), "{}", request.head);
        let body = request.json();
        let before = {
            let mut log = log.lock().unwrap();
            let before = log.iter().filter(|other| **other == body).count();
            log.push(body.clone());
            before
        };
        match decide(&body, before) {
            EndpointReply::Text(text) => send(&mut stream, 200, "", &completion(&text))?,
            EndpointReply::Late(time, text) => {
                thread::sleep(time);
                send(&mut stream, 200, "", &completion(&text))?;
            }
            EndpointReply::Status(status, headers, body) => send(&mut stream, status, headers, body)?,
            EndpointReply::Body(body) => send(&mut stream, 200, "", &body)?,
            EndpointReply::Cut(text) => {
                let body = completion(&text);
                let head = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes())?;
                return stream.write_all(&body.as_bytes()[..body.len() / 2]);
            }
            EndpointReply::Reset => return Ok(()),
            EndpointReply::Silence => {
                thread::sleep(SILENCE);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn completion(text: &str) -> String {
    let message = json!({"role": "assistant", "content": text});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS,
        "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS});
    json!({"id": "x", "object": "chat.completion", "model": "scripted", "choices": [choice], "usage": usage})
        .to_string()
}

fn send(stream: &mut TcpStream, status: u16, headers: &str, body: &str) -> Result<()> {
    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Type: application/json\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
}
