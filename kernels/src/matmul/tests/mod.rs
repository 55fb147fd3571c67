//! Compares the CPU code of each instruction set of this machine with the formula, and compares its results bit for
//! bit between different tiles, operand storage and numbers of threads. On a machine without AMX the emulator executes
//! its instructions.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod groups;
mod quantized;

use proptest::prelude::*;
use reel_device::DType::{self, BF16, F32, I8};
use reel_device::cpu::simd::{Isa, best_isa, isa};
use reel_device::launch::{Matmul, Operand, RightLayout, WeightGroups, group_elements};
use reel_device::{Addr, Team};

use super::{PRODUCT_CODE, arrange_in_int8_groups, cpu, formula};
use crate::checks::{TestArray, addr, normal_numbers};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, check_close, check_rounded, check_within};

/// Sizes (m, n, k) that the tests share. Most sizes leave tiles and blocks incomplete.
fn test_cases_m_n_k() -> Vec<(usize, usize, usize)> {
    vec![
        (1, 1, 1),
        (1, 17, 1),
        (2, 33, 17),
        (3, 16, 31),
        (5, 15, 32),
        (12, 32, 64),
        (13, 65, 33),
        (25, 31, 127),
        (4, 40, 1031),
        (1, 3, 8191),
        (14, 5, 8191),
        (64, 96, 160),
        (73, 33, 96),
        // A case whose rows of f32 all lie in the same sets of a cache.
        (26, 20, 1024),
        (26, 20, 1536),
        // 36 is the maximum number of rows of A with which B is read without packing.
        (36, 33, 40),
    ]
}

/// A product to test: its sizes, dtypes and options.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    /// A, B, C.
    dtypes: [DType; 3],
    transposed: [bool; 2],
    bias: bool,
    accumulate: bool,
    scale: f32,
}

/// Scales of the tested products. Multiplying by 1 or -16 adds no rounding error, because their magnitudes are powers
/// of two.
const SCALES: [f32; 3] = [1.0, 0.7, -16.0];

fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|&isa| isa <= best_isa() || isa >= Isa::Amx && amx_works()).collect()
}

/// Whether the instructions of AMX can be executed, by the processor or by the emulator.
fn amx_works() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return reel_device::cpu::simd::amx_emulator::install();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// Runs a product with the code of an instruction set. For `amx-f32` the product always runs on AMX tiles, even if k is
/// below `MIN_K_FOR_AMX_F32`.
///
/// # Safety
/// The conditions of [`cpu::run_on`].
#[allow(unsafe_code)]
unsafe fn run_with(isa: Isa, p: &Matmul, threads: usize) {
    let team = Team::new(threads);
    // SAFETY: the conditions of this function.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::AmxF32 => cpu::amx::run(p, &team, cpu::amx::Blocking::usual(p)),
            _ => cpu::run_on(isa, p, &team),
        }
    }
}

/// Runs the product of a test case on A `[m, k]`, B `[n, k]`, the bias and the old C, and returns C.
#[allow(unsafe_code)]
fn product(isa: Isa, c: &Case, a: &[f32], b: &[f32], bias: &[f32], old: &[f32], threads: usize) -> Vec<f32> {
    // SAFETY: `with_arrays` passes arrays that live and have the shapes of the case; `isas` returns instruction sets
    // that work on this machine only.
    with_arrays(c, a, b, bias, old, |p| unsafe { run_with(isa, p, threads) })
}

/// Returns the elements of a matrix `[n, k]` in the layout of groups for this dtype.
fn groups_of(dtype: DType, rows: &[f32], n: usize, k: usize) -> Vec<f32> {
    if dtype == F32 {
        return formula::arrange_in_row_groups(rows, n, k);
    }
    let rows: Vec<half::bf16> = rows.iter().map(|&x| half::bf16::from_f32(x)).collect();
    formula::arrange_in_row_groups(&rows, n, k).iter().map(|x| x.to_f32()).collect()
}

