//! A cache of decoded and resized frames on disk, which processes and runs share.
//!
//! An entry is a file `FILE-REQUEST.frames`, named by the fingerprints of the video's contents and of the request: the
//! rules, the limits, and the versions of this format and of FFmpeg's libraries. So a changed video, other frames and
//! another decoder have other entries, and the path of the video does not matter.
//!
//! ```text
//! reel frames 1 HEADER-FINGERPRINT PIXEL-FINGERPRINT HEADER-BYTES        one line
//! {"key": …, "video": …}                                                 JSON: size, indices, rates
//! pixels                                                                 u8 [T, height, width, 3]
//! ```
//! An entry gets its name when it is complete, so it is whole or absent after a kill, and the last of two writers wins with
//! the same bytes. Nothing waits for the disk: what a crash of the machine leaves does not match its fingerprints. An
//! unusable entry is named once and replaced. The least recently used entries (by modification time, which each use sets)
//! are removed when all together exceed the limit. Files that no cache has written are never read, replaced or removed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use memmap2::MmapMut;
use reel_support::diagnostic::print_note_once;
use reel_support::files::digest::file_fingerprint;
use reel_support::files::fingerprint::bytes_fingerprint;
use reel_support::files::{AtomicFile, open_without_link};
use serde::{Deserialize, Serialize};

use super::frame_cache::FileState;
use crate::error::{Error, Result};
use crate::media::libraries::ffmpeg_library_names_and_versions;
use crate::media::profile::{MediaOverrides, MediaRules};
use crate::media::video::{DecodeTimes, DecodedVideo, PixelBuffer};

/// The first words of an entry; the number is the version of the format.
const MAGIC: &str = "reel frames 1";
/// The ending of an entry's name.
const EXTENSION: &str = "frames";
/// Maximum length of an entry's header in bytes.
const MAX_HEADER_BYTES: usize = 16 << 20;
/// An unfinished entry of this age is of a killed process.
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);
/// The folder is counted again when this process has written this share of the limit.
const SHARE_BETWEEN_COUNTS: u64 = 64;

/// A cache of the resized frames of videos in a folder.
#[derive(Debug)]
pub struct DiskFrameCache {
    folder: PathBuf,
    max_bytes: u64,
    /// Versions of the format and of the libraries that decode.
    decoder: String,
    state: Mutex<State>,
    read: AtomicU64,
    decoded: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The fingerprints of videos by the states of their files.
    videos: HashMap<FileState, String>,
    /// Bytes of all entries when they were last counted, and those that this process has written since.
    counted_bytes: u64,
    written_bytes: u64,
}

/// How often a process took frames from the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCacheCounts {
    /// Videos whose frames were read from the cache.
    pub read: u64,
    /// Videos that were decoded.
    pub decoded: u64,
}

/// The place of a request's frames in the cache.
#[derive(Debug)]
pub(super) struct DiskEntry {
    file: PathBuf,
    key: String,
    video: PathBuf,
    fingerprint: String,
}

#[derive(Serialize, Deserialize)]
struct EntryHeader {
    key: String,
    video: DecodedVideo,
}

