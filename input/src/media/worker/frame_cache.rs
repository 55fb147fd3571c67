//! A cache of decoded and resized frames in host memory. A later request for the same frames of an unchanged file
//! starts no worker. Such requests come from the next epoch of a training run, a further question about a video, or
//! another model that answers the same benchmark in this process.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::media::profile::{MediaOverrides, MediaRules};
use crate::media::video::{DecodedVideo, PixelBuffer};

/// Frames of a file that was changed less than this long before the request are not kept. File systems record times
/// in steps of a few milliseconds, so a second change within one step would not be noticed.
const MIN_AGE: Duration = Duration::from_millis(100);

/// Frames of at least this many bytes stay in the memory that the worker shares. A process may have 65,530 mappings.
const MIN_MAPPED_BYTES: usize = 256 << 10;

/// Cache of the resized frames of videos, keyed by file and request. The least recently used video is evicted first.
#[derive(Debug)]
pub struct FrameCache {
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Maps a request to its decoded video and to the value of `now` at the video's last use.
    videos: HashMap<FrameKey, (DecodedVideo, u64)>,
    bytes: usize,
    /// Counts the uses of the cache; serves as the clock for the last use.
    now: u64,
}

/// Key of a cache entry: a request for the frames of a file, with the file's state at the time of the request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FrameKey {
    path: PathBuf,
    file: FileState,
    /// Rules and overrides as text (their `Debug` format), because their f64 fields do not implement `Hash`.
    request: String,
}

/// Properties that change when a file is written or replaced: device, inode, length, and the times of the last change
/// of its contents (mtime) and of its inode (ctime), in seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileState {
    inode: [u64; 2],
    bytes: u64,
    times: [i64; 4],
}

impl FrameKey {
    /// Returns the key of a request; `None` if the frames cannot be kept, because the file cannot be found or was
    /// changed less than [`MIN_AGE`] ago.
    pub(super) fn new(path: &Path, rules: MediaRules, overrides: &MediaOverrides) -> Option<Self> {
        let file = FileState::of_settled(path)?;
        Some(Self { path: path.to_path_buf(), file, request: format!("{rules:?} {overrides:?}") })
    }

    /// Whether the file is unchanged since the request.
    fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| FileState::of(&metadata) == self.file)
    }
}

impl FileState {
    /// Returns the state of a file; `None` if it cannot be found or was changed less than [`MIN_AGE`] ago.
    pub(super) fn of_settled(path: &Path) -> Option<Self> {
        let file = Self::of(&std::fs::metadata(path).ok()?);
        let [.., changed, changed_nanos] = file.times;
        let changed = Duration::new(u64::try_from(changed).ok()?, u32::try_from(changed_nanos).ok()?);
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed).ok()?;
        (age >= MIN_AGE).then_some(file)
    }

    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: [metadata.dev(), metadata.ino()],
            bytes: metadata.len(),
            times: [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()],
        }
    }
}

