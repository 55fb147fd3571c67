//! Tests of kernels with mbarriers, bulk loads, bulk stores and bulk reductions.

use super::common::*;
use reel_sim::exec::ExecOptions;
use reel_sim::finding::FindingKind;
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;

const FILE: &str = "mbarrier";

#[test]
fn bulk_loads() {
    let setup = word_buffers_setup(256, 256, 256, 0);
    let from = distinct_words(256);
    assert_no_finding(FILE, "load_0", &setup, &|memory| {
        assert_eq!(output_words(memory), (0..256).map(|i| from[i ^ 5]).collect::<Vec<u32>>());
    });
    (1..=11).for_each(|variant| assert_planted_bug_is_reported(FILE, "load", variant, &setup));
}

#[test]
fn mbarrier_phases() {
    let setup = word_buffers_setup(512, 256, 256, 0);
    let from = distinct_words(512);
    assert_no_finding(FILE, "twice_0", &setup, &|memory| {
        let want: Vec<u32> = (0..256).map(|i| from[i].wrapping_mul(3).wrapping_add(from[256 + i])).collect();
        assert_eq!(output_words(memory), want);
    });
}

#[test]
fn ring_of_stages() {
    let setup = word_buffers_setup(96 * 7, 96, 128, 7);
    let from = distinct_words(96 * 7);
    assert_no_finding(FILE, "ring_0", &setup, &|memory| {
        let sum = |t: usize| (0..7).fold(0u32, |sum, i| sum.wrapping_mul(3).wrapping_add(from[96 * i + 95 - t]));
        assert_eq!(output_words(memory), (0..96).map(sum).collect::<Vec<u32>>());
    });
    (1..=5).for_each(|variant| assert_planted_bug_is_reported(FILE, "ring", variant, &setup));
}

#[test]
fn waits_on_mbarrier_states() {
    let setup = word_buffers_setup(64, 128, 64, 0);
    let from = distinct_words(64);
    assert_no_finding(FILE, "states", &setup, &|memory| {
        let want: Vec<u32> = (0..128).map(|i| if i < 64 { from[63 - i] } else { 1 }).collect();
        assert_eq!(output_words(memory), want);
    });
}

#[test]
fn bulk_stores() {
    let setup = word_buffers_setup(512, 512, 256, 0);
    let from = distinct_words(512);
    assert_no_finding(FILE, "store_0", &setup, &|memory| {
        assert_eq!(output_words(memory), from.iter().map(|w| w.wrapping_add(1)).collect::<Vec<u32>>());
    });
    // Variant 4 is also correct: only the thread that issues the copy executes the proxy fence, after the block
    // barrier.
    assert_no_finding(FILE, "store_4", &setup, &|_| ());
    (1..=3).for_each(|variant| assert_planted_bug_is_reported(FILE, "store", variant, &setup));
}

#[test]
fn bulk_reductions() {
    let setup = move |memory: &mut SimMemory| {
        let input = memory.alloc(le_bytes(&(0..128).map(|i| 3 * i).collect::<Vec<u32>>()));
        let output = memory.alloc(le_bytes(&(0..129).map(|i| (i as f32).to_bits()).collect::<Vec<u32>>()));
        launch_config(1, 128, Params::default().append_u64(input).append_u64(output).append_i32(0))
    };
    assert_no_finding(FILE, "sum_0", &setup, &|memory| {
        let want: Vec<f32> = (0..129).map(|i| if i < 128 { 4.0 * i as f32 } else { 20.0 }).collect();
        assert_eq!(output_words(memory).into_iter().map(f32::from_bits).collect::<Vec<f32>>(), want);
    });
    assert_planted_bug_is_reported(FILE, "sum", 1, &setup);
}

#[test]
fn reloading_a_stage_needs_order() {
    let setup = word_buffers_setup(128, 256, 128, 0);
    let from = distinct_words(128);
    assert_no_finding(FILE, "reload_0", &setup, &|memory| {
        let want: Vec<u32> = (0..128).map(|i| from[i ^ 3].wrapping_mul(3)).collect();
        assert_eq!(output_words(memory)[..128], want);
    });
    (1..=2).for_each(|variant| assert_planted_bug_is_reported(FILE, "reload", variant, &setup));
}

