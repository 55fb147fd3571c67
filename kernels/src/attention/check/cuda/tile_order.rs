//! The order in which blocks of threads take tiles of queries, and parts of tiles of 128 keys, on Hopper: how evenly it
//! divides the work, and the atomic counter. The tiles come from `PackedSource`, `PagedSource` and `KeyPart` of the
//! kernels, which the simulator runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;
use reel_device::DType::{BF16, F32};
use reel_device::compile::compile_to_ptx;
use reel_device::launch::Source;
use reel_device::simulate::{self, PtxModule};
use reel_device::{Addr, Arch, Kernel, KernelLaunch, Launch, Stage, Team, kernel, launch};
use reel_sim::exec::ExecOptions;
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;

use super::Given;
use super::wgmma::batch;
use crate::attention::plan::{BLOCK_KEYS, positions_per_tile};
use crate::attention::{self, BWD_BF16_WGMMA, BwdParams, FWD_BF16_WGMMA, FwdParams, KeyParts, bwd, bwd_in_parts, fwd};
use crate::checks::{TestArray, addr, run_once, run_test_on_sim};
use crate::paged_attention::{self, FWD_BF16_PREFILL_WGMMA, Params};

/// Text of a kernel that writes to `o` the number of key blocks of each tile (0: no tile has the number), as f32; -1
/// beyond the last number.
macro_rules! key_blocks_kernel {
    ($include:literal, $params:literal, $source:literal) => {
        concat!(
            "#include \"",
            $include,
            "\"\n",
            "template <int N>\n",
            "__device__ float blocks_of_tile(const ",
            $params,
            "& p, u32 number) {\n",
            "  PositionTile tile;\n  ",
            $source,
            " source;\n",
            "  if (number >= source.tiles<N>(p).count(p)) return -1;\n",
            "  return source.find<N>(p, number, tile) ? tile.blocks<N>(source.is_causal(p)) : 0;\n",
            "}\n",
            "extern \"C\" __global__ void key_blocks(const __grid_constant__ ",
            $params,
            " p) {\n",
            "  const u32 number = blockIdx.x * blockDim.x + threadIdx.x;\n",
            "  float& to = global<float>(p.o)[number];\n",
            "  to = p.head_dim == 80 ? blocks_of_tile<192>(p, number) : blocks_of_tile<128>(p, number);\n",
            "}\n"
        )
    };
}

static OF_PACKED: Source = Source {
    name: "key_blocks_of_packed_sequences",
    sm80: key_blocks_kernel!("attention/packed_source.cuh", "FwdParams", "PackedSource<>"),
    params: &[<FwdParams as launch::Params>::c_declaration],
    header_owners: &[&attention::SOURCE],
    headers: &[],
    ..attention::SOURCE
};

static OF_PAGED: Source = Source {
    name: "key_blocks_of_paged_sequences",
    sm80: key_blocks_kernel!("paged_attention/prefill_wgmma.cuh", "Params", "PagedSource"),
    params: &[<Params as launch::Params>::c_declaration],
    header_owners: &[&attention::SOURCE, &paged_attention::SOURCE],
    headers: &[],
    ..paged_attention::SOURCE
};

/// Writes to `dk` the number of visits of each part of a tile of keys (0: no part has the number), as f32; -1 beyond
/// the last number.
static OF_KEYS: Source = Source {
    name: "visits_of_parts_of_keys",
    sm80: "#include \"attention/backward_producer.cuh\"\n\
        extern \"C\" __global__ void part_visits(const __grid_constant__ BwdParams p) {\n\
          __shared__ __align__(16) int words[8];\n\
          const KeyRows keys{shared_address(words)};\n\
          KeyPart part;\n\
          const bool found = blockIdx.x < KeyPart::numbers(p) && part.find(p, blockIdx.x);\n\
          if (found && threadIdx.x == 0) keys.store(p, part);\n\
          __syncwarp();\n\
          const int visits = found ? visit_count(p, keys) : 0;\n\
          if (threadIdx.x == 0) global<float>(p.dk)[blockIdx.x] = blockIdx.x < KeyPart::numbers(p) ? visits : -1;\n\
        }\n",
    params: &[<BwdParams as launch::Params>::c_declaration],
    header_owners: &[&attention::SOURCE],
    headers: &[],
    ..attention::SOURCE
};

