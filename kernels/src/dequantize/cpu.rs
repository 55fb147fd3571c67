//! Dequantisation on device `cpu`; each task writes a few rows.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::Params;
use crate::norm_rows::for_each_row;

simd_fn! {
    /// Codes of 4 bits, from the first column of a byte on.
    fn scale_codes_of_4_bits<T: Element>(codes: &[u8], table: &[f32; 16], factors: [f32; 2], y: &mut [T]) {
        let [scale, zero] = factors;
        let (pairs, last) = y.as_chunks_mut::<2>();
        let weight = |code: u8| T::from_f32((table[code as usize & 15] - zero) * scale);
        for (&code, y) in codes.iter().zip(pairs) {
            *y = [weight(code), weight(code >> 4)];
        }
        for y in last {
            *y = weight(codes[codes.len() - 1]);
        }
    }
}

simd_fn! {
    /// Codes of 4 bits whose values are `first`, `first + 1`, …
    fn scale_integers_of_4_bits<T: Element>(codes: &[u8], first: f32, factors: [f32; 2], y: &mut [T]) {
        let [scale, zero] = factors;
        let (pairs, last) = y.as_chunks_mut::<2>();
        let weight = |code: u8| T::from_f32(((code & 15) as f32 + first - zero) * scale);
        for (&code, y) in codes.iter().zip(pairs) {
            *y = [weight(code), weight(code >> 4)];
        }
        for y in last {
            *y = weight(codes[codes.len() - 1]);
        }
    }
}

simd_fn! {
    fn scale_codes_of_8_bits<T: Element>(codes: &[u8], kind: u32, factors: [f32; 2], y: &mut [T]) {
        let [scale, zero] = factors;
        let each = codes.iter().zip(y);
        match kind {
            0 => each.for_each(|(&code, y)| *y = T::from_f32((code as f32 - zero) * scale)),
            1 => each.for_each(|(&code, y)| *y = T::from_f32((code as i8 as f32 - zero) * scale)),
            _ => each.for_each(|(&code, y)| {
                let (sign, size) = ((code as u32 & 0x80) << 24, code as u32 & 0x7f);
                // The exponent has the bias 7 in e4m3 and 127 in f32.
                let normal = f32::from_bits(sign | ((size << 20) + (120 << 23)));
                let small = f32::from_bits(sign | (size as f32 * (1.0 / 512.0)).to_bits());
                *y = T::from_f32((if size < 8 { small } else { normal } - zero) * scale);
            }),
        }
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn four<T: Element>(p: &Params, team: &Team) {
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let table = unsafe { slice_at::<f32>(p.values, 16) };
    let table: [f32; 16] = std::array::from_fn(|code| table[code]);
    let is_integers = (0..16).all(|code| table[code] == table[0] + code as f32);
    let scale_codes = |codes: &[u8], first: usize, [scale, zero]: [f32; 2], mut y: &mut [T]| {
        let mut codes = &codes[first / 2..];
        if first % 2 == 1
            && let [one, rest @ ..] = y
        {
            *one = T::from_f32((table[usize::from(codes[0] >> 4)] - zero) * scale);
            (y, codes) = (rest, &codes[1..]);
        }
        let codes = &codes[..y.len().div_ceil(2)];
        match is_integers {
            true => scale_integers_of_4_bits(codes, table[0], [scale, zero], y),
            false => scale_codes_of_4_bits(codes, &table, [scale, zero], y),
        }
    };
    // SAFETY: the caller promises it.
    unsafe { dequantize::<T>(p, (p.k as usize).div_ceil(2), scale_codes, team) }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn eight<T: Element>(p: &Params, team: &Team) {
    let scale_codes = |codes: &[u8], first: usize, factors: [f32; 2], y: &mut [T]| {
        scale_codes_of_8_bits(&codes[first..first + y.len()], p.kind, factors, y);
    };
    // SAFETY: the caller promises it.
    unsafe { dequantize::<T>(p, p.k as usize, scale_codes, team) }
}

/// `scale_codes` gets the codes of a row, the column from which it writes, scale and zero point, and the columns to
/// write.
///
/// # Safety
/// The conditions of [`four`] and [`eight`]; a row has `row_bytes` bytes.
unsafe fn dequantize<T: Element>(
    p: &Params,
    row_bytes: usize,
    scale_codes: impl Fn(&[u8], usize, [f32; 2], &mut [T]) + Sync,
    team: &Team,
) {
    let [n, k, block_rows, block_columns, blocks] =
        [p.n, p.k, p.block_rows, p.block_columns, p.blocks].map(|size| size as usize);
    let count = p.scale_count();
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (codes, scales) = unsafe { (slice_at::<u8>(p.codes, n * row_bytes), slice_at::<f32>(p.scales, count)) };
    // SAFETY: as above; null arrays are read as empty.
    let zeros = unsafe { slice_at::<f32>(p.zeros, if p.zeros.is_null() { 0 } else { count }) };
    // SAFETY: as above.
    let column_blocks = unsafe { slice_at::<i32>(p.column_blocks, if p.column_blocks.is_null() { 0 } else { k }) };
    // SAFETY: as above.
    let y = unsafe { OutputArray::<T>::new(p.y, n * k) };
    for_each_row(team, n, k, |row| {
        let codes = &codes[row * row_bytes..][..row_bytes];
        // SAFETY: rows do not overlap.
        let y = unsafe { y.part(row * k, k) };
        let before = if block_rows == 0 { row * k } else { 0 };
        let mut first = 0;
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
            scale_codes(codes, first, [scales[block], zero], &mut y[first..end]);
            first = end;
        }
    });
}
