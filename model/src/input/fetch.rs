//! Downloads images and videos from `http(s):` addresses and decodes `data:` URIs, with limits on size and time.

use std::io::Read;
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::error::{ModelError, Result};

/// Maximum size in bytes of an image that is downloaded.
pub const MAX_IMAGE_BYTES: u64 = 100 << 20;

/// Maximum size in bytes of a video that is downloaded.
pub const MAX_VIDEO_BYTES: u64 = 4 << 30;

/// The time limit for connecting to the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time limit for a whole download.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Downloads at most `max_bytes` from an `http:` or `https:` address.
pub fn download(address: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let fault =
        |what: String| ModelError::messages(address, what, "check the address and the network, or use a local file");
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(Some(DOWNLOAD_TIMEOUT))
        .build()
        .into();
    let mut response = agent.get(address).call().map_err(|e| fault(format!("cannot be downloaded ({e})")))?;
    let mut bytes = Vec::new();
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader().take(max_bytes + 1);
    body.read_to_end(&mut bytes).map_err(|e| fault(format!("download was interrupted ({e})")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(ModelError::messages(
            address,
            format!("is larger than {} MiB", max_bytes >> 20),
            "use a smaller file, or a local file",
        ));
    }
    Ok(bytes)
}

/// Decodes a `data:TYPE;base64,…` URI.
pub fn decode_data_uri(uri: &str) -> Result<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let fault = |what: String| ModelError::messages("data: URI", what, "write data:TYPE;base64,CONTENT");
    let Some((_, content)) = uri.split_once("base64,") else {
        return Err(fault("is not base64".to_string()));
    };
    let clean: Vec<u8> = content.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    ENGINE.decode(clean).map_err(|e| fault(format!("has damaged base64 ({e})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn decodes_valid_data_uris_only() {
        assert_eq!(decode_data_uri("data:video/mp4;base64,aGk=").unwrap(), b"hi");
        assert_eq!(decode_data_uri("data:video/mp4;base64,aG\nk").unwrap(), b"hi");
        for bad in ["data:video/mp4,hi", "data:x;base64,a!"] {
            assert!(decode_data_uri(bad).unwrap_err().to_string().starts_with("data: URI: "));
        }
    }

    /// Starts an HTTP server that answers one request with these bytes. Returns its address.
    fn serve(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/x.png", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(&answer);
        });
        address
    }

    #[test]
    fn download_respects_the_size_limit() {
        let whole = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec());
        assert_eq!(download(&whole, 100).unwrap(), b"hello");
        let large = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec());
        assert!(download(&large, 4).unwrap_err().to_string().contains("is larger than"));
        let gone = serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
        let error = download(&gone, 100).unwrap_err().to_string();
        assert!(error.starts_with(&gone) && error.contains("404") && !error.contains('\n'), "{error}");
        let cut = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".to_vec());
        assert!(download(&cut, 100).is_err());
        assert!(download("http://127.0.0.1:1/", 100).unwrap_err().to_string().contains("cannot be downloaded"));
    }
}
