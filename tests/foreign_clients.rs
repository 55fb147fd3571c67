//! Two evaluation programs, lmms-eval and VLMEvalKit, send questions about synthetic clips to `reel serve` with the
//! client code of their Python packages. The answers equal those of `reel generate`. The token positions, which
//! encode the times of the frames, equal those of `reel preprocess`.
//!
//! The tests need a Python environment with these packages, whose `python` program `REEL_CLIENTS_PYTHON` names; by
//! default it is in `target/clients` (docs/eval-kits.md has the commands). Without the environment the tests are
//! skipped.

#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/tensors.rs"]
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, copy};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use reel_tools::showcase::clips::{CLIP_FPS, CLIP_FRAMES, CLIP_SIDE, ClipSet, make_clips};
use serde_json::{Value, json};
use server::{Server, text, write_request};
use support::http::read_request;
use support::{run, tiny_model};
use tempfile::TempDir;
use tensors::{Tensor, read_tensors};

/// The clips with a question about each. `slow` has the same frames as `fast`, at a lower frame rate.
const QUESTIONS: [(&str, &str); 3] =
    [("fast", "What moves fast?"), ("slow", "What moves slowly?"), ("other", "Which colour is it?")];
const SLOW_FPS: i32 = 1;

/// Number of frames of each clip that the model sees.
const FRAMES: usize = 4;

/// The sampling options with which `reel generate` samples as in the requests of the evaluation programs.
const SAMPLING: [&str; 6] = ["--max-new-tokens", "12", "--temperature", "1", "--seed", "7"];

/// Returns the Python program of the environment if the package `module` is installed there; otherwise prints why the
/// test is skipped.
fn python_with(module: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/bin/python");
    let python = std::env::var_os("REEL_CLIENTS_PYTHON").map_or(found, PathBuf::from);
    let find = format!("import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)");
    let has_module = Command::new(&python).args(["-c", &find]).output().is_ok_and(|out| out.status.success());
    if !has_module {
        println!("skipped: {module}: no Python package of this name for {}; see docs/eval-kits.md", python.display());
    }
    has_module.then_some(python)
}

/// A server of a tiny model, the clips, and the bodies of the requests that an evaluation program has sent to the
/// server.
struct ServedClips {
    server: Server,
    /// The base URL of a proxy (`http://ADDRESS/v1`) that forwards requests to the server.
    url: String,
    bodies: Arc<Mutex<Vec<Value>>>,
    /// The folder with the clips, from which the server reads files.
    folder: PathBuf,
}

impl ServedClips {
    fn new() -> Self {
        let temporary = TempDir::new().unwrap();
        let folder = temporary.path().canonicalize().unwrap();
        let model = tiny_model(&folder);
        let clips = make_clips(ClipSet::Sft, 2, 0);
        for (name, clip, fps) in [("fast", 0, CLIP_FPS as i32), ("slow", 0, SLOW_FPS), ("other", 1, CLIP_FPS as i32)] {
            let frames = FrameView::new(&clips[clip].frames, CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE).unwrap();
            let options = VideoEncodingOptions::new(VideoCodec::best_available_codec(), (fps, 1));
            encode_video(&folder.join(name).with_extension("mp4"), frames, &options).unwrap();
        }
        let server = Server::start_with(temporary, model, &["--media-root", text(&folder)]);
        let (url, bodies) = record(server.address);
        Self { server, url, bodies, folder }
    }

    /// Returns the bodies of the requests so far, by question, and clears the list.
    fn take_bodies(&self) -> BTreeMap<String, Vec<Value>> {
        let mut by_question: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for body in self.bodies.lock().unwrap().drain(..) {
            let parts = body["messages"][0]["content"].as_array().expect("a list of parts");
            let question = parts.iter().find_map(|part| part["text"].as_str()).expect("a text");
            by_question.entry(question.to_string()).or_default().push(body);
        }
        by_question
    }

    /// Returns the model's input for chat messages or for the body of a request.
    fn model_input(&self, messages: &Value) -> BTreeMap<String, Tensor> {
        let (file, out) = (self.folder.join("prompt.json"), self.folder.join("prompt.safetensors"));
        fs::write(&file, messages.to_string()).unwrap();
        let model = text(&self.server.model);
        run(["preprocess", "--model", model, "--messages", text(&file), "--out", text(&out)]).ok();
        read_tensors(&out)
    }

    /// Checks that a request with a video file gives the same input and answer as reel's own message with the same
    /// question and with `limits`.
    fn check_video(&self, (clip, question): (&str, &str), limits: &Value, body: &Value, answer: &str) {
        let mut video = json!({"type": "video", "video": format!("{clip}.mp4"), "nframes": FRAMES});
        video.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        let messages = json!([{"role": "user", "content": [video, {"type": "text", "text": question}]}]);
        let input = self.model_input(&messages);
        assert_eq!(input, self.model_input(body), "{clip}: {body}");
        // Two frames share a vision token, and the tiny model has `tokens_per_second` = 2.
        let fps = if clip == "slow" { f64::from(SLOW_FPS) } else { CLIP_FPS as f64 };
        let seconds_per_frame = CLIP_FRAMES as f64 / fps / FRAMES as f64;
        assert_eq!(self.temporal_positions(&input), [0.0, 2.0 * seconds_per_frame * 2.0], "{clip}");
        self.check_answer(&messages, &SAMPLING, answer);
    }

