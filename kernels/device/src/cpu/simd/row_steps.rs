//! Addresses of rows that a loop reads side by side, without address arithmetic in the loop.
//!
//! On x86-64 an address may be a register plus a register times 1, 2, 4 or 8. So the address of the first row and seven
//! distances reach twelve rows of 32-bit words. If the compiler knew the distances as multiples of one number, it would
//! change up to a dozen address registers in each step of the loop, on execution ports that multiply-adds need: with
//! AVX-512 on Intel most f32 products took 9 to 17 % longer
//! (tools/benches/results/intel-xeon/2026-11-26-row-steps.json).

/// The distances of up to 12 rows of 32-bit words from the first one, in words.
#[derive(Clone, Copy)]
pub struct RowOffsets([usize; 7]);

impl RowOffsets {
    /// Makes the distances of rows that begin `stride` words apart.
    #[inline(always)]
    pub fn new(stride: usize) -> RowOffsets {
        RowOffsets([1, 3, 4, 5, 7, 9, 11].map(|rows: usize| hide(rows.wrapping_mul(stride))))
    }

    /// Number of words from row 0 to row `i`, which is below 12. `i` is a constant once the caller's loop over the rows
    /// is unrolled.
    #[inline(always)]
    pub fn row(&self, i: usize) -> usize {
        let [one, three, four, five, seven, nine, eleven] = self.0;
        match i {
            0 => 0,
            1 => one,
            2 => 2 * one,
            3 => three,
            4 => four,
            5 => five,
            6 => 2 * three,
            7 => seven,
            8 => 2 * four,
            9 => nine,
            10 => 2 * five,
            11 => eleven,
            _ => unreachable!("row {i} of 12"),
        }
    }
}

/// Returns `x` and hides its origin, so that the compiler assumes nothing about the value.
#[inline(always)]
#[allow(unsafe_code)]
fn hide(mut x: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a comment is no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags));
    }
    x
}

/// Returns `at` and hides its origin from the compiler. So the compiler computes the addresses of rows from `at` in
/// each step of a loop and does not keep them from step to step.
#[inline(always)]
#[allow(unsafe_code)]
pub fn hide_address<T>(mut at: *const T) -> *const T {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a comment is no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) at, options(pure, readonly, nostack, preserves_flags));
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_multiples_of_the_stride() {
        for stride in [0, 1, 7, 4864, usize::MAX / 11] {
            let steps = RowOffsets::new(stride);
            assert!((0..12).all(|i| steps.row(i) == i * stride), "{stride}");
        }
        let numbers = [1, 2];
        assert_eq!(hide_address(numbers.as_ptr()), numbers.as_ptr());
    }
}
