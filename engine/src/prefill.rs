//! Prefill: the forward pass over a prompt, which fills its KV blocks and gives the logits of the first token.

use reel_kernels::elementwise;
use reel_model::batch::{Batch, Sequence};
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_model::text::KvCache;
use reel_runtime::ops::{KvPages, SequencePages};
use reel_runtime::{Cx, Tensor};

use crate::block_allocator::BlockAllocator;
use crate::error::Result;

/// Computes a prompt once for all of its completions. `tables` are their block tables (see
/// [`BlockAllocator::allocate_block_tables`]). The prompt's keys and values are written to the blocks of the first
/// table, and its last block, if partly filled, is copied to a block of each other table. Returns the logits `[1,
/// vocab]` of the token after the prompt.
pub(crate) fn prefill(
    model: &Qwen25Vl,
    cx: &Cx,
    cache: &KvCache,
    prompt: &Sequence,
    tables: &[Vec<i32>],
) -> Result<Tensor> {
    let tokens = prompt.input_ids.len();
    let blocks = &tables[0][..BlockAllocator::blocks_for_tokens(tokens)];
    let batch = Batch::new(cx.device(), &model.config, &[*prompt], "prompt")?;
    let pages = KvPages::new(cx.device(), &[SequencePages { cached_tokens: 0, new_tokens: tokens, blocks }])?;
    let options = ForwardOptions { cache: Some((cache, &pages)), ..Default::default() };
    let last_hidden = model.forward(cx, &batch, options)?.rows(tokens - 1, 1)?;
    let logits = model.logits(cx, &last_hidden)?;
    let (full_blocks, rest) = (tokens / KvPages::BLOCK_TOKENS, tokens % KvPages::BLOCK_TOKENS);
    if rest > 0 {
        for table in &tables[1..] {
            copy_block(cx, cache, blocks[full_blocks], table[full_blocks], rest)?;
        }
    }
    Ok(logits)
}

/// Copies the keys and values of the first `tokens` tokens of a KV block. The rest of the block is not copied,
/// because it is not initialised.
fn copy_block(cx: &Cx, cache: &KvCache, from: i32, to: i32, tokens: usize) -> Result<()> {
    for tensor in cache.tensors() {
        let (src, dst) = (tensor.rows(from as usize, 1)?, tensor.rows(to as usize, 1)?);
        let bytes = (src.bytes() / KvPages::BLOCK_TOKENS * tokens) as u64;
        let params = elementwise::CopyParams { src: src.addr(), dst: dst.addr(), bytes };
        cx.launch(&elementwise::copy(&params))?;
    }
    Ok(())
}
