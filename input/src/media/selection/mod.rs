//! Selects video frames by the rules of qwen-vl-utils 0.0.10 and 0.0.14 (with decord), the VideoRFT and Video-R1 quick
//! starts, and the processor of Qwen3-VL (transformers 5.24).
//!
//! The rule of a profile with a frame rate, without overrides, in f64 as in Python:
//! ```text
//! n       = total_frames / video_fps * fps
//! n       = min(min(max(n, min_frames), max_frames), total_frames), rounded down to even
//! indices = round(linspace(0, total_frames - 1, n))        in f32, halves to even, as torch
//! ```
//! Example: 300 frames at 30 frames/s with fps 2 give n = 20 and the indices 0, 16, 31, …, 299. The processor of
//! Qwen3-VL does not round n to an even number, and computes positions in f64.

use std::path::Path;

use crate::error::{Error, Result};
use crate::media::error::with_image_name;
use crate::media::profile::{MediaOverrides, MediaProfile, SelectionRule};

/// Frames are selected in pairs, because two of them share a temporal patch.
const FRAME_FACTOR: f64 = 2.0;

/// Videos with more frames are refused, so that frame numbers stay exact in f64 arithmetic.
const MAX_TOTAL_FRAMES: u64 = 1 << 42;

/// The maximum number of frames that any profile may select, so that a list of indices stays small for any input.
const MAX_SELECTED_FRAMES: u64 = 1 << 20;

/// The location of errors about the video itself: its number of frames or its frame rate.
const TOTAL_FRAMES: &str = "total_frames";
const VIDEO_FPS: &str = "video_fps";

/// The frames that a profile selects from a video.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameSelection {
    /// Frame indices in display order, ascending. Only the profiles `uniform-16` and
    /// `qwen3-processor` can give the same index twice.
    pub indices: Vec<u64>,
    /// Selected frames per second of video.
    pub sample_fps: f64,
}

/// Selects frames of a video of `total_frames` frames at `video_fps` frames per second.
///
/// # Errors
/// The error names the setting at fault: a video without frames, a rate that is not positive, `fps` together with
/// `nframes`, a count outside `2..=total_frames`, a time range with fewer than two frames, and overrides that the
/// profile's rule does not use.
pub fn select_frames(
    total_frames: u64,
    video_fps: f64,
    profile: MediaProfile,
    overrides: &MediaOverrides,
) -> Result<FrameSelection> {
    if total_frames == 0 || total_frames > MAX_TOTAL_FRAMES {
        return Err(Error::setting(
            TOTAL_FRAMES,
            format!("no frames can be selected from a video of {total_frames} frames"),
            format!("use a video of 1 to {MAX_TOTAL_FRAMES} frames"),
        ));
    }
    if !(video_fps.is_finite() && video_fps > 0.0) {
        let what = format!("{video_fps} frames per second is not a positive rate");
        return Err(Error::setting(VIDEO_FPS, what, "give a positive number of frames per second"));
    }
    let (first, last) = time_range(total_frames, video_fps, overrides)?;
    let total = last - first + 1;
    let indices = match profile.selection_rule() {
        SelectionRule::Rate { fps, min_frames, max_frames } => {
            let n = frame_count(total, video_fps, [fps, min_frames as f64, max_frames as f64], overrides)?;
            linspace(first, last, n)
        }
        SelectionRule::ProcessorRate { fps, min_frames, max_frames } => {
            let n = processor_frame_count(total, video_fps, [fps, min_frames as f64, max_frames as f64], overrides)?;
            processor_linspace(first, last, n)
        }
        SelectionRule::Uniform(default) => {
            refuse_rate_overrides(profile, overrides)?;
            let n = overrides.nframes.unwrap_or(default);
            if n < 1 || n as u64 > MAX_SELECTED_FRAMES {
                return Err(bad_count(&n.to_string(), 1, MAX_SELECTED_FRAMES));
            }
            let step = total as f64 / n as f64;
            (0..n).map(|i| first + ((i as f64 * step) as u64).min(total - 1)).collect()
        }
        SelectionRule::Stride => {
            refuse_rate_overrides(profile, overrides)?;
            if overrides.nframes.is_some() {
                return Err(unused_override(profile, "nframes"));
            }
            stride(first, last, video_fps)?
        }
    };
    let sample_fps = indices.len() as f64 / total as f64 * video_fps;
    Ok(FrameSelection { indices, sample_fps })
}

