//! Times of the matrix instructions.
//!
//! `cargo bench -p reel-sim --bench matrix`

use std::hint::black_box;
use std::time::Instant;

use reel_sim::matrix::mma::MmaOp;
use reel_sim::matrix::{Lanes, ldmatrix};

/// Nanoseconds a call, the least of several rounds.
fn least(calls: u32, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..7 {
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
    let op = MmaOp::parse(opcode).expect("a form of mma.sync");
    let (counts, per) = (op.registers(), op.rows_per_register());
    let (a, b, c) = (ones(counts.a * per), ones(counts.b * per), ones(counts.c * per));
    let mut d = ones(counts.c * per);
    let ns = least(
        20_000,
        #[inline(always)]
        || black_box(op).run(black_box(&a), black_box(&b), black_box(&c), black_box(&mut d)),
    );
    println!("{opcode:<60} {ns:7.1} ns {:6.1} GFLOP/s", op.flops() as f64 / ns);
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
}
