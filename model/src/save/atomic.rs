//! A file that appears under its name only when it is whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{ModelError, Result};

/// What is to be removed if the program ends now.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every file that is not whole, folders that are empty without them, and hidden ones (`.….part`) with all they hold: for a program that is interrupted, whose values
/// are not dropped.
pub fn remove_unfinished() {
    // Backwards, what lies in a folder comes before the folder. What cannot be removed stays: no one is left to be told.
    for path in unfinished().iter().rev() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = name.starts_with('.') && name.ends_with(".part");
        let folder = || if hidden { fs::remove_dir_all(path) } else { fs::remove_dir(path) };
        let _ = fs::remove_file(path).or_else(|_| folder());
    }
}

/// Paths that are worth nothing before all is done; dropped when it is.
#[derive(Debug)]
pub(crate) struct Unfinished(Vec<PathBuf>);

impl Unfinished {
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        unfinished().extend(paths.iter().cloned());
        Self(paths)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut all = unfinished();
        self.0.iter().for_each(|path| {
            all.remove(path);
        });
    }
}

/// A file being written under a temporary name; [`AtomicFile::commit`] gives it its own. Dropped before that, it is removed. A device, a
/// pipe or a standard stream is written to directly: to rename a file over it would destroy it.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    /// `None` where it is written to directly.
    temporary: Option<PathBuf>,
    writer: Option<BufWriter<File>>,
    _unfinished: Unfinished,
}

impl AtomicFile {
    /// Starts a file that is to become `target`, in the same folder.
    pub fn create(target: &Path) -> Result<Self> {
        if is_stream(target) {
            let file = File::options().write(true).open(target).map_err(|e| ModelError::write(target, e))?;
            return Ok(Self::new(target, None, file, Unfinished::new([])));
        }
        let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let temporary = target.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let unfinished = Unfinished::new([temporary.clone()]);
        let file = File::create(&temporary).map_err(|e| ModelError::write(target, e))?;
        Ok(Self::new(target, Some(temporary), file, unfinished))
    }

    fn new(target: &Path, temporary: Option<PathBuf>, file: File, unfinished: Unfinished) -> Self {
        let writer = Some(BufWriter::with_capacity(1 << 20, file));
        Self { target: target.to_path_buf(), temporary, writer, _unfinished: unfinished }
    }

    /// Writes it out, to the disk itself, and renames it to its final name.
    pub fn commit(self) -> Result<()> {
        self.finish()?.publish()
    }

    /// Writes it out, to the disk itself, but keeps the temporary name: for files that are to appear together.
    pub fn finish(mut self) -> Result<Finished> {
        let target = self.target.clone();
        if let Some(writer) = self.writer.take() {
            let file = writer.into_inner().map_err(|e| ModelError::write(&target, e.into_error()))?;
            // Streams have no disk behind them.
            self.temporary.as_ref().map_or(Ok(()), |_| file.sync_data()).map_err(|e| ModelError::write(&target, e))?;
        }
        Ok(Finished { file: self })
    }

    /// An error of a write to this file.
    pub(crate) fn error(&self, source: io::Error) -> ModelError {
        ModelError::write(&self.target, source)
    }
}

/// A whole file that still has its temporary name.
#[derive(Debug)]
pub struct Finished {
    file: AtomicFile,
}

impl Finished {
    /// Gives it its final name.
    pub fn publish(self) -> Result<()> {
        let AtomicFile { temporary, target, .. } = &self.file;
        temporary.as_ref().map_or(Ok(()), |from| fs::rename(from, target)).map_err(|e| ModelError::write(target, e))
    }
}

/// Whether a path is a device, a pipe or one of this process's open files, which `/dev/stdout` may name though it leads to a file.
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
        // Renamed files are no longer there under this name; a failure to remove has no one to tell.
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_stays_a_device() {
        let dir = tempfile::tempdir().unwrap();
        // Behind links: a program that renames a file over them costs no more than these.
        for (name, device) in [("null", "/dev/null"), ("full", "/dev/full")] {
            let link = dir.path().join(name);
            std::os::unix::fs::symlink(device, &link).unwrap();
            let mut file = AtomicFile::create(&link).unwrap();
            file.write_all(b"words").unwrap();
            let done = file.commit();
            // What is written is not only buffered: a full disk shows.
            assert_eq!(done.is_ok(), name == "null", "{done:?}");
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(device));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }
}
