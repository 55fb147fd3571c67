//! Tests of downloads from small servers on this machine, of the check of addresses, and of confinement.

use std::net::TcpListener;

use super::*;

const SHORT: Duration = Duration::from_secs(20);

fn access(remote: RemoteMedia) -> MediaAccess {
    MediaAccess { remote, confined_to: None }
}

#[test]
fn decodes_valid_data_uris_only() {
    assert_eq!(decode_data_uri("data:video/mp4;base64,aGk=").unwrap(), b"hi");
    assert_eq!(decode_data_uri("data:video/mp4;base64,aG\nk").unwrap(), b"hi");
    for bad in ["data:video/mp4,hi", "data:x;base64,a!"] {
        assert!(decode_data_uri(bad).unwrap_err().to_string().starts_with("data: URI: "));
    }
}

/// Starts an HTTP server that answers one request with these bytes. Returns its address.
fn serve(answer: impl Into<Vec<u8>>) -> String {
    let answer = answer.into();
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

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn download_respects_the_size_limit() {
    let download = |address: &str, limit| access(RemoteMedia::AnyNetwork).download(address, limit, SHORT);
    let mut text = String::new();
    download(&serve(HELLO), 5).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert!(download(&serve(HELLO), 4).unwrap_err().to_string().contains("is larger than"));
    let gone = serve("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let secret = gone.replace("http://", "http://user:password@") + "?key=secret";
    let error = download(&secret, 100).unwrap_err().to_string();
    assert!(error.starts_with(&gone) && error.contains("404") && !error.contains('\n'), "{error}");
    assert!(!error.contains("secret") && !error.contains("password"), "{error}");
    assert!(download(&serve("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"), 100).is_err());
    assert!(download("http://127.0.0.1:1/", 100).unwrap_err().to_string().contains("cannot be downloaded"));
}

#[test]
fn slow_downloads_end_at_the_time_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/x.mp4", listener.local_addr().unwrap());
    // The operating system accepts the connection, but no server answers.
    let error = access(RemoteMedia::AnyNetwork).download(&address, 9, Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().contains("cannot be downloaded"), "{error}");
}

#[test]
fn addresses_of_other_networks_are_never_downloaded() {
    let refused = |remote: RemoteMedia, address: &str, expected: &str| {
        let error = access(remote).download(address, 9, SHORT).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("; ") && !error.contains('\n'), "{address}: {error}");
    };
    refused(RemoteMedia::Refused, "https://host/x.png", "only with --allow-remote-media");
    // Other notations of 127.0.0.1 are resolved before the check. No connection is made, so no server is needed.
    for host in ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.0.0.1"]
    {
        refused(RemoteMedia::Public, &format!("http://{host}:1/x.png"), "is not on the public internet");
    }
    for host in ["169.254.169.254", "[fe80::1]", "[fd00::1]", "[64:ff9b::a00:1]", "224.0.0.1"] {
        refused(RemoteMedia::Public, &format!("http://{host}/latest"), "is not on the public internet");
    }
}

/// A resolver that checks no address of its first answer, but all addresses of later answers. So the first server,
/// which runs on this machine, can stand for a server on the public internet.
#[derive(Debug)]
struct FirstIsPublic(CheckedResolver, std::sync::atomic::AtomicBool);

impl Resolver for FirstIsPublic {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        match self.1.swap(true, std::sync::atomic::Ordering::Relaxed) {
            false => self.0.inner.resolve(uri, config, timeout),
            true => self.0.resolve(uri, config, timeout),
        }
    }
}

#[test]
fn redirects_are_checked_too() {
    let inside = serve(HELLO);
    let outside = serve(format!("HTTP/1.1 302 Found\r\nLocation: {inside}\r\nContent-Length: 0\r\n\r\n"));
    let checked = CheckedResolver { inner: DefaultResolver::default(), remote: RemoteMedia::Public };
    let resolver = FirstIsPublic(checked, false.into());
    let agent = ureq::Agent::with_parts(ureq::config::Config::default(), DefaultConnector::default(), resolver);
    let error = agent.get(&outside).call().unwrap_err();
    assert!(download_failure(&error).contains("is not on the public internet"), "{error}");
}

#[test]
fn public_addresses_are_told_from_others() {
    let public = ["1.1.1.1", "100.63.0.1", "100.128.0.1", "172.15.0.1", "192.0.1.1", "198.20.0.1", "223.255.255.255"];
    let public_v6 =
        ["2606:4700::1111", "2a00::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2001:200::1"];
    for ip in public.iter().chain(&public_v6) {
        assert!(is_public(ip.parse().unwrap()), "{ip}");
    }
    let other = [
        "0.0.0.0",
        "0.1.2.3",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ];
    let other_v6 = [
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "3fff::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];
    for ip in other.iter().chain(&other_v6) {
        assert!(!is_public(ip.parse().unwrap()), "{ip}");
    }
}

#[test]
fn confined_paths_cannot_leave_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("media"), folder.path().join("secret.png"));
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(&outside, "x").unwrap();
    std::fs::write(root.join("sub/a.png"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link.png")).unwrap();
    std::os::unix::fs::symlink(root.join("sub"), root.join("inside")).unwrap();
    // A folder whose name only begins with the name of the root must be refused.
    std::fs::create_dir(folder.path().join("media2")).unwrap();
    std::fs::write(folder.path().join("media2/a.png"), "x").unwrap();
    let confined = MediaAccess { remote: RemoteMedia::Refused, confined_to: Some(root.clone()) };
    for good in ["sub/a.png", "inside/a.png", "sub/../sub/a.png"] {
        assert_eq!(confined.allowed_path(&root.join(good)).unwrap(), root.canonicalize().unwrap().join("sub/a.png"));
    }
    std::os::unix::fs::symlink(folder.path(), root.join("up")).unwrap();
    for bad in [root.join("link.png"), root.join("../secret.png"), outside, root.join("../media2/a.png")] {
        let error = confined.allowed_path(&bad).unwrap_err().to_string();
        assert!(error.contains("lies outside of") && error.contains("; "), "{error}");
    }
    // The error for a path outside of the root does not reveal whether the file exists.
    for none in ["../none.png", "../none/a.png", "up/none.png", "up/none/../none.png"] {
        let error = confined.allowed_path(&root.join(none)).unwrap_err().to_string();
        assert!(error.contains("lies outside of"), "{none}: {error}");
    }
    assert!(confined.allowed_path(&root.join("none.png")).unwrap_err().to_string().contains("no such file"));
    let anywhere = Path::new("/etc/../x");
    assert_eq!(MediaAccess::default().allowed_path(anywhere).unwrap(), anywhere);
}
