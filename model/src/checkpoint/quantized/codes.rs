//! Where the codes of a quantised weight `[out, in]` lie in the stored bytes.

use std::ops::Range;

/// The layout of the codes of a weight `[out, in]`. Words are little-endian and have 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CodeLayout {
    /// Rows of whole words; a word has consecutive inputs, the first in its lowest bits. Bytes are the case of 8 bits in
    /// which rows need no padding.
    Rows { bits: u32, row_bytes: usize },
    /// All rows without padding, two codes a byte, the first in its upper half (bitsandbytes).
    UpperHalfFirst,
    /// `[in · bits / 32, out]`: a word has consecutive inputs of an output, the first in its lowest bits (GPTQ).
    Columns { bits: u32 },
    /// `[in, out / 8]`: a word has 8 outputs of an input (AWQ).
    OutputsOfAwq,
}

/// The position of output `8 w + i` in word w, counted in codes of 4 bits from the lowest. AWQ stores the outputs in
/// the order 0, 2, 4, 6, 1, 3, 5, 7.
pub(crate) const AWQ_POSITION: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The word at `index` of `bytes`.
pub(super) fn word(bytes: &[u8], index: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(index).map_or(0, |word| u32::from_le_bytes(*word))
}

/// The code number `index` of consecutive codes of `bits` bits in words, the first in the lowest bits.
pub(super) fn code(bytes: &[u8], bits: u32, index: usize) -> u8 {
    let per_byte = 8 / bits as usize;
    let shift = (index % per_byte) as u32 * bits;
    (bytes[index / per_byte] >> shift) & mask(bits)
}

fn mask(bits: u32) -> u8 {
    ((1u32 << bits) - 1) as u8
}

impl CodeLayout {
    /// Writes the codes of the rows `rows` of a weight `[out, inner]` to `to`, `[rows, inner]`.
    pub(super) fn read_rows(self, bytes: &[u8], [out, inner]: [usize; 2], rows: &Range<usize>, to: &mut [u8]) {
        match self {
            CodeLayout::Rows { bits, row_bytes } => {
                for (row, to) in rows.clone().zip(to.chunks_exact_mut(inner)) {
                    let own = &bytes[row * row_bytes..][..row_bytes];
                    to.iter_mut().enumerate().for_each(|(i, to)| *to = code(own, bits, i));
                }
            }
            CodeLayout::UpperHalfFirst => {
                let half = |n: usize| if n.is_multiple_of(2) { bytes[n / 2] >> 4 } else { bytes[n / 2] & 15 };
                to.iter_mut().enumerate().for_each(|(i, to)| *to = half(rows.start * inner + i));
            }
            CodeLayout::Columns { bits } => {
                let per_word = (32 / bits) as usize;
                in_tiles(rows, inner, to, |rows, columns, tile| {
                    for i in columns.clone().step_by(per_word) {
                        for (row, tile) in rows.clone().zip(tile.chunks_exact_mut(TILE)) {
                            let word = word(bytes, i / per_word * out + row).to_le_bytes();
                            let to = tile[i - columns.start..].iter_mut().take(per_word);
                            to.enumerate().for_each(|(n, to)| *to = code(&word, bits, n));
                        }
                    }
                });
            }
            CodeLayout::OutputsOfAwq => in_tiles(rows, inner, to, |rows, columns, tile| {
                for (i, at) in columns.clone().zip(0..) {
                    for (row, tile) in rows.clone().zip(tile.chunks_exact_mut(TILE)) {
                        let shift = 4 * AWQ_POSITION[row % 8];
                        tile[at] = (word(bytes, i * out.div_ceil(8) + row / 8) >> shift) as u8 & 15;
                    }
                }
            }),
        }
    }
}

/// Columns of a tile: a cache line of codes.
const TILE: usize = 64;

/// Calls `read` for the columns of each tile, and copies the tile `[rows, TILE]` that it fills to `to`, `[rows, inner]`.
/// Files that have the codes of a column side by side are so read in whole cache lines.
fn in_tiles(rows: &Range<usize>, inner: usize, to: &mut [u8], read: impl Fn(&Range<usize>, &Range<usize>, &mut [u8])) {
    let mut tile = vec![0; rows.len() * TILE];
    for first in (0..inner).step_by(TILE) {
        let columns = first..inner.min(first + TILE);
        read(rows, &columns, &mut tile);
        for (to, tile) in to.chunks_exact_mut(inner).zip(tile.chunks_exact(TILE)) {
            to[columns.clone()].copy_from_slice(&tile[..columns.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Packs codes `[out, inner]` in a layout.
    fn pack(layout: CodeLayout, codes: &[u8], [out, inner]: [usize; 2]) -> Vec<u8> {
        let mut words = vec![0u32; out * inner];
        let mut put = |word: usize, shift: usize, code: u8| words[word] |= u32::from(code) << shift;
        let mut used = 0;
        for (n, &code) in codes.iter().enumerate() {
            let (o, i) = (n / inner, n % inner);
            let (at, shift) = match layout {
                CodeLayout::Rows { bits, row_bytes } => {
                    let bit = o * row_bytes * 8 + i * bits as usize;
                    (bit / 32, bit % 32)
                }
                CodeLayout::UpperHalfFirst => (n / 8, n % 8 / 2 * 8 + if n % 2 == 0 { 4 } else { 0 }),
                CodeLayout::Columns { bits } => {
                    let per_word = 32 / bits as usize;
                    (i / per_word * out + o, i % per_word * bits as usize)
                }
                CodeLayout::OutputsOfAwq => {
                    let order = [0, 2, 4, 6, 1, 3, 5, 7];
                    let position = order.iter().position(|&output| output == o % 8).unwrap();
                    (i * (out / 8) + o / 8, position * 4)
                }
            };
            put(at, shift, code);
            used = used.max(at + 1);
        }
        words[..used].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn packed_codes_are_read(out in 1usize..5, inner in 1usize..5, eight: bool, first in 0usize..8, seed: u64) {
            let shape = [8 * out, 8 * inner];
            for layout in [
                CodeLayout::Rows { bits: 4, row_bytes: shape[1] / 2 },
                CodeLayout::Rows { bits: 8, row_bytes: shape[1] },
                CodeLayout::UpperHalfFirst,
                CodeLayout::Columns { bits: if eight { 8 } else { 4 } },
                CodeLayout::OutputsOfAwq,
            ] {
                let bits = match layout {
                    CodeLayout::Rows { bits, .. } | CodeLayout::Columns { bits } => bits,
                    _ => 4,
                };
                let random = |n: usize| (seed.rotate_left(n as u32 * 7 % 64) ^ (n as u64 * 0x9e37)) as u8 & mask(bits);
                let codes: Vec<u8> = (0..shape[0] * shape[1]).map(random).collect();
                let stored = pack(layout, &codes, shape);
                let mut read = vec![0; (shape[0] - first) * shape[1]];
                layout.read_rows(&stored, shape, &(first..shape[0]), &mut read);
                prop_assert_eq!(&read, &codes[first * shape[1]..], "{:?}", layout);
            }
        }
    }
}
