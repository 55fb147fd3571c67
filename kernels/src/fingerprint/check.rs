use super::{BYTES_PER_CHUNK, Params, SUMS_PER_CHUNK, fingerprint, formula, test_byte_counts};
use crate::checks::{addr, addr_mut, checks, run};
use crate::launch::{AddressTable, ArrayEntry, chunks};

checks!(equals_the_formula, any_bit_shows);

/// The hashes of the first bytes of arrays, computed by one launch.
fn of_all(arrays: &[(&[u128], usize)], threads: usize) -> Vec<u64> {
    let entries: Vec<ArrayEntry> = arrays.iter().map(|&(x, n)| ArrayEntry { x: addr(x), len: n as u64 }).collect();
    let chunks = chunks(arrays.iter().map(|array| array.1), BYTES_PER_CHUNK);
    let mut sums = vec![u64::MAX; chunks.len() * SUMS_PER_CHUNK];
    let params = Params {
        arrays: addr(&entries),
        chunks: addr(&chunks),
        sums: addr_mut(&mut sums),
        chunk_count: chunks.len() as u64,
    };
    let bytes = arrays.iter().map(|array| array.1 as u64).sum();
    run(&fingerprint(&params, AddressTable::new(&entries), bytes), threads);
    let mut hashes = vec![0u64; arrays.len()];
    for (chunk, sums) in chunks.iter().zip(sums.chunks(SUMS_PER_CHUNK)) {
        let hash = &mut hashes[chunk.array as usize];
        *hash = sums.iter().fold(*hash, |a, b| a.wrapping_add(*b));
    }
    hashes
}

fn of(bytes: &[u128], n: usize, threads: usize) -> u64 {
    of_all(&[(bytes, n)], threads)[0]
}

/// Returns at least `n` pseudo-random bytes, aligned to 16 bytes.
fn bytes(n: usize) -> Vec<u128> {
    (0..n.div_ceil(16) as u128).map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).collect()
}

fn equals_the_formula() {
    let arrays: Vec<(Vec<u128>, usize)> = test_byte_counts().into_iter().map(|n| (bytes(n), n)).collect();
    let want: Vec<u64> = arrays.iter().map(|(x, n)| formula::fingerprint(&bytemuck::cast_slice(x)[..*n])).collect();
    let arrays: Vec<(&[u128], usize)> = arrays.iter().map(|(x, n)| (&x[..], *n)).collect();
    for threads in [1, 4] {
        assert_eq!(of_all(&arrays, threads), want, "{threads} threads");
    }
    for ((x, n), want) in arrays.into_iter().zip(want) {
        assert_eq!(of(x, n, 2), want, "{n} bytes alone");
    }
}

fn any_bit_shows() {
    let n = 4095;
    let x = bytes(n);
    let whole = of(&x, n, 2);
    for bit in [0, 9, 63, 64, 8 * n - 1, 4 * n] {
        let mut other = x.clone();
        other[bit / 128] ^= 1 << (bit % 128);
        assert_ne!(of(&other, n, 2), whole, "bit {bit}");
    }
    // Bytes after the end of the tensor must not change its hash.
    let mut other = x.clone();
    other[n / 16] ^= 1 << 127;
    assert_eq!(of(&other, n, 2), whole);
}
