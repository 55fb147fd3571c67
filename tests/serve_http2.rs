//! `reel serve` over HTTP/2, with and without TLS: many requests on one connection, streams that are reset, slow,
//! idle or hostile clients, and the shutdown of the server.

#[path = "support/server.rs"]
mod server;
mod support;

use std::future::poll_fn;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::Request;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use server::{REQUEST_TIMEOUT, Server, question, text, wait};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const CHAT: &str = "/v1/chat/completions";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// An HTTP/2 client with one connection. The task `connection` ends when the connection ends.
struct Client {
    send: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

type Bytes = std::io::Cursor<Vec<u8>>;

impl Client {
    async fn open(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, builder: &Builder) -> Client {
        let (send, connection) = builder.handshake(stream).await.unwrap();
        Client { send, connection: tokio::spawn(connection) }
    }

    async fn connect(server: &Server) -> Client {
        let stream = TcpStream::connect(server.address).await.unwrap();
        // The connection's window is large, so that an unread stream does not block the other streams.
        Client::open(stream, Builder::new().initial_connection_window_size(1 << 30)).await
    }

    /// Sends a request once the server allows one more stream.
    async fn send(&mut self, method: &str, path: &str, body: &str) -> ResponseFuture {
        let request = Request::builder().method(method).uri(format!("http://localhost{path}")).body(()).unwrap();
        poll_fn(|cx| self.send.poll_ready(cx)).await.unwrap();
        let (answer, mut stream) = self.send.send_request(request, body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(Bytes::new(body.as_bytes().to_vec()), true).unwrap();
        }
        answer
    }

    async fn chat(&mut self, body: &Value) -> ResponseFuture {
        self.send("POST", CHAT, &body.to_string()).await
    }

    /// Waits until the server has closed the connection.
    async fn closed_within(self, limit: Duration) {
        let ended = timeout(limit, self.connection).await;
        assert!(ended.is_ok(), "the connection is still open after {limit:?}");
    }
}

/// Runs an asynchronous test with a time limit.
fn block_on<T>(test: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(async { timeout(2 * REQUEST_TIMEOUT, test).await.expect("the test hangs") })
}

/// Returns the status and the whole body of an answer.
async fn read(answer: ResponseFuture) -> Result<(u16, String), h2::Error> {
    read_body(answer.await?).await
}

async fn read_body(answer: http::Response<RecvStream>) -> Result<(u16, String), h2::Error> {
    let (status, mut body) = (answer.status().as_u16(), answer.into_body());
    let mut bytes = Vec::new();
    while let Some(data) = next_data(&mut body).await {
        bytes.extend(data?);
    }
    Ok((status, String::from_utf8(bytes).unwrap()))
}

async fn next_data(body: &mut RecvStream) -> Option<Result<Vec<u8>, h2::Error>> {
    let data = body.data().await?;
    Some(data.inspect(|data| body.flow_control().release_capacity(data.len()).unwrap()).map(|data| data.to_vec()))
}

/// Returns the text of an answer, which may be streamed.
fn answer_text(answer: &(u16, String)) -> String {
    assert_eq!(answer.0, 200, "{}", answer.1);
    if !answer.1.starts_with("data: ") {
        let whole: Value = serde_json::from_str(&answer.1).unwrap();
        return whole["choices"][0]["message"]["content"].as_str().unwrap().to_string();
    }
    assert!(answer.1.ends_with("data: [DONE]\n\n"), "{}", answer.1);
    let events = answer.1.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    events.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(String::from)).collect()
}

fn long_request(tokens: usize) -> Value {
    json!({"messages": question("x"), "max_tokens": tokens, "temperature": 0, "stream": true})
}

/// Encodes an HTTP/2 frame: length (3 bytes), kind, flags, stream (4 bytes), payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Decodes frames; returns their kinds and payloads.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut all = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let Some(payload) = bytes.get(9..9 + length) else { break };
        all.push((bytes[3], payload));
        bytes = &bytes[9 + length..];
    }
    all
}

/// Encodes the header fields of a request, without Huffman coding and without the dynamic table.
fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let field = |(name, value): &(&str, &str)| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    fields.iter().flat_map(field).collect()
}

const GET_HEALTH: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/health")];

/// Opens a connection and sends the preface, empty settings and `bytes`.
fn raw(server: &Server, bytes: &[u8]) -> std::net::TcpStream {
    let mut stream = server.connect();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), bytes].concat()).unwrap();
    stream
}

