//! LoRA adapters of `reel serve`: a request with an adapter gets the answer of `reel generate --adapter`, even while
//! requests with other adapters run. Adapters are loaded, replaced and unloaded while the server runs.

#[path = "support/server.rs"]
mod server;
mod support;

use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};
use server::{Reply, Server, question, text};
use support::{golden, run};
use tempfile::TempDir;

/// Writes two adapters for the model `train/model_a`, with different ranks and on different layers.
fn adapters(folder: &Path) -> [PathBuf; 2] {
    let (base, data) = (golden("train/model_a"), golden("train/sft_all_tokens/data.jsonl"));
    let train = |name: &str, more: &[&str]| {
        let out = folder.join(name);
        let args = ["sft", "--model", text(&base), "--data", text(&data), "--out", text(&out), "--labels", "text"];
        let rest = ["--learning-rate", "1e-1", "--max-steps", "2", "--dtype", "f32", "--quiet"];
        run([&args[..], &rest, more].concat()).ok();
        out
    };
    [train("small", &["--lora-r", "3"]), train("large", &["--lora-r", "9", "--lora-target-modules", "all-linear"])]
}

fn lora(name: &str, folder: &Path) -> String {
    format!("{name}={}", folder.display())
}

fn start(args: &[&str]) -> Server {
    Server::start_with(TempDir::new().unwrap(), golden("train/model_a"), args)
}

fn body(model: &str, words: &str) -> Value {
    json!({"model": model, "messages": question(words), "max_tokens": 20, "temperature": 0, "logprobs": true})
}

fn answer(server: &Server, model: &str, words: &str) -> Value {
    let mut answer = server.chat(&body(model, words)).ok();
    assert_eq!(answer["model"], model);
    answer["choices"][0].take()
}

fn load(server: &Server, name: &str, folder: &Path, in_place: bool) -> Reply {
    let body = json!({"lora_name": name, "lora_path": folder, "load_inplace": in_place});
    server.send("POST", "/v1/load_lora_adapter", "", &body.to_string())
}

fn unload(server: &Server, name: &str) -> Reply {
    server.send("POST", "/v1/unload_lora_adapter", "", &json!({"lora_name": name}).to_string())
}

#[test]
fn requests_choose_an_adapter_by_its_name() {
    let folder = TempDir::new().unwrap();
    let [small, large] = adapters(folder.path());
    let server = start(&["--lora", &lora("small", &small), "--lora", &lora("large", &large)]);
    let list = server.send("GET", "/v1/models", "", "").ok();
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["model_a", "large", "small"]);
    let one = server.send("GET", "/v1/models/large", "", "").ok();
    assert_eq!((&one["parent"], &one["root"]), (&json!("model_a"), &json!(large)));

    // A server of only this adapter, and `reel generate`, give the same bits.
    let mut alone = Vec::new();
    for (name, folder) in [("model_a", None), ("small", Some(&small)), ("large", Some(&large))] {
        let only = match folder {
            Some(folder) => Server::start_with(TempDir::new().unwrap(), folder.clone(), &[]),
            None => start(&[]),
        };
        let wanted = answer(&only, name, "a b");
        assert_eq!(answer(&server, name, "a b"), wanted, "{name}");
        alone.push(wanted);
    }
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2]);
    let generated = server.generate_with_adapter(&large, &body("large", "a b"));
    assert_eq!(generated["text"], alone[2]["message"]["content"]);

    // Requests for all models run at the same time.
    let server = &server;
    thread::scope(|scope| {
        for i in 0..24 {
            let alone = &alone;
            scope.spawn(move || {
                let name = ["model_a", "small", "large"][i % 3];
                assert_eq!(answer(server, name, "a b"), alone[i % 3], "request {i} of {name}");
            });
        }
    });
    let unknown = server.chat(&body("medium", "x"));
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("\\\"model_a\\\", \\\"large\\\", \\\"small\\\""), "{}", unknown.body);
}

