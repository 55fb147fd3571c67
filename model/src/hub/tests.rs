//! Tests of downloads from a small hub server that runs in the test program.

use super::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// An HTTP server with the files of a model. It closes the connection in the middle of the first answer for each
/// weight file.
struct Server {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

fn serve(files: BTreeMap<String, Vec<u8>>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &files, &log);
        }
    });
    Server { endpoint, asked }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let path = first.split(' ').nth(1).unwrap().to_string();
    let mut from = 0;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            from = range.split('-').next().unwrap().parse().unwrap();
        }
    }
    let times = {
        let mut log = log.lock().unwrap();
        log.push(path.clone());
        log.iter().filter(|asked| **asked == path).count()
    };
    let listing =
        json!({"sha": COMMIT, "siblings": files.keys().map(|name| json!({"rfilename": name})).collect::<Vec<_>>()});
    let listing = listing.to_string().into_bytes();
    let name = path.rsplit('/').next().unwrap();
    let (bytes, ranged) = match path.as_str() {
        "/api/models/org/model/revision/main" => (&listing, false),
        _ if path.starts_with(&format!("/org/model/resolve/{COMMIT}/")) && files.contains_key(name) => {
            (&files[name], true)
        }
        _ => {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
    };
    let rest = &bytes[from.min(bytes.len())..];
    let status = if ranged { "206 Partial Content" } else { "200 OK" };
    let range = if ranged {
        format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len().max(1) - 1, bytes.len())
    } else {
        String::new()
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}Connection: close\r\n\r\n", rest.len());
    let cut = if name.ends_with(".safetensors") && times == 1 { rest.len() / 2 } else { rest.len() };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&rest[..cut]));
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let index =
        json!({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}});
    BTreeMap::from([
        ("config.json".into(), b"{}".to_vec()),
        ("tokenizer.json".into(), b"{}".to_vec()),
        ("model.safetensors.index.json".into(), index.to_string().into_bytes()),
        ("model-00001-of-00002.safetensors".into(), (0..=255).cycle().take(100_000).collect()),
        ("model-00002-of-00002.safetensors".into(), vec![7; 10]),
        ("README.md".into(), b"no".to_vec()),
        (".gitattributes".into(), b"no".to_vec()),
    ])
}

#[test]
fn downloads_once_and_retries_interrupted_files() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(files());
    let hub = Hub { cache: cache.path().to_path_buf(), endpoint: server.endpoint, token: None, offline: None };
    let mut seen = Vec::new();
    let folder = hub.folder("org/model", &mut |p| seen.push((p.file.to_string(), p.done, p.total))).unwrap();
    assert_eq!(folder, cache.path().join("models--org--model/snapshots").join(COMMIT));
    for (name, bytes) in files() {
        let wanted = name != "README.md" && name != ".gitattributes";
        assert_eq!(fs::read(folder.join(&name)).ok(), wanted.then_some(bytes), "{name}");
    }
    assert!(seen.contains(&("model-00001-of-00002.safetensors".to_string(), 100_000, Some(100_000))), "{seen:?}");
    let asked = server.asked.lock().unwrap().len();
    let offline = Hub { offline: Some("HF_HUB_OFFLINE"), ..hub.clone() };
    for hub in [&hub, &offline] {
        assert_eq!(hub.folder("org/model", &mut |_| ()).unwrap(), folder);
    }
    assert_eq!(server.asked.lock().unwrap().len(), asked, "the second call used the cache");
    // Only a missing shard is downloaded again.
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = offline.folder("org/model", &mut |_| ()).unwrap_err().to_string();
    assert!(error.starts_with("org/model: is not complete") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let by_option = Hub { offline: Some("--offline"), ..hub.clone() };
    assert!(by_option.folder("org/model", &mut |_| ()).unwrap_err().to_string().contains("because --offline is set"));
    hub.folder("org/model", &mut |_| ()).unwrap();
    assert_eq!(server.asked.lock().unwrap().len(), asked + 2);
}

#[test]
fn errors_are_one_line() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(files());
    let hub = Hub { cache: cache.path().to_path_buf(), endpoint: server.endpoint, token: None, offline: None };
    let none = hub.folder("org/other", &mut |_| ()).unwrap_err().to_string();
    assert!(none.starts_with("org/other: is not a folder") && none.contains("404") && !none.contains('\n'), "{none}");
    let gone = Hub { endpoint: "http://127.0.0.1:1".into(), ..hub };
    let error = gone.folder("org/model", &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("cannot be downloaded") && error.contains("check the name and the network"), "{error}");
    assert!(!cache.path().join("models--org--model").exists());
}

#[test]
fn requests_valid_ids_only() {
    for id in ["Qwen/Qwen2.5-VL-3B-Instruct", "a/b"] {
        assert!(is_id(id), "{id}");
    }
    for not in ["", "a", "/a/b", "a/b/c", "../b", "a/..", "a b/c", "./a", "a/", "~/x"] {
        assert!(!is_id(not), "{not}");
        if !not.is_empty() {
            let error = resolve(&format!("no-such-folder/x/{not}"), &mut |_| ()).unwrap_err().to_string();
            assert!(error.contains("there is no such folder; give a model folder"), "{error}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(resolve(folder.path().to_str().unwrap(), &mut |_| ()).unwrap(), folder.path());
}
