//! `reel serve` under hostile load: 64 clients keep their answers while hostile requests of each kind come at 10 a second.

#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use server::{Reply, Server, question, read_reply, write_request};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const CLIENTS: usize = 64;
/// Between two hostile requests of one kind.
const HOSTILE_INTERVAL: Duration = Duration::from_millis(100);
/// Limit of an answer to one of the 64 clients, on a machine with other work.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(40);
/// Limit of the memory that the server keeps of the hostile requests.
const MAX_KEPT_MIB: u64 = 700;

/// What a hostile client does after it has sent its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Reads the answer, which must have one of these statuses.
    Expects(&'static [u16]),
    /// Leaves after this number of milliseconds.
    Leaves(u64),
}

/// A kind of hostile request.
struct Hostile {
    name: &'static str,
    host: &'static str,
    path: &'static str,
    body: Vec<u8>,
    then: Then,
}

/// Statuses of a refused request. A full server answers with 429.
const REFUSED: Then = Then::Expects(&[400, 429]);

/// Returns all kinds of hostile requests. A further kind is one more line.
fn hostile_requests() -> Vec<Hostile> {
    let of = |name: &'static str, path: &'static str, body: Vec<u8>, then: Then| Hostile {
        name,
        host: "localhost",
        path,
        body,
        then,
    };
    let json_of = |body: Value| body.to_string().into_bytes();
    let gif = |side: u16, frames: usize| {
        let url = format!("data:image/gif;base64,{}", base64(&animated_gif(side, frames)));
        let part = json!({"type": "video_url", "video_url": {"url": url}});
        json_of(json!({"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}))
    };
    let wide = |n: u32, max_tokens: u32| {
        json_of(
            json!({"messages": question("x"), "logprobs": true, "top_logprobs": 20, "n": n, "max_tokens": max_tokens,
            "ignore_eos": true}),
        )
    };
    let text = "many words ".repeat(1 << 20);
    let texts: Vec<String> = (0..100_000).map(|i| format!("\"word{i}\"")).collect();
    let slow_grammar = format!("start: {}", texts.join(" | "));
    let defs: Map<String, Value> = (0..20_000)
        .map(|i| (format!("d{i}"), json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", i + 1)}})))
        .chain([("d20000".to_string(), json!({"type": "string"}))])
        .collect();
    let deep_grammar = json!({"$ref": "#/$defs/d0", "$defs": defs});
    let guided =
        |field: &str, grammar: Value| json_of(json!({"messages": question("x"), "max_tokens": 1, field: grammar}));
    vec![
        of("GIF of too many pixels", CHAT, gif(13_000, 2000), REFUSED),
        of("slow GIF, client leaves", CHAT, gif(3000, 220), Then::Leaves(300)),
        of("wide log-probabilities", CHAT, wide(128, 100_000), REFUSED),
        of("many log-probabilities", CHAT, wide(4, 8), Then::Expects(&[200, 429])),
        of("huge body", COMPLETIONS, json_of(json!({"prompt": text, "max_tokens": 1})), REFUSED),
        of("huge body, client leaves", COMPLETIONS, json_of(json!({"prompt": text, "max_tokens": 1})), Then::Leaves(0)),
        of("broken JSON", CHAT, b"{\"messages\": [{\"role\": \"user\", \"content\": \"".to_vec(), REFUSED),
        of("deep grammar", CHAT, guided("guided_json", deep_grammar), REFUSED),
        of("slow grammar", CHAT, guided("guided_grammar", json!(slow_grammar)), Then::Expects(&[200, 400, 429])),
        of("slow grammar, client leaves", CHAT, guided("guided_grammar", json!(slow_grammar)), Then::Leaves(100)),
        of("deep JSON", "/tokenize", "[".repeat(100_000).into_bytes(), REFUSED),
        of(
            "long answer, client leaves",
            CHAT,
            json_of(json!({"messages": question("x"), "max_tokens": 100_000})),
            Then::Leaves(50),
        ),
        Hostile { host: "evil.example", ..of("other Host", CHAT, json_of(json!({})), Then::Expects(&[403])) },
    ]
}

/// Returns an animated GIF whose frames have 1 x 1 pixel, on a canvas of `side` x `side` pixels.
fn animated_gif(side: u16, frames: usize) -> Vec<u8> {
    let [low, high] = side.to_le_bytes();
    let header = [&b"GIF89a"[..], &[low, high, low, high, 0x80, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff]].concat();
    let control = [0x21, 0xf9, 4, 4, 10, 0, 0, 0];
    let frame = [&control[..], b",", &[0, 0, 0, 0, 1, 0, 1, 0, 0], &[2, 2, 0x44, 1, 0]].concat();
    [header, frame.repeat(frames), b";".to_vec()].concat()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - part.len()));
        let digit = |i: usize| char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]);
        text.extend((0..4).map(|i| if i <= part.len() { digit(i) } else { '=' }));
    }
    text
}

