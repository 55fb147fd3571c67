//! Uses several LoRA adapters in one decode step: each row of the batch can have a different adapter.
//!
//! The prefill of a prompt uses a model with only this prompt's adapter ([`QwenVl::with_adapter`]). For decode steps,
//! the A matrices of all adapters of a layer are copied into one tensor, the B matrices into another, and a kernel
//! picks the matrices for each row ([`reel_kernels::lora_rows`]).

use reel_device::{DType, Device, MemoryCategory};
use reel_runtime::Tensor;
use reel_runtime::ops::{Lora, LoraStack};

use crate::error::Result;
use crate::linear::Linear;
use crate::qwen_vl::QwenVl;

/// The common rank of stacked adapters is a multiple of this, so that the kernel can load 16 bytes at a time.
const RANK_STEP: usize = 8;

impl QwenVl {
    /// Returns the model for decode steps whose rows have different adapters: a row with adapter number i uses the
    /// decoder adapters of the model `adapted[i]`. The models must have this model's base weights.
    ///
    /// # Errors
    /// Out of memory.
    pub fn with_row_adapters(&self, device: &Device, dtype: DType, adapted: &[&QwenVl]) -> Result<QwenVl> {
        let mut model = self.without_adapter();
        let mut layers: Vec<_> = adapted.iter().map(|model| model.text.linear_layers()).collect();
        for linear in model.text.linear_layers_mut() {
            let of_layer: Vec<Option<&Linear>> = layers.iter_mut().map(Iterator::next).collect();
            let adapters: Vec<Option<&Lora>> = of_layer.into_iter().map(|layer| layer?.adapter.as_ref()).collect();
            linear.row_adapters = stack(device, dtype, &adapters)?;
        }
        Ok(model)
    }
}

/// The matrices of a layer's adapters, padded with zeros to a common rank; `None` if no adapter changes the layer.
fn stack(device: &Device, dtype: DType, adapters: &[Option<&Lora>]) -> Result<Option<LoraStack>> {
    let Some(first) = adapters.iter().flatten().next() else { return Ok(None) };
    let (k, n) = (first.down.shape()[1], first.up.shape()[0]);
    let ranks = adapters.iter().flatten().map(|lora| lora.down.shape()[0]);
    let rank = ranks.max().unwrap_or(0).next_multiple_of(RANK_STEP);
    let mut down = Vec::with_capacity(adapters.len() * rank * k);
    let mut up = vec![0.0; adapters.len() * n * rank];
    for (lora, up) in adapters.iter().zip(up.chunks_exact_mut(n * rank)) {
        let end = down.len() + rank * k;
        if let Some(lora) = lora {
            down.extend(lora.down.to_f32()?);
            let values = lora.up.to_f32()?;
            for (to, from) in up.chunks_exact_mut(rank).zip(values.chunks_exact(lora.down.shape()[0])) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        down.resize(end, 0.0);
    }
    let scale: Vec<f32> = adapters.iter().map(|lora| lora.map_or(0.0, |lora| lora.scale)).collect();
    let put = |shape: &[usize], dtype, values: &[f32]| {
        Tensor::from_f32(device, shape, dtype, values, MemoryCategory::Weights)
    };
    Ok(Some(LoraStack {
        down: put(&[adapters.len(), rank, k], dtype, &down)?,
        up: put(&[adapters.len(), n, rank], dtype, &up)?,
        scale: put(&[adapters.len()], DType::F32, &scale)?,
    }))
}
