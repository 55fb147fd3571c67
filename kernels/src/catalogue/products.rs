//! Example matrix products of a linear layer. On a GPU a library computes them, but they are timed like kernels.

use reel_device::DType::{self, BF16, F32};
use reel_device::launch::{Matmul, Operand};

use crate::folder::{HIDDEN_SIZE, INTERMEDIATE_SIZE, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, SizeError, Sizes, VOCAB_SIZE};
use crate::matmul::plain_product;

/// An example product; its addresses are placeholders.
#[derive(Clone, Debug)]
pub struct ExampleProduct {
    /// Name, made of the use and the element type: `matmul_dw_bf16`.
    pub name: &'static str,
    /// The sizes of the linear layer as text.
    pub size: String,
    /// Element type of the operands.
    pub dtype: DType,
    /// The matrix product to time.
    pub product: Matmul,
}

/// Returns the three products of a linear layer with input `[m, k]` and weight `[n, k]` (forward, gradient of the
/// input, gradient of the weight) in both element types, with the layouts of training. The gradient of the weight is
/// added to an f32 array.
pub fn example_products(sizes: &Sizes) -> Result<Vec<ExampleProduct>, SizeError> {
    let usual = Sizes::default();
    all(&usual);
    sizes.check_given_sizes("matmul", &usual)?;
    Ok(all(sizes))
}

/// Returns the rows, the width and the vocabulary of the output layer in training, and these sizes as text.
///
/// # Errors
/// `sizes` has a name other than `tokens`, `hidden` and `vocab`, or a value that kernels do not support.
pub fn example_output_layer(sizes: &Sizes) -> Result<([usize; 3], String), SizeError> {
    let of = |s: &Sizes| [s.get("tokens", SEQUENCE_LEN), s.get("hidden", HIDDEN_SIZE), s.get("vocab", VOCAB_SIZE)];
    let usual = Sizes::default();
    of(&usual);
    sizes.check_given_sizes("linear_log_prob", &usual)?;
    let shape = of(sizes).map(|d| d as usize);
    Ok((shape, sizes.to_text()))
}

fn all(s: &Sizes) -> Vec<ExampleProduct> {
    let [m, n, k] =
        [s.get("m", SEQUENCE_LEN), s.get("n", INTERMEDIATE_SIZE), s.get("k", HIDDEN_SIZE)].map(|d| d as usize);
    let size = s.to_text();
    let of = |name, dtype, [m, n, k]: [usize; 3], [a, b]: [bool; 2], accumulate| {
        let operand = |transposed| Operand { addr: PLACEHOLDER_ADDRESS, dtype, transposed };
        let c_dtype = if accumulate { F32 } else { dtype };
        let (a, b) = (operand(a), operand(b));
        let product = Matmul { accumulate, ..plain_product([m, n, k], a, b, PLACEHOLDER_ADDRESS, c_dtype) };
        ExampleProduct { name, size: size.clone(), dtype, product }
    };
    let both = |[fwd, dx, dw]: [&'static str; 3], dtype| {
        [
            of(fwd, dtype, [m, n, k], [false, false], false),
            of(dx, dtype, [m, k, n], [false, true], false),
            of(dw, dtype, [n, k, m], [true, true], true),
        ]
    };
    let f32 = both(["matmul_fwd_f32", "matmul_dx_f32", "matmul_dw_f32"], F32);
    let bf16 = both(["matmul_fwd_bf16", "matmul_dx_bf16", "matmul_dw_bf16"], BF16);
    f32.into_iter().chain(bf16).collect()
}
