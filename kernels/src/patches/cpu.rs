//! Cuts frames into patches on the CPU: each task cuts one square of merge × merge patches.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team};

use super::{CHANNELS, Params};

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn cut_patches<T: Element>(p: &Params, team: &Team) {
    let how = &p.pixels;
    let [count, height, width, side, temporal, merge] =
        [how.count, how.height, how.width, how.patch, how.temporal, how.merge].map(|n| n as usize);
    let (row, [times, down, across]) = (how.elements_per_patch(), how.patch_grid());
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let frames = unsafe { slice_at::<u8>(p.frames, count * height * width * CHANNELS) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let patches = unsafe { OutputArray::<T>::new(p.patches, times * down * across * row) };
    let (means, stds) = ([how.mean0, how.mean1, how.mean2], [how.std0, how.std1, how.std2]);
    let rescale = f64::from_bits(how.rescale);
    let value = |level: usize, c: usize| T::from_f32(((level as f64 * rescale) as f32 - means[c]) / stds[c]);
    let levels: [[T; 256]; CHANNELS] = std::array::from_fn(|c| std::array::from_fn(|level| value(level, c)));
    let (blocks_down, blocks_across) = (down / merge, across / merge);
    let block = merge * merge * row;
    team.run(times * blocks_down * blocks_across, |index| {
        let (time, line, column) =
            (index / blocks_across / blocks_down, index / blocks_across % blocks_down, index % blocks_across);
        // SAFETY: blocks do not overlap.
        let out = unsafe { patches.part(index * block, block) };
        for (within, out) in out.chunks_exact_mut(row).enumerate() {
            let (y0, x0) = ((line * merge + within / merge) * side, (column * merge + within % merge) * side);
            for (part, out) in out.chunks_exact_mut(side * side).enumerate() {
                let (c, frame) = (part / temporal, (time * temporal + part % temporal).min(count - 1));
                for (y, out) in out.chunks_exact_mut(side).enumerate() {
                    let pixels = &frames[((frame * height + y0 + y) * width + x0) * CHANNELS..][..side * CHANNELS];
                    for (out, pixel) in out.iter_mut().zip(pixels.chunks_exact(CHANNELS)) {
                        *out = levels[c][usize::from(pixel[c])];
                    }
                }
            }
        }
    });
}