/// Returns the bytes that the server sends until it closes the connection, and the time until the connection is
/// closed.
#[track_caller]
fn rest_until_closed(mut stream: std::net::TcpStream, limit: Duration) -> (Vec<u8>, Duration) {
    stream.set_read_timeout(Some(limit)).unwrap();
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    let ended = stream.read_to_end(&mut bytes);
    let is_open = ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!is_open && begun.elapsed() < limit, "the connection is still open after {:?}", begun.elapsed());
    (bytes, begun.elapsed())
}

/// Returns the error code of the last GOAWAY frame.
fn goaway_code(bytes: &[u8]) -> Option<u32> {
    let all = frames(bytes);
    let (_, payload) = all.iter().rfind(|(kind, _)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
}

#[test]
fn streams_at_once_have_the_answers_that_they_have_alone() {
    let server = Server::start(&["--batch-size", "8", "--max-body", "2"]);
    let body = |i: usize| {
        let messages = question(&format!("question {i}: {}", "why? ".repeat(i * 5)));
        json!({"messages": messages, "max_tokens": 5 + i, "temperature": 0, "stream": i % 2 == 1})
    };
    let alone: Vec<String> = (0..20)
        .map(|i| {
            let mut whole = body(i);
            whole["stream"] = json!(false);
            let answer = server.chat(&whole).ok();
            answer["choices"][0]["message"]["content"].as_str().unwrap().to_string()
        })
        .collect();
    block_on(async {
        let mut client = Client::connect(&server).await;
        let mut answers = Vec::new();
        for i in 0..20 {
            answers.push(tokio::spawn(read(client.chat(&body(i)).await)));
        }
        for (answer, alone) in answers.into_iter().zip(&alone) {
            assert_eq!(&answer_text(&answer.await.unwrap().unwrap()), alone);
        }
        // Checks other properties of answers: status, headers, errors, an answer without a body.
        let answer = client.send("GET", "/v1/models", "").await.await.unwrap();
        assert_eq!((answer.status(), answer.version()), (http::StatusCode::OK, http::Version::HTTP_2));
        let header = |name| answer.headers().get(name).map(|value| value.to_str().unwrap().to_string());
        assert_eq!(header("content-type").as_deref(), Some("application/json"));
        assert!(header("date").is_some_and(|date| date.ends_with(" GMT")) && header("x-request-id").is_some());
        assert_eq!(read(client.send("GET", "/none", "").await).await.unwrap().0, 404);
        assert_eq!(read(client.send("HEAD", "/health", "").await).await.unwrap(), (200, String::new()));
        // This client is local, so it is not refused; the server only reports that the request is incomplete.
        assert_eq!(read(client.send("POST", "/admin/weights", "{}").await).await.unwrap().0, 400);
        let (status, error) = read(client.send("POST", CHAT, "{").await).await.unwrap();
        assert!(status == 400 && error.contains("\"error\""), "{status} {error}");
        // A body above the limit is refused, with or without an announced length; a body below the limit is read
        // completely.
        let (status, _) = read(client.send("POST", CHAT, &"x".repeat(3 << 20)).await).await.unwrap();
        assert_eq!(status, 413);
        let padded = format!("{}{}", body(0), " ".repeat((2 << 20) - 4096));
        assert_eq!(answer_text(&read(client.send("POST", CHAT, &padded).await).await.unwrap()), alone[0]);
        let announced = Request::post(format!("http://localhost{CHAT}")).header("content-length", 1u64 << 40);
        let (answer, _unsent) = client.send.send_request(announced.body(()).unwrap(), false).unwrap();
        assert_eq!(read(answer).await.unwrap().0, 413);
    });
    server.assert_still_answers();
}

#[test]
fn tls_chooses_http2_or_http1_as_the_client_wishes() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let server = Server::start(&["--tls-cert", text(&certificate), "--tls-key", text(&key), "--read-timeout", "2"]);
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connect = async |protocols: &[&str]| {
        let mut config = config.clone();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    };
    block_on(async {
        for (offered, chosen) in [
            (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
            (&["http/1.1", "h2"], Some(b"h2")),
            (&["http/1.1"], Some(b"http/1.1")),
            (&[], None),
        ] {
            assert_eq!(connect(offered).await.get_ref().1.alpn_protocol(), chosen);
        }
        let mut client = Client::open(connect(&["h2"]).await, &Builder::new()).await;
        let mut whole = long_request(200);
        let streamed = read(client.chat(&whole).await).await.unwrap();
        whole["stream"] = json!(false);
        assert_eq!(answer_text(&streamed), answer_text(&read(client.chat(&whole).await).await.unwrap()));
        client.closed_within(Duration::from_secs(10)).await;
        // A client that sends nothing after the TLS handshake is disconnected. Reading may fail, because a connection
        // that ends without TLS's `close_notify` is an error.
        let (mut silent, mut bytes) = (connect(&["h2"]).await, Vec::new());
        let _ = timeout(Duration::from_secs(10), silent.read_to_end(&mut bytes)).await.expect("it is closed");
    });
    assert_eq!(server.stop(15), Some(0));
}

#[test]
fn a_reset_stream_frees_its_request_and_leaves_the_others() {
    let server = Server::start(&["--max-requests", "2"]);
    block_on(async {
        let mut client = Client::connect(&server).await;
        let mut other = client.chat(&long_request(100_000)).await.await.unwrap().into_body();
        next_data(&mut other).await.unwrap().unwrap();
        // Tests a request whose answer has begun, and a request that still waits for its answer.
        for is_streamed in [true, false] {
            let mut body = long_request(100_000);
            body["stream"] = json!(is_streamed);
            let mut answer = client.chat(&body).await;
            if is_streamed {
                let mut begun = answer.await.unwrap().into_body();
                next_data(&mut begun).await.unwrap().unwrap();
                assert_eq!(read(client.chat(&long_request(1)).await).await.unwrap().0, 429);
                // Dropping the answer resets its HTTP/2 stream.
                drop(begun);
            } else {
                loop {
                    let short = read(client.chat(&long_request(1)).await);
                    tokio::select! {
                        // The server refuses the request while the previous one is not freed yet.
                        refused = &mut answer => {
                            assert_eq!(refused.unwrap().status(), 429);
                            answer = client.chat(&body).await;
                        }
                        short = short => match short.unwrap().0 {
                            429 => break,
                            _ => sleep(Duration::from_millis(10)).await,
                        },
                    }
                }
                drop(answer);
            }
            let begun = Instant::now();
            while read(client.chat(&long_request(1)).await).await.unwrap().0 != 200 {
                assert!(begun.elapsed() < Duration::from_secs(10), "the request of a reset stream still runs");
                sleep(Duration::from_millis(20)).await;
            }
        }
        next_data(&mut other).await.unwrap().unwrap();
        // When a connection ends, the requests of its streams are aborted.
        client.connection.abort();
        let mut second = Client::connect(&server).await;
        let mut held = Vec::new();
        let begun = Instant::now();
        while held.len() < 2 {
            assert!(begun.elapsed() < Duration::from_secs(10), "the requests of a closed connection still run");
            let answer = second.chat(&long_request(100_000)).await.await.unwrap();
            if answer.status() == 200 {
                held.push(answer.into_body());
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn idle_and_slow_clients_are_closed() {
    let server = Server::start(&["--read-timeout", "1"]);
    let limit = Duration::from_secs(10);
    let headers = header_block(&GET_HEALTH);
    let end_headers = 4;
    let silent = [
        // The bytes that each client sends before it stops: half of a preface, a preface, settings, an incomplete
        // header, and a complete request, after whose answer the connection is idle.
        (PREFACE[..12].to_vec(), false),
        (PREFACE.to_vec(), true),
        ([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat(), true),
        ([PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(1, 1, 1, &headers[..10])].concat(), true),
        ([PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(1, 1 | end_headers, 1, &headers)].concat(), true),
    ];
    for (bytes, says_why) in silent {
        let mut stream = server.connect();
        stream.write_all(&bytes).unwrap();
        let (answer, waited) = rest_until_closed(stream, limit);
        assert!(waited > Duration::from_millis(900), "{waited:?}");
        assert_eq!(goaway_code(&answer), says_why.then_some(0), "{bytes:?}");
    }
    // Neither PINGs nor an endless header keep a connection open.
    let endless: [(&[u8], Vec<u8>); 2] =
        [(&[], frame(PING, 0, 0, &[0; 8])), (&frame(1, 1, 1, &headers[..10]), frame(9, 0, 1, &[]))];
    for (start, again) in endless {
        let mut stream = raw(&server, start);
        let begun = Instant::now();
        while stream.write_all(&again).is_ok() {
            assert!(begun.elapsed() < limit, "a client without requests is still served");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    // A body without progress is refused; meanwhile the connection serves other requests.
    block_on(async {
        let mut client = Client::connect(&server).await;
        let request = Request::post(format!("http://localhost{CHAT}")).body(()).unwrap();
        let (slow, mut body) = client.send.send_request(request, false).unwrap();
        body.send_data(Bytes::new(b"{".to_vec()), false).unwrap();
        assert_eq!(read(client.chat(&long_request(2)).await).await.unwrap().0, 200);
        let (status, error) = read(slow).await.unwrap();
        assert!(status == 408 && error.contains("makes no progress"), "{status} {error}");
    });
    server.assert_still_answers();
}

#[test]
fn clients_that_take_nothing_of_an_answer_are_given_up() {
    let server = Server::start(&["--write-timeout", "1", "--max-requests", "1", "--batch-size", "8"]);
    let is_freed = async |client: &mut Client| {
        let begun = Instant::now();
        while read(client.chat(&long_request(1)).await).await.unwrap().0 != 200 {
            assert!(begun.elapsed() < REQUEST_TIMEOUT, "the request of a client that takes nothing still runs");
            sleep(Duration::from_millis(50)).await;
        }
    };
    block_on(async {
        // The client's window for each stream is 0 bytes, so the server can send only headers, and then resets the
        // stream.
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut client = Client::open(stream, Builder::new().initial_window_size(0)).await;
        for is_streamed in [true, false] {
            let mut body = long_request(20);
            body["stream"] = json!(is_streamed);
            let mut stalled = client.chat(&body).await.await.unwrap().into_body();
            let begun = Instant::now();
            let reset = stalled.data().await.unwrap().unwrap_err();
            assert_eq!(reset.reason(), Some(Reason::CANCEL));
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        }
        // The client never releases the window of its connection.
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut client = Client::open(stream, &Builder::new()).await;
        let unread = client.chat(&long_request(100_000)).await.await.unwrap().into_body();
        let mut other = Client::connect(&server).await;
        assert_eq!(read(other.chat(&long_request(1)).await).await.unwrap().0, 429);
        is_freed(&mut other).await;
        drop(unread);
    });
    // The client does not even read frames from its socket.
    let mut body = long_request(100_000);
    body["n"] = json!(8);
    let (body, length) = (body.to_string(), body.to_string().len().to_string());
    let headers = header_block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", CHAT),
        ("content-length", &length),
    ]);
    // The client announces the largest possible windows.
    let window = [&[0, 4][..], &i32::MAX.to_be_bytes()].concat();
    let mut stream = server.connect();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    let frames = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &window),
        &frame(8, 0, 0, &(i32::MAX - 65535).to_be_bytes()),
        &frame(1, 4, 1, &headers),
        &frame(0, 1, 1, body.as_bytes()),
    ];
    stream.write_all(&frames.concat()).unwrap();
    stream.read_exact(&mut [0; 64]).unwrap();
    block_on(async {
        let mut client = Client::connect(&server).await;
        is_freed(&mut client).await;
    });
    drop(stream);
}

#[test]
fn floods_of_frames_end_their_connection() {
    let server = Server::start(&[]);
    let headers = header_block(&GET_HEALTH);
    // Requests are sent and immediately reset (rapid reset attack, CVE-2023-44487).
    let resets: Vec<u8> = (0..2000)
        .flat_map(|i| [frame(1, 5, 2 * i + 1, &headers), frame(3, 0, 2 * i + 1, &8u32.to_be_bytes())].concat())
        .collect();
    // A header block that never ends.
    let begin = frame(1, 1, 1, &headers);
    let continuation: Vec<u8> = begin.into_iter().chain((0..2000).flat_map(|_| frame(9, 0, 1, &[]))).collect();
    // The parts of the header together exceed the limit.
    let field = header_block(&[("x-filler", &"x".repeat(120))]).repeat(100);
    let large: Vec<u8> =
        frame(1, 1, 1, &headers).into_iter().chain((0..200).flat_map(|_| frame(9, 0, 1, &field))).collect();
    for (name, bytes) in [("resets", resets), ("continuation", continuation), ("large header", large)] {
        let mut stream = server.connect();
        let _ = stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &bytes].concat());
        let (answer, _) = rest_until_closed(stream, Duration::from_secs(10));
        // The operating system may have dropped the server's last frames, because the server closed the connection
        // with unread bytes.
        let code = goaway_code(&answer);
        assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM || code == 1), "{name}: {code:?}");
    }
    // A header that is complete but too large is refused with status 431.
    block_on(async {
        let mut client = Client::connect(&server).await;
        let mut request = Request::get("http://localhost/health");
        for i in 0..20 {
            request = request.header(format!("x-{i}"), "y".repeat(4000));
        }
        let (answer, _) = client.send.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(answer.await.unwrap().status().as_u16(), 431);
        assert_eq!(read(client.send("GET", "/health", "").await).await.unwrap().0, 200);
    });
    server.assert_still_answers();
}

#[test]
fn a_signal_lets_streams_end_and_closes_idle_connections() {
    let mut server = Server::start(&["--batch-size", "4"]);
    block_on(async {
        let mut client = Client::connect(&server).await;
        let mut requests = Vec::new();
        for _ in 0..12 {
            requests.push(client.chat(&long_request(2000)).await);
        }
        // Once the headers of an answer have arrived, its request runs or waits. No answer fits into a stream's
        // window of 64 KiB, so the server cannot end before the client reads.
        let mut unread = Vec::new();
        for request in requests {
            unread.push(request.await.unwrap());
        }
        let idle = Client::connect(&server).await;
        support::send_signal(server.child.id(), "-TERM");
        idle.closed_within(REQUEST_TIMEOUT).await;
        let mut late = Client::connect(&server).await;
        assert_eq!(read(late.chat(&long_request(1)).await).await.unwrap().0, 503);
        late.closed_within(REQUEST_TIMEOUT).await;
        let answers: Vec<_> = unread.into_iter().map(|answer| tokio::spawn(read_body(answer))).collect();
        let mut whole = Vec::new();
        for answer in answers {
            whole.push(answer_text(&answer.await.unwrap().unwrap()));
        }
        assert!(whole.iter().all(|text| !text.is_empty() && text == &whole[0]));
        client.closed_within(REQUEST_TIMEOUT).await;
    });
    assert_eq!(wait(&mut server.child), Some(0));
}

#[test]
fn a_signal_ends_the_server_although_clients_do_nothing() {
    let mut server = Server::start(&["--write-timeout", "1", "--read-timeout", "2"]);
    // The clients answer neither SETTINGS nor GOAWAY. One is idle; the other never sends the body of its request.
    let headers =
        header_block(&[(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", CHAT)]);
    let idle = raw(&server, &[]);
    let slow = raw(&server, &frame(1, 4, 1, &headers));
    block_on(async {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut client = Client::open(stream, Builder::new().initial_window_size(0)).await;
        let _stalled = client.chat(&long_request(100_000)).await.await.unwrap();
        support::send_signal(server.child.id(), "-TERM");
        let begun = Instant::now();
        assert_eq!(wait(&mut server.child), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    });
    drop((idle, slow));
}

/// The server has the default time limit of requests (30 s), but after a signal it ends incomplete requests sooner.
#[test]
fn a_signal_ends_incomplete_requests_within_seconds() {
    let mut server = Server::start(&[]);
    let headers =
        header_block(&[(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", CHAT)]);
    let body = raw(&server, &frame(1, 4, 1, &headers));
    std::thread::sleep(Duration::from_millis(300));
    support::send_signal(server.child.id(), "-TERM");
    let begun = Instant::now();
    assert_eq!(wait(&mut server.child), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    drop(body);
}

#[test]
fn open_streams_are_limited() {
    let server = Server::start(&["--max-connections", "16"]);
    let headers =
        header_block(&[(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", CHAT)]);
    // The bodies of these requests never arrive: 129 requests on each of nine connections. The server refuses more
    // than 128 requests on one connection and more than 1024 in total.
    let requests: Vec<u8> = (0..129).flat_map(|i| frame(1, 4, 2 * i + 1, &headers)).collect();
    let resets = |stream: &mut std::net::TcpStream| {
        let mut bytes = Vec::new();
        let mut room = [0; 4096];
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        while let Ok(count @ 1..) = stream.read(&mut room) {
            bytes.extend(&room[..count]);
        }
        let refused = [0, 0, 0, 7];
        frames(&bytes).iter().filter(|&&(kind, payload)| kind == 3 && payload == refused).count()
    };
    let mut connections: Vec<_> = (0..9).map(|_| raw(&server, &requests)).collect();
    let refused: Vec<usize> = connections.iter_mut().map(resets).collect();
    assert_eq!(refused.iter().sum::<usize>(), 9 * 129 - 1024, "{refused:?}");
    assert!(refused.iter().all(|&count| count >= 1), "{refused:?}");
    server.assert_still_answers();
    // Closing the connections frees their streams.
    drop(connections);
    block_on(async {
        let mut client = Client::connect(&server).await;
        let begun = Instant::now();
        while read(client.chat(&long_request(1)).await).await.is_err() {
            assert!(begun.elapsed() < REQUEST_TIMEOUT, "the streams of closed connections are still open");
        }
    });
}
