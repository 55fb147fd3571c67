//! Timed passes of a model: loading and the tokenizer stay outside.

use std::collections::VecDeque;
use std::time::Instant;

use reel_model::TokenId;
use reel_model::batch::{Batch, Sequence};
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_model::text::KvCache;
use reel_runtime::ops::{KvPages, Slot, SlotSampling};
use reel_runtime::{Cx, Tensor};

use crate::decode::{Capacity, Decode};
use crate::error::Result;
use crate::kv_blocks::BlockAllocator;

/// A text of `tokens` ids and its positions; which ids does not matter to the time.
fn text(tokens: usize) -> (Vec<TokenId>, Vec<i64>) {
    ((0..tokens as u32).map(|i| (i * 37) % 97).collect(), (0..tokens as i64).collect())
}

/// Seconds of each of `rounds` passes over `batch` sequences of `tokens` tokens, up to the logits of each one's last.
///
/// # Errors
/// Those of the model.
pub fn prefill(model: &Qwen25Vl, cx: &Cx, tokens: usize, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let (ids, at) = text(tokens);
    let prompt = Sequence { input_ids: &ids, position_ids: [&at, &at, &at], ..Sequence::default() };
    let need = BlockAllocator::needed(tokens);
    let held: Vec<Vec<i32>> = (0..batch).map(|b| ((b * need) as i32..((b + 1) * need) as i32).collect()).collect();
    let lengths: Vec<(usize, usize, &[i32])> = held.iter().map(|h| (0, tokens, &h[..])).collect();
    let cache = KvCache::new(cx.device(), &model.config.text, cx.dtype(), need * batch)?;
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            let packed = Batch::new(cx.device(), &model.config, &vec![prompt; batch], "bench")?;
            let pages = KvPages::new(cx.device(), &lengths)?;
            let hidden =
                model.forward(cx, &packed, ForwardOptions { cache: Some((&cache, &pages)), ..Default::default() })?;
            for last in (1..=batch).map(|b| b * tokens - 1) {
                model.logits(cx, &hidden.rows(last, 1)?)?.to_f32()?;
            }
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}

/// Steps before the measured ones: the first makes kernels and products ready, the second is recorded.
const WARM: usize = 2;

/// Seconds of each of `rounds` steps that add one sampled token to each of `batch` sequences, which hold `context` tokens at first: the
/// engine's own steps, recorded, and asked for ahead of the last one's tokens where the device runs behind the host. Two steps before
/// them are neither timed nor part of the device's profile.
///
/// # Errors
/// Those of the model.
pub fn decode(model: &Qwen25Vl, cx: &Cx, context: usize, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let (device, limit) = (cx.device(), context + WARM + rounds + 1);
    let need = BlockAllocator::needed(limit);
    let room = Capacity { rows: batch, width: need, history: 0, blocks: need * batch, banned_tokens: 0 };
    let mut decode = Decode::new(model, cx, &Tensor::from_i32(device, &[0], &[])?, room, true)?;
    // Keys that nobody computed must be numbers at least.
    decode.cache().clear()?;
    let held: Vec<Vec<i32>> = (0..batch).map(|b| ((b * need) as i32..((b + 1) * need) as i32).collect()).collect();
    let seat = |blocks| Slot {
        id: 1,
        position: context as i32,
        keys: context + 1,
        limit,
        blocks,
        draw: context as i32 + 1,
        history: &[],
    };
    let sampling = |b: usize| SlotSampling { temperature: 1.0, seed: b as u64, ..SlotSampling::default() };
    let (seats, choices): (Vec<Slot>, Vec<SlotSampling>) =
        held.iter().enumerate().map(|(b, blocks)| (seat(&blocks[..]), sampling(b))).unzip();
    decode.seat(0, &seats, &choices)?;
    let bucket = decode.bucket(batch);
    for _ in 0..WARM {
        decode.step(bucket)?.wait()?;
    }
    device.profiler().clear();
    let ahead = usize::from(device.is_async());
    let (mut asked, mut seconds, mut last) = (VecDeque::new(), Vec::with_capacity(rounds), Instant::now());
    for round in 0..rounds + ahead {
        if round < rounds {
            asked.push_back(decode.step(bucket)?);
        }
        if round >= ahead
            && let Some(step) = asked.pop_front()
        {
            step.wait()?;
            seconds.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    }
    Ok(seconds)
}