#[test]
fn adapters_are_loaded_replaced_and_unloaded() {
    let folder = TempDir::new().unwrap();
    let [small, large] = adapters(folder.path());
    let server = start(&[]);
    let base = answer(&server, "model_a", "a b");
    let said = load(&server, "night", &small, false).ok();
    assert!(said["seconds"].as_f64().unwrap() > 0.0 && said["lora_name"] == "night", "{said}");
    let of_small = answer(&server, "night", "a b");
    assert_eq!(answer(&server, "model_a", "a b"), base);
    assert_ne!(of_small, base);

    let taken = load(&server, "night", &large, false);
    assert!(taken.status == 400 && taken.body.contains("is loaded already"), "{}", taken.body);
    load(&server, "night", &large, true).ok();
    let of_large = answer(&server, "night", "a b");
    assert!(of_large != of_small && of_large != base);
    load(&server, "day", &small, false).ok();
    assert_eq!((answer(&server, "night", "a b"), answer(&server, "day", "a b")), (of_large, of_small.clone()));

    assert_eq!(unload(&server, "night").ok()["lora_name"], "night");
    assert_eq!(server.chat(&body("night", "x")).status, 404);
    let unknown = unload(&server, "night").error(404);
    assert_eq!(unknown["message"], "lora_name: there is no adapter \"night\" here; this server has \"day\"");
    let own = unload(&server, "model_a").error(400);
    assert_eq!(own["param"], "lora_name");
    assert!(own["message"].as_str().unwrap().contains("\"model_a\" is the model itself, not an adapter; "), "{own}");
    // While other adapters are loaded, the weights cannot be replaced by those of a model with an adapter.
    let replace = |folder: &Path| server.send("POST", "/admin/weights", "", &json!({"model": folder}).to_string());
    let refused = replace(&large).error(400);
    let words = "cannot replace the weights while the adapters \"day\" are loaded; unload them first";
    assert!(refused["param"] == "model" && refused["message"].as_str().unwrap().contains(words), "{refused}");
    assert_eq!((answer(&server, "model_a", "a b"), answer(&server, "day", "a b")), (base, of_small));
}

#[test]
fn what_cannot_be_loaded_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let [small, _] = adapters(folder.path());
    let server = start(&["--api-key", "secret"]);
    let send = |path: &str, headers: &str, body: &Value| {
        server.send("POST", path, &format!("Authorization: Bearer secret\r\n{headers}"), &body.to_string())
    };
    let load = "/v1/load_lora_adapter";
    let damaged = folder.path().join("damaged");
    run(["init", "--preset", "tiny", "--out", text(&damaged)]).ok();
    let fine = json!({"lora_name": "a", "lora_path": small});
    for (body, words) in [
        (json!({"lora_path": small}), "lora_name: is missing"),
        (json!({"lora_name": "a"}), "lora_path: is missing"),
        (json!({"lora_name": "", "lora_path": small}), "lora_name: \\\"\\\" is not a name"),
        (json!({"lora_name": "model_a", "lora_path": small}), "is the name of the model"),
        (json!({"lora_name": "a", "lora_path": "nowhere"}), "nowhere: does not exist"),
        (json!({"lora_name": "a", "lora_path": damaged}), "adapter_config.json"),
        (json!({"lora_name": "a", "lora_path": small, "rank": 3}), "rank: is not a field"),
        (json!({"lora_name": 3, "lora_path": small}), "lora_name: is 3"),
    ] {
        let reply = send(load, "", &body);
        assert!(reply.status == 400 && reply.body.contains(words), "{body}: {} {}", reply.status, reply.body);
    }
    let of_another = golden("lora/all_linear");
    let other = Server::start(&[]);
    let reply = other.send("POST", load, "", &json!({"lora_name": "a", "lora_path": of_another}).to_string());
    assert!(reply.status == 400 && reply.body.contains("adapter_model.safetensors"), "{}", reply.body);
    other.assert_still_answers();
    assert_eq!(send(load, "X-Forwarded-For: 10.0.0.1\r\n", &fine).status, 403);
    assert_eq!(server.send("POST", load, "", &fine.to_string()).status, 401);
    let list = server.send("GET", "/v1/models", "Authorization: Bearer secret\r\n", "").ok();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);

    // A server whose model folder is an adapter cannot load other adapters.
    let adapted = Server::start_with(TempDir::new().unwrap(), small.clone(), &[]);
    let reply = adapted.send("POST", load, "", &fine.to_string());
    assert!(
        reply.status == 400 && reply.body.contains("the served model already has an adapter of its own"),
        "{}",
        reply.body
    );
    adapted.assert_still_answers();
}

#[test]
fn wrong_options_are_refused_before_the_model_is_loaded() {
    let folder = TempDir::new().unwrap();
    let [small, _] = adapters(folder.path());
    let base = golden("train/model_a");
    for (args, words) in [
        (vec!["--lora", "x"], "--lora: x has no name"),
        (vec!["--lora", "x=nowhere"], "--lora: nowhere is not the folder of an adapter"),
        (vec!["--adapter", text(&small), "--lora", &lora("x", &small)], "--lora: the served model already has"),
        (vec!["--lora", &lora("model_a", &small)], "is the name of the model"),
        (vec!["--lora", &lora("x", &small), "--lora", &lora("x", &small)], "is loaded already"),
    ] {
        let run = run([&["serve", "--model", text(&base), "--port", "0", "--device", "cpu"], &args[..]].concat());
        assert!(run.stderr.contains(words) && run.code != Some(0), "{args:?}: {}", run.stderr);
    }
}
