//! Downloads a repository into the cache: lists its files, downloads the missing ones (several at a time), verifies
//! their checksums, and unpacks the archives of a data set.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::files::{FileLock, LockError};

use crate::hub::archives;
use crate::hub::checksum;
use crate::hub::download::{DownloadProgress, Downloader, ReceivedBytes};
use crate::hub::environment::Hub;
use crate::hub::listing::RemoteFile;
use crate::hub::reference::{Repository, RepositoryKind};
use crate::hub::{COMPLETE_FILE, is_whole_model};

/// The number of files that are downloaded at a time.
const FILES_AT_A_TIME: usize = 8;

/// The interval at which a process checks whether another process that downloads the same repository has ended.
const LOCK_INTERVAL: Duration = Duration::from_millis(500);

impl Hub {
    pub(crate) fn download_repository(
        &self,
        repository: &Repository,
        progress: &mut dyn FnMut(DownloadProgress),
    ) -> Result<PathBuf> {
        let listing = self.fetch_listing(repository)?;
        let store = self.store(repository);
        let snapshot = store.join("snapshots").join(&listing.commit);
        fs::create_dir_all(&snapshot).map_err(|e| Error::cannot_write(&snapshot, &e))?;
        // The processes of one job request the same files at the same time.
        let _lock = wait_for_lock(&store, repository)?;
        // Another process may have finished in the meantime. Then its archives need not be read again.
        if let Some(done) = self.cached_folder(repository) {
            return Ok(done);
        }
        let wanted: Vec<RemoteFile> = listing
            .files
            .into_iter()
            .filter(|file| repository.kind == RepositoryKind::Dataset || is_model_file(&file.path))
            .collect();
        let mut missing = Vec::new();
        for file in &wanted {
            if !is_there(&snapshot, file) {
                missing.push(file);
            }
        }
        check_room(repository, &snapshot, &missing)?;
        let prefix = repository.kind.address_prefix();
        let address = format!("{}/{prefix}{}/resolve/{}", self.endpoint, repository.id, listing.commit);
        self.download_all(&address, &snapshot, &missing, progress)?;
        match repository.kind {
            RepositoryKind::Model if !is_whole_model(&snapshot) => {
                let what = "lacks config.json, tokenizer.json or weights in *.safetensors";
                return Err(Error::failed(repository.name(), what, "use a model in the safetensors format"));
            }
            RepositoryKind::Model => {}
            RepositoryKind::Dataset => {
                for file in wanted.iter().filter(|file| archives::is_archive(&file.path)) {
                    let archive = snapshot.join(&file.path);
                    crate::diagnostic::note!("unpacking {}", archive.display());
                    archives::unpack(&archive)?;
                }
                crate::files::write_atomically(&snapshot.join(COMPLETE_FILE), b"")?;
            }
        }
        if !repository.is_commit() {
            let name = store.join("refs").join(&repository.revision);
            let folder = name.parent().unwrap_or(&store);
            fs::create_dir_all(folder).map_err(|e| Error::cannot_write(folder, &e))?;
            crate::files::write_atomically(&name, listing.commit.as_bytes())?;
        }
        Ok(snapshot)
    }

    /// Downloads files below `address` into `folder`. Each of several threads takes one file after the other.
    fn download_all(
        &self,
        address: &str,
        folder: &Path,
        files: &[&RemoteFile],
        progress: &mut dyn FnMut(DownloadProgress),
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let downloader = Downloader::new(address, self.token.as_deref());
        thread::scope(|scope| {
            let (sender, events) = channel();
            for _ in 0..FILES_AT_A_TIME.min(files.len()) {
                let (sender, next, downloader) = (sender.clone(), &next, &downloader);
                scope.spawn(move || {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = download_one(downloader, folder, file, &sender);
                        // The other threads end after their current file.
                        if result.is_err() {
                            next.store(files.len(), Ordering::Relaxed);
                        }
                        // The send cannot fail, because the receiver waits until all threads have ended.
                        let _ = sender.send(Event::Ended(result));
                    }
                });
            }
            drop(sender);
            let mut failure = Ok(());
            for event in events {
                match event {
                    Event::Received(path, ReceivedBytes { done, total }) => {
                        progress(DownloadProgress { file: &path, done, total });
                    }
                    Event::Ended(result) => failure = failure.and(result),
                }
            }
            failure
        })
    }
}

enum Event {
    Received(String, ReceivedBytes),
    Ended(Result<()>),
}

/// Downloads a file and verifies the hub's checksum. A file that differs is downloaded once more from its start,
/// because the pieces of an earlier attempt can be damaged.
fn download_one(downloader: &Downloader, folder: &Path, file: &RemoteFile, events: &Sender<Event>) -> Result<()> {
    let target = folder.join(&file.path);
    let parent = target.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(|e| Error::cannot_write(parent, &e))?;
    let mut difference = None;
    for _ in 0..2 {
        let part = downloader.download(&file.path, &target, &mut |received| {
            let _ = events.send(Event::Received(file.path.clone(), received));
        })?;
        difference = checksum::difference_from_remote(&part, file).map_err(|e| Error::cannot_read(&part, &e))?;
        if difference.is_none() {
            return fs::rename(&part, &target).map_err(|e| Error::cannot_write(&target, &e));
        }
        fs::remove_file(&part).map_err(|e| Error::cannot_write(&part, &e))?;
    }
    let what = difference.unwrap_or_default();
    let help = "the file was downloaded twice; check the network, and whether HF_ENDPOINT names a hub that you trust";
    Err(Error::failed(downloader.address(&file.path), what, help))
}

/// Tells whether a file is complete in the cache. A file gets its final name only after its checksum was verified. If
/// its size differs, it was changed afterwards.
fn is_there(folder: &Path, file: &RemoteFile) -> bool {
    let found = fs::metadata(folder.join(&file.path));
    found.is_ok_and(|found| found.is_file() && file.bytes.is_none_or(|bytes| bytes == found.len()))
}

/// Returns an error if the disk has no space for the files.
fn check_room(repository: &Repository, folder: &Path, files: &[&RemoteFile]) -> Result<()> {
    let needed: u64 = files.iter().filter_map(|file| file.bytes).sum();
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed <= free {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let what = format!("needs {:.1} GB, but {} has room for {:.1} GB", gb(needed), folder.display(), gb(free));
    Err(Error::failed(repository.name(), what, "make room, or set HF_HUB_CACHE to a folder on another disk"))
}

/// Waits until no other process downloads into the folder of the repository.
fn wait_for_lock(store: &Path, repository: &Repository) -> Result<FileLock> {
    let path = store.join(".reel.lock");
    let mut is_told = false;
    loop {
        match FileLock::acquire(&path) {
            Ok(lock) => return Ok(lock),
            Err(LockError::InUse(holder)) => {
                if !std::mem::replace(&mut is_told, true) {
                    crate::diagnostic::note!("{}: waiting for {holder}, which downloads it", repository.name());
                }
                thread::sleep(LOCK_INTERVAL);
            }
            Err(LockError::Io(e)) => return Err(Error::cannot_write(&path, &e)),
        }
    }
}

/// Tells whether a file of a model is needed: weights and the small files of a model folder, but no file in a
/// subfolder.
fn is_model_file(path: &str) -> bool {
    let kinds = [".safetensors", ".json", ".jinja", ".txt"];
    !path.contains('/') && kinds.iter().any(|kind| path.ends_with(kind))
}
