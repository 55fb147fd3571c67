//! `reel serve` with untrusted media: images whose header is wrong, a video that takes too long, files outside of the
//! media folder, and addresses of this machine.

#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{REQUEST_TIMEOUT, Server, text};
use tempfile::TempDir;

fn image(address: &str) -> Value {
    json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}],
        "max_tokens": 2})
}

fn video(address: &str) -> Value {
    json!({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": address}}]}],
        "max_tokens": 2})
}

fn data_uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", base64(bytes))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - part.len()));
        let digit = |i: usize| char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]);
        text.extend((0..4).map(|i| if i <= part.len() { digit(i) } else { '=' }));
    }
    text
}

/// Returns a chunk of a PNG file.
fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let checked = [kind, data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &checked, &support::crc32(&checked).to_be_bytes()].concat()
}

/// Returns a PNG file whose header states `side` x `side` pixels, with compressed data `data`.
fn png(side: u32, data: &[u8]) -> Vec<u8> {
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let signature = b"\x89PNG\r\n\x1a\n".to_vec();
    [signature, png_chunk(b"IHDR", &header), png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")].concat()
}

#[test]
fn media_that_are_not_what_they_claim_are_refused_without_much_memory() {
    let server = Server::start(&["--max-encoders", "1"]);
    let peak_mib = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    };
    server.assert_still_answers();
    let before = peak_mib();
    // The headers of these images state very many pixels (PNG: 60 000 x 60 000, GIF: 65 535 x 65 535), with little or
    // no data.
    let gif =
        [&b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02"[..], &[0xff; 64]].concat();
    for address in [
        "data:image/png;base64,!!!".to_string(),
        "data:image/png;base64,".to_string(),
        "data:image/png,plain".to_string(),
        "data:".to_string(),
        data_uri("image/png", b"not an image"),
        data_uri("image/png", &png(60_000, &[0x78, 0x9c, 0xed, 0xc1, 1])),
        data_uri("image/png", &png(16_000, &zeros_of_zlib(256 << 20))),
        data_uri("image/gif", &gif),
        data_uri("image/png", &png(0, &[])),
    ] {
        let error = server.chat(&image(&address)).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("; ") && message.len() < 3000, "{message}");
    }
    assert!(peak_mib() - before < 1500, "{} MiB after {before} MiB", peak_mib());
    server.assert_still_answers();
}

/// Returns a zlib stream of stored blocks of zeros; it is cut off after 1 MiB.
fn zeros_of_zlib(bytes: usize) -> Vec<u8> {
    let block = [&[0u8, 0xff, 0xff, 0, 0][..], &[0; 0xffff]].concat();
    [&[0x78, 0x9c][..], &block.repeat((bytes >> 16).min(16))].concat()
}

/// The pixels of a grey PNG of 2 x 2 pixels, all 0: a zlib stream of one stored block of 6 bytes.
const FOUR_PIXELS: [u8; 17] = [0x78, 0x9c, 1, 6, 0, 0xf9, 0xff, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1];

