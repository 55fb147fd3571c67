//! Tests of which sequences share a tile in decoding, and of how often a block of keys is read. Tests of
//! [`crate::paged_attention`] check that sharing a tile does not change results.

use super::*;

const HEADS_PER_KEY_HEAD: usize = 7;
const KV_HEADS: usize = 2;

/// A sequence: its pages of 64 tokens, and its number of keys.
type Sequence<'a> = (&'a [i32], usize);

/// Makes the arrays of a sequence that decodes one token, with null addresses.
fn decoded((table, keys): Sequence) -> SequenceArrays<f32> {
    SequenceArrays {
        q: null_mut(),
        o: null_mut(),
        lse: null_mut(),
        k: null_mut(),
        v: null_mut(),
        key_stride: 64 * KV_HEADS,
        prefix: (0, 0),
        table: Some((table, BLOCK_KEYS)),
        queries: 1,
        keys,
        causal: true,
        heads: HEADS_PER_KEY_HEAD * KV_HEADS,
        kv_heads: KV_HEADS,
        head_dim: 64,
        scale: 1.0,
    }
}

/// Returns the number of sequences of each tile.
fn tile_sizes(threads: usize, sequences: &[Sequence]) -> Vec<usize> {
    let mut tiles = tiles_of(&Team::new(threads), sequences.len(), KV_HEADS, |seq| decoded(sequences[seq]));
    tiles.sort_by_key(|tile| tile.sequences.start);
    assert!(tiles.iter().all(|tile| (tile.first, tile.rows) == (0, HEADS_PER_KEY_HEAD)));
    tiles.into_iter().map(|tile| tile.sequences.len()).collect()
}

#[test]
fn neighbours_with_the_same_first_block_of_keys_have_a_tile_together() {
    let [a, b, c]: [Sequence; 3] = [(&[5, 6, 7], 150), (&[5, 9, 8], 190), (&[4, 6, 7], 150)];
    assert_eq!(tile_sizes(1, &[a, b, a, c, a]), [3, 1, 1]);
    // 64 keys are a whole block, 63 are not.
    let [whole, part]: [Sequence; 2] = [(&[5], 64), (&[5], 63)];
    assert_eq!(tile_sizes(1, &[a, whole, part, part]), [2, 1, 1]);
}

#[test]
fn a_tile_has_no_more_sequences_than_leave_work_for_every_thread() {
    let short: [Sequence; 8] = [(&[5, 6, 7], 150); 8];
    assert_eq!(tile_sizes(1, &short), [8]);
    // Two key heads are two tasks.
    assert_eq!(tile_sizes(2, &short), [8]);
    assert_eq!(tile_sizes(4, &short), [4, 4]);
    assert_eq!(tile_sizes(5, &short), [2, 3, 3]);
    assert_eq!(tile_sizes(16, &short), [1; 8]);
    // Tasks of two segments of keys.
    let pages: Vec<i32> = (0..10).collect();
    assert_eq!(tile_sizes(4, &[(&pages[..], 600); 8]), [8]);
    // 18 sequences of 7 rows are 126 rows, and a tile has at most 128.
    assert_eq!(tile_sizes(1, &[(&pages[..], 600); 20]), [10, 10]);
}

#[test]
fn a_tile_reads_a_block_once_for_all_sequences_that_share_it() {
    let sequences = [decoded((&[1, 2, 3], 192)), decoded((&[1, 2, 4], 130)), decoded((&[1, 5], 100))];
    let tile = RowTile { sequences: &sequences, first: 0, rows: HEADS_PER_KEY_HEAD, next: None };
    let visits: Vec<_> = std::iter::successors(tile.find_visit(0, 0), |&visit| tile.visit_after(visit))
        .map(|visit| (visit.start, visit.first_sequence, visit.sequences))
        .collect();
    assert_eq!(visits, [(0, 0, 3), (64, 0, 2), (64, 2, 1), (128, 0, 1), (128, 1, 1)]);
}
