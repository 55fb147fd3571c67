//! `reel eval --endpoint`: a server answers the questions of benchmarks. Its answers equal those of a local run with
//! the same model. After failures, kills and a reached cost limit, no answer is lost and no question is asked again.

#[path = "support/chat_endpoint.rs"]
mod chat_endpoint;
#[path = "support/serving.rs"]
mod serving;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use chat_endpoint::{ANSWER_TOKENS, ChatEndpoint, EndpointReply, PROMPT_TOKENS};
use serde_json::{Value, json};
use serving::Server;
use support::{golden, run_in, send_signal, tiny_model_of};

/// Creates a folder with questions of Video-Holmes about two videos.
fn folder_with_questions(rows: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let videos = folder.path().join("data/videos");
    fs::create_dir_all(&videos).expect("a folder");
    for name in ["v0.mp4", "v1.mp4"] {
        fs::copy(golden("train/sft_videorft_mp4/media/clip.mp4"), videos.join(name)).expect("copied");
    }
    let row = |i: usize| {
        json!({"video ID": format!("v{}", i % 2), "Question ID": i, "Question Type": if i.is_multiple_of(2) { "SR" } else { "TA" },
            "Question": format!("Who is {i}?"), "Options": {"A": "he", "B": "she"}, "Answer": "B"})
    };
    let rows: Vec<Value> = (0..rows).map(row).collect();
    fs::write(folder.path().join("data/test_Video-Holmes.json"), json!(rows).to_string()).expect("written");
    folder
}

const EVAL: [&str; 8] = ["eval", "--benchmark", "videoholmes", "--data", "data", "--nframes", "4", "--quiet"];

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Returns the text of the last user message.
fn question(body: &Value) -> String {
    let content = &body["messages"].as_array().and_then(|messages| messages.last()).expect("a message")["content"];
    let text = content.as_array().into_iter().flatten().find_map(|part| part["text"].as_str());
    text.or(content.as_str()).unwrap_or_default().to_string()
}

/// Returns the number in a question such as `Who is 7?`.
fn number(body: &Value) -> usize {
    let question = question(body);
    let digits = question.trim_start_matches("Who is ").split('?').next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("{question}"))
}

#[test]
fn a_server_gives_the_answers_of_the_model_that_it_serves() {
    for preset in ["tiny", "qwen3-tiny"] {
        let folder = folder_with_questions(4);
        let at = folder.path();
        tiny_model_of(at, preset);
        let server = Server::start_preset(preset, &[]);
        let url = format!("{}/v1", server.address);
        let args = [&EVAL[..], &["--temperature", "1", "--top-p", "1", "--max-new-tokens", "6"]].concat();
        run_in(at, [&args[..], &["--model", "tiny", "--out", "local"]].concat()).ok();
        let endpoint = ["--endpoint", &url, "--endpoint-video", "reel", "--concurrency", "3", "--out", "served"];
        run_in(at, [&args[..], &endpoint].concat()).ok();
        let [local, served] = ["local", "served"].map(|run| lines(&at.join(run).join("videoholmes.jsonl")));
        for (a, b) in local.iter().zip(&served) {
            assert_eq!((&a["output"], &a["problem"]), (&b["output"], &b["problem"]));
            for field in ["finish_reason", "prompt_tokens", "completion_tokens", "seed"] {
                assert_eq!(a["generation"][field], b["generation"][field], "{preset}: {field}");
            }
        }
        assert!(served.iter().any(|row| row["output"] != served[0]["output"]), "all answers are the same");
        // Frames that are sent as images take more tokens than the same frames sent as a video.
        let images = ["--endpoint", &url, "--out", "images"];
        run_in(at, [&args[..], &images].concat()).ok();
        let images = lines(&at.join("images/videoholmes.jsonl"));
        assert!(images[0]["generation"]["prompt_tokens"].as_u64() > local[0]["generation"]["prompt_tokens"].as_u64());
    }
}