/// Selects frames of the video file `path` as [`select_frames`] does.
///
/// # Errors
/// The errors of [`select_frames`]; those about the number of frames or the frame rate are errors of the file.
pub fn select_frames_of_file(
    path: &Path,
    total_frames: u64,
    video_fps: f64,
    profile: MediaProfile,
    overrides: &MediaOverrides,
) -> Result<FrameSelection> {
    select_frames(total_frames, video_fps, profile, overrides).map_err(|e| {
        match [TOTAL_FRAMES, VIDEO_FPS].contains(&e.diagnostic.location.as_str()) {
            true => with_image_name(e, &path.display().to_string()),
            false => e,
        }
    })
}

/// Indices of the first and the last frame between `video_start` and `video_end`. Without `video_start` the first is
/// frame 0; without `video_end` the last is the video's last frame.
fn time_range(total: u64, video_fps: f64, overrides: &MediaOverrides) -> Result<(u64, u64)> {
    let (start, end) = (overrides.video_start, overrides.video_end);
    if start.is_none() && end.is_none() {
        return Ok((0, total - 1));
    }
    let duration = total as f64 / video_fps;
    let frame_position = |field: &str, seconds: Option<f64>| match seconds {
        Some(s) if s.is_nan() => Err(Error::setting(field, "is not a number", "give a time in seconds")),
        s => Ok(s.map(|s| s.clamp(0.0, duration) * video_fps)),
    };
    let first = frame_position("video_start", start)?.map_or(0, |f| f.ceil() as u64);
    let last = frame_position("video_end", end)?.map_or(total - 1, |f| (f.floor() as u64).min(total - 1));
    if first >= last {
        let (from, to) = (start.unwrap_or(0.0), end.unwrap_or(duration));
        return Err(Error::setting(
            if start.is_some() { "video_start" } else { "video_end" },
            format!("fewer than two frames lie between {from} s and {to} s of a video of {duration:.3} s"),
            "widen the range",
        ));
    }
    Ok((first, last))
}

/// The number of frames to select from `total` frames, given by `nframes` or computed from a rate; always even.
fn frame_count(total: u64, video_fps: f64, [fps, min, max]: [f64; 3], overrides: &MediaOverrides) -> Result<u64> {
    let available = total as f64;
    let n = match number_or_rate(fps, overrides)? {
        FrameCount::Number(n) => (n as f64 / FRAME_FACTOR).round_ties_even() * FRAME_FACTOR,
        FrameCount::Rate(fps) => {
            let min = (overrides.min_frames.map_or(min, |m| m as f64) / FRAME_FACTOR).ceil() * FRAME_FACTOR;
            let max = overrides.max_frames.map_or(max.min(available), |m| m as f64);
            let max = (max / FRAME_FACTOR).floor() * FRAME_FACTOR;
            let wanted = available / video_fps * fps;
            (wanted.max(min).min(max).min(available) / FRAME_FACTOR).floor() * FRAME_FACTOR
        }
    };
    let limit = total.min(MAX_SELECTED_FRAMES);
    if !(n >= FRAME_FACTOR && n <= limit as f64) {
        let count = match overrides.nframes {
            // The given number of frames is within the limits, but the even number to which it is rounded is not.
            Some(given) if given >= 2 && given.unsigned_abs() <= limit => format!("{given}, which is rounded to {n}"),
            Some(given) => given.to_string(),
            // Rounding down may result in -0, which would be printed; adding 0 makes it 0.
            None => (n + 0.0).to_string(),
        };
        return Err(bad_count(&count, 2, limit));
    }
    Ok(n as u64)
}

/// The two ways in which the number of frames is given.
enum FrameCount {
    /// A number of frames.
    Number(i64),
    /// Frames per second of video.
    Rate(f64),
}

/// `nframes`, or else the rate: `fps`, or the rate of the profile.
fn number_or_rate(profile_fps: f64, overrides: &MediaOverrides) -> Result<FrameCount> {
    match (overrides.nframes, overrides.fps.unwrap_or(profile_fps)) {
        (Some(_), _) if overrides.fps.is_some() => {
            Err(Error::setting("nframes", "cannot be given together with fps", "give only one of the two"))
        }
        (Some(n), _) => Ok(FrameCount::Number(n)),
        // qwen-vl-utils accepts a rate of 0 or below: `min_frames` is then the number of frames. So only NaN and
        // infinity are refused.
        (None, fps) if !fps.is_finite() => {
            let what = format!("{fps} is not a number of frames per second");
            Err(Error::setting("fps", what, "give a number of frames per second"))
        }
        (None, fps) => Ok(FrameCount::Rate(fps)),
    }
}

