use super::*;
use crate::measure::machine::MachineSpec;

fn h200() -> ModelledGpu {
    ModelledGpu::hopper(MachineSpec::gpu_by_name("h200").unwrap().ceilings, 0.85)
}

const STREAM: PlannedStage = PlannedStage {
    symbol: "no row",
    blocks: 132 * 8 * 4,
    cluster: 1,
    threads: 256,
    shared: 0,
    programmatic: true,
    sizes: Vec::new(),
};

fn limit_of(block: BlockWork) -> Bottleneck {
    let limits = h200().wave(&block, 132, 132);
    limits.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
}

#[test]
fn the_longest_term_limits_a_wave() {
    let idle =
        BlockWork { bytes: 1e3, l2_bytes: 1e3, bytes_in_flight: Some(1e6), warp_instructions: 1.0, matrix_flops: 0.0 };
    assert_eq!(limit_of(BlockWork { bytes: 1e6, ..idle }), Bottleneck::Memory);
    assert_eq!(limit_of(BlockWork { l2_bytes: 1e6, ..idle }), Bottleneck::L2);
    assert_eq!(limit_of(BlockWork { bytes_in_flight: Some(16.0), ..idle }), Bottleneck::Latency);
    assert_eq!(limit_of(BlockWork { warp_instructions: 1e6, ..idle }), Bottleneck::Instructions);
    assert_eq!(limit_of(BlockWork { matrix_flops: 1e9, ..idle }), Bottleneck::Matrices);
}

#[test]
fn a_large_stream_takes_its_bytes_at_the_streaming_share() {
    let gpu = h200();
    let cost = Cost { flops: 0.0, bytes: 4.32e9 };
    let one = gpu.launch(&[STREAM], cost, false);
    assert!((one.seconds - LAUNCH_GAP_SECONDS - 1e-3 / 0.85).abs() < 1e-9, "{one:?}");
    assert!(one.main_bottleneck() == Bottleneck::Memory && !one.has_instruction_counts());
    // Without programmatic dependent launch, both stages wait for their first bytes.
    let waits = PlannedStage { programmatic: false, ..STREAM };
    let small = PlannedStage { blocks: 1, ..waits.clone() };
    let two = gpu.launch(&[small, waits], cost, false);
    assert!((two.seconds - one.seconds - LAUNCH_GAP_SECONDS - 2.0 * MEMORY_LATENCY_SECONDS).abs() < 1e-9);
}

#[test]
fn few_blocks_cannot_keep_memory_busy() {
    // A block with 4 KiB in flight needs 1024 memory latencies to read 4 MiB. This kernel copies 1.039 times the bytes of
    // its cost.
    let stage = PlannedStage { symbol: "paged_attention_fwd_bf16_decode_128", blocks: 1, shared: 5120, ..STREAM };
    let one = h200().launch(&[stage], Cost { flops: 0.0, bytes: 4194304.0 }, false);
    assert_eq!(one.main_bottleneck(), Bottleneck::Latency);
    assert!((one.seconds - LAUNCH_GAP_SECONDS - 1.039 * 1024.0 * MEMORY_LATENCY_SECONDS).abs() < 1e-9, "{one:?}");
}

#[test]
fn clusters_use_some_multiprocessors_only() {
    let gpu = h200();
    let blocks = |n| [PlannedStage { blocks: n, cluster: 8, threads: 2048, ..STREAM }];
    let flops = |blocks: u32| Cost { flops: 1e9 * f64::from(blocks), bytes: 1.0 };
    let seconds = |n: u32| gpu.launch(&blocks(n), flops(n), true).seconds - LAUNCH_GAP_SECONDS;
    assert!((seconds(128) / seconds(120) - 2.0).abs() < 1e-6);
    assert!((seconds(8) / seconds(120) - 1.0).abs() < 1e-6);
}

#[test]
fn an_incomplete_wave_takes_as_long_as_its_blocks() {
    let gpu = h200();
    let flops = |blocks: u32| Cost { flops: 1e9 * f64::from(blocks), bytes: 1.0 };
    let blocks = |n| [PlannedStage { blocks: n, threads: 2048, ..STREAM }];
    let seconds = |n: u32| gpu.launch(&blocks(n), flops(n), true).seconds - LAUNCH_GAP_SECONDS;
    assert!((seconds(133) / seconds(132) - 2.0).abs() < 1e-6);
    assert!((seconds(1) / seconds(132) - 1.0).abs() < 1e-6);
}

#[test]
fn resident_blocks_are_limited_by_each_resource() {
    assert_eq!(resident_blocks(256, 32, 0), 8);
    assert_eq!(resident_blocks(256, 119, 0), 2);
    assert_eq!(resident_blocks(256, 64, 110 << 10), 2);
    assert_eq!(resident_blocks(32, 16, 0), 32);
    assert_eq!(resident_blocks(1024, 255, 227 << 10), 1);
}

#[test]
fn every_row_of_the_table_has_counts() {
    let rows: Vec<KernelInputs> = serde_json::from_str(include_str!("inputs.json")).unwrap();
    for row in rows {
        assert!(inputs_of(&row.symbol).is_some() && row.registers > 0, "{row:?}");
        assert!(row.instructions_per_byte + row.instructions_per_flop > 0.0, "{row:?}");
    }
    assert!(inputs_of("no row").is_none());
}
