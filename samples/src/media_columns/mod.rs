//! Media in columns: rows in the formats of LLaMA-Factory, ms-swift and TRL have their files in columns (`images`,
//! `videos`) and mark the place of each file in the messages. This module puts each file into the messages as a part:
//!
//! ```text
//! {"messages": [{"role": "user", "content": "<video>What happens?"}, …], "videos": ["a.mp4"]}
//! {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"},
//!                                            {"type": "text", "text": "What happens?"}]}, …]}
//! ```
//! A place is the mark `<image>` or `<video>` in a text, or a part of the type `image` or `video` without a file (TRL).
//! The n-th place of a kind gets the n-th file of that kind. If a row has no place, its files are put before the text
//! of the first user message, as in TRL and ms-swift. A row with more or fewer files than places is refused. A row with
//! media in a column that nothing reads is refused, too, because training on the row would ignore these media.

use reel_diagnostic::Diagnostic;
use serde_json::{Map, Value, json};

/// A kind of media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Image,
    Video,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Image, Self::Video];

    /// The columns that may hold files of this kind.
    fn columns(self) -> [&'static str; 2] {
        match self {
            Self::Image => ["images", "image"],
            Self::Video => ["videos", "video"],
        }
    }

    /// The text that marks the place of a file.
    fn mark(self) -> &'static str {
        match self {
            Self::Image => "<image>",
            Self::Video => "<video>",
        }
    }

    /// The `type` of a message part that holds a file of this kind; the file is under the key of the same name.
    fn key(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
        }
    }

    /// Whether a message part is a place: it is of this kind and has no file.
    fn is_place(self, part: &Value) -> bool {
        let kinds: &[&str] = match self {
            Self::Image => &["image", "image_url", "input_image"],
            Self::Video => &["video", "video_url"],
        };
        part.get("type").and_then(Value::as_str).is_some_and(|kind| kinds.contains(&kind)) && !self.has_file(part)
    }

    /// Whether a message part has a file of this kind.
    fn has_file(self, part: &Value) -> bool {
        let has = |key: &str| part.get(key).is_some_and(|value| !value.is_null());
        has(self.key()) || has(&format!("{}_url", self.key()))
    }
}

/// The files of one kind: the name of their column and the parts to insert, in order.
struct Files {
    kind: Kind,
    column: &'static str,
    parts: Vec<Map<String, Value>>,
}

/// Puts the files of a row's media columns into its messages, which are in the column `field`. Without media columns
/// the messages stay as they are.
pub(super) fn insert_media(
    field: &str,
    mut messages: Vec<Value>,
    columns: &Map<String, Value>,
) -> Result<Vec<Value>, Diagnostic> {
    let files = [read_files(Kind::Image, columns)?, read_files(Kind::Video, columns)?];
    add_places(&mut messages, &files);
    for files in &files {
        check_counts(field, &messages, files)?;
    }
    let mut rest = files.map(|files| (files.kind, files.parts.into_iter()));
    let mut next = |kind: Kind| rest.iter_mut().find(|(of, _)| *of == kind).and_then(|(_, parts)| parts.next());
    let messages: Vec<Value> = messages.into_iter().map(|message| fill_places(message, &mut next)).collect();
    check_other_columns(&messages, columns)?;
    Ok(messages)
}

/// Refuses media columns in a row whose prompt is a text: only messages can hold media.
pub(super) fn refuse_media(field: &str, text: &str, columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    const HELP: &str = "write the text as a list of {\"role\", \"content\"} messages";
    for kind in Kind::ALL {
        if let Some(column) = kind.columns().into_iter().find(|column| columns.get(*column).is_some_and(is_given)) {
            return Err(Diagnostic::new(
                field,
                format!("is plain text, which cannot contain the images or videos of the column `{column}`"),
                HELP,
            ));
        }
        if text.contains(kind.mark()) {
            return Err(Diagnostic::new(
                field,
                format!("is plain text, but contains the media mark {}", kind.mark()),
                HELP,
            ));
        }
    }
    check_other_columns(&[], columns)
}

/// Refuses a row in VideoRFT's layout that has media columns: this layout names its file in the column `path`.
pub(super) fn refuse_media_beside_path(columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    let names = Kind::ALL.iter().flat_map(|kind| kind.columns());
    match names.into_iter().find(|name| columns.get(*name).is_some_and(is_given)) {
        Some(name) => Err(Diagnostic::new(
            name,
            "is not read, because a row with `problem` names its file in `path`",
            "give the file as `path`",
        )),
        None => Ok(()),
    }
}

/// Whether a column has a value: not null, and neither an empty text nor an empty list.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

