//! Counts on the simulator the inputs of the performance model in `tools/src/measure/kernel_model`: a kernel's warp
//! instructions and bytes through L2, for each byte and each operation of its cost.
//!
//! ```text
//! cargo test -p reel-kernels --lib inputs_of_the_model -- --ignored --nocapture | grep symbol
//! ```
//!
//! prints one JSON object for each kernel. Two launches that differ in the number of rows give both coefficients of
//! kernels that multiply rows with a weight; one launch gives one coefficient of every other kernel.

use bytemuck::Zeroable;
use reel_device::launch::{Arch, KernelLaunch, Launch};
use reel_device::{Addr, DType};

use super::on_sim::simulated_counts_on;
use super::traffic::{TrafficArrays, TrafficLaunches};
use super::{normal_numbers, run_test_on_sim};
use crate::skinny::WeightFormat::{self, Bf16, Int8};
use crate::{attention, catalogue, paged_attention, sample, skinny};

const SMALL_H100: Arch = Arch::H100.with_two_multiprocessors();

/// The unit to which a coefficient refers: one byte or one operation of a launch's cost.
#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Byte,
    Flop,
}

/// Prints the coefficients of each launch that a folder's test of traffic makes.
pub(crate) fn print_inputs_of_traffic_launches(calls: impl Fn(&mut TrafficArrays) -> TrafficLaunches) {
    run_test_on_sim(|| {
        let mut arrays = TrafficArrays::default();
        for (launch, _) in calls(&mut arrays) {
            print_inputs(&launch, &SMALL_H100, Unit::Byte);
        }
    });
}

/// Returns the symbol of the stage that does the work of a launch: the stage with the most dynamic shared memory and,
/// among equals, the most threads. `tools/src/measure/kernel_model/mod.rs` chooses the stage in the same way.
fn symbol(launch: &Launch, arch: &Arch) -> &'static str {
    let Launch::Kernel(kernel) = launch else { return "" };
    let threads = |s: &reel_device::Stage| s.grid.iter().chain(&s.block).map(|n| u64::from(*n)).product::<u64>();
    (kernel.kernel.plan)(&kernel.params, arch).iter().max_by_key(|s| (s.shared, threads(s))).map_or("", |s| s.symbol)
}

/// Returns the number of warp instructions of a launch and the number of bytes that it moves.
fn counts(launch: &Launch, arch: &Arch) -> [f64; 2] {
    let count = simulated_counts_on(launch, arch);
    [count.warps as f64, (count.global_read + count.global_written) as f64]
}

fn print_inputs(launch: &Launch, arch: &Arch, unit: Unit) {
    let of = if unit == Unit::Byte { launch.cost().bytes } else { launch.cost().flops };
    print_inputs_of(launch, arch, unit, of);
}

/// Prints one coefficient of a launch: each of its counts divided by `of`, the bytes or operations of the launch's
/// cost.
fn print_inputs_of(launch: &Launch, arch: &Arch, unit: Unit, of: f64) {
    let [instructions, bytes] = counts(launch, arch).map(|count| count / of);
    let unit = if unit == Unit::Byte { "byte" } else { "flop" };
    println!(
        r#"{{"symbol": "{}", "instructions_per_{unit}": {instructions:.3e}, "l2_bytes_per_{unit}": {bytes:.3e}}}"#,
        symbol(launch, arch)
    );
}

/// Prints both coefficients from a launch with few rows and one with many: `count = a · bytes + b · operations`.
fn print_inputs_of_two(few: &Launch, many: &Launch, arch: &Arch) {
    let (low, high) = (counts(few, arch), counts(many, arch));
    let (c, d) = (few.cost(), many.cost());
    let both = |i: usize| {
        let determinant = c.bytes * d.flops - d.bytes * c.flops;
        let per_byte = (low[i] * d.flops - high[i] * c.flops) / determinant;
        let per_flop = (high[i] * c.bytes - low[i] * d.bytes) / determinant;
        (per_byte, per_flop)
    };
    let ((ib, io), (bb, bo)) = (both(0), both(1));
    println!(
        r#"{{"symbol": "{}", "instructions_per_byte": {ib:.3e}, "instructions_per_flop": {io:.3e}, "l2_bytes_per_byte": {bb:.3e}, "l2_bytes_per_flop": {bo:.3e}}}"#,
        symbol(many, arch)
    );
}

/// Inner dimension of the skinny GEMMs: the hidden size of Qwen2.5-VL-7B.
const K: u32 = 3584;

