use reel_device::launch::{AddressTable, chunks};

use super::{BYTES_PER_CHUNK, ByteRange, Params, SUMS_PER_CHUNK, fingerprint, formula, test_byte_counts};
use crate::checks::{addr, addr_mut, checks, run};

checks!(equals_the_formula, any_bit_shows, rows_with_gaps_have_the_hash_of_the_rows);

/// Returns the hashes of the first bytes of arrays, computed by one launch.
fn of_all(arrays: &[(&[u128], usize)], threads: usize) -> Vec<u64> {
    let range = |&(x, n): &(&[u128], usize)| ByteRange { x: addr(x), len: n as u64, first_word: 0 };
    of_ranges(&arrays.iter().map(range).collect::<Vec<_>>(), threads)
}

/// Returns the sum of the hashes of each byte range, computed by one launch.
fn of_ranges(entries: &[ByteRange], threads: usize) -> Vec<u64> {
    let chunks = chunks(entries.iter().map(|range| range.len as usize), BYTES_PER_CHUNK);
    let mut sums = vec![u64::MAX; chunks.len() * SUMS_PER_CHUNK];
    let params = Params {
        arrays: addr(entries),
        chunks: addr(&chunks),
        sums: addr_mut(&mut sums),
        chunk_count: chunks.len() as u64,
    };
    let bytes = entries.iter().map(|range| range.len).sum();
    run(&fingerprint(&params, AddressTable::new(entries), bytes), threads);
    let mut hashes = vec![0u64; entries.len()];
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

/// The table has one range for each row of a tensor, whose rows are separated by gaps. The sum of the hashes of the
/// ranges is the hash of the rows without the gaps.
fn rows_with_gaps_have_the_hash_of_the_rows() {
    // The last row of a tensor may end within a word; the first case has rows of more than one chunk.
    let cases = [(2, BYTES_PER_CHUNK + 8, BYTES_PER_CHUNK + 16), (5, 24, 32), (7, 6840, 6848), (1, 13, 16)];
    for (rows, row_bytes, pitch) in cases {
        let memory = bytes(rows * pitch);
        let (all, start): (&[u8], _) = (bytemuck::cast_slice(&memory), addr(&memory));
        let range = |i: usize| ByteRange {
            x: start.offset(i * pitch),
            len: row_bytes as u64,
            first_word: (i * row_bytes / 8) as u64,
        };
        let sums = of_ranges(&(0..rows).map(range).collect::<Vec<_>>(), 2);
        let packed: Vec<u8> = all.chunks(pitch).flat_map(|row| &row[..row_bytes]).copied().collect();
        let want = formula::fingerprint(&packed);
        assert_eq!(sums.into_iter().fold(0, u64::wrapping_add), want, "{rows} rows of {row_bytes} bytes");
    }
}
