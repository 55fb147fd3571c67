//! Downloads files over HTTP in pieces. A failed piece is requested again, and a restarted program continues where
//! the stopped one ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::DownloadProgress;
use crate::error::{ModelError, Result};

/// The number of bytes that one HTTP request asks for.
const PIECE_BYTES: u64 = 64 << 20;

/// `ANSWER_TIMEOUT` limits the wait until the server begins its answer, `PIECE_TIMEOUT` the time to receive a whole
/// piece.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const PIECE_TIMEOUT: Duration = Duration::from_secs(600);

/// The number of consecutive failed requests after which the next failure ends the download.
const MAX_FAILURES: usize = 4;

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(PIECE_TIMEOUT));
    config.build().into()
}

/// Downloads a small text file. The error is a phrase that the caller puts into a message.
pub(super) fn download_text(address: &str, token: Option<&str>) -> Result<String, String> {
    let mut request = agent().get(address);
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|e| format!("{address} cannot be downloaded ({e})"))?;
    response.body_mut().read_to_string().map_err(|e| format!("{address}: download was interrupted ({e})"))
}

/// Downloads a file to `target`; continues at the point where an earlier attempt stopped. The file has another name
/// until it is complete.
pub(super) fn download_file(
    address: &str,
    token: Option<&str>,
    target: &Path,
    name: &str,
    progress: &mut dyn FnMut(DownloadProgress),
) -> Result<()> {
    if target.is_file() {
        return Ok(());
    }
    let mut part = target.as_os_str().to_owned();
    part.push(".incomplete");
    let part = Path::new(&part);
    let mut out =
        OpenOptions::new().create(true).append(true).open(part).map_err(|e| ModelError::cannot_write(target, e))?;
    let mut done = out.metadata().map_err(|e| ModelError::cannot_read(part, e))?.len();
    let agent = agent();
    let mut failures = 0;
    loop {
        match piece(&agent, address, token, &mut out, done) {
            Ok(Piece { bytes, total }) => {
                failures = 0;
                done += bytes;
                progress(DownloadProgress { file: name, done, total });
                if total.is_none_or(|total| done >= total) {
                    break;
                }
            }
            Err(Failure::Write(e)) => return Err(ModelError::cannot_write(target, e)),
            Err(Failure::Network(what, is_final)) => {
                failures += 1;
                if is_final || failures > MAX_FAILURES {
                    let help = "check the network and run the command again; the download continues where it stopped";
                    return Err(ModelError::hub(address, what, help));
                }
                std::thread::sleep(Duration::from_millis(200 << failures));
                done = out.metadata().map_err(|e| ModelError::cannot_read(part, e))?.len();
            }
        }
    }
    out.sync_data().map_err(|e| ModelError::cannot_write(target, e))?;
    fs::rename(part, target).map_err(|e| ModelError::cannot_write(target, e))
}

struct Piece {
    bytes: u64,
    /// The length of the whole file in bytes, if the server states it.
    total: Option<u64>,
}

enum Failure {
    Write(io::Error),
    /// A network error: what happened, and whether it is final, so that trying again is useless.
    Network(String, bool),
}

/// Requests one piece of the file, which begins at byte `from`, and appends it to `out`.
fn piece(agent: &ureq::Agent, address: &str, token: Option<&str>, out: &mut File, from: u64) -> Result<Piece, Failure> {
    let mut request = agent.get(address).header("Range", format!("bytes={from}-{}", from + PIECE_BYTES - 1));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = match request.call() {
        Ok(response) => response,
        // HTTP 416 means that the file has no bytes from `from` on: it is already complete, or empty.
        Err(ureq::Error::StatusCode(416)) => return Ok(Piece { bytes: 0, total: Some(from) }),
        Err(ureq::Error::StatusCode(code)) => {
            return Err(Failure::Network(format!("the server answered with HTTP status {code}"), code < 500));
        }
        Err(e) => return Err(Failure::Network(format!("cannot be downloaded ({e})"), false)),
    };
    let total = match response.status().as_u16() {
        206 => response
            .headers()
            .get("content-range")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.rsplit('/').next()?.parse().ok()),
        // A server that does not support ranges sends the whole file, so what `out` already has is discarded.
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
