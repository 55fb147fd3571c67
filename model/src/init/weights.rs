//! Random weights: the value of each element depends only on the seed, the name of its tensor and its index.

use std::io::{self, Write};

use half::{bf16, f16};
use rayon::prelude::*;
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;

use super::normal::{NORMALS_PER_BLOCK, standard_normals};
use crate::save::TensorSpec;

/// The number of elements that are generated in parallel and then written together.
const CHUNK: usize = 1 << 23;

/// How the elements of a tensor are initialised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum WeightInitializer {
    /// Every element is this number.
    Constant(f32),
    /// Elements are normal numbers with this standard deviation.
    Normal(f32),
}

/// Returns how a tensor is initialised. Biases are 0, norm weights 1, and learned positions have standard deviation
/// 0.02. Matrices keep the scale of their input (standard deviation 0.9/√inputs, which is the usual 0.02 at a width of
/// 2048). In layers whose output is added to the residual, the standard deviation falls with the number of layers. The
/// output layer is so small that all tokens are nearly equally likely.
pub(super) fn initializer(name: &str, shape: &[usize], config: &ModelConfig) -> WeightInitializer {
    if name.ends_with(".bias") {
        return WeightInitializer::Constant(0.0);
    }
    if shape.len() == 1 {
        return WeightInitializer::Constant(1.0);
    }
    let inputs: usize = shape[1..].iter().product();
    let plain = 0.9 / (inputs as f32).sqrt();
    let layers = if name.starts_with("visual.") { config.vision.depth } else { config.text.num_hidden_layers };
    let adds = ["o_proj.weight", "attn.proj.weight", "down_proj.weight", "mlp.linear_fc2.weight"]
        .iter()
        .any(|end| name.ends_with(end));
    WeightInitializer::Normal(match name {
        "visual.pos_embed.weight" => 0.02,
        "model.embed_tokens.weight" if !config.tie_word_embeddings => 0.02,
        "model.embed_tokens.weight" | "lm_head.weight" => 0.25 / (inputs as f32).sqrt(),
        _ if adds => plain / (2.0 * layers.max(1) as f32).sqrt(),
        _ => plain,
    })
}

/// Writes one random tensor chunk by chunk, with at most one chunk in memory.
pub(super) fn write_random_tensor(
    spec: &TensorSpec,
    initializer: WeightInitializer,
    seed: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    let length: usize = spec.shape.iter().product();
    let stream = fnv1a_hash(&spec.name);
    let mut bytes = Vec::new();
    for first in (0..length).step_by(CHUNK) {
        let elements = CHUNK.min(length - first);
        bytes.resize(elements * spec.dtype.element_bytes(), 0);
        fill(
            &mut bytes,
            spec.dtype,
            initializer,
            |block| standard_normals(seed, stream, block),
            first / NORMALS_PER_BLOCK,
        );
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn fill(
    bytes: &mut [u8],
    dtype: StoredDType,
    initializer: WeightInitializer,
    normals: impl Fn(u64) -> [f32; NORMALS_PER_BLOCK] + Sync,
    first_block: usize,
) {
    let size = dtype.element_bytes();
    bytes.par_chunks_mut(NORMALS_PER_BLOCK * size * 4096).enumerate().for_each(|(part, bytes)| {
        for (i, lane) in bytes.chunks_mut(NORMALS_PER_BLOCK * size).enumerate() {
            let values = match initializer {
                WeightInitializer::Constant(value) => [value; NORMALS_PER_BLOCK],
                WeightInitializer::Normal(scale) => normals((first_block + part * 4096 + i) as u64).map(|x| x * scale),
            };
            for (bytes, value) in lane.chunks_exact_mut(size).zip(values) {
                match dtype {
                    StoredDType::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
                    StoredDType::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    StoredDType::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                }
            }
        }
    });
}

/// The number of a tensor's random stream: the 64-bit FNV-1a hash (Fowler, Noll, Vo) of the tensor's name.
pub(crate) fn fnv1a_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
