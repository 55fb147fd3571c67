//! Dequantisation on device `cpu`; each task writes a few rows.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{CodeValues, Params};
use crate::norm_rows::for_each_row;

simd_fn! {
    fn scale_codes_of_4_bits<T: Element>(codes: &[u8], differences: &[f32; 256], scale: f32, first: usize, y: &mut [T]) {
        for (i, y) in (first..).zip(y) {
            let code = codes[i / 2] >> (i % 2 * 4) & 15;
            *y = T::from_f32(differences[code as usize] * scale);
        }
    }
}

simd_fn! {
    fn scale_codes_of_8_bits<T: Element>(codes: &[u8], differences: &[f32; 256], scale: f32, first: usize, y: &mut [T]) {
        for (&code, y) in codes[first..].iter().zip(y) {
            *y = T::from_f32(differences[code as usize] * scale);
        }
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn four<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises it.
    unsafe {
        let table: &[f32; 16] = slice_at::<f32>(p.values, 16).as_chunks().0.first().unwrap_or(&[0.0; 16]);
        dequantize::<T>(p, CodeValues::Table(*table), scale_codes_of_4_bits::<T>, team);
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn eight<T: Element>(p: &Params, team: &Team) {
    let values = match p.kind {
        0 => CodeValues::U8,
        1 => CodeValues::I8,
        _ => CodeValues::E4m3,
    };
    // SAFETY: the caller promises it.
    unsafe { dequantize::<T>(p, values, scale_codes_of_8_bits::<T>, team) }
}

/// `scale_codes` gets the codes of a row, `values − zero`, the scale, and the columns from `first` on to write.
///
/// # Safety
/// The conditions of [`four`] and [`eight`].
unsafe fn dequantize<T: Element>(
    p: &Params,
    values: CodeValues,
    scale_codes: impl Fn(&[u8], &[f32; 256], f32, usize, &mut [T]) + Sync,
    team: &Team,
) {
    let [n, k, block_rows, block_columns, blocks] =
        [p.n, p.k, p.block_rows, p.block_columns, p.blocks].map(|size| size as usize);
    let (row_bytes, count) = (values.row_bytes(k), p.scale_count());
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (codes, scales) = unsafe { (slice_at::<u8>(p.codes, n * row_bytes), slice_at::<f32>(p.scales, count)) };
    // SAFETY: as above; null arrays are read as empty.
    let zeros = unsafe { slice_at::<f32>(p.zeros, if p.zeros.is_null() { 0 } else { count }) };
    // SAFETY: as above.
    let column_blocks = unsafe { slice_at::<i32>(p.column_blocks, if p.column_blocks.is_null() { 0 } else { k }) };
    let values: [f32; 256] = std::array::from_fn(|code| values.value(code as u8));
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let y = unsafe { OutputArray::<T>::new(p.y, n * k) };
    for_each_row(team, n, k, |row| {
        let codes = &codes[row * row_bytes..][..row_bytes];
        // SAFETY: rows do not overlap.
        let y = unsafe { y.part(row * k, k) };
        let before = if block_rows == 0 { row * k } else { 0 };
        let (mut first, mut differences, mut of_zero) = (0, values, 0.0);
        while first < k {
            let (block, end) = match column_blocks.get(first) {
                Some(&block) => (block as usize, first + 1),
                None => {
                    let block = (before + first) / block_columns;
                    (block, ((block + 1) * block_columns - before).min(k))
                }
            };
            let block = row.checked_div(block_rows).unwrap_or(0) * blocks + block;
            let zero = zeros.get(block).copied().unwrap_or(0.0);
            if zero != of_zero {
                (differences, of_zero) = (values.map(|value| value - zero), zero);
            }
            scale_codes(codes, &differences, scales[block], first, &mut y[first..end]);
            first = end;
        }
    });
}
