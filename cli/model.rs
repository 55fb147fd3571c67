//! Opens a model on the device and with the dtype of the common options (`--device`, `--dtype`).

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use reel_device::{DType, Device, MatmulImplementation, SimOptions};
use reel_input::config::{ModelConfig, TextConfig};
use reel_model::checkpoint::Checkpoint;
use reel_model::lora::{Adapter, AdapterSource};
use reel_model::quantization::{LoadFormat, Quantization};
use reel_model::qwen_vl::QwenVl;
use reel_model::tensor_parallel::TensorParallel;
use reel_runtime::Cx;
use reel_support::error::{Error, Kind};
use reel_tools::measure::trace;

use crate::common::{self, CommonOptions};
use crate::fail::usage_error;

/// Bytes for the KV cache if the free memory of the device is unknown (2 GiB).
const DEFAULT_KV_BYTES: u64 = 2 << 30;

/// Size of a server's KV cache on a CPU, in tokens per completion that can decode at the same time.
const SERVED_TOKENS_PER_COMPLETION: usize = 4096;

/// The option `--quantize` of commands that load a model only to generate.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct QuantizeFlag {
    /// Quantise the weights of the decoder's linear layers while loading, with int8 also those of the output layer. The
    /// vision tower, embeddings, norms and adapters keep their dtype
    #[arg(long, value_name = "FORMAT", value_enum)]
    quantize: Option<QuantizeName>,
}

/// A format of quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum QuantizeName {
    /// Signed bytes with a scale for each row: half the bytes of bf16
    Int8,
    /// 4.5 bits for each weight, with the values of bitsandbytes (NF4, double quantisation)
    Nf4,
    /// 8-bit floats (e4m3) with a scale for each block of 128 x 128 weights
    Fp8,
}

impl QuantizeFlag {
    /// Returns the name of the format; `None` if the weights are not quantised.
    pub fn name(self) -> Option<&'static str> {
        self.quantize.map(|format| match format {
            QuantizeName::Int8 => "int8",
            QuantizeName::Nf4 => "nf4",
            QuantizeName::Fp8 => "fp8",
        })
    }

    /// Returns the option `--quantize int8`.
    pub fn int8() -> Self {
        Self { quantize: Some(QuantizeName::Int8) }
    }

    pub fn quantization(self) -> Quantization {
        match self.quantize {
            Some(QuantizeName::Int8) => Quantization::Int8,
            Some(QuantizeName::Nf4) => Quantization::AtLoad(LoadFormat::Nf4),
            Some(QuantizeName::Fp8) => Quantization::AtLoad(LoadFormat::Fp8),
            None => Quantization::None,
        }
    }
}

/// Where the weights of an unquantised model are on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightLocation {
    /// In their files, which are memory-mapped: ready at once, and shared with other processes
    Mapped,
    /// In the process's own memory, on large pages and in the layout of the matrix products, which read them faster
    Copied,
}

/// A model with its weights on a device.
pub struct LoadedModel {
    pub weights: QwenVl,
    /// Whether the weights are a copy in the process's own memory, not mapped files.
    pub is_copied: bool,
    /// Context for inference without gradients, in the dtype of `--dtype`.
    pub cx: Cx,
    /// Seconds that opening the weights took.
    pub load_seconds: f64,
    /// The folder with the weights.
    folder: PathBuf,
}

impl LoadedModel {
    /// Opens the model in `folder`, with the LoRA adapter in the folder `adapter` if there is one.
    pub fn open_with_adapter(
        folder: &Path,
        adapter: Option<&Path>,
        config: &ModelConfig,
        quantization: Quantization,
        common: &CommonOptions,
    ) -> Result<Self> {
        let place = Some(WeightLocation::Mapped);
        Self::open_on_device(&open_device(common)?, folder, adapter, config, quantization, place, None, common)
    }

    /// Opens the model in `folder` on a device that is already open, with the LoRA adapter in the folder `adapter` if
    /// there is one. If `place` is `None`, the weights are copied if their files take at most half of the device's
    /// free memory. With `parallel`, opens only this process's part of the decoder.
    #[expect(clippy::too_many_arguments, reason = "each argument is an option of the command line or a file")]
    pub fn open_on_device(
        device: &Device,
        folder: &Path,
        adapter: Option<&Path>,
        config: &ModelConfig,
        quantization: Quantization,
        place: Option<WeightLocation>,
        parallel: Option<&TensorParallel>,
        common: &CommonOptions,
    ) -> Result<Self> {
        let begun = Instant::now();
        let dtype = activation_dtype(common);
        let mut is_copied = false;
        let weights = trace::span("load", || -> Result<_> {
            let files = Checkpoint::open(folder)?;
            is_copied = match place {
                Some(place) => place == WeightLocation::Copied,
                // This also holds if several processes divide the model: each copies its part, so together they have
                // about one copy.
                None => device.free_bytes().is_some_and(|free| files.bytes() <= free / 2),
            };
            let files = files.with_copied_weights(is_copied);
            let adapter = adapter.map(Adapter::open).transpose()?;
            adapter.iter().try_for_each(|adapter| adapter.check(config))?;
            let (files, config) = match &adapter {
                Some(adapter) => adapter.replace_tensors(files, config)?,
                None => (files, config.clone()),
            };
            let base = QwenVl::open_quantized(device, &files, &config, dtype, quantization, parallel)?;
            Ok(match &adapter {
                Some(adapter) => base.with_adapter(device, dtype, AdapterSource::Files(adapter), false)?,
                None => base,
            })
        })?;
        trace::start_recording_launches(device, dtype);
        let cx = Cx::inference(device, dtype);
        Ok(Self { weights, is_copied, cx, load_seconds: begun.elapsed().as_secs_f64(), folder: folder.to_path_buf() })
    }

