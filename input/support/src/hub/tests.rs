//! Tests of downloads from a small hub server that runs in the test program.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

type Files = BTreeMap<String, Vec<u8>>;

/// An HTTP server with one repository, which is both a model and a data set. It closes the connection in the middle
/// of the first answer for each weight file.
struct Server {
    endpoint: String,
    /// The paths of all requests, each with the token in the request.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts the server. The content of the file `damaged` differs from its checksum in the first `damages` answers.
    fn start(files: Files, damaged: &'static str, damages: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files, &log, (damaged, damages));
            }
        });
        Self { endpoint, requests }
    }

    fn hub(&self, cache: &Path) -> Hub {
        let cache = cache.to_path_buf();
        Hub {
            cache,
            endpoint: self.endpoint.clone(),
            token: Some("hf_x".into()),
            token_source: None,
            offline: None,
            lacks_home: false,
        }
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn answer(mut stream: TcpStream, files: &Files, log: &Mutex<Vec<String>>, (damaged, damages): (&str, usize)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let path = first.split(' ').nth(1).unwrap().to_string();
    let (mut from, mut token) = (0, false);
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            from = range.split('-').next().unwrap().parse().unwrap();
        }
        token |= line.eq_ignore_ascii_case("authorization: bearer hf_x");
    }
    let times = {
        let mut log = log.lock().unwrap();
        log.push(path.clone());
        log.iter().filter(|asked| **asked == path).count()
    };
    let listing = json!({"sha": COMMIT, "siblings": files.iter().map(description).collect::<Vec<_>>()});
    let listing = listing.to_string().into_bytes();
    let listings =
        ["/api/models/org/name/revision/main?blobs=true", "/api/datasets/org/name/revision/refs%2Fpr%2F1?blobs=true"];
    let file = path.strip_prefix("/datasets").unwrap_or(&path).strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let file = file.map(|name| name.replace("%20", " ")).filter(|name| token && files.contains_key(name));
    let (mut bytes, name) = match file {
        Some(name) => (files[&name].clone(), name),
        None if listings.contains(&path.as_str()) => (listing, String::new()),
        None => {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
    };
    if name == damaged && times <= damages {
        bytes[0] ^= 1;
    }
    let rest = &bytes[from.min(bytes.len())..];
    let (status, range) = match name.is_empty() {
        true => ("200 OK", String::new()),
        false => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len().max(1) - 1, bytes.len());
            ("206 Partial Content", range)
        }
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}Connection: close\r\n\r\n", rest.len());
    let cut = if name.ends_with(".safetensors") && times == 1 { rest.len() / 2 } else { rest.len() };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&rest[..cut]));
}

/// Returns the hub's description of a file: weights and archives are in the hub's storage for large files, all others
/// are in git.
fn description((name, content): (&String, &Vec<u8>)) -> Value {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let blob = hex(&Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize());
    let mut file = json!({"rfilename": name, "size": content.len(), "blobId": blob});
    if name.ends_with(".safetensors") || name.ends_with(".zip") {
        file["blobId"] = "0".repeat(40).into();
        file["lfs"] = json!({"sha256": hex(&Sha256::digest(content)), "size": content.len()});
    }
    file
}

fn model() -> Repository {
    Repository::parse_model("org/name").unwrap()
}

fn model_files() -> Files {
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
fn model_is_downloaded_once_and_interrupted_files_go_on() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_files(), "", 0);
    let hub = server.hub(cache.path());
    let mut seen = Vec::new();
    let folder = hub.download_if_missing(&model(), &mut |p| seen.push((p.file.to_string(), p.done, p.total))).unwrap();
    assert_eq!(folder, cache.path().join("models--org--name/snapshots").join(COMMIT));
    for (name, bytes) in model_files() {
        let wanted = name != "README.md" && name != ".gitattributes";
        assert_eq!(fs::read(folder.join(&name)).ok(), wanted.then_some(bytes), "{name}");
    }
    assert!(seen.contains(&("model-00001-of-00002.safetensors".to_string(), 100_000, Some(100_000))), "{seen:?}");
    let requests = server.count();
    let offline = hub.clone().without_downloads("HF_HUB_OFFLINE");
    for hub in [&hub, &offline] {
        assert_eq!(hub.download_if_missing(&model(), &mut |_| ()).unwrap(), folder);
    }
    assert_eq!(server.count(), requests, "the second call used the cache");
    // Only the missing shard is downloaded again.
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = offline.download_if_missing(&model(), &mut |_| ()).unwrap_err().to_string();
    assert!(error.starts_with("org/name: is not complete") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let by_option =
        hub.clone().without_downloads("--offline").download_if_missing(&model(), &mut |_| ()).unwrap_err().to_string();
    assert!(by_option.contains("because --offline is set"), "{by_option}");
    hub.download_if_missing(&model(), &mut |_| ()).unwrap();
    assert_eq!(server.count(), requests + 2);
    // With a commit as the revision, the snapshot is found without the hub.
    let commit = Repository { revision: COMMIT.into(), ..model() };
    assert_eq!(offline.download_if_missing(&commit, &mut |_| ()).unwrap(), folder);
}

