//! Which results of an `mma` depend on undefined registers.

use super::{AccumulatorFormat, MmaOp};

impl MmaOp {
    /// Returns, for each register of D, the mask of the lanes in which it depends on an undefined register: an element
    /// of D depends on the row of A, the column of B and the element of C that it is computed from. `a`, `b` and `c`
    /// are the masks of the lanes in which the registers of the operands are undefined.
    pub fn undefined_results(&self, a: &[u32], b: &[u32], c: &[u32]) -> Vec<u32> {
        // Bit r of `rows` stands for row r of A, bit n of `columns` for column n of B.
        let half_of_register = |r: usize| if self.m == 16 { 8 * (r & 1) } else { 0 };
        let rows = a.iter().enumerate().fold(0, |rows, (r, &lanes)| rows | quads(lanes) << half_of_register(r));
        let columns = b.iter().fold(0, |columns, &lanes| columns | quads(lanes));
        let lanes_of_rows =
            |half: usize| (0..8).filter(|g| rows >> (8 * half + g) & 1 != 0).fold(0, |lanes, g| lanes | 0xf << (4 * g));
        let lanes_of_columns = |odd: usize| {
            (0..4).filter(|t| columns >> (2 * t + odd) & 1 != 0).fold(0, |lanes, t| lanes | 0x1111_1111 << t)
        };
        let of_value = |i: usize| lanes_of_rows(i >> 1) | lanes_of_columns(i & 1);
        let of_register = |r: usize| match self.accumulator {
            AccumulatorFormat::F16 => of_value(2 * r) | of_value(2 * r + 1),
            AccumulatorFormat::F32 | AccumulatorFormat::S32 | AccumulatorFormat::F64 => of_value(r),
        };
        c.iter().enumerate().map(|(r, &lanes)| lanes | of_register(r)).collect()
    }
}

/// Returns a mask with bit g set if any of the lanes 4g to 4g + 3 is in `lanes`.
fn quads(lanes: u32) -> u32 {
    (0..8).filter(|g| lanes >> (4 * g) & 0xf != 0).fold(0, |quads, g| quads | 1 << g)
}
