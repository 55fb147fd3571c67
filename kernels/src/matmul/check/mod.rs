use bytemuck::Zeroable;
use reel_device::DType::{self, BF16};
use reel_device::{Addr, Kernel};

use super::formula;
use super::gemm::{self, OperandLayout, Params};
use crate::checks::{TestArray, checks, normal_numbers, run, run_once, size_for, with_one_interleaving};
use crate::compare::{assert_within, f32_sum_error, rounding_error};
use crate::swiglu;

#[cfg(test)]
mod tests;

checks!(
    products_equal_the_formula,
    a_row_does_not_know_its_batch,
    swiglu_of_a_product_has_the_bits_of_launches_of_their_own;
    cuda: all_tiles_give_the_same_bits,
);

const FORMS: [OperandLayout; 6] = [gemm::FWD, gemm::FWD_TO_F32, gemm::DX, gemm::DX_TO_F32, gemm::DW, gemm::DW_TO_F32];

/// A product with its operands. A and B are stored in the layout that the form of the product requires.
struct Given {
    form: OperandLayout,
    shape: [usize; 3],
    a: TestArray,
    b: TestArray,
    bias: Option<TestArray>,
    old: Option<TestArray>,
    scale: f32,
}

/// Returns the transpose of a row-major matrix.
fn transposed(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

impl Given {
    fn new(form: OperandLayout, [m, n, k]: [usize; 3], bias: bool, accumulate: bool, scale: f32) -> Given {
        let data = |dtype: DType, count, seed| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
        Given {
            form,
            shape: [m, n, k],
            a: data(BF16, m * k, 1),
            b: data(BF16, n * k, 2),
            bias: bias.then(|| data(form.c_dtype, n, 3)),
            old: accumulate.then(|| data(form.c_dtype, m * n, 4)),
            scale,
        }
    }

    /// Makes the array that the product writes. It holds the old C if the product is added to C.
    fn output(&self) -> TestArray {
        let [m, n, _] = self.shape;
        match &self.old {
            Some(old) => TestArray::new(self.form.c_dtype, &old.values()),
            None => TestArray::output(self.form.c_dtype, m * n),
        }
    }

    fn params(&self, c: &TestArray) -> Params {
        let [m, n, k] = self.shape.map(|size| size as u32);
        Params {
            a: self.a.addr(),
            b: self.b.addr(),
            c: c.addr(),
            bias: self.bias.as_ref().map_or(Addr::NULL, TestArray::addr),
            m,
            n,
            k,
            accumulate: self.old.is_some().into(),
            scale: self.scale,
            ..Params::zeroed()
        }
    }

    /// C as the kernel computes it.
    fn product_by(&self, kernel: &'static Kernel) -> Vec<f32> {
        let c = self.output();
        run(&self.form.launch(kernel, &self.params(&c)), 2);
        c.values()
    }

    /// Returns C by the f64 formula, and a bound of each element's error. Tensor cores truncate sums, so the bound of a
    /// sum is doubled.
    fn formula_and_bounds(&self) -> (Vec<f64>, Vec<f64>) {
        let [m, n, k] = self.shape;
        let a = self.a.to_f64();
        let a = if self.form.a_transposed { transposed(&a, k, m) } else { a };
        let b = self.b.to_f64();
        let b = if self.form.b_transposed { transposed(&b, k, n) } else { b };
        let magnitudes = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<f64>>();
        let sums = formula::product(m, n, k, &a, &b);
        let sizes = formula::product(m, n, k, &magnitudes(&a), &magnitudes(&b));
        let (bias, old) = (self.bias.as_ref().map(TestArray::to_f64), self.old.as_ref().map(TestArray::to_f64));
        let scale = f64::from(self.scale);
        let added = |i: usize| [bias.as_ref().map_or(0.0, |b| b[i % n]), old.as_ref().map_or(0.0, |c| c[i])];
        let want: Vec<f64> = (0..m * n).map(|i| sums[i] * scale + added(i).iter().sum::<f64>()).collect();
        let bound = |i: usize| {
            let magnitude = sizes[i] * scale.abs() + magnitudes(&added(i)).iter().sum::<f64>();
            2.0 * f32_sum_error(k, magnitude) + rounding_error(self.form.c_dtype) * want[i].abs()
        };
        let bounds = (0..m * n).map(bound).collect();
        (want, bounds)
    }
}

/// Sizes (m, n, k) whose last tiles, chunks and stages are incomplete. Rows of all operands are multiples of 16 bytes.
const SHAPES: [[usize; 3]; 3] = [[8, 16, 8], [72, 24, 136], LARGE];

/// Sizes (m, n, k) with so many tiles and stages that two multiprocessors fill the ring of every tile more than once.
const LARGE: [usize; 3] = [264, 400, 136];

/// Sizes with several tiles for each multiprocessor of a GPU, and incomplete last tiles.
const MANY_TILES: [usize; 3] = [4104, 3600, 3584];

fn products_equal_the_formula() {
    for form in FORMS {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let accumulates = [i == 2, i == 1];
            for accumulate in if i == 0 { [false, true] } else { accumulates } {
                let scale = if i == 1 { 0.7 } else { 1.0 };
                let given = Given::new(form, shape, i > 0, accumulate, scale);
                let (want, bounds) = given.formula_and_bounds();
                let name = format!("{:?} {shape:?}, added: {accumulate}", form.kernel());
                assert_within(&name, &given.product_by(form.kernel()), &want, |i| bounds[i]);
            }
        }
    }
}