#[test]
fn file_that_differs_from_its_checksum_is_downloaded_again() {
    for damaged in ["tokenizer.json", "model-00002-of-00002.safetensors"] {
        let cache = tempfile::tempdir().unwrap();
        // The first answer for a weight file is damaged and ends in its middle. The second answer has the rest.
        let server = Server::start(model_files(), damaged, 1);
        let folder = server.hub(cache.path()).download_if_missing(&model(), &mut |_| ()).unwrap();
        assert_eq!(fs::read(folder.join(damaged)).unwrap(), model_files()[damaged]);

        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(model_files(), damaged, usize::MAX);
        let error = server.hub(cache.path()).download_if_missing(&model(), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(damaged) && error.contains("SHA-") && error.contains("downloaded twice"), "{error}");
        let snapshot = cache.path().join("models--org--name/snapshots").join(COMMIT);
        assert!(!snapshot.join(damaged).exists() && server.hub(cache.path()).cached_folder(&model()).is_none());
    }
}

#[test]
fn data_set_is_unpacked_at_its_revision() {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("clips/a.mp4", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(b"frames").unwrap();
    let files = Files::from([
        ("train.jsonl".to_string(), b"{}".to_vec()),
        ("videos/first part.zip".to_string(), zip.finish().unwrap().into_inner()),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(files, "", 0);
    let reference = DatasetReference::parse("hf://datasets/org/name@refs%2Fpr%2F1/train.jsonl").unwrap();
    let hub = server.hub(cache.path());
    let folder = hub.download_if_missing(&reference.repository, &mut |_| ()).unwrap();
    assert_eq!(folder, cache.path().join("datasets--org--name/snapshots").join(COMMIT));
    assert_eq!(fs::read(folder.join("train.jsonl")).unwrap(), b"{}");
    assert_eq!(fs::read(folder.join("videos/clips/a.mp4")).unwrap(), b"frames");
    let requests = server.count();
    assert_eq!(hub.download_if_missing(&reference.repository, &mut |_| ()).unwrap(), folder);
    assert_eq!(server.count(), requests);
    assert_eq!(fs::read(cache.path().join("datasets--org--name/refs/refs/pr/1")).unwrap(), COMMIT.as_bytes());
}

#[test]
fn processes_of_a_job_download_once() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_files(), "", 0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| server.hub(cache.path()).download_if_missing(&model(), &mut |_| ()).unwrap());
        }
    });
    let requests = server.requests.lock().unwrap().clone();
    let of_config = requests.iter().filter(|path| path.ends_with("config.json")).count();
    assert_eq!(of_config, 1, "{requests:?}");
}

#[test]
fn errors_are_one_line() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_files(), "", 0);
    let hub = server.hub(cache.path());
    let other = Repository::parse_model("org/other@v1").unwrap();
    let none = hub.download_if_missing(&other, &mut |_| ()).unwrap_err().to_string();
    assert!(
        none.starts_with("org/other@v1: is not a folder") && none.contains("404") && !none.contains('\n'),
        "{none}"
    );
    assert!(none.contains("hf auth login"), "{none}");
    let gone = Hub { endpoint: "http://127.0.0.1:1".into(), ..hub };
    let error = gone.download_if_missing(&model(), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("cannot be downloaded") && error.contains("check the name and the network"), "{error}");
    assert!(!cache.path().join("models--org--name").exists());
}
