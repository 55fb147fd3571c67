//! A file as memory: weights are read in place, paged in by the system as they are touched, and shared between processes.
//!
//! Caution: the kernel answers a touch of a page beyond the file's end with SIGBUS, which ends the process. So a file that is
//! mapped must not be cut short or rewritten in place while a program runs on it; writers of this project never do (they
//! write aside and rename, which leaves the old content in place for those who have it mapped).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Advice, Mmap};

/// A whole file, mapped for reading. Cheap to share; unmapped when the last holder drops it.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    path: PathBuf,
}

/// How a file's pages are going to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// From front to back: read far ahead.
    Sequential,
    /// Here and there: read only what is touched.
    Random,
    /// All of it, soon: start reading now.
    WillNeed,
}

impl MappedFile {
    /// Maps the whole of `path`, which must be a regular file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Arc<Self>> {
        let path = path.as_ref().to_path_buf();
        // Before it is opened: opening a pipe that nobody writes to would wait for ever.
        if !std::fs::metadata(&path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(&path)?;
        // SAFETY: the mapping is private to this value and only read. The one thing that Rust cannot rule out is that another
        // process changes the file while it is mapped; see the caution at the top of this file.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Arc::new(Self { map, path }))
    }

    /// The file's bytes. Page-aligned at the start (where the file is not empty).
    pub fn as_bytes(&self) -> &[u8] {
        &self.map
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Where the file is, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the system how the pages will be used. A hint: it never fails a program.
    pub fn advise(&self, access: Access) {
        let advice = match access {
            Access::Sequential => Advice::Sequential,
            Access::Random => Advice::Random,
            Access::WillNeed => Advice::WillNeed,
        };
        let _ = self.map.advise(advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_bytes_and_outlives_a_rename_over_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, [7u8; 10_000]).unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        mapped.advise(Access::WillNeed);
        std::fs::write(folder.path().join("b"), [8u8; 3]).unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        assert!(mapped.as_bytes() == [7u8; 10_000] && mapped.len() == 10_000);
        assert_eq!(MappedFile::open(&path).unwrap().as_bytes(), [8u8; 3]);
    }

    #[test]
    fn an_empty_file_is_empty_and_folders_and_pipes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("none"), []).unwrap();
        assert!(MappedFile::open(folder.path().join("none")).unwrap().is_empty());
        assert!(MappedFile::open(folder.path()).is_err());
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(MappedFile::open(&pipe).unwrap_err().to_string().contains("not a regular file"));
        assert_eq!(MappedFile::open(folder.path().join("x")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
