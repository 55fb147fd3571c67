//! Tests with the golden clips; `tests/golden/README.md` says where they come from.

use std::path::{Path, PathBuf};

use ffmpeg_next as ffmpeg;
use serde_json::Value;

use super::*;
use crate::family::Family;
use crate::media::profile::{MediaOverrides, MediaProfile};
use crate::media::video::{DecodeLimits, decode};

fn clips() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../tests/golden/clips"].iter().collect()
}

fn index() -> Value {
    serde_json::from_slice(&std::fs::read(clips().join("index.json")).unwrap()).unwrap()
}

fn overrides(args: &Value) -> MediaOverrides {
    serde_json::from_value(args.clone()).unwrap()
}

/// Whether the swscale in use is the version that computed the golden pixels (swscale 6 of FFmpeg 5 on x86-64). With
/// other versions, pixels may differ slightly.
fn has_golden_swscale() -> bool {
    // SAFETY: the call only returns a number.
    cfg!(target_arch = "x86_64") && unsafe { ffmpeg::ffi::swscale_version() } >> 16 == 6
}

#[test]
fn probe_equals_golden_index() {
    for clip in index()["clips"].as_array().unwrap() {
        let got = probe(&clips().join(clip["file"].as_str().unwrap())).unwrap();
        assert_eq!(got.total_frames, clip["total_frames"].as_u64().unwrap(), "{clip}");
        assert_eq!(
            (got.height as u64, got.width as u64),
            (clip["height"].as_u64().unwrap(), clip["width"].as_u64().unwrap())
        );
        let fps = clip["video_fps"].as_f64().unwrap();
        assert!((got.video_fps - fps).abs() <= 1e-9 * fps, "{} for {fps}", got.video_fps);
    }
}

#[test]
fn selected_indices_equal_golden_index() {
    for clip in index()["clips"].as_array().unwrap() {
        let path = clips().join(clip["file"].as_str().unwrap());
        for case in clip["choices"].as_array().unwrap() {
            let profile = MediaProfile::parse(case["profile"].as_str().unwrap()).unwrap();
            let got = decode(&path, profile, &overrides(&case["args"])).unwrap();
            let want: Vec<u64> = serde_json::from_value(case["expect"]["indices"].clone()).unwrap();
            assert_eq!(got.indices, want, "{} {profile}", path.display());
            assert_eq!(got.data.len(), want.len() * got.height * got.width * 3);
        }
    }
}

