//! Tests of dependent launches (`griddepcontrol`).

use super::common::*;
use reel_sim::exec::{LaunchConfig, SimLaunch, run_with_dependent_launch};
use reel_sim::memory::SimMemory;

/// Returns the findings and the output of the secondary grid.
fn run(variant: u32, seed: u64) -> (Vec<(u32, &'static str)>, Vec<u32>) {
    let program = load_program("dependent");
    let (first, second) = (program.kernel("first"), program.kernel(&format!("second_{variant}")));
    let (first, second) = (first.expect("a kernel"), second.expect("a kernel"));
    let mut memory = SimMemory::new();
    let input = memory.alloc(le_bytes(&distinct_words(1024)));
    let (middle, out) = (memory.alloc(vec![0; 4096]), memory.alloc_uninitialized(4096));
    let params = || Params::default().append_u64(input).append_u64(middle).append_u64(out).append_i32(0);
    let (one, two): (LaunchConfig, LaunchConfig) = (launch_config(8, 128, params()), launch_config(4, 256, params()));
    let grid = |kernel, launch| SimLaunch { program: &program, kernel, launch };
    let mut options = early_deadlock_options();
    options.seed = seed;
    let (a, b) = run_with_dependent_launch(grid(&first, &one), grid(&second, &two), &mut memory, &options)
        .expect("good launches");
    assert!(a.findings.is_empty(), "{:#?}", a.findings.into_list());
    (b.findings.into_list().into_iter().map(|f| (f.line, f.kind.name())).collect(), buffer_words(&memory, 2))
}

#[test]
fn dependent_grid_must_wait_for_the_first() {
    let from = distinct_words(1024);
    for seed in 0..8 {
        let (found, out) = run(0, seed);
        assert_eq!(found, []);
        assert_eq!(out, (0..1024).map(|i| from[i].wrapping_add(from[i ^ 1].wrapping_mul(3))).collect::<Vec<u32>>());
        for variant in 1..=3 {
            let wanted: Vec<(u32, &str)> =
                expected_lines_and_kinds("dependent", "second", variant).into_iter().collect();
            assert_eq!(run(variant, seed).0, wanted, "second {variant}");
        }
    }
}
