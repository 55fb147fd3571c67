//! The definition of LoRA rows in f64, and a version with the roundings that `mod.rs` documents, except the rounding at
//! the store.

use crate::checks::rounding::{f32, sum_f32_in_stages};

/// The operands of a launch: rows of x, and the adapters' matrices by which they are multiplied.
#[derive(Clone, Copy)]
pub struct AdapterProduct<'a> {
    /// `[m, k]`
    pub x: &'a [f64],
    /// `[adapters, n, k]`
    pub w: &'a [f64],
    /// `[m]`
    pub adapter: &'a [i32],
    pub n: usize,
    pub k: usize,
}

impl AdapterProduct<'_> {
    /// Returns `f(x[i], w[a, c])` for each row i and column c, and 0 for rows without an adapter.
    fn map(&self, f: impl Fn(&[f64], &[f64]) -> f64) -> Vec<f64> {
        let AdapterProduct { x, w, adapter, n, k } = *self;
        let rows = x.chunks_exact(k).zip(adapter);
        rows.flat_map(|(x, &a)| {
            let matrix = usize::try_from(a).ok().and_then(|a| w.get(a * n * k..(a + 1) * n * k));
            (0..n).map(|c| matrix.map_or(0.0, |w| f(x, &w[c * k..][..k]))).collect::<Vec<f64>>()
        })
        .collect()
    }

    /// `Σ x[i, j] w[a, c, j]`.
    pub fn products(&self) -> Vec<f64> {
        self.map(|x, w| x.iter().zip(w).map(|(x, w)| x * w).sum())
    }

    /// Computes [`AdapterProduct::products`] in f32: terms are added in order, and the sum is rounded after each.
    pub fn products_rounded(&self) -> Vec<f64> {
        self.map(|x, w| f32(sum_f32_in_stages(x.iter().zip(w).map(|(x, w)| x * w), &[])))
    }

    /// `Σ |x[i, j] w[a, c, j]|`.
    pub fn sums_of_magnitudes(&self) -> Vec<f64> {
        self.map(|x, w| x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum())
    }
}
