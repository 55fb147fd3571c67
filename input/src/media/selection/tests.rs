use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::error::{Error, Kind, MediaFailure};

/// All 220 golden selections are reproduced; `tests/golden/README.md` says how they were made.
#[test]
fn selections_equal_golden_rows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/media/frames.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let mut refused = 0;
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let mut overrides: MediaOverrides = serde_json::from_value(row["args"].clone()).unwrap();
        let profile = match row["mode"].as_str().unwrap() {
            "uniform-floor" => {
                overrides.nframes = row["args"]["num"].as_i64();
                MediaProfile::Uniform16
            }
            "stride-fps" => MediaProfile::Stride1Fps,
            _ => match row["profile"].as_str().unwrap() {
                "qwen-vl-utils-default" => MediaProfile::Qwen,
                name => MediaProfile::parse(name).unwrap(),
            },
        };
        let fps = row["video_fps"].as_f64().unwrap_or(25.0);
        let got = select_frames(row["total_frames"].as_u64().unwrap(), fps, profile, &overrides);
        let want = &row["expect"];
        if want.get("error").is_some() {
            let err = got.expect_err(line).to_string();
            assert!(!err.contains('\n') && err.contains(';'), "{err}");
            refused += 1;
            continue;
        }
        let got = got.unwrap_or_else(|e| panic!("{e}: {line}"));
        let indices: Vec<u64> = serde_json::from_value(want["indices"].clone()).unwrap();
        assert_eq!(got.indices, indices, "{line}");
        if let Some(rate) = want["sample_fps"].as_f64() {
            assert!((got.sample_fps - rate).abs() <= 1e-12 * rate, "{} for {rate}: {line}", got.sample_fps);
        }
    }
    assert_eq!((text.lines().count(), refused), (220, 16));
}

#[test]
fn selections_of_the_processor_of_qwen3_equal_golden_rows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/qwen3vl/tables.json");
    let tables: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let rows = tables["sampling_processor"].as_array().unwrap();
    for row in rows {
        let args = &row["args"];
        let overrides = MediaOverrides {
            fps: args["fps"].as_f64(),
            nframes: args["num_frames"].as_i64(),
            ..MediaOverrides::default()
        };
        let (total, fps) = (row["total_frames"].as_u64().unwrap(), row["video_fps"].as_f64().unwrap());
        let got = select_frames(total, fps, MediaProfile::Qwen3Processor, &overrides);
        match serde_json::from_value::<Vec<u64>>(row["expect"].clone()) {
            Ok(want) if want.len() >= 2 => assert_eq!(got.unwrap().indices, want, "{row}"),
            // The processor selects a single frame, too, but then refuses it by its rule of sizes.
            _ => assert!(got.is_err(), "{row}"),
        }
    }
    assert_eq!(rows.len(), 40);
}

/// Torch 2.7.1 (AVX2, AVX-512) selects frame 86537 at index 415, because it uses fused multiply-add. With the product
/// rounded first, the result would be 86538.
#[test]
fn linspace_of_long_videos_rounds_once() {
    let keys = MediaOverrides { fps: Some(1.0), max_frames: Some(687), ..Default::default() };
    let got = select_frames(142_840, 30.0, MediaProfile::VideorftTrain, &keys).unwrap();
    assert_eq!((got.indices.len(), got.indices[415], got.indices[685]), (686, 86_537, 142_839));
}