fn read_files(kind: Kind, columns: &Map<String, Value>) -> Result<Files, Diagnostic> {
    let [several, single] = kind.columns();
    let given = |name: &str| columns.get(name).filter(|value| is_given(value));
    let (column, value) = match (given(several), given(single)) {
        (Some(_), Some(_)) => {
            return Err(Diagnostic::new(single, format!("is given together with `{several}`"), "give one of the two"));
        }
        (Some(value), None) => (several, value),
        (None, Some(value)) => (single, value),
        (None, None) => return Ok(Files { kind, column: several, parts: Vec::new() }),
    };
    let parts = match value {
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, value)| media_part(kind, &format!("{column}[{i}]"), value))
            .collect::<Result<_, _>>()?,
        one => vec![media_part(kind, column, one)?],
    };
    Ok(Files { kind, column, parts })
}

/// Makes the message part for one file. `value` is a path or an address, a list of image files (the frames of a video),
/// or an object with the file under `image`, `video`, `path` or `url`. The object's other keys, such as `max_pixels`,
/// are kept.
fn media_part(kind: Kind, location: &str, value: &Value) -> Result<Map<String, Value>, Diagnostic> {
    let is_path = |value: &Value| value.as_str().is_some_and(|path| !path.is_empty());
    let is_source = |value: &Value| match value {
        Value::Array(frames) => kind == Kind::Video && !frames.is_empty() && frames.iter().all(is_path),
        one => is_path(one),
    };
    let refuse = |what: &str| {
        let help = match kind {
            Kind::Image => "give the path of an image file",
            Kind::Video => "give the path of a video file, or a list of image files, its frames",
        };
        Err(Diagnostic::new(location, what, help))
    };
    let mut part = match value {
        Value::Object(fields) => fields.clone(),
        source if is_source(source) => Map::from_iter([(kind.key().to_string(), source.clone())]),
        _ => return refuse("is not a file"),
    };
    let Some(name) = [kind.key(), "path", "url"].into_iter().find(|name| part.get(*name).is_some_and(is_source)) else {
        let has_bytes = part.get("bytes").is_some_and(|bytes| !bytes.is_null());
        return refuse(if has_bytes { "has the bytes of a file instead of its path" } else { "does not name a file" });
    };
    let source = part.shift_remove(name).unwrap_or_default();
    part.shift_remove("bytes");
    part.insert("type".to_string(), json!(kind.key()));
    part.insert(kind.key().to_string(), source);
    Ok(part)
}

/// If the messages mark no place, adds a place for each file before the text of the first user message. A row with both
/// images and videos must mark their places, because the order of the files is unknown.
fn add_places(messages: &mut [Value], files: &[Files; 2]) {
    let mut given = files.iter().filter(|files| !files.parts.is_empty());
    let (Some(files), None) = (given.next(), given.next()) else { return };
    let is_marked = |message: &Value| {
        count_places(message, files.kind) > 0 || parts(message).iter().any(|part| files.kind.has_file(part))
    };
    if messages.iter().any(is_marked) {
        return;
    }
    let Some(first) = messages.iter_mut().find(|message| message["role"] == "user") else { return };
    let content = match first["content"].take() {
        Value::Array(parts) => parts,
        text => vec![json!({"type": "text", "text": text})],
    };
    let places = files.parts.iter().map(|_| json!({"type": files.kind.key()}));
    first["content"] = places.chain(content).collect();
}

/// Checks that the messages have as many places as `files` has files.
fn check_counts(field: &str, messages: &[Value], files: &Files) -> Result<(), Diagnostic> {
    let (kind, given) = (files.kind, files.parts.len());
    let places: usize = messages.iter().map(|message| count_places(message, kind)).sum();
    let (key, mark, column) = (kind.key(), kind.mark(), files.column);
    if given > 0 && given != places {
        let what = format!("has {given} {key} file(s), but the messages have {places} place(s) for them");
        return Err(Diagnostic::new(
            column,
            what,
            format!("write {mark} into the messages once for each {key}, where it belongs"),
        ));
    }
    if given > 0 {
        return Ok(());
    }
    // The mark `<video>` in an assistant's message is accepted as text (it may be about the HTML tag) if there are no
    // media columns.
    let is_prompt = |message: &&Value| message.get("role").and_then(Value::as_str) != Some("assistant");
    let marked = |(_, message): &(usize, &Value)| is_prompt(message) && texts(message).any(|text| text.contains(mark));
    match messages.iter().enumerate().find(marked) {
        Some((i, _)) => Err(Diagnostic::new(
            format!("{field}[{i}].content"),
            format!("has the mark {mark}, but the row has no {key} in a column `{column}`"),
            "add the column, or remove the mark",
        )),
        None => Ok(()),
    }
}

fn count_places(message: &Value, kind: Kind) -> usize {
    let empty_parts = parts(message).iter().filter(|part| kind.is_place(part)).count();
    empty_parts + texts(message).map(|text| text.matches(kind.mark()).count()).sum::<usize>()
}