fn no_cpu_code<P>(_: &P, _: &Team) {
    unreachable!("the kernel runs on the simulator only")
}

kernel!(KEY_BLOCKS, "key_blocks", FwdParams, no_cpu_code, &OF_PACKED, |p, _| a_thread_per_number(&FWD_BF16_WGMMA, p));
kernel!(KEY_BLOCKS_PAGED, "key_blocks", Params, no_cpu_code, &OF_PAGED, |p, _| {
    a_thread_per_number(&FWD_BF16_PREFILL_WGMMA, p)
});

kernel!(PART_VISITS, "part_visits", BwdParams, no_cpu_code, &OF_KEYS, |p, _| {
    vec![Stage::one_dimensional("part_visits", tile_numbers(&BWD_BF16_WGMMA, p) as u32, THREADS as u32)]
});

/// Threads of a block of the kernels above.
const THREADS: usize = 32;

/// Returns how many tile numbers the host's plan of `kernel` counts: the grid on a GPU with more multiprocessors.
fn tile_numbers(kernel: &Kernel, p: &impl launch::Params) -> usize {
    let arch = Arch { multiprocessors: u32::MAX, ..Arch::H100 };
    (kernel.plan)(bytemuck::bytes_of(p), &arch).last().expect("a stage").grid[0] as usize
}

/// Plans a launch of one thread per tile number, and at least one more.
fn a_thread_per_number(kernel: &Kernel, p: &impl launch::Params) -> Vec<Stage> {
    vec![Stage::one_dimensional("key_blocks", (tile_numbers(kernel, p) / THREADS + 1) as u32, THREADS as u32)]
}

/// A launch: its sequences as (earlier keys, queries), and the heads.
#[derive(Clone, Debug)]
struct Case {
    sequences: Vec<(usize, usize)>,
    heads: usize,
    kv_heads: usize,
    head_dim: u32,
    causal: bool,
    /// Whether the keys are in the pages of a KV cache. Without pages, the earlier keys are those of a shared prefix.
    paged: bool,
}

impl Case {
    /// Returns a causal case without earlier keys.
    fn packed((heads, kv_heads): (usize, usize), lengths: &[usize]) -> Case {
        let sequences = lengths.iter().map(|&n| (0, n)).collect();
        Case { sequences, heads, kv_heads, head_dim: 128, causal: true, paged: false }
    }

