//! Tests of programmatic dependent launches: before a kernel waits for the previous launch, it must not access
//! anything that the previous launch may write.
//!
//! The recorded launches of a folder's checks run on the simulator for sm_90, each as the dependent launch of a
//! kernel that writes every array except the weights. The simulator runs the code before the wait first, and reports
//! each access that conflicts with those writes. In a second run the wait is removed, and the simulator must report
//! that.

use std::collections::BTreeMap;

use reel_device::launch::{Arch, KernelLaunch, Stage};
use reel_device::simulate::{self, PtxModule, SimulateError};
use reel_sim::exec::{self, ExecOptions, LaunchConfig, SimLaunch};
use reel_sim::memory::SimMemory;
use reel_sim::mutate;
use reel_sim::program::Program;

use super::on_sim::COMPLETION_TIMINGS;
use super::{CheckDevice, CheckSetup, RecordedLaunch, proof};
use crate::catalogue::{self, find_kernel_folder};

/// PTX of a kernel that writes arrays: block i writes the array of entry i of a table of (address, bytes, whether to
/// keep the contents).
const WRITER: &str = "
.version 8.0
.target sm_90
.address_size 64
.visible .entry writer(.param .u64 table)
{
    .reg .b32 %r<6>;
    .reg .b64 %rd<10>;
    .reg .pred %p<4>;
    ld.param.u64 %rd1, [table];
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd2, %r1, 24;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u64 %rd4, [%rd3];
    ld.global.u64 %rd5, [%rd3+8];
    ld.global.u64 %rd6, [%rd3+16];
    setp.ne.u64 %p1, %rd6, 0;
    mov.u32 %r2, %tid.x;
    cvt.u64.u32 %rd7, %r2;
again:
    setp.ge.u64 %p2, %rd7, %rd5;
    @%p2 bra done;
    add.s64 %rd8, %rd4, %rd7;
    mov.u32 %r3, 85;
    @%p1 ld.global.u8 %r3, [%rd8];
    st.global.u8 [%rd8], %r3;
    add.s64 %rd7, %rd7, 32;
    bra again;
done:
    ret;
}";

/// Records the launches of the folder's checks for whose names `is_used` returns true. Copies each launch for each
/// variant of its kernel, and keeps those whose plan for an H100 is one programmatic stage. Returns at most `count`
/// launches for each symbol, evenly spaced by their cost.
fn recorded_launches(
    folder: &str,
    is_used: fn(&str) -> bool,
    count: usize,
) -> BTreeMap<&'static str, Vec<(RecordedLaunch, Stage)>> {
    let folder = find_kernel_folder(folder).expect("a folder");
    let setup = CheckSetup { interleavings: 1, record: true, ..CheckSetup::new(CheckDevice::Sim) };
    let mut by_symbol: BTreeMap<_, Vec<(u64, RecordedLaunch, Stage)>> = BTreeMap::new();
    let checks = folder.checks.iter().filter(|check| is_used(check.name));
    let checked = checks.flat_map(|check| check.run(&setup).expect("the check passes").recorded);
    let with_variants = checked.flat_map(|recorded| {
        let variants: Vec<_> = catalogue::variants_of(recorded.launch.kernel).map(|variant| variant.kernel).collect();
        std::iter::once(recorded.launch.kernel).chain(variants).map(move |kernel| RecordedLaunch {
            launch: KernelLaunch { kernel, ..recorded.launch.clone() },
            ..recorded.clone()
        })
    });
    for recorded in with_variants {
        let [stage] = &(recorded.launch.kernel.plan)(&recorded.launch.params, &Arch::H100)[..] else { continue };
        let cost = recorded.stages.iter().map(|(_, counters)| counters.total().warps).sum();
        if stage.programmatic && recorded.launch.kernel.source.name == folder.name {
            by_symbol.entry(stage.symbol).or_default().push((cost, recorded.clone(), stage.clone()));
        }
    }
    let spread = |mut all: Vec<(u64, RecordedLaunch, Stage)>| {
        all.sort_by_key(|(cost, ..)| *cost);
        // Drops the most expensive half. These launches take long and make no kinds of memory accesses that cheaper
        // launches lack.
        all.truncate(all.len().div_ceil(2));
        // Keeps one of the launches whose costs differ by less than 5 %, because such launches do nearly the same.
        all.dedup_by(|(cost, ..), (before, ..)| *cost * 100 < *before * 105);
        let step = all.len().div_ceil(count);
        all.into_iter().step_by(step).map(|(_, recorded, stage)| (recorded, stage)).collect()
    };
    by_symbol.into_iter().map(|(symbol, all)| (symbol, spread(all))).collect()
}

