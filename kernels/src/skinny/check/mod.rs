use bytemuck::Zeroable;
use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};
use reel_device::cpu::simd::{Isa, isa};
use reel_device::launch::{KernelLaunch, Launch};

use self::after_products::{
    a_residual_is_added_as_by_a_launch_of_its_own, swiglu_has_the_bits_of_products_and_of_a_launch_of_its_own,
};
use self::qkv::{QkvCase, qkv_has_the_bits_of_products_and_of_rope_kv_write};
use super::{Params, WeightFormat, formula, linear, logits, swiglu, test_cases_m_n_k};
use crate::checks::rounding::{bf16, f32, unrounded};
use crate::checks::{
    TestArray, addr, checks, gpu_of_check, normal_numbers, run, run_once, runs_cuda_code, size_for,
    with_one_interleaving, with_repeated_launches,
};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use crate::{catalogue, rms_norm, swiglu as swiglu_alone};

checks!(
    linear_equals_the_formula_with_and_without_bias_and_residual,
    a_residual_may_be_the_output,
    a_residual_is_added_as_by_a_launch_of_its_own,
    swiglu_equals_the_formula,
    swiglu_has_the_bits_of_products_and_of_a_launch_of_its_own,
    a_row_does_not_know_its_batch,
    qkv_has_the_bits_of_products_and_of_rope_kv_write,
    a_norm_has_the_bits_of_rms_norm,
    logits_equal_the_formula_and_do_not_know_their_batch,
    variants_of_a_scheme_have_the_same_bits,
);

mod after_products;
mod qkv;

/// Returns the bits of all elements as f32.
fn bits(array: &TestArray) -> Vec<u32> {
    array.values().iter().map(|x| x.to_bits()).collect()
}

/// A random weight, stored both as bf16 and as int8 with scales. `kind` is the format that is passed to the kernel.
struct Stored {
    bf16: TestArray,
    bytes: Vec<i8>,
    scale: Vec<f32>,
    kind: WeightFormat,
}

impl Stored {
    fn new(kind: WeightFormat, rows: usize, k: usize, seed: u64) -> Stored {
        let values = normal_numbers(rows * k, seed, 1.0);
        let bytes = values.iter().map(|x| (x * 40.0).round().clamp(-128.0, 127.0) as i8).collect();
        let scale = normal_numbers(rows, seed ^ 9, 0.02).iter().map(|s| s + 0.025).collect();
        Stored { bf16: TestArray::new(BF16, &values), bytes, scale, kind }
    }

    fn addresses(&self) -> (Addr, Addr) {
        match self.kind {
            WeightFormat::Bf16 => (self.bf16.addr(), Addr::NULL),
            WeightFormat::Int8 => (addr(&self.bytes), addr(&self.scale)),
        }
    }

    /// Returns three versions of `x · wᵀ`: [with a kernel's roundings, exact, exact with the absolute values of x and
    /// w].
    fn products(&self, x: &TestArray, k: usize) -> [Vec<f64>; 3] {
        self.products_by(FORMULAS, x, k)
    }

    /// Returns the same three versions as [`Stored::products`], but the first two by the given formulas.
    fn products_by(&self, formulas: [Product; 2], x: &TestArray, k: usize) -> [Vec<f64>; 3] {
        let of = |w: &[f64], scale: &[f64]| {
            let size = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<f64>>();
            let [with, want] = formulas.map(|f| f(&x.to_f64(), w, scale, k));
            [with, want, formula::product(&size(&x.to_f64()), &size(w), &size(scale), k)]
        };
        let scale: Vec<f64> = self.scale.iter().map(|&s| s as f64).collect();
        match self.kind {
            WeightFormat::Bf16 => of(&self.bf16.to_f64(), &[]),
            WeightFormat::Int8 => {
                let w: Vec<f64> = self.bytes.iter().map(|&b| b as f64).collect();
                of(&w, &scale)
            }
        }
    }
}

type Product = fn(&[f64], &[f64], &[f64], usize) -> Vec<f64>;
const FORMULAS: [Product; 2] = [formula::product_rounded, formula::product];

/// Returns the function that rounds to an element type.
fn rounding_of(dtype: DType) -> fn(f64) -> f64 {
    if dtype == F32 { f32 } else { bf16 }
}

/// Returns the tolerance of sums as a multiple of the error of one rounding. In f32 the tolerance grows with
/// cancellation, that is, with the ratio of the norm of `sizes` (the sums of the terms' magnitudes) to the norm of
/// `sums`.
fn rounding_factor(dtype: DType, sizes: &[f64], sums: &[f64]) -> f64 {
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    if dtype == F32 {
        DEFAULT_ROUNDING_FACTOR * (1.0 + norm(sizes) / norm(sums).max(1e-30))
    } else {
        DEFAULT_ROUNDING_FACTOR
    }
}

