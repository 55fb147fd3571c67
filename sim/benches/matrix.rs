//! Times the simulated matrix instructions and a tensor copy.
//!
//! `cargo bench -p reel-sim --bench matrix`

use std::hint::black_box;
use std::time::Instant;

use reel_sim::matrix::mma::MmaOp;
use reel_sim::matrix::wgmma::{Descriptor, WgmmaOp, WgmmaTiles};
use reel_sim::matrix::{Lanes, ldmatrix};
use reel_sim::tensor_map::{DataType, Swizzle, TensorMap};

/// Returns nanoseconds per call: the minimum of 400 short rounds, so that the time of other processes does not count.
fn least(calls: u32, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..400 {
        let start = Instant::now();
        for _ in 0..calls {
            call();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / calls as f64);
    }
    best
}

fn ones(count: usize) -> Vec<Lanes> {
    vec![[0x3f80_3f80; 32]; count]
}

fn mma(opcode: &str) {
    let op = MmaOp::decode(opcode).expect("a form of mma.sync");
    let (counts, per) = (op.registers_per_lane(), op.lane_arrays_per_register());
    let (a, b, c) = (ones(counts.a * per), ones(counts.b * per), ones(counts.c * per));
    let mut d = ones(counts.c * per);
    let [a, b, c] = [&a, &b, &c].map(|rows| rows.iter().collect::<Vec<&Lanes>>());
    let ns = least(
        20_000,
        #[inline(always)]
        || black_box(op).multiply_add(black_box(&a), black_box(&b), black_box(&c), black_box(&mut d)),
    );
    println!("{opcode:<60} {ns:7.1} ns {:6.1} GFLOP/s", op.flops() as f64 / ns);
}

/// Times one wgmma of a warpgroup with both operands in swizzled shared memory. The time includes reading the
/// operands and computing the products of the four warps.
fn wgmma(opcode: &str, transposed: bool) {
    let transpose = transposed as i64;
    let immediates: &[i64] = if opcode.contains("bf16") { &[1, 1, transpose, transpose] } else { &[1, 1] };
    let op = WgmmaOp::decode(opcode, false, immediates).expect("a form of wgmma");
    let shared = vec![0x3fu8; 128 * 1024];
    let bits = |start| Descriptor { start, leading: 8192, stride: 1024, swizzle: Swizzle::B128 }.encode();
    let a = op.operand_a(bits(0)).expect("a good descriptor");
    let b = op.operand_b(bits(16 * 1024)).expect("a good descriptor");
    let fetch = |address: u32| -> [u8; 16] {
        let at = address as usize;
        shared[at..at + 16].try_into().expect("sixteen bytes")
    };
    let mut tiles = WgmmaTiles::default();
    let mut d = ones(op.d_registers_per_lane());
    let reading = least(10, || {
        tiles.read_a(black_box(&op), &a, fetch);
        tiles.read_b(black_box(&op), &b, fetch);
    });
    let products = least(10, || {
        for warp in 0..4 {
            op.multiply_add(black_box(&tiles), warp, false, black_box(&mut d));
        }
    });
    let ns = reading + products;
    let name = format!("{opcode}{}", if transposed { " MN-major" } else { "" });
    println!("{name:<60} {ns:7.1} ns {:6.1} GFLOP/s ({reading:.0} ns for reading operands)", op.flops() as f64 / ns);
}

/// Times the copy of a swizzled tile of 64×64 bf16 between two buffers.
fn tensor_copy() {
    let map = TensorMap::tiled(DataType::Bf16, 0, &[4096, 64], &[8192], &[64, 64], Swizzle::B128).expect("a good map");
    let (global, mut shared) = (vec![1u8; 512 * 1024], vec![0u8; 8192]);
    let ns = least(10, || {
        map.box_copy_at(&[64, 0], 0).expect("a good box").for_each_contiguous_part(|run| {
            let to = run.shared as usize;
            match run.global.map(|from| from as usize) {
                Some(from) if run.bytes == 16 => shared[to..to + 16].copy_from_slice(&global[from..from + 16]),
                Some(from) => {
                    let bytes = run.bytes as usize;
                    shared[to..to + bytes].copy_from_slice(&global[from..from + bytes]);
                }
                None => shared[to..to + run.bytes as usize].fill(0),
            }
        });
        black_box(&mut shared);
    });
    println!("{:<60} {ns:7.1} ns {:6.1} GB/s", "tensor copy, 8 KiB, 128-byte swizzle", 8192.0 / ns);
}

fn main() {
    for opcode in [
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64",
    ] {
        mma(opcode);
    }
    let rows = [[7u8; 16]; 32];
    let mut registers = [[0; 32]; 4];
    for transpose in [false, true] {
        let ns = least(
            100_000,
            #[inline(always)]
            || ldmatrix::load(black_box(&rows), transpose, black_box(&mut registers)),
        );
        println!("ldmatrix.x4{:<49} {ns:7.1} ns", if transpose { ".trans" } else { "" });
    }
    for opcode in [
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3",
        "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32",
    ] {
        wgmma(opcode, false);
    }
    wgmma("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", true);
    tensor_copy();
}