/// Options for Qwen3-VL are refused if the server's model is a Qwen2.5-VL.
#[test]
fn options_of_another_family_than_that_of_the_server_are_refused() {
    let folder = folder_with_questions(1);
    let server = ChatEndpoint::start(|_, _| EndpointReply::text("<answer>B</answer>"));
    let asked = |model: &str, more: &[&str]| {
        let endpoint = ["--endpoint", &server.url, "--endpoint-model", model, "--out", model];
        run_in(folder.path(), [&EVAL[..], &endpoint, more].concat())
    };
    asked("m", &["--profile", "qwen3-processor"]).assert_refused(2, &["--profile", "Qwen3-VL"]);
    asked("Qwen3-VL-8B", &["--profile", "qwen3-processor"]).ok();
    assert_eq!(server.request_count(), 1);
}

#[test]
fn a_wait_that_the_server_asks_for_is_printed() {
    let folder = folder_with_questions(1);
    for (out, quiet) in [("said", false), ("quiet", true)] {
        let server = ChatEndpoint::start(|_, attempt| match attempt {
            0 => EndpointReply::Status(429, "retry-after: 2\r\n", ""),
            _ => EndpointReply::text("<answer>B</answer>"),
        });
        let shown = if quiet { EVAL.len() } else { EVAL.len() - 1 };
        let args = [&EVAL[..shown], &["--endpoint", &server.url, "--endpoint-model", "m", "--out", out]].concat();
        let run = run_in(folder.path(), args);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_eq!(run.stderr.contains("asks to wait 2 s (Retry-After)"), !quiet, "{}", run.stderr);
    }
}

