//! Reads safetensors files and compares tensors.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// A tensor of any dtype; its values are converted to f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// Reads all tensors of a safetensors file.
pub fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse_tensors(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads all tensors in the bytes of a safetensors file.
pub fn parse_tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, safetensors::SafeTensorError> {
    let file = SafeTensors::deserialize(bytes)?;
    let tensors = file.tensors().into_iter();
    Ok(tensors
        .map(|(name, t)| (name, Tensor { shape: t.shape().to_vec(), values: widen(t.dtype(), t.data()) }))
        .collect())
}

fn widen(dtype: Dtype, data: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::BF16 => data
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)))
            .collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
        Dtype::U8 => data.iter().map(|&b| f64::from(b)).collect(),
        other => panic!("no test needs dtype {other:?}"),
    }
}

/// Returns the rows at the given indices of the first dimension, concatenated.
pub fn gathered_rows(t: &Tensor, row_indices: &[f64]) -> Vec<f64> {
    let width = t.values.len() / t.shape[0].max(1);
    row_indices.iter().flat_map(|&r| t.values[r as usize * width..(r as usize + 1) * width].iter().copied()).collect()
}

/// Returns the relative L2 distance |got − want| / |want|; panics if a value is not finite.
#[track_caller]
pub fn relative_distance(name: &str, got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "{name}");
    assert!(got.iter().all(|x| x.is_finite()), "{name}: a value is not finite");
    let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    (off / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// Checks that the relative L2 distance is at most `limit`.
#[track_caller]
pub fn assert_close(name: &str, got: &[f64], want: &[f64], limit: f64) {
    let d = relative_distance(name, got, want);
    assert!(d <= limit, "{name}: relative L2 distance {d:.3e}, allowed {limit:.1e}");
}

/// Checks that every element differs by at most `limit`.
#[track_caller]
pub fn assert_elements_close(name: &str, got: &[f64], want: &[f64], limit: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= limit, "{name}[{i}] is {g}, not {w}");
    }
}
