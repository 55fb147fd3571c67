//! Checks of `qkv`: the products, the rotation and the writes to the caches in one launch.

use bytemuck::Zeroable;
use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{NORM_CASES_M_N_K, Stored, bits};
use crate::checks::{TestArray, addr, normal_numbers, run, run_once, with_one_interleaving};
use crate::skinny::{QkvParams, WeightFormat, linear, qkv};
use crate::{rms_norm, rope_kv_write};

/// Tokens of a cache block.
const PAGE: usize = 16;

/// The operands of a launch.
pub(super) struct QkvCase {
    dtype: DType,
    kind: WeightFormat,
    m: usize,
    k: usize,
    /// Query heads, key and value heads, and elements of a head.
    heads: [usize; 3],
    x: TestArray,
    /// Of q, k and v; k has no bias.
    weights: [Stored; 3],
    biases: [Option<TestArray>; 3],
    cos: TestArray,
    sin: TestArray,
    /// The cache slot of each row. Slots differ; every fifth row, from the third on, is padding with a negative slot.
    slots: Vec<i32>,
}

impl QkvCase {
    pub(super) fn new(dtype: DType, kind: WeightFormat, [m, k]: [usize; 2], heads: [usize; 3]) -> QkvCase {
        let [queries, keys, head_dim] = heads;
        let columns = [queries * head_dim, keys * head_dim, keys * head_dim];
        let data = |count, seed| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
        let angles = normal_numbers(m * head_dim / 2, 20, 3.0);
        let of_angles = |f: fn(f32) -> f32| TestArray::new(F32, &angles.iter().map(|&a| f(a)).collect::<Vec<_>>());
        // Slots differ because, below 272 rows, 17 has no factor in common with the number of slots.
        let slots = m.div_ceil(PAGE) * PAGE;
        let slot = |row: usize| if row % 5 == 2 { -1 - row as i32 } else { (row * 17 % slots) as i32 };
        QkvCase {
            dtype,
            kind,
            m,
            k,
            heads,
            x: data(m * k, 11),
            weights: [0, 1, 2].map(|i| Stored::new(kind, columns[i], k, 13 + i as u64)),
            biases: [0, 1, 2].map(|i| (i != 1).then(|| data(columns[i], 16 + i as u64))),
            cos: of_angles(f32::cos),
            sin: of_angles(f32::sin),
            slots: (0..m).map(slot).collect(),
        }
    }

    /// Returns the numbers of elements of q and of one cache.
    fn counts(&self) -> [usize; 2] {
        let [queries, keys, head_dim] = self.heads;
        [self.m * queries * head_dim, self.m.div_ceil(PAGE) * PAGE * keys * head_dim]
    }

    /// Returns the number of elements of q and both caches together.
    pub(super) fn element_count(&self) -> usize {
        let [q, cache] = self.counts();
        q + 2 * cache
    }

    /// Returns the parameters of a launch whose outputs lie one after the other from `results` on: q, the cache of
    /// keys, the cache of values. `norm` may be null.
    pub(super) fn params(&self, results: Addr, norm: Addr) -> QkvParams {
        let [queries, keys, head_dim] = self.heads.map(|n| n as u32);
        let [q_bytes, cache_bytes] = self.counts().map(|n| n * self.dtype.size());
        let [(w_q, scale_q), (w_k, scale_k), (w_v, scale_v)] = self.weights.each_ref().map(Stored::addresses);
        let [bias_q, bias_k, bias_v] =
            self.biases.each_ref().map(|bias| bias.as_ref().map_or(Addr::NULL, TestArray::addr));
        QkvParams {
            x: self.x.addr(),
            norm,
            w_q,
            w_k,
            w_v,
            scale_q,
            scale_k,
            scale_v,
            bias_q,
            bias_k,
            bias_v,
            cos: self.cos.addr(),
            sin: self.sin.addr(),
            slots: addr(&self.slots),
            q: results,
            k_cache: results.offset(q_bytes),
            v_cache: results.offset(q_bytes + cache_bytes),
            m: self.m as u32,
            k: self.k as u32,
            heads: queries,
            kv_heads: keys,
            head_dim,
            pages: self.m.div_ceil(PAGE) as u32,
            page_tokens: PAGE as u32,
            eps: 1e-6,
            ..Zeroable::zeroed()
        }
    }

