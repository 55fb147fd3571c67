//! Starts `reel serve` with a tiny model, sends requests to it, and creates media for them.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use reel_tools::showcase::clips::{CLIP_FPS, CLIP_FRAMES, CLIP_SIDE, Clip, ClipSet, make_clips};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{reel, tiny_model_of, tiny_preset};

/// Path of the chat endpoint.
pub const CHAT_PATH: &str = "/v1/chat/completions";
/// Path of the preview endpoint, which shows what the model sees.
pub const PREVIEW_PATH: &str = "/v1/preview";

/// A running server with a tiny model; dropping it kills the process.
pub struct Server {
    child: Child,
    /// The server's address, `http://ADDRESS`.
    pub address: String,
    /// A folder for the test's files; it also contains the model.
    pub folder: TempDir,
}

/// Status, headers and body of an answer.
pub struct Reply {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: String,
}

impl Server {
    /// Starts a server with these options.
    pub fn start(args: &[&str]) -> Server {
        Server::start_preset(&tiny_preset(), args)
    }

    /// Starts a server with a model of this preset and these options.
    pub fn start_preset(preset: &str, args: &[&str]) -> Server {
        let folder = TempDir::new().unwrap();
        let model = tiny_model_of(folder.path(), preset);
        let mut command = reel();
        command.arg("serve").arg("--model").arg(model).args(["--device", "cpu", "--port", "0"]).args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (_, address) = line.trim().split_once("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        Server { child, address: address.to_string(), folder }
    }

    /// Returns the path of a file in the folder of the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sends `GET path` and returns the answer.
    pub fn get(&self, path: &str) -> Reply {
        read_reply(http_agent().get(format!("{}{path}", self.address)).call())
    }

    /// Sends `POST path` with this body and returns the answer.
    pub fn post(&self, path: &str, body: &str) -> Reply {
        read_reply(http_agent().post(format!("{}{path}", self.address)).send(body))
    }

    /// Sends a request that must succeed; returns the answer.
    #[track_caller]
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, &body.to_string());
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Reply {
    /// Returns the value of a header; empty if the header is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Checks the status and returns the error object of the answer.
    #[track_caller]
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let mut body: Value = serde_json::from_str(&self.body).unwrap();
        assert!(body["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        body["error"].take()
    }
}

/// Returns an HTTP client for which an error status is an answer, not an error.
pub fn http_agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build().into()
}

/// Reads an answer completely.
pub fn read_reply(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let mut answer = answer.unwrap();
    let body = answer.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
    Reply { status: answer.status().into(), headers: answer.headers().clone(), body }
}

/// A PNG of one grey pixel.
pub const GREY_PIXEL_PNG_BASE64: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";

/// Writes a synthetic clip of the demo to `path`: 8 frames of 224 × 224 pixels at 4 frames per second.
pub fn write_clip(path: &Path) -> Clip {
    let clip = make_clips(ClipSet::Sft, 2, 0).remove(1);
    let frames = FrameView::new(&clip.frames, CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE).unwrap();
    let encoding = VideoEncodingOptions::new(VideoCodec::best_available_codec(), (CLIP_FPS as i32, 1));
    encode_video(path, frames, &encoding).unwrap();
    clip
}

/// Returns a video file as a `data:` URI.
pub fn data_uri(path: &Path) -> String {
    format!("data:video/mp4;base64,{}", STANDARD.encode(std::fs::read(path).unwrap()))
}

/// Returns a request for one token with one user message.
pub fn one_token_request(content: Value) -> Value {
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0})
}

/// Returns a content part with a base64-encoded PNG image.
pub fn image_part(data: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}})
}
