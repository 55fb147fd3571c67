//! Hashes of tensors' bits on the CPU: each task hashes one chunk of a tensor.
#![allow(unsafe_code)]

use reel_device::cpu::simd::prefetch;
use reel_device::launch::Chunk;
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Team, simd_fn};

use super::{BYTES_PER_CHUNK, ByteRange, Params, SUMS_PER_CHUNK};

/// Number of independent sums in the loop: one for each 64-bit word of a 512-bit vector.
const LANES: usize = 8;

fn mixed(word: u64, at: u64) -> u64 {
    let mut z = word.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z ^ (z >> 32)
}

simd_fn! {
    /// Returns the partial hash of the bytes `x`. Their first 64-bit word is word `before` of the tensor.
    fn partial_hash(x: &[u8], before: u64) -> u64 {
        let mut lanes = [0u64; LANES];
        let (words, rest) = x.as_chunks::<8>();
        let (groups, words) = words.as_chunks::<LANES>();
        let mut at = before;
        for group in groups {
            prefetch::prefetch_read(group);
            for i in 0..LANES {
                lanes[i] = lanes[i].wrapping_add(mixed(u64::from_le_bytes(group[i]), at + 1 + i as u64));
            }
            at += LANES as u64;
        }
        let mut sum = lanes.iter().fold(0u64, |a, b| a.wrapping_add(*b));
        for word in words {
            at += 1;
            sum = sum.wrapping_add(mixed(u64::from_le_bytes(*word), at));
        }
        if !rest.is_empty() {
            let mut word = [0u8; 8];
            word[..rest.len()].copy_from_slice(rest);
            sum = sum.wrapping_add(mixed(u64::from_le_bytes(word), at + 1));
        }
        sum
    }
}

/// # Safety
/// Every address in [`Params`] and in its table is valid for the documented shape and dtype.
pub unsafe fn fingerprint(p: &Params, team: &Team) {
    let n = p.chunk_count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (chunks, out) =
        unsafe { (slice_at::<Chunk>(p.chunks, n), OutputArray::<u64>::new(p.sums, n * SUMS_PER_CHUNK)) };
    let count = chunks.iter().map(|chunk| chunk.array as usize + 1).max().unwrap_or(0);
    // SAFETY: the table has an entry for each array that a chunk names.
    let ranges = unsafe { slice_at::<ByteRange>(p.arrays, count) };
    team.run(n, |i| {
        let (range, first) = (&ranges[chunks[i].array as usize], chunks[i].index as usize * BYTES_PER_CHUNK);
        // SAFETY: the table has the size of each range.
        let x = unsafe { slice_at::<u8>(range.x, range.len as usize) };
        // SAFETY: the sums of different chunks do not overlap.
        let sums = unsafe { out.part(i * SUMS_PER_CHUNK, SUMS_PER_CHUNK) };
        sums.fill(0);
        let before = range.first_word + (first / 8) as u64;
        sums[0] = partial_hash(&x[first..x.len().min(first + BYTES_PER_CHUNK)], before);
    });
}
