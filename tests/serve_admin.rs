//! `POST /admin/weights` of `reel serve`: before and after the request, answers equal those of servers with the old
//! and with the new model. Requests in flight finish. If the new weights do not fit the model, the old weights stay
//! in service. Only local clients may send the request.

#[path = "support/server.rs"]
mod server;
mod support;

use std::fs;
use std::io::Read;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use server::{REQUEST_TIMEOUT, Reply, Server, question, read_reply, text, write_request};
use support::{golden, run};
use tempfile::TempDir;

const WEIGHTS: &str = "/admin/weights";

/// Creates a tiny model folder whose random weights depend on `seed`.
fn tiny(parent: &Path, seed: u64) -> PathBuf {
    let folder = parent.join(format!("seed{seed}"));
    run(["init", "--preset", "tiny", "--seed", &seed.to_string(), "--out", text(&folder)]).ok();
    folder
}

fn replace(server: &Server, folder: &Path) -> Reply {
    server.send("POST", WEIGHTS, "", &json!({"model": folder}).to_string())
}

/// Returns the texts and log-probabilities of the answers to a text prompt and to an image.
fn answers(server: &Server) -> Vec<Value> {
    let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
    let image = json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{png}")}},
        {"type": "text", "text": "What is this?"},
    ]}]);
    // The prompt is long enough to be stored in the prefix cache.
    let long = question(&"Tell me more. ".repeat(40));
    let ask = |messages: Value| {
        let body = json!({"messages": messages, "max_tokens": 12, "temperature": 0, "logprobs": true});
        server.chat(&body).ok()["choices"][0].take()
    };
    vec![ask(long), ask(image)]
}

fn model_entry(server: &Server) -> Value {
    server.send("GET", "/v1/models", "", "").ok()["data"][0].take()
}

fn replacements(server: &Server) -> String {
    let metrics = server.send("GET", "/metrics", "", "").body;
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("reel:weight_replacements_total{model_name=\"seed1\"} "));
    line.unwrap_or_else(|| panic!("{metrics}")).to_string()
}

#[test]
fn answers_are_those_of_a_server_with_the_new_model() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (tiny(folder.path(), 1), tiny(folder.path(), 2));
    let wanted = answers(&Server::start_with(TempDir::new().unwrap(), two.clone(), &[]));
    let server = Server::start_with(TempDir::new().unwrap(), one.clone(), &[]);
    let before = answers(&server);
    assert_ne!(before, wanted);
    assert_eq!((answers(&server), replacements(&server).as_str()), (before.clone(), "0"));
    assert_eq!(model_entry(&server)["root"], "seed1");
    let said = replace(&server, &two).ok();
    assert_eq!((&said["model"], &said["requests_recomputed"]), (&json!(two), &json!(0)));
    assert!(said["seconds"].as_f64().unwrap() > 0.0, "{said}");
    assert_eq!(answers(&server), wanted, "cached keys or vision tokens of the old weights are used");
    assert_eq!(replacements(&server), "1");
    let entry = model_entry(&server);
    assert_eq!((&entry["id"], &entry["root"]), (&json!("seed1"), &json!("seed2")));
    replace(&server, &one).ok();
    assert_eq!(answers(&server), before);
}

#[test]
fn a_training_checkpoint_and_an_adapter_replace_the_weights() {
    let folder = TempDir::new().unwrap();
    let base = golden("train/model_a");
    let data = golden("train/sft_all_tokens/data.jsonl");
    let train = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let args = ["sft", "--model", text(&base), "--data", text(&data), "--out", text(&out), "--labels", "text"];
        let rest = ["--learning-rate", "1e-1", "--save-steps", "1", "--max-steps", "1", "--dtype", "f32", "--quiet"];
        run([&args[..], &rest, more].concat()).ok();
        out.join("checkpoint-1")
    };
    let server = Server::start_with(TempDir::new().unwrap(), base.clone(), &[]);
    let body = json!({"messages": question("x"), "max_tokens": 8, "temperature": 0, "logprobs": true});
    let answer = |server: &Server| server.chat(&body).ok()["choices"][0].take();
    let before = answer(&server);
    for checkpoint in [train("full", &[]), train("lora", &["--lora-r", "4"])] {
        let wanted = answer(&Server::start_with(TempDir::new().unwrap(), checkpoint.clone(), &[]));
        replace(&server, &checkpoint).ok();
        assert_eq!(answer(&server), wanted, "{}", checkpoint.display());
        assert_ne!(wanted, before);
    }
    replace(&server, &base).ok();
    assert_eq!(answer(&server), before);
}

