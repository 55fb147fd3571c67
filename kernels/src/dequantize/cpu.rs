//! Dequantisation on device `cpu`; each task writes a few rows.
#![allow(unsafe_code)]

use reel_device::cpu::simd::{Isa, isa};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Addr, Element, Team, simd_fn};

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

/// A weight that the kernel's parameters describe.
pub(crate) struct Weight<'a> {
    k: usize,
    /// The codes of all rows; a row has `row_bytes` bytes.
    codes: &'a [u8],
    row_bytes: usize,
    values: Values,
    scales: &'a [f32],
    /// Empty: all zero points are 0.
    zeros: &'a [f32],
    /// Empty: a block has consecutive columns.
    column_blocks: &'a [i32],
    /// 0: a block has consecutive weights of the whole matrix.
    block_rows: usize,
    block_columns: usize,
    /// Blocks side by side.
    blocks: usize,
}

/// The values of codes.
enum Values {
    /// Codes of 4 bits: their values, and whether these are consecutive integers.
    Table([f32; 16], bool),
    /// Codes of 8 bits: [`Params::kind`].
    Kind(u32),
}

impl Weight<'_> {
    /// # Safety
    /// Every address in [`Params`] but y is valid for the documented shape and dtype while the weight lives.
    pub(crate) unsafe fn new(p: &Params) -> Weight<'_> {
        let [n, k, block_rows, block_columns, blocks] =
            [p.n, p.k, p.block_rows, p.block_columns, p.blocks].map(|size| size as usize);
        let count = p.scale_count();
        let values = match p.values {
            Addr::NULL => Values::Kind(p.kind),
            table => {
                // SAFETY: the table has 16 values.
                let table = unsafe { slice_at::<[f32; 16]>(table, 1) }[0];
                Values::Table(table, (0..16).all(|code| table[code] == table[0] + code as f32))
            }
        };
        let row_bytes = if matches!(values, Values::Table(..)) { k.div_ceil(2) } else { k };
        // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents; null arrays are read as empty.
        unsafe {
            Weight {
                k,
                codes: slice_at(p.codes, n * row_bytes),
                row_bytes,
                values,
                scales: slice_at(p.scales, count),
                zeros: slice_at(p.zeros, if p.zeros.is_null() { 0 } else { count }),
                column_blocks: slice_at(p.column_blocks, if p.column_blocks.is_null() { 0 } else { k }),
                block_rows,
                block_columns,
                blocks,
            }
        }
    }

    /// Writes the dequantised row `row` to `y`, `[k]`.
    pub(crate) fn write_row<T: Element>(&self, row: usize, y: &mut [T]) {
        let codes = &self.codes[row * self.row_bytes..][..self.row_bytes];
        let first_block = row.checked_div(self.block_rows).unwrap_or(0) * self.blocks;
        let factors = |block: usize| [self.scales[block], self.zeros.get(block).copied().unwrap_or(0.0)];
        let write = |first: usize, factors, y: &mut [T]| match &self.values {
            Values::Table(table, is_integers) => write_codes_of_4_bits(codes, first, table, *is_integers, factors, y),
            Values::Kind(kind) => scale_codes_of_8_bits(&codes[first..first + y.len()], *kind, factors, y),
        };
        if !self.column_blocks.is_empty() {
            for (column, (y, &block)) in y.chunks_mut(1).zip(self.column_blocks).enumerate() {
                write(column, factors(first_block + block as usize), y);
            }
            return;
        }
        let before = if self.block_rows == 0 { row * self.k } else { 0 };
        let block = before / self.block_columns;
        let (mut first, mut end) = (0, (block + 1) * self.block_columns - before);
        #[cfg(target_arch = "x86_64")]
        if let Values::Table(table, _) = &self.values
            && isa() >= Isa::Avx512
        {
            let blocks = first_block + block..;
            // SAFETY: the machine has AVX-512.
            return unsafe {
                avx512::write_row_of_4_bits(codes, table, blocks.map(factors), (end, self.block_columns), y);
            };
        }
        for block in first_block + block.. {
            if first >= self.k {
                break;
            }
            write(first, factors(block), &mut y[first..end.min(self.k)]);
            (first, end) = (end, end + self.block_columns);
        }
    }
}