struct Given {
    x: TestArray,
    weights: [Stored; 2],
    bias: TestArray,
    residual: TestArray,
    n: usize,
    k: usize,
}

impl Given {
    fn new(dtype: DType, kind: WeightFormat, (m, n, k): (usize, usize, usize)) -> Given {
        let data = |count, seed| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
        let weights = [Stored::new(kind, n, k, 2), Stored::new(kind, n, k, 3)];
        Given { x: data(m * k, 1), weights, bias: data(n, 4), residual: data(m * n, 5), n, k }
    }

    fn params(&self, y: &TestArray, m: usize) -> Params {
        let ((w, scale), (w2, scale2)) = (self.weights[0].addresses(), self.weights[1].addresses());
        Params {
            x: self.x.addr(),
            w,
            w2,
            scale,
            scale2,
            y: y.addr(),
            m: m as u32,
            n: self.n as u32,
            k: self.k as u32,
            eps: 1e-6,
            ..Zeroable::zeroed()
        }
    }
}

/// Sizes (m, n, k) with so many columns n that a block has more than 64 of them if there is one block for every two
/// multiprocessors.
const MANY_COLUMNS_M_N_K: [(usize, usize, usize); 3] = [(12, 4300, 16), (24, 4300, 16), (50, 4300, 16)];

/// Number of multiplications (m · n · k) from which a launch takes long on the simulator.
const MANY_PRODUCTS: usize = 100_000;

fn all(mut f: impl FnMut(DType, WeightFormat, (usize, usize, usize))) {
    for dtype in [F32, BF16] {
        for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
            test_cases_m_n_k().into_iter().for_each(|case| f(dtype, kind, case));
            if dtype == BF16 {
                MANY_COLUMNS_M_N_K.into_iter().for_each(|case| f(dtype, kind, case));
            }
        }
    }
}

fn linear_equals_the_formula_with_and_without_bias_and_residual() {
    all(|dtype, kind, case| {
        let given = Given::new(dtype, kind, case);
        let (m, n, k) = case;
        let products = given.weights[0].products(&given.x, k);
        let (bias, residual) = (given.bias.to_f64(), given.residual.to_f64());
        let both = [(false, false), (true, true), (true, false), (false, true)];
        let ways = if m * n * k < MANY_PRODUCTS { 4 } else { 2 };
        for (with_bias, with_residual) in both.into_iter().take(ways) {
            let y = TestArray::output(dtype, m * n);
            let params = Params {
                w2: Addr::NULL,
                scale2: Addr::NULL,
                bias: if with_bias { given.bias.addr() } else { Addr::NULL },
                residual: if with_residual { given.residual.addr() } else { Addr::NULL },
                ..given.params(&y, m)
            };
            run(&linear(dtype, kind, &params), 2);
            let whole = |product: &[f64], round: fn(f64) -> f64| -> Vec<f64> {
                let bias = |i: usize| if with_bias { bias[i % n] } else { 0.0 };
                let sums = product.iter().enumerate().map(|(i, p)| p + bias(i));
                match with_residual {
                    true => sums.zip(&residual).map(|(sum, r)| round(sum) + r).collect(),
                    false => sums.collect(),
                }
            };
            let (with, want) = (whole(&products[0], rounding_of(dtype)), whole(&products[1], unrounded));
            let sizes: Vec<f64> = products[2].iter().zip(&want).map(|(size, want)| size + want.abs()).collect();
            let name = format!("{kind:?} {case:?} bias {with_bias} residual {with_residual}");
            assert_rounded(&name, dtype, &y.values(), &with, &want, rounding_factor(dtype, &sizes, &want));
        }
    });
}

fn a_residual_may_be_the_output() {
    for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
        let given = Given::new(F32, kind, (3, 20, 100));
        let (apart, inside) = (TestArray::output(F32, 60), TestArray::new(F32, &given.residual.values()));
        let params = Params { residual: given.residual.addr(), ..given.params(&apart, 3) };
        run(&linear(F32, kind, &params), 1);
        run(&linear(F32, kind, &Params { residual: inside.addr(), y: inside.addr(), ..params }), 1);
        assert_eq!(apart.values(), inside.values());
    }
}

