//! `reel bench serve`: the figures for a real server and for a scripted one are consistent; each fault of a server is
//! named and counted, and no fault makes the command hang.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::read_request;
use support::{FinishedRun, golden, reel, run, run_in, tiny_model};

/// A request that the scripted server has received.
struct Received {
    /// Number of the request to the API, counted from 0.
    number: usize,
    head: String,
    body: Value,
}

/// Starts a scripted server, which runs until the test program ends. It answers `GET /v1/models` with a model;
/// `answer` answers all other requests, each connection in its own thread.
fn scripted(answer: impl Fn(&Received, &mut TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (answer, next) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (answer, next) = (answer.clone(), next.clone());
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let Ok(Some(request)) = read_request(&mut BufReader::new(&stream)) else { return };
                if request.has_method_and_path("GET", "/v1/models") {
                    return plain(&mut stream, "200 OK", &json!({"data": [{"id": "scripted"}]}).to_string());
                }
                let (number, body) = (next.fetch_add(1, Ordering::SeqCst), request.json());
                answer(&Received { number, head: request.head, body }, &mut stream);
            });
        }
    });
    format!("http://{address}")
}

/// Sends a complete answer without streaming.
fn plain(stream: &mut TcpStream, status: &str, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
    let _ = stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes());
}

/// Begins a streamed answer, which ends when the connection is closed.
fn begin_stream(stream: &mut TcpStream) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n";
    let _ = stream.write_all(head.as_bytes());
}

/// Sends a server-sent event. Errors are ignored, because the client may have closed the connection.
fn event(stream: &mut TcpStream, data: &str) {
    let _ = stream.write_all(format!("data: {data}\n\n").as_bytes());
}

fn token(text: &str) -> String {
    json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}).to_string()
}

/// Returns the events that end a stream after its last token.
fn end(prompt_tokens: usize, tokens: usize) -> [String; 3] {
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": tokens});
    [
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}).to_string(),
        json!({"choices": [], "usage": usage}).to_string(),
        "[DONE]".to_string(),
    ]
}

/// Streams a complete answer with `tokens` tokens.
fn whole_answer(stream: &mut TcpStream, prompt_tokens: usize, tokens: usize) {
    begin_stream(stream);
    (0..tokens).for_each(|_| event(stream, &token("x")));
    end(prompt_tokens, tokens).iter().for_each(|data| event(stream, data));
}

fn bench(url: &str, args: &[&str]) -> FinishedRun {
    run(support::with_options(&["bench", "serve", "--url", url, "--timeout", "20"], args))
}

