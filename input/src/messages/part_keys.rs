//! The keys of image and video parts in chat messages: the limits of qwen-vl-utils (`fps`, `max_pixels`, …), which may
//! also stand beside the `url` of an `image_url` or `video_url`. Unknown keys are refused.

use crate::error::{Error, Result};
use crate::media::profile::MediaOverrides;
use serde_json::{Map, Value};

use super::{PartKind, part_kind};

/// The keys of qwen-vl-utils for the frames and pixels of a video.
pub const VIDEO_KEYS: [&str; 13] = [
    "nframes",
    "fps",
    "min_frames",
    "max_frames",
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
    "video_start",
    "video_end",
    "sample_fps",
    "raw_fps",
];

/// The keys of [`VIDEO_KEYS`] that an image may have.
pub const IMAGE_KEYS: [&str; 4] = ["min_pixels", "max_pixels", "resized_height", "resized_width"];

/// The keys under which an image part may have its file: those of Qwen, OpenAI and Transformers.
pub(crate) const IMAGE_SOURCES: [&str; 4] = ["image", "image_url", "url", "path"];

/// The keys under which a video part may have its file.
pub(crate) const VIDEO_SOURCES: [&str; 4] = ["video", "video_url", "url", "path"];

/// The key for the times of listed frames. It is this program's own: qwen-vl-utils has only rates.
pub const FRAME_TIMES_KEY: &str = "frame_times";

/// The path, address or list under one of `keys` ([`IMAGE_SOURCES`] or [`VIDEO_SOURCES`]), and the limits of the part.
/// The value may also be an object `{"url": …}`, with the limits beside `url`. OpenAI's `detail` is accepted there and
/// ignored, because `max_pixels` sets the size.
pub(crate) fn media_value_and_overrides<'a>(
    location: &str,
    map: &'a Map<String, Value>,
    keys: [&'static str; 4],
) -> Result<(Option<&'a Value>, MediaOverrides)> {
    let limits = read_media_overrides(location, map)?;
    let mut given = keys.into_iter().filter_map(|key| Some((key, map.get(key).filter(|value| !value.is_null())?)));
    let Some((key, value)) = given.next() else { return Ok((None, limits)) };
    let differs = |other: &Value| other.get("url").unwrap_or(other) != value.get("url").unwrap_or(value);
    if let Some((other, _)) = given.find(|(_, other)| differs(other)) {
        let what = format!("has both `{key}` and `{other}`, and they differ");
        return Err(Error::input(location, what, "give one of them"));
    }
    let Some(object) = value.as_object() else { return Ok((Some(value), limits)) };
    let location = format!("{location}: {key}");
    let own: &[&str] = if keys[0] == "image" { &IMAGE_KEYS } else { &VIDEO_KEYS };
    for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "url" => {}
            "detail" if keys[0] == "image" => {
                if !["auto", "low", "high"].iter().any(|detail| value == detail) {
                    return Err(Error::input(
                        format!("{location}: detail"),
                        format!("is {value}"),
                        "give \"auto\", \"low\" or \"high\"",
                    ));
                }
            }
            name if own.contains(&name) => {}
            name => return Err(unknown_key(&location, name, own)),
        }
    }
    let limits = limits.union(read_media_overrides(&location, object)?).map_err(|e| {
        let what = format!("is {} here, but {} in the part itself", e.other, e.own);
        Error::input(format!("{location}: {}", e.key), what, "give it in one place")
    })?;
    Ok((Some(object.get("url").unwrap_or(value)), limits))
}

/// The error for an unknown key.
fn unknown_key(location: &str, key: &str, known: &[&str]) -> Error {
    let help = match known {
        [] => "remove it; a text part has only `type` and `text`".to_string(),
        _ => format!("remove it; the keys that set frames and pixels here are {}", known.join(", ")),
    };
    Error::input(format!("{location}: {key}"), "is an unknown key", help)
}

/// Whether unknown keys of text parts are accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnknownTextKeys {
    /// Requests may have keys that only other servers read, such as `cache_control`.
    Accepted,
    /// Rows may not have unknown keys, because their values would be lost silently.
    Refused,
}

