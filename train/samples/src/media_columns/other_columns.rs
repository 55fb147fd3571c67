//! Refuses columns that nothing reads and that hold media.

use reel_input::messages::{IMAGE_KEYS, VIDEO_KEYS, media_type_of_base64};
use reel_support::diagnostic::{Diagnostic, print_note_once};
use serde_json::{Map, Value};

use super::{Kind, is_given, parts};

/// Columns that are never treated as media, regardless of their values, because the reward functions read them.
const ANSWER_COLUMNS: [&str; 9] =
    ["solution", "answer", "problem", "problem_type", "data_type", "options", "process", "question", "tool_calls"];

/// Names of limits that a row may have as a property of its video, too: nothing is lost if they are only that.
const PROPERTY_COLUMNS: [&str; 1] = ["fps"];

/// Refuses a column that nothing reads if its name or its values show that it holds media, or a limit of frames or
/// pixels, which belongs into the object of the video. A column that only repeats files of the messages is accepted.
pub(super) fn refuse_media_in_other_columns(
    messages: &[Value],
    columns: &Map<String, Value>,
) -> Result<(), Diagnostic> {
    let known: Vec<&str> = Kind::ALL.iter().flat_map(|kind| kind.columns()).chain(ANSWER_COLUMNS).collect();
    let mut used = Vec::new();
    let has = |kind: &Kind| messages.iter().flat_map(parts).any(|part| kind.has_file(part));
    // A row may have both; its limits then concern the video.
    let limited = [Kind::Video, Kind::Image].into_iter().find(has);
    for part in messages.iter().flat_map(parts) {
        for key in ["image", "image_url", "video", "video_url", "url", "path"] {
            collect_strings(part.get(key).unwrap_or(&Value::Null), &mut used);
        }
    }
    let is_used = |path: &str| used.iter().any(|used| used.ends_with(path) || path.ends_with(used));
    for (name, value) in columns.iter().filter(|(name, value)| !known.contains(&name.as_str()) && is_given(value)) {
        let limits = limited.map(|kind| match kind {
            Kind::Image => (&IMAGE_KEYS[..], "images", "image"),
            Kind::Video => (&VIDEO_KEYS[..], "videos", "video"),
        });
        if let Some((_, list, one)) = limits.filter(|(keys, ..)| keys.contains(&name.as_str())) {
            let what = "is a limit of frames or pixels, but reel does not read it from a column";
            let help = format!("write it beside the file: \"{list}\": [{{\"{one}\": PATH, \"{name}\": {value}}}]");
            if !PROPERTY_COLUMNS.contains(&name.as_str()) {
                return Err(Diagnostic::new(name.as_str(), what, help));
            }
            print_note_once(format!("{name}: {what}; {help}"));
        }
        let mut strings = Vec::new();
        collect_strings(value, &mut strings);
        let looks_so = is_media_name(name) || strings.iter().any(|text| is_media_file(text));
        let is_audio = is_audio_name(name) || (!strings.is_empty() && strings.iter().all(|text| is_audio_file(text)));
        if is_audio && looks_so && !strings.is_empty() {
            return Err(Diagnostic::new(name.as_str(), "is audio, which is not supported", "remove the column"));
        }
        if looks_so && !strings.is_empty() && !strings.iter().all(|text| is_used(text)) {
            return Err(Diagnostic::new(
                name.as_str(),
                "looks like images or videos, but reel does not read this column",
                "name the column images or videos and write <image> or <video> where each file belongs, or remove the \
                 column",
            ));
        }
    }
    Ok(())
}

/// Appends all non-empty strings in a JSON value, at any depth, to `found`.
fn collect_strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) if !text.is_empty() => found.push(text),
        Value::Array(list) => list.iter().for_each(|value| collect_strings(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| collect_strings(value, found)),
        _ => {}
    }
}

/// Whether a column name denotes media: it consists of a word for media, alone or with words such as `path` or `file`.
/// A name with any other word (`video_id`, `image_caption`) does not denote media.
fn is_media_name(name: &str) -> bool {
    const MEDIA: [&str; 12] =
        ["image", "img", "video", "audio", "picture", "photo", "frame", "film", "clip", "media", "modal", "multimodal"];
    const FILES: [&str; 14] = [
        "path", "file", "filename", "name", "url", "uri", "data", "list", "input", "source", "src", "bytes", "base64",
        "multi",
    ];
    let spaced: String = name
        .chars()
        .flat_map(|c| match c {
            c if c.is_uppercase() => [' ', c.to_ascii_lowercase()],
            c if c.is_alphanumeric() => [c, '\0'],
            _ => [' ', '\0'],
        })
        .filter(|&c| c != '\0')
        .collect();
    let lower = spaced.to_lowercase();
    let words: Vec<&str> = lower.split(' ').filter(|word| !word.is_empty()).collect();
    let is_one_of = |word: &str, list: &[&str]| {
        list.contains(&word) || word.strip_suffix('s').is_some_and(|singular| list.contains(&singular))
    };
    words.iter().any(|word| is_one_of(word, &MEDIA))
        && words.iter().all(|word| is_one_of(word, &MEDIA) || is_one_of(word, &FILES))
}

/// Whether a text is the path or address of a media file, or a `data:` URI of one.
fn is_media_file(text: &str) -> bool {
    const VIDEOS: [&str; 11] = ["mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "flv", "wmv", "ts"];
    let is_media = |media_type: &str| ["image/", "video/", "audio/"].iter().any(|kind| media_type.starts_with(kind));
    if data_media_type(text).is_some_and(is_media) {
        return true;
    }
    IMAGES.iter().chain(&VIDEOS).chain(&AUDIOS).any(|extension| has_extension(text, extension))
}

/// Whether a text is the path or address of an image file, or a `data:` URI of one.
pub(super) fn is_image_file(text: &str) -> bool {
    data_media_type(text).is_some_and(|kind| kind.starts_with("image/"))
        || IMAGES.iter().any(|extension| has_extension(text, extension))
}

/// The media type of a `data:` URI; that of its content if it names none. `None` for any other text.
fn data_media_type(text: &str) -> Option<&str> {
    let (head, content) = text.strip_prefix("data:")?.split_once(',')?;
    match head.strip_suffix(";base64").unwrap_or(head) {
        "" | "application/octet-stream" => media_type_of_base64(content),
        media_type => Some(media_type),
    }
}

fn is_audio_file(text: &str) -> bool {
    data_media_type(text).is_some_and(|kind| kind.starts_with("audio/"))
        || AUDIOS.iter().any(|extension| has_extension(text, extension))
}

fn is_audio_name(name: &str) -> bool {
    let name = name.to_lowercase();
    is_media_name(&name) && name.contains("audio")
}

const IMAGES: [&str; 9] = ["jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff", "heic"];
const AUDIOS: [&str; 6] = ["wav", "mp3", "flac", "ogg", "m4a", "aac"];

/// Whether a text is a path or an address with this extension.
fn has_extension(text: &str, wanted: &str) -> bool {
    let path = text.split(['?', '#']).next().unwrap_or(text);
    text.len() < 4096
        && !text.contains(['\n', '<'])
        && path.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case(wanted))
        && (!path.contains(' ') || path.contains('/'))
}
