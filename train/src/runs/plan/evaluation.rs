//! Adds the memory of an evaluation during training (`--eval-steps`) to a plan.
//!
//! An evaluation runs between two steps, when the run holds only weights and optimizer state, and uses the free memory
//! for its KV cache. A plan counts the minimum that an evaluation needs: the KV cache of one prompt with an answer of
//! maximum length, and the buffers of all decode slots.

use crate::Result;
use crate::options::RunOptions;
use reel_device::{DType, Device};
use reel_engine::{Engine, GenerationRequest};
use reel_input::ModelInput;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;
use reel_runtime::ops::KvPages;

use super::{Plan, keep_highest_peak};

/// Returns the plan with the memory of an evaluation, which is one of the parts of a run that need all weights at a
/// time. If an evaluation needs more memory than a step, the plan's memory becomes that of the evaluation. `prompt`
/// is the longest row of the plan, which stands for the evaluation's question. Weights and optimizer state must be
/// allocated on the dry device.
pub(super) fn add_evaluation_memory(
    mut plan: Plan,
    options: &RunOptions,
    model: &QwenVl,
    prompt: Option<&ModelInput>,
    device: &Device,
    dtype: DType,
) -> Result<Plan> {
    let Some(prompt) = prompt.filter(|_| options.evaluation.has_benchmarks()) else { return Ok(plan) };
    device.reset_peak();
    let slots = options.evaluation.eval_batch_size.unwrap_or(device.capabilities().decode_batch_size);
    let engine = Engine::new(model, &Cx::inference(device, dtype))?.max_slots(slots);
    let text = &model.config.text;
    let tokens = (prompt.len() + options.evaluation.eval_max_new_tokens).next_multiple_of(KvPages::BLOCK_TOKENS);
    let token_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * dtype.size();
    let mut batch = engine.continuous_batch((tokens * token_bytes) as u64)?;
    batch.add(0, GenerationRequest { max_new_tokens: 2, ..GenerationRequest::new(prompt.clone()) })?;
    while !batch.is_idle() {
        batch.step(&mut |_| {})?;
    }
    let memory = device.memory();
    keep_highest_peak(&mut plan.divided.memory_with_all, device);
    plan.divided.are_evaluated = true;
    Ok(if memory.peak > plan.memory.peak { Plan { memory, ..plan } } else { plan })
}