fn number(record: &Value, key: &str) -> f64 {
    record[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {record}"))
}

/// A running `reel serve` with the tiny model; dropping it kills the server.
struct Server {
    child: Child,
    url: String,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny_model(folder.path());
        let mut command = reel();
        command.args(["serve", "--device", "cpu", "--port", "0", "--model"]).arg(&model).args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address: SocketAddr = line.trim().rsplit("http://").next().unwrap().parse().unwrap();
        Server { child, url: format!("http://{address}/v1"), folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn figures_of_a_real_server_add_up() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "\nsecret\n").unwrap();
    let keys = keys.path().to_str().unwrap();
    let server = Server::start(&["--api-key-file", keys]);
    let bench = |args: &[&str]| {
        let common = ["bench", "serve", "--url", &server.url, "--api-key-file", keys, "--num-prompts", "6"];
        run_in(server.folder.path(), support::with_options(&common, args))
    };
    let got = bench(&["--max-concurrency", "2", "--output-tokens", "8", "--out", "record.json", "--json"]).json();
    assert_eq!((&got["op"], &got["model_id"]), (&json!("serve"), &json!("tiny")));
    assert_eq!((number(&got, "completed"), number(&got, "failed")), (6.0, 0.0));
    assert_eq!((number(&got, "total_output_tokens"), number(&got, "short_answers")), (48.0, 0.0));
    assert_eq!(number(&got, "max_concurrent_requests"), 2.0);
    assert!(number(&got, "total_input_tokens") > 6.0 * 128.0);
    let seconds = number(&got, "duration");
    assert!((number(&got, "output_throughput") * seconds - 48.0).abs() < 1e-6);
    assert!((number(&got, "request_throughput") * seconds - 6.0).abs() < 1e-6);
    for latency in ["ttft", "tpot", "itl", "e2el"] {
        let figure = |name: &str| number(&got, &format!("{name}_{latency}_ms"));
        assert!(figure("p50") <= figure("p90") && figure("p90") <= figure("p99"), "{got}");
        assert!(figure("mean") >= 0.0 && figure("std") >= 0.0 && figure("median") == figure("p50"));
    }
    assert!(number(&got, "mean_ttft_ms") < number(&got, "mean_e2el_ms"));
    // At most two requests run at a time, so the sum of the six latencies is at most twice the duration of the run.
    assert!(6.0 * number(&got, "mean_e2el_ms") <= 2000.0 * seconds);
    let written = std::fs::read_to_string(server.folder.path().join("record.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), got);
    let machine = &got["machine"];
    assert!(machine["name"].as_str().is_some_and(|name| !name.is_empty()) && machine["cpus"].as_u64() >= Some(1));
    assert!(!written.contains("secret"), "the record has the API key");

    // The server receives further fields of a request (here several completions) and media (an image).
    let image = server.folder.path().join("image.png");
    std::fs::write(&image, PNG).unwrap();
    let base = ["--output-tokens", "8", "--json", "--prompt-tokens", "4"];
    let text = bench(&base).json();
    let more = bench(&[&base[..], &["--image", "image.png", "--extra-body", r#"{"n": 2}"#]].concat()).json();
    assert_eq!((number(&text, "total_output_tokens"), number(&more, "total_output_tokens")), (48.0, 96.0));
    assert!(number(&more, "total_input_tokens") > number(&text, "total_input_tokens"));
    // A video with each prompt: its tokens come before the text.
    let clip = golden("clips/h264_709.mp4").display().to_string();
    let video = bench(&[&base[..], &["--video", &clip]].concat()).json();
    assert_eq!((number(&video, "completed"), number(&video, "failed")), (6.0, 0.0));
    assert!(number(&video, "total_input_tokens") > number(&text, "total_input_tokens") + 6.0 * 4.0);
    let prefix = bench(&[&base[..], &["--shared-prefix-tokens", "60"]].concat()).json();
    assert!(number(&prefix, "total_input_tokens") >= number(&text, "total_input_tokens") + 6.0 * 60.0);

    // The server refuses a wrong key and an unknown model.
    let wrong = run(["bench", "serve", "--url", &server.url]);
    wrong.assert_refused(1, &["/v1/models: ", "(status 401)", "--api-key-file"]);
    bench(&["--model", "other"]).assert_refused(1, &["(status 404)", "--model"]);
}

/// One grey pixel.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55\0\0\0\nIDAT\
    \x78\x9c\x63\x68\0\0\0\x82\0\x81\x77\xcd\x72\xb6\0\0\0\0IEND\xae\x42\x60\x82";

#[test]
fn times_are_those_of_the_events() {
    const STEP: Duration = Duration::from_millis(40);
    let url = scripted(|request, stream| {
        assert_eq!(request.body["messages"][0]["content"].as_str().unwrap().split(' ').count(), 7);
        begin_stream(stream);
        event(stream, &json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}).to_string());
        for _ in 0..4 {
            sleep(STEP);
            event(stream, &token("x"));
        }
        end(9, 4).iter().for_each(|data| event(stream, data));
    });
    let settings = ["--num-prompts", "4", "--max-concurrency", "2", "--prompt-tokens", "7", "--warmup", "1", "--json"];
    let got = bench(&url, &[&settings[..], &["--output-tokens", "4"]].concat()).json();
    assert_eq!((number(&got, "completed"), number(&got, "max_concurrent_requests")), (4.0, 2.0));
    assert_eq!((number(&got, "total_input_tokens"), number(&got, "total_output_tokens")), (36.0, 16.0));
    // On a busy machine the times are longer, never shorter. The upper bound detects wrong units.
    let step = STEP.as_secs_f64() * 1e3;
    let between = |key: &str, least: f64| {
        let got = number(&got, key);
        assert!(least * 0.95 <= got && got < least + 100.0 * step, "{key}: {got} ms, expected {least} ms");
    };
    between("median_ttft_ms", step);
    between("mean_tpot_ms", step);
    between("mean_itl_ms", step);
    between("median_e2el_ms", 4.0 * step);
    assert!(number(&got, "duration") * 1e3 >= 8.0 * step * 0.95);
}

#[test]
fn answers_in_single_bytes_are_read() {
    let url = scripted(|_, stream| {
        begin_stream(stream);
        let all: String =
            [token("é"), token("x")].iter().chain(&end(5, 2)).map(|data| format!("data: {data}\r\n\r\n")).collect();
        all.as_bytes().iter().for_each(|byte| drop(stream.write_all(&[*byte])));
    });
    let got = bench(&url, &["--num-prompts", "3", "--output-tokens", "2", "--json"]).json();
    assert_eq!((number(&got, "completed"), number(&got, "total_output_tokens")), (3.0, 6.0));
}

#[test]
fn failures_are_counted_by_kind_and_the_others_are_measured() {
    // Of every five requests, two are answered, one gets status 503, one answer is cut off, and one answer is not
    // valid JSON.
    let url = scripted(|request, stream| match request.number % 5 {
        0 | 3 => whole_answer(stream, 5, 3),
        1 => plain(stream, "503 Service Unavailable", r#"{"error": {"message": "too many requests"}}"#),
        2 => {
            begin_stream(stream);
            event(stream, &token("x"));
        }
        _ => {
            begin_stream(stream);
            event(stream, "{nonsense");
        }
    });
    let settings = ["--num-prompts", "20", "--max-concurrency", "1", "--warmup", "0", "--output-tokens", "3"];
    let run = bench(&url, &[&settings[..], &["--json"]].concat());
    let got = run.json();
    assert_eq!((number(&got, "completed"), number(&got, "failed")), (8.0, 12.0));
    assert_eq!(number(&got, "total_output_tokens"), 24.0);
    let errors: Vec<(&str, u64)> = got["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| (error["kind"].as_str().unwrap(), error["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(errors, [("status 503", 4), ("closed", 4), ("malformed", 4)]);
    assert_eq!(got["errors"][0]["first"], "Service Unavailable: too many requests");
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("warning: 4 requests failed; ")).count(), 3);
    let table = bench(&url, &settings);
    let rows: Vec<&str> = table.ok().lines().filter(|line| line.contains("requests:")).map(str::trim).collect();
    let wanted = [("Successful requests:", "8"), ("Failed requests:", "12"), ("Peak concurrent requests:", "1")];
    for ((label, value), row) in wanted.iter().zip(rows) {
        assert!(row.starts_with(label) && row.ends_with(&format!(" {value}")), "{row}");
    }
}

#[test]
fn a_server_that_only_fails_is_an_error_that_names_the_cause() {
    type Script = fn(&Received, &mut TcpStream);
    let scripts: [(Script, &[&str]); 8] = [
        (|_, stream| plain(stream, "404 Not Found", "nothing here"), &["(status 404)", "nothing here", "--endpoint"]),
        (
            |_, stream| plain(stream, "200 OK", "{\"choices\": []}"),
            &["application/json", "(not a stream)", "streaming"],
        ),
        (|_, stream| drop(stream.write_all(b"SSH-2.0-x\r\n")), &["(closed)"]),
        (|_, _| (), &["the connection ended", "(closed)"]),
        (|_, stream| begin_stream(stream), &["(empty)"]),
        (
            |_, stream| {
                begin_stream(stream);
                event(stream, r#"{"error": {"message": "CUDA out\u001b of memory"}}"#);
            },
            &["CUDA out\\u{1b} of memory", "(error event)", "log"],
        ),
        (
            |request, stream| {
                assert_eq!(request.body["ignore_eos"], true);
                plain(stream, "400 Bad Request", r#"{"error": {"message": "ignore_eos: unknown"}}"#);
            },
            &["ignore_eos: unknown", "leave out --ignore-eos"],
        ),
        (
            // A streamed event that never ends, larger than any real event.
            |_, stream| {
                begin_stream(stream);
                let block = vec![b'x'; 1 << 20];
                for _ in 0..20 {
                    if stream.write_all(&block).is_err() {
                        return;
                    }
                }
            },
            &["(malformed)", "16 MiB"],
        ),
    ];
    for (script, words) in scripts {
        let url = scripted(script);
        // The first request is a warm-up, which must succeed.
        bench(&url, &["--ignore-eos"]).assert_refused(1, &[&["/v1/chat/completions: "], words].concat());
        // Without a warm-up, all requests are counted before the error.
        let run = bench(&url, &["--ignore-eos", "--warmup", "0", "--num-prompts", "3"]);
        run.assert_refused(1, &[&["all 3 requests failed; the first: "], words].concat());
        assert!(run.stdout.contains("Failed requests:                         3\n"), "{}", run.stdout);
        assert!(run.stdout.contains("no sample"), "{}", run.stdout);
    }
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let url = scripted(|request, stream| {
        // Even-numbered requests get the start of an answer, the others get nothing.
        if request.number % 2 == 0 {
            begin_stream(stream);
            event(stream, &token("x"));
        }
        sleep(Duration::from_secs(60));
    });
    let begun = Instant::now();
    let settings = ["--warmup", "0", "--num-prompts", "4", "--timeout", "0.5"];
    let run = run(["bench", "serve", "--url", &url].iter().chain(&settings));
    run.assert_refused(1, &["all 4 requests failed", "no complete answer after 0.5 s (timeout)", "--timeout"]);
    assert!(begun.elapsed() < Duration::from_secs(30));
    // The server never accepts a connection; the connection stays in the backlog of the listening socket.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let run = support::run(["bench", "serve", "--url", &url, "--timeout", "0.5"]);
    run.assert_refused(1, &["/v1/models: no complete answer after 0.5 s"]);
}

#[test]
fn without_a_server_and_with_wrong_options_nothing_is_measured() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unused = format!("http://{free}");
    bench(&unused, &[]).assert_refused(1, &["/v1/models: cannot connect", "--url"]);
    bench(&unused, &["--model", "m"]).assert_refused(1, &["/v1/chat/completions: cannot connect", "--url"]);
    bench(&unused.replace("http", "https"), &[]).assert_refused(1, &["cannot connect"]);
    let tls = scripted(|_, _| ());
    bench(&tls.replace("http", "https"), &[]).assert_refused(1, &["cannot connect"]);
    for url in ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "", "http://a:b@host"] {
        bench(url, &[]).assert_refused(2, &["--url"]);
    }
    for (args, words) in [
        (&["--num-prompts", "0"][..], &["--num-prompts: is 0"][..]),
        (&["--duration", "2"], &["--duration", "--max-concurrency"]),
        (&["--duration", "-2", "--max-concurrency", "1"], &["--duration: is -2"]),
        (&["--duration", "0", "--max-concurrency", "1"], &["--duration"]),
        (&["--duration", "1e300", "--max-concurrency", "1"], &["--duration"]),
        (&["--duration", "1", "--num-prompts", "2"], &["--duration", "--num-prompts"]),
        (&["--timeout", "nan"], &["--timeout: is NaN"]),
        (&["--timeout", "0"], &["--timeout"]),
        (&["--request-rate", "0"], &["--request-rate: is 0"]),
        (&["--request-rate", "-inf"], &["--request-rate: is -inf"]),
        (&["--burstiness", "nan"], &["--burstiness: is NaN"]),
        (&["--max-concurrency", "0"], &["--max-concurrency"]),
        (&["--prompt-tokens", "99999999"], &["--prompt-tokens"]),
        (&["--extra-body", "[1]"], &["--extra-body", "JSON object"]),
        (&["--extra-body", "{\"stream\": false}", "--model", "m"], &["--extra-body", "\"stream\""]),
        (&["--endpoint", "embeddings"], &["--endpoint", "completions"]),
    ] {
        bench(&unused, args).assert_refused(2, words);
    }
    bench(&unused, &["--out", "no/such/folder/x.json"]).assert_refused(1, &["no/such/folder"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty"), "\n \n").unwrap();
    let in_folder = |args: &[&str]| run_in(folder.path(), ["bench", "serve", "--url", &unused].iter().chain(args));
    in_folder(&["--api-key-file", "empty"]).assert_refused(1, &["empty: has no API key"]);
    in_folder(&["--api-key-file", "none"]).assert_refused(1, &["none: cannot be read"]);
    in_folder(&["--image", "none.png"]).assert_refused(1, &["none.png: cannot be read"]);
    std::fs::write(folder.path().join("a.png"), PNG).unwrap();
    in_folder(&["--image", "a.png", "--endpoint", "completions", "--model", "m"])
        .assert_refused(2, &["--endpoint completions"]);
    in_folder(&["--image", "a.png", "--out", "a.png"]).assert_refused(2, &["--out", "--image"]);
}

#[test]
fn requests_come_at_the_rate_and_for_the_time_that_were_asked_for() {
    let url = scripted(|request, stream| {
        assert!(request.head.starts_with("POST /v1/completions ") && request.body["prompt"].is_string());
        begin_stream(stream);
        event(stream, &json!({"choices": [{"index": 0, "text": "x", "finish_reason": "length"}]}).to_string());
        event(stream, "[DONE]");
    });
    let settings = ["--endpoint", "completions", "--output-tokens", "1", "--json", "--warmup", "0"];
    let measured = |args: &[&str]| bench(&url, &support::with_options(&settings, args)).json();
    // 40 requests at 100 per second in nearly equal intervals take 0.39 s.
    let got = measured(&["--num-prompts", "40", "--request-rate", "100", "--burstiness", "1000"]);
    assert_eq!(number(&got, "completed"), 40.0);
    assert!(number(&got, "duration") >= 0.35, "{got}");
    // This server sends no usage (token counts).
    assert_eq!((number(&got, "answers_without_usage"), &got["total_input_tokens"]), (40.0, &Value::Null));
    assert_eq!((number(&got, "total_output_tokens"), &got["mean_tpot_ms"]), (40.0, &Value::Null));
    for limit in [["--request-rate", "50"], ["--max-concurrency", "2"]] {
        let begun = Instant::now();
        let got = measured(&[&["--duration", "0.5"], &limit[..]].concat());
        assert!(number(&got, "completed") >= 2.0 && number(&got, "failed") == 0.0, "{got}");
        assert!(number(&got, "duration") >= 0.35 && begun.elapsed() < Duration::from_secs(20));
    }
}
