//! Tests of a panic of the engine's thread: clients get errors, the server ends, and nothing hangs.
//!
//! The tests send a command to replace the weights, and the loading of these weights panics on the engine's thread.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::engine_thread::ReplaceWeightsCommand;
use crate::settings::ServeError;
use crate::testing::{TEST_TIMEOUT, error_object, post, read_to_end, send, serve_tiny};

const CHAT: &str = "/v1/chat/completions";

/// Opens a connection and sends a chat request with `max_tokens`.
fn ask(address: SocketAddr, max_tokens: usize, stream: bool) -> BufReader<TcpStream> {
    let messages = json!([{"role": "user", "content": "x"}]);
    post(address, CHAT, &json!({"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": stream}))
}

#[test]
fn a_panic_of_the_engine_fails_requests_and_ends_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (listening, address) = mpsc::channel();
    let (ended, end) = mpsc::channel();
    let path = folder.path().to_path_buf();
    std::thread::spawn(move || {
        let outcome = serve_tiny(&path, 256 << 20, Default::default(), |address, queue| {
            listening.send((address, queue)).unwrap();
        });
        ended.send(outcome).unwrap();
    });
    let (address, engine) = address.recv_timeout(TEST_TIMEOUT).unwrap();
    // A client that has not sent its whole body keeps the server open after the panic.
    let mut open =
        send(address, "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 15\r\n\r\n");
    // Greedy decoding with this model samples no end token, so these requests would run for many seconds.
    let mut streamed = ask(address, 20_000, true);
    let whole = ask(address, 20_000, false);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert_ne!(streamed.read_line(&mut line).unwrap(), 0, "the stream has ended");
    }
    let (done, result) = oneshot::channel();
    engine.replace_weights(ReplaceWeightsCommand {
        folder: PathBuf::new(),
        load: Box::new(|_, _| panic!("wanted by this test")),
        done,
    });
    assert!(result.blocking_recv().is_err());
    // The streamed answer ends with an error event; the other request gets status 500.
    let text = read_to_end(streamed);
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let [.., last, "[DONE]"] = &events[..] else { panic!("{text}") };
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["error"]["type"], &last["error"]["code"]), (&json!("server_error"), &json!("internal_error")));
    let failed = error_object(&read_to_end(whole), 500);
    assert_eq!((&failed["type"], &failed["code"]), (&json!("server_error"), &json!("internal_error")));
    assert!(failed["message"].as_str().unwrap().contains("start the server again"), "{failed}");
    // A command that is sent after the panic fails at once.
    let (done, result) = oneshot::channel();
    while engine.is_alive() {
        std::thread::yield_now();
    }
    engine.replace_weights(ReplaceWeightsCommand {
        folder: PathBuf::new(),
        load: Box::new(|_, _| unreachable!("the thread has ended")),
        done,
    });
    assert!(result.blocking_recv().is_err());
    // While the server ends, `/ready` returns 503 and new requests are refused.
    let not_ready = error_object(
        &read_to_end(send(address, "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")),
        503,
    );
    assert_eq!(not_ready["code"], "unavailable");
    error_object(&read_to_end(ask(address, 1, false)), 503);
    assert!(end.try_recv().is_err(), "the server has ended before the client that it serves");
    open.get_mut().write_all(b"{\"prompt\": \"x\"}").unwrap();
    assert!(read_to_end(open).starts_with("HTTP/1.1 200 "));
    let outcome = end.recv_timeout(TEST_TIMEOUT).expect("the server ends");
    assert!(matches!(outcome, Err(ServeError::EnginePanicked)), "{outcome:?}");
    assert!(TcpStream::connect(address).is_err(), "the port is still open");
}