fn swiglu_equals_the_formula() {
    all(|dtype, kind, case| {
        let given = Given::new(dtype, kind, case);
        let (m, n, k) = case;
        let y = TestArray::output(dtype, m * n);
        run(&swiglu(dtype, kind, &given.params(&y, m)), 2);
        let [[with_gate, gate, gate_size], [with_up, up, up_size]] =
            given.weights.each_ref().map(|w| w.products(&given.x, k));
        let stored = |x: &[f64]| x.iter().copied().map(rounding_of(dtype)).collect::<Vec<f64>>();
        let with = swiglu_alone::formula::fwd_rounded(&stored(&with_gate), &stored(&with_up));
        let want = swiglu_alone::formula::fwd(&gate, &up);
        // An error of `up` is multiplied by silu(gate) in y, so the tolerance grows with the largest gate.
        let largest = gate.iter().fold(1.0f64, |a, g| a.max(g.abs()));
        let terms = rounding_factor(dtype, &gate_size, &gate) + rounding_factor(dtype, &up_size, &up);
        let rounding_factor = if dtype == F32 { largest.sqrt() * terms } else { DEFAULT_ROUNDING_FACTOR };
        assert_rounded(&format!("swiglu {kind:?} {case:?}"), dtype, &y.values(), &with, &want, rounding_factor);
    });
}

/// The result of a row has the same bits in batches of 1 to 70 rows. A GPU launches the 88 batches 230 times each.
fn a_row_does_not_know_its_batch() {
    with_repeated_launches(230, rows_do_not_know_their_batch);
}

fn rows_do_not_know_their_batch() {
    with_one_interleaving(|| {
        // Rows of 2096 elements are whole 16-byte units, but not whole boxes of 128 bytes. On a GPU, the matrix has the
        // sizes of 7B.
        let (n, k) = size_for((4608, 3584), (40, 2096));
        for dtype in [F32, BF16] {
            for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
                let given = Given::new(dtype, kind, (70, n, k));
                for launch in [linear, swiglu] {
                    let rows = |first: usize, m: usize| {
                        let y = TestArray::output(dtype, m * n);
                        let x = given.x.addr().offset(first * k * dtype.size());
                        run(&launch(dtype, kind, &Params { x, ..given.params(&y, m) }), 3);
                        bits(&y)
                    };
                    let whole = rows(0, 70);
                    let batches =
                        [(0, 1), (69, 1), (5, 2), (61, 9), (0, 8), (3, 16), (17, 17), (0, 33), (6, 64), (1, 65)];
                    for (first, m) in batches {
                        let part = &whole[first * n..(first + m) * n];
                        assert_eq!(rows(first, m), part, "{dtype} {kind:?}, {m} rows from row {first}");
                    }
                }
            }
        }
    });
}

/// Sizes (m, n, k) that cover the cases of `rms_norm`: a row of k elements is normalised by 1, 8 or 16 warps, is
/// aligned or unaligned, and in some cases has more elements than the threads keep in registers.
const NORM_CASES_M_N_K: [(usize, usize, usize); 8] =
    [(1, 9, 24), (17, 7, 31), (64, 8, 40), (3, 20, 512), (16, 5, 520), (9, 1, 1031), (2, 3, 4104), (2, 2, 8200)];

fn a_norm_has_the_bits_of_rms_norm() {
    for dtype in [F32, BF16] {
        for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
            for case in NORM_CASES_M_N_K {
                let (m, n, k) = case;
                let given = Given::new(dtype, kind, case);
                let norm = TestArray::new(dtype, &normal_numbers(k, 6, 1.0));
                let normed = TestArray::output(dtype, m * k);
                let rows = rms_norm::FwdParams {
                    x: given.x.addr(),
                    w: norm.addr(),
                    y: normed.addr(),
                    rows: m as u32,
                    cols: k as u32,
                    eps: 1e-6,
                    ..Zeroable::zeroed()
                };
                run_once(&rms_norm::fwd(dtype, &rows));
                let [want, got] = [m * n, m * n].map(|count| TestArray::output(dtype, count));
                let raw = Params { norm: norm.addr(), ..given.params(&got, m) };
                run_once(&swiglu(dtype, kind, &Params { x: normed.addr(), ..given.params(&want, m) }));
                run(&swiglu(dtype, kind, &raw), 2);
                assert_eq!(got.values(), want.values(), "{dtype} {kind:?} {case:?}");
            }
        }
    }
}

