//! Incomplete files and folders. Their writers register them here, so that the program can remove them when a signal
//! ends it.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The paths of incomplete files and folders. They are removed if the program is interrupted.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all incomplete files, the folders that are then empty, and unfinished hidden folders (`.….part`) with
/// their contents. Call this function when a signal ends the program, because destructors do not run then.
pub fn remove_unfinished_files() {
    // The paths are removed in reverse order, so that the files of a folder come before the folder. Errors are
    // ignored, because the program is ending.
    for path in unfinished().iter().rev() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = name.starts_with('.') && name.ends_with(".part");
        let folder = || if hidden { fs::remove_dir_all(path) } else { fs::remove_dir(path) };
        let _ = fs::remove_file(path).or_else(|_| folder());
    }
}

/// Paths that are removed if the program is interrupted. Dropping this value unregisters them.
#[derive(Debug)]
pub struct TemporaryPaths(Vec<PathBuf>);

impl TemporaryPaths {
    /// Registers these paths. They need not exist yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        unfinished().extend(paths.iter().cloned());
        Self(paths)
    }
}

/// Creates a temporary file or folder of a random name, so that nobody can have put a symbolic link or another file
/// there. `path_of` returns the path for 8 random hex digits. `create` creates it, and fails if the path exists. Returns
/// the result of `create`, the path, and its registration.
///
/// # Errors
/// The errors of `create`.
pub fn create_temporary<T>(
    path_of: impl Fn(&str) -> PathBuf,
    create: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf, TemporaryPaths)> {
    const MAX_ATTEMPTS: usize = 100;
    for _ in 0..MAX_ATTEMPTS {
        let random = RandomState::new().hash_one(std::process::id()) as u32;
        let path = path_of(&format!("{random:08x}"));
        let unfinished = TemporaryPaths::new([path.clone()]);
        match create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.map(|created| (created, path, unfinished)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

impl Drop for TemporaryPaths {
    fn drop(&mut self) {
        let mut all = unfinished();
        self.0.iter().for_each(|path| {
            all.remove(path);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_paths_are_removed_and_others_stay() {
        let folder = std::env::temp_dir().join(format!("reel-unfinished-{}", std::process::id()));
        let (hidden, made, kept) = (folder.join(".a.part"), folder.join("made"), folder.join("kept"));
        [&hidden, &made].into_iter().for_each(|path| fs::create_dir_all(path).unwrap());
        let files = [hidden.join("x"), made.join("y"), folder.join("z"), kept.clone()];
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        drop(TemporaryPaths::new([kept.clone()]));
        let paths = TemporaryPaths::new([hidden.clone(), made.clone(), files[1].clone(), files[2].clone()]);
        remove_unfinished_files();
        let left: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [kept]);
        drop(paths);
        fs::remove_dir_all(&folder).unwrap();
    }
}