fn parts(message: &Value) -> &[Value] {
    message.get("content").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts of a message: its content if that is a string, otherwise the texts of its parts.
fn texts(message: &Value) -> impl Iterator<Item = &str> {
    let whole = message.get("content").and_then(Value::as_str);
    whole.into_iter().chain(parts(message).iter().filter_map(text_of_part))
}

fn text_of_part(part: &Value) -> Option<&str> {
    let is_text = part.get("type").is_none_or(|kind| kind == "text");
    part.get("text").and_then(Value::as_str).filter(|_| is_text)
}

/// Replaces the places of a message by the parts that `next` returns. A place for which `next` returns `None` stays as
/// it is.
fn fill_places(mut message: Value, next: &mut impl FnMut(Kind) -> Option<Map<String, Value>>) -> Value {
    let has_places = Kind::ALL.into_iter().any(|kind| count_places(&message, kind) > 0);
    let Some(content) = message.get_mut("content").filter(|_| has_places) else { return message };
    let filled = match content.take() {
        Value::String(text) => split_at_marks(&text, next),
        Value::Array(parts) => parts.into_iter().flat_map(|part| fill_part(part, next)).collect(),
        other => vec![other],
    };
    // If the content is a single text without a file, it stays a string.
    *content = match &filled[..] {
        [only] if only.get("type").is_some_and(|kind| kind == "text") => only["text"].clone(),
        _ => Value::Array(filled),
    };
    message
}

fn fill_part(mut part: Value, next: &mut impl FnMut(Kind) -> Option<Map<String, Value>>) -> Vec<Value> {
    if let Some(text) = text_of_part(&part) {
        return split_at_marks(text, next);
    }
    let place = Kind::ALL.into_iter().find(|kind| kind.is_place(&part));
    if let (Some(file), Some(fields)) = (place.and_then(next), part.as_object_mut()) {
        fields.extend(file);
    }
    vec![part]
}

/// Splits a text into parts: one file part for each mark, and text parts for the texts between the marks.
fn split_at_marks(text: &str, next: &mut impl FnMut(Kind) -> Option<Map<String, Value>>) -> Vec<Value> {
    let mut parts = Vec::new();
    let (mut pending, mut rest) = (String::new(), text);
    while let Some((at, kind)) = first_mark(rest) {
        let (before, from) = rest.split_at(at);
        let (mark, after) = from.split_at(kind.mark().len());
        pending.push_str(before);
        match next(kind) {
            Some(file) => {
                parts.extend(text_part(std::mem::take(&mut pending)));
                parts.push(Value::Object(file));
            }
            None => pending.push_str(mark),
        }
        rest = after;
    }
    pending.push_str(rest);
    parts.extend(text_part(pending));
    parts
}

fn text_part(text: String) -> Option<Value> {
    (!text.is_empty()).then(|| json!({"type": "text", "text": text}))
}

fn first_mark(text: &str) -> Option<(usize, Kind)> {
    let found = Kind::ALL.into_iter().filter_map(|kind| Some((text.find(kind.mark())?, kind)));
    found.min_by_key(|(at, _)| *at)
}

/// Columns that are never treated as media, regardless of their values, because the reward functions read them.
const ANSWER_COLUMNS: [&str; 8] =
    ["solution", "answer", "problem", "problem_type", "data_type", "options", "process", "question"];

/// Refuses a column that nothing reads if its name or its values show that it holds media. A column that only repeats
/// files of the messages is accepted.
fn check_other_columns(messages: &[Value], columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    let known: Vec<&str> = Kind::ALL.iter().flat_map(|kind| kind.columns()).chain(ANSWER_COLUMNS).collect();
    let mut used = Vec::new();
    for part in messages.iter().flat_map(parts) {
        for key in ["image", "image_url", "video", "video_url"] {
            collect_strings(part.get(key).unwrap_or(&Value::Null), &mut used);
        }
    }
    let is_used = |path: &str| used.iter().any(|used| used.ends_with(path) || path.ends_with(used));
    for (name, value) in columns.iter().filter(|(name, value)| !known.contains(&name.as_str()) && is_given(value)) {
        let mut strings = Vec::new();
        collect_strings(value, &mut strings);
        let looks_so = is_media_name(name) || strings.iter().any(|text| is_media_file(text));
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
    const EXTENSIONS: [&str; 26] = [
        "mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "flv", "wmv", "ts", "jpg", "jpeg", "png", "gif",
        "bmp", "webp", "tif", "tiff", "heic", "wav", "mp3", "flac", "ogg", "m4a", "aac",
    ];
    if ["data:image/", "data:video/", "data:audio/"].iter().any(|start| text.starts_with(start)) {
        return true;
    }
    let path = text.split(['?', '#']).next().unwrap_or(text);
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    text.len() < 4096
        && !text.contains(['\n', '<'])
        && extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
        && (!path.contains(' ') || path.contains('/'))
}

#[cfg(test)]
mod tests;
