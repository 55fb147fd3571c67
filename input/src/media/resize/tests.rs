use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

use super::*;
use crate::family::Family;
use crate::media::profile::{MediaOverrides, MediaProfile};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/{}"), name)).unwrap()
}

#[test]
fn sizes_equal_golden_table() {
    let table: Value = serde_json::from_slice(&golden("media/resize.json")).unwrap();
    let rows = table["rows"].as_array().unwrap();
    let (mut refused, mut degenerate) = (0, 0);
    for row in rows {
        let number = |key: &str| row[key].as_u64().unwrap();
        let side = |key: &str| number(key) as usize;
        let got = match row["fn"].as_str().unwrap() {
            "utils" => smart_resize(
                side("height"),
                side("width"),
                side("factor"),
                number("min_pixels"),
                number("max_pixels") as f64,
            ),
            "processor" => processor_smart_resize(
                side("height"),
                side("width"),
                side("factor"),
                number("min_pixels"),
                number("max_pixels"),
            ),
            _ => {
                let profile = match row["profile"].as_str().unwrap() {
                    "qwen-vl-utils-default" => MediaProfile::Qwen,
                    name => MediaProfile::parse(name).unwrap(),
                };
                let keys: MediaOverrides = serde_json::from_value(row["keys"].clone()).unwrap();
                VideoPixelLimits::new(profile.for_family(Family::Qwen25Vl), &keys).resized_height_and_width(
                    side("nframes"),
                    side("height"),
                    side("width"),
                )
            }
        };
        if row["expect"].is_object() {
            let error = got.expect_err(&row.to_string()).to_string();
            assert!(!error.contains('\n') && error.contains(';'), "{error}");
            refused += 1;
            continue;
        }
        let want: (usize, usize) = serde_json::from_value(row["expect"].clone()).unwrap();
        assert_eq!(got.unwrap(), want, "{row}");
        degenerate += usize::from(want.0 == 0 || want.1 == 0);
    }
    assert_eq!((rows.len(), refused, degenerate), (260, 26, 17));
}