/// Refuses unknown keys in image and video parts, because a misspelt limit would have no effect. `text_keys` decides
/// whether unknown keys in text parts are refused too. The parts themselves were read and checked earlier.
pub(crate) fn refuse_unknown_part_keys(location: &str, messages: &Value, text_keys: UnknownTextKeys) -> Result<()> {
    for (i, message) in messages.as_array().into_iter().flatten().enumerate() {
        for (j, part) in message["content"].as_array().into_iter().flatten().enumerate() {
            let location = format!("{location}: message {i}, part {j}");
            let Some(map) = part.as_object() else { continue };
            let (own, limits): (&[&str], &[&str]) = match part_kind(&location, map)? {
                PartKind::Text if text_keys == UnknownTextKeys::Accepted => continue,
                PartKind::Text => (&["text", "annotations"], &[]),
                PartKind::Image => (&["image", "image_url", "url", "path", "detail"], &IMAGE_KEYS),
                PartKind::Video => (&["video", "video_url", "url", "path", FRAME_TIMES_KEY], &VIDEO_KEYS),
            };
            // `uuid` is the key of an image or video in vLLM's media cache. This program ignores it.
            let is_known = |key: &str| ["type", "uuid"].contains(&key) || own.contains(&key) || limits.contains(&key);
            if let Some((key, _)) = map.iter().find(|(key, value)| !value.is_null() && !is_known(key)) {
                return Err(unknown_key(&location, key, limits));
            }
        }
    }
    Ok(())
}

/// Reads the times of listed frames in seconds: ascending numbers from 0. `None` without the key, or if it is null.
pub(crate) fn read_frame_times(location: &str, map: &Map<String, Value>) -> Result<Option<Vec<f64>>> {
    let Some(value) = map.get(FRAME_TIMES_KEY).filter(|value| !value.is_null()) else { return Ok(None) };
    let times = value.as_array().and_then(|times| times.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
    match times.filter(|times| times.is_sorted() && times.iter().all(|time| *time >= 0.0 && time.is_finite())) {
        Some(times) => Ok(Some(times)),
        None => Err(Error::input(
            format!("{location}: {FRAME_TIMES_KEY}"),
            "is not a list of ascending times from 0",
            "give the time of each listed frame in seconds",
        )),
    }
}

/// Reads the keys of qwen-vl-utils in a content part. A key whose value is null counts as absent.
pub(crate) fn read_media_overrides(location: &str, map: &Map<String, Value>) -> Result<MediaOverrides> {
    let number = |key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => {
                Err(Error::input(format!("{location}: {key}"), "is not a number", "give a number, or remove the key"))
            }
        },
    };
    let whole = |key: &str| match number(key)? {
        Some(x) if x.fract() != 0.0 || x.abs() > 2f64.powi(53) => Err(Error::input(
            format!("{location}: {key}"),
            format!("is {x}, not a whole number"),
            "give a whole number, or remove the key",
        )),
        x => Ok(x.map(|x| x as i64)),
    };
    let size = |key: &str| match whole(key)? {
        Some(x) if x < 1 => Err(Error::input(
            format!("{location}: {key}"),
            format!("is {x}, expected at least 1"),
            "give a number of pixels, or remove the key",
        )),
        x => Ok(x.map(|x| x as u64)),
    };
    Ok(MediaOverrides {
        nframes: whole("nframes")?,
        fps: number("fps")?,
        min_frames: whole("min_frames")?,
        max_frames: whole("max_frames")?,
        min_pixels: size("min_pixels")?,
        max_pixels: size("max_pixels")?,
        total_pixels: size("total_pixels")?,
        resized_height: size("resized_height")?,
        resized_width: size("resized_width")?,
        video_start: number("video_start")?,
        video_end: number("video_end")?,
        sample_fps: number("sample_fps")?,
        raw_fps: number("raw_fps")?,
        // The other fields limit only images or only videos. A message part is a single image or video, so the fields
        // above suffice.
        ..MediaOverrides::default()
    })
}