#[test]
fn requests_in_flight_finish_with_the_new_weights() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (tiny(folder.path(), 1), tiny(folder.path(), 2));
    let server = Server::start_with(TempDir::new().unwrap(), one, &["--batch-size", "2"]);
    let body =
        json!({"messages": question("x"), "max_tokens": 1500, "temperature": 0, "stream": true, "ignore_eos": true,
        "stream_options": {"include_usage": true}})
        .to_string();
    // Three requests share two decode slots, so one of them waits.
    let mut streams: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = server.connect();
            write_request(&mut stream, "POST", "/v1/chat/completions", "", &body);
            stream
        })
        .collect();
    let mut start = [0; 600];
    streams[0].read_exact(&mut start).unwrap();
    let said = replace(&server, &two).ok();
    assert!((1..=2).contains(&said["requests_recomputed"].as_u64().unwrap()), "{said}");
    for (i, stream) in streams.iter_mut().enumerate() {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.contains("\"completion_tokens\":1500") && rest.contains("data: [DONE]"), "{i}: {rest}");
    }
    server.assert_still_answers();
}

#[test]
fn a_second_replacement_waits_its_turn() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (tiny(folder.path(), 1), tiny(folder.path(), 2));
    let server = Server::start_with(TempDir::new().unwrap(), one, &[]);
    let body = json!({"model": two}).to_string();
    // The requests are sent at the same time: each is answered or refused, and at least one is answered.
    let mut streams: Vec<TcpStream> = (0..24).map(|_| server.connect()).collect();
    streams.iter_mut().for_each(|stream| write_request(stream, "POST", WEIGHTS, "", &body));
    let (mut answered, mut refused) = (0, 0);
    for stream in &mut streams {
        let reply = read_reply(stream);
        match reply.status {
            200 => answered += 1,
            _ => refused += usize::from(reply.error(409)["code"] == "conflict"),
        }
    }
    assert!(answered >= 1 && answered + refused == 24, "{answered} {refused}");
    assert!(refused >= 1, "24 replacements, and no two at the same time");
    assert_eq!(replacements(&server), answered.to_string());
}

