//! The requests to a video decoder and its results.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::family::Family;
use crate::media::profile::{MediaOverrides, MediaProfile};

/// Properties of a video that are known without decoding it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct VideoInfo {
    /// FFmpeg's name of the codec, such as `h264`.
    pub codec: String,
    /// Displayed height in pixels, after any rotation.
    pub height: usize,
    /// Displayed width in pixels, after any rotation.
    pub width: usize,
    /// Number of frames.
    pub total_frames: u64,
    /// Number of further frames at the start of the file that cannot be decoded, because the file starts inside their
    /// group of pictures. Frame 0 and second 0 are those after them.
    pub left_out_frames: u64,
    /// Average number of frames per second, as the container states it.
    pub video_fps: f64,
}

/// Where the time of decoding a video went.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DecodeTimes {
    /// Seconds until all packets of the container were read and the frames selected.
    pub read_seconds: f64,
    /// Seconds in which the selected frames were decoded, converted to RGB and resized.
    pub decode_seconds: f64,
    /// The part of `decode_seconds` for converting and resizing, in seconds, added over all decoding threads.
    pub resize_seconds: f64,
    /// Processor time of the process that decoded, in seconds; 0 if the caller's own process decoded.
    pub cpu_seconds: f64,
    /// Whether a GPU decoded.
    pub on_gpu: bool,
}

/// Selected and decoded frames of a video. The serialized form leaves out the pixels.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct DecodedVideo {
    /// Pixels, u8 RGB `[T, height, width, 3]`.
    #[serde(skip)]
    pub data: PixelBuffer,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Index of each frame in display order, `[T]`.
    pub indices: Vec<u64>,
    /// Number of frames of the whole video, without `left_out_frames`.
    pub total_frames: u64,
    /// Number of frames at the start of the file that cannot be decoded ([`VideoInfo::left_out_frames`]).
    pub left_out_frames: u64,
    /// Average frame rate of the whole video in frames per second, as the container states it.
    pub video_fps: f64,
    /// Number of selected frames per second of video.
    pub sample_fps: f64,
    /// Where the time of decoding went.
    #[serde(default)]
    pub times: DecodeTimes,
}

/// The pixels of decoded frames.
#[derive(Clone, Debug)]
pub enum PixelBuffer {
    /// Pixels in the memory of this process.
    Owned(Vec<u8>),
    /// Pixels in shared memory that a worker process filled; unmapped when the last clone of this value is dropped.
    Shared(Arc<memmap2::Mmap>),
    /// Reference-counted pixels in the memory of this process; a [`FrameCache`](crate::media::worker::FrameCache) may
    /// share them.
    Counted(Arc<[u8]>),
}

impl Default for PixelBuffer {
    /// Creates an empty buffer.
    fn default() -> Self {
        Self::Owned(Vec::new())
    }
}

impl Deref for PixelBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(map) => map,
            Self::Counted(bytes) => bytes,
        }
    }
}

/// The size in which decoded frames are returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DecodedFrameSize {
    /// The size in which a player displays the video.
    Original,
    /// The size that follows from the pixel limits of the profile and its overrides, for a model of this family. Frames
    /// are resized as by torchvision's bicubic resize with antialias on u8.
    Resized(Family),
}

/// Resources that decoding one video may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DecodeLimits {
    /// Number of decoding threads.
    pub threads: usize,
    /// Maximum number of bytes that the frames and the compressed video may take together.
    pub memory_bytes: u64,
    /// Maximum number of pixels that are decoded, all frames together.
    pub pixels: u64,
    /// The GPU that decodes, as its index in CUDA's order; `None`: software. A video that the GPU does not decode is an
    /// error.
    pub gpu: Option<usize>,
}

/// Pixels per second that no decoder reaches in one thread.
const MAX_PIXELS_PER_SECOND: f64 = (1u64 << 31) as f64;

impl DecodeLimits {
    /// The number of pixels that no decoder can decode within `time` in `threads` threads. A video that needs more would
    /// only be given up at the time limit.
    pub fn max_pixels_within(time: Duration, threads: usize) -> u64 {
        (time.as_secs_f64().max(1.0) * threads.max(1) as f64 * MAX_PIXELS_PER_SECOND) as u64
    }
}

impl Default for DecodeLimits {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        Self {
            threads,
            memory_bytes: 2 << 30,
            pixels: Self::max_pixels_within(Duration::from_secs(60), threads),
            gpu: None,
        }
    }
}

/// A request to decode selected frames of one video.
#[derive(Clone, Copy, Debug)]
pub struct DecodeRequest<'a> {
    /// The video file.
    pub path: &'a Path,
    /// The profile, which sets the limits for frames and pixels.
    pub profile: MediaProfile,
    /// Overrides of the profile's limits.
    pub overrides: MediaOverrides,
    /// Whether frames are resized.
    pub size: DecodedFrameSize,
    /// Maximum numbers of threads and of bytes of memory.
    pub limits: DecodeLimits,
}

/// The error for frames of `bytes` in total that exceed the memory limit of `limit` bytes.
pub(super) fn frames_too_large_error(path: &Path, bytes: u64, limit: u64) -> Error {
    const MIB: u64 = 1 << 20;
    Error::media_memory(
        path,
        format!(
            "its selected frames need {} MiB, above the decoder's memory limit of {} MiB",
            bytes.div_ceil(MIB),
            limit / MIB
        ),
        "take fewer frames, or raise the memory limit (--media-memory)",
    )
}
