//! `ldmatrix`, `stmatrix` and `movmatrix`: move 8×8 matrices of 16-bit elements between rows in shared memory and
//! register fragments.
//!
//! Lane `8j + r` supplies the address of row `r` of matrix `j`, 16 bytes with an alignment of 16. Of each matrix,
//! lane `l` holds row `l/4`, columns `2(l%4)` and `2(l%4) + 1` (transposed: column `l/4`, rows `2(l%4)` and `2(l%4) +
//! 1`), the lower one in the low half of the register. Source: PTX ISA, "Warp-level matrix load/store/transpose
//! instruction".

use super::Lanes;

/// `ldmatrix`: fills one register per eight rows. `rows[l]` is the row at lane `l`'s address.
#[inline(always)]
pub fn load(rows: &[[u8; 16]], transpose: bool, registers: &mut [Lanes]) {
    assert_eq!(rows.len(), 8 * registers.len(), "eight rows per matrix");
    for (rows, register) in rows.chunks_exact(8).zip(registers) {
        let words: &mut [[u8; 16]] = bytemuck::cast_slice_mut(register.as_mut_slice());
        words.copy_from_slice(rows);
        rows_to_fragment(register, transpose);
    }
}

/// Converts eight matrix rows, stored one after the other in `register`, in place to the form in which `ldmatrix`
/// returns them: each lane holds its own two elements.
#[inline(always)]
pub fn rows_to_fragment(register: &mut Lanes, transpose: bool) {
    for word in register.iter_mut() {
        *word = u32::from_le(*word);
    }
    if transpose {
        *register = transposed(register);
    }
}

/// `stmatrix`: the inverse of [`load`].
///
/// # Panics
/// Panics unless `rows.len() == 8 * registers.len()`.
#[inline(always)]
pub fn store(registers: &[Lanes], transpose: bool, rows: &mut [[u8; 16]]) {
    assert_eq!(rows.len(), 8 * registers.len(), "eight rows per matrix");
    for (register, rows) in registers.iter().zip(rows.chunks_exact_mut(8)) {
        let source = if transpose { transposed(register) } else { *register };
        let source = source.map(u32::to_le);
        rows.copy_from_slice(bytemuck::cast_slice(source.as_slice()));
    }
}

/// `movmatrix.sync.aligned.m8n8.trans.b16`: returns the fragment of the transposed matrix.
#[inline(always)]
pub fn transposed(fragment: &Lanes) -> Lanes {
    // Interleaving row i with row i + 4 three times transposes an 8×8 matrix.
    let mut rows = [[0u16; 8]; 8];
    for (row, words) in rows.iter_mut().zip(fragment.chunks_exact(4)) {
        for (pair, word) in row.chunks_exact_mut(2).zip(words) {
            (pair[0], pair[1]) = (*word as u16, (word >> 16) as u16);
        }
    }
    for _ in 0..3 {
        let mut next = [[0u16; 8]; 8];
        for i in 0..4 {
            let (a, b) = (rows[i], rows[i + 4]);
            next[2 * i] = [a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]];
            next[2 * i + 1] = [a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]];
        }
        rows = next;
    }
    let mut out = [0; 32];
    for (row, words) in rows.iter().zip(out.chunks_exact_mut(4)) {
        for (pair, word) in row.chunks_exact(2).zip(words) {
            *word = pair[0] as u32 | (pair[1] as u32) << 16;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the eight rows of each of `matrices` matrices, one after the other; element (row, column) is 256·row +
    /// column.
    fn numbered(matrices: usize) -> Vec<[u8; 16]> {
        (0..8 * matrices)
            .map(|row| {
                let mut bytes = [0; 16];
                for column in 0..8 {
                    bytes[2 * column..2 * column + 2].copy_from_slice(&((256 * row + column) as u16).to_le_bytes());
                }
                bytes
            })
            .collect()
    }

    #[test]
    fn lanes_hold_the_documented_elements() {
        for count in [1, 2, 4] {
            let rows = numbered(count);
            let mut plain = vec![[0; 32]; count];
            load(&rows, false, &mut plain);
            let mut turned = vec![[0; 32]; count];
            load(&rows, true, &mut turned);
            for matrix in 0..count {
                for lane in 0..32 {
                    let (g, t) = (lane / 4, lane % 4);
                    let at = |row: usize, column: usize| (256 * (8 * matrix + row) + column) as u32;
                    assert_eq!(plain[matrix][lane], at(g, 2 * t) | at(g, 2 * t + 1) << 16);
                    assert_eq!(turned[matrix][lane], at(2 * t, g) | at(2 * t + 1, g) << 16);
                }
            }
        }
    }

    #[test]
    fn store_inverts_load() {
        let rows = numbered(4);
        for transpose in [false, true] {
            let mut registers = [[0; 32]; 4];
            load(&rows, transpose, &mut registers);
            let mut back = vec![[0xff; 16]; 32];
            store(&registers, transpose, &mut back);
            assert_eq!(back, rows);
        }
    }

    #[test]
    fn transposing_twice_is_the_identity() {
        let fragment: Lanes = std::array::from_fn(|lane| (lane as u32).wrapping_mul(0x9e37_79b9));
        assert_ne!(transposed(&fragment), fragment);
        assert_eq!(transposed(&transposed(&fragment)), fragment);
    }
}
