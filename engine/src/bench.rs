//! Timed passes of a model: loading and the tokenizer stay outside.

use std::time::Instant;

use reel_model::batch::{Batch, Sequence};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::text::KvCache;
use reel_runtime::Cx;
use reel_runtime::ops::KvPages;

use crate::error::Result;
use crate::kv_blocks::Blocks;

/// A text of `tokens` ids and its positions; which ids does not matter to the time.
fn text(tokens: usize) -> (Vec<i64>, Vec<i64>) {
    ((0..tokens as i64).map(|i| (i * 37) % 97).collect(), (0..tokens as i64).collect())
}

/// Seconds of each of `rounds` passes over `batch` sequences of `tokens` tokens, up to the logits of each one's last.
///
/// # Errors
/// Those of the model.
pub fn prefill(model: &Qwen25Vl, cx: &Cx, tokens: usize, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let (ids, at) = text(tokens);
    let prompt = Sequence { input_ids: &ids, position_ids: [&at, &at, &at], ..Sequence::default() };
    let need = Blocks::needed(tokens);
    let held: Vec<Vec<i32>> = (0..batch).map(|b| ((b * need) as i32..((b + 1) * need) as i32).collect()).collect();
    let lengths: Vec<(usize, usize, &[i32])> = held.iter().map(|h| (0, tokens, &h[..])).collect();
    let cache = KvCache::new(cx.device(), &model.config.text, cx.dtype(), need * batch)?;
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            let packed = Batch::new(cx.device(), &model.config, cx.dtype(), &vec![prompt; batch], "bench")?;
            let pages = KvPages::new(cx.device(), &lengths)?;
            let hidden = model.hidden_cached(cx, &packed, &cache, &pages)?;
            for last in (1..=batch).map(|b| b * tokens - 1) {
                model.logits(cx, &hidden.rows(last, 1)?)?.to_f32()?;
            }
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}

/// Seconds of each of `rounds` steps that add one token to each of `batch` sequences, which hold `context` tokens at first.
///
/// # Errors
/// Those of the model.
pub fn decode(model: &Qwen25Vl, cx: &Cx, context: usize, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let need = Blocks::needed(context + rounds);
    let cache = KvCache::new(cx.device(), &model.config.text, cx.dtype(), need * batch)?;
    let held: Vec<Vec<i32>> = (0..batch).map(|b| ((b * need) as i32..((b + 1) * need) as i32).collect()).collect();
    (0..rounds)
        .map(|round| {
            let start = Instant::now();
            let (id, at) = ([round as i64 % 97], [(context + round) as i64]);
            let one = Sequence { input_ids: &id, position_ids: [&at, &at, &at], ..Sequence::default() };
            let packed = Batch::new(cx.device(), &model.config, cx.dtype(), &vec![one; batch], "bench")?;
            let lengths: Vec<(usize, usize, &[i32])> = held.iter().map(|h| (context + round, 1, &h[..])).collect();
            let pages = KvPages::new(cx.device(), &lengths)?;
            let hidden = model.hidden_cached(cx, &packed, &cache, &pages)?;
            model.logits(cx, &hidden)?.to_f32()?;
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}
