//! Opens the files and addresses that conversations name, within the limits of [`MediaAccess`]: downloads from
//! `http(s):` addresses to temporary files, decodes `data:` URIs, and confines paths to a folder.
//!
//! A row of a data set or a chat message may come from a stranger, and this program may run inside a private network.
//! So an address is only downloaded if the user allows downloads, and never from a private network. The check is on the
//! IP address of the connection, again for each redirect, so that a host name cannot hide a private address.

use std::io::{Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use tempfile::NamedTempFile;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::error::{Error, Result};
use crate::network;

/// Maximum size in bytes of an image that is downloaded.
pub const MAX_IMAGE_BYTES: u64 = 100 << 20;

/// Maximum size in bytes of a video that is downloaded.
pub const MAX_VIDEO_BYTES: u64 = 4 << 30;

/// The time limit for connecting to the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which files and addresses the images and videos of a conversation may come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MediaAccess {
    /// Which `http(s):` addresses may be downloaded.
    pub remote: RemoteMedia,
    /// The folder in which all files must lie after symbolic links are resolved; `None`: any file is allowed.
    pub confined_to: Option<PathBuf>,
}

/// Which `http(s):` addresses may be downloaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RemoteMedia {
    /// No address: all downloads are refused.
    #[default]
    Refused,
    /// Addresses on the public internet: not in private networks, on this machine, or multicast.
    Public,
    /// Addresses on any network, for tests with a server on this machine. No option of the program selects this.
    AnyNetwork,
}

impl MediaAccess {
    /// The path to open for the file `path`: without `confined_to`, the path itself. With `confined_to`, its
    /// canonical form, so that a symbolic link that is changed after the check has no effect.
    ///
    /// # Errors
    /// The file lies outside of the folder `confined_to`, or the file or the folder does not exist.
    pub fn allowed_path(&self, path: &Path) -> Result<PathBuf> {
        let Some(root) = &self.confined_to else { return Ok(path.to_path_buf()) };
        // A data file that is given by its name alone has an empty parent path. The empty path means the current
        // folder.
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let folder = root.canonicalize().map_err(|e| Error::cannot_read(root, e))?;
        // A path outside of the folder gets the same error whether or not the file exists, so that clients cannot find
        // out which files this machine has.
        let existing = path.ancestors().find_map(|ancestor| ancestor.canonicalize().ok());
        if existing.is_some_and(|existing| existing.starts_with(&folder)) {
            return path.canonicalize().map_err(|e| Error::cannot_read(path, e));
        }
        Err(Error::input(
            path.display().to_string(),
            format!("lies outside of {}, where all media must lie", root.display()),
            "move the file there, or give another --media-root",
        ))
    }

    /// Downloads at most `max_bytes` from an `http:` or `https:` address to a temporary file, within `timeout`.
    ///
    /// # Errors
    /// The address may not be downloaded; the server does not send the file, or not in time; the file is too large.
    pub fn download(&self, address: &str, max_bytes: u64, timeout: Duration) -> Result<NamedTempFile> {
        let shown = without_secrets(address);
        if network::are_downloads_forbidden() {
            let help = "download the file yourself, or leave out --offline";
            return Err(Error::input(shown, "is not downloaded, because --offline is given", help));
        }
        if self.remote == RemoteMedia::Refused {
            let what = "is an address, and media are downloaded only with --allow-remote-media";
            return Err(Error::input(shown, what, "give that option, or use a local file"));
        }
        download(address, max_bytes, timeout, self.remote)
    }
}

/// An address without its user name, password and query, because these may be secret.
pub(crate) fn without_secrets(address: &str) -> String {
    let visible = address.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = visible.split_once("://") else { return visible.to_string() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

fn download(address: &str, max_bytes: u64, timeout: Duration, remote: RemoteMedia) -> Result<NamedTempFile> {
    let shown = without_secrets(address);
    let fault = |what: String| Error::input(&shown, what, "check the address and the network, or use a local file");
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(Some(timeout))
        // A proxy would make the connection itself, so this program could not check the IP address.
        .proxy(None)
        .build();
    let resolver = CheckedResolver { inner: DefaultResolver::default(), remote };
    let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), resolver);
    let mut response = agent.get(address).call().map_err(|e| fault(download_failure(&e)))?;
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader().take(max_bytes + 1);
    let folder = std::env::temp_dir();
    let cannot_write = |e| Error::cannot_write(&folder, e);
    let mut file = NamedTempFile::new_in(&folder).map_err(cannot_write)?;
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let n = body.read(&mut buffer).map_err(|e| fault(format!("download was interrupted ({e})")))?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        if bytes > max_bytes {
            let what = format!("is larger than {} MiB", max_bytes >> 20);
            return Err(Error::input(&shown, what, "use a smaller file, or a local file"));
        }
        file.write_all(&buffer[..n]).map_err(cannot_write)?;
    }
    file.flush().and_then(|()| file.rewind()).map_err(cannot_write)?;
    Ok(file)
}

fn download_failure(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(e) if e.get_ref().is_some_and(|cause| cause.is::<NotPublic>()) => e.to_string(),
        e => format!("cannot be downloaded ({e})"),
    }
}

/// Resolves host names and drops the addresses that may not be connected to. The HTTP client calls this resolver for
/// the first address and for the target of each redirect, and connects only to the returned addresses.
#[derive(Debug)]
struct CheckedResolver {
    inner: DefaultResolver,
    remote: RemoteMedia,
}

impl Resolver for CheckedResolver {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        if self.remote == RemoteMedia::AnyNetwork {
            return Ok(found);
        }
        let mut allowed = self.empty();
        for address in found.iter().filter(|address| is_public(address.ip())) {
            allowed.push(*address);
        }
        match found.iter().next() {
            Some(first) if allowed.is_empty() => Err(std::io::Error::other(NotPublic(first.ip())).into()),
            _ => Ok(allowed),
        }
    }
}

/// The error for a host that has no address on the public internet.
#[derive(Debug, thiserror::Error)]
#[error("is at {0}, which is not on the public internet, so it is not downloaded")]
struct NotPublic(IpAddr);

/// Whether an address is on the public internet: not loopback, private, link-local, shared by a carrier, for
/// documentation, or multicast. An IPv6 address that contains an IPv4 address is checked as this IPv4 address.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = match a {
        0 => true,
        100 => b & 0xc0 == 64, // shared address space of carriers, 100.64.0.0/10
        192 => (b == 0 && c == 0) || (b == 88 && c == 99),
        198 => b & 0xfe == 18, // benchmarks, 198.18.0.0/15
        _ => a >= 224,         // multicast and reserved
    };
    !(special || ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_documentation())
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        // Mapped, translated (RFC 2765) and NAT64 addresses end with an IPv4 address. A 6to4 address has the IPv4
        // address after its prefix.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => is_public_v4(v4(high, low)),
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false, // Teredo and others; documentation
        [0x3fff, second, ..] if second < 0x1000 => false,                   // documentation
        // Global unicast addresses are 2000::/3. All others are loopback, link-local, site-local, or multicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Decodes a `data:TYPE;base64,…` URI.
pub fn decode_data_uri(uri: &str) -> Result<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let fault = |what: String| Error::input(crate::media::DATA_URI, what, "write data:TYPE;base64,CONTENT");
    let Some((_, content)) = uri.split_once("base64,") else {
        return Err(fault("is not base64".to_string()));
    };
    let clean: Vec<u8> = content.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    ENGINE.decode(clean).map_err(|e| fault(format!("has damaged base64 ({e})")))
}

#[cfg(test)]
mod tests;
