//! `reel serve` with TLS connections.

#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use server::{Server, question, read_reply, serve_command, text, write_request};
use tempfile::TempDir;

/// A self-signed certificate for `localhost` and its key, as PEM files.
struct Pair {
    folder: TempDir,
    certificate: CertificateDer<'static>,
}

impl Pair {
    fn new() -> Pair {
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Pair { certificate: made.cert.der().clone(), folder }
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).to_string()
    }
}

#[test]
fn connections_are_encrypted_with_a_certificate() {
    let pair = Pair::new();
    let server = Server::start(&["--tls-cert", &pair.path("cert.pem"), "--tls-key", &pair.path("key.pem")]);
    let mut roots = RootCertStore::empty();
    roots.add(pair.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let connect = || {
        let client = ClientConnection::new(config.clone(), ServerName::try_from("localhost").unwrap()).unwrap();
        StreamOwned::new(client, server.connect())
    };
    for stream in [false, true] {
        let mut connection = connect();
        let body = json!({"messages": question("x"), "max_tokens": 300, "temperature": 0, "stream": stream});
        write_request(&mut connection, "POST", "/v1/chat/completions", "", &body.to_string());
        let reply = read_reply(&mut connection);
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(!stream || reply.body.contains("data: [DONE]"), "{}", reply.body);
    }
    // Plain HTTP, random bytes, and silent clients end only their own connections.
    let _silent: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    for bytes in ["GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", "\u{16}\u{3}\u{1}noise"] {
        let mut plain = server.connect();
        plain.write_all(bytes.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    let mut connection = connect();
    write_request(&mut connection, "GET", "/health", "", "");
    assert_eq!(read_reply(&mut connection).status, 200);
    assert_eq!(server.stop(15), Some(0));
}

#[test]
fn wrong_certificates_are_refused_by_the_name_of_their_file() {
    let (pair, other) = (Pair::new(), Pair::new());
    std::fs::write(pair.folder.path().join("empty.pem"), "").unwrap();
    std::fs::write(pair.folder.path().join("cut.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let model = support::tiny_model(pair.folder.path());
    let run = |certificate: &str, key: &str| {
        let mut command = serve_command(&model, &["--tls-cert", certificate, "--tls-key", key]);
        support::finished_run(command.stdin(Stdio::null()).output().unwrap())
    };
    let (certificate, key) = (pair.path("cert.pem"), pair.path("key.pem"));
    run("/no/cert.pem", &key).assert_refused(1, &["/no/cert.pem"]);
    run(&certificate, "/no/key.pem").assert_refused(1, &["/no/key.pem"]);
    run(&pair.path("empty.pem"), &key).assert_refused(1, &["empty.pem: has no certificate"]);
    run(&pair.path("cut.pem"), &key).assert_refused(1, &["cut.pem: is not PEM"]);
    run(&certificate, &pair.path("empty.pem")).assert_refused(1, &["empty.pem: has no private key"]);
    run(&certificate, &certificate).assert_refused(1, &["cert.pem: has no private key"]);
    run(&certificate, &other.path("key.pem")).assert_refused(1, &["cert.pem: and ", "cannot be used together"]);
    let mut alone = serve_command(&model, &["--tls-cert", &certificate]);
    support::finished_run(alone.output().unwrap()).assert_refused(2, &["--tls-key"]);
}