#[test]
fn files_outside_the_media_root_and_addresses_are_refused() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("inner")).unwrap();
    let dog = support::golden("model/two_images_sharded/media/dog.png");
    std::fs::copy(&dog, root.join("dog.png")).unwrap();
    std::fs::copy(&dog, folder.path().join("secret.png")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("secret.png"), root.join("link.png")).unwrap();
    std::os::unix::fs::symlink(folder.path(), root.join("inner/up")).unwrap();
    let made = Command::new("mkfifo").arg(root.join("pipe.png")).status();
    let server = Server::start(&["--media-root", text(&root)]);
    for address in ["dog.png", "file://dog.png", "inner/../dog.png"] {
        server.chat(&image(address)).ok();
    }
    let secret = folder.path().join("secret.png");
    let outside = [
        text(&secret).to_string(),
        format!("file://{}", text(&secret)),
        "../secret.png".to_string(),
        "file://../secret.png".to_string(),
        "link.png".to_string(),
        "inner/up/secret.png".to_string(),
        // The error message must not reveal whether these files exist.
        "../none.png".to_string(),
        "/etc/none/none.png".to_string(),
    ];
    for address in &outside {
        let error = server.chat(&image(address)).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("lies outside of") && !message.contains("--confine-media"), "{message}");
    }
    std::fs::write(root.join("damaged.png"), "x").unwrap();
    for address in
        ["none.png", "", "root\u{0}.png", "inner", "damaged.png", "/etc/passwd", "/proc/self/environ", "/dev/zero"]
    {
        let error = server.chat(&image(address)).error(400).to_string();
        assert!(!error.contains(text(folder.path())), "the error names a folder of this machine: {error}");
    }
    if made.is_ok_and(|status| status.success()) {
        server.chat(&image("pipe.png")).error(400);
    }
    // A frame of a video that is a file outside of the media folder is refused, too.
    let frames =
        json!({"messages": [{"role": "user", "content": [{"type": "video", "video": ["dog.png", "link.png"]}]}]});
    assert!(server.chat(&frames).error(400)["message"].as_str().unwrap().contains("lies outside of"));
    let remote = server.chat(&image("http://example.org/x.png")).error(400);
    assert!(remote["message"].as_str().unwrap().contains("--allow-remote-media"), "{remote}");
    let no_files = Server::start(&[]);
    for address in &outside {
        assert!(no_files.chat(&image(address)).error(400)["message"].as_str().unwrap().contains("--media-root"));
    }
    server.assert_still_answers();
}

#[test]
fn addresses_of_this_machine_are_never_downloaded() {
    let server = Server::start(&["--allow-remote-media"]);
    let port = server.address.port();
    for host in [
        format!("127.0.0.1:{port}"),
        // A host name that resolves to this machine.
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("0.0.0.0:{port}"),
        format!("2130706433:{port}"),
        "169.254.169.254".to_string(),
        "10.0.0.1".to_string(),
    ] {
        let error = server.chat(&image(&format!("http://{host}/v1/models"))).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("not on the public internet") || message.contains("cannot be downloaded"),
            "{message}"
        );
        assert!(!host.contains("127.0.0.1") || message.contains("not on the public internet"), "{message}");
    }
    for address in ["ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "http://", "http://user:SECRET@127.0.0.1/?SECRET"] {
        let error = server.chat(&image(address)).error(400);
        assert!(!error.to_string().contains("SECRET"), "{error}");
    }
    server.assert_still_answers();
}

/// Returns an animated GIF whose frames have 1 x 1 pixel, on a canvas of `side` x `side` pixels. FFmpeg copies the
/// canvas for each frame, so decoding a few hundred KiB takes minutes.
fn animated_gif(side: u16, frames: usize) -> Vec<u8> {
    let [low, high] = side.to_le_bytes();
    let header = [&b"GIF89a"[..], &[low, high, low, high, 0x80, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff]].concat();
    let control = [0x21, 0xf9, 4, 4, 10, 0, 0, 0];
    let frame = [&control[..], b",", &[0, 0, 0, 0, 1, 0, 1, 0, 0], &[2, 2, 0x44, 1, 0]].concat();
    [header, frame.repeat(frames), b";".to_vec()].concat()
}

/// Returns all descendants of the process `parent`.
fn descendants(parent: u32) -> BTreeSet<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // In /proc/PID/stat, the program name in parentheses may contain spaces; the state and the parent follow
            // it.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = BTreeSet::from([parent]);
    while let Some((pid, _)) = parents.iter().find(|(pid, parent)| found.contains(parent) && !found.contains(pid)) {
        found.insert(*pid);
    }
    found.remove(&parent);
    found
}

/// Returns a video whose decoding takes more than 2 seconds, within the limits of pixels.
fn slow_video() -> Value {
    video(&data_uri("image/gif", &animated_gif(3000, 220)))
}