#[test]
fn exit_before_a_bulk_store_has_read_its_source() {
    let setup = word_buffers_setup(256, 256, 256, 0);
    assert_no_finding(FILE, "abandon_0", &setup, &|memory| assert_eq!(output_words(memory), distinct_words(256)));
    assert_planted_bug_is_reported(FILE, "abandon", 1, &setup);
}

#[test]
fn reads_before_asynchronous_writes() {
    let program = load_program(FILE);
    for strict_proxy in [false, true] {
        let options = ExecOptions { strict_proxy, ..early_deadlock_options() };
        let (outcome, _) = run_once(&program, "twice_0", &options, &word_buffers_setup(512, 256, 256, 0));
        assert_eq!(outcome.findings.contains_kind(FindingKind::AsyncProxy), strict_proxy);
        assert_eq!(outcome.notes.iter().any(|n| n.contains("overwrites")), !strict_proxy);
    }
}

#[test]
fn a_copy_on_an_mbarrier_that_was_initialised_without_a_fence() {
    let text = program_text(FILE).replace("fence.mbarrier_init.release.cluster;", "");
    let program = Program::parse(&text).expect("the changed corpus parses");
    for strict_proxy in [false, true] {
        let options = ExecOptions { strict_proxy, ..early_deadlock_options() };
        let (outcome, _) = run_once(&program, "load_0", &options, &word_buffers_setup(256, 256, 256, 0));
        assert_eq!(outcome.findings.contains_kind(FindingKind::AsyncProxy), strict_proxy);
        assert_eq!(outcome.notes.iter().any(|n| n.contains("initialisation")), !strict_proxy);
    }
}

/// Warp 1 waits for the first phase of an mbarrier, whose first two phases are over: by its parity it waits for the third
/// phase. That is a note if the warp has waited for all phases in order, else a deadlock.
#[test]
fn a_wait_for_a_phase_that_is_over_is_named() {
    let text = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {
        .reg .pred %p<3>; .reg .b32 %r<3>; .reg .b64 %d<3>; .shared .align 8 .b64 bar;
        mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0; @%p0 bra READY;
        mbarrier.init.shared::cta.b64 [bar], 1;
        mbarrier.arrive.shared::cta.b64 %d0, [bar]; mbarrier.arrive.shared::cta.b64 %d0, [bar];
        READY: bar.sync 0; setp.ne.u32 %p1, %r0, 32; @%p1 bra DONE;
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], 0; @!%p2 bra WAIT;
        DONE: ret; }";
    let message = |text: &str| {
        let program = Program::parse(text).expect("the kernel parses");
        let setup = |_: &mut SimMemory| launch_config(1, 64, Params::default());
        let (outcome, _) = run_once(&program, "k", &early_deadlock_options(), &setup);
        outcome.findings.into_list().iter().map(|f| f.message.clone()).collect::<Vec<_>>().join("; ")
    };
    let waits = "in phase 2, 1 of 1 arrivals and 0 bytes are missing";
    let over = " (phase 0, which has the same parity, is over)";
    assert_eq!(message(text), "");
    // The waits with the parities 1, 0 and 1 are for the phases before phase 0, phase 0 and phase 1; the last wait is
    // for phase 2.
    let wait =
        |n: u32| format!("W{n}: mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], {}; @!%p2 bra W{n};", n % 2);
    let in_order = text.replace("WAIT:", &format!("{} {} {} WAIT:", wait(1), wait(2), wait(3)));
    assert!(message(&in_order).contains(&format!("{waits}{over}")), "{}", message(&in_order));
    // A wait for the state that the second arrival returned is over, and a third phase that is named by its state is
    // the one that the warp waits for.
    let third = "mbarrier.arrive.noComplete.shared::cta.b64 %d1, [bar], 1;";
    let by_state =
        text.replace("try_wait.parity.shared::cta.b64 %p2, [bar], 0", "try_wait.shared::cta.b64 %p2, [bar], %d1");
    let by_state = by_state.replace("[bar], 1;", "[bar], 2;").replace("WAIT:", &format!("{third} WAIT:"));
    let arrive = "mbarrier.arrive.shared::cta.b64 %d0, [bar];";
    let by_state = by_state.replace(arrive, &arrive.repeat(2));
    assert!(message(&by_state).contains("in phase 2, 1 of 2 arrivals"), "{}", message(&by_state));
    assert!(!message(&by_state).contains("parity"), "{}", message(&by_state));
}