/// Copies a model folder to `name` and changes one of its text files.
fn edited(model: &Path, name: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PathBuf {
    let copy = model.with_file_name(name);
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let path = copy.join(file);
    fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
    copy
}

#[test]
fn what_does_not_fit_leaves_the_old_weights_in_service() {
    let folder = TempDir::new().unwrap();
    let one = tiny(folder.path(), 1);
    let server = Server::start_with(TempDir::new().unwrap(), one.clone(), &[]);
    let before = answers(&server);
    let replaced = |from: &str, to: &str| {
        let (from, to) = (from.to_string(), to.to_string());
        move |bytes: Vec<u8>| {
            let file = String::from_utf8(bytes).unwrap();
            assert!(file.contains(&from), "{from} is not in {file}");
            file.replacen(&from, &to, 1).into_bytes()
        }
    };
    let config: Value = serde_json::from_slice(&fs::read(one.join("config.json")).unwrap()).unwrap();
    let layers = config["num_hidden_layers"].as_u64().unwrap();
    let fewer = folder.path().join("fewer");
    let count = (layers - 1).to_string();
    run(["init", "--preset", "tiny", "--layers", &count, "--out", text(&fewer)]).ok();
    let other_norm = edited(&one, "norm", "config.json", |bytes| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config["rms_norm_eps"] = json!(0.5);
        config.to_string().into_bytes()
    });
    let other_token = edited(&one, "token", "tokenizer.json", replaced("\"<|im_start|>\"", "\"<|im_begin|>\""));
    let cut = edited(&one, "cut", "model.safetensors", |bytes| bytes[..bytes.len() - 1].to_vec());
    let header = edited(&one, "header", "model.safetensors", |mut bytes| {
        bytes[9] = 0xff;
        bytes
    });
    let shape = edited(&one, "shape", "config.json", |bytes| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config["num_hidden_layers"] = json!(layers);
        config.to_string().into_bytes()
    });
    fs::copy(fewer.join("model.safetensors"), shape.join("model.safetensors")).unwrap();
    let not_finite = edited(&one, "nan", "model.safetensors", |mut bytes| {
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
        bytes
    });
    let none = folder.path().join("none");
    for (model, words) in [
        (&none, &["none/config.json: cannot be read"][..]),
        (&fewer, &["config.json: num_hidden_layers: is ", "the model that is served has "]),
        (&other_norm, &["config.json: rms_norm_eps: is 0.5, but the model that is served has "]),
        (&other_token, &["tokenizer.json: token ", "im_begin"]),
        (&cut, &["model.safetensors"]),
        (&header, &["model.safetensors"]),
        (&shape, &["is missing; expected shape"]),
        (&not_finite, &["model.safetensors: ", "NaN or infinite"]),
        (&golden("lora/all_linear"), &["base_model_name_or_path"]),
    ] {
        let error = replace(&server, model).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(words.iter().all(|word| message.contains(word)) && message.contains("; "), "{message}");
        assert_eq!(error["param"], "model", "{message}");
    }
    for (body, param) in [
        (json!({}), json!("model")),
        (json!({"model": 3}), json!("model")),
        (json!({"model": one, "force": true}), json!("force")),
        (json!([]), Value::Null),
    ] {
        assert_eq!(server.send("POST", WEIGHTS, "", &body.to_string()).error(400)["param"], param);
    }
    server.send("GET", WEIGHTS, "", "").error(405);
    assert_eq!((answers(&server), replacements(&server).as_str()), (before, "0"));
    assert_eq!(model_entry(&server)["root"], "seed1");
}

/// Returns an address of this machine other than its loopback address, if it has one. No packet is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn only_local_clients_with_a_key_may_replace_weights() {
    let folder = TempDir::new().unwrap();
    let one = tiny(folder.path(), 1);
    let server =
        Server::start_with(TempDir::new().unwrap(), one.clone(), &["--api-key", "secret", "--host", "0.0.0.0"]);
    let body = json!({"model": one}).to_string();
    let key = "Authorization: Bearer secret\r\n";
    let send = |headers: &str| server.send("POST", WEIGHTS, headers, &body);
    assert_eq!(send("").error(401)["code"], "invalid_api_key");
    assert_eq!(send("Authorization: Bearer wrong\r\n").error(401)["type"], "authentication_error");
    for header in [
        "x-forwarded-server: a",
        "X-Forwarded-Prefix: /a",
        "X_Forwarded_For: 127.0.0.1",
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: for=::1",
        "x-real-ip: 127.0.0.1",
        "Via: 1.1 proxy",
        "Origin: http://127.0.0.1:8000",
    ] {
        let error = send(&format!("{key}{header}\r\n")).error(403);
        assert_eq!((&error["type"], &error["code"]), (&json!("permission_error"), &json!("forbidden")), "{header}");
    }
    send(key).ok();
    if let Some(own) = own_address() {
        for headers in [key, ""] {
            let mut stream = TcpStream::connect((own, server.address.port())).unwrap();
            stream.set_read_timeout(Some(REQUEST_TIMEOUT)).unwrap();
            write_request(&mut stream, "POST", WEIGHTS, headers, &body);
            let error = read_reply(&mut stream).error(403);
            assert!(error["message"].as_str().unwrap().contains("server's machine"), "{error}");
        }
    }
    assert_eq!(replacements(&server), "1");
}
