//! `POST /v1/preview` of `reel serve`: it reports the token counts of the chat, the frames that the model sees with
//! their times, and errors.

#[path = "support/serving.rs"]
mod serving;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use reel_input::media::image::RgbImage;
use reel_tools::showcase::clips::CLIP_SIDE;
use serde_json::{Value, json};
use serving::{
    CHAT_PATH, GREY_PIXEL_PNG_BASE64, PREVIEW_PATH, Server, data_uri, image_part, one_token_request, write_clip,
};

#[test]
fn a_preview_has_the_tokens_of_the_chat_and_the_frames_of_the_model() {
    let server = Server::start(&[]);
    let path = server.file("clip.mp4");
    let clip = write_clip(&path);
    let video = |keys: Value| {
        let mut part = json!({"type": "video_url", "video_url": {"url": data_uri(&path)}});
        part.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        part
    };
    let text = json!({"type": "text", "text": "What is this?"});
    let keys = json!({"nframes": 4, "resized_height": 224, "resized_width": 224});
    let bodies = [
        one_token_request(json!("only text")),
        one_token_request(json!([video(json!({})), text])),
        one_token_request(json!([
            video(keys),
            image_part(GREY_PIXEL_PNG_BASE64),
            video(json!({"fps": 1, "max_pixels": 3136})),
            text
        ])),
    ];
    let previews: Vec<Value> = bodies.iter().map(|body| server.ok(PREVIEW_PATH, body)).collect();
    for (body, preview) in bodies.iter().zip(&previews) {
        assert_eq!(preview["prompt_tokens"], server.ok(CHAT_PATH, body)["usage"]["prompt_tokens"]);
        assert_eq!((&preview["object"], &preview["model"]), (&json!("preview"), &json!("tiny")));
        assert!(preview["max_model_len"].as_u64() > preview["prompt_tokens"].as_u64());
        for medium in preview["media"].as_array().unwrap() {
            check_medium(medium);
        }
    }
    assert_eq!(previews[0]["media"], json!([]));
    // Media are listed in the order of the prompt; images do not come first.
    let media = previews[2]["media"].as_array().unwrap();
    let kinds: Vec<&str> = media.iter().map(|medium| medium["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["video", "image", "video"]);
    // Frames 0, 2, 5 and 7 of 8 at 4 frames per second.
    assert_eq!(media[0]["timestamps"], json!([0.0, 0.5, 1.25, 1.75]));
    assert_eq!((&media[0]["frames"], &media[0]["width"]), (&json!(4), &json!(224)));
    assert_eq!(media[1]["timestamps"], json!([]));
    for (thumbnail, index) in media[0]["thumbnails"].as_array().unwrap().iter().zip([0, 2, 5, 7]) {
        let (shown, drawn) = (mean_color(&png(thumbnail)), mean_color_of(&clip.frames, index));
        assert!(shown.iter().zip(drawn).all(|(a, b)| (a - b).abs() < 6.0), "frame {index}: {shown:?}, drawn {drawn:?}");
    }
    // The prompt consists of text tokens and vision tokens. Without the media it is shorter by the vision tokens and
    // by two marker tokens for each image or video.
    let plain = server.ok(PREVIEW_PATH, &one_token_request(json!([text])))["prompt_tokens"].as_u64().unwrap();
    let vision: u64 = media.iter().map(|medium| medium["vision_tokens"].as_u64().unwrap() + 2).sum();
    assert_eq!(previews[2]["prompt_tokens"].as_u64().unwrap(), plain + vision);
}

/// Checks that the numbers in a preview of one image or video are consistent.
#[track_caller]
fn check_medium(medium: &Value) {
    let number = |name: &str| medium[name].as_u64().unwrap();
    let grid: Vec<u64> = medium["grid_thw"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(number("vision_tokens"), grid.iter().product::<u64>() / 4);
    assert_eq!((number("height"), number("width")), (grid[1] * 14, grid[2] * 14));
    let thumbnails = medium["thumbnails"].as_array().unwrap();
    assert_eq!(thumbnails.len() as u64, number("frames").min(64));
    for thumbnail in thumbnails {
        let image = png(thumbnail);
        let view = image.view().unwrap();
        let (height, width) = view.height_and_width();
        assert!(height.max(width) <= 160 && height.min(width) > 0, "{height} × {width}");
    }
    let times = medium["timestamps"].as_array().unwrap();
    if medium["kind"] == "video" {
        assert_eq!(times.len() as u64, number("frames"));
        assert!(times.is_sorted_by(|a, b| a.as_f64() < b.as_f64()), "{times:?}");
    }
}

fn png(thumbnail: &Value) -> RgbImage {
    reel_input::media::image::from_data_uri(
        thumbnail["url"].as_str().unwrap(),
        reel_input::media::image::ExifOrientation::Apply,
    )
    .unwrap()
}

fn mean_color(image: &RgbImage) -> [f64; 3] {
    mean(image.view().unwrap().data())
}

fn mean_color_of(frames: &[u8], index: usize) -> [f64; 3] {
    let len = CLIP_SIDE * CLIP_SIDE * 3;
    mean(&frames[index * len..][..len])
}

fn mean(pixels: &[u8]) -> [f64; 3] {
    let sum = |channel: usize| pixels.iter().skip(channel).step_by(3).map(|&value| f64::from(value)).sum::<f64>();
    [0, 1, 2].map(|channel| sum(channel) * 3.0 / pixels.len() as f64)
}

#[test]
fn a_preview_of_many_frames_shows_64_of_them() {
    let server = Server::start(&[]);
    let frame = format!("data:image/png;base64,{GREY_PIXEL_PNG_BASE64}");
    let frames = json!({"type": "video", "video": vec![frame; 70], "fps": 10, "max_pixels": 784});
    let preview = server.ok(PREVIEW_PATH, &one_token_request(json!([frames])));
    let medium = &preview["media"][0];
    assert_eq!((&medium["frames"], medium["thumbnails"].as_array().unwrap().len()), (&json!(70), 64));
    assert_eq!(medium["thumbnails"][63]["frame"], 69);
    assert_eq!(medium["timestamps"][69], 6.9);
}

#[test]
fn a_wrong_preview_gets_the_error_of_the_chat() {
    let server = Server::start(&["--max-body", "1", "--max-requests", "1"]);
    let mut wrong = one_token_request(json!("x"));
    wrong["best_of"] = json!(3);
    let mut other_model = one_token_request(json!("x"));
    other_model["model"] = json!("gpt-4o");
    let bodies = [
        wrong,
        other_model,
        one_token_request(json!([image_part("!!!")])),
        one_token_request(json!([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}])),
        one_token_request(json!([{"type": "image", "image": "/etc/passwd"}])),
        json!([{"role": "user", "content": "a list"}]),
        json!({"messages": []}),
        json!({"model": 5, "messages": []}),
    ];
    let both = |body: &str| [CHAT_PATH, PREVIEW_PATH].map(|path| server.post(path, body));
    for body in bodies.map(|body| body.to_string()).iter().chain(&["{".to_string(), "x".repeat(2 << 20)]) {
        let [chat, preview] = both(body);
        assert_ne!(chat.status, 200);
        assert_eq!(preview.error(chat.status), chat.error(preview.status), "{}", &body[..body.len().min(200)]);
    }
    server.get(PREVIEW_PATH).error(405);
    // The server allows one request at a time; while it runs, a preview is also refused.
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000, "temperature": 0,
        "stream": true})
    .to_string();
    let mut stream = TcpStream::connect(server.address.trim_start_matches("http://")).unwrap();
    let head = format!("POST {CHAT_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 64]).unwrap();
    let busy = server.post(PREVIEW_PATH, &one_token_request(json!("x")).to_string());
    assert_eq!(busy.error(429)["code"], "rate_limit_exceeded");
    drop(stream);
    // A preview that has been answered no longer counts as a running request.
    let begun = Instant::now();
    while server.post(PREVIEW_PATH, &one_token_request(json!("x")).to_string()).status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the server still counts the preview as running");
    }
    server.ok(PREVIEW_PATH, &one_token_request(json!("x")));
}
