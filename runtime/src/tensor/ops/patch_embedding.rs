//! Patch embedding: from decoded u8 frames to patch embeddings in one kernel, without storing normalised pixels.

use reel_device::{Addr, DType, Device, MemoryCategory, in_op};
use reel_kernels::patch_embedding::{self as kernel, Pixels};
use reel_kernels::patches;

use super::{linear, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

const OP: &str = "patch_embedding";

/// Maximum size of the frames in bytes that the kernel can address.
const MAX_FRAME_BYTES: u64 = u32::MAX as u64;

/// How u8 frames are normalised and cut into patches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchingParams {
    /// The factor of a u8 pixel value: 1 / 255 for Qwen2.5-VL.
    pub rescale: f64,
    /// The mean of each channel, subtracted after rescaling.
    pub mean: [f32; 3],
    /// The standard deviation of each channel. Pixel values are divided by it after the mean is subtracted.
    pub std: [f32; 3],
    /// The side length of a patch in pixels.
    pub patch: usize,
    /// The number of frames in a patch.
    pub temporal: usize,
    /// The number of patches along each side of a square of patches that are merged.
    pub merge: usize,
}

/// An image or a video on a device: u8 `[T, height, width, 3]`.
#[derive(Clone, Debug)]
pub struct DeviceFrames {
    levels: Tensor,
    pixels: Pixels,
}

impl DeviceFrames {
    /// Copies the u8 RGB values of `count` frames to the device.
    ///
    /// # Errors
    /// A number of values that does not match the size; a height or width that is not a multiple of `merge` patches;
    /// 4 GiB of frames or more; out of memory.
    pub fn new(
        device: &Device,
        levels: &[u8],
        [count, height, width]: [usize; 3],
        patching: &PatchingParams,
    ) -> Result<DeviceFrames> {
        let PatchingParams { rescale, mean, std, patch, temporal, merge } = *patching;
        let block = patch.saturating_mul(merge);
        let fits = |n: usize| block > 0 && n.is_multiple_of(block);
        if temporal == 0 || !fits(height) || !fits(width) {
            let what = format!(
                "frames of {height} x {width} pixels; both sides must be multiples of {merge} patches of {patch} pixels"
            );
            return Err(shape_error(OP, what));
        }
        if levels.len() as u64 > MAX_FRAME_BYTES {
            return Err(shape_error(
                OP,
                format!("{} bytes of frames, more than 4 GiB; take fewer or smaller frames", levels.len()),
            ));
        }
        let small = |n: usize| super::size(OP, n);
        let pixels = Pixels {
            rescale: rescale.to_bits(),
            count: small(count)?,
            height: small(height)?,
            width: small(width)?,
            patch: small(patch)?,
            temporal: small(temporal)?,
            merge: small(merge)?,
            mean0: mean[0],
            mean1: mean[1],
            mean2: mean[2],
            std0: std[0],
            std1: std[1],
            std2: std[2],
        };
        let levels = Tensor::from_slice(device, &[count, height, width, 3], DType::U8, levels, MemoryCategory::Inputs)?;
        Ok(DeviceFrames { levels, pixels })
    }

    /// The number of patches.
    pub fn patch_count(&self) -> usize {
        self.pixels.patch_count()
    }
}

/// `patches · wᵀ + b` of all images and videos: w `[C, 3 · temporal · patch²]`, b `[C]` give `[N, C]` in processor
/// order. Pixels are normalised to the dtype of activations.
pub fn patch_embedding(cx: &Cx, frames: &[DeviceFrames], w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let _op = in_op("patch_embedding");
    let row = frames.first().map_or(0, |f| f.pixels.elements_per_patch());
    let embed = w.shape().first().copied().unwrap_or(0);
    want_shape(OP, "weight", w, &[embed, row], "the elements of a patch")?;
    if frames.iter().any(|f| f.pixels.elements_per_patch() != row) {
        return Err(shape_error(OP, "frames are cut into patches of different sizes"));
    }
    let dtype = cx.dtype();
    if w.dtype() != dtype {
        // The fused kernel needs a weight with the dtype of activations. For other weights, the normalised pixels are
        // stored, and a matrix product that accepts two dtypes computes the embeddings.
        return linear(cx, &cut(cx, frames, row)?, w, b);
    }
    if let Some(b) = b {
        want_shape(OP, "bias", b, &[embed], "the rows of the weight")?;
        want_dtype(OP, "bias", b, dtype)?;
    }
    let n: usize = frames.iter().map(DeviceFrames::patch_count).sum();
    let (columns, y) = (super::size(OP, embed)?, cx.empty(&[n, embed], dtype)?);
    for (f, start) in frames.iter().zip(starts(frames)) {
        let p = kernel::FwdParams {
            frames: f.levels.addr(),
            weight: w.addr(),
            bias: b.map_or(Addr::NULL, Tensor::addr),
            y: y.rows(start, f.patch_count())?.addr(),
            pixels: f.pixels,
            embed: columns,
            reserved: 0,
        };
        cx.launch(&kernel::fwd(dtype, &p))?;
    }
    let (kw, kb, frames) = (w.clone(), b.cloned(), frames.to_vec());
    let inputs: Vec<&Tensor> = [w].into_iter().chain(b).collect();
    Ok(cx.record(OP, &inputs, y, move |bw| {
        // The gradient may have the shape of another view of the output, so it is reshaped.
        let dy = bw.take_dy().reshape(&[n, embed])?;
        if let Some(kb) = &kb {
            bw.add_column_sums(kb, &dy, [n, embed])?;
        }
        let parts = frames.iter().filter(|f| f.patch_count() > 0).count();
        let Some((dw, mut adds)) = bw.parameter_grad_in_parts(&kw, n, parts)? else { return Ok(()) };
        for (f, start) in frames.iter().zip(starts(&frames)) {
            let p = kernel::DwParams {
                frames: f.levels.addr(),
                dy: dy.rows(start, f.patch_count())?.addr(),
                dw: dw.addr(),
                pixels: f.pixels,
                embed: columns,
                accumulate: u32::from(adds),
            };
            bw.launch(&kernel::dw(dy.dtype(), &p))?;
            adds |= f.patch_count() > 0;
        }
        bw.end_grad_parts(&kw)
    }))
}

/// For each image or video, the index of its first patch.
fn starts(frames: &[DeviceFrames]) -> impl Iterator<Item = usize> {
    frames.iter().scan(0, |next, f| {
        let start = *next;
        *next += f.patch_count();
        Some(start)
    })
}

/// Cuts the frames into patches of normalised pixels, `[N, row]`.
fn cut(cx: &Cx, frames: &[DeviceFrames], row: usize) -> Result<Tensor> {
    let n: usize = frames.iter().map(DeviceFrames::patch_count).sum();
    let all = cx.empty(&[n, row], cx.dtype())?;
    for (f, start) in frames.iter().zip(starts(frames)) {
        let to = all.rows(start, f.patch_count())?;
        cx.launch(&patches::cut_patches(cx.dtype(), &f.pixels.patch_params(f.levels.addr(), to.addr())))?;
    }
    Ok(all)
}