/// Runs a launch after the writer kernel: either at the same time, or after the writer has ended. `weights` are the
/// parameters that the writer does not write. Returns the first finding and the contents of all arrays.
fn run_after_writer(
    program: &Program,
    (recorded, stage): &(RecordedLaunch, Stage),
    weights: &[&str],
    at_once: bool,
    seed: u64,
) -> Result<Vec<Vec<u8>>, String> {
    let KernelLaunch { kernel, params, .. } = &recorded.launch;
    let is_weight = |at: u64, bytes: usize| {
        let fields = kernel.fields.iter().filter(|f| weights.contains(&f.name));
        let mut addresses = fields.map(|f| bytemuck::pod_read_unaligned::<u64>(&params[f.offset..f.offset + 8]));
        addresses.any(|address| (at..at + bytes as u64).contains(&address))
    };
    let mut memory = SimMemory::new();
    let mut table = Vec::new();
    for (at, bytes, written) in &recorded.arrays {
        memory.map_buffer(*at, bytes.clone(), *written);
        if !is_weight(*at, bytes.len()) {
            table.extend([*at, bytes.len() as u64, u64::from(*written)]);
        }
    }
    let writer = Program::parse(WRITER).expect("PTX");
    let writer_kernel = writer.kernel("writer").expect("a kernel");
    let blocks = (table.len() / 3) as u32;
    let table = memory.alloc(bytemuck::cast_slice(&table).to_vec());
    let config = |stage: &Stage, params: &[u8]| {
        let encoded = stage.with_tensor_maps(params, |map| map.encode().map_err(SimulateError::Encoding));
        LaunchConfig {
            grid: stage.grid,
            block: stage.block,
            cluster: stage.cluster,
            dynamic_shared: stage.shared,
            params: encoded.expect("tensor maps of a plan").into_owned(),
        }
    };
    let first = config(&Stage::one_dimensional("writer", blocks, 32), &table.to_le_bytes());
    let second_kernel = program.kernel(stage.symbol).map_err(|e| e.to_string())?;
    let second = config(stage, params);
    let options = ExecOptions {
        gpu: simulate::gpu_spec(&Arch::H100),
        seed,
        completion: COMPLETION_TIMINGS[seed as usize % 3],
        patience: 200_000,
        // Without the wait, most launches have a finding early. The simulation stops at the first one.
        until_finding: true,
        strict_proxy: true,
        ..ExecOptions::default()
    };
    let outcomes = if at_once {
        let first = SimLaunch { program: &writer, kernel: &writer_kernel, launch: &first };
        let second = SimLaunch { program, kernel: &second_kernel, launch: &second };
        let (a, b) =
            exec::run_with_dependent_launch(first, second, &mut memory, &options).map_err(|e| e.to_string())?;
        vec![a, b]
    } else {
        let mut run = |program, kernel, launch| exec::run(program, kernel, launch, &mut memory, &options);
        let a = run(&writer, &writer_kernel, &first).map_err(|e| e.to_string())?;
        vec![a, run(program, &second_kernel, &second).map_err(|e| e.to_string())?]
    };
    match outcomes.into_iter().flat_map(|outcome| outcome.findings.into_list()).next() {
        Some(finding) => Err(format!("{}: {}", finding.kind.name(), finding.message)),
        None => {
            Ok(recorded.arrays.iter().map(|(at, ..)| memory.buffer_bytes(*at).unwrap_or_default().to_vec()).collect())
        }
    }
}

/// Runs launches of each programmatic kernel of the folder at the same time as the writer. With the wait, the results
/// must equal those of a launch after the writer's end. Without the wait, the simulator must report a finding. Each
/// launch runs with each of [`COMPLETION_TIMINGS`] and with its own seeds.
fn check_early_launches(folder: &str, is_used: fn(&str) -> bool, weights: &[&str], symbols: usize) {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let found = find_kernel_folder(folder).expect("a folder");
    if proof::is_proved(found) {
        println!("left out: early launches of {folder}, which has not changed");
        return;
    }
    let source = found.source;
    let unit = PtxModule::of_source(source, Arch::H100.sm).expect("it compiles");
    let module = &unit.program().module;
    let launches = recorded_launches(folder, is_used, 2);
    assert_eq!(launches.len(), symbols, "{:?}", launches.keys());
    let mut seeds = 0..;
    for (symbol, launches) in launches {
        for launch in &launches {
            let want = run_after_writer(unit.program(), launch, weights, false, 0);
            let want = want
                .unwrap_or_else(|finding| panic!("{symbol}, started after the previous launch has ended: {finding}"));
            for seed in seeds.by_ref().take(COMPLETION_TIMINGS.len()) {
                match run_after_writer(unit.program(), launch, weights, true, seed) {
                    Ok(got) => assert!(
                        got == want,
                        "{symbol}: a launch that starts before the previous launch has ended has other results"
                    ),
                    Err(finding) => panic!("{symbol}, started before the previous launch has ended: {finding}"),
                }
            }
        }
        let waits = mutate::all_mutants(module).into_iter().filter(|mutant| {
            mutant.opcode == "griddepcontrol.wait" && module.functions[mutant.function].name == symbol
        });
        let waits: Vec<_> = waits.collect();
        assert_eq!(waits.len(), 1, "{symbol}");
        let without = mutate::apply_mutant(unit.program(), &waits[0]).expect("a program");
        for launch in &launches {
            let finding = run_after_writer(&without, launch, weights, true, 0).expect_err(symbol);
            assert!(finding.contains("griddepcontrol.wait"), "{symbol}: {finding}");
        }
    }
}

#[test]
fn skinny_reads_only_weights_before_its_wait() {
    // The launches of these five checks suffice: the launches of the other checks are similar or have large sizes.
    let is_used =
        |check: &str| check.contains("_the_formula") || check.starts_with("qkv_") || check.starts_with("a_norm_");
    check_early_launches("skinny", is_used, &["w", "w2", "w_q", "w_k", "w_v"], 56);
}

#[test]
fn other_kernels_of_a_decode_step_access_nothing_before_their_wait() {
    for (folder, symbols) in [("rope_kv_write", 2), ("rope_kv_write_norm", 2), ("sample", 1), ("advance", 1)] {
        check_early_launches(folder, |_| true, &[], symbols);
    }
}

/// Uses one check. Its launches have one stage, no workspace, and two head_dims. Running all checks would take a
/// minute.
#[test]
fn decode_on_hopper_accesses_nothing_before_its_wait() {
    let is_used = |check: &str| check == "padding_rows_get_zeros_and_change_no_other_row";
    check_early_launches("paged_attention", is_used, &[], 2);
}