/// Makes the skinny GEMMs of a decode step with `m` rows, and the number of columns of each. x has few bytes in
/// comparison with the weight.
fn skinny_launches(arrays: &mut TrafficArrays, m: u32, columns: [u32; 4], format: WeightFormat) -> [Launch; 4] {
    let most = columns.into_iter().max().unwrap_or(0);
    let (weight_bytes, scale) = match format {
        Bf16 => (2, Addr::NULL),
        Int8 => (1, arrays.alloc_f32(most)),
    };
    let [w, w2] = [(); 2].map(|()| arrays.alloc_elements(most * K, weight_bytes));
    let (x, norm, y) = (arrays.alloc_elements(m * K, 2), arrays.alloc_elements(K, 2), arrays.alloc_f32(m * most));
    let linear = skinny::Params { x, w, scale, y, m, n: columns[0], k: K, eps: 1e-6, ..Zeroable::zeroed() };
    let swiglu = skinny::Params { w2, scale2: scale, norm, n: columns[1], ..linear };
    // The columns of qkv hold four heads: two of queries, one of keys and one of values.
    let (head_dim, page_tokens) = (columns[2] / 4, 64);
    let [cos, sin] = [(); 2].map(|()| arrays.alloc_f32(m * head_dim / 2));
    let [k_cache, v_cache] = [(); 2].map(|()| arrays.alloc_elements(page_tokens * head_dim, 2));
    let qkv = skinny::QkvParams {
        x,
        norm,
        w_q: w,
        w_k: w2,
        w_v: w2.offset((head_dim * K) as usize * weight_bytes),
        scale_q: scale,
        scale_k: scale,
        scale_v: scale,
        cos,
        sin,
        slots: arrays.alloc_i32(0..m as i32),
        q: y,
        k_cache,
        v_cache,
        m,
        k: K,
        heads: 2,
        kv_heads: 1,
        head_dim,
        pages: 1,
        page_tokens,
        eps: 1e-6,
        ..Zeroable::zeroed()
    };
    [
        skinny::linear(DType::BF16, format, &linear),
        skinny::swiglu(DType::BF16, format, &swiglu),
        skinny::qkv(DType::BF16, format, &qkv),
        skinny::logits(DType::BF16, format, &skinny::Params { n: columns[3], ..linear }),
    ]
}

/// Returns the launch with the kernel variant of this name; `None` if there is none.
fn variant(launch: &Launch, name: &str) -> Option<Launch> {
    let Launch::Kernel(launch) = launch else { return None };
    let variant = catalogue::variants_of(launch.kernel).find(|variant| variant.name == name)?;
    Some(Launch::Kernel(KernelLaunch { kernel: variant.kernel, ..launch.clone() }))
}

#[test]
#[ignore = "prints a table; see the module"]
fn inputs_of_the_model_skinny() {
    // Simulates an H100 with only as many multiprocessors as share one read of x: one, or the four of a cluster. A
    // block gets as many columns as on a whole GPU in Qwen2.5-VL-7B (of q, k and v 128 columns instead of 32; in a
    // cluster 24 pairs of columns, or 64 columns). Every block or cluster reads x, but the cost of a whole launch
    // counts x once. The number of rows does not change a block's instructions.
    let places = |multiprocessors| Arch { multiprocessors, ..Arch::H100 };
    let one_of_tiles = (places(1), 1.0 / f64::from(Arch::H100.multiprocessors));
    let one_of_clusters = (places(4), 1.0 / f64::from(2 * Arch::H100.clusters_of_8));
    run_test_on_sim(|| {
        let mut arrays = TrafficArrays::default();
        for format in [Bf16, Int8] {
            for (linear, m) in [28, 144].into_iter().flat_map(|linear| [8, 16, 32, 64].map(|m| (linear, m))) {
                let in_clusters = format == Bf16 && m > 16;
                // One kernel for 17 to 64 rows.
                if in_clusters && m < 64 {
                    continue;
                }
                let (arch, share_of_x) = if in_clusters { &one_of_clusters } else { &one_of_tiles };
                let columns = match in_clusters {
                    true => [4 * (linear + 4), 632, if linear < 100 { 192 } else { 512 }, 640],
                    false => [linear, 144, 128, 144],
                };
                for launch in skinny_launches(&mut arrays, m, columns, format) {
                    let x_bytes = 2.0 * f64::from(m) * f64::from(K);
                    let launch = variant(&launch, "tiles").expect("a variant");
                    let bytes = launch.cost().bytes - x_bytes * (1.0 - share_of_x);
                    print_inputs_of(&launch, arch, Unit::Byte, bytes);
                }
            }
            for name in ["16 columns", "32 columns", "copies of 16 bytes"] {
                let [few, many] = [1, 64]
                    .map(|m| skinny_launches(&mut arrays, m, [512; 4], format).map(|launch| variant(&launch, name)));
                for (few, many) in few.iter().flatten().zip(many.iter().flatten()) {
                    print_inputs_of_two(few, many, &Arch::H100);
                }
            }
        }
    });
}

