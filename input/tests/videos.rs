//! Writes videos of many formats and decodes them: frame `i` in display order must be decoded as frame `i`, with the
//! same bits whether the frame is decoded alone or with all others. Formats that this FFmpeg cannot write are skipped
//! with a message.

use std::path::Path;

use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::video::{self, DecodedVideo};

const HEIGHT: usize = 64;
const WIDTH: usize = 96;

/// Returns `n` frames; frame `i` shows the eight bits of `i` as black and white columns above a moving pattern.
fn numbered(n: usize, height: usize, width: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(n * height * width * 3);
    for i in 0..n {
        for y in 0..height {
            for x in 0..width {
                if y < height / 2 {
                    let bit = i >> (x * 8 / width) & 1;
                    data.extend([if bit == 1 { 235 } else { 20 }; 3]);
                } else {
                    let wave = ((x + 3 * i) * (y + 1) / 7 + i) % 200;
                    data.extend([wave as u8, (x * 2) as u8, 255 - wave as u8]);
                }
            }
        }
    }
    data
}

/// Reads the index that a frame made by [`numbered`] shows as black and white columns.
fn shown_index(frame: &[u8], height: usize, width: usize) -> usize {
    (0..8).filter(|bit| frame[(height / 4 * width + (2 * bit + 1) * width / 16) * 3] > 127).map(|bit| 1 << bit).sum()
}

fn decode_n(path: &Path, n: i64) -> DecodedVideo {
    let o = MediaOverrides { nframes: Some(n), ..Default::default() };
    video::decode(path, MediaProfile::Qwen, &o).unwrap_or_else(|e| panic!("{n} frames of {}: {e}", path.display()))
}

/// Decodes all frames and several selections. Checks that each frame shows its own index, and that its pixels are the
/// same in every selection.
fn check(path: &Path, n: usize, height: usize, width: usize) {
    let all = decode_n(path, n as i64);
    assert_eq!((all.total_frames, all.height, all.width), (n as u64, height, width), "{}", path.display());
    let len = height * width * 3;
    let shown: Vec<usize> = all.data.chunks(len).map(|f| shown_index(f, height, width)).collect();
    assert_eq!(shown, (0..n).collect::<Vec<_>>(), "{}", path.display());
    for few in [2, 4, 6, 10, 18] {
        let some = decode_n(path, few);
        for (&i, frame) in some.indices.iter().zip(some.data.chunks(len)) {
            assert_eq!(shown_index(frame, height, width) as u64, i, "{} of {few} frames", path.display());
            assert!(
                frame == &all.data[i as usize * len..][..len],
                "{}: frame {i} differs when fewer frames are decoded",
                path.display()
            );
        }
    }
}

struct Format {
    name: &'static str,
    codec: VideoCodec,
    extension: &'static str,
    gop: u32,
    b_frames: usize,
    options: &'static [(&'static str, &'static str)],
}

const QUIET_265: &str = "log-level=none:pools=none:frame-threads=1";

fn formats() -> Vec<Format> {
    use VideoCodec::*;
    let format =
        |name, codec, extension, gop, b_frames, options| Format { name, codec, extension, gop, b_frames, options };
    vec![
        format("b-frames", H264, "mp4", 12, 3, &[("preset", "veryfast")]),
        format("mov", H264, "mov", 250, 2, &[("preset", "veryfast")]),
        format("mkv", H264, "mkv", 7, 3, &[("preset", "medium")]),
        format("container without times", H264, "avi", 12, 3, &[("preset", "veryfast")]),
        format(
            "open groups",
            H264,
            "mp4",
            10,
            3,
            &[("x264-params", "open-gop=1:min-keyint=10:b-adapt=0:scenecut=0:b-pyramid=normal")],
        ),
        format("intra refresh", H264, "mp4", 10, 0, &[("x264-params", "intra-refresh=1:keyint=10")]),
        format("hevc", Hevc, "mp4", 12, 3, &[("preset", "ultrafast"), ("x265-params", QUIET_265)]),
        format(
            "hevc open groups",
            Hevc,
            "mkv",
            8,
            3,
            &[("x265-params", "log-level=none:open-gop=1:b-adapt=0:bframes=3:min-keyint=8:scenecut=0")],
        ),
        format(
            "hevc layers",
            Hevc,
            "mp4",
            16,
            3,
            &[("preset", "ultrafast"), ("x265-params", "log-level=none:temporal-layers=1:b-pyramid=1")],
        ),
        format("vp9", Vp9, "webm", 10, 0, &[("deadline", "realtime"), ("cpu-used", "8")]),
        format(
            "vp9 alt-ref",
            Vp9,
            "mkv",
            16,
            0,
            &[("deadline", "good"), ("cpu-used", "5"), ("auto-alt-ref", "1"), ("lag-in-frames", "12")],
        ),
        format("av1", Av1, "mkv", 12, 0, &[("preset", "12"), ("cpu-used", "8")]),
        format("av1", Av1, "mp4", 12, 0, &[("preset", "12"), ("cpu-used", "8")]),
        format("mpeg-4", Mpeg4, "avi", 9, 0, &[]),
        format("mpeg-4 b-frames", Mpeg4, "mp4", 9, 2, &[]),
        format("mpeg-4 b-frames", Mpeg4, "avi", 9, 2, &[]),
        format("gif", Gif, "gif", 12, 0, &[]),
    ]
}

