//! Which source samples make an output sample, and with what weights: the bicubic filter (a = -0.5) stretched over the
//! source when shrinking ("antialias"), as Pillow and PyTorch each compute it.

/// Reach of the bicubic filter on each side, in output samples.
const SUPPORT: f64 = 2.0;
/// Fractional bits of Pillow's integer weights: 8 bits for the value and 2 for the overshoot are left of 32.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The taps of one axis: output sample `i` is the sum of `weights(i)[j] * source[first(i) + j]`.
pub(super) struct Taps<W> {
    spans: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<W>,
}

impl<W: Copy> Taps<W> {
    fn new() -> Self {
        Self { spans: Vec::new(), weights: Vec::new() }
    }

    fn push(&mut self, first: usize, weights: impl IntoIterator<Item = W>) {
        let from = self.weights.len();
        self.weights.extend(weights);
        self.spans.push((first, from..self.weights.len()));
    }

    /// Number of output samples.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// First source sample and weights of output sample `i`.
    pub(super) fn at(&self, i: usize) -> (usize, &[W]) {
        let (first, range) = &self.spans[i];
        (*first, &self.weights[range.clone()])
    }
}

/// Pillow's weights from `source` to `target` samples: f64, normalised, then rounded to [`PRECISION_BITS`] fractional bits
/// (half away from zero). Source: Pillow `Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`.
pub(super) fn pillow(source: usize, target: usize) -> Taps<i32> {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    let mut taps = Taps::new();
    for i in 0..target {
        let center = (i as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(source);
        let inverse = 1.0 / stretch;
        let weights: Vec<f64> = (first..end).map(|j| bicubic_f64((j as f64 - center + 0.5) * inverse)).collect();
        let total: f64 = weights.iter().sum();
        let one = f64::from(1u32 << PRECISION_BITS);
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

/// PyTorch's weights from `source` to `target` samples, to the last bit of its CPU kernel (`upsample_bicubic2d_aa`, torch
/// 2.7): f32, with the multiply-adds of the filter fused as its build fuses them.
pub(super) fn torch(source: usize, target: usize) -> Taps<f32> {
    let scale = source as f32 / target as f32;
    let stretch = scale.max(1.0);
    let support = SUPPORT as f32 * stretch;
    let inverse = 1.0 / stretch;
    let mut taps = Taps::new();
    for i in 0..target {
        let center = (f64::from(scale) * (i as f64 + 0.5)) as f32;
        // The sum with the support is rounded to f32 first: it decides whether a sample at the very edge is a tap.
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
