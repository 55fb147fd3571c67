//! Times the prefill and decode steps of a loaded model for `reel bench`. Loading the model and tokenizing are not
//! timed.

use std::collections::VecDeque;
use std::time::Instant;

use reel_model::TokenId;
use reel_model::batch::{Batch, Sequence};
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_model::text::KvCache;
use reel_runtime::ops::{DecodeSlot, KvPages, RowSampling, SequencePages};
use reel_runtime::{Cx, Tensor};

use crate::block_allocator::BlockAllocator;
use crate::error::Result;
use crate::running_batch::{BatchCapacity, RunningBatch};

/// Decode steps that run before the timed steps: the first one compiles the kernels, the second one captures the CUDA
/// graph.
const WARM_UP_STEPS: usize = 2;

/// Returns `tokens` arbitrary token ids and their positions. The time of a forward pass does not depend on the ids.
fn arbitrary_prompt(tokens: usize) -> (Vec<TokenId>, Vec<i64>) {
    ((0..tokens as u32).map(|i| (i * 37) % 97).collect(), (0..tokens as i64).collect())
}

/// Block tables of `sequences` sequences with `blocks` blocks each. No two sequences share a block.
fn block_tables(sequences: usize, blocks: usize) -> Vec<Vec<i32>> {
    (0..sequences).map(|i| ((i * blocks) as i32..((i + 1) * blocks) as i32).collect()).collect()
}

/// Times `rounds` forward passes over `batch` prompts of `tokens` tokens, with the logits of each prompt's last token.
/// Returns the seconds of each pass.
pub fn time_prefill(model: &Qwen25Vl, cx: &Cx, tokens: usize, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let (ids, positions) = arbitrary_prompt(tokens);
    let prompt =
        Sequence { input_ids: &ids, position_ids: [&positions, &positions, &positions], ..Sequence::default() };
    let blocks = BlockAllocator::blocks_for_tokens(tokens);
    let tables = block_tables(batch, blocks);
    let sequences: Vec<SequencePages> =
        tables.iter().map(|blocks| SequencePages { cached_tokens: 0, new_tokens: tokens, blocks }).collect();
    let cache = KvCache::new(cx.device(), &model.config.text, cx.dtype(), blocks * batch)?;
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            let packed = Batch::new(cx.device(), &model.config, &vec![prompt; batch], "bench")?;
            let pages = KvPages::new(cx.device(), &sequences)?;
            let options = ForwardOptions { cache: Some((&cache, &pages)), ..Default::default() };
            let hidden = model.forward(cx, &packed, options)?;
            for last in (1..=batch).map(|b| b * tokens - 1) {
                model.logits(cx, &hidden.rows(last, 1)?)?.to_f32()?;
            }
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}

/// Times `rounds` decode steps over `batch` sequences, which have `context` tokens at first. As in the engine, a step
/// is a captured graph, and an asynchronous device enqueues it before the host has read the tokens of the step
/// before. Returns the seconds of each step. Two steps of warm-up are neither timed nor part of the device's profile.
pub fn time_decode(model: &Qwen25Vl, cx: &Cx, context: usize, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let (device, limit) = (cx.device(), context + WARM_UP_STEPS + rounds + 1);
    let blocks = BlockAllocator::blocks_for_tokens(limit);
    let capacity =
        BatchCapacity { slots: batch, blocks_per_slot: blocks, history: 0, blocks: blocks * batch, banned_tokens: 0 };
    let mut running = RunningBatch::new(model, cx, &Tensor::from_i32(device, &[0], &[])?, capacity, true)?;
    // The context is not prefilled, so its keys and values are set to 0: decode steps read them and need finite
    // numbers.
    running.cache().fill_with_zeros()?;
    let tables = block_tables(batch, blocks);
    let slot = |blocks| DecodeSlot {
        id: 1,
        position: context as i32,
        keys: context + 1,
        limit,
        blocks,
        draw: context as i32 + 1,
        history: &[],
    };
    let sampling = |i: usize| RowSampling { temperature: 1.0, seed: i as u64, ..RowSampling::default() };
    let (slots, samplings): (Vec<DecodeSlot>, Vec<RowSampling>) =
        tables.iter().enumerate().map(|(i, table)| (slot(&table[..]), sampling(i))).unzip();
    running.assign_slots(0, &slots, &samplings)?;
    let batch_size = running.padded_batch_size(batch);
    for _ in 0..WARM_UP_STEPS {
        running.enqueue_step(batch_size)?.wait_for_tokens()?;
    }
    device.profiler().clear();
    let lookahead = usize::from(device.is_async());
    let (mut in_flight, mut seconds, mut last) = (VecDeque::new(), Vec::with_capacity(rounds), Instant::now());
    for round in 0..rounds + lookahead {
        if round < rounds {
            in_flight.push_back(running.enqueue_step(batch_size)?);
        }
        if round >= lookahead
            && let Some(step) = in_flight.pop_front()
        {
            step.wait_for_tokens()?;
            seconds.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    }
    Ok(seconds)
}