#[test]
fn every_format_decodes_to_the_written_frames() {
    let folder = tempfile::tempdir().unwrap();
    let data = numbered(44, HEIGHT, WIDTH);
    let frames = FrameView::new(&data, 44, HEIGHT, WIDTH).unwrap();
    let mut done = 0;
    for format in formats() {
        let Some(encoder) = format.codec.available_encoder_name() else {
            println!("skipped: {} in {}, because this FFmpeg has no encoder for it", format.name, format.extension);
            continue;
        };
        let path = folder.path().join(format!("{} {encoder}.{}", format.name, format.extension));
        let how = VideoEncodingOptions {
            gop: Some(format.gop),
            b_frames: Some(format.b_frames),
            options: format.options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ..VideoEncodingOptions::new(format.codec, (25, 1))
        };
        encode_video(&path, frames, &how).unwrap_or_else(|e| panic!("{}: {e}", format.name));
        check(&path, 44, HEIGHT, WIDTH);
        done += 1;
    }
    // Every FFmpeg build can write at least four of the formats: GIF and the three with MPEG-4 video.
    assert!(done >= 4, "only {done} formats could be written");
}

#[test]
fn variable_frame_rate_decodes_to_the_written_frames() {
    let folder = tempfile::tempdir().unwrap();
    let data = numbered(30, HEIGHT, WIDTH);
    let times: Vec<i64> = (0..30).map(|i| i * 40 + (i * i) % 17).collect();
    for extension in ["mp4", "mkv"] {
        let path = folder.path().join(format!("uneven.{extension}"));
        let how = VideoEncodingOptions {
            times_ms: Some(times.clone()),
            gop: Some(8),
            ..VideoEncodingOptions::new(VideoCodec::best_available_codec(), (25, 1))
        };
        encode_video(&path, FrameView::new(&data, 30, HEIGHT, WIDTH).unwrap(), &how).unwrap();
        check(&path, 30, HEIGHT, WIDTH);
    }
}

/// Decodes a file made of two MPEG-TS files, as `cat a.ts b.ts` makes it. The times of the second video start within
/// the first one.
#[test]
fn joined_videos_decode_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let data = numbered(30, HEIGHT, WIDTH);
    let mut joined = Vec::new();
    for start in [0, 500] {
        let path = folder.path().join(format!("{start}.ts"));
        let how = VideoEncodingOptions {
            times_ms: Some((0..30).map(|i| start + 40 * i).collect()),
            gop: Some(12),
            b_frames: Some(2),
            ..VideoEncodingOptions::new(VideoCodec::best_available_codec(), (25, 1))
        };
        encode_video(&path, FrameView::new(&data, 30, HEIGHT, WIDTH).unwrap(), &how).unwrap();
        check(&path, 30, HEIGHT, WIDTH);
        joined.extend(std::fs::read(&path).unwrap());
    }
    let path = folder.path().join("joined.ts");
    std::fs::write(&path, joined).unwrap();
    for n in [60, 10, 2] {
        let got = decode_n(&path, n);
        assert_eq!(got.total_frames, 60);
        let shown: Vec<u64> =
            got.data.chunks(HEIGHT * WIDTH * 3).map(|f| shown_index(f, HEIGHT, WIDTH) as u64).collect();
        assert_eq!(shown, got.indices.iter().map(|i| i % 30).collect::<Vec<_>>(), "{n} frames");
    }
}

