//! Runs a server with a tiny random model inside a test's process, and sends plain HTTP requests to it.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use reel_input::media_loading::MediaOptions;
use reel_model::init::{InitOptions, Preset, init_model_folder};
use serde_json::Value;
use tempfile::TempDir;

use crate::engine_thread::EngineQueue;
use crate::http::ConnectionLimits;
use crate::server::serve_with_engine;
use crate::settings::{ServeError, ServeOptions, ServedModel, ServerLimits};

/// How long a test waits for an event before it fails.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves a tiny model with random weights until `stop` is set. Calls `on_listening` with the address and the queue to
/// the engine.
pub(crate) fn serve_tiny(
    folder: &Path,
    kv_bytes: u64,
    stop: Arc<AtomicBool>,
    on_listening: impl FnOnce(SocketAddr, EngineQueue),
) -> Result<(), ServeError> {
    let init_options = InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: 3 };
    init_model_folder(&init_options, folder).unwrap();
    let (mut model, weights) = ServedModel::open_on_cpu(folder).unwrap();
    model.name = "tiny".into();
    let limits = ServerLimits {
        batch: 4,
        requests: 16,
        body_bytes: 1 << 20,
        encoders: 1,
        kv_bytes,
        new_tokens: 16,
        request_time: None,
    };
    let connections = ConnectionLimits { connections: 16, read_timeout: TEST_TIMEOUT, write_timeout: TEST_TIMEOUT };
    let options =
        ServeOptions { stop, ..ServeOptions::for_local_programs(limits, connections, MediaOptions::default()) };
    serve_with_engine(model, weights, options, |address, engine| on_listening(address, engine.clone()))
}

/// Opens a connection and sends `request`, which is the header and the body.
pub(crate) fn send(address: SocketAddr, request: &str) -> BufReader<TcpStream> {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    BufReader::new(connection)
}

/// Opens a connection and posts a JSON body.
pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> BufReader<TcpStream> {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    send(address, &(head + &body))
}

/// Reads the rest of an answer.
pub(crate) fn read_to_end(mut connection: BufReader<TcpStream>) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

/// Returns the error object in an answer's body. The answer must have this status.
#[track_caller]
pub(crate) fn error_object(answer: &str, status: u16) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    serde_json::from_str::<Value>(body).unwrap()["error"].take()
}

/// A running server, which is stopped when it is dropped.
pub(crate) struct TinyServer {
    pub(crate) address: SocketAddr,
    pub(crate) folder: TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TinyServer {
    /// Starts a server whose KV cache takes at most `kv_bytes` bytes.
    pub(crate) fn start(kv_bytes: u64) -> TinyServer {
        let (folder, stop) = (TempDir::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let (listening, address) = mpsc::channel();
        let (path, stops) = (folder.path().to_path_buf(), stop.clone());
        let thread = std::thread::spawn(move || {
            serve_tiny(&path, kv_bytes, stops, |address, _| listening.send(address).unwrap()).unwrap();
        });
        let address = address.recv_timeout(TEST_TIMEOUT).unwrap();
        TinyServer { address, folder, stop, thread: Some(thread) }
    }

    /// Posts a JSON body and returns the JSON of the answer, which must have status 200.
    #[track_caller]
    pub(crate) fn post_ok(&self, path: &str, body: &Value) -> Value {
        let answer = read_to_end(post(self.address, path, body));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Posts a JSON body and returns the chunks of the streamed answer.
    pub(crate) fn post_and_read_chunks(&self, path: &str, body: &Value) -> Vec<Value> {
        let answer = read_to_end(post(self.address, path, body));
        let events = answer.lines().filter_map(|line| line.strip_prefix("data: "));
        events.filter(|event| *event != "[DONE]").map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// Sends a request and returns the error object of the answer, which must have this status.
    #[track_caller]
    pub(crate) fn post_refused(&self, path: &str, body: &Value, status: u16) -> Value {
        error_object(&read_to_end(post(self.address, path, body)), status)
    }
}

impl Drop for TinyServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}
