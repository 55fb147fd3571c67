//! Media in columns: rows in the formats of LLaMA-Factory, ms-swift and TRL have their files in columns (`images`,
//! `videos`) and mark the place of each file in the messages. This module puts each file into the messages as a part:
//!
//! ```text
//! {"messages": [{"role": "user", "content": "<video>What happens?"}, …], "videos": ["a.mp4"]}
//! {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"},
//!                                            {"type": "text", "text": "What happens?"}]}, …]}
//! ```
//! A place is the mark `<image>` or `<video>` in a text, or a part of the type `image` or `video` without a file
//! (TRL). The n-th place of a kind gets the n-th file of that kind. If a row has no place, its files are put before
//! the text of the first user message, as in TRL and ms-swift. If a row has a file in `video`, no images and no other
//! place for it, the mark `<image>` is its place, as in LLaVA-Video. A column that repeats the files of the messages is
//! accepted. A row with more or fewer files than places is refused. A row with media in a column that nothing reads
//! is also refused ([`other_columns`]), because training on the row would ignore these media.

mod other_columns;

use reel_input::messages::media_type_of_base64;
use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value, json};

use self::other_columns::{is_image_file, refuse_media_in_other_columns};

/// The kind of a media file: image or video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Image,
    Video,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Image, Self::Video];

    /// The names of the columns that may hold files of this kind.
    fn columns(self) -> [&'static str; 2] {
        match self {
            Self::Image => ["images", "image"],
            Self::Video => ["videos", "video"],
        }
    }

    /// The text that marks the place of a file in a message.
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

    /// Whether a message part is a placeholder for a file of this kind: its type is of this kind, and it has no file.
    fn is_place(self, part: &Value) -> bool {
        self.types().iter().any(|kind| part["type"] == *kind) && !self.has_file(part)
    }

    /// The keys under which a message part may have its file.
    fn sources(self) -> [&'static str; 4] {
        match self {
            Self::Image => ["image", "image_url", "url", "path"],
            Self::Video => ["video", "video_url", "url", "path"],
        }
    }

    /// The file of a message part: a path, an address or a list of frames; `None` for a part of another kind or without
    /// a file.
    fn file(self, part: &Value) -> Option<&Value> {
        let value = |key: &str| part.get(key).filter(|value| !value.is_null());
        let [own, address, others @ ..] = self.sources();
        let is_typed = self.types().iter().any(|kind| part["type"] == *kind);
        let further = others.into_iter().filter(|_| is_typed);
        let file = [own, address].into_iter().chain(further).find_map(value)?;
        Some(file.get("url").unwrap_or(file))
    }

    /// The values of `type` that a message part of this kind may have.
    fn types(self) -> &'static [&'static str] {
        match self {
            Self::Image => &["image", "image_url", "input_image"],
            Self::Video => &["video", "video_url"],
        }
    }

    /// Whether a message part has a file of this kind.
    fn has_file(self, part: &Value) -> bool {
        self.file(part).is_some()
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
    let mut files = [read_files(Kind::Image, columns)?, read_files(Kind::Video, columns)?];
    files.iter_mut().try_for_each(|files| remove_repeated_files(&messages, files))?;
    rename_marks_of_videos(&mut messages, &files);
    add_places(&mut messages, &files);
    for files in &files {
        check_counts(field, &messages, files)?;
    }
    let mut rest = files.map(|files| (files.kind, files.parts.into_iter()));
    let mut next = |kind: Kind| rest.iter_mut().find(|(of, _)| *of == kind).and_then(|(_, parts)| parts.next());
    let messages: Vec<Value> = messages.into_iter().map(|message| fill_places(message, &mut next)).collect();
    refuse_media_in_other_columns(&messages, columns)?;
    Ok(messages)
}

/// Refuses media columns in a row whose prompt is a text: only messages can hold media.
pub(super) fn refuse_media_with_text_prompt(
    field: &str,
    text: &str,
    columns: &Map<String, Value>,
) -> Result<(), Diagnostic> {
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
    refuse_media_in_other_columns(&[], columns)
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

/// Whether a column has a value: it is not null, not an empty text and not an empty list.
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
    let is_image = |value: &Value| value.as_str().is_some_and(is_image_file);
    let parts = match value {
        // In the column `video`, a list of images is one video: the images are its frames.
        Value::Array(list) if kind == Kind::Video && column == single && list.iter().all(is_image) => {
            vec![media_part(kind, column, value)?]
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, value)| media_part(kind, &format!("{column}[{i}]"), value))
            .collect::<Result<_, _>>()?,
        one => vec![media_part(kind, column, one)?],
    };
    Ok(Files { kind, column, parts })
}

/// Keys of an object in a media column that only describe its file.
const DESCRIPTIONS: [&str; 9] =
    ["width", "height", "format", "mode", "size", "name", "filename", "file_name", "mime_type"];

