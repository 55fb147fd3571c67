//! Atomic file writes: a file gets its final name only when it is complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::diagnostic::{TemporaryPaths, create_temporary};
use crate::error::{Error, Result};

/// A file that is written under a temporary name. [`AtomicFile::commit`] renames it to its final name. If the value
/// is dropped before that, the temporary file is removed. A device, a pipe or a standard stream is written directly,
/// because renaming would replace it by a file.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    /// The temporary path; `None` if the target is written directly.
    temporary: Option<PathBuf>,
    writer: Option<BufWriter<File>>,
    _unfinished: TemporaryPaths,
}

impl AtomicFile {
    /// Creates a temporary file in the folder of `target`.
    pub fn create(target: &Path) -> Result<Self> {
        if is_stream(target) {
            let file = File::options().write(true).open(target).map_err(|e| Error::cannot_write(target, &e))?;
            return Ok(Self::new(target, None, file, TemporaryPaths::new([])));
        }
        let created = create_temporary(|random| temporary_name(target, random), |path| File::create_new(path));
        let (file, temporary, unfinished) = created.map_err(|e| Error::cannot_write(target, &e))?;
        Ok(Self::new(target, Some(temporary), file, unfinished))
    }

    fn new(target: &Path, temporary: Option<PathBuf>, file: File, unfinished: TemporaryPaths) -> Self {
        let writer = Some(BufWriter::with_capacity(1 << 20, file));
        Self { target: target.to_path_buf(), temporary, writer, _unfinished: unfinished }
    }

    /// Flushes the file to the disk and renames it to its final name.
    pub fn commit(self) -> Result<()> {
        self.finish()?.rename_to_final_name()
    }

    /// Flushes the file to the disk but keeps the temporary name. So several files can get their final names
    /// together.
    pub fn finish(mut self) -> Result<FinishedFile> {
        let file = self.flushed()?;
        // Only regular files have a temporary name and are synced. Devices and pipes cannot be synced to a disk.
        if let Some(file) = file.filter(|_| self.temporary.is_some()) {
            file.sync_data().map_err(|e| Error::cannot_write(&self.target, &e))?;
        }
        Ok(FinishedFile { file: self })
    }

    /// Closes the file without waiting for the disk. The caller must sync the file system before it renames the file.
    /// For thousands of small files this takes much less time than [`AtomicFile::finish`].
    pub fn close_without_sync(mut self) -> Result<FinishedFile> {
        self.flushed()?;
        Ok(FinishedFile { file: self })
    }

    /// Writes the buffered bytes and takes the file. `None` if the file was taken before.
    fn flushed(&mut self) -> Result<Option<File>> {
        let flushed = self.writer.take().map(BufWriter::into_inner).transpose();
        flushed.map_err(|e| Error::cannot_write(&self.target, e.into_error()))
    }

    /// Returns the error for a failed write to this file.
    pub fn write_error(&self, source: io::Error) -> Error {
        Error::cannot_write(&self.target, &source)
    }
}

/// A complete file that still has its temporary name.
#[derive(Debug)]
pub struct FinishedFile {
    file: AtomicFile,
}

impl FinishedFile {
    /// Renames the file to its final name.
    pub fn rename_to_final_name(self) -> Result<()> {
        let AtomicFile { temporary, target, .. } = &self.file;
        temporary.as_ref().map_or(Ok(()), |from| fs::rename(from, target)).map_err(|e| Error::cannot_write(target, &e))
    }
}

/// Writes a small file under a temporary name and renames it when it is complete.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_temporary(path, bytes)?.rename_to_final_name()
}

/// Writes a small file under a temporary name.
pub fn write_temporary(path: &Path, bytes: &[u8]) -> Result<FinishedFile> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| file.write_error(e))?;
    file.finish()
}

/// Returns the temporary path of the file `target`: a hidden name in its folder, with `random` in it.
pub(crate) fn temporary_name(target: &Path, random: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{random}.part"))
}

/// Tells whether a path is a device or a pipe, or names an open file of this process (`/dev/stdout` can be a link to
/// a regular file).
fn is_stream(path: &Path) -> bool {
    let open = ["/proc", "/dev/fd", "/dev/stdout", "/dev/stderr"].iter().any(|own| path.starts_with(own));
    open || fs::metadata(path).is_ok_and(|facts| !facts.is_file() && !facts.is_dir())
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.writer {
            Some(writer) => writer.write(bytes),
            None => Err(io::Error::other("the file is already finished")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.flush())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a successful rename, no file has the temporary name, and this removal fails. A destructor can only
        // ignore errors.
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The temporary name cannot be guessed, and no file that has it is written to.
    #[test]
    fn temporary_files_are_new_files_of_random_names() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let create = || AtomicFile::create(&target).unwrap();
        let names: std::collections::BTreeSet<_> = [create(), create()].iter().map(|f| f.temporary.clone()).collect();
        assert_eq!(names.len(), 2);
        let (first, second) = (dir.path().join("0"), dir.path().join("1"));
        std::os::unix::fs::symlink(dir.path().join("victim"), &first).unwrap();
        let next = std::cell::Cell::new(0);
        let path_of = |_: &str| [&first, &second][next.replace(1)].clone();
        let (_, path, _unfinished) = create_temporary(path_of, |path| File::create_new(path)).unwrap();
        assert_eq!((path, dir.path().join("victim").exists()), (second, false));
    }

    #[test]
    fn devices_are_written_directly() {
        let dir = tempfile::tempdir().unwrap();
        // The test writes through links to the devices. A faulty `AtomicFile` would then replace a link and not a
        // device.
        for (name, device) in [("null", "/dev/null"), ("full", "/dev/full")] {
            let link = dir.path().join(name);
            std::os::unix::fs::symlink(device, &link).unwrap();
            let mut file = AtomicFile::create(&link).unwrap();
            file.write_all(b"words").unwrap();
            let done = file.commit();
            // `commit` flushes the data, so it reports the full disk.
            assert_eq!(done.is_ok(), name == "null", "{done:?}");
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(device));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }
}
