//! Filter taps of a resize along one axis: which source samples contribute to an output sample, and with what weights.
//!
//! The filter is bicubic with a = -0.5. If the image shrinks, the filter is stretched over the source ("antialias"):
//! ```text
//! scale   = source / target;  stretch = max(scale, 1);  support = 2 * stretch
//! center  = (i + 0.5) * scale                                   of output sample i, in source samples
//! first   = int(max(center - support + 0.5, 0));  end = min(int(center + support + 0.5), source)
//! weights = bicubic((j + 0.5 - center) / stretch) for j in first..end, divided by their sum
//! ```
//! Example, 4 samples to 2: output sample 0 has center 1 and support 4, so it takes samples 0 to 3 with the weights
//! 0.459, 0.459, 0.120 and -0.037. [`pillow_taps`] computes this in f64 and rounds weights to fixed point;
//! [`torch_taps`] computes it in f32.

/// Half the width of the bicubic filter: 2 output samples if the image shrinks, 2 source samples if it is enlarged.
const SUPPORT: f64 = 2.0;
/// Fractional bits of Pillow's i32 weights. The other 10 bits of the weighted sums hold the 8-bit sample, the sign,
/// and overshoot beyond 255.
pub(super) const WEIGHT_FRACTION_BITS: u32 = 32 - 8 - 2;

/// The taps of one axis. With `(first, weights) = taps.first_source_index_and_weights(i)`, output sample `i` is the sum
/// of `weights[j] * source[first + j]`.
pub(super) struct FilterTaps<W> {
    spans: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<W>,
}

impl<W: Copy> FilterTaps<W> {
    fn new() -> Self {
        Self { spans: Vec::new(), weights: Vec::new() }
    }

    fn push(&mut self, first: usize, weights: impl IntoIterator<Item = W>) {
        let from = self.weights.len();
        self.weights.extend(weights);
        self.spans.push((first, from..self.weights.len()));
    }

    /// The number of output samples.
    pub(super) fn output_len(&self) -> usize {
        self.spans.len()
    }

    /// The index of the first source sample that contributes to output sample `i`, and the weights of this sample and
    /// of the samples after it.
    pub(super) fn first_source_index_and_weights(&self, i: usize) -> (usize, &[W]) {
        let (first, range) = &self.spans[i];
        (*first, &self.weights[range.clone()])
    }
}

/// Pillow's taps for resizing `source` to `target` samples: weights in f64, normalised, then rounded to
/// [`WEIGHT_FRACTION_BITS`] fractional bits (half away from zero). Source: Pillow `Resample.c`, `precompute_coeffs` and
/// `normalize_coeffs_8bpc`.
pub(super) fn pillow_taps(source: usize, target: usize) -> FilterTaps<i32> {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    let mut taps = FilterTaps::new();
    for i in 0..target {
        let center = (i as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(source);
        let inverse = 1.0 / stretch;
        let weights: Vec<f64> = (first..end).map(|j| bicubic_f64((j as f64 - center + 0.5) * inverse)).collect();
        let total: f64 = weights.iter().sum();
        let one = f64::from(1u32 << WEIGHT_FRACTION_BITS);
        taps.push(
            first,
            weights.iter().map(|w| {
                let scaled = w / total * one;
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            }),
        );
    }
    taps
}

fn bicubic_f64(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    } else {
        0.0
    }
}

/// PyTorch's taps for resizing `source` to `target` samples, with the same bits as its CPU kernel
/// (`upsample_bicubic2d_aa`, torch 2.7): f32, with fused multiply-add in the filter polynomial.
pub(super) fn torch_taps(source: usize, target: usize) -> FilterTaps<f32> {
    let scale = source as f32 / target as f32;
    let stretch = scale.max(1.0);
    let support = SUPPORT as f32 * stretch;
    let inverse = 1.0 / stretch;
    let mut taps = FilterTaps::new();
    for i in 0..target {
        let center = (f64::from(scale) * (i as f64 + 0.5)) as f32;
        // torch rounds `center - support` and `center + support` to f32 before it adds 0.5; that rounding decides
        // whether a sample at the edge of the filter is a tap.
        let first = (f64::from(center - support) + 0.5).max(0.0) as usize;
        let end = ((f64::from(center + support) + 0.5) as usize).min(source);
        let weights: Vec<f32> = (first..end)
            .map(|j| bicubic_f32(((f64::from(j as f32 - center) + 0.5) * f64::from(inverse)) as f32))
            .collect();
        let total = weights.iter().fold(0.0f32, |sum, w| sum + w);
        taps.push(first, weights.iter().map(|w| w / total));
    }
    taps
}

fn bicubic_f32(x: f32) -> f32 {
    const A: f32 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0).mul_add(x, -(A + 3.0)) * x).mul_add(x, 1.0)
    } else if x < 2.0 {
        A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A).mul_add(x, -4.0 * A)
    } else {
        0.0
    }
}