/// Makes the message part for one file. `value` is a path or an address, a list of image files (the frames of a
/// video), or an object with the file. The object has the file under `image`, `video`, `path` or `url`, as OpenAI's
/// `image_url` or `video_url`, or as base64 under `bytes` with the file's name under `path`. The object's other keys,
/// such as `max_pixels`, are kept.
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
    part.retain(|key, _| !DESCRIPTIONS.contains(&key.as_str()));
    let [own, address, ..] = kind.sources();
    let bytes = part.shift_remove("bytes").filter(|bytes| !bytes.is_null() && *bytes != "");
    if let Some(bytes) = bytes {
        let Some(uri) = bytes.as_str().and_then(data_uri) else {
            return refuse("has `bytes` that are not the base64 of an image or a video file");
        };
        part.shift_remove("path");
        if [own, address, "url"].into_iter().any(|name| part.get(name).is_some_and(|value| !value.is_null())) {
            return refuse("has both `bytes` and another file");
        }
        part.insert(own.to_string(), json!(uri));
    } else if let Some(name) = [own, "path", "url"].into_iter().find(|name| part.get(*name).is_some_and(is_source)) {
        let source = part.shift_remove(name).unwrap_or_default();
        part.insert(own.to_string(), source);
    } else if !part.get(address).is_some_and(|value| is_source(value.get("url").unwrap_or(value))) {
        return refuse("does not name a file");
    }
    part.insert("type".to_string(), json!(own));
    Ok(part)
}

/// Returns `text` if it is a `data:` URI. If it is the base64 of an image or a video file, returns the `data:` URI of
/// that file.
fn data_uri(text: &str) -> Option<String> {
    if text.starts_with("data:") {
        return Some(text.to_string());
    }
    media_type_of_base64(text).map(|media_type| format!("data:{media_type};base64,{text}"))
}

/// Removes the files of a column if the parts of the messages already have the same files.
///
/// # Errors
/// Parts of the messages have files, and the column has other files, for which the messages have no places.
fn remove_repeated_files(messages: &[Value], files: &mut Files) -> Result<(), Diagnostic> {
    let (kind, given) = (files.kind, files.parts.len());
    let places: usize = messages.iter().map(|message| count_places(message, kind)).sum();
    let own: Vec<&Value> = messages.iter().flat_map(parts).filter(|part| kind.has_file(part)).collect();
    if given == 0 || own.is_empty() || given == places {
        return Ok(());
    }
    if places == 0 && own.len() == given && own.iter().zip(&files.parts).all(|(own, part)| repeats(kind, own, part)) {
        files.parts.clear();
        return Ok(());
    }
    let key = kind.key();
    let what = format!(
        "names {given} {key} file(s), but the messages name {} {key} file(s) themselves and have {places} place(s) for \
         others",
        own.len()
    );
    Err(Diagnostic::new(files.column, what, "keep either the files in the messages or the column"))
}

/// Whether a part from a column has the same file as a message's part, and no key that the message's part lacks.
fn repeats(kind: Kind, own: &Value, part: &Map<String, Value>) -> bool {
    let name = |file: &Value| match file {
        Value::String(path) => json!(path.strip_prefix("./").unwrap_or(path)),
        other => other.clone(),
    };
    let part = Value::Object(part.clone());
    let is_same_file = kind.file(own).map(name) == kind.file(&part).map(name);
    let is_source = |key: &str| key == "type" || kind.sources().contains(&key);
    let is_repeated = |key: &str, value: &Value| is_source(key) || value.is_null() || own.get(key) == Some(value);
    is_same_file && part.as_object().into_iter().flatten().all(|(key, value)| is_repeated(key, value))
}

/// Makes marks of videos of the marks `<image>` of a row in the layout of LLaVA-Video: its only files are in the column
/// `video`, and `<image>` is the only mark for them.
fn rename_marks_of_videos(messages: &mut [Value], [images, videos]: &[Files; 2]) {
    let places = |kind: Kind| messages.iter().map(|message| count_places(message, kind)).sum::<usize>();
    let given = videos.parts.len();
    if given == 0 || videos.column != "video" || !images.parts.is_empty() || places(Kind::Video) > 0 {
        return;
    }
    if places(Kind::Image) != given {
        return;
    }
    for message in messages {
        let texts = match &mut message["content"] {
            Value::Array(parts) => parts.iter_mut().filter_map(|part| part.get_mut("text")).collect(),
            content => vec![content],
        };
        for text in texts {
            if let Value::String(text) = text {
                *text = text.replace(Kind::Image.mark(), Kind::Video.mark());
            }
        }
    }
}

/// If the messages have no places for files, adds one place per file before the text of the first user message. A row
/// with both images and videos must mark the places itself, because the order of its files is unknown.
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

/// Checks that the number of places in the messages equals the number of files.
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

/// The texts of a message: the content if it is a string, otherwise the texts of its parts.
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

#[cfg(test)]
mod tests;
