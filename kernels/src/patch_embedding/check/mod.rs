use reel_device::DType::{self, BF16, F32};
use reel_device::{Addr, Element};

use super::formula::FrameInput;
use super::{DwParams, FwdParams, Pixels, dw, fwd, test_cases_frame_shape_embed};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{
    DEFAULT_ROUNDING_FACTOR, assert_close, assert_rounded, assert_within, f32_sum_error, rounding_error,
};
use crate::patches;

checks!(
    equals_the_formula,
    the_gradient_equals_the_formula,
    pixels_equal_those_of_the_patches,
    threads_and_other_patches_change_nothing
);

pub(crate) const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(crate) const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Returns u8 pixel values in no regular order. If `count` is large enough, every value occurs.
pub(crate) fn test_pixel_values(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * i * 31 + i * 7 + i / 251) as u8).collect()
}

/// Returns the conversion of frames to pixels for frames of this shape, with CLIP's means and standard deviations.
pub(crate) fn pixels([count, height, width, patch, temporal, merge]: [usize; 6]) -> Pixels {
    Pixels {
        rescale: (1.0f64 / 255.0).to_bits(),
        count: count as u32,
        height: height as u32,
        width: width as u32,
        patch: patch as u32,
        temporal: temporal as u32,
        merge: merge as u32,
        mean0: CLIP_MEAN[0],
        mean1: CLIP_MEAN[1],
        mean2: CLIP_MEAN[2],
        std0: CLIP_STD[0],
        std1: CLIP_STD[1],
        std2: CLIP_STD[2],
    }
}

/// The rounding of a pixel to T.
fn round(dtype: DType) -> fn(f32) -> f64 {
    match dtype {
        F32 => |x| x as f64,
        _ => |x| <half::bf16 as Element>::from_f32(x).to_f32() as f64,
    }
}

/// Returns a function that gives the magnitude of a pixel, rounded to `dtype`.
fn rounded_magnitude(dtype: DType) -> fn(f32) -> f64 {
    match dtype {
        F32 => |x| round(F32)(x).abs(),
        _ => |x| round(BF16)(x).abs(),
    }
}

fn magnitudes(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.abs()).collect()
}

/// Launches the forward kernel with an optional bias and returns y.
fn forward(
    frames: &[u8],
    pixels: Pixels,
    weight: &TestArray,
    bias: Option<&TestArray>,
    dtype: DType,
    embed: usize,
) -> Vec<f32> {
    let y = TestArray::output(dtype, pixels.patch_count() * embed);
    let (frames, bias) = (addr(frames), bias.map_or(Addr::NULL, TestArray::addr));
    let params =
        FwdParams { frames, weight: weight.addr(), bias, y: y.addr(), pixels, embed: embed as u32, reserved: 0 };
    run(&fwd(dtype, &params), 2);
    y.values()
}

/// Factor of the tolerance of sums on tensor cores, which truncate the bits below an f32 sum: truncation may lose twice
/// as much as rounding.
const TRUNCATION: f64 = 2.0;

fn equals_the_formula() {
    for (shape, embed) in test_cases_frame_shape_embed() {
        let (frames, pixels) = (test_pixel_values(shape[0] * shape[1] * shape[2] * 3), pixels(shape));
        for dtype in [F32, BF16] {
            let (weight, bias) = (
                TestArray::new(dtype, &normal_numbers(embed * pixels.elements_per_patch(), 1, 0.1)),
                TestArray::new(dtype, &normal_numbers(embed, 2, 1.0)),
            );
            let input = FrameInput { frames: &frames, pixels, round: round(dtype) };
            for bias in [None, Some(&bias)] {
                let y = forward(&frames, pixels, &weight, bias, dtype, embed);
                let values = bias.map(TestArray::to_f64);
                let want = input.fwd(&weight.to_f64(), values.as_deref(), embed);
                let name = format!("{dtype} {shape:?} {embed}");
                let terms = FrameInput { round: rounded_magnitude(dtype), ..input }.fwd(
                    &magnitudes(&weight.to_f64()),
                    values.as_deref().map(magnitudes).as_deref(),
                    embed,
                );
                let count = pixels.elements_per_patch() + 1;
                let bound =
                    |i: usize| TRUNCATION * f32_sum_error(count, terms[i]) + rounding_error(dtype) * want[i].abs();
                if dtype == F32 {
                    assert_close(&name, &y, &want, 1e-6, bound);
                } else {
                    assert_within(&name, &y, &want, bound);
                    assert_rounded(&name, dtype, &y, &want, &want, DEFAULT_ROUNDING_FACTOR);
                }
            }
        }
    }
}

