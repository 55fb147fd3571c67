use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

use super::*;
use crate::media::image::{ExifOrientation, decode};
use crate::media::profile::{MediaOverrides, MediaProfile};
use crate::media::resize::{VideoPixelLimits, torch_bicubic};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/pixels/");

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}{name}")).unwrap()
}

fn image(name: &str) -> RgbImage {
    decode(&golden(name), name, ExifOrientation::Ignore).unwrap()
}

fn limits(case: &Value) -> ImagePixelLimits {
    let keys: MediaOverrides = serde_json::from_value(case["keys"].clone()).unwrap();
    ImagePixelLimits::new(MediaProfile::VideorftTrain.for_family(Family::Qwen25Vl), &keys)
}

fn grid(case: &Value, key: &str) -> [usize; 3] {
    serde_json::from_value(case[key].clone()).unwrap()
}

#[test]
fn images_equal_golden_bits() {
    let index: Value = serde_json::from_slice(&golden("index.json")).unwrap();
    let bytes = golden("expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let processor = ImageProcessorSettings::default();
    let mut with_patches = 0;
    for case in index["images"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let image = image(case["file"].as_str().unwrap());
        let got = resize_image(&image, &limits(case), &processor, name).unwrap();
        let want = tensors.tensor(&format!("{name}/resized")).unwrap();
        assert_eq!([1, got.height, got.width, 3], want.shape(), "{name}");
        assert!(got.data[..] == *want.data(), "{name}");
        let patches = patchify(got.view().unwrap(), &processor).unwrap();
        assert_eq!(patches.grid_thw, grid(case, "image_grid_thw"), "{name}");
        if let Ok(want) = tensors.tensor(&format!("{name}/pixel_values")) {
            assert_eq!(bits(&patches), want.data(), "{name}");
            with_patches += 1;
        }
    }
    assert_eq!(with_patches, 1);
}

fn bits(patches: &Patches) -> Vec<u8> {
    patches.pixel_values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn video_frames_and_patches_equal_golden_bits() {
    let index: Value = serde_json::from_slice(&golden("index.json")).unwrap();
    let bytes = golden("expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for case in index["videos"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let frames = tensors.tensor(&format!("{name}/frames")).unwrap();
        let want = tensors.tensor(&format!("{name}/resized")).unwrap();
        let view = FrameView::new(frames.data(), frames.shape()[0], frames.shape()[1], frames.shape()[2]).unwrap();
        let (height, width) = (want.shape()[1] as u64, want.shape()[2] as u64);
        let keys =
            MediaOverrides { resized_height: Some(height), resized_width: Some(width), ..MediaOverrides::default() };
        let limits = VideoPixelLimits::new(MediaProfile::VideorftTrain.for_family(Family::Qwen25Vl), &keys);
        let size = limits
            .resized_height_and_width(view.frame_count(), view.height_and_width().0, view.height_and_width().1)
            .unwrap();
        let resized = processor_resize(torch_bicubic(view, size).unwrap(), &ImageProcessorSettings::default()).unwrap();
        assert!(resized.data[..] == *want.data(), "{name}");
        let patches = patchify(resized.view().unwrap(), &ImageProcessorSettings::default()).unwrap();
        assert_eq!(patches.grid_thw, grid(case, "video_grid_thw"), "{name}");
        if let Ok(want) = tensors.tensor(&format!("{name}/pixel_values_videos")) {
            assert_eq!(bits(&patches), want.data(), "{name}");
        }
    }
}

fn list_of_qwen2_5(images: &[RgbImage], limits: &ImagePixelLimits, name: &str) -> Result<FrameBuf> {
    let frame_limits =
        VideoPixelLimits::new(MediaProfile::Qwen.for_family(Family::Qwen25Vl), &MediaOverrides::default());
    resize_image_list(images, Some(limits), &frame_limits, &ImageProcessorSettings::default(), name)
}

#[test]
fn image_lists_equal_golden_bits() {
    let index: Value = serde_json::from_slice(&golden("index.json")).unwrap();
    let bytes = golden("expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for case in index["lists"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let files: Vec<String> = serde_json::from_value(case["files"].clone()).unwrap();
        let images: Vec<RgbImage> = files.iter().map(|file| image(file)).collect();
        let got = list_of_qwen2_5(&images, &limits(case), name).unwrap();
        let want = tensors.tensor(&format!("{name}/resized")).unwrap();
        assert_eq!([got.frames, got.height, got.width, 3], want.shape(), "{name}");
        assert!(got.data[..] == *want.data(), "{name}");
        let grid_thw = patch_grid_thw(got.view().unwrap(), &ImageProcessorSettings::default()).unwrap();
        assert_eq!(grid_thw, grid(case, "video_grid_thw"), "{name}");
    }
}

#[test]
fn image_list_takes_the_size_of_its_first_image() {
    let images = [image("01_png_rgb.png"), image("02_png_rgba.png"), image("03_png_gray.png")];
    let got = list_of_qwen2_5(&images, &ImagePixelLimits::default(), "list").unwrap();
    assert_eq!((got.frames, got.height, got.width), (4, 56, 84));
    let frame = got.data.len() / 4;
    assert_eq!(got.data[2 * frame..3 * frame], got.data[3 * frame..]);
    let error = list_of_qwen2_5(&[], &ImagePixelLimits::default(), "list").unwrap_err().to_string();
    assert!(error.starts_with("list: is an empty list"), "{error}");
}

#[test]
fn processor_limits_apply_after_profile_limits() {
    let image = image("00_png_rgb.png");
    let processor = ImageProcessorSettings { max_pixels: 56 * 84, ..ImageProcessorSettings::default() };
    let got = resize_image(&image, &ImagePixelLimits::default(), &processor, "00").unwrap();
    assert_eq!((got.height, got.width), (56, 56));
    assert_eq!(got.data, pillow_bicubic(image.view().unwrap(), (56, 56)).unwrap().data);
}

#[test]
fn size_errors_name_the_file() {
    let thin = RgbImage { data: vec![7; 10 * 2010 * 3], height: 10, width: 2010 };
    let error = resize_image(&thin, &ImagePixelLimits::default(), &ImageProcessorSettings::default(), "thin.png")
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("thin.png: 10 x 2010 has an aspect ratio"), "{error}");
    let low = ImagePixelLimits { max_pixels: 3136, ..ImagePixelLimits::default() };
    let flat = RgbImage { data: vec![7; 10 * 211 * 3], height: 10, width: 211 };
    let error = resize_image(&flat, &low, &ImageProcessorSettings::default(), "flat.png").unwrap_err().to_string();
    assert!(error.starts_with("flat.png: ") && error.contains("a side of 0"), "{error}");
    let view = FrameView::new(&flat.data, 1, 10, 211).unwrap();
    for processor in [
        ImageProcessorSettings::default(),
        ImageProcessorSettings { patch_size: 0, ..ImageProcessorSettings::default() },
        ImageProcessorSettings { temporal_patch_size: 0, ..ImageProcessorSettings::default() },
        ImageProcessorSettings { merge_size: usize::MAX, ..ImageProcessorSettings::default() },
    ] {
        assert!(patchify(view, &processor).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pixels are ordered as by transformers' reshape and transpose: patches by (time, block row, block column, row
    /// in block, column in block), values of a patch by (channel, frame, row, column).
    #[test]
    fn patches_have_the_order_of_transformers(
        frames in 1usize..5, blocks in (1usize..4, 1usize..4), merge in 1usize..4, side in 1usize..6, depth in 1usize..4,
    ) {
        let (height, width) = (blocks.0 * merge * side, blocks.1 * merge * side);
        let data: Vec<u8> = (0..frames * height * width * 3).map(|i| (i * 7 % 251) as u8).collect();
        // With these settings, normalisation leaves pixel values unchanged.
        let processor = ImageProcessorSettings {
            patch_size: side,
            temporal_patch_size: depth,
            merge_size: merge,
            rescale_factor: 1.0,
            image_mean: [0.0; 3],
            image_std: [1.0; 3],
            ..ImageProcessorSettings::default()
        };
        let got = patchify(FrameView::new(&data, frames, height, width).unwrap(), &processor).unwrap();
        prop_assert_eq!(got.grid_thw, [frames.div_ceil(depth), blocks.0 * merge, blocks.1 * merge]);
        let patch = 3 * depth * side * side;
        let mut at = 0;
        for time in 0..got.grid_thw[0] {
            for (block_y, block_x) in (0..blocks.0).flat_map(|y| (0..blocks.1).map(move |x| (y, x))) {
                for (in_y, in_x) in (0..merge).flat_map(|y| (0..merge).map(move |x| (y, x))) {
                    for i in 0..patch {
                        let (channel, frame) = (i / (depth * side * side), i / (side * side) % depth);
                        let frame = (time * depth + frame).min(frames - 1);
                        let y = (block_y * merge + in_y) * side + i / side % side;
                        let x = (block_x * merge + in_x) * side + i % side;
                        let want = data[((frame * height + y) * width + x) * 3 + channel];
                        prop_assert_eq!(got.pixel_values[at], f32::from(want));
                        at += 1;
                    }
                }
            }
        }
        prop_assert_eq!(at, got.pixel_values.len());
    }

    #[test]
    fn one_frame_gives_the_patches_of_two_equal_frames(seed in any::<u8>()) {
        let frame: Vec<u8> = (0..56 * 28 * 3).map(|i| (i as u8).wrapping_mul(seed | 1)).collect();
        let twice = [frame.clone(), frame.clone()].concat();
        let one = patchify(FrameView::new(&frame, 1, 56, 28).unwrap(), &ImageProcessorSettings::default()).unwrap();
        let two = patchify(FrameView::new(&twice, 2, 56, 28).unwrap(), &ImageProcessorSettings::default()).unwrap();
        prop_assert_eq!(one, two);
    }
}