/// Runs the product of a test case with B (f32 or bf16) stored in groups, and returns C.
#[allow(unsafe_code)]
fn product_of_groups(isa: Isa, c: &Case, x: &Inputs, threads: usize) -> Vec<f32> {
    let groups = TestArray::new(c.dtypes[1], &groups_of(c.dtypes[1], &x.b, c.n, c.k));
    with_arrays(c, &x.a, &x.b, &x.bias, &x.old, |p| {
        let b = Operand { addr: groups.addr(), transposed: false, ..p.b };
        // SAFETY: the conditions of `product`; the groups hold B.
        unsafe { run_with(isa, &Matmul { b, b_layout: RightLayout::Groups, ..*p }, threads) }
    })
}

/// Stores A `[m, k]`, B `[n, k]`, the bias and the old C as the test case says, runs the product, and returns C.
/// An int8 B has the scales of [`scales_of_b`].
fn with_arrays(c: &Case, a: &[f32], b: &[f32], bias: &[f32], old: &[f32], run: impl FnOnce(&Matmul)) -> Vec<f32> {
    let int8 = c.dtypes[1] == I8;
    let groups =
        arrange_in_int8_groups(&b.iter().map(|&x| x as i8).collect::<Vec<_>>(), if int8 { c.n } else { 0 }, c.k);
    let b_scale = scales_of_b(b, c);
    let stored = |x: &[f32], rows, dtype, transposed| {
        TestArray::new(dtype, &if transposed { transpose(x, rows, c.k) } else { x.to_vec() })
    };
    let b_dtype = if int8 { BF16 } else { c.dtypes[1] };
    let (a, b) = (stored(a, c.m, c.dtypes[0], c.transposed[0]), stored(b, c.n, b_dtype, c.transposed[1]));
    let (bias, out) = (TestArray::new(c.dtypes[2], bias), TestArray::new(c.dtypes[2], old));
    let operand = |x: &TestArray, i: usize| Operand { addr: x.addr(), dtype: c.dtypes[i], transposed: c.transposed[i] };
    let p = Matmul {
        m: c.m,
        n: c.n,
        k: c.k,
        a: operand(&a, 0),
        b: if int8 { Operand { addr: addr(&groups), ..operand(&b, 1) } } else { operand(&b, 1) },
        b_scale: if int8 { addr(&b_scale) } else { Addr::NULL },
        b_layout: RightLayout::Plain,
        c: out.addr(),
        c_dtype: c.dtypes[2],
        bias: if c.bias { bias.addr() } else { Addr::NULL },
        accumulate: c.accumulate,
        scale: c.scale,
        code: &PRODUCT_CODE,
    };
    run(&p);
    out.values()
}

#[derive(Clone)]
struct Inputs {
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    old: Vec<f32>,
}

/// Returns pseudo-random inputs, already rounded to the dtypes in which the case stores them.
fn inputs(c: &Case, seed: u64) -> Inputs {
    let data = |dtype, count, seed| match dtype {
        I8 => normal_numbers(count, seed, 50.0).iter().map(|x| x.round().clamp(-128.0, 127.0)).collect(),
        _ => TestArray::new(dtype, &normal_numbers(count, seed, 1.0)).values(),
    };
    let old = if c.accumulate { data(c.dtypes[2], c.m * c.n, seed + 3) } else { vec![f32::NAN; c.m * c.n] };
    Inputs {
        a: data(c.dtypes[0], c.m * c.k, seed),
        b: data(c.dtypes[1], c.n * c.k, seed + 1),
        bias: data(c.dtypes[2], c.n, seed + 2),
        old,
    }
}

/// Returns the scale of each row of an int8 B `[n, k]`, which depends on that row's elements only. For other dtypes all
/// scales are 1.
fn scales_of_b(b: &[f32], c: &Case) -> Vec<f32> {
    if c.dtypes[1] != I8 || c.k == 0 {
        return vec![1.0; c.n];
    }
    b.chunks_exact(c.k).map(|row| 0.003 + 1e-5 * row[0].abs() + 1e-6 * row[c.k - 1].abs()).collect()
}