/// Writes the columns from `first` on of a row with codes of 4 bits.
fn write_codes_of_4_bits<T: Element>(
    codes: &[u8],
    first: usize,
    table: &[f32; 16],
    is_integers: bool,
    [scale, zero]: [f32; 2],
    mut y: &mut [T],
) {
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
        false => scale_codes_of_4_bits(codes, table, [scale, zero], y),
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn dequantize<T: Element>(p: &Params, team: &Team) {
    let (n, k) = (p.n as usize, p.k as usize);
    // SAFETY: the caller promises valid addresses.
    let (weight, y) = unsafe { (Weight::new(p), OutputArray::<T>::new(p.y, n * k)) };
    for_each_row(team, n, k, |row| {
        // SAFETY: rows do not overlap.
        weight.write_row(row, unsafe { y.part(row * k, k) });
    });
}

/// Codes of 4 bits by AVX-512: the 16 weights of a block are computed once, and each code selects one of them.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use reel_device::{DType, Element};

    /// Writes a row. `factors` has scale and zero point of each block; the first block ends at column `end`, and the
    /// others have `columns` columns.
    ///
    /// # Safety
    /// The machine has AVX-512 F, BW, VL and DQ; T is f32 or bf16; codes has `⌈y.len() / 2⌉` bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn write_row_of_4_bits<T: Element>(
        codes: &[u8],
        table: &[f32; 16],
        mut factors: impl Iterator<Item = [f32; 2]>,
        (mut end, columns): (usize, usize),
        y: &mut [T],
    ) {
        // SAFETY: the table has 16 values.
        let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        let (k, mut first) = (y.len(), 0);
        while first < k
            && let Some([scale, zero]) = factors.next()
        {
            let weights = _mm512_mul_ps(_mm512_sub_ps(table, _mm512_set1_ps(zero)), _mm512_set1_ps(scale));
            let table = if T::DTYPE == DType::F32 { _mm512_castps_si512(weights) } else { twice_as_bf16(weights) };
            let last = end.min(k);
            // The columns may begin within a byte: the lower half of that byte is computed too, and not stored.
            let mut at = first - first % 2;
            let whole = if at == first { (last - first) / 32 } else { 0 };
            // SAFETY: whole groups of codes lie in the row; the masks select bytes and elements that exist; T has the
            // size of the elements.
            unsafe {
                let (from, to) = (codes.as_ptr().add(at / 2), y.as_mut_ptr().add(at));
                for i in 0..whole {
                    let pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.add(16 * i).cast()));
                    store::<T>(table, pairs, to.add(32 * i), !0);
                }
                at += 32 * whole;
                while at < last {
                    let stored = !0u32 >> (32 - (last - at).min(32)) & if at < first { !1 } else { !0 };
                    let bytes = !0u16 >> (16 - (last - at).min(32).div_ceil(2));
                    let pairs = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(bytes, codes.as_ptr().add(at / 2).cast()));
                    store::<T>(table, pairs, y.as_mut_ptr().add(at), stored);
                    at += 32;
                }
            }
            (first, end) = (last, end + columns);
        }
    }

    /// The 16 weights rounded to bf16, twice.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn twice_as_bf16(weights: __m512) -> __m512i {
        let bits = _mm512_castps_si512(weights);
        let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, is_odd), _mm512_set1_epi32(0x7fff));
        _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)))
    }

    /// Stores the weights of 16 pairs of codes where `mask` has a bit. The table has the weights of all codes: 16 f32, or
    /// twice 16 bf16.
    ///
    /// # Safety
    /// The elements that `mask` selects exist.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn store<T: Element>(table: __m512i, pairs: __m512i, y: *mut T, mask: u32) {
        if T::DTYPE != DType::F32 {
            // A lookup reads the lowest 5 bits of a word.
            let codes = _mm512_or_si512(pairs, _mm512_slli_epi32::<12>(pairs));
            // SAFETY: the mask selects elements that exist.
            return unsafe { _mm512_mask_storeu_epi16(y.cast(), mask, _mm512_permutexvar_epi16(codes, table)) };
        }
        // A lookup reads the lowest 4 bits of a word.
        let even = _mm512_permutexvar_epi32(pairs, table);
        let odd = _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(pairs), table);
        let half = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let other = _mm512_add_epi32(half, _mm512_set1_epi32(8));
        // SAFETY: the masks select elements that exist.
        unsafe {
            _mm512_mask_storeu_epi32(y.cast(), mask as u16, _mm512_permutex2var_epi32(even, half, odd));
            _mm512_mask_storeu_epi32(
                y.add(16).cast(),
                (mask >> 16) as u16,
                _mm512_permutex2var_epi32(even, other, odd),
            );
        }
    }
}
