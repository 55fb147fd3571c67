//! Into how many parts the backward pass on Hopper divides the work of a tile of keys (`backward_parts.cuh`).

use super::BwdParams;
use super::plan::KEYS_PER_TILE;

/// The rule for the number of parts. Multiprocessors are equally busy if no part takes longer than all work divided by
/// the number of multiprocessors. Each part has a cost: it writes its sums in f32, and the last one reads them.
#[derive(Clone, Copy, Debug)]
pub struct KeyParts {
    /// Tiles of keys of a sequence and all its key heads that need no division.
    pub undivided_tiles: u32,
    /// Least mean number of visits (64 queries of a head) of the parts of a causal sequence.
    pub part_visits: u32,
}

impl KeyParts {
    /// The rule of all launches but those of checks. On 132 multiprocessors, with `n` tiles of keys of each of `k` key
    /// heads and groups of `g` heads, the longest tile has `2 n g` visits. All visits, `k g n (n + 1)`, and the
    /// gradient of q, which needs 0.75 times as many products, are the work of `1.75 k g n (n + 1) / 132` visits for
    /// each multiprocessor. This is as much as that of the longest tile if `k (n + 1)` is 151.
    ///
    /// 32 visits take 47 us on an H200 (computed from the time of a prototype); to write and read the sums of a part
    /// takes 6 to 8 us.
    pub const OF_TRAINING: KeyParts = KeyParts { undivided_tiles: 151, part_visits: 32 };

    /// Returns the number of parts of each tile of a sequence that has `tiles` tiles of keys. It does not depend on
    /// other sequences.
    pub fn count(self, tiles: u32, heads: u32, kv_heads: u32) -> u32 {
        let group = heads / kv_heads.max(1);
        let balanced = self.undivided_tiles.div_ceil((tiles * kv_heads).max(1));
        let worthwhile = (tiles + 1) * group / self.part_visits;
        balanced.min(worthwhile).min(group).max(1)
    }

    /// Returns the number of query heads of each part, of which the first parts have the most.
    pub fn heads_of_parts(self, tiles: u32, heads: u32, kv_heads: u32) -> impl Iterator<Item = u32> {
        let (parts, group) = (self.count(tiles, heads, kv_heads), heads / kv_heads.max(1));
        (0..parts).map(move |part| ((part + 1) * group).div_ceil(parts) - (part * group).div_ceil(parts))
    }

    /// Returns the largest number of parts that a tile of these sequences may have. If there are several sequences, all
    /// but the longest may have any smaller length.
    pub(super) fn max_count(self, p: &BwdParams) -> u32 {
        let longest = p.max_seqlen.div_ceil(KEYS_PER_TILE);
        let shortest = if p.seqs == 1 { longest } else { 0 };
        (shortest..=longest).map(|tiles| self.count(tiles, p.heads, p.kv_heads)).max().unwrap_or(1)
    }

    /// Returns the bytes of the workspace; backward_parts.cuh describes its arrays.
    pub(super) fn workspace_bytes(self, p: &BwdParams) -> usize {
        let (parts, rows) = (self.max_count(p) as usize, p.tokens as usize * p.kv_heads as usize);
        let sums = parts * rows * 2 * p.head_dim as usize * size_of::<f32>();
        16 + if parts > 1 { (4 * rows).next_multiple_of(16) + sums } else { 0 }
    }
}
