//! From frames of levels to patch embeddings, without storing the pixels of the patches where that can be.

use reel_kernels::patch_embedding::{self as kernel, Pixels};
use reel_kernels::{Addr, DType, column_sum, patches};

use super::{linear, want_dtype, want_shape};
use crate::device::{Category, Device};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

const OP: &str = "patch_embedding";

/// The most bytes of frames that a kernel addresses.
const MOST: u64 = u32::MAX as u64;

/// How levels become pixels, and pixels patches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patching {
    /// What a level is multiplied with.
    pub rescale: f64,
    /// Mean of each channel after that.
    pub mean: [f32; 3],
    /// Standard deviation of each channel after that.
    pub std: [f32; 3],
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Frames of a patch.
    pub temporal: usize,
    /// Patches along each side of a block of neighbours.
    pub merge: usize,
}

/// A picture or film on a device: u8 `[T, height, width, 3]`.
#[derive(Clone, Debug)]
pub struct DeviceFrames {
    levels: Tensor,
    pixels: Pixels,
}

impl DeviceFrames {
    /// Puts `levels` of `[count, height, width]` pixels on a device.
    ///
    /// # Errors
    /// Another number of levels; sides that are no whole blocks of patches; 4 GiB or more; out of memory.
    pub fn new(
        device: &Device,
        levels: &[u8],
        [count, height, width]: [usize; 3],
        patching: &Patching,
    ) -> Result<DeviceFrames> {
        let Patching { rescale, mean, std, patch, temporal, merge } = *patching;
        let block = patch.saturating_mul(merge);
        let fits = |n: usize| block > 0 && n.is_multiple_of(block);
        if temporal == 0 || !fits(height) || !fits(width) {
            let what =
                format!("frames of {height} x {width} are no whole blocks of {merge} x {merge} patches of {patch}");
            return Err(shape_error(OP, what));
        }
        if levels.len() as u64 > MOST {
            return Err(shape_error(OP, format!("{} bytes of frames; cut the film to less than 4 GiB", levels.len())));
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
        let levels = Tensor::from_slice(device, &[count, height, width, 3], DType::U8, levels, Category::Inputs)?;
        Ok(DeviceFrames { levels, pixels })
    }

    /// Patches.
    pub fn patches(&self) -> usize {
        self.pixels.patches()
    }
}

/// Products of the patches of all frames with `w [C, 3 · temporal · patch²]`, plus `b [C]`: `[N, C]`, film after film, in the order
/// of the image processor. Levels become pixels of the dtype of activations.
///
/// # Errors
/// Shapes that do not fit; out of memory.
pub fn patch_embedding(cx: &Cx, frames: &[DeviceFrames], w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let row = frames.first().map_or(0, |f| f.pixels.row());
    let embed = w.shape().first().copied().unwrap_or(0);
    want_shape(OP, "weight", w, &[embed, row], "the elements of a patch")?;
    if frames.iter().any(|f| f.pixels.row() != row) {
        return Err(shape_error(OP, "frames are cut into patches of different sizes"));
    }
    let dtype = cx.dtype();
    if w.dtype() != dtype {
        // The kernel wants one dtype; the plain product widens a weight that is read in place.
        return linear(cx, &cut(cx, frames, row)?, w, b);
    }
    if let Some(b) = b {
        want_shape(OP, "bias", b, &[embed], "the rows of the weight")?;
        want_dtype(OP, "bias", b, dtype)?;
    }
    let n: usize = frames.iter().map(DeviceFrames::patches).sum();
    let (columns, y) = (super::size(OP, embed)?, cx.empty(&[n, embed], dtype)?);
    for (f, start) in frames.iter().zip(starts(frames)) {
        let p = kernel::FwdParams {
            frames: f.levels.addr(),
            weight: w.addr(),
            bias: b.map_or(Addr::NULL, Tensor::addr),
            y: y.rows(start, f.patches())?.addr(),
            pixels: f.pixels,
            embed: columns,
            reserved: 0,
        };
        cx.launch(&kernel::fwd(dtype, &p))?;
    }
    let (kw, kb, frames) = (w.clone(), b.cloned(), frames.to_vec());
    let inputs: Vec<&Tensor> = [w].into_iter().chain(b).collect();
    Ok(cx.record(OP, &inputs, y, move |bw| {
        // It comes in the shape in which the result was used last.
        let dy = bw.take_dy().reshape(&[n, embed])?;
        if let Some(kb) = &kb
            && let Some(db) = bw.parameter_grad(kb)?
        {
            let params = column_sum::Params { x: dy.addr(), sum: db.addr(), rows: n as u64, cols: embed as u64 };
            bw.launch(&column_sum::add(dy.dtype(), &params))?;
        }
        let Some(dw) = bw.parameter_grad(&kw)? else { return Ok(()) };
        for (f, start) in frames.iter().zip(starts(&frames)) {
            let p = kernel::DwParams {
                frames: f.levels.addr(),
                dy: dy.rows(start, f.patches())?.addr(),
                dw: dw.addr(),
                pixels: f.pixels,
                embed: columns,
                reserved: 0,
            };
            bw.launch(&kernel::dw(dy.dtype(), &p))?;
        }
        Ok(())
    }))
}

/// The first patch of each film.
fn starts(frames: &[DeviceFrames]) -> impl Iterator<Item = usize> {
    frames.iter().scan(0, |next, f| {
        let start = *next;
        *next += f.patches();
        Some(start)
    })
}

/// The pixels of all patches, `[N, row]`.
fn cut(cx: &Cx, frames: &[DeviceFrames], row: usize) -> Result<Tensor> {
    let n: usize = frames.iter().map(DeviceFrames::patches).sum();
    let all = cx.empty(&[n, row], cx.dtype())?;
    for (f, start) in frames.iter().zip(starts(frames)) {
        let to = all.rows(start, f.patches())?;
        cx.launch(&patches::cut(cx.dtype(), &f.pixels.cut(f.levels.addr(), to.addr())))?;
    }
    Ok(all)
}
