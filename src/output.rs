//! What a command leaves behind: text on stdout, and files that are whole or absent.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::fail::failed;

/// One line of text on stdout.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("stdout: cannot be written; check where it leads")
}

/// Text on stdout as it is, at once.
pub fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("stdout: cannot be written; check where it leads")
}

/// A machine-readable result: one line of JSON on stdout.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(value)?)
}

/// Whether somebody watches stderr, where progress goes.
pub fn watched() -> bool {
    io::stderr().is_terminal()
}

/// A file being written under a temporary name beside its final one. Dropped without [`Draft::keep`], it is removed.
#[derive(Debug)]
pub struct Draft {
    to: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Draft {
    /// Begins a file that will be called `to`.
    pub fn begin(to: &Path) -> Result<Self> {
        let name = to.file_name().filter(|_| !to.is_dir()).ok_or_else(|| {
            failed(to.display(), "is a folder, not a file name", "give the name of the file to write")
        })?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let temporary = to.with_file_name(hidden);
        let file = File::create(&temporary).map_err(|e| not_written(to, e))?;
        Ok(Self { to: to.to_path_buf(), temporary, file: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// Flushes everything to the disk and gives the file its name.
    pub fn keep(mut self) -> Result<()> {
        if let Some(file) = self.file.take() {
            file.into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|f| f.sync_all())
                .and_then(|()| fs::rename(&self.temporary, &self.to))
                .map_err(|e| not_written(&self.to, e))?;
        }
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Err(io::ErrorKind::NotFound.into()), |f| f.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Nothing to do about a temporary file that cannot be removed; after `keep` there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a whole file, or leaves what was there before.
pub fn file(to: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = Draft::begin(to)?;
    draft.write_all(bytes).map_err(|e| not_written(to, e))?;
    draft.keep()
}

/// The error of a file that could not be written, with a cure for what the system said.
pub fn not_written(path: &Path, e: io::Error) -> anyhow::Error {
    let (what, cure) = match e.kind() {
        io::ErrorKind::StorageFull => ("the disk is full".to_string(), "free some space or write elsewhere"),
        io::ErrorKind::QuotaExceeded => ("the quota is used up".to_string(), "free some space or write elsewhere"),
        io::ErrorKind::NotFound => ("its folder does not exist".to_string(), "make the folder first"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ("not permitted".to_string(), "write elsewhere or change the permissions")
        }
        io::ErrorKind::BrokenPipe => return anyhow::Error::from(e),
        _ => (e.to_string(), "check the path and the disk"),
    };
    let message = format!("{}: cannot be written: {what}; {cure}", path.display());
    anyhow::Error::from(e).context(message)
}

/// The error of a file that could not be read.
pub fn not_read(path: &Path, e: io::Error) -> anyhow::Error {
    let message = match e.kind() {
        io::ErrorKind::NotFound => format!("{}: no such file; check the path", path.display()),
        io::ErrorKind::IsADirectory => format!("{}: is a folder; give a file", path.display()),
        _ => format!("{}: cannot be read: {e}; check the path and its permissions", path.display()),
    };
    anyhow::Error::from(e).context(message)
}

/// Tensors in a safetensors file, written in one go.
#[derive(Debug, Default)]
pub struct Tensors<'a> {
    entries: Vec<(String, &'static str, Vec<usize>, &'a [u8])>,
}

impl<'a> Tensors<'a> {
    /// Adds a tensor; `dtype` in safetensors' spelling.
    pub fn add(&mut self, name: &str, dtype: &'static str, shape: &[usize], bytes: &'a [u8]) {
        self.entries.push((name.to_string(), dtype, shape.to_vec(), bytes));
    }

    /// Writes the file: header length, header, then the tensors in order. The header is padded so that data begin at a
    /// multiple of 8 bytes.
    pub fn write(&self, to: &Path) -> Result<()> {
        let mut header = serde_json::Map::new();
        let mut at = 0;
        for (name, dtype, shape, bytes) in &self.entries {
            let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes.len()]});
            header.insert(name.clone(), entry);
            at += bytes.len();
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut draft = Draft::begin(to)?;
        let parts = [&(header.len() as u64).to_le_bytes()[..], &header];
        for bytes in parts.into_iter().chain(self.entries.iter().map(|e| e.3)) {
            draft.write_all(bytes).map_err(|e| not_written(to, e))?;
        }
        draft.keep()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_that_is_not_kept_leaves_nothing() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let to = dir.path().join("x.bin");
        file(&to, b"before")?;
        let mut draft = Draft::begin(&to)?;
        draft.write_all(b"half")?;
        drop(draft);
        assert_eq!(fs::read(&to)?, b"before");
        assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        file(&to, b"after")?;
        assert_eq!(fs::read(&to)?, b"after");
        assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_missing_folder_is_named_in_one_line() {
        let e = file(Path::new("no/such/folder/x"), b"").unwrap_err().to_string();
        assert!(e.starts_with("no/such/folder/x: ") && e.contains("make the folder") && !e.contains('\n'), "{e}");
    }

    #[test]
    fn tensors_read_back() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let to = dir.path().join("t.safetensors");
        let mut t = Tensors::default();
        t.add("b", "U8", &[3], &[1, 2, 3]);
        t.add("a", "I64", &[1], &[5, 0, 0, 0, 0, 0, 0, 0]);
        t.write(&to)?;
        let bytes = fs::read(&to)?;
        let back = safetensors::SafeTensors::deserialize(&bytes)?;
        assert_eq!(back.tensor("a")?.data()[0], 5);
        assert_eq!(back.tensor("b")?.shape(), [3]);
        Ok(())
    }
}
