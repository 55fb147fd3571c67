//! `reel serve` under faults: slow, disconnected, many or hostile clients, damaged and large bodies, and signals
//! under load. At the end of each test, the server still answers a plain request.

#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::{Map, Value, json};
use server::{REQUEST_TIMEOUT, Server, question, read_reply, serve_command, wait, write_request};
use tempfile::TempDir;

const CHAT: &str = "/v1/chat/completions";

/// Reads until the server closes the connection, within `limit`.
#[track_caller]
fn closed_within(stream: &mut TcpStream, limit: Duration) -> String {
    stream.set_read_timeout(Some(limit)).unwrap();
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    let ended = stream.read_to_end(&mut bytes);
    let is_open = ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!is_open && begun.elapsed() < limit, "the connection is still open after {:?}", begun.elapsed());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn bodies_that_are_no_request_are_refused() {
    let server = Server::start(&[]);
    let deep = "[".repeat(100_000);
    let bodies: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\"x\"",
        b"{\"messages\": [}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}",
        b"{\"messages\": 1e999}",
        b"{} {}",
        b"\x00\x00\x00",
        deep.as_bytes(),
    ];
    for path in [CHAT, "/v1/completions", "/tokenize", "/detokenize"] {
        for body in bodies {
            let mut stream = server.connect();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}",
                body.len()
            );
            stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
            stream.write_all(body).unwrap();
            let error = read_reply(&mut stream).error(400);
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with("request: ") && message.contains("; "), "{message}");
        }
    }
    // Many short JSON values would take a hundred times as much memory as the text of the body.
    let many = format!("{{\"prompt\": [{}[1]]}}", "[1],".repeat(1 << 19));
    let error = server.send("POST", "/v1/completions", "", &many).error(400);
    assert!(error["message"].as_str().unwrap().contains("more than 1048576 JSON values"), "{error}");
    // Bytes that are not HTTP, and malformed HTTP, make the server close the connection.
    for bytes in ["\r\n\r\n\r\n\r\n", "GET\r\n\r\n", "POST / HTTP/9.9\r\n\r\n", "\u{0}\u{1}\u{2}\r\n\r\n"] {
        let mut stream = server.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        closed_within(&mut stream, REQUEST_TIMEOUT);
    }
    server.assert_still_answers();
}

#[test]
fn a_body_above_the_limit_is_refused_announced_or_not() {
    let server = Server::start(&["--max-body", "1"]);
    // A body whose announced length is too large is refused before any byte of it is sent.
    let mut stream = server.connect();
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n", 1u64 << 30).as_bytes()).unwrap();
    let error = read_reply(&mut stream).error(413);
    assert!(error["message"].as_str().unwrap().contains("--max-body"), "{error}");
    // A body of unknown length is refused after 1 MiB. The client can read the answer although it keeps sending.
    let mut stream = server.connect();
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let sent = (0..64).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
    assert!(sent > 16, "{sent}");
    read_reply(&mut stream).error(413);
    // The body has malformed chunks.
    for damage in ["zz\r\nabc\r\n", "fffffffffffffffff\r\n", "5\r\nab"] {
        let mut stream = server.connect();
        stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n{damage}").as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = closed_within(&mut stream, REQUEST_TIMEOUT);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    server.assert_still_answers();
}

#[test]
fn bodies_together_take_a_limited_memory() {
    let server = Server::start(&["--max-body", "1"]);
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", 1 << 20);
    let most = [head.as_bytes(), &vec![b' '; (1 << 20) - 1024]].concat();
    let mut held: Vec<TcpStream> = (0..17)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(&most).unwrap();
            stream
        })
        .collect();
    // Sixteen bodies fit in the memory limit, so one of the 17 requests is refused. The server waits for the rest of
    // the other bodies.
    let count_refused = |held: &mut Vec<TcpStream>| {
        let before = held.len();
        held.retain_mut(|stream| {
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut start = [0; 12];
            let is_answered = stream.read_exact(&mut start).is_ok();
            assert!(!is_answered || &start == b"HTTP/1.1 429");
            !is_answered
        });
        before - held.len()
    };
    // A busy machine answers late, so all connections are checked until one request is refused, and then once more.
    let (begun, mut refused) = (Instant::now(), 0);
    while refused == 0 {
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "no request is refused");
        refused = count_refused(&mut held);
    }
    refused += count_refused(&mut held);
    assert_eq!(refused, 1);
    drop(held);
    let begun = Instant::now();
    while server.chat(&json!({"messages": question(&"x".repeat(1000)), "max_tokens": 1})).status != 200 {
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "the memory of bodies whose clients are gone is not free");
    }
}

