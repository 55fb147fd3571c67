//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw ("Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011): a bijection of a 128-bit counter under a 64-bit key. A draw depends on its counter alone, so
//! draws can be repeated in any order.
//!
//! Layout here: key = the seed (low word, high word); counter = the index (low, high), then the stream (low, high). A
//! stream is one use of random numbers (sampling, the rounding of one parameter); the index counts within a stream.

/// Returns the four random words of a counter under a key, after Philox's ten rounds.
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    let mut round = 0;
    while round < 10 {
        let (p, q) = (a as u64 * 0xd251_1f53, c as u64 * 0xcd9e_8d57);
        (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32);
        (k0, k1) = (k0.wrapping_add(0x9e37_79b9), k1.wrapping_add(0xbb67_ae85));
        round += 1;
    }
    [a, b, c, d]
}

/// Returns the four 32-bit random words with number `index` in the random sequence with number `stream_id`.
pub fn random_words(seed: u64, stream_id: u64, index: u64) -> [u32; 4] {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let ([i0, i1], [s0, s1]) = (halves(index), halves(stream_id));
    philox4x32_10([i0, i1, s0, s1], halves(seed))
}

/// Returns a random number uniform in [0, 1), a multiple of 2⁻²⁴: the upper 24 bits of the first random word.
pub fn uniform_f32(seed: u64, stream_id: u64, index: u64) -> f32 {
    (random_words(seed, stream_id, index)[0] >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Returns a random number uniform in [0, 1), a multiple of 2⁻⁵³. It has the upper 53 bits of the first two random
/// words; the first word is the higher one.
pub fn uniform_f64(seed: u64, stream_id: u64, index: u64) -> f64 {
    let [hi, lo, ..] = random_words(seed, stream_id, index);
    (((hi as u64) << 32 | lo as u64) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with the known answers that the authors publish with their library (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        let all = u32::MAX;
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([all; 4], [all; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32_10(counter, key), want);
        }
    }

    #[test]
    fn seed_stream_and_index_each_matter() {
        let base = random_words(1, 2, 3);
        for (seed, stream, index) in
            [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1 | 1 << 32, 2, 3), (1, 2 | 1 << 32, 3), (1, 2, 3 | 1 << 32)]
        {
            assert_ne!(random_words(seed, stream, index), base);
        }
    }

    #[test]
    fn moments() {
        let n = 200_000u64;
        let mean = |f: &dyn Fn(u64) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        let sd = 1.0 / (n as f64).sqrt(); // of a mean of variance-1 numbers
        let u = |i| uniform_f32(7, 1, i) as f64;
        let w = |i| uniform_f64(7, 1, i);
        assert!((0..n).all(|i| (0.0..1.0).contains(&u(i)) && (0.0..1.0).contains(&w(i)) && (u(i) - w(i)).abs() < 1e-7));
        assert!((mean(&u) - 0.5).abs() < 4.0 * sd * 0.2887);
        assert!((mean(&|i| u(i) * u(i)) - 1.0 / 3.0).abs() < 4.0 * sd * 0.2982);
    }
}
