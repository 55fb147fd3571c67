//! Cases of `mma.sync` of every shape.
//!
//! Each form runs on two kinds of elements: small integers, whose sums must be exact, and numbers of magnitude about 1,
//! whose sums may differ by a tolerance relative to the sum of the products' magnitudes: order and rounding of sums in
//! the tensor core are not documented.

use super::format::{BF16, ElementRange, F16, F32, F64, MatrixElementFormat, OperandFormat};
use super::{InstructionCase, pattern, ptx};
use reel_sim::matrix::mma::MmaOp;

/// The forms of `mma.sync`, without the prefix `mma.sync.aligned.`
const MMA: &[&str] = &[
    "m16n8<k8|k16>.row.col.f32.bf16.bf16.f32",
    "m16n8<k8|k16>.row.col.<f32.f16.f16.f32|f16.f16.f16.f16>",
    "m16n8<k4|k8>.row.col.f32.tf32.tf32.f32",
    "m16n8k32.row.col.f32.<e4m3|e5m2>.<e4m3|e5m2>.f32",
    "<m8n8k4|m16n8k4|m16n8k8|m16n8k16>.row.col.f64.f64.f64.f64",
    "<m8n8k16|m16n8k16|m16n8k32>.row.col<|.satfinite>.s32.<s8|u8>.<s8|u8>.s32",
    "<m8n8k32|m16n8k32|m16n8k64>.row.col<|.satfinite>.s32.<s4|u4>.<s4|u4>.s32",
    "<m8n8k128|m16n8k128|m16n8k256>.row.col.s32.b1.b1.s32.<xor|and>.popc",
];

/// Returns all cases of `mma.sync`.
pub fn mma_cases(lanes: usize) -> Vec<InstructionCase> {
    let forms = MMA.iter().flat_map(|p| pattern::expand_pattern(p));
    forms
        .flat_map(|form| {
            let spans = if form.contains(".s32.") {
                vec![ElementRange::Small]
            } else {
                vec![ElementRange::Small, ElementRange::Moderate]
            };
            spans.into_iter().map(move |span| mma(&format!("mma.sync.aligned.{form}"), span, lanes))
        })
        .collect()
}

/// Returns the element format for a PTX type name.
pub fn element_format_from_ptx(name: &str) -> MatrixElementFormat {
    match name {
        "f64" => MatrixElementFormat::Number(F64),
        "f32" => MatrixElementFormat::Number(F32),
        "f16" => MatrixElementFormat::Number(F16),
        "bf16" => MatrixElementFormat::Number(BF16),
        "tf32" => MatrixElementFormat::Tf32,
        "e4m3" => MatrixElementFormat::E4m3,
        "e5m2" => MatrixElementFormat::E5m2,
        "s32" => MatrixElementFormat::Int32,
        _ => MatrixElementFormat::Bits,
    }
}

/// Returns the allowed difference between two sums of the same products in different orders, relative to the sum of
/// the products' magnitudes.
pub fn sum_tolerance(elements: MatrixElementFormat, sum: MatrixElementFormat) -> f64 {
    2f64.powi(match (sum, elements) {
        (MatrixElementFormat::Number(F16), _) => -9,
        (MatrixElementFormat::Number(F64), _) => -50,
        // Hopper's tensor cores keep 14 bits in sums of products of 8-bit floating-point numbers.
        (_, MatrixElementFormat::E4m3 | MatrixElementFormat::E5m2) => -12,
        _ => -20,
    })
}

fn mma(opcode: &str, span: ElementRange, lanes: usize) -> InstructionCase {
    let op = MmaOp::decode(opcode).expect("the simulator supports this form of mma");
    let count = op.registers_per_lane();
    let types: Vec<&str> = opcode.split("row.col.").nth(1).expect("row.col").split('.').collect();
    let types = if types[0] == "satfinite" { &types[1..] } else { &types[..] };
    let (sum, a, b) =
        (element_format_from_ptx(types[0]), element_format_from_ptx(types[1]), element_format_from_ptx(types[2]));
    let list = |letter: &str, from: usize, count: usize| {
        let names: Vec<String> = (from..from + count).map(|k| format!("${letter}{k}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let text = format!(
        "{opcode} {}, {}, {}, {};",
        list("d", 0, count.c),
        list("a", 0, count.a),
        list("a", count.a, count.b),
        list("a", count.a + count.b, count.c)
    );
    let of = |element, count| vec![OperandFormat::Matrix(element, span); count];
    let sources = [of(a, count.a), of(b, count.b), of(sum, count.c)].concat();
    let mut case = ptx::case_from_formats(&text, format!("{opcode} {span:?}"), of(sum, count.c), sources, lanes);
    if span == ElementRange::Moderate {
        let mut input = case.input.clone();
        for (k, &format) in case.sources.iter().enumerate() {
            let OperandFormat::Matrix(element, _) = format else { continue };
            clear_bits_in_each_word(&mut input[8 * k * lanes..8 * (k + 1) * lanes], element.sign_mask());
        }
        case.magnitudes = Some(input);
        case.tolerance = sum_tolerance(a, sum);
    }
    case
}

/// Clears the bits of `mask` in each 8-byte word of `bytes`.
pub fn clear_bits_in_each_word(bytes: &mut [u8], mask: u64) {
    for word in bytes.chunks_exact_mut(8) {
        let kept = u64::from_le_bytes(word.try_into().expect("8 bytes")) & !mask;
        word.copy_from_slice(&kept.to_le_bytes());
    }
}
