//! A wgmma descriptor that contains the block's rank in its cluster, compared with the results of an H200.

use super::common::*;
use reel_sim::exec::{ExecOptions, LaunchConfig};
use reel_sim::finding::FindingKind;
use reel_sim::memory::SimMemory;

const FILE: &str = "rank_in_shared_address";

fn setup(memory: &mut SimMemory) -> LaunchConfig {
    let output = memory.alloc_uninitialized(4 * 2 * 64 * 128);
    let addresses = memory.alloc(le_bytes(&[0; 4]));
    launch_config(2, 128, Params::default().append_u64(output).append_u64(addresses))
}

/// Returns element (k, n) of B, which is also element (k, n) of the correct product.
fn element(k: usize, n: usize) -> f32 {
    ((k * 128 + n) % 251) as f32
}

/// Checks the addresses that the blocks have stored. Also checks that element (r, n) of the product in the block of
/// rank `rank` equals element (k, n) of B, where k = `row(rank, r % 16, n)`. Elements with k > 15 are outside of B and
/// are not compared.
fn check(memory: &SimMemory, row: impl Fn(usize, usize, usize) -> usize) {
    assert_eq!(buffer_words(memory, 1), [0x400, 0, 0x0100_0400, 1]);
    let got = buffer_floats(memory, 0);
    for (at, got) in got.into_iter().enumerate() {
        let (rank, r, n) = (at / 8192, at / 128 % 64, at % 128);
        let k = row(rank, r % 16, n);
        assert!(k > 15 || got == element(k, n), "rank {rank}, row {r}, column {n}: {got}");
    }
}

#[test]
fn masked_addresses_give_right_products_in_every_block() {
    assert_no_finding(FILE, "right", &setup, &|memory| check(memory, |_, r, _| r));
}

#[test]
fn a_rank_in_a_descriptor_is_reported_and_shifts_what_the_block_reads() {
    let program = load_program(FILE);
    for seed in 0..8 {
        let options = ExecOptions { seed, ..early_deadlock_options() };
        let (outcome, memory) = run_once(&program, "wrong", &options, &setup);
        // On the GPU, a leading byte offset that is 256 bytes too large makes columns 64 to 127 read B two rows further
        // on.
        check(&memory, |rank, r, n| if rank == 1 && n >= 64 { r + 2 } else { r });
        let found = outcome.findings.into_list();
        let rank = found.iter().find(|f| f.kind == FindingKind::Wgmma).expect("a finding");
        assert_eq!((rank.line, rank.block), (33, [1, 0, 0]), "{rank:?}");
        for part in ["operand B (2304 bytes)", "rank in its cluster", "(address & 0x3ffff) >> 4"] {
            assert!(rank.message.contains(part), "{}", rank.message);
        }
    }
}

/// Columns 0 to 63 of the product need no leading byte offset: their layout ignores the offset, so a rank in the offset
/// is reported only as a note.
#[test]
fn a_rank_that_the_layout_ignores_is_a_note() {
    let narrow = program_text(FILE).replace("m64n128k16", "m64n64k16");
    // Keeps the first 32 of the 64 accumulators.
    let lines = narrow.lines().map(|line| match line.trim_start().strip_prefix("wgmma.mma_async") {
        Some(_) => {
            let (head, rest) = line.split_once('{').expect("accumulators");
            let (accumulators, rest) = rest.split_once('}').expect("accumulators");
            let kept: Vec<&str> = accumulators.split(", ").take(32).collect();
            format!("{head}{{{}}}{rest}", kept.join(", "))
        }
        None => line.to_string(),
    });
    let program = reel_sim::program::Program::parse(&lines.collect::<Vec<_>>().join("\n")).expect("PTX");
    let (outcome, _) = run_once(&program, "wrong", &early_deadlock_options(), &setup);
    let notes: Vec<&String> = outcome.notes.iter().filter(|note| note.contains("layout ignores the offset")).collect();
    assert_eq!(notes.len(), 1, "{:?}", outcome.notes);
    assert!(!outcome.findings.contains_kind(FindingKind::Wgmma));
}