/// Returns the elements of C by the formula, and the tolerance of each. An f32 sum of k products is off by at most k
/// roundings of the sum of their magnitudes. The tolerance is a quarter of this bound, which is still more than the
/// usual error, plus terms for denormals that the bf16 dot product may flush and for the rounding of C.
fn expected(c: &Case, x: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<f64>>();
    let size = |x: &[f32]| x.iter().map(|&x| x.abs() as f64).collect::<Vec<f64>>();
    let mut sum = formula::product(c.m, c.n, c.k, &wide(&x.a), &wide(&x.b));
    let mut bound = formula::product(c.m, c.n, c.k, &size(&x.a), &size(&x.b));
    let eps = f32::EPSILON as f64 / 2.0;
    let b_scale = scales_of_b(&x.b, c);
    let rounding = if c.dtypes[2] == BF16 { 2f64.powi(-8) } else { eps };
    for (i, (sum, bound)) in sum.iter_mut().zip(&mut bound).enumerate() {
        let more = if c.bias { x.bias[i % c.n] as f64 } else { 0.0 };
        let more2 = if c.accumulate { x.old[i] as f64 } else { 0.0 };
        let scale = c.scale as f64 * b_scale[i % c.n] as f64;
        *sum = *sum * scale + more + more2;
        *bound = (*bound * scale.abs() + more.abs() + more2.abs()) * eps * (c.k as f64 / 4.0 + 4.0)
            + sum.abs() * rounding
            + 1e-36;
    }
    (sum, bound)
}

fn check(isa: Isa, c: &Case, seed: u64) -> Result<(), String> {
    let x = inputs(c, seed);
    let (want, bound) = expected(c, &x);
    let got = product(isa, c, &x.a, &x.b, &x.bias, &x.old, 2);
    let name = format!("{isa:?} {c:?}");
    if c.dtypes[2] == F32 {
        return check_close(&name, &got, &want, 1e-5, |i| bound[i]);
    }
    check_within(&name, &got, &want, |i| bound[i])?;
    check_rounded(&name, BF16, &got, &want, &want, DEFAULT_ROUNDING_FACTOR)
}

fn same(what: &str, x: &[f32], y: &[f32]) -> Result<(), String> {
    if x.len() != y.len() {
        return Err(format!("{what}: {} and {} elements", x.len(), y.len()));
    }
    match x.iter().zip(y).position(|(x, y)| x.to_bits() != y.to_bits() && !(x.is_nan() && y.is_nan())) {
        Some(i) => Err(format!("{what}: element {i} is {:e} and {:e}", x[i], y[i])),
        None => Ok(()),
    }
}

/// Computes element (i, j) of C alone, as the product of one row of A and one row of B.
fn alone(isa: Isa, c: &Case, x: &Inputs, i: usize, j: usize) -> f32 {
    let one = Case { m: 1, n: 1, transposed: [false; 2], ..*c };
    let old = x.old[i * c.n + j];
    product(isa, &one, &x.a[i * c.k..][..c.k], &x.b[j * c.k..][..c.k], &x.bias[j..=j], &[old], 1)[0]
}

/// Checks that no bit of C depends on the number of threads, on how the operands are stored, or on how many other
/// elements are computed.
fn check_bits(isa: Isa, c: &Case, seed: u64) -> Result<(), String> {
    let x = inputs(c, seed);
    let run = |c: &Case, threads| product(isa, c, &x.a, &x.b, &x.bias, &x.old, threads);
    let whole = run(c, 1);
    for threads in [2, 3] {
        same(&format!("{isa:?} {c:?} with {threads} threads"), &whole, &run(c, threads))?;
    }
    for transposed in [[false, false], [true, false], [false, true], [true, true]] {
        if c.dtypes[1] == I8 && transposed[1] {
            continue;
        }
        let c = Case { transposed, ..*c };
        same(&format!("{isa:?} {c:?} with operands stored {transposed:?}"), &whole, &run(&c, 2))?;
    }
    let has_groups = c.dtypes[1] != I8;
    for threads in if has_groups { 1..4 } else { 0..0 } {
        let got = product_of_groups(isa, c, &x, threads);
        same(&format!("{isa:?} {c:?} with B in groups, {threads} threads"), &whole, &got)?;
    }
    // Computes only the first `rows` rows of C. Small values of `rows` use the functions for few rows of A.
    for rows in (1..=c.m.min(14)).chain((15..c.m).step_by(9)) {
        let part = Case { m: rows, ..*c };
        let got = product(isa, &part, &x.a[..rows * c.k], &x.b, &x.bias, &x.old[..rows * c.n], 2);
        same(&format!("{isa:?} {c:?}, {rows} rows alone"), &whole[..rows * c.n], &got)?;
        if has_groups {
            let x = Inputs { a: x.a[..rows * c.k].to_vec(), old: x.old[..rows * c.n].to_vec(), ..x.clone() };
            let got = product_of_groups(isa, &part, &x, 2);
            same(&format!("{isa:?} {c:?} with B in groups, {rows} rows alone"), &whole[..rows * c.n], &got)?;
        }
    }
    for at in [0, c.m * c.n / 3, c.m * c.n / 2, c.m * c.n - 1] {
        let got = alone(isa, c, &x, at / c.n, at % c.n);
        same(&format!("{isa:?} {c:?}, element {at} alone"), &whole[at..=at], &[got])?;
    }
    Ok(())
}