/// Decodes a video that begins with an open group of pictures, as a cut without re-encoding makes it. The frames
/// displayed before its first key frame cannot be decoded. The key frame is returned in their place, and all other
/// frames keep their indices.
#[test]
fn video_cut_at_an_open_group_keeps_its_indices() {
    if VideoCodec::H264.available_encoder_name().is_none() {
        println!("skipped, because this FFmpeg cannot encode H.264");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.ts");
    let data = numbered(44, HEIGHT, WIDTH);
    let options = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0:b-pyramid=none";
    let how = VideoEncodingOptions {
        options: vec![("x264-params".to_owned(), options.to_owned())],
        ..VideoEncodingOptions::new(VideoCodec::H264, (25, 1))
    };
    encode_video(&path, FrameView::new(&data, 44, HEIGHT, WIDTH).unwrap(), &how).unwrap();
    check(&path, 44, HEIGHT, WIDTH);

    // A key frame starts a 188-byte packet with the random access indicator (ISO 13818-1, 2.4.3.4). The first three
    // packets are tables, which the cut file needs too.
    let video = std::fs::read(&path).unwrap();
    let packets: Vec<&[u8]> = video.chunks(188).collect();
    let is_key = |packet: &[u8]| packet[3] & 0x20 != 0 && packet[4] > 0 && packet[5] & 0x40 != 0;
    let second_key = (0..packets.len()).filter(|&i| is_key(packets[i])).nth(1).unwrap();
    std::fs::write(&path, [&packets[..3], &packets[second_key..]].concat().concat()).unwrap();

    let total = video::probe(&path).unwrap().total_frames;
    let first = 44 - total;
    for n in [total as i64 / 2 * 2, 8, 2] {
        let got = decode_n(&path, n);
        let shown: Vec<u64> =
            got.data.chunks(HEIGHT * WIDTH * 3).map(|f| shown_index(f, HEIGHT, WIDTH) as u64).collect();
        // Three B-frames are displayed before the key frame, frame 12 of the uncut video, and are replaced by it.
        assert_eq!(shown, got.indices.iter().map(|i| (first + i).max(12)).collect::<Vec<_>>(), "{n} of {total} frames");
    }
}

#[test]
fn odd_sides_decode_to_the_written_frames() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.avi");
    let data = numbered(24, 53, 75);
    encode_video(
        &path,
        FrameView::new(&data, 24, 53, 75).unwrap(),
        &VideoEncodingOptions::new(VideoCodec::Mpeg4, (24000, 1001)),
    )
    .unwrap();
    check(&path, 24, 53, 75);
    let fps = video::probe(&path).unwrap().video_fps;
    assert!((fps - 24000.0 / 1001.0).abs() < 1e-9, "{fps}");
}

/// Writes a display matrix into the track header of an mp4 file (ISO 14496-12, 8.3.2: 40 bytes after the box type).
fn with_matrix(video: &[u8], [a, b, c, d]: [i32; 4]) -> Vec<u8> {
    let position = video.windows(4).position(|w| w == b"tkhd").unwrap() + 4 + 40;
    let mut video = video.to_vec();
    for (i, v) in [a, b, 0, c, d, 0, 0, 0, 0x4000].into_iter().enumerate() {
        let v = if i == 8 { 1 << 30 } else { v * 0x10000 };
        video[position + 4 * i..][..4].copy_from_slice(&v.to_be_bytes());
    }
    video
}