fn the_gradient_equals_the_formula() {
    for (shape, embed) in test_cases_frame_shape_embed() {
        let (frames, pixels) = (test_pixel_values(shape[0] * shape[1] * shape[2] * 3), pixels(shape));
        // In bf16 the tolerance is larger: tensor cores truncate the bits below an f32 sum instead of rounding. On an
        // H200 the error was 2.5e-6.
        for (dtype, tol) in [(F32, 1e-6), (BF16, 1e-5)] {
            let dy = TestArray::new(dtype, &normal_numbers(pixels.patch_count() * embed, 1, 1.0));
            let before = normal_numbers(embed * pixels.elements_per_patch(), 2, 1.0);
            let mut sum = before.clone();
            let params = DwParams {
                frames: addr(&frames),
                dy: dy.addr(),
                dw: addr_mut(&mut sum),
                pixels,
                embed: embed as u32,
                accumulate: 1,
            };
            run(&dw(dtype, &params), 2);
            let mut alone = vec![f32::NAN; before.len()];
            run(&dw(dtype, &DwParams { dw: addr_mut(&mut alone), accumulate: 0, ..params }), 2);
            let input = FrameInput { frames: &frames, pixels, round: round(dtype) };
            let own = input.weight_gradient(&dy.to_f64(), embed);
            let want: Vec<f64> = own.iter().zip(&before).map(|(d, &before)| d + before as f64).collect();
            let terms = FrameInput { round: rounded_magnitude(dtype), ..input }
                .weight_gradient(&magnitudes(&dy.to_f64()), embed);
            let bound =
                |i: usize| TRUNCATION * f32_sum_error(pixels.patch_count() + 1, terms[i] + f64::from(before[i].abs()));
            assert_close(&format!("dw {dtype} {shape:?} {embed}"), &sum, &want, tol, bound);
            if pixels.patch_count() > 0 {
                assert_close(&format!("dw alone {dtype} {shape:?} {embed}"), &alone, &own, tol, bound);
            }
        }
    }
}

/// Multiplies the patches with the identity matrix as weight. The result is the pixels, bit-identical to
/// [`patches::cut_patches`], for all u8 levels and for the pixel constants of both models.
fn pixels_equal_those_of_the_patches() {
    let frames: Vec<u8> =
        (0..=255u8).flat_map(|level| [level, level.wrapping_add(85), level.wrapping_mul(7)]).collect();
    let identity: Vec<f32> = (0..9).map(|i| if i % 4 == 0 { 1.0 } else { 0.0 }).collect();
    let clip = pixels([1, 16, 16, 1, 1, 1]);
    let half = Pixels { mean0: 0.5, mean1: 0.5, mean2: 0.5, std0: 0.5, std1: 0.5, std2: 0.5, ..clip };
    for pixels in [clip, half] {
        for dtype in [F32, BF16] {
            let want = TestArray::output(dtype, 3 * 256);
            run(&patches::cut_patches(dtype, &pixels.patch_params(addr(&frames), want.addr())), 1);
            let y = forward(&frames, pixels, &TestArray::new(dtype, &identity), None, dtype, 3);
            assert_eq!(y, want.values(), "{dtype}");
        }
    }
}

fn threads_and_other_patches_change_nothing() {
    let (shape, embed) = ([4, 28, 56, 14, 2, 2], 40);
    let (all, pixels) = (test_pixel_values(4 * 28 * 56 * 3), pixels(shape));
    for dtype in [F32, BF16] {
        let weight = TestArray::new(dtype, &normal_numbers(embed * 1176, 1, 0.1));
        let y = forward(&all, pixels, &weight, None, dtype, embed);
        let second = &all[2 * 28 * 56 * 3..];
        let alone = forward(second, Pixels { count: 2, ..pixels }, &weight, None, dtype, embed);
        assert_eq!(alone, y[y.len() / 2..], "{dtype}");
    }
}

#[cfg(test)]
mod tests;
