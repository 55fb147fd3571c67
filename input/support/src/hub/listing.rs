//! The commit of a revision and the files in it, as the hub lists them.

use crate::diagnostic::one_line;
use crate::error::{Error, Result};
use serde_json::Value;

use crate::hub::download;
use crate::hub::environment::Hub;
use crate::hub::reference::{Repository, RepositoryKind, is_commit, is_safe_path};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// The path in the repository, with `/` between its parts.
    pub(crate) path: String,
    /// The size in bytes, if the hub states it.
    pub(crate) bytes: Option<u64>,
    /// The expected checksum of the content, if the hub states it.
    pub(crate) checksum: Option<Checksum>,
}

/// A checksum in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// The SHA-256 of the content, for large files, which the hub stores outside git.
    Sha256(String),
    /// The SHA-1 of `blob LENGTH\0` and the content, which is git's id of a small file.
    GitBlob(String),
}

/// The commit of a revision, and its files.
#[derive(Clone, Debug)]
pub(crate) struct RepositoryListing {
    pub(crate) commit: String,
    pub(crate) files: Vec<RemoteFile>,
}

impl Hub {
    /// Requests the commit of the repository's revision and its list of files from the hub.
    pub(crate) fn fetch_listing(&self, repository: &Repository) -> Result<RepositoryListing> {
        let Repository { kind, id, revision } = repository;
        let revision = download::percent_encoded(revision, false);
        let address = format!("{}/api/{}/{id}/revision/{revision}?blobs=true", self.endpoint, kind.plural_name());
        let text = download::download_text(&address, self.token.as_deref()).map_err(|failure| {
            let of_folder = match kind {
                RepositoryKind::Model => "is not a folder, is",
                RepositoryKind::Dataset => "is neither a file nor a folder, is",
            };
            let what = format!("{of_folder} not in the hub cache {}, and {}", self.cache.display(), failure.phrase);
            let help = if failure.is_refused {
                match self.token_source.as_deref() {
                    None => {
                        "check the name; if access to it is restricted, run hf auth login or set HF_TOKEN".to_string()
                    }
                    Some(source) => format!("check the name, and whether the user of the token in {source} has access"),
                }
            } else {
                "check the name and the network, or give a folder".to_string()
            };
            Error::failed(repository.name(), what, help)
        })?;
        parse(&text)
            .ok_or_else(|| {
                let what = format!("{address} did not answer with a list of files");
                Error::failed(repository.name(), what, "check HF_ENDPOINT")
            })?
            .map_err(|path| {
                let what = format!("has a file with the unsafe path \"{}\"", one_line(&path));
                Error::failed(repository.name(), what, "do not use this repository")
            })
    }
}

/// Parses the hub's answer; `None` if it has another form. The inner error is a path that would leave the folder.
fn parse(text: &str) -> Option<Result<RepositoryListing, String>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let commit = value.get("sha")?.as_str().filter(|sha| is_commit(sha))?.to_string();
    let mut files = Vec::new();
    for file in value.get("siblings")?.as_array()? {
        let path = file.get("rfilename")?.as_str()?;
        // Hidden files, such as .gitattributes, are never needed.
        if path.split('/').any(|part| part.starts_with('.') && part != ".." && part != ".") {
            continue;
        }
        if !is_safe_path(path) {
            return Some(Err(path.to_string()));
        }
        files.push(remote_file(path, file));
    }
    Some(Ok(RepositoryListing { commit, files }))
}

fn remote_file(path: &str, file: &Value) -> RemoteFile {
    let hexadecimal = |value: &Value, digits: usize| {
        let text = value.as_str()?.to_ascii_lowercase();
        (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
    };
    let lfs = file.get("lfs").filter(|lfs| lfs.is_object());
    let checksum = match lfs {
        // For a file that the hub stores outside git (LFS), git's id covers only a few lines that name the content.
        Some(lfs) => lfs.get("sha256").and_then(|sha| hexadecimal(sha, 64)).map(Checksum::Sha256),
        None => file.get("blobId").and_then(|id| hexadecimal(id, 40)).map(Checksum::GitBlob),
    };
    let bytes = lfs.and_then(|lfs| lfs.get("size")).or_else(|| file.get("size")).and_then(Value::as_u64);
    RemoteFile { path: path.to_string(), bytes, checksum }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn files_have_sizes_and_checksums() {
        let (sha256, blob) = ("ab".repeat(32), "cd".repeat(20));
        let text = format!(
            r#"{{"sha": "{COMMIT}", "siblings": [
                {{"rfilename": ".gitattributes", "size": 1}},
                {{"rfilename": "a/b.json", "size": 7, "blobId": "{blob}"}},
                {{"rfilename": "w.safetensors", "size": 9, "blobId": "{blob}", "lfs": {{"sha256": "{sha256}", "size": 9}}}},
                {{"rfilename": "old"}}]}}"#
        );
        let listing = parse(&text).unwrap().unwrap();
        let of = |path: &str, bytes, checksum| RemoteFile { path: path.into(), bytes, checksum };
        assert_eq!(listing.commit, COMMIT);
        assert_eq!(
            listing.files,
            [
                of("a/b.json", Some(7), Some(Checksum::GitBlob(blob))),
                of("w.safetensors", Some(9), Some(Checksum::Sha256(sha256))),
                of("old", None, None),
            ]
        );
    }

    #[test]
    fn unsafe_answers_are_refused() {
        for path in ["../x", "/etc/x", "a//b", "a/../b", "a\\\\b"] {
            let text = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{path}"}}]}}"#);
            assert!(parse(&text).unwrap().is_err(), "{path}");
        }
        for text in ["", "[]", r#"{"sha": "x", "siblings": []}"#, r#"{"sha": "../../x", "siblings": []}"#] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