#[test]
fn frames_and_settings_are_in_the_requests() {
    let folder = folder_with_questions(2);
    let at = folder.path();
    let server = ChatEndpoint::start(|_, _| EndpointReply::text("<answer>B</answer>"));
    for (form, out) in [("images", "i"), ("vllm", "v"), ("reel", "r")] {
        let args = ["--endpoint", &server.url, "--endpoint-video", form, "--out", out];
        run_in(at, [&EVAL[..], &args].concat()).ok();
    }
    let more = ["--request-field", "max_tokens=null", "--request-field", "max_completion_tokens=7"];
    run_in(at, [&EVAL[..], &["--endpoint", &server.url, "--out", "f", "--endpoint-model", "m"], &more].concat()).ok();
    let own = ["--endpoint", &server.url, "--out", "o", "--endpoint-model", "of vllm"];
    run_in(at, [&EVAL[..], &own].concat()).ok();
    let requests = server.received_requests();
    let parts = |i: usize| requests[i]["messages"][0]["content"].as_array().expect("parts").clone();
    let kinds = |i: usize| {
        parts(i).iter().map(|part| part["type"].as_str().unwrap_or_default().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(0), ["image_url", "image_url", "image_url", "image_url", "text"]);
    assert_eq!(kinds(2), ["video_url", "text"]);
    let url = parts(2)[0]["video_url"]["url"].as_str().expect("a URL").to_string();
    assert!(url.starts_with("data:video/jpeg;base64,") && url.matches(',').count() == 4, "{}", &url[..40]);
    assert_eq!(kinds(4), ["video", "text"]);
    assert_eq!(parts(4)[0]["video"].as_array().map(Vec::len), Some(4));
    assert!(parts(4)[0]["fps"].as_f64().expect("a rate") > 0.0);
    let asked = &requests[0];
    assert_eq!(
        (&asked["temperature"], &asked["top_p"], &asked["max_tokens"]),
        (&json!(0.01), &json!(0.001), &json!(1024))
    );
    assert_eq!(asked["model"], "scripted");
    assert!(asked["seed"].is_u64() && asked.get("top_k").is_none(), "{asked}");
    let changed = &requests[6];
    assert!(changed.get("max_tokens").is_none() && changed["max_completion_tokens"] == 7 && changed["model"] == "m");
    // This server would take these values from the model's folder.
    let own = &requests[8];
    assert_eq!((&own["top_k"], &own["repetition_penalty"]), (&json!(-1), &json!(1.0)));
    let protocol: Value =
        serde_json::from_slice(&fs::read(at.join("v/videoholmes.json")).expect("scores")).expect("JSON");
    assert_eq!(
        (&protocol["overall"], &protocol["protocol"]["options"]["endpoint_video"]),
        (&json!(1.0), &json!("vllm"))
    );
}

/// A server that fails in every possible way gives the same answers as a reliable server. Only the rows without an
/// answer are asked again by the next run.
#[test]
fn failures_are_retried_and_only_unanswered_rows_are_asked_again() {
    let folder = folder_with_questions(16);
    let at = folder.path();
    let say = |body: &Value| {
        EndpointReply::text(format!("<answer>{}</answer>", if number(body).is_multiple_of(3) { "A" } else { "B" }))
    };
    let good = ChatEndpoint::start(move |body, _| say(body));
    let bad = ChatEndpoint::start(move |body, before| match (number(body), before) {
        (3, 0..4) => EndpointReply::Status(500, "", "{\"error\": {\"message\": \"no memory\"}}"),
        (5, _) => EndpointReply::Status(400, "", "{\"error\": {\"message\": \"too long\"}}"),
        (0, 0) => EndpointReply::Status(429, "retry-after: 0\r\n", ""),
        (1, 0) => EndpointReply::Silence,
        (2, 0) => EndpointReply::Cut("<answer>".into()),
        (4, 0) => EndpointReply::Reset,
        (6, 0) => EndpointReply::Body(String::new()),
        (7, 0) => EndpointReply::Body("{\"choices\": []}".into()),
        (8, 0) => EndpointReply::Status(503, "", "busy"),
        _ => say(body),
    });
    let settings = ["--first-wait", "0.01", "--timeout", "1", "--max-attempts", "2", "--out"];
    let args = |server: &ChatEndpoint, out: &'static str, more: &[&'static str]| {
        let args = [&EVAL[..], &["--endpoint", &server.url], &settings, &[out]].concat();
        support::with_options(&args, more).into_iter().map(String::from).collect::<Vec<_>>()
    };
    run_in(at, args(&good, "good", &[])).ok();
    let first = run_in(at, args(&bad, "bad", &[]));
    first.assert_refused(1, &["has answers for 15 of 16 rows; 1 request(s) got no answer", "no memory", "--resume"]);
    let asked = bad.request_count();
    run_in(at, args(&bad, "bad", &[])).assert_refused(1, &["unfinished output", "--resume"]);
    run_in(at, args(&bad, "bad", &["--nframes", "2", "--resume"]))
        .assert_refused(2, &["--nframes: is 2, but it was 4"]);
    // The second run asks only for row 3, twice without success. The third run gets the answer.
    run_in(at, args(&bad, "bad", &["--resume"])).assert_refused(1, &["has answers for 15 of 16 rows"]);
    let last = run_in(at, args(&bad, "bad", &["--resume"]));
    assert_eq!(last.code, Some(1), "{}", last.stderr);
    assert!(last.stderr.contains("1 of 16 rows of videoholmes have an error"), "{}", last.stderr);
    let requests = bad.received_requests();
    assert!(requests[asked..].iter().all(|body| number(body) == 3), "another row was asked again");
    assert_eq!(requests.len() - asked, 3);
    let [good, bad] = ["good", "bad"].map(|run| lines(&at.join(run).join("videoholmes.jsonl")));
    for (i, (a, b)) in good.iter().zip(&bad).enumerate() {
        match i {
            5 => assert!(b["error"].as_str().is_some_and(|e| e.contains("status 400: too long")) && b["output"] == ""),
            _ => assert_eq!(a, b),
        }
    }
    assert!(!at.join("bad/videoholmes.jsonl.partial.early").exists());
}

