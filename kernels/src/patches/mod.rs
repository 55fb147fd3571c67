//! Cuts u8 frames into normalised patches, the rows that the patch embedding's product reads.
//!
//! `patches[n, c, f, y, x] = T((f32(level · rescale) − mean[c]) / std[c])`, with the level of channel c at pixel (y,
//! x) of patch n in the f-th of the patch's `temporal` frames.
//!
//! Shapes: frames u8 `[count, height, width, 3]`, patches T `[N, 3 · temporal · patch · patch]`, f32 or bf16, `N =
//! ceil(count / temporal) · (height / patch) · (width / patch)`; height and width are multiples of `patch · merge`.
//! Patches are ordered by time, then by squares of `merge × merge` patches row by row, within a square row by row. If
//! frames are missing at the end, the last frame is repeated.
//!
//! Numerics: the product in f64 (as image processors compute it), rounded to f32; difference and quotient in f32, one
//! rounding each; T at the store. Memory-bound: 1 byte read and one element written.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::{CType, kernel_for_dtype};
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

/// RGB.
pub const CHANNELS: usize = 3;

params! {
    /// How u8 frames become pixels of patches.
    pub struct Pixels {
        /// The factor by which u8 levels are multiplied (1/255), as the bits of an f64.
        pub rescale: u64,
        /// Number of frames.
        pub count: u32,
        /// Rows of a frame.
        pub height: u32,
        /// Pixels of a row.
        pub width: u32,
        /// Side of a patch.
        pub patch: u32,
        /// Frames of a patch.
        pub temporal: u32,
        /// Patches along each side of a square that is merged into one vision token.
        pub merge: u32,
        /// Mean of red after rescaling.
        pub mean0: f32,
        /// Mean of green.
        pub mean1: f32,
        /// Mean of blue.
        pub mean2: f32,
        /// Standard deviation of red.
        pub std0: f32,
        /// Standard deviation of green.
        pub std1: f32,
        /// Standard deviation of blue.
        pub std2: f32,
    }
}

impl CType for Pixels {
    const NAME: &'static str = "Pixels";
}

impl Pixels {
    /// Elements of a patch.
    pub fn elements_per_patch(&self) -> usize {
        CHANNELS * self.temporal as usize * self.patch as usize * self.patch as usize
    }

    /// Returns the number of patches along time, height and width.
    pub fn patch_grid(&self) -> [usize; 3] {
        [self.count.div_ceil(self.temporal), self.height / self.patch, self.width / self.patch].map(|n| n as usize)
    }

    /// Patches of all frames.
    pub fn patch_count(&self) -> usize {
        self.patch_grid().iter().product()
    }

    /// Returns the parameters of the kernel that stores the patches.
    pub fn patch_params(self, frames: Addr, patches: Addr) -> Params {
        Params { frames, patches, pixels: self }
    }
}

params! {
    /// Parameters.
    pub struct Params {
        /// u8 `[count, height, width, 3]`
        pub frames: Addr,
        /// The patches, f32 or bf16 `[N, 3 · temporal · patch · patch]`; the kernel writes them.
        pub patches: Addr,
        /// The shape of the frames, and how frames become patches.
        pub pixels: Pixels,
    }
}

kernel_folder! {
    name: "patches",
    params: [Pixels, Params],
}

kernel!(pub PATCHES_F32, "patches_f32", Params, cpu::cut_patches::<f32>, &SOURCE, |p, _| plan_cut("patches_f32", p, 4));
kernel!(pub PATCHES_BF16, "patches_bf16", Params, cpu::cut_patches::<half::bf16>, &SOURCE, |p, _| plan_cut("patches_bf16", p, 8));

/// Plans the grid; `vector` is the number of elements in 16 bytes.
fn plan_cut(symbol: &'static str, p: &Params, vector: u64) -> Vec<Stage> {
    let (row, patches) = (p.pixels.elements_per_patch() as u64, p.pixels.patch_count() as u64);
    let pieces = if row.is_multiple_of(vector) { row / vector } else { row };
    cuh::plan_blocks(symbol, (patches * pieces).div_ceil(256), 256)
}

/// Returns the launch that cuts frames into patches; `dtype` is that of the patches, F32 or BF16.
pub fn cut_patches(dtype: DType, params: &Params) -> Launch {
    let n = (params.pixels.patch_count() * params.pixels.elements_per_patch()) as f64;
    let cost = Cost { flops: 3.0 * n, bytes: n * (1 + dtype.size()) as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &PATCHES_F32, &PATCHES_BF16), params, cost)
}

/// Returns shapes (frames, height, width, patch, temporal, merge) that the checks use.
pub fn test_cases_frames_height_width_patch_temporal_merge() -> Vec<[usize; 6]> {
    vec![
        [1, 1, 1, 1, 1, 1],
        [2, 56, 84, 14, 2, 2],
        [3, 28, 28, 14, 2, 1],
        [5, 12, 18, 3, 2, 2],
        [1, 28, 56, 14, 2, 2],
        [0, 28, 28, 14, 2, 2],
    ]
}
