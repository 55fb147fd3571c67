//! Tests of the client with a server that follows a script of replies.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Budget, ChatClient, ChatFailure, ChatRequest, ClientOptions, FailureKind, Prices};

static GO: AtomicBool = AtomicBool::new(false);

/// The server's reaction to one request.
#[derive(Clone, Debug)]
enum Act {
    /// Answers with this text, and reports 10 prompt tokens and 5 completion tokens.
    Say(&'static str),
    /// Replies with a status, one header line and a body.
    Status(u16, &'static str, &'static str),
    /// Replies with status 200 and a body.
    Body(String),
    /// Announces more bytes in the reply than it sends.
    Cut,
    /// Closes the connection without a reply.
    Reset,
    /// Keeps the connection open without a reply.
    Silence,
}

/// A server that does `script[i]` for request number i. Requests beyond the end of the script get the script's last
/// reaction.
struct Server {
    url: String,
    asked: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (asked, bodies) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let server = Self { url, asked: asked.clone(), bodies: bodies.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, asked, bodies) = (script.clone(), asked.clone(), bodies.clone());
                thread::spawn(move || serve(stream, &script, &asked, &bodies));
            }
        });
        server
    }

    fn client(&self, change: impl FnOnce(&mut ClientOptions)) -> ChatClient {
        let mut options = ClientOptions::new(&self.url);
        options.model = Some("m".into());
        options.first_wait = Duration::from_millis(1);
        options.timeout = Duration::from_millis(500);
        change(&mut options);
        ChatClient::new(options).unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Answers the requests of a connection. A client may send several requests.
fn serve(stream: TcpStream, script: &[Act], asked: &AtomicUsize, bodies: &Mutex<Vec<Value>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let (mut length, mut first, mut line) = (0, String::new(), String::new());
        while {
            line.clear();
            reader.read_line(&mut line).ok()? > 0
        } {
            if first.is_empty() {
                first = line.clone();
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        if first.is_empty() {
            return None;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let mut reply = |status: u16, header: &str, body: &str, announced: usize| {
            let head = format!("HTTP/1.1 {status} X\r\n{header}content-length: {announced}\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).ok()
        };
        if first.starts_with("GET") {
            let models = json!({"data": [{"id": "the-model"}]}).to_string();
            reply(200, "", &models, models.len())?;
            continue;
        }
        bodies.lock().unwrap().push(serde_json::from_slice(&body).ok()?);
        let act = &script[asked.fetch_add(1, Ordering::Relaxed).min(script.len() - 1)];
        match act {
            Act::Say(text) => {
                let said = json!({"model": "served", "choices": [{"finish_reason": "stop",
                    "message": {"content": text}}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}});
                let said = said.to_string();
                reply(200, "", &said, said.len())?;
            }
            Act::Status(status, header, body) => reply(*status, header, body, body.len())?,
            Act::Body(body) => reply(200, "", body, body.len())?,
            Act::Cut => {
                reply(200, "", "{\"choices\": [", 100)?;
                return None;
            }
            Act::Reset => return None,
            Act::Silence => thread::sleep(Duration::from_secs(3)),
        }
    }
}

fn request() -> ChatRequest {
    ChatRequest {
        messages: vec![json!({"role": "user", "content": "Who?"})],
        max_tokens: 100,
        params: Default::default(),
    }
}

fn failure(client: &ChatClient) -> ChatFailure {
    client.chat(&request(), &GO).unwrap_err()
}

#[test]
fn each_failure_that_may_pass_is_retried() {
    let server = Server::start(vec![
        Act::Status(500, "", "{\"error\": {\"message\": \"overloaded\"}}"),
        Act::Status(429, "retry-after: 0\r\n", ""),
        Act::Status(503, "", "busy"),
        Act::Cut,
        Act::Reset,
        Act::Silence,
        Act::Body(String::new()),
        Act::Body("{\"choices\": [{\"mess".into()),
        Act::Body("{}".into()),
        Act::Say("B"),
    ]);
    let client = server.client(|options| options.max_attempts = 10);
    let answer = client.chat(&request(), &GO).unwrap();
    assert_eq!((answer.text.as_str(), answer.attempts, server.asked()), ("B", 10, 10));
    assert_eq!((answer.model.as_str(), answer.prompt_tokens, answer.completion_tokens), ("served", 10, 5));
    let bodies = server.bodies.lock().unwrap();
    assert!(bodies.iter().all(|body| *body == bodies[0]) && bodies[0]["max_tokens"] == 100, "{bodies:?}");
}

#[test]
fn failures_say_what_was_wrong_last() {
    for (act, part, kind) in [
        (Act::Status(500, "", "{\"detail\": \"no memory\"}"), "status 500: no memory", FailureKind::Exhausted),
        (Act::Cut, "broke the connection", FailureKind::Exhausted),
        (Act::Silence, "timed out", FailureKind::Exhausted),
        (Act::Body("<html>".into()), "`<html>`", FailureKind::Exhausted),
        (Act::Status(400, "", "{\"error\": {\"message\": \"too long\"}}"), "too long", FailureKind::Refused),
        (Act::Status(401, "", ""), "check the API key", FailureKind::Unusable),
        (Act::Status(404, "", ""), "check the URL", FailureKind::Unusable),
        (Act::Status(307, "location: http://elsewhere/\r\n", ""), "redirects", FailureKind::Unusable),
    ] {
        let server = Server::start(vec![act.clone()]);
        let client = server.client(|options| options.max_attempts = 2);
        let failure = failure(&client);
        assert_eq!(failure.kind, kind, "{act:?}: {failure}");
        assert!(failure.message.contains(part) && failure.message.starts_with(&server.url), "{act:?}: {failure}");
        assert!(!failure.message.contains('\n'));
        let attempts = if kind == FailureKind::Exhausted { 2 } else { 1 };
        assert_eq!((failure.attempts, server.asked()), (attempts, attempts as usize), "{act:?}");
    }
}

#[test]
fn a_server_that_is_down_ends_the_run_after_a_few_requests() {
    // No server listens on this port, because it was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut options = ClientOptions::new(format!("http://{address}/v1"));
    (options.model, options.first_wait, options.max_attempts) = (Some("m".into()), Duration::ZERO, 2);
    let client = ChatClient::new(options.clone()).unwrap();
    let kinds: Vec<FailureKind> = (0..3).map(|_| failure(&client).kind).collect();
    assert_eq!(kinds, [FailureKind::Exhausted, FailureKind::Exhausted, FailureKind::Unusable]);
    assert!(failure(&client).message.contains("cannot be reached"));
    options.model = None;
    let failure = failure(&ChatClient::new(options).unwrap());
    assert_eq!(failure.kind, FailureKind::Unusable, "{failure}");
}

/// An answer after 60 failed requests resets the count of consecutive failures.
#[test]
fn a_hundred_failed_requests_in_a_row_end_the_run() {
    let refusal = Act::Status(400, "", "{\"error\": {\"message\": \"too long\"}}");
    let server = Server::start([vec![refusal.clone(); 60], vec![Act::Say("B")], vec![refusal]].concat());
    let client = server.client(|_| {});
    for i in 0..161 {
        match client.chat(&request(), &GO) {
            Ok(_) => assert_eq!(i, 60),
            Err(failure) => {
                let kind = if i == 160 { FailureKind::Unusable } else { FailureKind::Refused };
                assert_eq!(failure.kind, kind, "request {i}: {failure}");
                assert_eq!(failure.message.contains("100 requests in a row have failed"), i == 160);
            }
        }
    }
}

#[test]
fn retry_after_holds_back_every_request_of_the_client() {
    let server = Server::start(vec![Act::Status(429, "retry-after: 0.4\r\n", ""), Act::Say("B")]);
    let client = server.client(|_| {});
    let begun = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| client.chat(&request(), &GO).unwrap());
        while server.asked() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(50));
        let second = client.chat(&request(), &GO).unwrap();
        assert_eq!((first.join().unwrap().attempts, second.attempts), (2, 1));
    });
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[test]
fn a_refused_text_is_asked_for_again_and_costs() {
    let server = Server::start(vec![Act::Say("no"), Act::Say("yes")]);
    let client = server.client(|options| options.prices = Prices { input_per_million: 1e6, output_per_million: 1e5 });
    let parse = |text: &str| if text == "yes" { Ok(7) } else { Err(format!("is `{text}`")) };
    let (parsed, answer) = client.chat_parsed(&request(), &GO, parse).unwrap();
    assert_eq!((parsed, answer.attempts, answer.cost), (7, 2, 2.0 * 10.5));
    let server = Server::start(vec![Act::Say("no")]);
    let client = server.client(|options| options.max_attempts = 3);
    let failure = client.chat_parsed(&request(), &GO, parse).unwrap_err();
    assert_eq!((failure.kind, failure.attempts), (FailureKind::Exhausted, 3));
    assert!(failure.message.contains("an answer that is `no` (the last of 3 attempts)"), "{failure}");
}

#[test]
fn the_cap_holds_with_many_threads_and_unknown_ends() {
    let acts = [Act::Say("B"), Act::Reset, Act::Status(500, "", ""), Act::Body("{}".into()), Act::Say("B")];
    let server = Server::start(acts.iter().cycle().take(101).cloned().collect());
    let budget = Arc::new(Budget::new(Some(0.02)));
    let client = server.client(|options| {
        options.prices = Prices { input_per_million: 1.0, output_per_million: 10.0 };
        options.budget = budget.clone();
        // The number of attempts exceeds the number of failures in the script. The order of the threads decides which
        // request meets the failures, and no request may run out of attempts before the cap ends the run.
        (options.max_attempts, options.first_wait) = (1000, Duration::ZERO);
    });
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    match client.chat(&request(), &GO) {
                        Ok(_) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(failure) => {
                            assert_eq!(failure.kind, FailureKind::Budget, "{failure}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
    });
    assert!(budget.spent() <= 0.02, "{}", budget.spent());
    assert!(budget.spent() > 0.018, "{}", budget.spent());
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    assert!(answered > 0 && refused > 0 && answered + refused == 160, "{answered} {refused}");
}

#[test]
fn a_request_is_bounded_by_its_bytes_and_images() {
    let client = Server::start(vec![Act::Say("B")])
        .client(|options| options.prices = Prices { input_per_million: 1e6, output_per_million: 0.0 });
    let before = client.max_cost(&request());
    assert!((64.0..200.0).contains(&before), "{before}");
    // The prompt used 10 tokens, fewer than its bound, so the bound does not change.
    client.chat(&request(), &GO).unwrap();
    assert_eq!(client.max_cost(&request()), before);
    let text =
        json!({"choices": [{"message": {"content": "B"}}], "usage": {"prompt_tokens": 1000, "completion_tokens": 1}});
    let server = Server::start(vec![Act::Body(text.to_string())]);
    let client = server.client(|options| options.prices = Prices { input_per_million: 1e6, output_per_million: 0.0 });
    client.chat(&request(), &GO).unwrap();
    assert!(client.max_cost(&request()) >= 1000.0);
}

#[test]
fn the_model_is_the_first_of_the_list() {
    let server = Server::start(vec![Act::Say("B")]);
    let client = server.client(|options| options.model = None);
    client.chat(&request(), &GO).unwrap();
    assert_eq!(server.bodies.lock().unwrap()[0]["model"], "the-model");
}

#[test]
fn a_stopped_request_returns_at_once() {
    let server = Server::start(vec![Act::Silence]);
    let client = server.client(|options| options.timeout = Duration::from_secs(30));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let answer = scope.spawn(|| client.chat(&request(), &stop));
        thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(answer.join().unwrap().unwrap_err().kind, FailureKind::Stopped);
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn wrong_options_are_named() {
    let bad = |change: fn(&mut ClientOptions), part: &str| {
        let mut options = ClientOptions::new("http://127.0.0.1:1/v1");
        change(&mut options);
        let failure = ChatClient::new(options).unwrap_err();
        assert!(failure.kind == FailureKind::Unusable && failure.message.contains(part), "{failure}");
    };
    bad(|options| options.url = "127.0.0.1:8000".into(), "not an HTTP URL");
    bad(|options| options.api_key = Some("a\nb".into()), "the API key");
    bad(|options| options.requests_per_minute = Some(0.0), "requests per minute: is 0");
    bad(|options| options.tokens_per_minute = Some(f64::NAN), "tokens per minute: is NaN");
    bad(|options| options.max_attempts = 0, "attempts: is 0");
}
