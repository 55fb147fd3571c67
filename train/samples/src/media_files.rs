//! Distinguishes a missing or damaged image or video from an outage, such as a network folder that is unavailable. The
//! row of a missing or damaged file is skipped. An outage ends the run, because skipping all rows during an outage
//! would lose good rows.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use reel_input::Conversation;
use reel_input::messages::{ContentPart, MediaSource, VideoSource};
use reel_support::diagnostic::{Diagnostic, input};

use crate::error::{Kind, Result, RowFailureKind, SkipCause};

/// The help text of the errors that this module reports.
const HELP: &str = "make the media available again";

/// Linux `errno` values of errors that concern the machine or the disk, not a single file: EIO, ENOMEM, ENODEV, ENFILE,
/// EMFILE, ENOTCONN, ETIMEDOUT, EHOSTDOWN, EHOSTUNREACH, ESTALE.
const NOT_OF_A_FILE: [i32; 10] = [5, 12, 19, 23, 24, 107, 110, 112, 113, 116];

/// Remembers which media files a run has read.
#[derive(Debug, Default)]
pub struct ReadMediaFiles(Mutex<ReadFiles>);

#[derive(Debug, Default)]
struct ReadFiles {
    /// Hashes of the paths of all files that the run has read.
    paths: HashSet<u64>,
    /// For each folder, the last file that was read from it.
    last_in_folder: HashMap<PathBuf, PathBuf>,
}

impl ReadMediaFiles {
    /// Calls `load`, which loads the media of `conversation`. If `load` fails because of a file, reads all local
    /// files of the conversation. If all files can be read now although `load` could not read one of them, an outage
    /// has just ended, and `load` is called once more. `root` is the folder that relative paths refer to.
    ///
    /// # Errors
    /// The error of `load` if a file of the row is at fault; [`RowFailureKind::MediaUnavailable`] if the machine, a
    /// disk or a folder is.
    pub fn load_with_retry<T>(
        &self,
        conversation: &Conversation,
        root: &Path,
        load: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let mut result = load();
        if let Some(was_read) = unreadable_media(&result) {
            let paths = local_files(conversation);
            if self.check(&paths, root)? && !paths.is_empty() && !was_read {
                result = load();
                if unreadable_media(&result).is_some() {
                    self.check(&paths, root)?;
                }
            }
        }
        if result.is_ok() {
            self.remember(&local_files(conversation));
        }
        result
    }

    /// Whether all files in `paths` can be read. Returns an error if the reason for a failure is not the file itself.
    fn check(&self, paths: &[&Path], root: &Path) -> Result<bool> {
        let mut all = true;
        for path in paths {
            if let Err(e) = read_through(path) {
                all = false;
                self.check_failed(path, root, e)?;
            }
        }
        Ok(all)
    }

    fn check_failed(&self, path: &Path, root: &Path, e: io::Error) -> Result<()> {
        let unavailable = |path: &Path, what: String| {
            Err(Kind::Row(RowFailureKind::MediaUnavailable).error(Diagnostic::new(
                path.display().to_string(),
                what,
                HELP,
            )))
        };
        let cannot_read = |path: &Path, e: &io::Error| unavailable(path, Diagnostic::cannot_read(path, e).what);
        if e.raw_os_error().is_some_and(|number| NOT_OF_A_FILE.contains(&number)) {
            return cannot_read(path, &e);
        }
        let folder = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        if path.starts_with(root)
            && let Err(e) = fs::read_dir(folder)
        {
            return cannot_read(folder, &e);
        }
        let read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if read.paths.contains(&path_hash(path)) {
            let what = format!("was read earlier in this run, and now it {}", Diagnostic::cannot_read(path, &e).what);
            return unavailable(path, what);
        }
        match path.parent().and_then(|folder| read.last_in_folder.get(folder)) {
            Some(other) if !other.exists() => {
                unavailable(other, "was read earlier in this run, and now there is no such file".into())
            }
            _ => Ok(()),
        }
    }

    fn remember(&self, paths: &[&Path]) {
        let mut read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for path in paths {
            read.paths.insert(path_hash(path));
            if let Some(folder) = path.parent() {
                read.last_in_folder.insert(folder.to_path_buf(), path.to_path_buf());
            }
        }
    }
}

/// If a row failed because of an unreadable media file, returns whether the file's bytes could be read.
fn unreadable_media<T>(result: &Result<T>) -> Option<bool> {
    match result.as_ref().err()?.kind {
        Kind::Row(RowFailureKind::Media { cause: SkipCause::Media, was_read }) => Some(was_read),
        _ => None,
    }
}

fn path_hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// Reads a file to its end. For a folder with the frames of a video, reads all files in the folder.
fn read_through(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return fs::read_dir(path)?.try_for_each(|entry| {
            let path = entry?.path();
            if path.is_dir() { Ok(()) } else { read_through(&path) }
        });
    }
    io::copy(&mut input::open_regular_file(path)?, &mut io::sink()).map(drop)
}