#[test]
fn invalid_settings_are_refused_by_name() {
    let with = |change: fn(&mut MediaOverrides)| {
        let mut o = MediaOverrides::default();
        change(&mut o);
        o
    };
    let cases: [(u64, f64, MediaProfile, MediaOverrides, &str); 13] = [
        (0, 25.0, MediaProfile::Qwen, MediaOverrides::default(), "total_frames"),
        (u64::MAX, 25.0, MediaProfile::Stride1Fps, MediaOverrides::default(), "total_frames"),
        (100, f64::NAN, MediaProfile::Qwen, MediaOverrides::default(), "video_fps"),
        (100, f64::INFINITY, MediaProfile::Stride1Fps, MediaOverrides::default(), "video_fps"),
        (100, -1.0, MediaProfile::Uniform16, MediaOverrides::default(), "video_fps"),
        (100, 0.25, MediaProfile::Stride1Fps, MediaOverrides::default(), "video_fps"),
        (100, 25.0, MediaProfile::Qwen, with(|o| o.fps = Some(f64::NAN)), "fps"),
        (100, 25.0, MediaProfile::Qwen, with(|o| o.nframes = Some(i64::MIN)), "nframes"),
        (100, 25.0, MediaProfile::Qwen, with(|o| o.nframes = Some(i64::MAX)), "nframes"),
        (100, 25.0, MediaProfile::Uniform16, with(|o| o.nframes = Some(0)), "nframes"),
        (100, 25.0, MediaProfile::Stride1Fps, with(|o| o.nframes = Some(4)), "nframes"),
        (100, 25.0, MediaProfile::Uniform16, with(|o| o.fps = Some(1.0)), "fps"),
        (100, 25.0, MediaProfile::Qwen, with(|o| o.video_start = Some(f64::NAN)), "video_start"),
    ];
    for (total, fps, profile, o, field) in cases {
        match select_frames(total, fps, profile, &o) {
            Err(Error { kind: Kind::Media(MediaFailure::Setting), diagnostic }) => {
                assert_eq!(diagnostic.location, field)
            }
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn count_outside_the_limits_is_reported_as_given() {
    let with = |nframes| MediaOverrides { nframes: Some(nframes), ..Default::default() };
    let cases = [
        (MediaProfile::Qwen, 40, with(-1), "is -1, but must be between 2 and 40"),
        (MediaProfile::Qwen, 40, with(1), "is 1, but must be between 2 and 40"),
        (MediaProfile::Qwen, 40, with(42), "is 42, but must be between 2 and 40"),
        (MediaProfile::Qwen, 3, with(3), "is 3, which is rounded to 4, but must be between 2 and 3"),
        (MediaProfile::Uniform16, 40, with(-1), "is -1, but must be between 1 and"),
    ];
    for (profile, total, overrides, what) in cases {
        let error = select_frames(total, 25.0, profile, &overrides).unwrap_err().to_string();
        assert!(error.starts_with(&format!("nframes: {what}")), "{error}");
    }
    let short = select_frames(1, 25.0, MediaProfile::Qwen, &MediaOverrides::default()).unwrap_err().to_string();
    assert!(short.starts_with("total_frames: no frames can be selected from a video of 1 frame, because 2"), "{short}");
}

#[test]
fn errors_about_a_file_name_it_and_errors_of_settings_do_not() {
    let select = |total, fps, profile, overrides: &MediaOverrides| {
        select_frames_of_file(Path::new("d/v.mp4"), total, fps, profile, overrides).unwrap_err()
    };
    let none = MediaOverrides::default();
    let of_file = [
        select(1, 25.0, MediaProfile::Qwen, &none),
        select(0, 25.0, MediaProfile::Qwen, &none),
        select(100, 0.25, MediaProfile::Stride1Fps, &none),
    ];
    for e in of_file {
        assert!(e.kind == Kind::Media(MediaFailure::File) && e.to_string().starts_with("d/v.mp4: "), "{e}");
    }
    let many = MediaOverrides { nframes: Some(64), ..Default::default() };
    assert_eq!(select(10, 25.0, MediaProfile::Qwen, &many).kind, Kind::Media(MediaFailure::Setting));
}

#[test]
fn selection_stays_within_time_range() {
    let o = MediaOverrides { nframes: Some(4), video_start: Some(1.01), video_end: Some(2.5), ..Default::default() };
    // The first index is ceil(1.01 s * 10 frames/s) = 11, the last is floor(2.5 s * 10 frames/s) = 25.
    assert_eq!(select_frames(100, 10.0, MediaProfile::Qwen, &o).unwrap().indices, [11, 16, 20, 25]);
    let past = MediaOverrides { video_start: Some(9.0), video_end: Some(1e9), nframes: Some(2), ..Default::default() };
    assert_eq!(select_frames(100, 10.0, MediaProfile::Qwen, &past).unwrap().indices, [90, 99]);
    for (start, end) in [(3.0, 3.0), (5.0, 2.0), (1e9, 2e9), (0.01, 0.05)] {
        let o = MediaOverrides { video_start: Some(start), video_end: Some(end), ..Default::default() };
        assert!(select_frames(100, 10.0, MediaProfile::Qwen, &o).is_err(), "{start}..{end}");
    }
}

proptest! {
    #[test]
    fn indices_are_sorted_and_within_the_video(
        total in 1u64..2_000_000, fps in 0.1f64..300.0, which in 0usize..6,
        n in proptest::option::of(-5i64..900), rate in proptest::option::of(0.01f64..60.0),
        min in proptest::option::of(0i64..99), max in proptest::option::of(0i64..999),
        start in proptest::option::of(-1.0f64..1e4), end in proptest::option::of(-1.0f64..1e4),
    ) {
        let o = MediaOverrides {
            nframes: n, fps: rate, min_frames: min, max_frames: max, video_start: start, video_end: end,
            ..Default::default()
        };
        if let Ok(c) = select_frames(total, fps, MediaProfile::ALL[which], &o) {
            prop_assert!(!c.indices.is_empty());
            prop_assert!(c.indices.iter().all(|&i| i < total));
            prop_assert!(c.indices.is_sorted());
            prop_assert!(c.sample_fps.is_finite() && c.sample_fps > 0.0);
            if which < 4 {
                prop_assert!(c.indices.len() % 2 == 0);
                prop_assert!(!(n.is_some() && rate.is_some()));
                if start.is_none() && end.is_none() {
                    prop_assert_eq!((c.indices[0], c.indices[c.indices.len() - 1]), (0, total - 1));
                }
            }
        }
    }
}
