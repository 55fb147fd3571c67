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

/// A file being written under a temporary name; [`AtomicFile::commit`] gives it its own. Dropped before that, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
    _unfinished: Unfinished,
}

impl AtomicFile {
    /// Starts a file that is to become `target`, in the same folder.
    pub fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let temporary = target.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let unfinished = Unfinished::new([temporary.clone()]);
        let file = File::create(&temporary).map_err(|e| ModelError::write(target, e))?;
        let writer = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { target: target.to_path_buf(), temporary, writer, _unfinished: unfinished })
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
            file.sync_data().map_err(|e| ModelError::write(&target, e))?;
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
        fs::rename(&self.file.temporary, &self.file.target).map_err(|e| ModelError::write(&self.file.target, e))
    }
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
        let _ = fs::remove_file(&self.temporary);
    }
}
