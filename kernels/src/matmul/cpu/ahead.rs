//! Prefetches the block of B that a thread needs next while the thread still computes with another block.

use reel_device::cpu::simd::prefetch;
use reel_device::launch::INT8_GROUP;

use super::{Part, Source, Unit, int8};

/// Bytes of a cache line.
const LINE: usize = 64;

/// The cache lines of one part of an operand. A tile function prefetches one line every few steps, so that packing
/// later finds the part in the second-level cache. If all lines were prefetched at once, the loads of the tile
/// function would wait for them. bf16 products gain 1 to 6 % by this and other changes
/// (tools/benches/results/amd-epyc/2026-11-26-products-zen4.json).
pub(super) struct PrefetchCursor {
    /// The next line.
    at: *const u8,
    /// Number of lines left in this stretch of memory.
    left: usize,
    /// Number of stretches left, including this one. Each stretch has `lines` lines; `skip` bytes lie between two
    /// stretches.
    stretches: usize,
    lines: usize,
    skip: usize,
}

impl PrefetchCursor {
    /// Makes the list of the lines of `part`, which may be empty. For an f32 or bf16 operand in groups the list is
    /// empty: such an operand is read in place as one contiguous stream, and prefetching it made f32 products 1 to 4
    /// % slower (AMD EPYC, Zen 4).
    pub(super) fn new(source: &Source, part: Part) -> PrefetchCursor {
        let element = source.unit.element();
        let elements = if matches!(source.unit, Unit::Pair | Unit::Int8Pair) { 2 } else { 1 };
        let (at, stretches, bytes, stride) = match source.unit {
            Unit::F32 | Unit::Widened | Unit::Pair if source.transposed => {
                let stride = source.rows * element;
                let at = source.base.wrapping_add(elements * part.unit * stride + part.row * element);
                (at, elements * part.units, part.rows * element, stride)
            }
            Unit::F32 | Unit::Widened | Unit::Pair => {
                let (stride, unit) = (source.k * element, elements * element);
                (source.base.wrapping_add(part.row * stride + part.unit * unit), part.rows, part.units * unit, stride)
            }
            Unit::GroupedF32 | Unit::GroupedPair | Unit::GroupedWidened => (source.base, 0, 0, 0),
            Unit::Int8 | Unit::Int8Pair => {
                let at = int8::element_address_in_group(source, part.row, elements * part.unit);
                (at, part.rows.div_ceil(INT8_GROUP), elements * part.units * INT8_GROUP, source.k * INT8_GROUP)
            }
        };
        let lines = bytes.div_ceil(LINE);
        let stretches = if lines == 0 { 0 } else { stretches };
        PrefetchCursor { at, left: lines, stretches, lines, skip: stride.wrapping_sub(lines * LINE) }
    }

    /// Prefetches the next line into the second-level cache, if one is left.
    #[inline(always)]
    pub(super) fn prefetch_line(&mut self) {
        if let Some(line) = self.next_line() {
            prefetch::prefetch_l2(line);
        }
    }

    #[inline(always)]
    fn next_line(&mut self) -> Option<*const u8> {
        if self.stretches == 0 {
            return None;
        }
        let line = self.at;
        self.at = line.wrapping_add(LINE);
        self.left -= 1;
        if self.left == 0 {
            self.at = self.at.wrapping_add(self.skip);
            self.left = self.lines;
            self.stretches -= 1;
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNITS: [Unit; 5] = [Unit::F32, Unit::Widened, Unit::Pair, Unit::Int8, Unit::Int8Pair];

    proptest! {
        /// The prefetched lines cover the whole part and few other bytes. The test accesses no address, so addresses
        /// may be any numbers.
        #[test]
        fn lines_hold_the_part(
            unit in prop::sample::select(&UNITS[..]),
            transposed: bool,
            [row, rows, unit_at, units] in [0usize..70, 0usize..70, 0usize..50, 0usize..50],
            [rows_after, k_after, offset] in [0usize..40, 0usize..40, 0usize..64],
        ) {
            let group = if matches!(unit, Unit::Int8 | Unit::Int8Pair) { INT8_GROUP } else { 1 };
            let row = row / group * group;
            let is_pair = matches!(unit, Unit::Pair | Unit::Int8Pair);
            let k = (unit_at + units) * (1 + usize::from(is_pair)) + k_after;
            let base = std::ptr::without_provenance(4096 + offset);
            let transposed = transposed && group == 1;
            let source = Source { base, unit, transposed, rows: row + rows + rows_after, k };
            let part = Part { row, rows, unit: unit_at, units };
            let mut ahead = PrefetchCursor::new(&source, part);
            let lines: Vec<usize> = std::iter::from_fn(|| ahead.next_line()).map(|at| at as usize).collect();
            let element = unit.element();
            let address = |r: usize, u: usize, second: usize| match unit {
                Unit::Int8 => int8::element_address_in_group(&source, r, u) as usize + r % group,
                Unit::Int8Pair => int8::element_address_in_group(&source, r, 2 * u + second) as usize + r % group,
                Unit::Pair if transposed => base as usize + ((2 * u + second) * source.rows + r) * element,
                Unit::Pair => base as usize + (r * k + 2 * u + second) * element,
                _ if transposed => base as usize + (u * source.rows + r) * element,
                _ => base as usize + (r * k + u) * element,
            };
            for (r, u, second) in (0..rows).flat_map(|r| (0..units).flat_map(move |u| [(r, u, 0), (r, u, 1)])) {
                let at = address(row + r, unit_at + u, second);
                prop_assert!(lines.iter().any(|&line| (line..line + LINE).contains(&at)), "row {r}, unit {u}");
            }
            // The last cache line of a contiguous stretch of B may be used only partly.
            let all = rows.next_multiple_of(group) * units * unit.bytes();
            let stretches = if transposed { k } else { rows };
            prop_assert!(lines.len() <= all / LINE + stretches, "{} lines for {all} bytes", lines.len());
        }
    }
}
