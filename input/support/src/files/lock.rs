//! Exclusive locks on the folders that commands write, so that two processes never write to the same folder at the
//! same time.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::diagnostic::TemporaryPaths;

use crate::files::own::open_without_link;

/// The file that a process locks while it writes to the file's folder. Its text is the id of that process and the
/// name of its machine.
pub const FOLDER_LOCK_FILE: &str = ".reel.lock";

/// The maximum number of attempts of [`FileLock::acquire`]. It tries again if another process removes the lock file
/// or the folder in the meantime, or holds the lock and has not written its id yet.
const MAX_ATTEMPTS: usize = 100;

/// The pause of [`FileLock::acquire`] before each further attempt, while it waits for the id of the process that
/// holds the lock.
const WAIT_FOR_ID: Duration = Duration::from_millis(10);

/// An exclusively locked file. Its path stands for the protected resource.
///
/// The kernel holds the lock (flock) and releases it when the process ends in any way. A file that a killed process
/// left behind does not prevent a new lock. Dropping the lock removes the file.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    /// The locked file; closing it releases the lock.
    file: File,
    _unfinished: TemporaryPaths,
}

/// The exclusive lock of this process on a folder: a [`FileLock`] on a hidden file in it. Dropping this value
/// releases the lock. It also removes the folder if [`FolderLock::acquire`] created it and it is still empty.
#[derive(Debug)]
pub struct FolderLock {
    /// `None` only while this value is being dropped.
    lock: Option<FileLock>,
    /// The folders that [`FolderLock::acquire`] created, outermost first.
    created: Vec<PathBuf>,
    _unfinished: TemporaryPaths,
}

/// The process that holds the lock on a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockHolder {
    /// The process id; `None` if the lock file does not hold an id.
    pub pid: Option<u32>,
    /// The name of the process's machine, if it is not this machine.
    pub machine: Option<String>,
}

/// The reason why a folder cannot be locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds the lock.
    InUse(LockHolder),
    /// The folder cannot be created, or the lock file cannot be written.
    Io(io::Error),
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => write!(f, "another process")?,
        }
        self.machine.as_ref().map_or(Ok(()), |machine| write!(f, " on {machine}"))
    }
}

impl LockHolder {
    /// Tells whether the process may be running: the lock file contains its id, and the process exists or is on
    /// another machine.
    fn is_running(&self) -> bool {
        self.pid.is_some_and(|pid| self.machine.is_some() || Path::new(&format!("/proc/{pid}")).exists())
    }
}

impl FileLock {
    /// Locks the file at `path` without waiting. Creates the file if it does not exist.
    ///
    /// # Errors
    /// Another process holds the lock, or the file cannot be written.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let mut holder = LockHolder::default();
        for _ in 0..MAX_ATTEMPTS {
            let options = File::options().read(true).write(true).create(true).truncate(false).to_owned();
            let file = open_without_link(path, &options).map_err(LockError::Io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    holder = read_holder(file);
                    // The lock file still has the id of a killed process until the new holder writes its own id.
                    if holder.is_running() {
                        break;
                    }
                    std::thread::sleep(WAIT_FOR_ID);
                    continue;
                }
                // Some network file systems do not support locks. Writing there is allowed, but not protected.
                Err(TryLockError::Error(e)) if has_no_locks(&e) => {
                    let path = path.display();
                    crate::diagnostic::note!(
                        "warning: {path}: the file system does not support locks ({e}); do not start a second process that writes there"
                    );
                }
                Err(TryLockError::Error(e)) => return Err(LockError::Io(e)),
            }
            // The last holder may have removed the file after this process opened it. Then another process can create
            // and lock a new file of this name, and this lock protects nothing.
            if !is_file_at(&file, path) {
                continue;
            }
            write_holder(&file).map_err(LockError::Io)?;
            let unfinished = TemporaryPaths::new([path.to_path_buf()]);
            return Ok(Self { path: path.to_path_buf(), file, _unfinished: unfinished });
        }
        Err(LockError::InUse(holder))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // The file is removed before the lock is released. A destructor can only ignore errors, and a lock file that
        // stays does not prevent the next lock. If another file now has the name, it can be the lock of another
        // process, so it stays.
        if is_file_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl FolderLock {
    /// Locks a folder without waiting. A folder that does not exist is created.
    ///
    /// # Errors
    /// Another process holds the lock, or the folder cannot be created or written.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let mut created = Vec::new();
        for attempt in 1.. {
            create_folders(folder, &mut created).map_err(LockError::Io)?;
            match FileLock::acquire(&folder.join(FOLDER_LOCK_FILE)) {
                Ok(lock) => {
                    let unfinished = TemporaryPaths::new(created.iter().cloned());
                    return Ok(Self { lock: Some(lock), created, _unfinished: unfinished });
                }
                // The last holder has just removed the folder, because it had created the folder.
                Err(LockError::Io(e)) if e.kind() == io::ErrorKind::NotFound && attempt < MAX_ATTEMPTS => {}
                Err(e) => return Err(e),
            }
        }
        Err(LockError::InUse(LockHolder::default()))
    }
}

