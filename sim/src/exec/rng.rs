//! The seeded random generator from which every random choice of an interleaving comes.

/// A xorshift64* generator.
#[derive(Clone, Debug)]
pub struct SeededRng(u64);

impl SeededRng {
    /// Creates a generator whose sequence depends only on `seed`.
    pub fn new(seed: u64) -> SeededRng {
        SeededRng((seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d) | 1)
    }

    /// Draws the next 64 bits.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Draws a random number below `n`.
    #[inline]
    pub fn draw_below(&mut self, n: u32) -> u32 {
        (((self.draw() >> 32) * n as u64) >> 32) as u32
    }
}
