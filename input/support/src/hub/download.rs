//! Downloads files over HTTP in pieces. A failed piece is requested again, and a restarted program continues where
//! the last one stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

/// The progress of the download of one file.
#[derive(Debug, Clone, Copy)]
pub struct DownloadProgress<'a> {
    /// Path of the file in its repository.
    pub file: &'a str,
    /// Number of bytes of this file downloaded so far.
    pub done: u64,
    /// The size of the file in bytes, if known.
    pub total: Option<u64>,
}

/// The number of bytes that one HTTP request asks for.
const PIECE_BYTES: u64 = 64 << 20;

/// `ANSWER_TIMEOUT` limits the wait for the start of the server's answer, and `PIECE_TIMEOUT` the time for receiving
/// a whole piece.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const PIECE_TIMEOUT: Duration = Duration::from_secs(600);

/// The number of consecutive failed requests that are retried. One more failure ends the download.
const MAX_FAILURES: usize = 4;

/// The maximum size in bytes of the hub's answer with a list of files.
const MAX_LIST_BYTES: u64 = 256 << 20;

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(PIECE_TIMEOUT));
    config.build().into()
}

/// The reason why a text was not downloaded.
pub(crate) struct TextDownloadError {
    /// What went wrong, as a phrase for the error message.
    pub(crate) phrase: String,
    /// Whether the server does not know the address or rejects this user (HTTP status 401, 403 or 404).
    pub(crate) is_refused: bool,
}

/// Downloads a text file.
pub(crate) fn download_text(address: &str, token: Option<&str>) -> Result<String, TextDownloadError> {
    let failure = |phrase, is_refused| TextDownloadError { phrase, is_refused };
    let mut request = agent().get(address);
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|e| {
        let is_refused = matches!(e, ureq::Error::StatusCode(401 | 403 | 404));
        failure(format!("{address} cannot be downloaded ({e})"), is_refused)
    })?;
    let text = response.body_mut().with_config().limit(MAX_LIST_BYTES).read_to_string();
    text.map_err(|e| failure(format!("{address}: download was interrupted ({e})"), false))
}

/// Percent-encodes the characters that an address must not contain. Slashes are kept if `keep_slashes` is true.
pub(crate) fn percent_encoded(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            b'/' if keep_slashes => encoded.push('/'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Downloads files whose addresses begin with one base address.
pub(crate) struct Downloader<'a> {
    agent: ureq::Agent,
    address: &'a str,
    token: Option<&'a str>,
}

/// The number of bytes of a file that were received so far.
pub(crate) struct ReceivedBytes {
    /// The number of received bytes.
    pub(crate) done: u64,
    /// The size of the file in bytes, if known.
    pub(crate) total: Option<u64>,
}

impl<'a> Downloader<'a> {
    pub(crate) fn new(address: &'a str, token: Option<&'a str>) -> Self {
        Self { agent: agent(), address, token }
    }

    /// Returns the address of the file `path`.
    pub(crate) fn address(&self, path: &str) -> String {
        format!("{}/{}", self.address, percent_encoded(path, true))
    }

    /// Downloads the file `path`. Returns the name of the complete file, which is `target` with `.incomplete`
    /// appended. Continues where an earlier attempt stopped.
    pub(crate) fn download(
        &self,
        path: &str,
        target: &Path,
        progress: &mut dyn FnMut(ReceivedBytes),
    ) -> Result<PathBuf> {
        let mut part = target.as_os_str().to_owned();
        part.push(".incomplete");
        let part = PathBuf::from(part);
        let out = crate::files::open_without_link(&part, OpenOptions::new().create(true).append(true));
        let mut out = out.map_err(|e| Error::cannot_write(&part, &e))?;
        let mut done = out.metadata().map_err(|e| Error::cannot_read(&part, &e))?.len();
        let address = self.address(path);
        let mut failures = 0;
        loop {
            match piece(&self.agent, &address, self.token, &mut out, done) {
                Ok(Piece { bytes, total }) => {
                    failures = 0;
                    done += bytes;
                    progress(ReceivedBytes { done, total });
                    if total.is_none_or(|total| done >= total) {
                        break;
                    }
                }
                Err(Failure::Write(e)) => return Err(Error::cannot_write(&part, &e)),
                Err(Failure::Network(what, is_final)) => {
                    failures += 1;
                    if is_final || failures > MAX_FAILURES {
                        let help =
                            "check the network and run the command again; the download continues where it stopped";
                        return Err(Error::failed(address, what, help));
                    }
                    std::thread::sleep(Duration::from_millis(200 << failures));
                    done = out.metadata().map_err(|e| Error::cannot_read(&part, &e))?.len();
                }
            }
        }
        out.sync_data().map_err(|e| Error::cannot_write(&part, &e))?;
        Ok(part)
    }
}

struct Piece {
    bytes: u64,
    /// The length of the whole file in bytes, if the server states it.
    total: Option<u64>,
}

enum Failure {
    Write(io::Error),
    /// A network error: the description, and whether the error is final, so that a retry is useless.
    Network(String, bool),
}

/// Requests one piece of the file, from byte `from` on, and appends it to `out`.
fn piece(agent: &ureq::Agent, address: &str, token: Option<&str>, out: &mut File, from: u64) -> Result<Piece, Failure> {
    let mut request = agent.get(address).header("Range", format!("bytes={from}-{}", from + PIECE_BYTES - 1));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = match request.call() {
        Ok(response) => response,
        // HTTP 416 means that the file has no bytes from `from` on: the download is already complete, or the file is
        // empty.
        Err(ureq::Error::StatusCode(416)) => return Ok(Piece { bytes: 0, total: Some(from) }),
        Err(ureq::Error::StatusCode(code)) => {
            return Err(Failure::Network(format!("the server answered with HTTP status {code}"), is_final(code)));
        }
        Err(e) => return Err(Failure::Network(format!("cannot be downloaded ({e})"), false)),
    };
    let total = match response.status().as_u16() {
        206 => response
            .headers()
            .get("content-range")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.rsplit('/').next()?.parse().ok()),
        // A server that does not support ranges sends the whole file. So the existing content of `out` is discarded.
        _ => {
            out.set_len(0).map_err(Failure::Write)?;
            None
        }
    };
    let is_whole = response.status().as_u16() != 206;
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => return Err(Failure::Network(format!("download was interrupted ({e})"), false)),
        };
        out.write_all(&buffer[..n]).map_err(Failure::Write)?;
        bytes += n as u64;
    }
    if is_whole {
        return Ok(Piece { bytes: bytes.saturating_sub(from), total: None });
    }
    if bytes == 0 && total.is_none_or(|total| from < total) {
        return Err(Failure::Network("sent nothing".to_string(), false));
    }
    Ok(Piece { bytes, total: total.or(Some(from + bytes)) })
}

/// Tells whether a repeated request would get the same HTTP status again. This holds for all client errors except a
/// timeout (408) and too many requests (429).
fn is_final(code: u16) -> bool {
    code < 500 && !matches!(code, 408 | 429)
}