/// The bits of a row of C do not depend on the number of rows, on the row's index, or on the number of columns.
fn a_row_does_not_know_its_batch() {
    let [m, n, k] = [136, 40, 200];
    with_one_interleaving(|| {
        let given = Given::new(gemm::FWD, [m, n, k], true, false, 1.0);
        let all = given.product_by(&gemm::FWD_BF16);
        for (first, rows) in [(0, 1), (97, 3)] {
            let values = given.a.values();
            let a = TestArray::new(BF16, &values[first * k..(first + rows) * k]);
            let bias = given.bias.as_ref().map(|b| TestArray::new(BF16, &b.values()[..24]));
            let b = TestArray::new(BF16, &given.b.values()[..24 * k]);
            let part = Given { form: gemm::FWD, shape: [rows, 24, k], a, b, bias, old: None, scale: 1.0 };
            for (i, x) in part.product_by(&gemm::FWD_BF16).iter().enumerate() {
                let other = all[(first + i / 24) * n + i % 24];
                assert!(x.to_bits() == other.to_bits(), "row {} of {rows} from {first} on: {x}, {other}", i / 24);
            }
        }
    });
}

/// SwiGLU of gate and up in the launch of their product has the bits of two products, rounded to bf16, and of a launch of
/// SwiGLU. The sizes are those of `SHAPES`, with two stages of k or more.
fn swiglu_of_a_product_has_the_bits_of_launches_of_their_own() {
    for [m, n, k] in [[8, 8, 72], [72, 24, 136], size_for(MANY_TILES, [264, 200, 136])] {
        let given = Given::new(gemm::FWD, [m, n, k], false, false, 1.0);
        let up_weight = TestArray::new(BF16, &normal_numbers(n * k, 5, 1.0));
        let [gate, up, want, got] = [(); 4].map(|()| TestArray::output(BF16, m * n));
        for (b, c) in [(&given.b, &gate), (&up_weight, &up)] {
            run_once(&gemm::FWD.launch(&gemm::FWD_BF16, &Params { b: b.addr(), ..given.params(c) }));
        }
        let (count, cols) = ((m * n) as u64, n as u64);
        let (gate, up, y) = (gate.addr(), up.addr(), want.addr());
        run_once(&swiglu::fwd(BF16, &swiglu::FwdParams { gate, up, y, count, cols, stride: cols }));
        run(&gemm::swiglu_launch(&Params { b2: up_weight.addr(), n: 2 * n as u32, ..given.params(&got) }), 2);
        let differ = got.values().iter().zip(want.values()).position(|(x, y)| x.to_bits() != y.to_bits());
        assert!(differ.is_none(), "{:?}: element {differ:?}", [m, n, k]);
    }
}

/// Kernels with a fixed tile size, each with the form of product (layout and dtype) that it computes.
const FIXED: [(OperandLayout, &Kernel); 14] = [
    (gemm::FWD, &gemm::FWD_BF16_HALVES),
    (gemm::FWD, &gemm::FWD_BF16_128X256),
    (gemm::FWD, &gemm::FWD_BF16_HELD),
    (gemm::FWD, &gemm::FWD_BF16_128X192),
    (gemm::FWD, &gemm::FWD_BF16_128X224),
    (gemm::FWD, &gemm::FWD_BF16_128X160),
    (gemm::FWD, &gemm::FWD_BF16_128X128),
    (gemm::FWD, &gemm::FWD_BF16_64X144),
    (gemm::DX, &gemm::DX_BF16_HALVES),
    (gemm::DX, &gemm::DX_BF16_128X256),
    (gemm::DX, &gemm::DX_BF16_128X224),
    (gemm::DX, &gemm::DX_BF16_128X128),
    (gemm::DW_TO_F32, &gemm::DW_F32_128X256),
    (gemm::DW_TO_F32, &gemm::DW_F32_128X160),
];

/// All tile sizes give the same bits. [`run`] compares the kernels of an A100 and of an H100, so the plain kernels have
/// these bits, too.
fn all_tiles_give_the_same_bits() {
    with_one_interleaving(|| {
        for form in [gemm::FWD, gemm::DX, gemm::DW_TO_F32] {
            let given = Given::new(form, size_for(MANY_TILES, LARGE), true, false, 0.7);
            let want = given.product_by(form.kernel());
            for (_, kernel) in FIXED.iter().filter(|(of, _)| *of == form) {
                let got = given.product_by(kernel);
                assert!(got.iter().zip(&want).all(|(x, y)| x.to_bits() == y.to_bits()), "{kernel:?}");
            }
        }
    });
}
