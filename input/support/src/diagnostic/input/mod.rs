//! Opens input files. Every input that a user, a model folder or a row names is opened here, for safety: a device
//! such as `/dev/zero` never ends, opening a pipe without a writer never returns, and a file can be larger than
//! memory.

mod content;

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

pub use content::{SIGNATURE_BYTES, recognise};

/// The size limit of a JSON file of a model folder, such as config.json, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The size limit of a tokenizer.json in bytes. The tokenizer.json of Qwen2.5-VL has 11 MB. A vocabulary takes about
/// ten times its file size in memory.
pub const MAX_TOKENIZER_BYTES: u64 = 32 << 20;

/// The size limit in bytes of a file of chat messages, which may contain images as `data:` URIs.
pub const MAX_MESSAGES_BYTES: u64 = 256 << 20;

/// The size limit in bytes of a file of rows (training data, completions, predictions, rollouts).
pub const MAX_ROWS_BYTES: u64 = 4 << 30;

/// The reason why an existing file cannot be an input. It is the source of the [`io::Error`] that
/// [`open_regular_file`] and [`read_file`] return, so that
/// [`Diagnostic::cannot_read`](crate::diagnostic::Diagnostic::cannot_read) can print help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsuitableFile {
    /// The path is a folder.
    Folder,
    /// The path is a pipe, a socket or a device.
    Special,
    /// The file has more bytes than the limit.
    TooLong {
        /// The file's length in bytes, or a lower bound if the file grew while it was read.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The path is a symbolic link, where only a file of this user may be.
    Link,
    /// The file or folder belongs to another user, where only one of this user may be.
    OtherOwner {
        /// The id of that user.
        owner: u32,
    },
    /// Other users can write to the file, or replace the files of the folder.
    WritableByOthers {
        /// The permissions, such as 0o666.
        mode: u32,
    },
    /// The file is something else than its name says ([`recognise`]).
    Other {
        /// What the file is.
        what: &'static str,
        /// What the user can do.
        help: &'static str,
    },
}

impl UnsuitableFile {
    /// Returns the help text: what the user can do.
    pub fn help(self) -> &'static str {
        match self {
            Self::Folder => "give a file",
            Self::Special => "copy its content to a file",
            Self::TooLong { .. } => "check that it is the file you mean, or split it",
            Self::Link => "remove the link, or choose another folder",
            Self::OtherOwner { .. } => "remove it, or choose another folder",
            Self::WritableByOthers { .. } => "take this right from them (chmod go-w), or choose another folder",
            Self::Other { help, .. } => help,
        }
    }
}

impl fmt::Display for UnsuitableFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder => f.write_str("is a folder, not a regular file"),
            Self::Special => f.write_str("is not a regular file"),
            Self::TooLong { bytes, limit } => {
                write!(f, "is {bytes} bytes long, above the limit of {limit} bytes for this kind of file")
            }
            Self::Link => f.write_str("is a symbolic link, which another user may have made"),
            Self::OtherOwner { owner } => write!(f, "belongs to another user (id {owner})"),
            Self::WritableByOthers { mode } => write!(f, "can be changed by other users (mode {mode:04o})"),
            Self::Other { what, .. } => f.write_str(what),
        }
    }
}

impl std::error::Error for UnsuitableFile {}

impl From<UnsuitableFile> for io::Error {
    fn from(why: UnsuitableFile) -> Self {
        let kind = match why {
            UnsuitableFile::Folder => io::ErrorKind::IsADirectory,
            UnsuitableFile::Special => io::ErrorKind::InvalidInput,
            UnsuitableFile::TooLong { .. } => io::ErrorKind::FileTooLarge,
            UnsuitableFile::Link | UnsuitableFile::OtherOwner { .. } | UnsuitableFile::WritableByOthers { .. } => {
                io::ErrorKind::PermissionDenied
            }
            UnsuitableFile::Other { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, why)
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// The file cannot be opened; it is a folder, a pipe, a socket or a device (an [`UnsuitableFile`]).
pub fn open_regular_file(path: impl AsRef<Path>) -> io::Result<File> {
    // The type is checked before opening, because opening a pipe without a writer blocks forever. It is checked again
    // afterwards, because another file may have got the name in between.
    check_is_regular(&std::fs::metadata(&path)?)?;
    let file = File::open(path)?;
    check_is_regular(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// The file cannot be opened, or is not a regular file; it has more than `limit` bytes; it is a pointer of Git LFS, a
/// web page or a drawing in place of the file; reading fails.
pub fn read_file(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular_file(path)?;
    let bytes = file.metadata()?.len();
    let too_long = |bytes| io::Error::from(UnsuitableFile::TooLong { bytes, limit });
    if bytes > limit {
        return Err(too_long(bytes));
    }
    let mut content = Vec::with_capacity(bytes as usize);
    // Files of /proc and growing files have more bytes than their length says.
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(too_long(content.len() as u64));
    }
    content::recognise_text(&content).map_or(Ok(content), |other| Err(other.into()))
}

/// Returns what the regular file `path` is, if [`recognise`] knows its first bytes.
///
/// # Errors
/// The file cannot be opened, or is not a regular file; reading fails.
pub fn recognise_file(path: impl AsRef<Path>) -> io::Result<Option<UnsuitableFile>> {
    let mut start = Vec::new();
    open_regular_file(path)?.take(SIGNATURE_BYTES as u64).read_to_end(&mut start)?;
    Ok(recognise(&start))
}

/// Reads a regular file of at most `limit` bytes as UTF-8 text.
///
/// # Errors
/// The file cannot be read, is not a regular file, or has more than `limit` bytes; the content is not UTF-8.
pub fn read_text(path: impl AsRef<Path>, limit: u64) -> io::Result<String> {
    let bytes = read_file(path, limit)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

fn check_is_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(if metadata.is_dir() { UnsuitableFile::Folder } else { UnsuitableFile::Special }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Diagnostic;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let folder = std::env::temp_dir().join(format!("reel-input-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let text = folder.join("text");
        std::fs::write(&text, "12345").unwrap();
        assert_eq!(read_text(&text, 5).unwrap(), "12345");
        let pipe = folder.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let socket = folder.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::fs::write(folder.join("binary"), [0xff]).unwrap();
        for (path, expected) in [
            (text.as_path(), "is 5 bytes long, above the limit of 4 bytes"),
            (&pipe, ": is not a regular file; copy its content to a file"),
            (&socket, ": is not a regular file; "),
            (Path::new("/dev/zero"), "/dev/zero: is not a regular file; "),
            (&folder, ": is a folder, not a regular file; give a file"),
            (Path::new("/proc/self/status"), "above the limit of 4 bytes"),
            (&folder.join("none"), "there is no such file"),
            (&folder.join("binary"), "it is not UTF-8 text"),
        ] {
            let error = Diagnostic::cannot_read(path, &read_text(path, 4).unwrap_err()).to_string();
            assert!(error.starts_with(&*path.to_string_lossy()) && error.contains(expected), "{error}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