    /// Returns the distinct temporal positions of the video's tokens, relative to the first one.
    fn temporal_positions(&self, input: &BTreeMap<String, Tensor>) -> Vec<f64> {
        let config: Value = serde_json::from_slice(&fs::read(self.server.model.join("config.json")).unwrap()).unwrap();
        let pad = config["video_token_id"].as_f64().unwrap();
        let ids = &input["input_ids"].values;
        let times = &input["position_ids"].values[..ids.len()];
        let mut times: Vec<f64> = ids.iter().zip(times).filter(|(id, _)| **id == pad).map(|(_, time)| *time).collect();
        times.dedup();
        times.iter().map(|time| time - times[0]).collect()
    }

    /// Returns the token positions of a request whose frames are images. The question is replaced by the same text
    /// for all requests.
    fn positions_of_images(&self, body: &Value) -> Tensor {
        let mut body = body.clone();
        let parts = body["messages"][0]["content"].as_array_mut().unwrap();
        assert_eq!(parts.len(), FRAMES + 1, "{parts:?}");
        assert!(parts[..FRAMES].iter().all(|part| part["type"] == "image_url"), "{parts:?}");
        parts[FRAMES]["text"] = json!("x");
        self.model_input(&body).remove("position_ids").unwrap()
    }

    /// Checks that the answer to a request equals that of `reel generate`, without white space around it: the
    /// evaluation programs store it in this form.
    fn check_answer(&self, messages: &Value, sampling: &[&str], answer: &str) {
        let own = self.server.generate(messages, sampling);
        assert_eq!(stripped(answer), stripped(own["text"].as_str().unwrap()), "{messages}");
    }

    /// Runs a Python program in the folder of the clips.
    fn run_python(&self, python: &Path, args: &[&str], more: &[(&str, &str)]) {
        let mut command = Command::new(python);
        command.current_dir(&self.folder).args(args).envs(more.iter().copied());
        command.env("HF_HOME", self.folder.join("hf")).env("LMUData", &self.folder);
        command.envs([("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"), ("CUDA_VISIBLE_DEVICES", "")]);
        let run = support::finished_run(command.env("PYTHONDONTWRITEBYTECODE", "1").output().expect("Python starts"));
        assert_eq!(run.code, Some(0), "{}\n{}", run.stdout, run.stderr);
    }
}

/// Starts a proxy that forwards requests to `server`. Returns its URL, and the list in which it records the bodies.
fn record(server: SocketAddr) -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
    let list = bodies.clone();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let list = list.clone();
            thread::spawn(move || pass_on(client, server, &list));
        }
    });
    (url, bodies)
}

/// Forwards the request of a connection to `server`, and the answer back.
fn pass_on(mut client: TcpStream, server: SocketAddr, bodies: &Mutex<Vec<Value>>) {
    let Some(request) = read_request(&mut BufReader::new(&client)).unwrap() else { return };
    bodies.lock().unwrap().push(request.json());
    let path = request.head.split(' ').nth(1).expect("a path");
    let mut stream = TcpStream::connect(server).unwrap();
    write_request(&mut stream, "POST", path, "", std::str::from_utf8(&request.body).unwrap());
    copy(&mut stream, &mut client).unwrap();
}

/// Strips the characters that Python's `str.strip` strips: white space and the ASCII separators at both ends.
fn stripped(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// Returns the path of a file in `tests/foreign_clients`.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign_clients").join(name)
}

/// Returns the answers of an lmms-eval run, by question.
fn answers_of_lmms_eval(out: &Path) -> BTreeMap<String, String> {
    let folder = fs::read_dir(out).unwrap().next().expect("a folder of the model").unwrap().path();
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = files.into_iter().find(|path| text(path).ends_with("_samples_reel_clips.jsonl")).expect("the samples");
    let rows = fs::read_to_string(file).unwrap();
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let pair = |row: Value| {
        // `resps` is left out if it equals `filtered_resps`, the answer without white space around it.
        let answer = row["resps"].as_str().or(row["filtered_resps"].as_str()).expect("an answer");
        (row["input"].as_str().expect("a question").to_string(), answer.to_string())
    };
    rows.map(pair).collect()
}