impl Hostile {
    /// Sends the request, and checks the status of the answer if the client waits for it.
    fn send(&self, server: &Server) {
        let mut stream = server.connect();
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.path,
            self.host,
            self.body.len()
        );
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&self.body));
        match self.then {
            // The server may answer and close the connection before it has read the whole body.
            Then::Expects(_) if sent.is_err() => {}
            Then::Expects(statuses) => match stream.peek(&mut [0]) {
                Ok(_) => {
                    let reply = read_reply(&mut stream);
                    assert!(statuses.contains(&reply.status), "{}: {} {}", self.name, reply.status, reply.body);
                }
                // The requests before it take all the turns, and the client leaves.
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{}: {e}", self.name),
            },
            Then::Leaves(milliseconds) => std::thread::sleep(Duration::from_millis(milliseconds)),
        }
    }
}

fn has_image(client: usize) -> bool {
    client.is_multiple_of(4)
}

/// The request of a client, which has an image for every fourth client.
fn light_request(client: usize) -> Value {
    let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
    let image = json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{png}")}});
    let text = format!("question {client}");
    let content = if has_image(client) { json!([image, {"type": "text", "text": text}]) } else { json!(text) };
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0})
}

fn answer_text(reply: &Reply) -> String {
    reply.ok()["choices"][0]["message"]["content"].as_str().unwrap().to_string()
}

fn resident_mib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Runs the load for `time`, and prints its figures.
fn clients_keep_their_answers(time: Duration) {
    let server = Server::start(&["--kv-memory", "256"]);
    let expected: Vec<String> = (0..CLIENTS).map(|client| answer_text(&server.chat(&light_request(client)))).collect();
    let (before, begun, over) = (resident_mib(&server), Instant::now(), AtomicBool::new(false));
    let times: Mutex<BTreeMap<bool, Vec<Duration>>> = Mutex::default();
    let hostile = hostile_requests();
    let mut sent = 0;
    std::thread::scope(|scope| {
        for (client, expected) in expected.iter().enumerate() {
            let (server, over, times) = (&server, &over, &times);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let asked = Instant::now();
                    let mut stream = server.connect();
                    write_request(&mut stream, "POST", CHAT, "", &light_request(client).to_string());
                    assert_eq!(answer_text(&read_reply(&mut stream)), *expected, "client {client}");
                    let took = asked.elapsed();
                    assert!(took < MAX_ANSWER_TIME, "client {client} has waited {took:?}");
                    times.lock().unwrap().entry(has_image(client)).or_default().push(took);
                }
            });
        }
        while begun.elapsed() < time {
            for one in &hostile {
                let server = &server;
                scope.spawn(move || one.send(server));
                sent += 1;
            }
            std::thread::sleep(HOSTILE_INTERVAL);
        }
        over.store(true, Ordering::SeqCst);
    });
    let waited = Instant::now();
    while resident_mib(&server) > before + MAX_KEPT_MIB && waited.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(200));
    }
    let after = resident_mib(&server);
    println!("{sent} hostile requests in {:.1} s; memory {before} MiB before, {after} MiB after", time.as_secs_f64());
    for (has_image, mut times) in times.into_inner().unwrap() {
        times.sort();
        let kind = if has_image { "with an image" } else { "of text" };
        let (count, median, slowest) = (times.len(), times[times.len() / 2], times[times.len() - 1]);
        println!("requests {kind}: {count} right answers, median {median:.2?}, slowest {slowest:.2?}");
        assert!(count >= CLIENTS / 4, "{count} answers {kind}");
    }
    assert!(after <= before + MAX_KEPT_MIB, "{after} MiB after the load, {before} MiB before");
    server.assert_still_answers();
}

#[test]
fn clients_keep_their_answers_for_some_seconds() {
    clients_keep_their_answers(Duration::from_secs(4));
}

#[test]
#[ignore = "takes more than a minute"]
fn clients_keep_their_answers_for_a_minute() {
    clients_keep_their_answers(Duration::from_secs(60));
}
