//! Tests of kernels with `cp.async`.

use super::common::*;
use reel_sim::memory::SimMemory;

const FILE: &str = "cp_async";

#[test]
fn staged_copies() {
    let setup = word_buffers_setup(512, 512, 128, 0);
    let from = distinct_words(512);
    assert_no_finding(FILE, "stage_0", &setup, &|memory| {
        let want: Vec<u32> = (0..512).map(|i| from[4 * ((i / 4 + 33) % 128) + i % 4]).collect();
        assert_eq!(output_words(memory), want);
    });
    (1..=4).for_each(|variant| assert_planted_bug_is_reported(FILE, "stage", variant, &setup));
}

#[test]
fn pipelined_copies() {
    let setup = word_buffers_setup(128 * 7, 128, 128, 7);
    let from = distinct_words(128 * 7);
    assert_no_finding(FILE, "pipeline_0", &setup, &|memory| {
        let sum = |t: usize| (0..7).fold(0u32, |sum, i| sum.wrapping_mul(3).wrapping_add(from[128 * i + (t ^ 37)]));
        assert_eq!(output_words(memory), (0..128).map(sum).collect::<Vec<u32>>());
    });
    (1..=3).for_each(|variant| assert_planted_bug_is_reported(FILE, "pipeline", variant, &setup));
}

#[test]
fn partial_rows_are_filled_with_zeros() {
    for bytes in [0, 4, 8, 20, 1003, 2048] {
        let setup = move |memory: &mut SimMemory| {
            let input = memory.alloc(le_bytes(&distinct_words(512))[..bytes.max(16)].to_vec());
            let output = memory.alloc_uninitialized(2048);
            launch_config(1, 128, Params::default().append_u64(input).append_u64(output).append_i32(bytes as i32))
        };
        let mut want = le_bytes(&distinct_words(512));
        want[bytes..].fill(0);
        assert_no_finding(FILE, "partial_0", &setup, &|memory| {
            assert_eq!(le_bytes(&output_words(memory)), want);
        });
        if bytes == 1003 {
            assert_planted_bug_is_reported(FILE, "partial", 1, &setup);
        }
    }
}

#[test]
fn copies_arrive_on_an_mbarrier() {
    let setup = word_buffers_setup(256, 256, 128, 0);
    let from = distinct_words(256);
    let check = |memory: &SimMemory| {
        let want: Vec<u32> = (0..256).map(|i| from[(i + 66) % 256]).collect();
        assert_eq!(output_words(memory), want);
    };
    assert_no_finding(FILE, "arrival_0", &setup, &check);
    assert_no_finding(FILE, "counted_0", &setup, &check);
    (1..=2).for_each(|variant| assert_planted_bug_is_reported(FILE, "arrival", variant, &setup));
}

#[test]
fn reports_overwriting_the_source_of_a_pending_copy() {
    let setup = word_buffers_setup(128, 128, 128, 0);
    assert_no_finding(FILE, "overwrite_0", &setup, &|memory| {
        assert_eq!(output_words(memory), (0..128).collect::<Vec<u32>>())
    });
    assert_planted_bug_is_reported(FILE, "overwrite", 1, &setup);
}
