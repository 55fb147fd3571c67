//! Stored elements as f32.

use half::{bf16, f16};
use reel_input::tensor_file::StoredDType;

/// Converts stored elements to f32; `None` if the size is not a multiple of the element size.
pub fn widen_to_f32(dtype: StoredDType, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    if !bytes.len().is_multiple_of(dtype.element_bytes()) {
        return None;
    }
    Some(match dtype {
        StoredDType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        StoredDType::Bf16 => halves().map(|x| bf16::from_bits(x).to_f32()).collect(),
        StoredDType::F16 => halves().map(|x| f16::from_bits(x).to_f32()).collect(),
    })
}