/// The number of frames that the processor of Qwen3-VL selects from `total` frames; it may be odd, and a given number
/// may be above `total`.
fn processor_frame_count(
    total: u64,
    video_fps: f64,
    [fps, min, max]: [f64; 3],
    overrides: &MediaOverrides,
) -> Result<u64> {
    let n = match number_or_rate(fps, overrides)? {
        FrameCount::Number(n) => n as f64,
        FrameCount::Rate(fps) => {
            let (min, max) =
                (overrides.min_frames.map_or(min, |m| m as f64), overrides.max_frames.map_or(max, |m| m as f64));
            (total as f64 / video_fps * fps).trunc().max(min).min(max).min(total as f64)
        }
    };
    match n >= 2.0 && n <= MAX_SELECTED_FRAMES as f64 {
        true => Ok(n as u64),
        false if overrides.nframes.is_none() => Err(bad_count(&n.to_string(), 2, total)),
        false => Err(bad_count(&n.to_string(), 2, MAX_SELECTED_FRAMES)),
    }
}

/// `n` indices from `first` to `last` as `numpy.linspace` computes them in f64, rounded half to even.
fn processor_linspace(first: u64, last: u64, n: u64) -> Vec<u64> {
    let step = (last - first) as f64 / (n - 1) as f64;
    (0..n - 1).map(|i| first + (i as f64 * step).round_ties_even() as u64).chain([last]).collect()
}

/// `n` indices from `first` to `last` as `torch.linspace` computes them: in f32, from both ends inwards, rounded half
/// to even. Multiplication and addition are fused and round once, as in torch's AVX2 and AVX-512 kernels; with two
/// roundings some indices of long videos would differ by one.
fn linspace(first: u64, last: u64, n: u64) -> Vec<u64> {
    let (a, b) = (first as f32, last as f32);
    let step = (b - a) / (n - 1) as f32;
    let position = |i: u64| if i < n / 2 { step.mul_add(i as f32, a) } else { (-step).mul_add((n - 1 - i) as f32, b) };
    // f32 rounds a `last` above 2^24 up or down; the clamp keeps indices within the range.
    (0..n).map(|i| (position(i).round_ties_even() as u64).clamp(first, last)).collect()
}

/// Every `round(video_fps)`-th frame index from `first` to `last`.
fn stride(first: u64, last: u64, video_fps: f64) -> Result<Vec<u64>> {
    let step = video_fps.round_ties_even();
    if step < 1.0 {
        return Err(Error::setting(
            VIDEO_FPS,
            format!(
                "the video has {video_fps} frames per second, which rounds to 0, so `every round(fps)-th frame` selects none"
            ),
            "use a profile with a fixed number of frames, such as uniform-16",
        ));
    }
    let step = step as u64;
    let n = (last - first) / step + 1;
    if n > MAX_SELECTED_FRAMES {
        return Err(bad_count(&n.to_string(), 1, MAX_SELECTED_FRAMES));
    }
    Ok((0..n).map(|i| first + i * step).collect())
}

/// The error for a number of frames outside of `min..=max`; `count` is the number as text.
fn bad_count(count: &str, min: u64, max: u64) -> Error {
    if max < min {
        // `time_range` ensures that a selected part of a video has at least two frames, so this is a whole video of
        // one frame.
        let what = format!("no frames can be selected from a video of {max} frame, because {min} are needed");
        return Error::setting(TOTAL_FRAMES, what, "use a longer video, or give the frame as an image");
    }
    Error::setting(
        "nframes",
        format!("is {count}, but must be between {min} and {max} for this video"),
        "change nframes, or fps, min_frames and max_frames",
    )
}

fn unused_override(profile: MediaProfile, key: &str) -> Error {
    let what = format!("has no effect with the profile {profile}");
    Error::setting(key, what, "remove it, or use the profile qwen")
}

/// Refuses `fps`, `min_frames` and `max_frames` for profiles that do not select frames by a rate, so that no setting
/// is silently ignored.
fn refuse_rate_overrides(profile: MediaProfile, overrides: &MediaOverrides) -> Result<()> {
    let rate_overrides = [
        ("fps", overrides.fps.is_some()),
        ("min_frames", overrides.min_frames.is_some()),
        ("max_frames", overrides.max_frames.is_some()),
    ];
    let given = rate_overrides.iter().find(|(_, is_given)| *is_given);
    given.map_or(Ok(()), |(key, _)| Err(unused_override(profile, key)))
}

#[cfg(test)]
mod tests;
