//! Tests of media columns: which rows are read, and which are refused.

use proptest::prelude::*;

use super::*;

fn user(content: Value) -> Vec<Value> {
    vec![json!({"role": "user", "content": content}), json!({"role": "assistant", "content": "yes"})]
}

fn columns(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

/// Inserts media into a row whose user message has the given content; returns that message's new content.
fn content(content: Value, others: Value) -> Result<Value, String> {
    let messages = insert_media("messages", user(content), &columns(others)).map_err(|d| d.to_string())?;
    assert_eq!(messages[1], json!({"role": "assistant", "content": "yes"}));
    Ok(messages[0]["content"].clone())
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn video(path: &str) -> Value {
    json!({"type": "video", "video": path})
}

fn image(path: &str) -> Value {
    json!({"type": "image", "image": path})
}

/// The beginning of a PNG file as base64.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4";

#[test]
fn marks_are_replaced_in_order() {
    for (given, others, want) in [
        (json!("<video>What?"), json!({"videos": ["a.mp4"]}), json!([video("a.mp4"), text("What?")])),
        (json!("<video>\nWhat?"), json!({"video": "a.mp4"}), json!([video("a.mp4"), text("\nWhat?")])),
        (json!("<image>"), json!({"image": ["a.png"], "videos": []}), json!([image("a.png")])),
        // LLaVA-Video marks a video with `<image>`.
        (json!("<image>\nWhat?"), json!({"video": "a.mp4"}), json!([video("a.mp4"), text("\nWhat?")])),
        (json!([text("Is <image> on?")]), json!({"video": "a"}), json!([text("Is "), video("a"), text(" on?")])),
        // The messages mark no places for files.
        (json!("What?"), json!({"videos": ["a.mp4"]}), json!([video("a.mp4"), text("What?")])),
        (json!([text("?")]), json!({"images": ["a", "b"]}), json!([image("a"), image("b"), text("?")])),
        (
            json!("Is <image> in <video> or <image>?"),
            json!({"images": ["a.png", "b.png"], "videos": ["c.mp4"], "video": null}),
            json!([text("Is "), image("a.png"), text(" in "), video("c.mp4"), text(" or "), image("b.png"), text("?")]),
        ),
        (
            json!("<video>?"),
            json!({"videos": [["0.png", "1.png"]]}),
            json!([{"type": "video", "video": ["0.png", "1.png"]}, text("?")]),
        ),
        // The messages mark the places of files by parts without a file, as TRL writes them, and by marks in text
        // parts.
        (
            json!([{"type": "image"}, text("<video> or"), {"type": "image", "image": null, "max_pixels": 9}]),
            json!({"images": ["a.png", {"bytes": null, "path": "b.png"}], "videos": [{"video": "c.mp4", "fps": 2}]}),
            json!([image("a.png"), {"type": "video", "video": "c.mp4", "fps": 2}, text(" or"),
                {"type": "image", "image": "b.png", "max_pixels": 9}]),
        ),
        // The messages already have the file. The other columns only repeat or describe it.
        (
            json!([video("v/a.mp4"), text("?")]),
            json!({"video_path": "a.mp4", "video_id": "a", "num_frames": 16, "image_caption": "x", "frames": 8}),
            json!([video("v/a.mp4"), text("?")]),
        ),
        // Columns that repeat the files of the messages are accepted.
        (
            json!([{"type": "image", "url": "./a.png"}, image("b.png"), text("?")]),
            json!({"images": ["a.png", {"path": "b.png"}]}),
            json!([{"type": "image", "url": "./a.png"}, image("b.png"), text("?")]),
        ),
        (
            json!("?"),
            json!({"video": [format!("data:;base64,{PNG}"), format!("data:application/octet-stream;base64,{PNG}")]}),
            json!([{"type": "video", "video": [format!("data:;base64,{PNG}"), format!("data:application/octet-stream;base64,{PNG}")]}, text("?")]),
        ),
        // A list of images in the column `video` is one video.
        (
            json!("<video>?"),
            json!({"video": ["0.png", "1.jpg"]}),
            json!([{"type": "video", "video": ["0.png", "1.jpg"]}, text("?")]),
        ),
        // Files may be OpenAI's objects, or objects that describe their file.
        (
            json!("<image>?"),
            json!({"images": [{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}]}),
            json!([{"type": "image", "image_url": {"url": "a.png", "detail": "low"}}, text("?")]),
        ),
        (
            json!("<image>?"),
            json!({"images": [{"path": "a.png", "bytes": "", "width": 3, "height": 4}]}),
            json!([image("a.png"), text("?")]),
        ),
        (
            json!("<image>?"),
            json!({"images": [{"path": "a.png", "bytes": "data:image/png;base64,iVBO"}]}),
            json!([image("data:image/png;base64,iVBO"), text("?")]),
        ),
        (json!("no media"), json!({"images": [], "solution": "a.png", "source": "web"}), json!("no media")),
    ] {
        // JSON objects compare equal regardless of the order of their keys.
        assert_eq!(content(given.clone(), others.clone()), Ok(want), "{given} {others}");
    }
}

#[test]
fn media_and_places_that_do_not_agree_are_refused() {
    for (given, others, want) in [
        (
            json!("What?"),
            json!({"videos": ["a.mp4"], "image": "a.png"}),
            "image: has 1 image file(s), but the messages have 0 place(s)",
        ),
        (
            json!([image("a.png"), text("?")]),
            json!({"images": ["b.png"]}),
            "images: names 1 image file(s), but the messages name 1 image file(s) themselves",
        ),
        (
            json!("<video>?"),
            json!({"videos": ["a", "b"]}),
            "videos: has 2 video file(s), but the messages have 1 place(s)",
        ),
        (
            json!("<video><video>?"),
            json!({"video": "a.mp4"}),
            "video: has 1 video file(s), but the messages have 2 place(s)",
        ),
        (
            json!("<image>?"),
            json!({"videos": ["a.mp4"]}),
            "messages[0].content: has the mark <image>, but the row has no",
        ),
        (
            json!("<image><image>?"),
            json!({"video": "a.mp4"}),
            "messages[0].content: has the mark <image>, but the row has no",
        ),
        (
            json!("<video>?"),
            json!({}),
            "messages[0].content: has the mark <video>, but the row has no video in a column",
        ),
        (json!([text("<image>")]), json!({"images": null}), "messages[0].content: has the mark <image>"),
        (json!("<image>"), json!({"images": ["a"], "image": "b"}), "image: is given together with `images`"),
        (json!("<image>"), json!({"images": [3]}), "images[0]: is not a file"),
        (json!("<image>"), json!({"images": [["a.png"]]}), "images[0]: is not a file"),
        (json!("<image>"), json!({"image": {"bytes": "iVBO"}}), "image: has `bytes` that are not the base64 of"),
        (json!("<video>"), json!({"video": {"fps": 2}}), "video: does not name a file"),
    ] {
        let error = content(given.clone(), others.clone()).unwrap_err();
        assert!(error.starts_with(want) && error.contains("; "), "{given} {others}: {error}");
    }
}

#[test]
fn media_columns_that_nothing_reads_are_refused() {
    for others in [
        json!({"video_path": "a.mp4"}),
        json!({"videoFile": "a"}),
        json!({"image_urls": ["x"]}),
        json!({"frames": ["0", "1"]}),
        json!({"media": [{"path": "x"}]}),
        json!({"multi_modal_data": {"image": "x"}}),
        json!({"file": "https://host/a.MP4?x=1"}),
        json!({"attachment": ["notes.txt", "my dir/b c.jpeg"]}),
        json!({"extra": "data:image/png;base64,AA=="}),
    ] {
        let name = others.as_object().unwrap().keys().next().unwrap().clone();
        let error = content(json!("What?"), others.clone()).unwrap_err();
        assert!(
            error.starts_with(&format!("{name}: looks like images or videos, but reel does not read this column; ")),
            "{others}: {error}"
        );
        let error = refuse_media_with_text_prompt("prompt", "What?", &columns(others)).unwrap_err();
        assert_eq!(error.location, name);
    }
    for others in [json!({"audios": ["a.wav"]}), json!({"audio": "speech"}), json!({"sound": "s.mp3"})] {
        let name = others.as_object().unwrap().keys().next().unwrap().clone();
        let error = content(json!("What?"), others).unwrap_err();
        assert_eq!(error, format!("{name}: is audio, which is not supported; remove the column"));
    }
    // A limit belongs to a video; `fps` may be a property of the file.
    for name in ["nframes", "max_pixels", "video_start"] {
        let error = content(json!("<video>What?"), json!({"videos": ["a.mp4"], name: 4})).unwrap_err();
        let wanted =
            format!("{name}: is a limit of frames or pixels, but reel does not read it from a column; write it ");
        assert!(error.starts_with(&wanted), "{error}");
        assert!(content(json!("What?"), json!({name: 4})).is_ok(), "{name}");
    }
    assert!(content(json!("<video>What?"), json!({"videos": ["a.mp4"], "fps": 30})).is_ok());
    let error = content(json!("<image>What?"), json!({"images": ["a.png"], "max_pixels": 4})).unwrap_err();
    assert!(error.ends_with("\"images\": [{\"image\": PATH, \"max_pixels\": 4}]"), "{error}");
    assert!(content(json!("<image>What?"), json!({"images": ["a.png"], "nframes": 4})).is_ok());
    let error = refuse_media_with_text_prompt("prompt", "<video>?", &Map::new()).unwrap_err().to_string();
    assert!(error.starts_with("prompt: is plain text, but contains the media mark <video>; "), "{error}");
    let error = refuse_media_with_text_prompt("prompt", "What?", &columns(json!({"images": ["a.png"]})))
        .unwrap_err()
        .to_string();
    let wanted = "prompt: is plain text, which cannot contain the images or videos of the column `images`; ";
    assert!(error.starts_with(wanted), "{error}");
    assert_eq!(refuse_media_beside_path(&columns(json!({"images": ["a.png"]}))).unwrap_err().location, "images");
}

#[test]
fn assistants_may_write_the_marks_without_media_columns() {
    let chat = vec![json!({"role": "user", "content": "How?"}), json!({"role": "assistant", "content": "By <video>."})];
    assert_eq!(insert_media("messages", chat.clone(), &Map::new()).unwrap(), chat);
    let filled = insert_media("messages", chat, &columns(json!({"videos": "a.mp4"}))).unwrap();
    assert_eq!(filled[1]["content"], json!([text("By "), video("a.mp4"), text(".")]));
}

proptest! {
    /// For random texts and marks, the texts and files of the resulting parts are in their original order.
    #[test]
    fn texts_and_files_keep_their_order(
        pieces in prop::collection::vec(("[a-z<> ]{0,6}", any::<bool>()), 0..6),
        end in "[a-z<> ]{1,6}",
    ) {
        let (mut marked, mut images, mut videos) = (String::new(), Vec::new(), Vec::new());
        let mut want = String::new();
        for (i, (piece, is_video)) in pieces.iter().enumerate() {
            let (kind, list) = if *is_video { (Kind::Video, &mut videos) } else { (Kind::Image, &mut images) };
            marked += &format!("{piece}{}", kind.mark());
            want += &format!("{piece}[{i}]");
            list.push(i.to_string());
        }
        let whole = marked.clone() + &end;
        let count = |kind: Kind| whole.matches(kind.mark()).count();
        // Rejects cases in which the random text contains a mark by chance.
        prop_assume!(count(Kind::Image) == images.len() && count(Kind::Video) == videos.len());
        let got = content(json!(whole), json!({"images": images, "videos": videos})).unwrap();
        let show = |part: &Value| match part["type"].as_str() {
            Some("text") => part["text"].as_str().unwrap().to_string(),
            Some(kind) => format!("[{}]", part[kind].as_str().unwrap()),
            None => part.as_str().unwrap().to_string(),
        };
        let got: String = match &got {
            Value::Array(parts) => parts.iter().map(show).collect(),
            text => text.as_str().unwrap().to_string(),
        };
        prop_assert_eq!(got, want + &end);
    }
}
