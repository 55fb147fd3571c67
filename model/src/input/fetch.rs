//! Bytes from an address or a `data:` URI, within limits of size and time.

use std::io::Read;
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::error::{ModelError, Result};

/// The largest picture that is fetched, in bytes.
pub const LARGEST_PICTURE: u64 = 100 << 20;

/// The largest film that is fetched, in bytes.
pub const LARGEST_FILM: u64 = 4 << 30;

/// Until a server answers at all.
const CONNECT: Duration = Duration::from_secs(10);

/// Until a picture or film is there.
const WHOLE: Duration = Duration::from_secs(300);

/// Fetches an `http:` or `https:` address.
pub fn url(address: &str, largest: u64) -> Result<Vec<u8>> {
    let fault = |what: String| ModelError::messages(address, what, "check the address and the network, or give a file");
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_connect(Some(CONNECT)).timeout_global(Some(WHOLE)).build().into();
    let mut response = agent.get(address).call().map_err(|e| fault(format!("cannot be fetched ({e})")))?;
    let mut bytes = Vec::new();
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader().take(largest + 1);
    body.read_to_end(&mut bytes).map_err(|e| fault(format!("broke off while being fetched ({e})")))?;
    if bytes.len() as u64 > largest {
        return Err(ModelError::messages(
            address,
            format!("is larger than {} MiB", largest >> 20),
            "give a smaller one, or a file",
        ));
    }
    Ok(bytes)
}

/// Decodes `data:KIND;base64,…`.
pub fn data_uri(uri: &str) -> Result<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let fault = |what: String| ModelError::messages("data: URI", what, "give data:TYPE;base64,CONTENT");
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
    fn data_uris_are_decoded_or_refused() {
        assert_eq!(data_uri("data:video/mp4;base64,aGk=").unwrap(), b"hi");
        assert_eq!(data_uri("data:video/mp4;base64,aG\nk").unwrap(), b"hi");
        for bad in ["data:video/mp4,hi", "data:x;base64,a!"] {
            assert!(data_uri(bad).unwrap_err().to_string().starts_with("data: URI: "));
        }
    }

    /// Answers one request with these bytes.
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
    fn a_server_is_asked_within_limits() {
        let whole = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec());
        assert_eq!(url(&whole, 100).unwrap(), b"hello");
        let large = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec());
        assert!(url(&large, 4).unwrap_err().to_string().contains("is larger than"));
        let gone = serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
        let error = url(&gone, 100).unwrap_err().to_string();
        assert!(error.starts_with(&gone) && error.contains("404") && !error.contains('\n'), "{error}");
        let cut = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".to_vec());
        assert!(url(&cut, 100).is_err());
        assert!(url("http://127.0.0.1:1/", 100).unwrap_err().to_string().contains("cannot be fetched"));
    }
}
