//! A server whose chat completions are sent by the test piece by piece. All other requests are forwarded to a real
//! `reel serve`, so the page, its content security policy and the previews are the real ones.

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::serving::{http_agent, read_reply};
use super::support::http::read_request;

/// Time limit for the page to send or to end a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The next action of the server on the answer that it streams.
pub enum ScriptedStep {
    /// Sends a piece of text.
    Piece(&'static str),
    /// Sends the end of the answer, with a usage of 7 prompt tokens and 5 completion tokens.
    End,
    /// Sends an error with this message, as `reel serve` does if the engine fails.
    Error(&'static str),
    /// Closes the connection in the middle of the answer.
    Hang,
}

/// An event that the server reports to the test.
#[derive(Debug)]
pub enum ServerEvent {
    /// A chat request with this body.
    Chat(Value),
    /// The client has closed the connection before the answer ended.
    Gone,
}

pub struct ScriptedServer {
    /// The server's address, `http://ADDRESS`.
    pub address: String,
    steps: Sender<ScriptedStep>,
    seen: Receiver<ServerEvent>,
}

impl ScriptedServer {
    /// Starts the server; `real` is the address of the real `reel serve`.
    pub fn start(real: &str) -> ScriptedServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (steps, script) = channel();
        let (sender, seen) = channel();
        let script = Arc::new(Mutex::new(script));
        let real = real.to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (real, script, sender) = (real.clone(), script.clone(), sender.clone());
                // An error means that the client has closed the connection.
                std::thread::spawn(move || answer(stream, &real, &script, &sender).ok());
            }
        });
        ScriptedServer { address, steps, seen }
    }

    /// Makes the server do this step of the script.
    pub fn do_step(&self, step: ScriptedStep) {
        self.steps.send(step).unwrap();
    }

    /// Waits for the next chat request and returns its body.
    #[track_caller]
    pub fn next_chat_request(&self) -> Value {
        match self.seen.recv_timeout(REQUEST_TIMEOUT) {
            Ok(ServerEvent::Chat(body)) => body,
            other => panic!("no chat request: {other:?}"),
        }
    }

    /// Waits until the client has closed the connection.
    #[track_caller]
    pub fn wait_until_client_disconnects(&self) {
        let seen = self.seen.recv_timeout(REQUEST_TIMEOUT);
        assert!(matches!(seen, Ok(ServerEvent::Gone)), "the client is still connected: {seen:?}");
    }
}

fn answer(
    mut stream: TcpStream,
    real: &str,
    script: &Mutex<Receiver<ScriptedStep>>,
    seen: &Sender<ServerEvent>,
) -> std::io::Result<()> {
    let Some(request) = read_request(&mut BufReader::new(&stream))? else { return Ok(()) };
    let mut words = request.head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if path == "/v1/chat/completions" {
        let _ = seen.send(ServerEvent::Chat(request.json()));
        return stream_answer(&mut stream, &script.lock().unwrap(), seen);
    }
    let url = format!("{real}{path}");
    let forwarded = read_reply(if method == "POST" {
        http_agent().post(url).send(&request.body[..])
    } else {
        http_agent().get(url).call()
    });
    let mut head = format!("HTTP/1.1 {} Forwarded\r\nConnection: close\r\n", forwarded.status);
    for name in ["content-type", "content-security-policy"] {
        head += &format!("{name}: {}\r\n", forwarded.header(name));
    }
    head += &format!("Content-Length: {}\r\n\r\n", forwarded.body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(forwarded.body.as_bytes())
}

/// Streams an answer by the steps of the script.
fn stream_answer(
    stream: &mut TcpStream,
    script: &Receiver<ScriptedStep>,
    seen: &Sender<ServerEvent>,
) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n")?;
    stream.set_read_timeout(Some(Duration::from_millis(1)))?;
    let choice = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        json!({"choices": [choice], "usage": null})
    };
    send(stream, &choice(json!({"role": "assistant", "content": ""}), Value::Null))?;
    loop {
        match script.recv_timeout(Duration::from_millis(20)) {
            Ok(ScriptedStep::Piece(text)) => send(stream, &choice(json!({"content": text}), Value::Null))?,
            Ok(ScriptedStep::End) => {
                send(stream, &choice(json!({}), json!("stop")))?;
                let usage = json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12});
                send(stream, &json!({"choices": [], "usage": usage}))?;
                return stream.write_all(DONE);
            }
            Ok(ScriptedStep::Error(message)) => {
                let error = json!({"message": message, "type": "server_error", "code": "internal_error"});
                send(stream, &json!({"error": error}))?;
                return stream.write_all(DONE);
            }
            Ok(ScriptedStep::Hang) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // Reading from a closed connection returns 0 bytes; an open connection has nothing to read.
        if matches!(stream.peek(&mut [0]), Ok(0)) {
            let _ = seen.send(ServerEvent::Gone);
            return Ok(());
        }
    }
}

/// The last event of an answer.
const DONE: &[u8] = b"data: [DONE]\n\n";

fn send(stream: &mut TcpStream, data: &Value) -> std::io::Result<()> {
    stream.write_all(format!("data: {data}\n\n").as_bytes())
}