#[test]
fn clients_that_send_slowly_are_given_up() {
    let server = Server::start(&["--read-timeout", "1"]);
    // The clients send nothing, a part of a header, or a part of a body. The server closes each connection after a
    // second; the last client gets status 408.
    let mut silent = server.connect();
    let mut header = server.connect();
    header.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A").unwrap();
    let mut body = server.connect();
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n");
    body.write_all(head.as_bytes()).unwrap();
    body.write_all(b"{\"messages\"").unwrap();
    assert_eq!(closed_within(&mut silent, Duration::from_secs(10)), "");
    assert_eq!(closed_within(&mut header, Duration::from_secs(10)), "");
    let answer = closed_within(&mut body, Duration::from_secs(10));
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("its body is too slow"), "{answer}");
    // Sending one byte every 0.2 s is too slow.
    for start in ["POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ", &head] {
        let mut stream = server.connect();
        stream.write_all(start.as_bytes()).unwrap();
        let begun = Instant::now();
        while stream.write_all(b"x").is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(15), "a slow client is still served");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    // An idle connection after an answer is closed as well.
    let mut idle = server.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(closed_within(&mut idle, Duration::from_secs(10)).starts_with("HTTP/1.1 200"));
    server.assert_still_answers();
}

/// Requests a long streamed answer that the client does not read.
fn unread_stream(server: &Server) -> TcpStream {
    let mut stream = server.connect();
    // The receive buffer is small, so that the buffers of both sides fill up soon.
    set_socket_recv_buffer_size(&stream, 4096).unwrap();
    let body = json!({"messages": question("x"), "max_tokens": 100_000, "temperature": 0, "stream": true, "n": 8});
    write_request(&mut stream, "POST", CHAT, "", &body.to_string());
    stream
}

#[test]
fn a_client_that_reads_nothing_is_given_up_and_frees_its_request() {
    let server = Server::start(&["--write-timeout", "1", "--max-requests", "1"]);
    let mut stream = unread_stream(&server);
    stream.read_exact(&mut [0; 64]).unwrap();
    let short = json!({"messages": question("x"), "max_tokens": 2});
    server.chat(&short).error(429);
    let begun = Instant::now();
    while server.chat(&short).status != 200 {
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "the request of a client that reads nothing still runs");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(stream);
}