    fn starts(&self) -> Vec<i32> {
        let ends = self.sequences.iter().scan(0, |end, s| {
            *end += s.1 as i32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Returns the work of the backward pass for each number, in the order of the numbers: four products of 128 keys
    /// and 64 queries for each visit of a part of a tile of keys, then six for each block of keys of a tile of queries.
    /// Asserts that the plan counts as many numbers.
    fn gradient_products(&self) -> [Vec<u32>; 2] {
        let starts = self.starts();
        let prefix: Vec<i32> = self.sequences.iter().flat_map(|s| [0, s.0 as i32]).collect();
        let of_queries: Vec<u32> = self.key_blocks().into_iter().map(|blocks| 6 * blocks).collect();
        let p = BwdParams {
            cu_seqlens: addr(&starts),
            prefix: if self.sequences.iter().any(|s| s.0 > 0) { addr(&prefix) } else { Addr::NULL },
            tokens: starts[starts.len() - 1] as u32,
            seqs: self.sequences.len() as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: 128,
            causal: self.causal.into(),
            max_seqlen: self.sequences.iter().map(|s| s.1 as u32).max().unwrap_or(0),
            ..BwdParams::EMPTY
        };
        let with_output = |out| {
            let launch = bwd(BF16, &BwdParams { dk: out, workspace: out, ..p }, 0.0);
            let Launch::Kernel(launch) = launch else { unreachable!("attention is not a matrix product") };
            launch
        };
        let params = bytemuck::pod_read_unaligned::<BwdParams>(&with_output(Addr(16)).params);
        let numbers = tile_numbers(&BWD_BF16_WGMMA, &params);
        let out = TestArray::output(F32, numbers);
        let launch = with_output(out.addr());
        run_once(&Launch::Kernel(KernelLaunch { kernel: &PART_VISITS, ..launch }));
        let of_keys: Vec<u32> = out.values().iter().filter(|&&n| n >= 0.0).map(|&visits| 4 * visits as u32).collect();
        assert_eq!(of_keys.len() + of_queries.len(), numbers, "numbers of the kernel and of the plan: {self:?}");
        [of_keys, of_queries]
    }

    /// Returns the number of key blocks of each tile number in the order of the numbers, from the kernel's own code.
    /// Asserts that the plan counts as many numbers.
    fn key_blocks(&self) -> Vec<u32> {
        let starts = self.starts();
        let prefix: Vec<i32> = self.sequences.iter().flat_map(|s| [0, s.0 as i32]).collect();
        let kv_lens: Vec<i32> = self.sequences.iter().map(|s| (s.0 + s.1) as i32).collect();
        let (tokens, seqs) = (starts[starts.len() - 1] as u32, self.sequences.len() as u32);
        let (heads, kv_heads, head_dim) = (self.heads as u32, self.kv_heads as u32, self.head_dim);
        let has_earlier = self.sequences.iter().any(|s| s.0 > 0);
        let packed = FwdParams {
            cu_seqlens: addr(&starts),
            prefix: if has_earlier { addr(&prefix) } else { Addr::NULL },
            tokens,
            seqs,
            heads,
            kv_heads,
            head_dim,
            causal: self.causal.into(),
            max_seqlen: self.sequences.iter().map(|s| s.1 as u32).max().unwrap_or(0),
            ..FwdParams::EMPTY
        };
        let paged = Params {
            cu_seqlens: packed.cu_seqlens,
            kv_lens: addr(&kv_lens),
            tokens,
            seqs,
            heads,
            kv_heads,
            head_dim,
            max_kv_len: kv_lens.iter().map(|&n| n as u32).max().unwrap_or(0),
            page_tokens: 64,
            ..Params::EMPTY
        };
        let count = match self.paged {
            true => tile_numbers(&FWD_BF16_PREFILL_WGMMA, &paged),
            false => tile_numbers(&FWD_BF16_WGMMA, &packed),
        };
        let out = TestArray::output(F32, (count / THREADS + 1) * THREADS);
        let keys: i32 = kv_lens.iter().sum();
        let (kernel, launch) = match self.paged {
            true => {
                let p = Params { o: out.addr(), ..paged };
                (&KEY_BLOCKS_PAGED, paged_attention::fwd(BF16, &p, 0.0, keys.into()))
            }
            false => (&KEY_BLOCKS, fwd(BF16, &FwdParams { o: out.addr(), ..packed }, 0.0)),
        };
        let Launch::Kernel(launch) = launch else { unreachable!("attention is not a matrix product") };
        run_once(&Launch::Kernel(KernelLaunch { kernel, ..launch }));
        let numbers: Vec<f32> = out.values();
        let of_kernel = numbers.iter().filter(|&&n| n >= 0.0).count();
        assert_eq!(of_kernel, count, "numbers of the kernel and of the plan: {self:?}");
        numbers[..count].iter().map(|&n| n as u32).collect()
    }

    /// Returns the number of key blocks of each tile of all heads, in ascending order, by the definition of a tile.
    fn key_blocks_by_definition(&self) -> Vec<u32> {
        let tile = positions_per_tile(self.head_dim) as usize;
        let of = |&(earlier, queries): &(usize, usize)| {
            let keys = earlier + queries;
            let tiles = if queries == 0 { 0..0 } else { earlier / tile..keys.div_ceil(tile) };
            let seen = move |t: usize| if self.causal { keys.min((t + 1) * tile) } else { keys };
            tiles.map(move |t| (seen(t) as u32).div_ceil(BLOCK_KEYS))
        };
        let of_head: Vec<u32> = self.sequences.iter().flat_map(of).collect();
        let mut all = of_head.repeat(self.heads);
        all.sort_unstable();
        all
    }
}

/// Returns the work of the busiest of `blocks` blocks of threads, each of which takes the next number as soon as it is
/// free.
fn busiest(work: &[u32], blocks: usize) -> u32 {
    let mut loads: BinaryHeap<Reverse<u32>> = vec![Reverse(0); blocks].into();
    for work in work {
        let Reverse(least) = loads.pop().expect("there are blocks");
        loads.push(Reverse(least + work));
    }
    loads.into_iter().map(|Reverse(load)| load).max().expect("there are blocks")
}

fn mean(work: &[u32], blocks: usize) -> f64 {
    f64::from(work.iter().sum::<u32>()) / blocks as f64
}

/// Returns the mean work of the multiprocessors of an H200, divided by that of the busiest.
fn balance(work: &[u32]) -> f64 {
    let blocks = Arch::H100.multiprocessors as usize;
    mean(work, blocks) / f64::from(busiest(work, blocks))
}

/// The busiest multiprocessor of an H200 has little more work than the mean, for the calls of training and prefill. Up
/// to 2048 tokens have few tiles for each multiprocessor.
#[test]
fn all_multiprocessors_get_nearly_the_same_work() {
    let (of_3b, of_7b, of_72b) = ((16, 2), (28, 4), (64, 8));
    let group = |prompt| [(0, prompt)].into_iter().chain([(prompt, 512); 8]).collect();
    let prefill = |cached, new| Case { paged: true, sequences: vec![(cached, new)], ..Case::packed(of_7b, &[]) };
    let cases = [
        (0.95, Case::packed(of_7b, &[8192])),
        (0.95, Case::packed(of_7b, &[16384])),
        (0.95, Case::packed(of_7b, &[6144])),
        (0.95, Case::packed(of_7b, &[4096])),
        (0.9, Case::packed(of_7b, &[2048])),
        (0.9, Case::packed(of_7b, &[1376])),
        (0.95, Case::packed(of_7b, &[1024; 16])),
        (0.95, Case::packed(of_7b, &[3000, 1200, 2500, 700, 792])),
        (0.95, Case { sequences: group(1376), ..Case::packed(of_7b, &[]) }),
        (0.95, Case::packed(of_3b, &[8192])),
        (0.95, Case::packed(of_3b, &[4096])),
        (0.9, Case::packed(of_3b, &[2048])),
        (0.95, prefill(0, 4096)),
        (0.9, prefill(0, 2048)),
        // Three or four tiles of 17 to 32 key blocks for each multiprocessor.
        (0.88, prefill(2048, 2048)),
        (0.95, Case::packed(of_72b, &[8192])),
        // Eight sections of one key head.
        (0.95, Case::packed(of_72b, &[32768])),
        // The vision tower: 352 tiles for one image, 1408 for four.
        (0.88, Case { head_dim: 80, causal: false, ..Case::packed((16, 16), &[4096]) }),
        (0.95, Case { head_dim: 80, causal: false, ..Case::packed((16, 16), &[4096; 4]) }),
    ];
    run_test_on_sim(|| {
        for (least, case) in &cases {
            let balance = balance(&case.key_blocks());
            println!("{balance:.3} {case:?}");
            assert!(balance >= *least, "mean / busiest is {balance:.3}, expected {least}: {case:?}");
        }
    });
}

/// The same for the backward pass, and for its tiles of queries alone. A sequence of up to 1536 tokens alone has too
/// few visits for parts that would keep all multiprocessors busy.
#[test]
fn all_multiprocessors_get_nearly_the_same_work_of_gradients() {
    let (of_3b, of_7b, of_72b) = ((16, 2), (28, 4), (64, 8));
    let group = |prompt, completion| [(0, prompt)].into_iter().chain([(prompt, completion); 8]).collect();
    let cases = [
        (0.95, Case::packed(of_7b, &[8192])),
        (0.95, Case::packed(of_7b, &[6144])),
        (0.95, Case::packed(of_7b, &[4736])),
        (0.95, Case::packed(of_7b, &[4096])),
        (0.95, Case::packed(of_7b, &[3000])),
        (0.95, Case::packed(of_7b, &[2048])),
        (0.95, Case::packed(of_7b, &[1024; 16])),
        (0.95, Case::packed(of_7b, &[2048; 8])),
        (0.95, Case::packed(of_7b, &[3000, 1200, 2500, 700, 792])),
        (0.95, Case { sequences: group(1376, 512), ..Case::packed(of_7b, &[]) }),
        (0.95, Case { sequences: group(4096, 300), ..Case::packed(of_7b, &[]) }),
        (0.95, Case::packed(of_3b, &[8192])),
        (0.95, Case::packed(of_3b, &[4096])),
        // Four parts of 64 visits; all work is 57.7 visits for each multiprocessor.
        (0.9, Case::packed(of_3b, &[2048])),
        (0.85, Case { sequences: group(1376, 512), ..Case::packed(of_3b, &[]) }),
        (0.95, Case::packed(of_72b, &[8192])),
        (0.95, Case::packed(of_72b, &[2048])),
    ];
    run_test_on_sim(|| {
        for (least, case) in &cases {
            let [of_keys, of_queries] = case.gradient_products();
            let parts = of_keys.iter().filter(|&&work| work > 0).count();
            let (of_both, of_queries) = (balance(&[of_keys, of_queries.clone()].concat()), balance(&of_queries));
            println!("{of_both:.3}, tiles of queries alone {of_queries:.3}, {parts} parts: {case:?}");
            assert!(of_both >= *least, "mean / busiest is {of_both:.3}, expected {least}: {case:?}");
        }
    });
}

fn cases() -> impl Strategy<Value = Case> {
    let heads = prop::sample::select(vec![(1, 1), (6, 3), (7, 1), (28, 4)]);
    let sequence = (prop_oneof![Just(0usize), 1usize..1500], prop_oneof![0usize..3, 1usize..2000]);
    let head_dim = prop::sample::select(vec![80, 128]);
    (prop::collection::vec(sequence, 1..30), heads, head_dim, any::<bool>(), any::<bool>()).prop_filter_map(
        "tokens, and not windows alone",
        |(sequences, (heads, kv_heads), head_dim, causal, paged)| {
            let (tokens, longest) = sequences.iter().fold((0, 0), |(sum, max), s| (sum + s.1, max.max(s.1)));
            let (causal, is_windows) = (causal || paged, head_dim == 80 && longest <= 64);
            let case = Case { sequences, heads, kv_heads, head_dim, causal, paged };
            (tokens > 0 && !is_windows).then_some(case)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Every tile has one number, and on any number of multiprocessors the busiest has at most one tile more than the
    /// mean (Graham 1969).
    #[test]
    fn every_tile_has_one_number_and_no_multiprocessor_has_a_tile_too_many(case in cases(), blocks in 1usize..200) {
        run_test_on_sim(|| {
            let work = case.key_blocks();
            let (longest, busiest) = (*work.iter().max().expect("numbers"), busiest(&work, blocks));
            assert!(f64::from(busiest) <= mean(&work, blocks) + f64::from(longest), "{busiest} on {blocks}: {case:?}");
            let mut tiles: Vec<u32> = work.into_iter().filter(|&n| n > 0).collect();
            tiles.sort_unstable();
            assert!(tiles == case.key_blocks_by_definition(), "{case:?}");
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// The parts of a tile of keys visit each head of the group once: all parts together have the visits of all pairs
    /// of a tile of 64 queries and a head that see some of the keys.
    #[test]
    fn parts_visit_each_head_once(case in cases()) {
        let case = Case { paged: false, head_dim: 128, ..case };
        let starts: Vec<usize> = case.starts().iter().map(|&n| n as usize).collect();
        // A prefix is at most all tokens before the last sequence.
        let sequences: Vec<_> =
            case.sequences.iter().map(|s| (s.0.min(starts[starts.len() - 2]), s.1)).collect();
        let case = Case { sequences, ..case };
        let mut want = 0;
        for (n, &(_, queries)) in case.sequences.iter().enumerate() {
            for from in (0..queries).step_by(128) {
                let (token, rows) = (starts[n] + from, 128.min(queries - from));
                let own = queries.div_ceil(64) - if case.causal { from / 64 } else { 0 };
                let sees = |s: &&(usize, usize)| token < s.0 && s.1 > 0 && rows > 0;
                want += own + case.sequences.iter().filter(sees).map(|s| s.1.div_ceil(64)).sum::<usize>();
            }
        }
        run_test_on_sim(|| {
            let [of_keys, _] = case.gradient_products();
            assert_eq!(of_keys.iter().sum::<u32>() as usize, 4 * want * case.heads, "{case:?}");
        });
    }
}

/// The forward kernel of head_dim 64 alone, which compiles faster than the whole folder.
const FORWARD: &str = "#include \"attention/forward_wgmma.cuh\"\n#include \"attention/packed_source.cuh\"\n\
    extern \"C\" __global__ void __launch_bounds__(WGMMA_THREADS<64>, 1)\n\
    attention_fwd_bf16_wgmma_64(const __grid_constant__ FwdParams p) { forward_wgmma<64, PackedSource<>>(p); }\n";

/// Compiles `kernels` with `text`, which is once in the folder's headers, replaced by `changed`.
fn changed_module(kernels: &'static str, params: &'static [fn() -> String], text: &str, changed: &str) -> PtxModule {
    let headers = attention::SOURCE.headers;
    assert_eq!(headers.iter().map(|(_, header)| header.matches(text).count()).sum::<usize>(), 1, "{text}");
    let change = |&(name, header): &(&'static str, &'static str)| {
        (name, if header.contains(text) { &*header.replace(text, changed).leak() } else { header })
    };
    let headers: Vec<_> = headers.iter().map(change).collect();
    let source = Source { sm80: kernels, params, headers: headers.leak(), ..attention::SOURCE };
    let ptx = compile_to_ptx(&source, "sm_90a").expect("the kernel compiles");
    PtxModule::new(Program::parse(&ptx).expect("the PTX is valid"))
}

/// What two forward launches with the same tile counter leave.
#[derive(PartialEq)]
struct Outcome {
    output: Vec<u8>,
    counter: Vec<u8>,
    /// Operations of matrix products. They show whether a tile was computed twice.
    flops: u64,
}

/// Runs the forward launch twice on a simulated GPU with two multiprocessors, with `text` of a header replaced by
/// `changed`. Returns the outcome, or the first finding.
fn outcome_of_two_launches(text: &str, changed: &str) -> Result<Outcome, String> {
    let module = changed_module(FORWARD, &[<FwdParams as launch::Params>::c_declaration], text, changed);
    let given = Given::new(&batch(&[200, 1, 300], &[], (2, 1), 64, true, 1.0), BF16);
    let p = given.fwd(Addr(1 << 40), Addr::NULL);
    let mut memory = SimMemory::new();
    for data in [&given.q, &given.k, &given.v] {
        let bytes = data.values().iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        memory.map_buffer(data.addr().0, bytes, true);
    }
    memory.map_buffer(p.cu_seqlens.0, given.cu_seqlens.iter().flat_map(|n| n.to_le_bytes()).collect(), true);
    memory.map_buffer(p.tile_counter.0, vec![0; 4], true);
    memory.map_buffer(p.o.0, vec![0; 2 * given.q.values().len()], false);
    let gpu = Arch::H100.with_two_multiprocessors();
    let options = ExecOptions { gpu: simulate::gpu_spec(&gpu), ..ExecOptions::default() };
    let Launch::Kernel(launch) = fwd(BF16, &p, 0.0) else { unreachable!("no matrix product") };
    let launch = KernelLaunch { kernel: &FWD_BF16_WGMMA, ..launch };
    let mut flops = 0;
    for _ in 0..2 {
        let stages = module.run(&launch, &gpu, &mut memory, &options).map_err(|e| e.to_string())?;
        if let Some(finding) = stages.iter().flat_map(|s| &s.findings).next() {
            return Err(finding.message.clone());
        }
        flops += stages.iter().map(|s| s.counters.total().matrix_flops).sum::<u64>();
    }
    let read = |at: Addr| memory.buffer_bytes(at.0).expect("the buffer is mapped").to_vec();
    Ok(Outcome { output: read(p.o), counter: read(p.tile_counter), flops })
}

/// Two launches with one counter compute each tile once and leave the counter at 0. If the counter, the first number or
/// the broadcast of a number to the warp is changed, they do not, or the simulator reports a finding.
#[test]
fn a_wrong_tile_counter_is_noticed() {
    run_test_on_sim(|| {
        let first = "u32 number = blockIdx.x;";
        let right = outcome_of_two_launches(first, first).expect("no finding");
        assert_eq!(right.counter, [0; 4], "the counter after two launches");
        let is_written = |row: &[u8]| row.iter().any(|&byte| byte != 0);
        assert!(right.output.chunks(128).all(is_written), "a row of the output was not written");
        let share = "__shfl_sync(0xffffffffu, number, 0)";
        let wrap = "\"r\"(Source::template tiles<S::POSITIONS>(p).count(p) - 1)";
        let mutants = [
            ("the counter is not reset", wrap, "\"r\"(0xffffffffu)"),
            (
                "the counter is reset one draw early",
                wrap,
                "\"r\"(Source::template tiles<S::POSITIONS>(p).count(p) - 2)",
            ),
            ("the counter is reset one draw late", wrap, "\"r\"(Source::template tiles<S::POSITIONS>(p).count(p))"),
            ("lanes do not share the number", share, "number"),
            ("all blocks begin with tile 0", first, "u32 number = 0;"),
            ("blocks begin one tile late", first, "u32 number = blockIdx.x + 1;"),
            ("the first drawn number is another block's", "number = gridDim.x +", "number = gridDim.x - 1 +"),
        ];
        for (name, text, changed) in mutants {
            let got = outcome_of_two_launches(text, changed);
            assert!(got.as_ref() != Ok(&right), "{name}: no finding, and the same outcome");
        }
    });
}

/// The backward kernel of head_dim 64 alone, after a kernel that clears the counters only: delta is given.
const BACKWARD: &str = "#include \"attention/backward_wgmma.cuh\"\n\
    extern \"C\" __global__ void attention_bwd_bf16_ticket(const __grid_constant__ BwdParams p) { clear_counters(p); }\n\
    extern \"C\" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)\n\
    attention_bwd_bf16_wgmma_64(const __grid_constant__ BwdParams p) { backward_wgmma<64>(p); }\n";

/// Runs the backward launch on a simulated GPU with two multiprocessors, with `text` of a header replaced by `changed`.
/// Returns dk, dv and the operations of matrix products, or the first finding.
fn gradients_of_parts(text: &str, changed: &str) -> Result<([Vec<u8>; 2], u64), String> {
    let rule = KeyParts { undivided_tiles: 6, part_visits: 2 };
    let module = changed_module(BACKWARD, &[<BwdParams as launch::Params>::c_declaration], text, changed);
    let given = Given::new(&batch(&[140, 70], &[], (6, 2), 64, true, 1.0), BF16);
    let rows = given.tokens() * given.case.heads;
    let (o, lse) = (TestArray::new(BF16, &vec![0.5; rows * 64]), TestArray::new(F32, &vec![4.0; rows]));
    let scratch = given.scratch_in_parts(BF16, rule);
    let grads = [rows, rows / 3, rows / 3].map(|rows| TestArray::output(BF16, rows * 64));
    let p = given.bwd(&o, &lse, &scratch, grads.each_ref());
    let mut memory = SimMemory::new();
    for data in [&given.q, &given.k, &given.v, &given.d_o, &o] {
        let bytes = data.values().iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        memory.map_buffer(data.addr().0, bytes, true);
    }
    memory.map_buffer(p.cu_seqlens.0, given.cu_seqlens.iter().flat_map(|n| n.to_le_bytes()).collect(), true);
    memory.map_buffer(p.lse.0, 4.0f32.to_le_bytes().repeat(rows), true);
    memory.map_buffer(p.delta.0, 0.25f32.to_le_bytes().repeat(rows), true);
    // The counters and sums of an earlier launch.
    memory.map_buffer(p.workspace.0, 1u32.to_le_bytes().repeat(scratch[1].values().len()), false);
    grads.iter().for_each(|x| memory.map_buffer(x.addr().0, vec![0; 2 * x.values().len()], false));
    let gpu = Arch::H100.with_two_multiprocessors();
    let options = ExecOptions { gpu: simulate::gpu_spec(&gpu), ..ExecOptions::default() };
    let Launch::Kernel(launch) = bwd_in_parts(BF16, &p, 0.0, rule) else { unreachable!("no matrix product") };
    let launch = KernelLaunch { kernel: &BWD_BF16_WGMMA, ..launch };
    let stages = module.run(&launch, &gpu, &mut memory, &options).map_err(|e| e.to_string())?;
    if let Some(finding) = stages.iter().flat_map(|s| &s.findings).next() {
        return Err(finding.message.clone());
    }
    let flops = stages.iter().map(|s| s.counters.total().matrix_flops).sum();
    Ok(([p.dk, p.dv].map(|at| memory.buffer_bytes(at.0).expect("the buffer is mapped").to_vec()), flops))
}

/// A part that is left out, computed or added twice, added too early, or added to that of another head, and counters
/// that still have the values of an earlier launch, change the gradients, or the simulator reports a finding.
#[test]
fn wrong_parts_are_noticed() {
    run_test_on_sim(|| {
        let is_part = "return range.count > 0 && part < parts;";
        let right = gradients_of_parts(is_part, is_part).expect("no finding");
        let each_part = "for (int part = 0; part < parts; ++part)";
        let is_last = "+ 1 < static_cast<u32>(parts)";
        let clears = "p.max_parts > 1 && thread < arrivals(p)";
        let mutants = [
            ("the last part is left out", is_part, "return range.count > 0 && part + 1 < parts;"),
            ("parts beyond the last are computed", is_part, "return range.count > 0;"),
            ("parts overlap", "part.first_head(p, part.part + 1))", "part.first_head(p, part.part + 1) + 1)"),
            ("all parts are the first", "part = static_cast<int>(of_head % p.max_parts);", "part = 0;"),
            ("the first part is not added", each_part, "for (int part = 1; part < parts; ++part)"),
            ("the last part is added twice", "sums_of_part(keys, part, first", "sums_of_part(keys, part | 1, first"),
            ("the parts are added one arrival early", is_last, "+ 2 < static_cast<u32>(parts)"),
            ("the parts are added one arrival late", is_last, "< static_cast<u32>(parts)"),
            ("key heads share counters", "static_cast<u64>(token) * p.kv_heads + kv_head;", "token;"),
            ("counters are not cleared", clears, "thread < 1"),
            ("lanes do not wait for stores", "__syncwarp();  // all lanes have stored their sums", ""),
            (
                "lanes do not see the arrivals",
                "__syncwarp();  // all lanes see the sums of",
                "// all lanes see the sums of",
            ),
            ("an arrival orders nothing", "atom.acq_rel.gpu.global.add.u32", "atom.relaxed.gpu.global.add.u32"),
            ("all but the last counter are cleared", clears, "p.max_parts > 1 && thread + 80 < arrivals(p)"),
        ];
        for (name, text, changed) in mutants {
            let got = gradients_of_parts(text, changed);
            assert!(got.as_ref() != Ok(&right), "{name}: no finding, and the same outcome");
        }
    });
}