/// A run that is killed at random moments ends with the bytes of an uninterrupted run. Only the requests in flight at
/// a kill are sent again.
#[test]
fn killed_run_resumes_without_asking_twice() {
    const ROWS: usize = 120;
    const IN_FLIGHT: usize = 6;
    let folder = folder_with_questions(ROWS);
    let at = folder.path();
    // The delays let later rows be answered before earlier ones.
    let wait = |body: &Value| Duration::from_millis(if number(body).is_multiple_of(7) { 60 } else { 5 });
    let server = ChatEndpoint::start(move |body, _| {
        EndpointReply::Late(wait(body), format!("<answer>{}</answer>", number(body)))
    });
    let args = ["--endpoint", &server.url, "--text-only", "--concurrency", &IN_FLIGHT.to_string(), "--out"];
    run_in(at, [&EVAL[..], &args, &["whole"]].concat()).ok();
    let before = server.request_count();
    assert_eq!(before, ROWS);
    let (mut kills, mut random) = (0, 99u64);
    loop {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let enough = server.request_count() + 1 + (random >> 40) as usize % 20;
        let mut command = support::reel();
        command.current_dir(at).args(EVAL).args(args).args(["broken", "--resume"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let is_done = loop {
            if child.try_wait().expect("a state").is_some() {
                break true;
            }
            if server.request_count() >= enough {
                break false;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if is_done {
            break;
        }
        send_signal(child.id(), "-KILL");
        child.wait().expect("it ends");
        kills += 1;
    }
    assert!(kills > 3, "{kills}");
    for name in ["videoholmes.jsonl", "videoholmes.json"] {
        let [a, b] = ["whole", "broken"].map(|run| fs::read(at.join(run).join(name)).expect("a file"));
        assert!(a == b, "{name}: differs from that of the uninterrupted run");
    }
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    server.received_requests()[before..].iter().for_each(|body| *times.entry(number(body)).or_default() += 1);
    assert_eq!(times.len(), ROWS);
    let again: usize = times.values().map(|n| n - 1).sum();
    assert!(again <= kills * IN_FLIGHT, "{again} of {ROWS} rows were asked again in {kills} kills");
}

#[test]
fn the_cap_on_cost_is_not_passed() {
    let folder = folder_with_questions(30);
    let at = folder.path();
    let server = ChatEndpoint::start(|_, _| EndpointReply::text("<answer>B</answer>"));
    // A request has 150 tokens and costs 0.15 US cents. The maximum cost that is reserved for it, by its bytes and
    // its token limit, is higher.
    let prices = ["--price", "10,10", "--max-cost", "0.02"];
    let args = ["--endpoint", &server.url, "--text-only", "--max-new-tokens", "20", "--out", "a"];
    let done = run_in(at, [&EVAL[..], &args, &prices].concat());
    done.assert_refused(1, &["of $0.02, $0.01", "raise the cap", "--resume"]);
    let spent = server.request_count() as f64 * (PROMPT_TOKENS + ANSWER_TOKENS) as f64 * 10.0 * 1e-6;
    assert!((0.005..=0.02).contains(&spent), "{spent}");
    let rest = ["--endpoint", &server.url, "--text-only", "--max-new-tokens", "20", "--out", "a", "--resume"];
    run_in(at, [&EVAL[..], &rest].concat()).ok();
    assert_eq!(server.request_count(), 30);
}

#[test]
fn wrong_servers_and_options_are_refused() {
    let folder = folder_with_questions(2);
    let at = folder.path();
    let down = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let down = format!("http://{down}/v1");
    let server =
        ChatEndpoint::start(|_, _| EndpointReply::Status(401, "", "{\"error\": {\"message\": \"who are you\"}}"));
    let url = server.url.as_str();
    let refused = |more: &[&str], code: i32, words: &[&str]| {
        let args = support::with_options(&EVAL, &["--out", "x", "--first-wait", "0"]);
        let done = run_in(at, support::with_options(&args, more));
        done.assert_refused(code, words);
    };
    refused(&["--endpoint", &down], 1, &["cannot be reached"]);
    refused(&["--endpoint", url], 1, &["status 401: who are you", "check the API key"]);
    fs::remove_dir_all(at.join("x")).expect("removed");
    refused(&["--endpoint", "localhost:8000"], 2, &["--endpoint: `localhost:8000` is not an HTTP URL"]);
    refused(&["--endpoint", url, "--model", "tiny"], 2, &["--model"]);
    refused(&["--endpoint", url, "--concurrency", "0"], 2, &["--concurrency: is 0"]);
    refused(&["--endpoint", url, "--max-cost", "1"], 2, &["--max-cost: needs the prices"]);
    refused(&["--endpoint", url, "--price=-1,2"], 2, &["--price"]);
    refused(&["--endpoint", url, "--timeout", "0"], 2, &["--timeout"]);
    refused(&["--endpoint", url, "--request-field", "x"], 2, &["--request-field"]);
    refused(&["--endpoint", url, "--api-key-env", "NO_SUCH_VARIABLE"], 2, &["--api-key-env", "not set"]);
    refused(&["--endpoint-model", "m"], 2, &["--endpoint"]);
}
