use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

use super::*;
use crate::image;
use crate::profile::{MediaOverrides, MediaProfile};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/pixels/");

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}{name}")).unwrap()
}

fn picture(name: &str) -> RgbImage {
    image::decode(&golden(name), name).unwrap()
}

fn limits(case: &Value) -> ImagePixelLimits {
    let keys: MediaOverrides = serde_json::from_value(case["keys"].clone()).unwrap();
    ImagePixelLimits::new(MediaProfile::VideorftTrain, &keys)
}

fn grid(case: &Value, key: &str) -> [usize; 3] {
    serde_json::from_value(case[key].clone()).unwrap()
}

/// Stills of the reference stack: resized to the bit, JPEG within its tolerance; patches of one of them to the bit.
#[test]
fn golden_stills() {
    let index: Value = serde_json::from_slice(&golden("index.json")).unwrap();
    let bytes = golden("expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let processor = PatchProcessor::default();
    let mut with_patches = 0;
    for case in index["images"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let picture = picture(case["file"].as_str().unwrap());
        let got = resize_image(&picture, &limits(case), &processor, name).unwrap();
        let want = tensors.tensor(&format!("{name}/resized")).unwrap();
        assert_eq!([1, got.height, got.width, 3], want.shape(), "{name}");
        if case["rgb_sha256"].is_string() {
            assert!(got.data == want.data(), "{name}");
        } else {
            let worst = got.data.iter().zip(want.data()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(4), "{name}: {worst:?} levels");
        }
        let patches = still(&picture, &limits(case), &processor, name).unwrap();
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

/// Films of the reference stack, from frames to patches.
#[test]
fn golden_films() {
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
        let limits = VideoPixelLimits::new(MediaProfile::VideorftTrain, &keys);
        let patches = film(view, &limits, &PatchProcessor::default(), name).unwrap();
        assert_eq!(patches.grid_thw, grid(case, "video_grid_thw"), "{name}");
        let resized = video_resize(view, &limits).unwrap();
        assert!(resized_film(resized.view().unwrap(), &PatchProcessor::default(), name).unwrap() == patches, "{name}");
        assert!(resize_video(view, &limits, &PatchProcessor::default(), name).unwrap().data == want.data(), "{name}");
        if let Ok(want) = tensors.tensor(&format!("{name}/pixel_values_videos")) {
            assert_eq!(bits(&patches), want.data(), "{name}");
        }
    }
}

/// Lists of pictures of the reference stack: an odd one repeats its last.
#[test]
fn golden_lists() {
    let index: Value = serde_json::from_slice(&golden("index.json")).unwrap();
    let bytes = golden("expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for case in index["lists"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let files: Vec<String> = serde_json::from_value(case["files"].clone()).unwrap();
        let pictures: Vec<RgbImage> = files.iter().map(|file| picture(file)).collect();
        let got = resize_image_list(&pictures, &limits(case), &PatchProcessor::default(), name).unwrap();
        let want = tensors.tensor(&format!("{name}/resized")).unwrap();
        assert_eq!([got.frames, got.height, got.width, 3], want.shape(), "{name}");
        assert!(got.data == want.data(), "{name}");
        let patches = frame_list(&pictures, &limits(case), &PatchProcessor::default(), name).unwrap();
        assert_eq!(patches.grid_thw, grid(case, "video_grid_thw"), "{name}");
    }
}

#[test]
fn a_list_of_several_sizes_takes_the_size_of_its_first() {
    let pictures = [picture("01_png_rgb.png"), picture("02_png_rgba.png"), picture("03_png_gray.png")];
    let got = resize_image_list(&pictures, &ImagePixelLimits::default(), &PatchProcessor::default(), "list").unwrap();
    assert_eq!((got.frames, got.height, got.width), (4, 56, 84));
    let frame = got.data.len() / 4;
    assert_eq!(got.data[2 * frame..3 * frame], got.data[3 * frame..]);
    let error =
        frame_list(&[], &ImagePixelLimits::default(), &PatchProcessor::default(), "list").unwrap_err().to_string();
    assert!(error.starts_with("list: is an empty list"), "{error}");
}

/// The processor's limits are kept after the profile's, with Pillow's resize of the resized picture.
#[test]
fn the_second_resize_is_real() {
    let picture = picture("00_png_rgb.png");
    let processor = PatchProcessor { max_pixels: 56 * 84, ..PatchProcessor::default() };
    let got = resize_image(&picture, &ImagePixelLimits::default(), &processor, "00").unwrap();
    assert_eq!((got.height, got.width), (56, 56));
    assert_eq!(got.data, pillow_bicubic(picture.view().unwrap(), (56, 56)).unwrap().data);
    let patches = resized_film(picture.view().unwrap(), &processor, "00").unwrap();
    assert_eq!(patches, patchify(got.view().unwrap(), &processor).unwrap());
}

#[test]
fn errors_name_the_file() {
    let thin = RgbImage { data: vec![7; 10 * 2010 * 3], height: 10, width: 2010 };
    let error =
        still(&thin, &ImagePixelLimits::default(), &PatchProcessor::default(), "thin.png").unwrap_err().to_string();
    assert!(error.starts_with("thin.png: 10 x 2010 has a ratio"), "{error}");
    let low = ImagePixelLimits { max_pixels: 3136, ..ImagePixelLimits::default() };
    let flat = RgbImage { data: vec![7; 10 * 211 * 3], height: 10, width: 211 };
    let error = still(&flat, &low, &PatchProcessor::default(), "flat.png").unwrap_err().to_string();
    assert!(error.starts_with("flat.png: ") && error.contains("a side of 0"), "{error}");
    let view = FrameView::new(&flat.data, 1, 10, 211).unwrap();
    for processor in [
        PatchProcessor::default(),
        PatchProcessor { patch_size: 0, ..PatchProcessor::default() },
        PatchProcessor { temporal_patch_size: 0, ..PatchProcessor::default() },
        PatchProcessor { merge_size: usize::MAX, ..PatchProcessor::default() },
    ] {
        assert!(patchify(view, &processor).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each value stands where the reference's reshape and transpose puts it: patches ordered by (time, block row, block
    /// column, row in block, column in block), within a patch by (channel, frame, row, column).
    #[test]
    fn order_of_patches(
        frames in 1usize..5, blocks in (1usize..4, 1usize..4), merge in 1usize..4, side in 1usize..6, depth in 1usize..4,
    ) {
        let (height, width) = (blocks.0 * merge * side, blocks.1 * merge * side);
        let data: Vec<u8> = (0..frames * height * width * 3).map(|i| (i * 7 % 251) as u8).collect();
        // Levels come back unchanged.
        let processor = PatchProcessor {
            patch_size: side,
            temporal_patch_size: depth,
            merge_size: merge,
            rescale_factor: 1.0,
            image_mean: [0.0; 3],
            image_std: [1.0; 3],
            ..PatchProcessor::default()
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
    fn a_still_is_two_equal_frames(seed in any::<u8>()) {
        let frame: Vec<u8> = (0..56 * 28 * 3).map(|i| (i as u8).wrapping_mul(seed | 1)).collect();
        let twice = [frame.clone(), frame.clone()].concat();
        let one = patchify(FrameView::new(&frame, 1, 56, 28).unwrap(), &PatchProcessor::default()).unwrap();
        let two = patchify(FrameView::new(&twice, 2, 56, 28).unwrap(), &PatchProcessor::default()).unwrap();
        prop_assert_eq!(one, two);
    }
}