const COMBINATIONS: [[DType; 3]; 12] = [
    [F32, F32, F32],
    [F32, BF16, F32],
    [BF16, BF16, BF16],
    [BF16, BF16, F32],
    [BF16, I8, F32],
    [F32, I8, F32],
    [BF16, F32, F32],
    [F32, F32, BF16],
    [F32, BF16, BF16],
    [BF16, F32, BF16],
    [BF16, I8, BF16],
    [F32, I8, BF16],
];
/// The first `SUMS` combinations differ in how the sums are computed. The later ones repeat some of them with C
/// stored as bf16.
const SUMS: usize = 6;

/// Returns whether A and B are stored transposed: the wanted values, except that an int8 B is never transposed.
fn transposed(wanted: [bool; 2], dtypes: [DType; 3]) -> [bool; 2] {
    [wanted[0], wanted[1] && dtypes[1] != I8]
}

#[test]
fn equals_the_formula() {
    for isa in isas() {
        for (i, (m, n, k)) in test_cases_m_n_k().into_iter().enumerate() {
            for dtypes in COMBINATIONS {
                let (bias, accumulate) = (i % 2 == 0, i % 3 == 0);
                let c = Case {
                    m,
                    n,
                    k,
                    dtypes,
                    transposed: transposed([i % 5 == 0, i % 4 == 0], dtypes),
                    bias,
                    accumulate,
                    scale: SCALES[i % 3],
                };
                check(isa, &c, 7 * i as u64 + 1).unwrap();
            }
        }
    }
}

#[test]
fn no_bit_depends_on_the_company() {
    for isa in isas() {
        for (i, (m, n, k)) in test_cases_m_n_k().into_iter().enumerate() {
            // The AMX emulator needs microseconds for each instruction and every case is computed 26 times, so a large
            // k would take too long.
            if isa >= Isa::Amx && k > 4000 {
                continue;
            }
            for dtypes in &COMBINATIONS[..SUMS] {
                let (bias, accumulate) = (i % 2 == 1, i % 3 == 1);
                let (dtypes, transposed) = (*dtypes, [i % 5 == 0, false]);
                let c = Case { m, n, k, dtypes, transposed, bias, accumulate, scale: SCALES[i % 3] };
                check_bits(isa, &c, 11 * i as u64 + 5).unwrap();
            }
        }
    }
}