impl DiskFrameCache {
    /// Opens the cache in `folder`, which is created if it does not exist, for entries of `max_bytes` in total.
    ///
    /// # Errors
    /// The folder cannot be created or read, or holds a file that no cache has written.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::cannot_write(folder, &e))?;
        for entry in fs::read_dir(folder).map_err(|e| Error::cannot_read(folder, &e))? {
            let name = entry.map_err(|e| Error::cannot_read(folder, &e))?.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with('.') && !is_entry(&name) {
                return Err(Error::input(
                    folder.join(&*name).display().to_string(),
                    "is no file of a frame cache, but is in the folder of --frame-cache",
                    "give an empty folder, or move the file",
                ));
            }
        }
        let versions = ffmpeg_library_names_and_versions().unwrap_or_default();
        let versions: String = versions.iter().map(|(name, version)| format!(" {name} {version}")).collect();
        let cache = Self {
            folder: folder.to_path_buf(),
            max_bytes,
            decoder: format!("{MAGIC} {}{versions}", std::env::consts::ARCH),
            state: Mutex::default(),
            read: AtomicU64::new(0),
            decoded: AtomicU64::new(0),
        };
        cache.remove_oldest(&mut cache.lock());
        Ok(cache)
    }

    /// The folder of the cache.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many videos this process has read from the cache and decoded.
    pub fn counts(&self) -> FrameCacheCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FrameCacheCounts { read: count(&self.read), decoded: count(&self.decoded) }
    }

    /// The entry of the frames that `rules` and `overrides` select from the video at `path`; `None` if the file cannot be
    /// read. A GPU may decode a damaged picture to other pixels than the CPU, so frames of a GPU have separate entries.
    pub(super) fn entry(
        &self,
        path: &Path,
        rules: MediaRules,
        overrides: &MediaOverrides,
        on_gpu: bool,
    ) -> Option<DiskEntry> {
        let fingerprint = self.video_fingerprint(path)?;
        let hardware = if on_gpu { " nvdec" } else { "" };
        let key = format!("{fingerprint} {rules:?} {overrides:?} {}{hardware}", self.decoder);
        let name = format!("{fingerprint}-{}.{EXTENSION}", bytes_fingerprint(key.as_bytes()));
        Some(DiskEntry { file: self.folder.join(name), key, video: path.to_path_buf(), fingerprint })
    }

    /// The fingerprint of a video. It is computed once for each state of the file.
    fn video_fingerprint(&self, path: &Path) -> Option<String> {
        let state = FileState::of_settled(path);
        if let Some(known) = state.and_then(|state| self.lock().videos.get(&state).cloned()) {
            return Some(known);
        }
        let fingerprint = file_fingerprint(path).ok()?;
        // The file may have changed while it was read.
        if let Some(state) = state.filter(|state| FileState::of_settled(path) == Some(*state)) {
            self.lock().videos.insert(state, fingerprint.clone());
        }
        Some(fingerprint)
    }

    /// Reads an entry. `None` if it does not exist or cannot be used; an entry that cannot be used prints a note once.
    pub(super) fn read(&self, entry: &DiskEntry) -> Option<DecodedVideo> {
        let file = match open_without_link(&entry.file, File::options().read(true)) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(e) => return self.cannot_use(entry, &e.to_string()),
        };
        // The time only decides which entry is removed first; the cache may belong to a user who alone can set it.
        let _ = file.set_modified(SystemTime::now());
        match read_entry(file, entry) {
            Ok(video) => {
                self.read.fetch_add(1, Ordering::Relaxed);
                Some(video)
            }
            Err(why) => self.cannot_use(entry, &why),
        }
    }

    fn cannot_use<T>(&self, entry: &DiskEntry, why: &str) -> Option<T> {
        print_note_once(format!(
            "{}: cannot be used as an entry of the frame cache ({why}); the frames are decoded again, and the file is replaced",
            entry.file.display()
        ));
        None
    }

    /// Writes the decoded frames of an entry, unless the video has changed since the request, and removes the least
    /// recently used entries. If the frames cannot be written, this is named once.
    pub(super) fn write(&self, entry: &DiskEntry, video: &DecodedVideo) {
        self.decoded.fetch_add(1, Ordering::Relaxed);
        let bytes = video.data.len() as u64;
        if self.video_fingerprint(&entry.video).as_ref() != Some(&entry.fingerprint) {
            return;
        }
        if bytes > self.max_bytes {
            return print_note_once(format!(
                "{}: its frames need {bytes} bytes, more than --frame-cache-limit, and are not kept",
                entry.video.display()
            ));
        }
        if let Err(e) = write_entry(entry, video) {
            return print_note_once(format!("frames are not kept in the frame cache: {e}"));
        }
        let mut state = self.lock();
        state.written_bytes += bytes;
        let is_full = state.counted_bytes + state.written_bytes > self.max_bytes;
        if is_full || state.written_bytes > self.max_bytes / SHARE_BETWEEN_COUNTS {
            self.remove_oldest(&mut state);
        }
    }

    /// Counts the bytes of all entries, and removes the least recently used ones until the others are within the limit,
    /// and unfinished entries of killed processes. Other processes may do the same meanwhile.
    fn remove_oldest(&self, state: &mut State) {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            // A file that another process has just removed has no metadata.
            let Ok(facts) = file.metadata() else { continue };
            let Ok(used) = facts.modified() else { continue };
            let age = SystemTime::now().duration_since(used).unwrap_or_default();
            if is_entry(&name) && facts.is_file() {
                entries.push((used, facts.len(), file.path()));
            } else if is_unfinished_entry(&name) && age > UNFINISHED_AGE {
                let _ = fs::remove_file(file.path());
            }
        }
        entries.sort();
        let mut bytes: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, len, path) in entries {
            if bytes <= self.max_bytes {
                break;
            }
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    print_note_once(format!("the frame cache exceeds its limit: {}", Error::cannot_write(&path, &e)));
                }
                _ => bytes -= len,
            }
        }
        (state.counted_bytes, state.written_bytes) = (bytes, 0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a file's name is that of an entry: two fingerprints and the ending.
fn is_entry(name: &str) -> bool {
    let is_fingerprint = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fingerprints = name.strip_suffix(EXTENSION).and_then(|name| name.strip_suffix('.')?.split_once('-'));
    fingerprints.is_some_and(|(file, request)| is_fingerprint(file) && is_fingerprint(request))
}

/// Whether a file's name is that of an entry before it is complete: `.NAME.RANDOM.part` (see [`AtomicFile`]).
fn is_unfinished_entry(name: &str) -> bool {
    let name = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")?.rsplit_once('.'));
    name.is_some_and(|(name, _)| is_entry(name))
}

/// Reads an entry. The error says what is wrong with the file.
fn read_entry(file: File, entry: &DiskEntry) -> std::result::Result<DecodedVideo, String> {
    const DAMAGED: &str = "it is damaged";
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => DAMAGED.to_owned(),
        _ => e.to_string(),
    };
    let len = file.metadata().map_err(failed)?.len();
    let mut file = BufReader::new(file);
    let mut line = String::new();
    (&mut file).take(128).read_line(&mut line).map_err(|_| DAMAGED)?;
    let words = line.strip_prefix(MAGIC).and_then(|words| words.strip_suffix('\n')).ok_or(DAMAGED)?;
    let words: Vec<&str> = words.split_whitespace().collect();
    let [header_fingerprint, pixel_fingerprint, header_bytes] = words[..] else { return Err(DAMAGED.into()) };
    let header_bytes = header_bytes.parse().ok().filter(|&bytes| bytes <= MAX_HEADER_BYTES).ok_or(DAMAGED)?;
    let mut header = vec![0; header_bytes];
    file.read_exact(&mut header).map_err(failed)?;
    if bytes_fingerprint(&header) != header_fingerprint {
        return Err(DAMAGED.into());
    }
    let EntryHeader { key, mut video } = serde_json::from_slice(&header).map_err(|_| DAMAGED)?;
    if key != entry.key {
        return Err("it is of another request".into());
    }
    let sizes = [video.indices.len(), video.height, video.width, 3];
    let bytes = sizes.into_iter().try_fold(1usize, usize::checked_mul).filter(|&bytes| bytes > 0).ok_or(DAMAGED)?;
    if line.len() as u64 + header_bytes as u64 + bytes as u64 != len {
        return Err(DAMAGED.into());
    }
    let mut pixels = MmapMut::map_anon(bytes).map_err(failed)?;
    file.read_exact(&mut pixels).map_err(failed)?;
    if bytes_fingerprint(&pixels) != pixel_fingerprint {
        return Err(DAMAGED.into());
    }
    video.data = PixelBuffer::Shared(Arc::new(pixels.make_read_only().map_err(failed)?));
    Ok(video)
}