#[test]
#[ignore = "prints a table; see the module"]
fn inputs_of_the_model_sample() {
    run_test_on_sim(|| {
        let vocab = 152_064;
        let logits = normal_numbers(vocab, 3, 2.0);
        let mut arrays = TrafficArrays::default();
        let (zero, one, top_p) =
            (arrays.alloc_i32([0]), arrays.alloc_i32([0x3f80_0000]), arrays.alloc_i32([0x3f00_0000]));
        let greedy = sample::Params {
            logits: super::addr(&logits),
            temperature: zero,
            top_p: one,
            top_k: zero,
            penalty: one,
            seed: arrays.alloc_elements(1, 8),
            position: zero,
            ids: arrays.alloc_f32(1),
            rows: 1,
            vocab: vocab as u32,
            ..sample::Params::default()
        };
        let log_probs = sample::Params { log_prob: arrays.alloc_f32(1), ..greedy };
        let sampled = sample::Params { temperature: one, ..log_probs };
        for (case, params) in [
            ("greedy", greedy),
            ("greedy with log-probability", log_probs),
            ("sampled with log-probability", sampled),
            ("top-p 0.5 with log-probability", sample::Params { top_p, ..sampled }),
        ] {
            println!("{case}:");
            print_inputs(&sample::sample(&params), &Arch::H100, Unit::Byte);
        }
    });
}

#[test]
#[ignore = "prints a table; see the module"]
fn inputs_of_the_model_paged_attention() {
    run_test_on_sim(|| {
        let mut arrays = TrafficArrays::default();
        let (seqs, keys, heads, kv_heads, head_dim) = (2u32, 1024u32, 28u32, 4u32, 128u32);
        let blocks = keys / 64;
        let caches = [(); 2].map(|()| arrays.alloc_elements(seqs * keys * kv_heads * head_dim, 2));
        let mut p = paged_attention::Params {
            q: arrays.alloc_elements(seqs * heads * head_dim, 2),
            k_cache: caches[0],
            v_cache: caches[1],
            o: arrays.alloc_elements(seqs * heads * head_dim, 2),
            cu_seqlens: arrays.alloc_i32(0..=seqs as i32),
            kv_lens: arrays.alloc_i32(vec![keys as i32; seqs as usize]),
            block_tables: arrays.alloc_i32(0..(seqs * blocks) as i32),
            workspace: Addr::NULL,
            counters: arrays.alloc_i32(vec![0; (seqs * paged_attention::counters_per_token(heads, kv_heads)) as usize]),
            tokens: seqs,
            seqs,
            heads,
            kv_heads,
            head_dim,
            max_blocks: blocks,
            scale: 0.05,
            max_kv_len: keys,
            page_tokens: 64,
            ..paged_attention::Params::EMPTY
        };
        p.workspace = arrays.alloc_elements(paged_attention::workspace_bytes(DType::BF16, &p), 1);
        let (pairs, all) = paged_attention::query_key_pair_and_key_counts((0..seqs).map(|_| (1, keys as usize)));
        print_inputs(&paged_attention::fwd(DType::BF16, &p, pairs, all), &Arch::H100, Unit::Byte);
    });
}

#[test]
#[ignore = "prints a table; see the module"]
fn inputs_of_the_model_attention() {
    run_test_on_sim(|| {
        let mut arrays = TrafficArrays::default();
        let (tokens, heads, kv_heads, head_dim) = (1024u32, 7u32, 1u32, 128u32);
        let wide = [(); 4].map(|()| arrays.alloc_elements(tokens * heads * head_dim, 2));
        let narrow = [(); 4].map(|()| arrays.alloc_elements(tokens * kv_heads * head_dim, 2));
        let fwd = attention::FwdParams {
            q: wide[0],
            k: narrow[0],
            v: narrow[1],
            o: wide[1],
            lse: arrays.alloc_f32(tokens * heads),
            cu_seqlens: arrays.alloc_i32([0, tokens as i32]),
            prefix: Addr::NULL,
            tile_counter: arrays.alloc_i32([0]),
            tokens,
            seqs: 1,
            heads,
            kv_heads,
            head_dim,
            causal: 1,
            scale: 0.05,
            max_seqlen: tokens,
            ..attention::FwdParams::EMPTY
        };
        let pairs = attention::query_key_pair_count([tokens as usize], true);
        print_inputs(&attention::fwd(DType::BF16, &fwd, pairs), &Arch::H100, Unit::Flop);
        let mut bwd = attention::BwdParams {
            q: wide[0],
            k: narrow[0],
            v: narrow[1],
            o: wide[1],
            lse: fwd.lse,
            d_o: wide[2],
            dq: wide[3],
            dk: narrow[2],
            dv: narrow[3],
            delta: arrays.alloc_f32(tokens * heads),
            workspace: Addr::NULL,
            cu_seqlens: fwd.cu_seqlens,
            prefix: Addr::NULL,
            tokens,
            seqs: 1,
            heads,
            kv_heads,
            head_dim,
            causal: 1,
            scale: 0.05,
            max_seqlen: tokens,
            ..attention::BwdParams::EMPTY
        };
        bwd.workspace = arrays.alloc_elements(attention::workspace_bytes(DType::BF16, &bwd, 90), 1);
        for arch in [Arch::H100, SMALL_H100] {
            print_inputs(&attention::bwd(DType::BF16, &bwd, pairs), &arch, Unit::Flop);
        }
    });
}