    /// Returns the error of a failed generation. If the logits are NaN because a weight is NaN, the message names
    /// this weight. The check reads all weights, so it is made only after a failure.
    pub fn generation_error(&self, e: Error) -> anyhow::Error {
        let cause = match e.kind {
            Kind::NotANumber => Checkpoint::open(&self.folder).and_then(|files| files.check_values()).err(),
            _ => None,
        };
        cause.map_or_else(|| e.into(), anyhow::Error::from)
    }
}

/// Opens the device that `--device` names. Without `--products`, its forward products are batch invariant where kernels
/// of this program support them.
pub fn open_device(common: &CommonOptions) -> Result<Device> {
    open_device_with_products(common, MatmulImplementation::ByWaveShare { batch_invariant: true })
}

/// Does the same as [`open_device`], with the choice of the code for matrix products that holds without `--products`.
pub fn open_device_with_products(common: &CommonOptions, default: MatmulImplementation) -> Result<Device> {
    let device = common.device()?;
    if common.products.is_some() && !matches!(device, common::DeviceName::Cuda(_)) {
        let help = "remove this option, or give --device cuda";
        return Err(usage_error(
            "--products",
            "chooses the matrix product implementation of device cuda, but this is another device",
            help,
        ));
    }
    match device {
        common::DeviceName::Cpu => Ok(Device::cpu(common.threads()?)),
        common::DeviceName::Cuda(number) => {
            let products = common.products.map(common::MatrixProductsName::to_products);
            Ok(Device::cuda_with_matmul_implementation(number, products.unwrap_or(default))?)
        }
        common::DeviceName::Sim => Ok(Device::sim(SimOptions {
            interleavings: common.interleavings.unwrap_or(1),
            seed: common.seed(),
            threads: common.threads()?,
            ..SimOptions::default()
        })?),
        common::DeviceName::Dry => Err(usage_error(
            "--device",
            "dry computes nothing",
            "run reel plan, which predicts memory and time on this device",
        )),
    }
}

/// Returns the default of `--batch-size`: the maximum number of completions that decode together.
pub fn default_batch_size(device: &Device) -> usize {
    device.capabilities().decode_batch_size
}

/// Returns the bytes for the KV cache: half of the free memory. The other half is for the prefill of prompts, the
/// activations of the decoder and of the vision tower.
pub fn default_kv_bytes(device: &Device) -> u64 {
    kv_bytes_of_free(device, device.free_bytes())
}

/// Returns the bytes of a server's KV cache if no option sets them: half of the device's free memory `free`. On a
/// CPU, whose memory other processes use too, the cache is limited to 4096 tokens for each of the `batch` completions
/// that decode together, but has room for at least one request of maximum length.
pub fn serving_kv_bytes(device: &Device, free: Option<u64>, text: &TextConfig, dtype: DType, batch: usize) -> u64 {
    let half = kv_bytes_of_free(device, free);
    if device.capabilities().own_memory {
        return half;
    }
    let token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * dtype.size();
    let tokens = (batch * SERVED_TOKENS_PER_COMPLETION).max(text.max_position_embeddings);
    half.min((tokens * token) as u64)
}

/// Like [`default_kv_bytes`], for a device with `free` bytes of free memory; `None` if the free memory is unknown.
fn kv_bytes_of_free(device: &Device, free: Option<u64>) -> u64 {
    let half = free.map_or(DEFAULT_KV_BYTES, |free| free / 2);
    device.capabilities().max_kv_bytes.map_or(half, |most| most.min(half))
}

/// Returns the dtype of activations: `--dtype`, else bf16 on cuda and f32 on other devices.
pub fn activation_dtype(common: &CommonOptions) -> DType {
    match common.dtype {
        Some(common::DtypeName::Bf16) => DType::BF16,
        Some(common::DtypeName::F32) => DType::F32,
        None if matches!(common.device(), Ok(common::DeviceName::Cuda(_))) => DType::BF16,
        None => DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use reel_device::Kernels;
    use reel_model::init::{InitOptions, Preset, preset_config};

    use super::*;

    #[test]
    fn a_server_on_a_cpu_takes_a_limited_memory_and_one_on_a_gpu_half() {
        let (cpu, gib) = (Device::cpu(1), 1u64 << 30);
        let options = InitOptions { preset: Preset::B3, layers: None, vocab: None, dtype: None, seed: 0 };
        let text = preset_config(&options).unwrap().text;
        let bytes = |device, free: u64, batch| serving_kv_bytes(device, Some(free), &text, DType::BF16, batch);
        // 36 layers with 2 key heads and 2 value heads of 128 bf16 numbers: 36 KiB per token.
        assert_eq!(bytes(&cpu, 1000 * gib, 32), (32 * 4096 * 36) << 10);
        assert_eq!(bytes(&cpu, 4 * gib, 32), 2 * gib);
        // With a batch of 1, one request of maximum length (128000 tokens) must still fit.
        assert_eq!(bytes(&cpu, 1000 * gib, 1), (128_000 * 36) << 10);
        assert_eq!(bytes(&Device::dry(Kernels::Cuda), 1000 * gib, 32), 500 * gib);
    }
}
