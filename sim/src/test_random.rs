//! Random numbers for tests.

/// A xorshift64 generator; the seed must not be 0.
pub struct Random(pub u64);

impl Random {
    fn step(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns 32 random bits.
    pub fn next(&mut self) -> u32 {
        (self.step() >> 24) as u32
    }

    /// Returns a random number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.step() >> 11) % bound
    }
}
