//! Memory-mapped files, so that weights are read in place. The operating system loads pages when they are first read,
//! and shares them between processes.
//!
//! Caution: reading a page beyond the end of the file raises SIGBUS, which ends the process. So a mapped file must
//! not be truncated or rewritten in place. This project writes a file under another name and renames it; existing
//! mappings keep the old content.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

/// A file that is mapped as a whole for reading. It is unmapped when the last `Arc` is dropped.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    path: PathBuf,
}

impl MappedFile {
    /// Maps the whole file `path`, which must be a regular file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Arc<Self>> {
        let path = path.as_ref().to_path_buf();
        // This check comes before opening, because opening a pipe without a writer would block forever.
        if !std::fs::metadata(&path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(&path)?;
        // SAFETY: the mapping is private to this value and only read. Another process could still change the file while
        // it is mapped; see the caution at the top of this file.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Arc::new(Self { map, path }))
    }

    /// The bytes of the file. The first byte is page-aligned, unless the file is empty.
    pub fn as_bytes(&self) -> &[u8] {
        &self.map
    }

    /// The length of the file in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Allows the operating system to drop the pages of a range from this process's memory. A later access reads them
    /// from the file again. Has no effect on systems other than Linux.
    pub fn forget_pages(&self, offset: usize, len: usize) {
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let (begin, end) = (offset.next_multiple_of(PAGE), (offset + len).min(self.len()) / PAGE * PAGE);
            if begin < end {
                // SAFETY: the mapping is of a file and only read, so that its pages can be read again with the same
                // content. Whole pages inside of the mapping are named. An error means that the pages stay.
                let _ =
                    unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, begin, end - begin) };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, len);
    }

    /// The path that was given to [`Self::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_keeps_old_content_after_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, [7u8; 10_000]).unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        std::fs::write(folder.path().join("b"), [8u8; 3]).unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        assert!(mapped.as_bytes() == [7u8; 10_000] && mapped.len() == 10_000);
        assert_eq!(MappedFile::open(&path).unwrap().as_bytes(), [8u8; 3]);
    }

    #[test]
    fn forgotten_pages_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..50_000).map(|i| (i % 253) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        for (offset, len) in [(0, 50_000), (1, 4096), (4095, 8193), (49_999, 1), (0, 0), (40_000, 1 << 20), (60_000, 5)]
        {
            mapped.forget_pages(offset, len);
            assert_eq!(mapped.as_bytes(), bytes);
        }
    }

    #[test]
    fn accepts_empty_file_and_refuses_folders_and_pipes() {
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