fn logits_equal_the_formula_and_do_not_know_their_batch() {
    for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
        for case in test_cases_m_n_k().into_iter().chain(MANY_COLUMNS_M_N_K) {
            let (m, n, k) = case;
            let given = Given::new(BF16, kind, case);
            let [y, widened, alone] = [m * n, m * n, n].map(|count| TestArray::output(F32, count));
            let params = given.params(&y, m);
            run(&logits(BF16, kind, &params), 2);
            let formulas = if runs_cuda_code() { [formula::product_truncated, formula::product] } else { FORMULAS };
            let [with, want, sizes] = given.weights[0].products_by(formulas, &given.x, k);
            // The last term allows for the truncations of tensor cores.
            let factor = rounding_factor(F32, &sizes, &want) + k as f64 / 8.0;
            assert_rounded(&format!("logits {kind:?} {case:?}"), F32, &y.values(), &with, &want, factor);
            // Processors without a bf16 unit multiply bf16 as f32. The bf16 dot product, AMX and tensor cores sum in
            // another order.
            if !runs_cuda_code() && isa() < Isa::Avx512Bf16 {
                let wide = TestArray::new(F32, &given.x.values());
                run_once(&linear(F32, kind, &Params { x: wide.addr(), y: widened.addr(), ..params }));
                assert_eq!(y.values(), widened.values(), "x in f32, {kind:?} {case:?}");
            }
            run_once(&logits(BF16, kind, &Params { y: alone.addr(), m: 1, ..params }));
            assert_eq!(y.values()[..n], alone.values(), "one row, {kind:?} {case:?}");
        }
    }
}

/// Sizes (m, n, k) whose sums over k are so long that the rings of stages are used several times, with an incomplete
/// last group of k. The first size also has several blocks of rows and an incomplete block of columns.
const LONG_CASES_M_N_K: [(usize, usize, usize); 3] = [(67, 9, 4112), (1, 41, 8272), (3, 17, 12_304)];

/// Maximum head_dim of the `qkv` launches of [`for_each_kind`].
const MAX_HEAD_DIM: usize = 144;

/// Calls `f` for each kind of launch of these operands. The arguments of `f` are a function that returns the launch
/// for a given output address, the output's type, and its number of elements.
fn for_each_kind(given: &Given, norm: &TestArray, m: usize, mut f: impl FnMut(&dyn Fn(Addr) -> Launch, DType, usize)) {
    let (kind, count) = (given.weights[0].kind, m * given.n);
    let y = TestArray::output(BF16, 1);
    let pair = given.params(&y, m);
    let single = Params { w2: Addr::NULL, scale2: Addr::NULL, ..pair };
    let full = Params { bias: given.bias.addr(), residual: given.residual.addr(), ..single };
    f(&|y| linear(BF16, kind, &Params { y, ..full }), BF16, count);
    f(&|y| logits(BF16, kind, &Params { y, ..single }), F32, count);
    f(&|y| swiglu(BF16, kind, &Params { y, ..pair }), BF16, count);
    f(&|y| swiglu(BF16, kind, &Params { y, norm: norm.addr(), ..pair }), BF16, count);
    // head_dim is the number of columns of the other products, up to MAX_HEAD_DIM.
    let case = QkvCase::new(BF16, kind, [m, given.k], [2, 1, given.n.next_multiple_of(2).min(MAX_HEAD_DIM)]);
    f(&|y| super::qkv(BF16, kind, &case.params(y, norm.addr())), BF16, case.element_count());
}

fn variants_of_a_scheme_have_the_same_bits() {
    for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
        // Half of the cases are enough to run all plans.
        for case in test_cases_m_n_k().into_iter().skip(1).step_by(2).chain(LONG_CASES_M_N_K) {
            let (m, _, k) = case;
            let given = Given::new(BF16, kind, case);
            let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
            for_each_kind(&given, &norm, m, |launch, dtype, count| {
                // The results of the schemes `Units` and `Tiles`, and the plans that the loop has run so far.
                let mut want: [Option<Vec<u32>>; 2] = [None, None];
                let mut plans = Vec::new();
                let Launch::Kernel(chosen) = launch(norm.addr()) else { return };
                for variant in catalogue::variants_of(chosen.kernel) {
                    let got = TestArray::output(dtype, count);
                    let Launch::Kernel(chosen) = launch(got.addr()) else { return };
                    let stages = (variant.kernel.plan)(&chosen.params, &gpu_of_check());
                    let shapes: Vec<_> = stages.iter().map(|s| (s.symbol, s.grid, s.shared)).collect();
                    if plans.contains(&shapes) {
                        continue;
                    }
                    plans.push(shapes);
                    run(&Launch::Kernel(KernelLaunch { kernel: variant.kernel, ..chosen.clone() }), 2);
                    let name = chosen.kernel.name;
                    let by_tiles = stages.iter().any(|stage| !stage.tensor_maps.is_empty());
                    let want = want[usize::from(by_tiles)].get_or_insert_with(|| bits(&got));
                    assert!(bits(&got) == *want, "{name}, {}, {kind:?} {case:?}", variant.name);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