#[test]
fn pixels_equal_golden_clips_within_tolerance() {
    let file = std::fs::read(clips().join("expected.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&file).unwrap();
    for clip in index()["clips"].as_array().unwrap() {
        let name = clip["file"].as_str().unwrap();
        let pixels = &clip["pixels"];
        let profile = MediaProfile::parse(pixels["profile"].as_str().unwrap()).unwrap();
        let got = decode(&clips().join(name), profile, &overrides(&pixels["args"])).unwrap();
        let want = expected.tensor(name).unwrap();
        assert_eq!([got.indices.len(), got.height, got.width, 3], want.shape(), "{name}");
        let mut off: Vec<u8> = got.data.iter().zip(want.data()).map(|(a, b)| a.abs_diff(*b)).collect();
        off.sort_unstable();
        let (max, p99) = (off[off.len() - 1], off[off.len() * 99 / 100]);
        let mean = off.iter().map(|&d| f64::from(d)).sum::<f64>() / off.len() as f64;
        println!("{name}: pixels differ by at most {max}, {mean:.4} on average");
        let tolerance = &pixels["tolerance"];
        assert!(mean <= tolerance["mean_levels"].as_f64().unwrap(), "{name}: {mean}");
        assert!(f64::from(p99) <= tolerance["p99_levels"].as_f64().unwrap(), "{name}: {p99}");
        assert!(max == 0 || !has_golden_swscale(), "{name}: pixels differ by up to {max} levels");
    }
}

#[test]
fn broken_files_are_refused_with_one_line() {
    for file in ["bad_zero.mp4", "bad_text.mp4", "bad_cut.mp4", "cut_after_index.mp4", "nothing_here.mp4", "."] {
        let path = clips().join(file);
        for error in [
            probe(&path).unwrap_err().to_string(),
            decode(&path, MediaProfile::VideorftTrain, &MediaOverrides::default()).unwrap_err().to_string(),
        ] {
            assert!(error.contains(file) && error.contains("; ") && !error.contains('\n'), "{error}");
        }
    }
}

#[test]
fn an_image_given_as_a_video_is_named() {
    for name in ["00_png_rgb.png", "06_jpg_420.jpg", "kinds/rgb.tiff"] {
        let path = clips().join("../pixels").join(name);
        // FFmpeg may have been built with a demuxer of the format; the image is then a video of one frame.
        if let Err(error) = probe(&path) {
            let wanted = "is an image, not a video; give it as an image";
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}

#[test]
fn damaged_video_gives_all_frames_or_an_error() {
    for n in [2, 4, 8, 50] {
        let o = MediaOverrides { nframes: Some(n), ..Default::default() };
        match decode(&clips().join("flipped.mp4"), MediaProfile::Qwen, &o) {
            Ok(got) => assert_eq!(got.data.len() as i64, n * 64 * 96 * 3),
            Err(e) => assert!(e.to_string().contains("cannot be decoded"), "{e}"),
        }
    }
}

#[test]
fn frames_of_an_open_gop_do_not_depend_on_the_selection() {
    let path = clips().join("open_group_cut.mp4");
    let all = decode_n(&path, MediaProfile::Uniform16, 15);
    assert_eq!(all.indices, (0..15).collect::<Vec<_>>());
    let len = all.height * all.width * 3;
    for n in [2, 4, 6, 8] {
        let some = decode_n(&path, MediaProfile::Qwen, n);
        for (&i, frame) in some.indices.iter().zip(some.data.chunks(len)) {
            assert!(frame == &all.data[i as usize * len..][..len], "frame {i} of {n}");
        }
    }
}

/// The clip is a broadcast recording in small: MPEG-TS from the middle of the first of three groups of 8 frames. Frame
/// `i` of the whole video is grey with the luma 24 + 8 i.
#[test]
fn a_file_that_starts_inside_a_group_begins_with_its_first_key_frame() {
    let path = clips().join("starts_in_group.ts");
    let info = probe(&path).unwrap();
    assert_eq!((info.total_frames, info.left_out_frames, info.video_fps), (16, 6, 10.0));
    let all = decode_n(&path, MediaProfile::Uniform16, 16);
    assert_eq!((&all.indices, all.left_out_frames), (&(0..16).collect::<Vec<_>>(), 6));
    let len = all.height * all.width * 3;
    for (i, frame) in all.data.chunks(len).enumerate() {
        // Luma 16 to 235 is RGB 0 to 255.
        let grey = f64::from(24 + 8 * (8 + i as i32) - 16) * 255.0 / 219.0;
        let mean = frame.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64;
        assert!((mean - grey).abs() < 3.0, "frame {i}: {mean} for {grey}");
    }
    for n in [2, 4, 6, 8] {
        let some = decode_n(&path, MediaProfile::Qwen, n);
        for (&i, frame) in some.indices.iter().zip(some.data.chunks(len)) {
            assert!(frame == &all.data[i as usize * len..][..len], "frame {i} of {n}");
        }
    }
}

/// The frames that a selection leaves out are not decoded; the others have the bits of a decoder that gets all packets.
#[test]
fn frames_of_av1_do_not_depend_on_the_frames_that_are_skipped() {
    for name in ["av1_svt.mp4", "av1_aom.mkv"] {
        let path = clips().join(name);
        let mut video = demux::VideoFile::read_container(&path, u64::MAX).unwrap();
        let total = video.total_frames();
        assert_eq!(total, 60, "{name}");
        let last = video.packets.len() - 1;
        let key = plan::key_packet_index_before(&video.packets, last, video.packets[last].pts);
        let parts = video.av1_headers.as_ref().unwrap().needed_parts(key..last + 1, &[last]).unwrap();
        let dropped = parts.iter().filter(|part| **part == av1::PacketPart::Nothing).count();
        assert!(dropped > parts.len() / 4 && parts[0] != av1::PacketPart::Nothing, "{name}: {parts:?}");

        let len = video.coded_size.0 * video.coded_size.1 * 3;
        let decode = |video: &demux::VideoFile, frames: &[u64], threads: usize| {
            let mut pixels = vec![0; frames.len() * len];
            let limits = DecodeLimits { threads, ..DecodeLimits::default() };
            decode::decode_frames(video, frames, None, limits, &mut pixels).unwrap();
            pixels
        };
        let selections: Vec<Vec<u64>> = (2..=16).map(|n| (0..n).map(|i| i * (total - 1) / (n - 1)).collect()).collect();
        let some = selections.iter().map(|frames| decode(&video, frames, 2)).collect::<Vec<_>>();
        video.av1_headers = None;
        let all = decode(&video, &(0..total).collect::<Vec<_>>(), 1);
        for (frames, pixels) in selections.iter().zip(&some) {
            for (&i, frame) in frames.iter().zip(pixels.chunks(len)) {
                assert!(frame == &all[i as usize * len..][..len], "{name}: frame {i} of {frames:?}");
            }
        }
    }
}

fn decode_n(path: &Path, profile: MediaProfile, n: i64) -> DecodedVideo {
    decode(path, profile, &MediaOverrides { nframes: Some(n), ..Default::default() }).unwrap()
}

#[test]
fn packets_read_twice_give_the_frames_of_packets_in_memory() {
    for name in ["h264_bframes_audio.mp4", "vp9.webm", "mpeg4_odd.avi", "h264_vfr.mp4"] {
        let path = clips().join(name);
        let o = MediaOverrides { nframes: Some(6), ..Default::default() };
        let want = decode(&path, MediaProfile::Qwen, &o).unwrap();
        let video = demux::VideoFile::read_container(&path, 0).unwrap();
        assert!(video.data.is_none());
        let mut got = vec![0; want.data.len()];
        decode::decode_frames(&video, &want.indices, None, DecodeLimits::default(), &mut got).unwrap();
        assert!(got == want.data[..], "{name}");
    }
}

#[test]
fn resized_frames_equal_resized_video() {
    let path = clips().join("h264_rot90.mp4");
    let request = DecodeRequest {
        path: &path,
        profile: MediaProfile::VideorftTrain,
        overrides: MediaOverrides::default(),
        size: DecodedFrameSize::Resized(Family::Qwen25Vl),
        limits: DecodeLimits::default(),
    };
    let (got, data) = decode_into(&request, |n| Ok(vec![0; n])).unwrap();
    let whole = decode(&path, MediaProfile::VideorftTrain, &MediaOverrides::default()).unwrap();
    let size =
        VideoPixelLimits::new(MediaProfile::VideorftTrain.for_family(Family::Qwen25Vl), &MediaOverrides::default())
            .resized_height_and_width(16, 88, 56)
            .unwrap();
    assert_eq!((got.height, got.width), size);
    let view = crate::media::frames::FrameView::new(&whole.data, 16, 88, 56).unwrap();
    assert!(crate::media::resize::torch_bicubic(view, size).unwrap().data[..] == data[..]);
}

#[test]
fn resizing_to_a_side_of_zero_names_the_size() {
    let path = clips().join("h264_bframes_audio.mp4");
    let request = DecodeRequest {
        path: &path,
        profile: MediaProfile::Qwen,
        overrides: MediaOverrides { min_pixels: Some(784), max_pixels: Some(784), ..Default::default() },
        size: DecodedFrameSize::Resized(Family::Qwen25Vl),
        limits: DecodeLimits::default(),
    };
    let error = decode_into(&request, |n| Ok(vec![0; n])).unwrap_err().to_string();
    let name = path.display().to_string();
    assert!(error.starts_with(&name) && error.contains("which has a side of 0; raise max_pixels"), "{error}");
}

#[test]
fn frames_beyond_memory_limit_are_refused() {
    let path = clips().join("h264_709.mp4");
    let limits = DecodeLimits { threads: 1, memory_bytes: 64 * 64 * 3 * 4, ..DecodeLimits::default() };
    let request = |nframes| DecodeRequest {
        path: &path,
        profile: MediaProfile::Qwen,
        overrides: MediaOverrides { nframes: Some(nframes), ..Default::default() },
        size: DecodedFrameSize::Original,
        limits,
    };
    assert!(decode_into(&request(2), |n| Ok(vec![0; n])).is_ok());
    let error = decode_into(&request(4), |n| Ok(vec![0; n])).unwrap_err().to_string();
    assert!(error.contains("--media-memory"), "{error}");
}

#[test]
fn frames_beyond_the_limit_of_pixels_are_refused() {
    let path = clips().join("h264_709.mp4");
    let info = probe(&path).unwrap();
    let refused = |frames: u64| {
        let pixels = (info.height * info.width) as u64 * frames;
        let request = DecodeRequest {
            path: &path,
            profile: MediaProfile::Qwen,
            overrides: MediaOverrides { nframes: Some(2), ..Default::default() },
            size: DecodedFrameSize::Original,
            limits: DecodeLimits { pixels, ..DecodeLimits::default() },
        };
        decode_into(&request, |n| Ok(vec![0; n])).err().map(|e| e.to_string())
    };
    let error = refused(8).unwrap();
    assert!(
        error.contains("decoding the selected ones takes more than") && error.contains("--media-timeout"),
        "{error}"
    );
    assert_eq!(refused(8 + info.total_frames), None);
}