/// Waits until none of these processes runs.
fn wait_for_end(server: &Server, processes: &BTreeSet<u32>) {
    let begun = Instant::now();
    while !processes.is_disjoint(&descendants(server.child.id())) {
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "the process of the video still runs");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_video_that_takes_too_long_is_given_up_and_hinders_no_one() {
    let server = Server::start(&["--media-timeout", "2", "--max-encoders", "2"]);
    server.chat(&video(&data_uri("video/mp4", &animated_gif(64, 8)))).ok();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.chat(&slow_video()));
        let mut decoders = BTreeSet::new();
        let mut answered = 0;
        while !asked.is_finished() {
            server.assert_still_answers();
            answered += usize::from(!asked.is_finished());
            decoders.extend(descendants(server.child.id()));
        }
        let error = asked.join().unwrap().error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("timed out after 2 s;") && message.contains("--media-timeout"), "{message}");
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "{:?}", begun.elapsed());
        assert!(answered >= 3, "{answered} other requests were answered meanwhile");
        assert!(!decoders.is_empty(), "no process decoded the video");
        wait_for_end(&server, &decoders);
    });
    server.chat(&video(&data_uri("video/mp4", &animated_gif(64, 8)))).ok();
    server.assert_still_answers();
}

#[test]
fn videos_of_too_many_pixels_are_refused_before_they_are_decoded() {
    let server = Server::start(&["--max-encoders", "2"]);
    for (gif, words) in [
        (
            animated_gif(13_000, 2000),
            "is 2000 frames of 13000 x 13000 pixels, and decoding the selected ones takes more",
        ),
        (animated_gif(14_000, 2), "has frames of 14000 x 14000 pixels, above the limit of 178956970 pixels"),
    ] {
        let begun = Instant::now();
        let error = server.chat(&video(&data_uri("image/gif", &gif))).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words) && message.contains("message 0, part 0: data: URI"), "{message}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    server.assert_still_answers();
}

#[test]
fn decoding_ends_when_the_client_leaves_and_slow_media_hold_up_no_others() {
    let server = Server::start(&["--max-encoders", "2"]);
    let small_image = image(&data_uri("image/png", &png(2, &FOUR_PIXELS)));
    let small_video = video(&data_uri("image/gif", &animated_gif(64, 8)));
    let in_time = |body: &Value| {
        let begun = Instant::now();
        server.chat(body).ok();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    };
    in_time(&small_video);
    // Some of these requests decode and others wait for their turn.
    let send = || {
        let mut stream = server.connect();
        server::write_request(&mut stream, "POST", "/v1/chat/completions", "", &slow_video().to_string());
        stream
    };
    let clients: Vec<_> = (0..6).map(|_| send()).collect();
    std::thread::sleep(Duration::from_secs(1));
    let decoders = descendants(server.child.id());
    assert!(!decoders.is_empty(), "no process decodes the videos");
    in_time(&small_image);
    in_time(&small_video);
    in_time(&small_image);
    // The time limit of a video is 60 s, and six of them would be decoded one after the other.
    let begun = Instant::now();
    drop(clients);
    let processor_seconds = || {
        let of = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<u64> = stat.rsplit(')').next().unwrap().split(' ').filter_map(|n| n.parse().ok()).collect();
            // After the state: 10 fields, then the time in user mode and in system mode, in hundredths of a second.
            fields.iter().skip(10).take(2).sum::<u64>()
        };
        descendants(server.child.id()).into_iter().map(of).sum::<u64>()
    };
    let mut before = processor_seconds();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = processor_seconds();
        if now <= before {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "a video is still decoded after its client has left");
        before = now;
    }
    in_time(&small_video);
    server.assert_still_answers();
}

