//! Which frames of a film to take (the rules of qwen-vl-utils 0.0.10 with decord, and of the two quick starts), and the
//! type that holds them once decoded.

use crate::profile::{MediaOverrides, MediaProfile, SelectionRule};
use crate::{MediaError, Result};

/// Frames are taken in pairs: two make one step in time.
const FRAME_FACTOR: f64 = 2.0;

/// No film has more frames than this (a century at 1 000 a second); beyond it f64 arithmetic would lose units.
const MOST_FRAMES: u64 = 1 << 42;

/// The frames to take of a film.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameSelection {
    /// Frame numbers in display order, ascending; the `uniform-16` rule may repeat one.
    pub indices: Vec<u64>,
    /// Frames taken a second of film.
    pub sample_fps: f64,
}

/// Chooses frames of a film of `total_frames` frames at `video_fps` frames a second.
///
/// Refused, by the name of the setting: a film without frames, a rate that is not a positive number, `fps` together with
/// `nframes`, a count outside `2..=total_frames`, an empty range of time, and keys that the profile's rule does not know.
pub fn select_frames(
    total_frames: u64,
    video_fps: f64,
    profile: MediaProfile,
    overrides: &MediaOverrides,
) -> Result<FrameSelection> {
    if total_frames == 0 || total_frames > MOST_FRAMES {
        return Err(MediaError::setting(
            "total_frames",
            format!("{total_frames} frames cannot be sampled"),
            format!("give a film of 1 to {MOST_FRAMES} frames"),
        ));
    }
    positive("video_fps", video_fps)?;
    let (first, last) = range(total_frames, video_fps, overrides)?;
    let total = last - first + 1;
    let indices = match profile.rule() {
        SelectionRule::Rate { fps, min_frames, max_frames } => {
            let n = count(total, video_fps, [fps, min_frames as f64, max_frames as f64], overrides)?;
            linspace(first, last, n)
        }
        SelectionRule::Uniform(default) => {
            only_nframes(profile, overrides)?;
            let n = overrides.nframes.unwrap_or(default);
            if n < 1 || n as u64 > MOST_TAKEN {
                return Err(count_refused(n as f64, 1, MOST_TAKEN));
            }
            let step = total as f64 / n as f64;
            (0..n).map(|i| first + ((i as f64 * step) as u64).min(total - 1)).collect()
        }
        SelectionRule::Stride => {
            only_nframes(profile, overrides)?;
            if overrides.nframes.is_some() {
                return Err(foreign(profile, "nframes"));
            }
            stride(first, last, video_fps)?
        }
    };
    let sample_fps = indices.len() as f64 / total as f64 * video_fps;
    Ok(FrameSelection { indices, sample_fps })
}

/// No rule gives more frames than this: a list of indices stays small whatever the input says.
const MOST_TAKEN: u64 = 1 << 20;

/// The first and last frame between `video_start` and `video_end` (both inclusive; the whole film without them).
fn range(total: u64, video_fps: f64, o: &MediaOverrides) -> Result<(u64, u64)> {
    if o.video_start.is_none() && o.video_end.is_none() {
        return Ok((0, total - 1));
    }
    let length = total as f64 / video_fps;
    let at = |field: &str, seconds: Option<f64>| match seconds {
        Some(s) if s.is_nan() => Err(MediaError::setting(field, "not a number", "give a time in seconds")),
        s => Ok(s.map(|s| s.clamp(0.0, length) * video_fps)),
    };
    let first = at("video_start", o.video_start)?.map_or(0, |f| f.ceil() as u64);
    let last = at("video_end", o.video_end)?.map_or(total - 1, |f| (f.floor() as u64).min(total - 1));
    if first >= last {
        return Err(MediaError::setting(
            if o.video_start.is_some() { "video_start" } else { "video_end" },
            format!(
                "no two frames lie between {} s and {} s of a film of {length:.3} s",
                o.video_start.unwrap_or(0.0),
                o.video_end.unwrap_or(length)
            ),
            "widen the range",
        ));
    }
    Ok((first, last))
}

