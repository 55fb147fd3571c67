use reel_device::Launch;
use reel_device::simulate::{self, SimulatedStage};
use reel_sim::exec::ExecOptions;
use reel_sim::memory::SimMemory;

use super::*;
use crate::attention::{BwdParams, FwdParams};
use crate::checks::{normal_numbers, run_test_on_sim, simulated_stages};

/// Extrapolates the matrix-product FLOPs of a causal sequence of 8192 tokens from the FLOPs of its first and its last
/// tile of 64 queries. The last tile is simulated as a sequence of 64 tokens with a prefix of 8128 tokens.
#[test]
fn matrix_products_at_8k_are_the_useful_ones() {
    run_test_on_sim(|| {
        let (head_dim, len, tile) = (128usize, 8192usize, 64usize);
        let data = |n: usize, seed| TestArray::new(BF16, &normal_numbers(n * head_dim, seed, 1.0));
        let (q, k, v, o) = (data(tile, 1), data(len, 2), data(len, 3), TestArray::output(BF16, tile * head_dim));
        let flops = |prefix: usize| -> f64 {
            let (cu_seqlens, prefix) = ([0, tile as i32], [tile as i32, prefix as i32]);
            let p = FwdParams {
                q: q.addr(),
                k: k.addr(),
                v: v.addr(),
                o: o.addr(),
                lse: Addr::NULL,
                cu_seqlens: addr(&cu_seqlens),
                prefix: addr(&prefix),
                tokens: tile as u32,
                seqs: 1,
                heads: 1,
                kv_heads: 1,
                head_dim: head_dim as u32,
                causal: 1,
                scale: 0.1,
                max_seqlen: tile as u32,
                ..FwdParams::EMPTY
            };
            let stages = simulated_stages(&fwd(BF16, &p, 0.0));
            let count = stages[0].counters.total();
            assert_eq!(count.wavefronts, count.wavefronts_least, "the launch has bank conflicts");
            count.matrix_flops as f64
        };
        let (first, last) = (flops(0), flops(len - tile));
        let tiles = (len / tile) as f64;
        // Tile t processes t more whole blocks of keys than the first tile.
        let total = tiles * first + (last - first) / (tiles - 1.0) * tiles * (tiles - 1.0) / 2.0;
        let useful = 4.0 * head_dim as f64 * len as f64 * (len as f64 + 1.0) / 2.0;
        assert!(
            total >= useful && total <= 1.03 * useful,
            "{total} operations, expected {useful} to 1.03 times as many"
        );
    });
}

#[test]
fn shared_memory_has_no_bank_conflicts() {
    run_test_on_sim(|| {
        let mut list = String::new();
        for head_dim in [64usize, 72, 80, 128, 200] {
            for dtype in [BF16, F32] {
                let case = PackedBatch {
                    lengths: vec![130],
                    heads: 1,
                    kv_heads: 1,
                    head_dim,
                    causal: true,
                    spread: 1.0,
                    prefix: vec![],
                };
                let given = Given::new(&case, dtype);
                let rows = given.tokens();
                let (o, lse) =
                    (TestArray::new(dtype, &vec![0.5; rows * head_dim]), TestArray::new(F32, &vec![1.0; rows]));
                let (scratch, grads) =
                    (given.scratch(dtype), [(); 3].map(|_| TestArray::output(dtype, rows * head_dim)));
                let p: FwdParams = given.fwd(o.addr(), lse.addr());
                let b: BwdParams = given.bwd(&o, &lse, &scratch, grads.each_ref());
                for launch in [fwd(dtype, &p, 0.0), bwd(dtype, &b, 0.0)] {
                    for stage in simulated_stages(&launch) {
                        let count = stage.counters.total();
                        if count.wavefronts != count.wavefronts_least {
                            list += &format!(
                                "{} {head_dim}: {} of {}\n",
                                stage.stage.symbol, count.wavefronts, count.wavefronts_least
                            );
                        }
                    }
                }
            }
        }
        assert!(list.is_empty(), "{list}");
    });
}

/// Returns a batch without prefixes.
fn plain(lengths: &[usize], (heads, kv_heads): (usize, usize), head_dim: usize, causal: bool) -> PackedBatch {
    PackedBatch { lengths: lengths.to_vec(), heads, kv_heads, head_dim, causal, spread: 1.0, prefix: vec![] }
}

/// The operands of a backward launch. The forward pass is not run: o and lse are arbitrary values.
struct Backward {
    given: Given,
    forward: [TestArray; 2],
    scratch: [TestArray; 2],
    grads: [TestArray; 3],
}

impl Backward {
    fn new(case: &PackedBatch) -> Backward {
        let given = Given::new(case, BF16);
        let rows = given.tokens() * case.heads;
        let kv = given.tokens() * case.kv_heads * case.head_dim;
        let forward = [
            TestArray::new(BF16, &normal_numbers(rows * case.head_dim, 5, 0.5)),
            TestArray::new(F32, &vec![4.0; rows]),
        ];
        let grads = [rows * case.head_dim, kv, kv].map(|n| TestArray::output(BF16, n));
        Backward { scratch: given.scratch(BF16), given, forward, grads }
    }