/// Writes an entry under a temporary name, and renames it when it is complete.
fn write_entry(entry: &DiskEntry, video: &DecodedVideo) -> Result<()> {
    let pixels = &video.data[..];
    // Two processes that decode the same frames write the same bytes, so the entry has no times.
    let video = DecodedVideo { data: PixelBuffer::default(), times: DecodeTimes::default(), ..video.clone() };
    let header = EntryHeader { key: entry.key.clone(), video };
    let header = serde_json::to_vec(&header).map_err(|e| Error::cannot_write(&entry.file, std::io::Error::from(e)))?;
    let mut file = AtomicFile::create(&entry.file)?;
    let fingerprints = [&header[..], pixels].map(bytes_fingerprint);
    let line = format!("{MAGIC} {} {} {}\n", fingerprints[0], fingerprints[1], header.len());
    for part in [line.as_bytes(), &header, pixels] {
        file.write_all(part).map_err(|e| file.write_error(e))?;
    }
    file.close_without_sync()?.rename_to_final_name()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;
    use crate::media::profile::MediaProfile;

    fn video(pixels: usize) -> DecodedVideo {
        DecodedVideo {
            data: PixelBuffer::Owned(vec![pixels as u8; pixels * 3]),
            height: 1,
            width: pixels,
            indices: vec![0],
            left_out_frames: 0,
            total_frames: 1,
            video_fps: 30.0,
            sample_fps: 29.97,
            times: DecodeTimes::default(),
        }
    }

    fn write(cache: &DiskFrameCache, path: &Path, nframes: i64, pixels: usize) -> DiskEntry {
        let overrides = MediaOverrides { nframes: Some(nframes), ..MediaOverrides::default() };
        let entry = cache.entry(path, MediaProfile::Qwen.for_family(Family::Qwen25Vl), &overrides, false).unwrap();
        cache.write(&entry, &video(pixels));
        entry
    }

    fn set_age(entry: &DiskEntry, seconds: u64) {
        let file = File::options().write(true).open(&entry.file).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn least_recently_used_entries_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, path) = (dir.path().join("cache"), dir.path().join("v.mp4"));
        fs::write(&path, "a video").unwrap();
        let cache = DiskFrameCache::open(&folder, 40_000).unwrap();
        let [first, second, third] = [1, 2, 3].map(|n| write(&cache, &path, n, 4_000));
        [(&first, 300), (&second, 200), (&third, 100)].into_iter().for_each(|(entry, age)| set_age(entry, age));
        assert_eq!(&cache.read(&first).unwrap().data[..], &video(4_000).data[..], "a use sets the time");
        let fourth = write(&cache, &path, 4, 3_000);
        let present = [&first, &second, &third, &fourth].map(|entry| entry.file.exists());
        assert_eq!(present, [true, false, true, true]);
        assert!(write(&cache, &path, 5, 20_000).file.metadata().is_err(), "larger than the limit");

        // The kernel's clock of new files lags some milliseconds behind the time that a use sets.
        set_age(&first, 50);
        // Another process with a lower limit, and a file that a killed process left behind.
        let unfinished = folder.join(format!(".{}.abc.part", first.file.file_name().unwrap().to_string_lossy()));
        fs::write(&unfinished, "x").unwrap();
        drop(DiskFrameCache::open(&folder, 15_000).unwrap());
        assert!(unfinished.exists(), "it may still be written");
        let old = SystemTime::now() - UNFINISHED_AGE - Duration::from_secs(9);
        File::options().write(true).open(&unfinished).unwrap().set_modified(old).unwrap();
        drop(DiskFrameCache::open(&folder, 15_000).unwrap());
        assert!(!unfinished.exists() && fourth.file.exists());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn videos_that_change_meanwhile_and_foreign_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, path) = (dir.path().join("cache"), dir.path().join("v.mp4"));
        fs::write(&path, "a video").unwrap();
        let cache = DiskFrameCache::open(&folder, 40_000).unwrap();
        let rules = MediaProfile::Qwen.for_family(Family::Qwen25Vl);
        let entry = cache.entry(&path, rules, &MediaOverrides::default(), false).unwrap();
        let of_a_gpu = cache.entry(&path, rules, &MediaOverrides::default(), true).unwrap();
        assert_ne!(entry.file, of_a_gpu.file, "a GPU and the CPU share no entry");
        fs::write(&path, "another").unwrap();
        cache.write(&entry, &video(10));
        assert!(cache.read(&entry).is_none() && !entry.file.exists());

        // A folder in the place of an entry is named, and nothing is written.
        let entry = cache.entry(&path, rules, &MediaOverrides::default(), false).unwrap();
        fs::create_dir(&entry.file).unwrap();
        assert!(cache.read(&entry).is_none());
        cache.write(&entry, &video(10));
        assert!(entry.file.is_dir());

        fs::write(folder.join("thesis.txt"), "x").unwrap();
        let error = DiskFrameCache::open(&folder, 40_000).unwrap_err().to_string();
        assert!(error.contains("thesis.txt: is no file of a frame cache") && !error.contains('\n'), "{error}");
        assert!(is_entry("0123456789abcdef-0123456789abcdef.frames") && !is_entry("0123456789abcdef.frames"));
    }
}