impl FolderLock {
    /// Tells whether the folder still contains the locked file. If the folder was removed or replaced, it does not,
    /// and writes to the folder's path are no longer protected.
    pub fn still_protects_folder(&self) -> bool {
        self.lock.as_ref().is_some_and(|lock| is_file_at(&lock.file, &lock.path))
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        self.lock = None;
        for folder in self.created.iter().rev() {
            // The removal fails if the folder contains files by now. Most commands create a folder to write files
            // into it.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Creates `folder` and its missing parents, and adds those that did not exist to `created`, outermost first.
fn create_folders(folder: &Path, created: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing: Vec<&Path> =
        folder.ancestors().filter(|path| !path.as_os_str().is_empty()).take_while(|path| !path.exists()).collect();
    // For a loop of symbolic links, creating a folder only reports that the path exists. Reading the path reports the
    // loop.
    let cause = |e| fs::metadata(folder).err().filter(|read| read.kind() != io::ErrorKind::NotFound).unwrap_or(e);
    fs::create_dir_all(folder).map_err(cause)?;
    for path in missing.into_iter().rev() {
        if !created.iter().any(|known| known == path) {
            created.push(path.to_path_buf());
        }
    }
    Ok(())
}

fn is_file_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |facts: &fs::Metadata| (facts.dev(), facts.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if identity(&a) == identity(&b))
}

fn has_no_locks(e: &io::Error) -> bool {
    // ENOLCK and ENOSYS have no `io::ErrorKind`. Their numbers on Linux are 37 and 38.
    e.kind() == io::ErrorKind::Unsupported || matches!(e.raw_os_error(), Some(37 | 38))
}

fn machine_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string()
}

fn write_holder(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{}\n{}\n", std::process::id(), machine_name()).as_bytes())
}

fn read_holder(mut file: File) -> LockHolder {
    let mut text = String::new();
    let _ = Read::by_ref(&mut file).take(4096).read_to_string(&mut text);
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.parse().ok());
    let machine = lines.next().filter(|name| !name.is_empty() && *name != machine_name()).map(str::to_string);
    LockHolder { pid, machine }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_is_refused_with_the_process_id_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        let first = FolderLock::acquire(&out).unwrap();
        // Another path to the same folder uses the same lock.
        for other in [out.clone(), dir.path().join("a/../a/b")] {
            let Err(LockError::InUse(holder)) = FolderLock::acquire(&other) else { panic!("two locks at a time") };
            assert_eq!(holder.to_string(), format!("process {}", std::process::id()));
        }
        drop(first);
        assert!(!dir.path().join("a").exists(), "folders that stayed empty are removed");
        let second = FolderLock::acquire(&out).unwrap();
        fs::write(out.join("file"), "x").unwrap();
        drop(second);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn lock_of_a_replaced_folder_is_noticed_and_leaves_the_new_folder_alone() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let lock = FolderLock::acquire(&out).unwrap();
        assert!(lock.still_protects_folder());
        fs::remove_dir_all(&out).unwrap();
        assert!(!lock.still_protects_folder());
        let second = FolderLock::acquire(&out).unwrap();
        assert!(!lock.still_protects_folder() && second.still_protects_folder());
        drop(lock);
        assert!(second.still_protects_folder(), "the first lock removed the file of the second");
    }

    #[test]
    fn lock_file_of_a_dead_process_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FOLDER_LOCK_FILE), "1\nelsewhere\n").unwrap();
        let lock = FolderLock::acquire(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(FOLDER_LOCK_FILE)).unwrap();
        assert!(text.starts_with(&format!("{}\n", std::process::id())), "{text}");
        drop(lock);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn lock_file_that_is_a_link_is_refused_and_its_target_is_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "text").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(FOLDER_LOCK_FILE)).unwrap();
        let Err(LockError::Io(e)) = FolderLock::acquire(dir.path()) else { panic!("the link was followed") };
        assert!(e.to_string().contains("is a symbolic link"), "{e}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "text");
    }

    /// A process first locks the file and then writes its id into it. Until then, the file is empty or has the id of
    /// a killed process.
    #[test]
    fn id_of_the_holder_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FOLDER_LOCK_FILE);
        for text in ["", "4294967295\n"] {
            fs::write(&path, text).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.lock().unwrap();
            let holder = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(3 * WAIT_FOR_ID);
                    write_holder(&file).unwrap();
                });
                let Err(LockError::InUse(holder)) = FileLock::acquire(&path) else { panic!("two locks at a time") };
                holder
            });
            assert_eq!(holder.pid, Some(std::process::id()), "the file had {text:?}");
        }
    }

    /// Many threads lock and release one folder. Two of them never hold the lock at the same time.
    #[test]
    fn lock_is_exclusive_while_its_file_is_removed_and_created_again() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let (held, got) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        if let Ok(lock) = FolderLock::acquire(&out) {
                            assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "two locks at a time");
                            got.fetch_add(1, Ordering::SeqCst);
                            held.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(got.load(Ordering::SeqCst) > 0 && !out.join(FOLDER_LOCK_FILE).exists());
    }
}