    fn params(&self) -> BwdParams {
        self.given.bwd(&self.forward[0], &self.forward[1], &self.scratch, self.grads.each_ref())
    }

    /// Runs the launch on a simulated A100 and returns its stages. Asserts that there are no findings and no bank
    /// conflicts.
    fn run(&self) -> Vec<SimulatedStage> {
        let (arch, params) = (&Arch::A100, &self.params());
        let Launch::Kernel(launch) = bwd(BF16, params, 0.0) else { unreachable!("attention is not a matrix product") };
        let given = [&self.given.q, &self.given.k, &self.given.v, &self.given.d_o, &self.forward[0]];
        let mut memory = SimMemory::new();
        for data in given {
            let bits = data.values().iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
            memory.map_buffer(data.addr().0, bits, true);
        }
        let bytes = |x: &TestArray| x.values().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        memory.map_buffer(self.forward[1].addr().0, bytes(&self.forward[1]), true);
        self.scratch.iter().for_each(|x| memory.map_buffer(x.addr().0, bytes(x), false));
        self.grads.iter().for_each(|x| memory.map_buffer(x.addr().0, vec![0; 2 * x.values().len()], false));
        memory.map_buffer(
            params.cu_seqlens.0,
            self.given.cu_seqlens.iter().flat_map(|x| x.to_le_bytes()).collect(),
            true,
        );
        let options = ExecOptions { gpu: simulate::gpu_spec(arch), ..ExecOptions::default() };
        let staged = simulate::run(&launch, arch, &mut memory, &options).expect("the launch runs on the simulator");
        for s in &staged {
            let found: Vec<_> = s.findings.iter().map(|f| &f.message).collect();
            assert!(found.is_empty(), "{} on {arch:?}: {found:?}", s.stage.symbol);
            let count = s.counters.total();
            assert_eq!(count.wavefronts, count.wavefronts_least, "{} has bank conflicts", s.stage.symbol);
        }
        staged
    }
}

/// Computes the matrix-product FLOPs of a tile on the diagonal and of a tile below it from sequences of two and of four
/// tiles. The FLOPs of a sequence of six tiles must agree with them.
#[test]
fn the_gradient_does_the_useful_products_at_8k() {
    run_test_on_sim(|| {
        let (head_dim, len) = (128, 8192);
        let flops = |tiles: usize| -> f64 {
            let call = Backward::new(&plain(&[64 * tiles], (2, 2), head_dim, true));
            call.run().iter().map(|s| s.counters.total().matrix_flops as f64).sum()
        };
        let (two, four) = (flops(2), flops(4));
        // A sequence of two tiles has two tiles on the diagonal and one below it; a sequence of four tiles has four on
        // the diagonal and six below it.
        let below = (four - 2.0 * two) / 4.0;
        let diagonal = (two - below) / 2.0;
        assert_eq!(flops(6), 6.0 * diagonal + 15.0 * below);
        let tiles = (len / 64) as f64;
        let total = tiles * diagonal + tiles * (tiles - 1.0) / 2.0 * below;
        let useful = 2.0 * 10.0 * head_dim as f64 * len as f64 * (len as f64 + 1.0) / 2.0;
        let done = total / useful * 5.0;
        assert!((7.0..=7.0 * 1.03).contains(&done), "as many operations as {done} products; expected 7 to 7.21");
    });
}

/// Compares the bytes that the backward kernels read and write with the expected bytes. The kernel for dk and dv moves
/// k, v, dk and dv once, and q, d_o, lse and delta for each tile of keys; the kernel for dq moves q, d_o and dq once,
/// and k and v for each tile of queries.
#[test]
fn bytes_of_the_gradient_are_those_of_its_tiles() {
    run_test_on_sim(|| {
        let (head_dim, tiles) = (128.0, 8);
        let stages = Backward::new(&plain(&[64 * tiles], (1, 1), head_dim as usize, false)).run();
        let (rows, blocks) = (64.0 * tiles as f64, tiles as f64);
        let tile = rows * head_dim * 2.0;
        let of_keys = 4.0 * tile + blocks * (2.0 * tile + rows * 8.0);
        let of_queries = 3.0 * tile + rows * 8.0 + blocks * 2.0 * tile;
        for (stage, want) in stages[1..].iter().zip([of_keys, of_queries]) {
            let count = stage.counters.total();
            let bytes = (count.global_read + count.global_written) as f64;
            let symbol = stage.stage.symbol;
            assert!(
                (want..=1.02 * want).contains(&bytes),
                "{symbol}: {bytes} bytes of memory traffic, expected {want}"
            );
        }
    });
}