#[test]
fn lmms_eval_keeps_the_times_of_videos_that_it_sends_as_addresses() {
    let Some(python) = python_with("lmms_eval") else { return };
    let served = ServedClips::new();
    let row = |(clip, question): (&str, &str)| {
        let video = served.folder.join(clip).with_extension("mp4");
        format!("{}\n", json!({"video": video, "question": question, "answer": "A"}))
    };
    fs::write(served.folder.join("clips.jsonl"), QUESTIONS.map(row).concat()).unwrap();
    let ask = |model: &str, more: &str, out: &str| {
        let server = format!("model_version=tiny,base_url={},api_key=none,max_retries=1", served.url);
        let (options, task) = (format!("{server},{more}"), source("lmms_eval"));
        let args = ["-m", "lmms_eval", "--tasks", "reel_clips", "--include_path", text(&task), "--batch_size", "1"];
        let model = ["--model", model, "--model_args", &options, "--log_samples", "--output_path", out];
        served.run_python(&python, &[&args[..], &model].concat(), &[]);
        (answers_of_lmms_eval(&served.folder.join(out)), served.take_bodies())
    };

    let (answers, bodies) = ask("openai", "pass_video_url=True,max_frames_num=4", "videos");
    for row in QUESTIONS {
        let [body] = &bodies[row.1][..] else { panic!("not exactly one request: {bodies:?}") };
        assert!(body["messages"][0]["content"][0]["video_url"]["url"].as_str().unwrap().starts_with("file:///"));
        served.check_video(row, &json!({}), body, &answers[row.1]);
    }
    assert_ne!(answers[QUESTIONS[0].1], answers[QUESTIONS[1].1]);

    // The model class `async_openai` sends each frame as an image without times, so both clips have the same
    // positions. Its requests have no seed, so the answers cannot be compared.
    let (answers, bodies) = ask("async_openai", "nframes=4", "images");
    let positions = QUESTIONS.map(|(_, question)| {
        assert!(!answers[question].contains("FAILED"), "{}", answers[question]);
        served.positions_of_images(&bodies[question][0])
    });
    assert_eq!(positions[0], positions[1]);
}

#[test]
fn vlmevalkit_keeps_the_times_of_videos_that_it_sends_whole() {
    let Some(python) = python_with("vlmeval") else { return };
    let served = ServedClips::new();
    let rows = QUESTIONS.iter().enumerate().map(|(i, (clip, question))| format!("{i}\t{clip}\t{question}\tA\n"));
    let table = format!("index\tvideo\tquestion\tanswer\n{}", rows.collect::<String>());
    fs::write(served.folder.join("clips.tsv"), table).unwrap();
    let limits = json!({"max_pixels": 25088});
    let of_class = |class: &str, more: Value| {
        let mut options = json!({"class": class, "model": "tiny", "key": "none", "retry": 1, "max_tokens": 12,
            "temperature": 1, "seed": 7, "api_base": format!("{}/chat/completions", served.url)});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    let four_frames = json!({"video": {"num_frames": FRAMES}});
    let models = json!({
        "whole": of_class("LMDeployAPI", json!({"video_llm": true})),
        "named": of_class("LMDeployAPI", json!({"video_llm": true, "local_media": true, "mm_processor_kwargs": limits})),
        // This class ignores the number of frames in the message.
        "path": of_class("GPT4V", json!({"video_llm": true, "media_io_kwargs": four_frames})),
        "images": of_class("LMDeployAPI", json!({})),
    });
    let config = json!({"model": models, "data": {"ReelClips": {"class": "ReelClips", "nframe": FRAMES}}});
    fs::write(served.folder.join("kit.json"), config.to_string()).unwrap();
    let program = source("vlmevalkit.py");
    let args = [text(&program), "--config", "kit.json", "--mode", "infer", "--work-dir", "out"];
    served.run_python(&python, &args, &[("PRED_FORMAT", "json")]);

    let answer = |model: &str, row: usize| {
        let file = served.folder.join(format!("out/{model}/{model}_ReelClips.json"));
        let rows: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        rows[row]["prediction"].as_str().expect("an answer").to_string()
    };
    let bodies = served.take_bodies();
    let mut positions_of_images = Vec::new();
    for (i, row) in QUESTIONS.into_iter().enumerate() {
        // The kit runs the models one after the other.
        let [whole, named, path, images] = &bodies[row.1][..] else { panic!("not four requests: {bodies:?}") };
        let url = |body: &Value| body["messages"][0]["content"][0]["video_url"]["url"].as_str().unwrap().to_string();
        assert!(url(whole).starts_with("data:video/mp4;base64,") && url(named).starts_with("file:///"));
        served.check_video(row, &json!({}), whole, &answer("whole", i));
        served.check_video(row, &limits, named, &answer("named", i));
        assert!(url(path).starts_with('/') && url(path).ends_with(".mp4"), "{path}");
        served.check_video(row, &json!({}), path, &answer("path", i));
        served.check_answer(images, &[], &answer("images", i));
        positions_of_images.push(served.positions_of_images(images));
    }
    // Images have no times, so both clips have the same positions.
    assert_eq!(positions_of_images[0], positions_of_images[1]);
}
