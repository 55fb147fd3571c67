//! The definition in f64. It is exact: a product of two f32 has at most 48 significant bits.

use super::CodeValues;

/// Returns the dequantised weights `[n, k]`, before they are rounded. `block_of` gives the block of a weight by its row
/// and column; without zero points, `zeros` is empty.
pub fn dequantize(
    codes: &[u8],
    [n, k]: [usize; 2],
    values: &CodeValues,
    (scales, zeros): (&[f32], &[f32]),
    block_of: impl Fn(usize, usize) -> usize,
) -> Vec<f64> {
    let one = |row: usize, column: usize| {
        let block = block_of(row, column);
        let zero = zeros.get(block).map_or(0.0, |&zero| zero as f64);
        (value(values, codes[row * k + column]) - zero) * scales[block] as f64
    };
    (0..n * k).map(|at| one(at / k, at % k)).collect()
}

fn value(values: &CodeValues, code: u8) -> f64 {
    match values {
        CodeValues::Table(values) => values[code as usize] as f64,
        CodeValues::U8 => code as f64,
        CodeValues::I8 if code >= 128 => code as f64 - 256.0,
        CodeValues::I8 => code as f64,
        CodeValues::E4m3 => {
            let (sign, exponent, mantissa) = (code / 128, code / 8 % 16, (code % 8) as f64 / 8.0);
            let size = match exponent {
                0 => mantissa * 2f64.powi(-6),
                _ => (1.0 + mantissa) * 2f64.powi(exponent as i32 - 7),
            };
            if sign == 1 { -size } else { size }
        }
    }
}