#[test]
fn nan_infinity_and_negative_zero() {
    for isa in isas() {
        for dtypes in &COMBINATIONS[..SUMS] {
            let (m, n, k) = (15, 35, 37);
            let c =
                Case { m, n, k, dtypes: *dtypes, transposed: [false; 2], bias: false, accumulate: false, scale: 1.0 };
            let mut x = inputs(&c, 3);
            x.a[k + 36] = f32::NAN;
            x.a[2 * k] = f32::INFINITY;
            let int8 = dtypes[1] == I8;
            if !int8 {
                x.b[34 * k + 36] = f32::NEG_INFINITY;
            }
            x.b[3 * k..][..k].fill(0.0);
            x.a[14 * k..][..k].fill(-0.0);
            let (want, bound) = expected(&c, &x);
            for threads in [1, 2] {
                let got = product(isa, &c, &x.a, &x.b, &x.bias, &x.old, threads);
                assert!(
                    got[n..2 * n].iter().all(|x| x.is_nan()),
                    "{isa:?}: a NaN in A must make its whole row of C NaN"
                );
                assert!(got[2 * n + 3].is_nan(), "{isa:?}: infinity times zero must be NaN");
                assert_eq!(got[4 * n + 3], 0.0, "{isa:?}");
                if isa == Isa::AmxF32 && dtypes[..2].contains(&F32) {
                    // The middle and low bf16 parts of an f32 may be 0, and infinity times 0 is NaN.
                    for (got, want) in got.iter().zip(&want) {
                        assert_eq!(got.is_finite(), want.is_finite(), "{isa:?}: {got}, want {want}");
                    }
                    continue;
                }
                check_close(&format!("{isa:?} {c:?}"), &got, &want, 4e-3, |i| bound[i]).unwrap();
                // An element of an int8 B may be 0, and 0 times the infinity in A gives another NaN in that row of C.
                let nans = if int8 { want.iter().filter(|x| x.is_nan()).count() } else { n + 2 };
                assert_eq!(got.iter().filter(|x| x.is_nan()).count(), nans, "{isa:?}: number of NaN elements in C");
            }
            check_bits(isa, &Case { m: 15, n: 35, k: 37, ..c }, 3).unwrap();
        }
    }
}

#[test]
fn an_empty_sum_is_bias_and_old_value() {
    for isa in isas() {
        for m in [1, 7] {
            let c = Case {
                m,
                n: 3,
                k: 0,
                dtypes: [BF16, BF16, F32],
                transposed: [false; 2],
                bias: true,
                accumulate: true,
                scale: 3.0,
            };
            let got = product(isa, &c, &[], &[], &[1.0, 2.0, 3.0], &vec![10.0; 3 * m], 2);
            assert_eq!(got, [11.0, 12.0, 13.0].repeat(m));
        }
    }
}

#[test]
fn large_products_cross_every_block() {
    // Sizes with more rows than one task takes, more units of k than are packed at a time, and columns for several
    // tasks.
    for (dtypes, transposed, scale) in [
        ([BF16, BF16, F32], [true, true], 0.7),
        ([F32, BF16, F32], [false, false], 0.7),
        // In this case the partial sums of the blocks of k are stored in C itself.
        ([F32, F32, F32], [false, true], 1.0),
    ] {
        let (bias, accumulate) = (scale != 1.0, scale != 1.0);
        let c = Case { m: 530, n: 70, k: 2600, dtypes, transposed, bias, accumulate, scale };
        let x = inputs(&c, 1);
        let whole = product(isa(), &c, &x.a, &x.b, &x.bias, &x.old, 2);
        same("3 threads", &whole, &product(isa(), &c, &x.a, &x.b, &x.bias, &x.old, 3)).unwrap();
        same("B in groups", &whole, &product_of_groups(isa(), &c, &x, 2)).unwrap();
        for at in (0..c.m * c.n).step_by(911) {
            let got = alone(isa(), &c, &x, at / c.n, at % c.n);
            same(&format!("{c:?}, element {at} alone"), &whole[at..=at], &[got]).unwrap();
        }
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    let size = |most: usize| prop_oneof![1..=4usize, 1..=most];
    (
        (size(40), size(80), size(300)),
        0..COMBINATIONS.len(),
        any::<[bool; 2]>(),
        any::<bool>(),
        any::<bool>(),
        0..3usize,
    )
        .prop_map(|((m, n, k), dtypes, stored, bias, accumulate, scale)| Case {
            m,
            n,
            k,
            dtypes: COMBINATIONS[dtypes],
            transposed: transposed(stored, COMBINATIONS[dtypes]),
            bias,
            accumulate,
            scale: SCALES[scale],
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_product_equals_the_formula(c in any_case(), seed in 0..1000u64) {
        for isa in isas() {
            check(isa, &c, seed).map_err(TestCaseError::fail)?;
        }
    }

    #[test]
    fn any_product_has_the_bits_of_its_elements(c in any_case(), seed in 0..1000u64) {
        for isa in isas() {
            check_bits(isa, &c, seed).map_err(TestCaseError::fail)?;
        }
    }
}