/// How many frames to spread over `total`, by count or by rate; always even.
fn count(total: u64, video_fps: f64, [fps, min, max]: [f64; 3], o: &MediaOverrides) -> Result<u64> {
    let film = total as f64;
    let n = match (o.nframes, o.fps) {
        (Some(_), Some(_)) => {
            return Err(MediaError::setting("nframes", "given together with fps", "give only one of the two"));
        }
        (Some(n), None) => (n as f64 / FRAME_FACTOR).round_ties_even() * FRAME_FACTOR,
        (None, given) => {
            let fps = given.unwrap_or(fps);
            // 0 and less are accepted as in the reference: the least number of frames then decides.
            if !fps.is_finite() {
                return Err(MediaError::setting(
                    "fps",
                    format!("{fps} is not a rate"),
                    "give a number of frames a second",
                ));
            }
            let min = (o.min_frames.map_or(min, |m| m as f64) / FRAME_FACTOR).ceil() * FRAME_FACTOR;
            let max = (o.max_frames.map_or(max.min(film), |m| m as f64) / FRAME_FACTOR).floor() * FRAME_FACTOR;
            let wanted = film / video_fps * fps;
            (wanted.max(min).min(max).min(film) / FRAME_FACTOR).floor() * FRAME_FACTOR
        }
    };
    let most = total.min(MOST_TAKEN);
    if !(n >= FRAME_FACTOR && n <= most as f64) {
        return Err(count_refused(n, 2, most));
    }
    Ok(n as u64)
}

/// `n` frames from `first` to `last`, in f32 and from both ends inwards as torch does, halves rounded to even. Product and
/// sum are rounded once (fused), as torch's kernels for AVX2 and AVX-512 do: long films differ by a frame otherwise.
fn linspace(first: u64, last: u64, n: u64) -> Vec<u64> {
    let (a, b) = (first as f32, last as f32);
    let step = (b - a) / (n - 1) as f32;
    let place = |i: u64| if i < n / 2 { step.mul_add(i as f32, a) } else { (-step).mul_add((n - 1 - i) as f32, b) };
    // f32 rounds a `last` above 2^24 up or down; a frame beyond the range does not exist.
    (0..n).map(|i| (place(i).round_ties_even() as u64).clamp(first, last)).collect()
}

/// Every `round(video_fps)`-th frame.
fn stride(first: u64, last: u64, video_fps: f64) -> Result<Vec<u64>> {
    let step = video_fps.round_ties_even();
    if step < 1.0 {
        return Err(MediaError::setting(
            "video_fps",
            format!("{video_fps} frames a second round to a stride of 0"),
            "use a profile that takes frames by count, such as qwen",
        ));
    }
    let step = step as u64;
    let n = (last - first) / step + 1;
    if n > MOST_TAKEN {
        return Err(count_refused(n as f64, 1, MOST_TAKEN));
    }
    Ok((0..n).map(|i| first + i * step).collect())
}

fn positive(field: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(MediaError::setting(field, format!("{value} is not a rate"), "give a positive number of frames a second"))
}

fn count_refused(n: f64, least: u64, most: u64) -> MediaError {
    MediaError::setting(
        "nframes",
        format!("{n} frames, but {least} to {most} can be taken"),
        "change nframes, or fps, min_frames and max_frames",
    )
}

fn foreign(profile: MediaProfile, key: &str) -> MediaError {
    MediaError::setting(key, format!("has no meaning with the profile {profile}"), "drop it, or use the profile qwen")
}

/// The two quick starts have no rate to change: silence would hide a setting that does nothing.
fn only_nframes(profile: MediaProfile, o: &MediaOverrides) -> Result<()> {
    let given =
        [("fps", o.fps.is_some()), ("min_frames", o.min_frames.is_some()), ("max_frames", o.max_frames.is_some())];
    given.iter().find(|(_, there)| *there).map_or(Ok(()), |(key, _)| Err(foreign(profile, key)))
}

#[cfg(test)]
mod tests;