impl FrameCache {
    /// An empty cache that holds at most `max_bytes` of frames.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    pub(super) fn get(&self, key: &FrameKey) -> Option<DecodedVideo> {
        let mut state = self.lock();
        state.now += 1;
        let now = state.now;
        let (video, used) = state.videos.get_mut(key)?;
        *used = now;
        Some(video.clone())
    }

    /// Keeps the frames of a video, then evicts the least recently used videos until all fit into `max_bytes`. Returns
    /// the video. Frames are not kept if they are larger than `max_bytes`, or if the file has changed since the
    /// request.
    pub(super) fn insert(&self, key: FrameKey, video: DecodedVideo) -> DecodedVideo {
        let bytes = video.data.len();
        if bytes > self.max_bytes || !key.is_current() {
            return video;
        }
        // Copies few frames out of the shared memory, because one mapping per video would soon reach the limit of mappings
        // per process.
        let video = match bytes < MIN_MAPPED_BYTES {
            true => DecodedVideo { data: PixelBuffer::Counted(Arc::from(&*video.data)), ..video },
            false => video,
        };
        let mut state = self.lock();
        state.now += 1;
        let now = state.now;
        let replaced = state.videos.insert(key, (video.clone(), now)).map_or(0, |(old, _)| old.data.len());
        state.bytes = state.bytes + bytes - replaced;
        while state.bytes > self.max_bytes {
            let Some(oldest) = state.videos.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone())
            else {
                break;
            };
            state.bytes -= state.videos.remove(&oldest).map_or(0, |(old, _)| old.data.len());
        }
        video
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::family::Family;
    use crate::media::profile::MediaProfile;
    use crate::media::video::DecodeTimes;

    fn video(bytes: usize) -> DecodedVideo {
        DecodedVideo {
            data: PixelBuffer::Owned(vec![bytes as u8; bytes]),
            height: 1,
            width: bytes / 3,
            indices: vec![0],
            left_out_frames: 0,
            total_frames: 1,
            video_fps: 1.0,
            sample_fps: 1.0,
            times: DecodeTimes::default(),
        }
    }

    fn key(path: &Path, nframes: i64) -> Option<FrameKey> {
        let overrides = MediaOverrides { nframes: Some(nframes), ..MediaOverrides::default() };
        FrameKey::new(path, MediaProfile::Qwen.for_family(Family::Qwen25Vl), &overrides)
    }

    fn write(path: &Path, text: &[u8]) {
        std::fs::write(path, text).unwrap();
        std::thread::sleep(MIN_AGE * 2);
    }

    #[test]
    fn a_changed_file_or_request_is_another_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.mp4");
        assert!(key(&path, 4).is_none(), "a missing file has no cache key");
        std::fs::write(&path, b"one").unwrap();
        assert!(key(&path, 4).is_none(), "a file that was written just now has no cache key");
        std::thread::sleep(MIN_AGE * 2);
        let cache = FrameCache::new(100);
        let first = key(&path, 4).unwrap();
        assert!(cache.get(&first).is_none());
        assert_eq!(*cache.insert(first.clone(), video(12)).data, [12; 12]);
        assert_eq!(*cache.get(&key(&path, 4).unwrap()).unwrap().data, [12; 12]);
        assert!(cache.get(&key(&path, 6).unwrap()).is_none(), "other frames of the file");
        for (profile, family) in
            [(MediaProfile::VideorftTrain, Family::Qwen25Vl), (MediaProfile::Qwen, Family::Qwen3Vl)]
        {
            let overrides = MediaOverrides { nframes: Some(4), ..MediaOverrides::default() };
            let other = FrameKey::new(&path, profile.for_family(family), &overrides).unwrap();
            assert!(cache.get(&other).is_none(), "another profile or family");
        }
        // The file keeps its length and its modification time (mtime). Only its inode change time (ctime) differs.
        let times = std::fs::metadata(&path).unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(b"two").unwrap();
        file.set_modified(times.modified().unwrap()).unwrap();
        drop(file);
        std::thread::sleep(MIN_AGE * 2);
        assert!(cache.get(&key(&path, 4).unwrap()).is_none(), "a changed file");
        // The file is changed while it is decoded.
        let second = key(&path, 4).unwrap();
        write(&path, b"three");
        assert_eq!(*cache.insert(second.clone(), video(9)).data, [9; 9]);
        assert!(cache.get(&second).is_none());
    }

    #[test]
    fn the_least_recently_used_video_is_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.mp4");
        write(&path, b"video");
        let key = |n| key(&path, n).unwrap();
        let cache = FrameCache::new(30);
        cache.insert(key(1), video(12));
        cache.insert(key(2), video(12));
        assert!(cache.get(&key(1)).is_some());
        cache.insert(key(3), video(9));
        assert!(cache.get(&key(2)).is_none() && cache.get(&key(1)).is_some() && cache.get(&key(3)).is_some());
        assert_eq!(cache.lock().bytes, 21);
        cache.insert(key(4), video(33));
        assert!(cache.get(&key(4)).is_none(), "frames that are larger than the cache");
        cache.insert(key(3), video(12));
        let state = cache.lock();
        assert_eq!((state.bytes, state.videos.len()), (24, 2));
    }
}
