//! Refuses requests to a server without keys whose `Host` is a name that this server cannot know to be its own.
//!
//! A web page may come from a name that its owner then points to 127.0.0.1 or to an address of the local network (DNS
//! rebinding). The browser takes the server for that page's own, so the page could read answers and files. Such a
//! request names the page's host. An address or a name that no one on the internet can own is therefore allowed.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::{Uri, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reel_support::diagnostic::Diagnostic;

use super::ApiError;
use crate::settings::ServeOptions;

/// The hosts that requests may name.
#[derive(Debug)]
pub(crate) struct AllowedHosts {
    /// The name of `--host`, the hosts of `--allow-origin` and, if other machines can reach the server, the name of this
    /// machine.
    names: Vec<String>,
    /// Whether only programs on this machine can reach the server.
    is_loopback: bool,
}

impl AllowedHosts {
    /// The hosts that a server with these options allows; `None` if it allows all: clients need a key, the certificate
    /// names the server, or every web page may use it.
    pub(crate) fn new(options: &ServeOptions) -> Option<Self> {
        let origins = &options.allowed_origins;
        if !options.api_keys.is_empty() || options.tls.is_some() || origins.iter().any(|origin| origin == "*") {
            return None;
        }
        let is_loopback = options.address.ip().is_loopback();
        let own = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_string());
        let own = if is_loopback { None } else { own() };
        let of_origin = |origin: &String| origin.parse::<Uri>().ok()?.host().map(String::from);
        let names = options.host_name.clone().into_iter().chain(own).chain(origins.iter().filter_map(of_origin));
        Some(Self { names: names.map(|name| name.to_ascii_lowercase()).collect(), is_loopback })
    }

    /// Whether a request may name this host, which may have a port.
    fn allows(&self, host: &str) -> bool {
        let Some(name) = name_of_host(host) else { return false };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        // A name without a dot belongs to the local network, and no one can register a name that ends in this way.
        let is_local = || !name.contains('.') || name.ends_with(".local") || name.ends_with(".internal");
        name.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.names.contains(&name)
            || (!self.is_loopback && !name.is_empty() && is_local())
    }

    /// Returns the reason to refuse a request; `None` if it is allowed.
    fn refusal<B>(&self, request: &axum::http::Request<B>) -> Option<Diagnostic> {
        let headers = request.headers().get_all(HOST).into_iter();
        let headers = headers.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let named: Vec<String> =
            request.uri().authority().map(|authority| authority.to_string()).into_iter().chain(headers).collect();
        if named.is_empty() && request.version() <= Version::HTTP_10 {
            // No browser sends such a request; health checks do.
            return None;
        }
        let help = "send the request to localhost or an address, or start the server with an API key (--api-key-file)";
        let Some(host) = named.iter().find(|host| !self.allows(host)) else {
            return named.is_empty().then(|| Diagnostic::new("header Host", "is missing", help));
        };
        let what =
            format!("names {host:?}, and a server without keys answers only to names that are its own for certain");
        let help = match name_of_host(host).is_some_and(|name| format!("http://{name}").parse::<Uri>().is_ok()) {
            true => format!("{help}, or with --allow-origin http://{host}"),
            false => help.to_string(),
        };
        Some(Diagnostic::new("header Host", what, help))
    }
}

/// The name or address in a `Host` header, without its port; `None` if the header is malformed.
fn name_of_host(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(name, _)| name.contains(':'))?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

/// Refuses requests that name another host, if the server checks it.
pub(crate) async fn refuse_foreign_hosts(
    State(hosts): State<Option<Arc<AllowedHosts>>>,
    request: Request,
    next: Next,
) -> Response {
    match hosts.and_then(|hosts| hosts.refusal(&request)) {
        None => next.run(request).await,
        Some(diagnostic) => ApiError::forbidden(diagnostic.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn hosts(is_loopback: bool) -> AllowedHosts {
        AllowedHosts { names: vec!["node7.cluster.example".into()], is_loopback }
    }

    #[test]
    fn a_server_for_this_machine_answers_to_addresses_and_its_own_names() {
        for own in [
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:9",
            "10.1.2.3:1",
            "localhost",
            "LocalHost:8000",
            "a.b.localhost",
            "localhost.",
            "NODE7.cluster.example:8000",
        ] {
            assert!(hosts(true).allows(own) && hosts(false).allows(own), "{own}");
        }
        for local in ["reel", "reel:80", "printer.local", "db.internal:9", "reel.ns.svc.cluster.local"] {
            assert!(hosts(false).allows(local) && !hosts(true).allows(local), "{local}");
        }
        for foreign in [
            "evil.example",
            "evil.example:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "evil.example.",
            "xlocalhost.com",
            "a@localhost.b",
            "127.0.0.1:80:80",
            "127.0.0.1:x",
            "[127.0.0.1]",
            "[::1",
            "[::1]x",
            "localhost/evil.example",
            "cluster.example",
            "evillocal.com",
            "::1",
        ] {
            assert!(!hosts(true).allows(foreign) && !hosts(false).allows(foreign), "{foreign}");
        }
    }

    #[test]
    fn each_name_of_a_request_is_checked() {
        let refused = |uri: &str, hosts_given: &[&str], version: Version| {
            let request = hosts_given.iter().fold(Request::get(uri).version(version), |r, host| r.header(HOST, *host));
            hosts(true).refusal(&request.body(()).unwrap()).map(|diagnostic| diagnostic.to_string())
        };
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        assert_eq!(refused("/", &["localhost"], new), None);
        assert_eq!(refused("http://localhost:9/", &[], Version::HTTP_2), None);
        assert_eq!(refused("/", &[], old), None);
        for (uri, given, version) in [
            ("/", &["evil.example"][..], new),
            ("/", &["evil.example"][..], old),
            ("/", &["localhost", "evil.example"][..], new),
            ("http://evil.example/", &["localhost"][..], new),
            ("http://evil.example/", &[][..], Version::HTTP_2),
        ] {
            let message = refused(uri, given, version).unwrap();
            assert!(message.contains("\"evil.example\"") && message.contains("--api-key-file"), "{message}");
            assert!(
                message.ends_with("--allow-origin http://evil.example") && message.lines().count() == 1,
                "{message}"
            );
        }
        assert!(refused("/", &[], new).unwrap().contains("is missing"));
    }
}
