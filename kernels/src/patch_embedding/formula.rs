//! The definition of the patch embedding in f64: a convolution whose stride equals its kernel size.

use super::Pixels;

/// The frames of a test, and how their u8 levels become pixels.
pub struct FrameInput<'a> {
    pub frames: &'a [u8],
    pub pixels: Pixels,
    /// Rounds a pixel to the element type.
    pub round: fn(f32) -> f64,
}

impl FrameInput<'_> {
    /// Returns one element of a patch, a rounded pixel.
    pub fn pixel(&self, patch: usize, element: usize) -> f64 {
        let p = &self.pixels;
        let [count, height, width, side, temporal, merge] =
            [p.count, p.height, p.width, p.patch, p.temporal, p.merge].map(|n| n as usize);
        let (blocks_down, blocks_across) = (height / side / merge, width / side / merge);
        let (block, within) = (patch / (merge * merge), patch % (merge * merge));
        let time = block / (blocks_down * blocks_across);
        let row = (block / blocks_across % blocks_down * merge + within / merge) * side + element / side % side;
        let column = (block % blocks_across * merge + within % merge) * side + element % side;
        let frame = (time * temporal + element / (side * side) % temporal).min(count - 1);
        let c = element / (side * side * temporal);
        let level = self.frames[((frame * height + row) * width + column) * 3 + c];
        let (mean, std) = ([p.mean0, p.mean1, p.mean2][c], [p.std0, p.std1, p.std2][c]);
        (self.round)(((level as f64 * f64::from_bits(p.rescale)) as f32 - mean) / std)
    }

    /// Returns the embeddings y `[patches, embed]`, not yet rounded.
    pub fn fwd(&self, weight: &[f64], bias: Option<&[f64]>, embed: usize) -> Vec<f64> {
        let (patches, row) = (self.pixels.patch_count(), self.pixels.elements_per_patch());
        let mut y = Vec::new();
        for n in 0..patches {
            let pixels: Vec<f64> = (0..row).map(|k| self.pixel(n, k)).collect();
            for e in 0..embed {
                let sum: f64 = pixels.iter().zip(&weight[e * row..]).map(|(x, w)| x * w).sum();
                y.push(sum + bias.map_or(0.0, |b| b[e]));
            }
        }
        y
    }

    /// Returns the gradient of `Σ dy · y` with respect to the weight. y is linear in the weight, so the gradient for
    /// `weight[e, k]` is `Σ dy · y` with that weight 1 and all others 0.
    pub fn weight_gradient(&self, dy: &[f64], embed: usize) -> Vec<f64> {
        let (patches, row) = (self.pixels.patch_count(), self.pixels.elements_per_patch());
        let mut dw = vec![0.0; embed * row];
        for k in 0..row {
            for n in 0..patches {
                let pixel = self.pixel(n, k);
                for e in 0..embed {
                    dw[e * row + k] += dy[n * embed + e] * pixel;
                }
            }
        }
        dw
    }
}