#[test]
fn frames_and_fields_of_vllms_clients_are_read() {
    let server = Server::start(&[]);
    let dog = base64(&std::fs::read(support::golden("model/two_images_sharded/media/dog.png")).unwrap());
    let body = |part: &Value, fields: &Value| {
        let text = json!({"type": "input_text", "text": "What?"});
        let mut body = json!({"messages": [{"role": "user", "content": [part, text]}]});
        fields.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let preview = |part: &Value, fields: Value| {
        let seen = server.send("POST", "/v1/preview", "", &body(part, &fields).to_string()).ok();
        (seen["media"][0]["grid_thw"].clone(), seen["media"][0]["timestamps"].clone(), seen["prompt_tokens"].clone())
    };
    let joined =
        json!({"type": "video_url", "video_url": {"url": format!("data:video/jpeg;base64,{dog},{dog},{dog},{dog}")}});
    let frame = format!("data:image/png;base64,{dog}");
    let list = |keys: Value| {
        let mut part = json!({"type": "video", "video": [frame, frame, frame, frame]});
        keys.as_object().unwrap().iter().for_each(|(key, value)| part[key] = value.clone());
        part
    };
    // The same frames are sent in vLLM's and in Qwen's form, and the same limits in three different places.
    let limits = json!({"fps": 4, "min_pixels": 12544, "max_pixels": 50176});
    let wanted = preview(&list(limits.clone()), json!({}));
    assert_eq!((&wanted.0[0], &wanted.1), (&json!(2), &json!([0.0, 0.25, 0.5, 0.75])));
    assert_eq!(preview(&joined, json!({"mm_processor_kwargs": limits})), wanted);
    let as_returned = json!({"fps": [4.0], "do_sample_frames": false,
        "size": {"shortest_edge": 12544, "longest_edge": 50176}});
    assert_eq!(preview(&joined, json!({"mm_processor_kwargs": as_returned})), wanted);
    let mut inside = joined.clone();
    limits.as_object().unwrap().iter().for_each(|(key, value)| inside["video_url"][key] = value.clone());
    assert_eq!(preview(&inside, json!({})), wanted);
    assert_ne!(preview(&joined, json!({})).2, wanted.2);
    // `/tokenize` and the chat endpoint take the same fields as the preview.
    let mut chat = body(&joined, &json!({"mm_processor_kwargs": limits}));
    assert_eq!(server.send("POST", "/tokenize", "", &chat.to_string()).ok()["count"], wanted.2);
    chat["max_tokens"] = json!(1);
    assert_eq!(server.chat(&chat).ok()["usage"]["prompt_tokens"], wanted.2);
    // For a video file, a request sets the number of frames, or a rate and the maximum number of frames.
    let file = json!({"type": "video_url", "video_url": {"url": data_uri("video/mp4", &animated_gif(64, 8))}});
    let frames = |fields: Value| preview(&file, fields).1.as_array().unwrap().len();
    let of_video = |settings: Value| json!({"media_io_kwargs": {"video": settings}});
    assert_eq!(frames(json!({})), 4);
    assert_eq!(frames(of_video(json!({"num_frames": 2}))), 2);
    assert_eq!(frames(of_video(json!({"num_frames": 32}))), 8);
    assert_eq!(frames(of_video(json!({"num_frames": 6, "fps": 100}))), 6);
    assert_eq!(frames(json!({"mm_processor_kwargs": {"num_frames": 6}})), 6);
    // Contradictory fields and unknown fields are refused.
    let mut misspelled = joined.clone();
    misspelled["video_url"]["fpss"] = json!(4);
    let with_rate = list(json!({"fps": 2}));
    for (part, fields, param, words) in [
        (&misspelled, json!({}), "messages", "message 0, part 0: video_url: fpss: is an unknown key"),
        (&inside, json!({"mm_processor_kwargs": {"fps": 2}}), "messages", "fps: is 4 here, but 2 for all media"),
        (&with_rate, json!({"mm_processor_kwargs": {"fps": [4]}}), "messages", "fps: is 2 here, but 4 for all media"),
        (&joined, json!({"mm_processor_kwargs": {"fps": [4, 4]}}), "mm_processor_kwargs.fps", "has 2 numbers"),
        (
            &joined,
            json!({"mm_processor_kwargs": {"crop": 1}}),
            "mm_processor_kwargs.crop",
            "is not a supported setting",
        ),
        (&joined, json!({"mm_processor_kwargs": {"max_pixels": "x"}}), "mm_processor_kwargs", "is not a number"),
        (&joined, of_video(json!({"num_frames": 2})), "messages", "is a list of 4 frames"),
    ] {
        let error = server.chat(&body(part, &fields)).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(error["param"] == param && message.contains(words) && message.lines().count() == 1, "{error}");
    }
    let empty = json!({"type": "video_url", "video_url": {"url": format!("data:video/jpeg;base64,{dog},,{dog}")}});
    let error = server.chat(&body(&empty, &json!({}))).error(400);
    assert!(error["message"].as_str().unwrap().contains("message 0, part 0"), "{error}");
}