/// The media of a conversation that are local files, not URLs or `data:` URIs.
pub fn local_files(conversation: &Conversation) -> Vec<&Path> {
    let sources = conversation.media_parts().flat_map(|part| match part {
        ContentPart::Image(image) => std::slice::from_ref(&image.source),
        ContentPart::Video(video) => match &video.source {
            VideoSource::File(source) => std::slice::from_ref(source),
            VideoSource::Frames(sources) => sources,
        },
        ContentPart::Text(_) => &[],
    });
    sources.filter_map(local_path).collect()
}

fn local_path(source: &MediaSource) -> Option<&Path> {
    match source {
        MediaSource::Path(path) => Some(path),
        MediaSource::Url(_) | MediaSource::Data(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;

    use super::*;
    use crate::error::Error;

    fn conversation(root: &Path, file: &str) -> Conversation {
        let messages = json!([{"role": "user", "content": [{"type": "image", "image": file}]}]);
        Conversation::from_json("rows.jsonl:1", &messages, root).unwrap()
    }

    fn row_error<T>(was_read: bool) -> Result<T> {
        let what = if was_read { "is damaged" } else { "cannot be read" };
        let diagnostic = Diagnostic::new("rows.jsonl:1: a.png", what, "fix the file, or remove the row");
        Err(Kind::Row(RowFailureKind::Media { cause: SkipCause::Media, was_read }).error(diagnostic))
    }

    fn is_media_error(e: &Error) -> bool {
        matches!(e.kind, Kind::Row(RowFailureKind::Media { .. }))
    }

    fn is_outage(e: &Error) -> bool {
        e.kind == Kind::Row(RowFailureKind::MediaUnavailable)
    }

    /// Calls [`ReadMediaFiles::load_with_retry`] with a closure that fails if the file is missing.
    fn load(files: &ReadMediaFiles, root: &Path, file: &str) -> Result<()> {
        let path = root.join(file);
        files.load_with_retry(&conversation(root, file), root, || if path.exists() { Ok(()) } else { row_error(false) })
    }

    #[test]
    fn rows_whose_files_never_existed_keep_their_error() {
        let dir = tempfile::tempdir().unwrap();
        let files = ReadMediaFiles::default();
        fs::write(dir.path().join("a.png"), "").unwrap();
        for file in ["a.png", "none.png", "none/none.png", "/nowhere/none.png", "."] {
            let e = load(&files, dir.path(), file).err();
            assert!(e.as_ref().is_none_or(is_media_error), "{file}: {e:?}");
        }
    }

    #[test]
    fn outages_end_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("media");
        fs::create_dir_all(root.join("clips")).unwrap();
        let files = ReadMediaFiles::default();
        for file in ["clips/a.png", "b.png"] {
            fs::write(root.join(file), "").unwrap();
            load(&files, &root, file).unwrap();
        }
        let refused = |file: &str, words: &str| {
            let e = load(&files, &root, file).unwrap_err();
            let said = e.to_string();
            assert!(is_outage(&e), "{file}: {said}");
            assert!(said.contains(words) && said.ends_with("; make the media available again"), "{file}: {said}");
        };
        fs::remove_dir_all(root.join("clips")).unwrap();
        // The run has read `a.png` earlier. It has not read `never.png`, but it has read `a.png` in the same folder.
        refused("clips/a.png", "clips/a.png: was read earlier in this run, and now it cannot be read");
        refused("clips/never.png", "clips/a.png: was read earlier in this run, and now there is no such file");
        assert!(load(&files, &root, "never.png").as_ref().is_err_and(is_media_error));
        fs::remove_dir_all(&root).unwrap();
        refused("never.png", "media: cannot be read: there is no such file or folder");
    }

    #[test]
    fn errors_of_the_machine_are_no_errors_of_a_row() {
        let files = ReadMediaFiles::default();
        let (path, root) = (Path::new("clips/a.mp4"), Path::new("."));
        for number in [5, 19, 23, 24, 107, 116] {
            let e = files.check_failed(path, root, io::Error::from_raw_os_error(number));
            assert!(e.as_ref().is_err_and(is_outage), "{number}");
        }
        assert!(files.check_failed(path, root, io::Error::from_raw_os_error(2)).is_ok());
    }

    /// A file that could not be read is loaded once more if it can be read now; a damaged file is decoded only once.
    #[test]
    fn only_files_that_could_not_be_read_are_loaded_once_more() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.png"), "").unwrap();
        let (files, conversation) = (ReadMediaFiles::default(), conversation(dir.path(), "a.png"));
        let calls = Cell::new(0);
        let load = |succeeds_at: usize, was_read: bool| {
            calls.set(0);
            files.load_with_retry(&conversation, dir.path(), || {
                calls.set(calls.get() + 1);
                if calls.get() == succeeds_at { Ok(()) } else { row_error(was_read) }
            })
        };
        assert!(load(2, false).is_ok());
        assert!(load(9, false).as_ref().is_err_and(is_media_error));
        assert_eq!(calls.get(), 2);
        assert!(load(2, true).as_ref().is_err_and(is_media_error));
        assert_eq!(calls.get(), 1);
        // If a file seemed damaged and its folder has become unreadable, the error is an outage.
        let (missing, root) = (self::conversation(dir.path(), "gone/a.png"), dir.path().join("gone"));
        let e = files.load_with_retry(&missing, &root, || row_error::<()>(true));
        assert!(e.as_ref().is_err_and(is_outage), "{e:?}");
    }
}
