//! What clients and the caller see when the engine's thread panics: errors, a server that ends, and no hang.
//!
//! The panic is that of a command to replace the weights, whose loading panics on the engine's thread.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use reel_model::init::{InitOptions, Preset, init};
use reel_model::input::encode::MediaOptions;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::engine_thread::{EngineQueue, NewWeights};
use crate::server::serve_in_turns;
use crate::{ConnectionLimits, Limits, ServeError, ServeOptions, ServedModel};

/// The time in which everything in this test happens.
const PATIENCE: Duration = Duration::from_secs(60);

const CHAT: &str = "/v1/chat/completions";

/// Serves a tiny model with random weights; `on_listening` gets the address and the queue to the engine.
fn serve_tiny(folder: &Path, on_listening: impl FnOnce(SocketAddr, EngineQueue)) -> Result<(), ServeError> {
    let init_options = InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: 3 };
    init(&init_options, folder).unwrap();
    let (model, weights) = ServedModel::open_on_cpu(folder).unwrap();
    let limits = Limits {
        batch: 4,
        requests: 16,
        body_bytes: 1 << 20,
        encoders: 1,
        kv_bytes: 256 << 20,
        new_tokens: 16,
        request_time: None,
    };
    let connections = ConnectionLimits { connections: 16, read_timeout: PATIENCE, write_timeout: PATIENCE };
    let options = ServeOptions::local(limits, connections, MediaOptions::default());
    serve_in_turns(model, weights, options, None, |address, shared| on_listening(address, shared.engine.clone()))
}

/// A connection with a request whose answer has `max_tokens` tokens.
fn ask(address: SocketAddr, max_tokens: usize, stream: bool) -> BufReader<TcpStream> {
    let messages = json!([{"role": "user", "content": "x"}]);
    let body = json!({"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": stream}).to_string();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    send(address, &(head + &body))
}

fn send(address: SocketAddr, request: &str) -> BufReader<TcpStream> {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    BufReader::new(connection)
}

fn rest(mut connection: BufReader<TcpStream>) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

/// The error object that is the body of an answer with this status.
#[track_caller]
fn error(answer: &str, status: u16) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    serde_json::from_str::<Value>(body).unwrap()["error"].take()
}

#[test]
fn a_panic_of_the_engine_fails_requests_and_ends_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (listening, address) = mpsc::channel();
    let (ended, end) = mpsc::channel();
    let path = folder.path().to_path_buf();
    std::thread::spawn(move || {
        let outcome = serve_tiny(&path, |address, queue| listening.send((address, queue)).unwrap());
        ended.send(outcome).unwrap();
    });
    let (address, engine) = address.recv_timeout(PATIENCE).unwrap();
    // A client whose body is not complete holds the server open after the panic.
    let mut open =
        send(address, "POST /tokenize HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 15\r\n\r\n");
    // Greedy decoding with this model samples no end token, so these requests would run for many seconds.
    let mut streamed = ask(address, 20_000, true);
    let whole = ask(address, 20_000, false);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert_ne!(streamed.read_line(&mut line).unwrap(), 0, "the stream has ended");
    }
    let (done, result) = oneshot::channel();
    engine.replace_weights(NewWeights { load: Box::new(|_, _| panic!("wanted by this test")), done });
    assert!(result.blocking_recv().is_err());
    // The stream ends with an error event, the other request with status 500.
    let text = rest(streamed);
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let [.., last, "[DONE]"] = &events[..] else { panic!("{text}") };
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["error"]["type"], &last["error"]["code"]), (&json!("server_error"), &json!("internal_error")));
    let failed = error(&rest(whole), 500);
    assert_eq!((&failed["type"], &failed["code"]), (&json!("server_error"), &json!("internal_error")));
    assert!(failed["message"].as_str().unwrap().contains("start the server again"), "{failed}");
    // A command after the panic is not waited for.
    let (done, result) = oneshot::channel();
    while engine.is_alive() {
        std::thread::yield_now();
    }
    engine.replace_weights(NewWeights { load: Box::new(|_, _| unreachable!("the thread has ended")), done });
    assert!(result.blocking_recv().is_err());
    // While the server ends, it is not ready and takes no requests.
    let not_ready = error(&rest(send(address, "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")), 503);
    assert_eq!(not_ready["code"], "unavailable");
    error(&rest(ask(address, 1, false)), 503);
    assert!(end.try_recv().is_err(), "the server has ended before the client that it serves");
    open.get_mut().write_all(b"{\"prompt\": \"x\"}").unwrap();
    assert!(rest(open).starts_with("HTTP/1.1 200 "));
    let outcome = end.recv_timeout(PATIENCE).expect("the server ends");
    assert!(matches!(outcome, Err(ServeError::EnginePanicked)), "{outcome:?}");
    assert!(TcpStream::connect(address).is_err(), "the port is still open");
}