    /// Computes the results of [`QkvCase::params`] by separate launches of norm, products, rotation and cache writes.
    fn results_one_by_one(&self, norm: Addr) -> TestArray {
        let (dtype, [queries, keys, head_dim]) = (self.dtype, self.heads);
        let results = TestArray::output(dtype, self.element_count());
        let p = self.params(results.addr(), norm);
        let normed = TestArray::output(dtype, self.m * self.k);
        let rows = rms_norm::FwdParams {
            x: p.x,
            w: p.norm,
            y: normed.addr(),
            rows: p.m,
            cols: p.k,
            eps: p.eps,
            ..Zeroable::zeroed()
        };
        if !norm.is_null() {
            run_once(&rms_norm::fwd(dtype, &rows));
        }
        let [q, k, v] = [queries, keys, keys].map(|heads| TestArray::output(dtype, self.m * heads * head_dim));
        let x = if norm.is_null() { p.x } else { normed.addr() };
        for product in p.product_params(x, [q.addr(), k.addr(), v.addr()]) {
            run_once(&linear(dtype, self.kind, &product));
        }
        run_once(&rope_kv_write::write(
            dtype,
            &rope_kv_write::Params { q: q.addr(), ..p.kv_write_params([k.addr(), v.addr()]) },
        ));
        let caches = &results.values()[self.counts()[0]..];
        TestArray::new(dtype, &[&q.values(), caches].concat())
    }
}

/// Cases (rows, k, [query heads, key and value heads, head_dim]): whole and partial units of eight pairs of columns,
/// and several blocks of rows.
const CASES_M_K_HEADS: [(usize, usize, [usize; 3]); 10] = [
    (1, 72, [4, 2, 16]),
    (5, 40, [2, 1, 6]),
    (17, 31, [3, 1, 20]),
    (3, 264, [2, 1, 128]),
    (64, 88, [1, 1, 34]),
    (67, 24, [2, 2, 2]),
    (33, 1031, [1, 1, 8]),
    (12, 64, [2, 1, 8]),
    (20, 48, [2, 1, 16]),
    (70, 32, [1, 1, 12]),
];

/// A further case with so many heads that a block of a cluster has 64 pairs of columns, as in a 72B model.
const MANY_HEADS_M_K_HEADS: (usize, usize, [usize; 3]) = (18, 16, [57, 2, 128]);

fn check(dtype: DType, kind: WeightFormat, (m, k, heads): (usize, usize, [usize; 3]), has_norm: bool) {
    let case = QkvCase::new(dtype, kind, [m, k], heads);
    let norm = TestArray::new(dtype, &normal_numbers(k, 12, 1.0));
    let norm = if has_norm { norm.addr() } else { Addr::NULL };
    let want = case.results_one_by_one(norm);
    let got = TestArray::output(dtype, case.element_count());
    run(&qkv(dtype, kind, &case.params(got.addr(), norm)), 2);
    assert_eq!(bits(&got), bits(&want), "{dtype} {kind:?}, {m} rows, {k} terms, heads {heads:?}");
}

pub(super) fn qkv_has_the_bits_of_products_and_of_rope_kv_write() {
    with_one_interleaving(|| {
        check(BF16, WeightFormat::Bf16, MANY_HEADS_M_K_HEADS, true);
        // The lengths k cover all ways in which `rms_norm` computes a row.
        let norms = NORM_CASES_M_N_K.map(|(m, n, k)| (m, k, [1, 1, n.next_multiple_of(2)]));
        for dtype in [F32, BF16] {
            for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
                for (i, case) in CASES_M_K_HEADS.into_iter().chain(norms).enumerate() {
                    check(dtype, kind, case, i >= CASES_M_K_HEADS.len() || i % 2 == 0);
                }
            }
        }
    });
}