#[test]
fn a_signal_ends_the_server_although_clients_read_nothing_or_send_slowly() {
    let server = Server::start(&["--write-timeout", "1", "--read-timeout", "2"]);
    let mut unread = unread_stream(&server);
    unread.read_exact(&mut [0; 64]).unwrap();
    let idle = server.connect();
    let mut header = server.connect();
    header.write_all(b"POST / HTTP/1.1\r\nX-A: ").unwrap();
    let mut body = server.connect();
    body.write_all(format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{").as_bytes())
        .unwrap();
    let begun = Instant::now();
    assert_eq!(server.stop(15), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
    drop((unread, idle, header, body));
}

/// The server has the default time limit of requests (30 s), but after a signal it ends incomplete requests sooner.
#[test]
fn a_signal_ends_incomplete_requests_within_seconds_and_answers_complete_ones() {
    let server = Server::start(&[]);
    let connect = |bytes: &str| {
        let mut stream = server.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream
    };
    let header = connect("POST / HTTP/1.1\r\nX-A: ");
    let body = connect(&format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{"));
    let mut used = connect("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    used.read_exact(&mut [0; 12]).unwrap();
    used.write_all(b"GET /hea").unwrap();
    let mut running = server.connect();
    let long = json!({"messages": question("x"), "max_tokens": 4000, "temperature": 0}).to_string();
    write_request(&mut running, "POST", CHAT, "", &long);
    std::thread::sleep(Duration::from_millis(500));
    support::send_signal(server.child.id(), "-TERM");
    for mut stream in [header, body, used] {
        closed_within(&mut stream, Duration::from_secs(15));
    }
    assert_eq!(read_reply(&mut running).ok()["usage"]["completion_tokens"], 4000);
    let mut server = server;
    assert_eq!(wait(&mut server.child), Some(0));
}

#[test]
fn a_signal_under_load_answers_what_runs_and_refuses_what_comes() {
    let server = Server::start(&["--batch-size", "4"]);
    let body = json!({"messages": question("x"), "max_tokens": 600, "temperature": 0}).to_string();
    let mut running: Vec<TcpStream> = (0..12)
        .map(|_| {
            let mut stream = server.connect();
            write_request(&mut stream, "POST", CHAT, "", &body);
            stream
        })
        .collect();
    // After this pause, the server has read all requests: some run and the others wait.
    std::thread::sleep(Duration::from_millis(500));
    support::send_signal(server.child.id(), "-TERM");
    std::thread::sleep(Duration::from_millis(200));
    let mut late = server.connect();
    write_request(&mut late, "POST", CHAT, "", &body);
    read_reply(&mut late).error(503);
    for stream in &mut running {
        assert_eq!(read_reply(stream).ok()["usage"]["completion_tokens"], 600);
    }
    let mut server = server;
    assert_eq!(wait(&mut server.child), Some(0));
}

#[test]
fn a_killed_server_can_start_again_at_the_same_port() {
    let first = Server::start(&[]);
    let mut stream = first.connect();
    let body = json!({"messages": question("x"), "max_tokens": 100_000, "temperature": 0, "stream": true});
    write_request(&mut stream, "POST", CHAT, "", &body.to_string());
    stream.read_exact(&mut [0; 64]).unwrap();
    let (port, folder) = (first.address.port().to_string(), TempDir::new().unwrap());
    let model = support::tiny_model(folder.path());
    assert_eq!(first.stop(9), None);
    let _ = stream.read_to_end(&mut Vec::new());
    Server::start_with(folder, model, &["--port", &port]).assert_still_answers();
}

#[test]
fn idle_connections_do_not_hinder_requests() {
    let server = Server::start(&["--max-connections", "3000"]);
    let idle: Vec<TcpStream> = (0..2000).map(|_| server.connect()).collect();
    server.assert_still_answers();
    drop(idle);
    server.assert_still_answers();
}

#[test]
#[ignore = "needs ulimit -n 13000"]
fn ten_thousand_idle_connections_do_not_hinder_requests() {
    let server = Server::start(&["--max-connections", "12000"]);
    let idle: Vec<TcpStream> = (0..10_000).map(|_| server.connect()).collect();
    server.assert_still_answers();
    drop(idle);
    server.assert_still_answers();
}

#[test]
fn clients_above_the_limit_wait_until_a_connection_is_closed() {
    let server = Server::start(&["--max-connections", "4", "--read-timeout", "1"]);
    let _idle: Vec<TcpStream> = (0..8).map(|_| server.connect()).collect();
    let begun = Instant::now();
    server.assert_still_answers();
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_thousand_requests_are_answered_or_refused() {
    let server = Server::start(&["--max-requests", "900"]);
    let body = json!({"messages": question("x"), "max_tokens": 4, "temperature": 0}).to_string();
    let mut streams: Vec<TcpStream> = (0..1000).map(|_| server.connect()).collect();
    streams.iter_mut().for_each(|stream| write_request(stream, "POST", CHAT, "", &body));
    let replies = streams.iter_mut().map(read_reply);
    let (mut answered, mut refused) = (0, 0);
    for reply in replies {
        match reply.status {
            200 => answered += usize::from(reply.ok()["usage"]["completion_tokens"] == 4),
            _ => refused += usize::from(reply.error(429)["code"] == "rate_limit_exceeded"),
        }
    }
    assert_eq!(answered + refused, 1000);
    assert!(answered >= 900, "{answered}");
    server.assert_still_answers();
}

#[test]
fn a_prompt_beyond_the_context_is_refused() {
    let server = Server::start(&[]);
    let long = json!({"messages": question(&"word ".repeat(300_000)), "max_tokens": 2});
    let error = server.chat(&long).error(400);
    assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("messages")));
    // A text that cannot fit in the context is refused before it is tokenized, which would take minutes.
    let (longer, begun) = ("word ".repeat(8_000_000), Instant::now());
    for (path, body) in [
        (CHAT, json!({"messages": question(&longer)})),
        ("/v1/completions", json!({"prompt": longer})),
        ("/tokenize", json!({"prompt": longer})),
    ] {
        let error = server.send("POST", path, "", &body.to_string()).error(400);
        assert!(error["message"].as_str().unwrap().contains("bytes of text"), "{error}");
    }
    assert!(begun.elapsed() < REQUEST_TIMEOUT, "{:?}", begun.elapsed());
    server.assert_still_answers();
}

#[test]
fn time_limits_and_numbers_of_connections_are_checked() {
    let folder = TempDir::new().unwrap();
    let model = support::tiny_model(folder.path());
    for (args, words) in [
        (["--read-timeout", "0"], "--read-timeout: 0 is not a time limit"),
        (["--write-timeout", "-1"], "--write-timeout: -1 is not a time limit"),
        (["--write-timeout", "nan"], "--write-timeout: NaN is not a time limit"),
        (["--max-connections", "0"], "--max-connections"),
    ] {
        support::finished_run(serve_command(&model, &args).output().unwrap()).assert_refused(2, &[words]);
    }
}

/// A JSON schema in which each definition refers to the next one, inside what `outer` makes of the reference.
fn chain(length: usize, outer: fn(Value) -> Value) -> Value {
    let reference = |i: usize| json!({"$ref": format!("#/$defs/d{i}")});
    let mut defs: Map<String, Value> = (0..length).map(|i| (format!("d{i}"), outer(reference(i + 1)))).collect();
    defs.insert(format!("d{length}"), json!({"type": "string"}));
    json!({"$ref": "#/$defs/d0", "$defs": defs})
}

fn object_with(inner: Value) -> Value {
    json!({"type": "object", "properties": {"a": inner}, "required": ["a"]})
}

/// Rules of a Lark grammar, from `a0` to `aN` (or terminals), each of which `line` makes from its own number.
fn lark(count: usize, name: &str, line: fn(usize) -> String) -> String {
    let lines: Vec<String> = (0..count).map(line).collect();
    format!("start: {name}0\n{}\n{name}{count}: \"x\"\n", lines.join("\n"))
}

/// Each of these grammars would overflow a stack, or take minutes or all memory, in the server's process.
#[test]
fn deep_wide_and_slow_grammars_end_only_their_own_request() {
    let server = Server::start(&[]);
    let deep = chain(6000, object_with);
    let mut tool = json!({"name": "f", "strict": true, "parameters": deep});
    tool["parameters"]["type"] = json!("object");
    let nested = (0..55).fold(json!({"type": "string"}), |inner, _| object_with(inner));
    let choices: Vec<String> = (0..100_000).map(|i| format!("word{i}")).collect();
    let properties: Map<String, Value> = (0..20_000).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect();
    let of_schema = |schema: Value| json!({"guided_json": schema});
    let of_lark = |grammar: String| json!({"guided_grammar": grammar});
    // The last one is a limit of the grammar compiler itself.
    let limits = ["MiB of stack", "MiB of memory", "s of processor time", "too large"];
    // The words that a refusal may contain; without words, the grammar is accepted.
    let cases: [(Value, &str, &[&str]); 19] = [
        (of_schema(chain(1000, |inner| inner)), "guided_json", &[]),
        (of_schema(chain(100, object_with)), "guided_json", &[]),
        (json!({"guided_choice": choices}), "guided_choice", &[]),
        (of_schema(chain(20_000, |inner| inner)), "guided_json", &limits),
        (of_schema(deep.clone()), "guided_json", &limits),
        (of_schema(chain(6000, |inner| json!({"type": "array", "items": inner}))), "guided_json", &limits),
        (of_schema(chain(6000, |inner| json!({"anyOf": [inner, {"type": "null"}]}))), "guided_json", &limits),
        (of_schema(chain(6000, |inner| json!({"allOf": [inner]}))), "guided_json", &limits),
        (of_schema(chain(6000, |inner| json!({"type": "array", "prefixItems": [inner]}))), "guided_json", &limits),
        (of_schema(chain(6000, |inner| json!({"patternProperties": {"a": inner}}))), "guided_json", &limits),
        (of_schema(json!({"type": "object", "properties": properties})), "guided_json", &limits),
        (of_schema(nested), "guided_json", &["more than 100 levels of JSON"]),
        (json!({"structured_outputs": {"json": deep}}), "structured_outputs", &limits),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}}),
            "response_format",
            &limits,
        ),
        (json!({"tools": [{"type": "function", "function": tool}], "tool_choice": "required"}), "tools", &limits),
        (of_lark(lark(20_000, "a", |i| format!("a{i}: \"x\" a{} \"y\"", i + 1))), "guided_grammar", &limits),
        (of_lark(lark(50_000, "A", |i| format!("A{i}: \"x\" A{}", i + 1))), "guided_grammar", &limits),
        (of_lark(format!("start: \"{}\"", choices.join("\" | \""))), "guided_grammar", &limits),
        (json!({"guided_regex": "(".repeat(20_000) + "a" + &")*".repeat(20_000)}), "guided_regex", &["regex"]),
    ];
    for (mut body, field, words) in cases {
        body["messages"] = question("x");
        body["max_tokens"] = json!(2);
        let reply = server.chat(&body);
        if words.is_empty() {
            reply.ok();
            continue;
        }
        let error = reply.error(400);
        let message = error["message"].as_str().unwrap();
        let is_named = message.starts_with(&format!("request: {field}: ")) && error["param"] == field;
        assert!(is_named && words.iter().any(|word| message.contains(word)), "{field}: {error}");
        assert!(message.len() < 600 && !message.contains('\n'), "{message}");
    }
    let form = json!({"format": {"type": "json_schema", "name": "x", "schema": deep}});
    let of_responses = json!({"input": "x", "max_output_tokens": 2, "text": form}).to_string();
    let error = server.send("POST", "/v1/responses", "", &of_responses).error(400);
    assert!(limits.iter().any(|word| error["message"].as_str().unwrap().contains(word)), "{error}");
    server.assert_still_answers();
}

/// Grammars that take two seconds of processor time each, from clients that wait and from clients that leave.
#[test]
fn slow_grammars_hold_up_no_other_request() {
    let server = Server::start(&[]);
    let texts: Vec<String> = (0..100_000).map(|i| format!("\"word{i}\"")).collect();
    let grammar = format!("start: {}", texts.join(" | "));
    let body = json!({"messages": question("x"), "max_tokens": 1, "guided_grammar": grammar}).to_string();
    let send = || {
        let mut stream = server.connect();
        write_request(&mut stream, "POST", CHAT, "", &body);
        stream
    };
    let left: Vec<TcpStream> = (0..8).map(|_| send()).collect();
    drop(left);
    let mut waiting: Vec<TcpStream> = (0..4).map(|_| send()).collect();
    for _ in 0..10 {
        server.assert_still_answers();
    }
    for stream in &mut waiting {
        let reply = read_reply(stream);
        // On a busy machine, a request can wait longer than the server allows.
        let (status, words) = match reply.status {
            429 => (429, "too many grammars are being compiled"),
            _ => (400, "s of processor time"),
        };
        let error = reply.error(status);
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let choice = json!({"messages": question("x"), "max_tokens": 9, "guided_choice": ["yes"]});
    assert_eq!(server.chat(&choice).ok()["choices"][0]["message"]["content"], "yes");
}

#[test]
fn a_server_without_keys_answers_only_to_its_own_names() {
    let ask = |server: &Server, method: &str, path: &str, host: &str| {
        let mut stream = server.connect();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
        stream.write_all(head.as_bytes()).unwrap();
        read_reply(&mut stream)
    };
    let server = Server::start(&["--allow-origin", "https://app.example"]);
    let document = server.send("GET", "/openapi.json", "", "").ok();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let error = ask(&server, &method.to_uppercase(), path, "evil.example:80").error(403);
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("\"evil.example:80\"") && message.contains("--api-key-file"), "{message}");
            assert!(message.lines().count() == 1, "{message}");
        }
    }
    for path in ["/page/page.js", "/nowhere"] {
        ask(&server, "GET", path, "evil.example").error(403);
    }
    assert_eq!(ask(&server, "OPTIONS", CHAT, "evil.example").status, 403);
    let own = format!("127.0.0.1:{}", server.address.port());
    for host in [own.as_str(), "localhost", "[::1]:9", "a.localhost", "app.example"] {
        ask(&server, "GET", "/v1/models", host).ok();
    }
    let with_key = Server::start(&["--api-key", "secret"]);
    assert_eq!(ask(&with_key, "GET", "/health", "evil.example").status, 200);
    let named = Server::start(&["--host", "localhost"]);
    ask(&named, "GET", "/v1/models", "localhost").ok();
    server.assert_still_answers();
}
