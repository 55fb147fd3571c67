//! Hashes of KV blocks, by which a later prompt that begins with the same tokens finds their keys and values.
//!
//! ```text
//! hash(block i) = SHA-256(hash(block i - 1), ids, M-RoPE positions and media of the 64 tokens of block i)
//! ```
//!
//! For block 0, the id of the LoRA adapter takes the place of the previous block's hash.
//!
//! The media of a token is the content hash of its image or video; the tokens before determine which vision token of
//! the image or video it is. So equal hashes mean equal keys and values, as long as the weights are the same.

use reel_model::chunked_prompt::PromptTokens;
use reel_runtime::ops::KvPages;
use sha2::{Digest, Sha256};

use crate::adapters::AdapterId;

/// The hash of all tokens of a sequence up to the end of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash([u8; 32]);

impl BlockHash {
    #[cfg(test)]
    pub(crate) fn hash_of_bytes(bytes: &[u8]) -> BlockHash {
        BlockHash(Sha256::digest(bytes).into())
    }
}

/// The tokens of a sequence: the prompt's tokens, then the generated tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceTokens<'a> {
    pub(crate) prompt: &'a PromptTokens,
    /// The ids of all tokens: first those of the prompt, then the generated ones.
    pub(crate) ids: &'a [i32],
    /// The offset from a generated token's index to its position, on each axis.
    pub(crate) rope_delta: i64,
    /// The LoRA adapter that computes the keys and values.
    pub(crate) adapter: Option<AdapterId>,
}

impl SequenceTokens<'_> {
    /// The position of token `index` on an axis: 0 time, 1 height, 2 width.
    pub(crate) fn position(&self, axis: usize, index: usize) -> i32 {
        let generated = || (index as i64 + self.rope_delta) as i32;
        self.prompt.positions[axis].get(index).copied().unwrap_or_else(generated)
    }

    /// Extends `hashes`, which has the hashes of a sequence's first blocks, to all blocks that the first `tokens`
    /// tokens fill.
    pub(crate) fn extend_block_hashes(&self, hashes: &mut Vec<BlockHash>, tokens: usize) {
        const N: usize = KvPages::BLOCK_TOKENS;
        for block in hashes.len()..tokens / N {
            let mut hash = Sha256::new();
            match hashes.last() {
                Some(parent) => hash.update(parent.0),
                None => hash.update(self.adapter.map_or(0, |id| id.0).to_le_bytes()),
            }
            let range = block * N..(block + 1) * N;
            hash.update(bytemuck::cast_slice::<i32, u8>(&self.ids[range.clone()]));
            for axis in 0..3 {
                range.clone().for_each(|i| hash.update(self.position(axis, i).to_le_bytes()));
            }
            let mut last = None;
            for index in self.prompt.vision_index.iter().take(range.end).skip(range.start).filter(|&&i| i >= 0) {
                let item = self.prompt.media.partition_point(|(first, _)| first <= index);
                if last != Some(item) {
                    hash.update(self.prompt.media[item - 1].1);
                    last = Some(item);
                }
            }
            hashes.push(BlockHash(hash.finalize().into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(prompt: &PromptTokens, ids: &[i32], rope_delta: i64) -> Vec<BlockHash> {
        let mut hashes = Vec::new();
        SequenceTokens { prompt, ids, rope_delta, adapter: None }.extend_block_hashes(&mut hashes, ids.len());
        hashes
    }

    /// A prompt with an image of 40 vision tokens from token 30 on, then a second image of 40 vision tokens from token
    /// 100 on.
    fn prompt(tokens: usize) -> PromptTokens {
        let ids: Vec<i32> = (0..tokens as i32).map(|i| i * 7 % 50).collect();
        let axis: Vec<i32> = (0..tokens as i32).collect();
        let image = |i: usize| match i {
            30..70 => i as i32 - 30,
            100..140 => i as i32 - 60,
            _ => -1,
        };
        PromptTokens {
            ids,
            positions: [axis.clone(), axis.clone(), axis],
            vision_index: (0..tokens).map(image).collect(),
            media: vec![(0, [1; 32]), (40, [2; 32])],
        }
    }

    proptest! {
        /// Checks that a change of one token changes the hashes of its block and of all later blocks, but of no
        /// earlier block.
        #[test]
        fn a_change_reaches_all_later_blocks(at in 0usize..256, kind in 0usize..4) {
            let before = prompt(256);
            let mut after = before.clone();
            match kind {
                0 => after.ids[at] += 1,
                axis => after.positions[axis - 1][at] += 1,
            }
            let (a, b) = (hashes(&before, &before.ids, 0), hashes(&after, &after.ids, 0));
            for block in 0..4 {
                prop_assert_eq!(a[block] == b[block], block < at / 64, "block {} of token {}", block, at);
            }
        }
    }

    #[test]
    fn media_count_from_their_first_token_on() {
        let before = prompt(200);
        let mut after = before.clone();
        after.media[1].1 = [3; 32];
        let (a, b) = (hashes(&before, &before.ids, 0), hashes(&after, &after.ids, 0));
        assert_eq!([a[0] == b[0], a[1] == b[1], a[2] == b[2]], [true, false, false]);
    }

    #[test]
    fn adapters_have_hashes_of_their_own() {
        let prompt = prompt(192);
        let of = |adapter| {
            let mut hashes = Vec::new();
            let tokens = SequenceTokens { prompt: &prompt, ids: &prompt.ids, rope_delta: 0, adapter };
            tokens.extend_block_hashes(&mut hashes, 192);
            hashes
        };
        let (base, first, second) = (of(None), of(Some(AdapterId(1))), of(Some(AdapterId(2))));
        for block in 0..3 {
            assert!(base[block] != first[block] && base[block] != second[block] && first[block] != second[block]);
        }
    }

    #[test]
    fn generated_tokens_have_the_positions_of_a_prompt_with_them() {
        let (short, long) = (prompt(150), prompt(192));
        assert_eq!(hashes(&short, &long.ids, 0), hashes(&long, &long.ids, 0));
        assert_ne!(hashes(&short, &long.ids, 1)[2], hashes(&long, &long.ids, 0)[2]);
        assert_eq!(hashes(&short, &long.ids, 1)[1], hashes(&long, &long.ids, 0)[1]);
    }
}