#[test]
fn display_matrix_rotates_and_mirrors_frames() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("straight.mp4");
    let data = numbered(6, HEIGHT, WIDTH);
    encode_video(
        &path,
        FrameView::new(&data, 6, HEIGHT, WIDTH).unwrap(),
        &VideoEncodingOptions::new(VideoCodec::best_available_codec(), (10, 1)),
    )
    .unwrap();
    let straight = decode_n(&path, 4);
    let video = std::fs::read(&path).unwrap();
    let pixel =
        |f: &DecodedVideo, y: usize, x: usize| -> [u8; 3] { f.data[(y * f.width + x) * 3..][..3].try_into().unwrap() };
    let (h, w) = (HEIGHT - 1, WIDTH - 1);
    // Each case is a display matrix and the function that computes where pixel (y, x) of a coded frame is displayed.
    // The function's last two arguments (h, w) are the position of the frame's last pixel.
    type Where = fn(usize, usize, usize, usize) -> (usize, usize);
    let cases: [([i32; 4], Where); 8] = [
        ([1, 0, 0, 1], |y, x, _, _| (y, x)),
        ([0, 1, -1, 0], |y, x, h, _| (x, h - y)),
        ([-1, 0, 0, -1], |y, x, h, w| (h - y, w - x)),
        ([0, -1, 1, 0], |y, x, _, w| (w - x, y)),
        ([-1, 0, 0, 1], |y, x, _, w| (y, w - x)),
        ([1, 0, 0, -1], |y, x, h, _| (h - y, x)),
        ([0, 1, 1, 0], |y, x, _, _| (x, y)),
        ([0, -1, -1, 0], |y, x, h, w| (w - x, h - y)),
    ];
    for (matrix, shown) in cases {
        std::fs::write(&path, with_matrix(&video, matrix)).unwrap();
        let got = decode_n(&path, 4);
        let upright = matrix[0] != 0;
        assert_eq!((got.height, got.width), if upright { (HEIGHT, WIDTH) } else { (WIDTH, HEIGHT) }, "{matrix:?}");
        for y in 0..HEIGHT {
            for x in 0..WIDTH {
                let (to_y, to_x) = shown(y, x, h, w);
                assert_eq!(pixel(&got, to_y, to_x), pixel(&straight, y, x), "{matrix:?} at {y}, {x}");
            }
        }
    }
}

#[test]
fn truncated_videos_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = numbered(44, HEIGHT, WIDTH);
    let frames = FrameView::new(&data, 44, HEIGHT, WIDTH).unwrap();
    for (extension, codec) in [
        ("mp4", VideoCodec::best_available_codec()),
        ("mkv", VideoCodec::best_available_codec()),
        ("avi", VideoCodec::Mpeg4),
        ("gif", VideoCodec::Gif),
    ] {
        let path = folder.path().join(format!("whole.{extension}"));
        encode_video(
            &path,
            frames,
            &VideoEncodingOptions { gop: Some(10), ..VideoEncodingOptions::new(codec, (25, 1)) },
        )
        .unwrap();
        let video = std::fs::read(&path).unwrap();
        let cut = folder.path().join(format!("cut.{extension}"));
        for part in 0..20 {
            std::fs::write(&cut, &video[..video.len() * part / 20]).unwrap();
            let o = MediaOverrides { nframes: Some(4), ..Default::default() };
            let error = video::decode(&cut, MediaProfile::Qwen, &o).err().map(|e| e.to_string());
            let error = error.unwrap_or_else(|| panic!("{extension} cut to {part}/20 was accepted"));
            assert!(error.contains("cut.") && error.contains("; ") && !error.contains('\n'), "{error}");
        }
    }
}

#[test]
fn invalid_encodings_are_refused_without_output() {
    let folder = tempfile::tempdir().unwrap();
    let data = numbered(2, HEIGHT, WIDTH);
    let frames = FrameView::new(&data, 2, HEIGHT, WIDTH).unwrap();
    let good = VideoEncodingOptions::new(VideoCodec::Mpeg4, (25, 1));
    let cases = [
        ("x.mp4", VideoEncodingOptions { fps: (0, 1), ..good.clone() }),
        ("x.mp4", VideoEncodingOptions { times_ms: Some(vec![1]), ..good.clone() }),
        ("x.mp4", VideoEncodingOptions { times_ms: Some(vec![5, 5]), ..good.clone() }),
        ("x.nonsense", good.clone()),
        ("no/such/folder/x.mp4", good),
    ];
    for (name, how) in cases {
        let error = encode_video(&folder.path().join(name), frames, &how).unwrap_err().to_string();
        assert!(error.contains("; ") && !error.contains('\n'), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "an incomplete file was left");
}
