use reel_device::DType::{BF16, F32};

use super::{cut_patches, formula, test_cases_frames_height_width_patch_temporal_merge};
use crate::checks::rounding::f32;
use crate::checks::{TestArray, addr, checks, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use crate::patch_embedding::check::{CLIP_MEAN, CLIP_STD, pixels, test_pixel_values};

checks!(equals_the_formula, a_missing_frame_is_the_last);

fn equals_the_formula() {
    for case in test_cases_frames_height_width_patch_temporal_merge() {
        let frames = test_pixel_values(case[0] * case[1] * case[2] * 3);
        let of = |round: fn(f64) -> f64| -> Vec<f64> {
            let value = |(level, c): (u8, usize)| {
                round(round(level as f64 * (1.0 / 255.0)) - CLIP_MEAN[c] as f64) / CLIP_STD[c] as f64
            };
            formula::patch_levels_and_channels(&frames, case).into_iter().map(value).collect()
        };
        let (with, want) = (of(f32), of(|x| x));
        for dtype in [F32, BF16] {
            let patches = TestArray::output(dtype, want.len());
            run(&cut_patches(dtype, &pixels(case).patch_params(addr(&frames), patches.addr())), 2);
            assert_rounded(
                &format!("patches {case:?}"),
                dtype,
                &patches.values(),
                &with,
                &want,
                DEFAULT_ROUNDING_FACTOR,
            );
        }
    }
}

fn a_missing_frame_is_the_last() {
    let (odd, even) = ([1, 28, 28, 14, 2, 2], [2, 28, 28, 14, 2, 2]);
    let frame = test_pixel_values(28 * 28 * 3);
    let (one, two) = (TestArray::output(F32, 4 * 1176), TestArray::output(F32, 4 * 1176));
    run(&cut_patches(F32, &pixels(odd).patch_params(addr(&frame), one.addr())), 1);
    let twice = frame.repeat(2);
    run(&cut_patches(F32, &pixels(even).patch_params(addr(&twice), two.addr())), 1);
    assert_eq!(one.values(), two.values());
}
