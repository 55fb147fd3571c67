//! The definition of the hash, computed one 64-bit word after the other.

/// Returns the hash of some bytes.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    for (j, chunk) in bytes.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let mut z = u64::from_le_bytes(word).wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(j as u64 + 1));
        for _ in 0..2 {
            z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        }
        sum = sum.wrapping_add(z ^ (z >> 32));
    }
    sum
}