#[test]
fn sizes_of_qwen3_equal_golden_tables() {
    let tables: Value = serde_json::from_slice(&golden("qwen3vl/tables.json")).unwrap();
    let mut checked = 0;
    for kind in ["image_utils", "image_processor", "video_utils", "video_processor"] {
        for row in tables[kind].as_array().unwrap() {
            // transformers will once make the limit per frame of qwen-vl-utils the default of its processor.
            if row["cap_pixels_per_frame"] == true {
                continue;
            }
            let number = |key: &str| row[key].as_u64().unwrap();
            let side = |key: &str| number(key) as usize;
            let size = (side("height"), side("width"));
            let got = match kind {
                "image_utils" => {
                    smart_resize(size.0, size.1, side("factor"), number("min_pixels"), number("max_pixels") as f64)
                }
                "image_processor" => qwen3_processor_image_size(
                    size.0,
                    size.1,
                    side("factor"),
                    number("min_pixels"),
                    number("max_pixels"),
                ),
                "video_utils" => {
                    let keys: MediaOverrides = serde_json::from_value(row["keys"].clone()).unwrap();
                    let limits = VideoPixelLimits::new(MediaProfile::Qwen.for_family(Family::Qwen3Vl), &keys);
                    limits.resized_height_and_width(side("frames"), size.0, size.1)
                }
                _ => {
                    let limits = (number("shortest_edge"), number("longest_edge"));
                    qwen3_processor_frame_size(side("frames"), size, 32, limits.0, limits.1)
                }
            };
            match serde_json::from_value::<(usize, usize)>(row["expect"].clone()) {
                Ok(want) => assert_eq!(got.unwrap(), want, "{kind}: {row}"),
                Err(_) => assert!(!got.expect_err(&row.to_string()).to_string().contains('\n')),
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 39 + 39 + 42 + 20);
}

#[test]
fn invalid_sizes_are_refused() {
    for (height, width, factor, max_pixels) in [
        (0, 10, 28, 200704.0),
        (10, 0, 28, 200704.0),
        (usize::MAX, usize::MAX, 28, 200704.0),
        (1, 201, 28, 200704.0),
        (100, 100, 0, 200704.0),
        (100, 100, usize::MAX, 200704.0),
        (100, 100, 28, 0.0),
        (100, 100, 28, f64::NAN),
    ] {
        let error = smart_resize(height, width, factor, 3136, max_pixels).unwrap_err().to_string();
        assert!(!error.contains('\n') && error.contains(';'), "{error}");
    }
    let keys = MediaOverrides { resized_height: Some(u64::MAX), resized_width: Some(5), ..MediaOverrides::default() };
    assert!(
        ImagePixelLimits::new(MediaProfile::Qwen.for_family(Family::Qwen25Vl), &keys)
            .resized_height_and_width(100, 100)
            .is_err()
    );
    assert!(
        VideoPixelLimits::new(MediaProfile::Qwen.for_family(Family::Qwen25Vl), &MediaOverrides::default())
            .resized_height_and_width(0, 100, 100)
            .is_err()
    );
}

#[test]
fn resized_height_without_width_is_ignored() {
    let keys = MediaOverrides { resized_height: Some(280), ..MediaOverrides::default() };
    let plain = ImagePixelLimits::new(MediaProfile::Qwen.for_family(Family::Qwen25Vl), &MediaOverrides::default());
    assert_eq!(
        ImagePixelLimits::new(MediaProfile::Qwen.for_family(Family::Qwen25Vl), &keys)
            .resized_height_and_width(100, 200)
            .unwrap(),
        plain.resized_height_and_width(100, 200).unwrap()
    );
}

/// The noise image from which the golden resampling results were computed.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Covers shrinking, enlarging, resizing only one side, columns before rows and rows before columns, and a single
/// pixel.
#[test]
fn resampling_equals_pillow_13_and_torch_2_7_bit_for_bit() {
    let bytes = golden("pixels/resample.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for (key, want) in tensors.tensors() {
        let (shape, how) = key.split_once('/').unwrap();
        let (from, _) = shape.split_once('-').unwrap();
        let (height, width) = from.split_once('x').unwrap();
        let (height, width): (usize, usize) = (height.parse().unwrap(), width.parse().unwrap());
        let size = (want.shape()[0], want.shape()[1]);
        let data = noise(height * width * 3);
        let view = FrameView::new(&data, 1, height, width).unwrap();
        let got = if how == "torch" { torch_bicubic(view, size) } else { pillow_bicubic(view, size) }.unwrap();
        let wrong = got.data.iter().zip(want.data()).position(|(a, b)| a != b);
        assert_eq!((got.data.len(), wrong), (want.data().len(), None), "{key}");
        seen += 1;
    }
    assert_eq!(seen, 20);
}

#[test]
fn resized_video_frames_equal_golden_bits() {
    let bytes = golden("pixels/expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["v01", "v02"] {
        let frames = tensors.tensor(&format!("{name}/frames")).unwrap();
        let want = tensors.tensor(&format!("{name}/resized")).unwrap();
        let view = FrameView::new(frames.data(), frames.shape()[0], frames.shape()[1], frames.shape()[2]).unwrap();
        let got = torch_bicubic(view, (want.shape()[1], want.shape()[2])).unwrap();
        assert!(got.data[..] == *want.data(), "{name}");
    }
}

#[test]
fn invalid_targets_are_refused() {
    let data = noise(10 * 10 * 3);
    let view = FrameView::new(&data, 1, 10, 10).unwrap();
    for size in [(0, 28), (28, 0), (usize::MAX, 2), (1 << 20, 1 << 20)] {
        for error in [pillow_bicubic(view, size).unwrap_err(), torch_bicubic(view, size).unwrap_err()] {
            assert!(error.to_string().contains("10 x 10"), "{error}");
        }
    }
    let long = vec![0; 3 * ((1 << 20) + 1)];
    let long = FrameView::new(&long, 1, 1, (1 << 20) + 1).unwrap();
    assert!(pillow_bicubic(long, (28, 28)).unwrap_err().to_string().contains("2^20"));
    assert!(FrameView::new(&data, 1, 10, 11).is_err());
    assert!(FrameView::new(&data, usize::MAX, 10, 10).is_err());
    assert!(FrameView::new(&[], 0, 10, 10).is_err());
}

/// The filter's defining formula in f64, as one double sum over rows and columns: bicubic with a = -0.5, stretched by
/// `shrink`, weights normalised to sum 1.
fn formula(data: &[u8], height: usize, width: usize, y: f64, x: f64, channel: usize, shrink: (f64, f64)) -> f64 {
    let kernel = |t: f64| match t.abs() {
        t if t < 1.0 => 1.5 * t * t * t - 2.5 * t * t + 1.0,
        t if t < 2.0 => -0.5 * t * t * t + 2.5 * t * t - 4.0 * t + 2.0,
        _ => 0.0,
    };
    let (mut sum, mut total) = (0.0, 0.0);
    for i in 0..height {
        for j in 0..width {
            let weight = kernel((i as f64 + 0.5 - y) / shrink.0) * kernel((j as f64 + 0.5 - x) / shrink.1);
            sum += weight * f64::from(data[(i * width + j) * 3 + channel]);
            total += weight;
        }
    }
    sum / total
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn smart_resize_gives_multiples_of_28_within_limits(
        height in 1usize..5000, width in 1usize..5000, min in 0u64..400_000, more in 0u64..12_000_000,
    ) {
        let max = min.max(784) + more;
        if let Ok((h, w)) = smart_resize(height, width, 28, min, max as f64) {
            prop_assert!(h % 28 == 0 && w % 28 == 0);
            prop_assert!((h * w) as u64 <= max || (h * w) as u64 >= min);
            // A result can have a side of 0 or an area outside the limits only if one side of the image is at least
            // four times as long as the other.
            if height.max(width) < 4 * height.min(width) && max >= 16 * 784 && min * 4 <= max {
                prop_assert!((h * w) as u64 <= max && (h * w) as u64 >= min && h > 0 && w > 0, "{h} {w}");
            }
            if h > 0 && w > 0 && (h * w) as u64 <= max && (h * w) as u64 >= min {
                prop_assert_eq!(smart_resize(h, w, 28, min, max as f64).unwrap(), (h, w), "smart_resize is not idempotent");
            }
        }
    }

    #[test]
    fn resizing_to_own_size_is_identity(height in 1usize..40, width in 1usize..40, frames in 1usize..3) {
        let data = noise(frames * height * width * 3);
        let view = FrameView::new(&data, frames, height, width).unwrap();
        prop_assert_eq!(&pillow_bicubic(view, (height, width)).unwrap().data[..], &data[..]);
        prop_assert_eq!(&torch_bicubic(view, (height, width)).unwrap().data[..], &data[..]);
    }

    #[test]
    fn uniform_image_stays_uniform(
        height in 1usize..60, width in 1usize..60, to in (1usize..60, 1usize..60), level in any::<u8>(),
    ) {
        let data = vec![level; height * width * 3];
        let view = FrameView::new(&data, 1, height, width).unwrap();
        prop_assert!(pillow_bicubic(view, to).unwrap().data.iter().all(|&v| v == level));
        prop_assert!(torch_bicubic(view, to).unwrap().data.iter().all(|&v| v == level));
    }

    #[test]
    fn frames_and_channels_are_independent(
        height in 1usize..50, width in 1usize..50, to in (1usize..50, 1usize..50), channel in 0usize..3,
    ) {
        let data = noise(3 * height * width * 3);
        let view = FrameView::new(&data, 3, height, width).unwrap();
        for resize in [pillow_bicubic, torch_bicubic] {
            let all = resize(view, to).unwrap();
            let frame = &data[height * width * 3..][..height * width * 3];
            let mut alone = frame.to_vec();
            for (i, sample) in alone.iter_mut().enumerate() {
                if i % 3 != channel {
                    *sample = 255 - *sample;
                }
            }
            let alone = resize(FrameView::new(&alone, 1, height, width).unwrap(), to).unwrap();
            let with_others = all.view().unwrap().iter().nth(1).unwrap().to_vec();
            for (a, b) in alone.data.iter().zip(&with_others).skip(channel).step_by(3) {
                prop_assert_eq!(a, b);
            }
        }
    }

    #[test]
    fn torch_bicubic_equals_formula_within_rounding(
        height in 1usize..24, width in 1usize..24, to in (1usize..24, 1usize..24), salt in any::<u8>(),
    ) {
        let data: Vec<u8> = noise(height * width * 3).iter().map(|v| v.wrapping_mul(salt | 1)).collect();
        let view = FrameView::new(&data, 1, height, width).unwrap();
        let got = torch_bicubic(view, to).unwrap();
        let scale = (height as f64 / to.0 as f64, width as f64 / to.1 as f64);
        let shrink = (scale.0.max(1.0), scale.1.max(1.0));
        for (i, &value) in got.data.iter().enumerate() {
            let (y, x) = ((i / 3 / to.1) as f64 + 0.5, (i / 3 % to.1) as f64 + 0.5);
            let want = formula(&data, height, width, y * scale.0, x * scale.1, i % 3, shrink).clamp(0.0, 255.0);
            prop_assert!((f64::from(value) - want).abs() <= 0.501, "{value} for {want} at {i}");
        }
    }
}
