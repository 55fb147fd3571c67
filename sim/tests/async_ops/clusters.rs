//! Tests of kernels with clusters of two blocks.

use super::common::*;
use reel_sim::exec::LaunchConfig;
use reel_sim::memory::SimMemory;

const FILE: &str = "cluster";

fn setup(memory: &mut SimMemory) -> LaunchConfig {
    let input = memory.alloc(le_bytes(&distinct_words(128)));
    let output = memory.alloc(le_bytes(&[0; 160]));
    launch_config(2, 64, Params::default().append_u64(input).append_u64(output).append_i32(0))
}

#[test]
fn cluster_blocks_exchange_shared_memory() {
    let from = distinct_words(128);
    assert_no_finding(FILE, "exchange_0", &setup, &|memory| {
        let out = output_words(memory);
        // Each block reads words of the other block's shared memory, adds one and writes the sums back; the other
        // block then outputs these words.
        let want: Vec<u32> = (0..128).map(|i| from[i / 64 * 64 + ((i % 64) ^ 9)].wrapping_add(1)).collect();
        assert_eq!(out[..128], want);
        assert_eq!(out[128], from.iter().filter(|w| *w & 1 != 0).count() as u32);
    });
    (1..=4).for_each(|variant| assert_planted_bug_is_reported(FILE, "exchange", variant, &setup));
}

#[test]
fn cluster_blocks_must_not_exit_early() {
    let from = distinct_words(128);
    assert_no_finding(FILE, "leave_0", &setup, &|memory| {
        assert_eq!(output_words(memory)[..128], (0..128).map(|i| from[i ^ 64]).collect::<Vec<u32>>());
    });
    assert_planted_bug_is_reported(FILE, "leave", 1, &setup);
}

#[test]
fn st_async_reaches_the_peer() {
    let from = distinct_words(128);
    assert_no_finding(FILE, "post_0", &setup, &|memory| {
        let out = output_words(memory);
        // Each output combines two words: one that the other block sent, and one of the block's own that the other
        // block sent back.
        let want: Vec<u32> = (0..128)
            .map(|i| {
                let (rank, t) = (i / 64, i % 64);
                from[64 * (1 - rank) + 63 - t].wrapping_mul(3).wrapping_add(from[64 * rank + t])
            })
            .collect();
        assert_eq!(out[..128], want);
        assert_eq!(out[128..130], [2016, 2016]);
    });
    (1..=4).for_each(|variant| assert_planted_bug_is_reported(FILE, "post", variant, &setup));
}

#[test]
fn multicast_loads_reach_all_blocks() {
    let from = distinct_words(128);
    assert_no_finding(FILE, "multicast_0", &setup, &|memory| {
        assert_eq!(output_words(memory)[..128], (0..128).map(|i| from[i % 64]).collect::<Vec<u32>>());
    });
    (1..=2).for_each(|variant| assert_planted_bug_is_reported(FILE, "multicast", variant, &setup));
}
