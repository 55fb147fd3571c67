use super::{Params, fingerprint, formula, partial_sum_count, test_byte_counts};
use crate::checks::{addr, addr_mut, checks, run};

checks!(equals_the_formula, any_bit_shows);

fn of(bytes: &[u128], n: usize, threads: usize) -> u64 {
    let mut parts = vec![u64::MAX; partial_sum_count(n)];
    run(&fingerprint(&Params { x: addr(bytes), sums: addr_mut(&mut parts), bytes: n as u64 }), threads);
    parts.into_iter().fold(0, u64::wrapping_add)
}

/// Returns at least `n` pseudo-random bytes, aligned to 16 bytes.
fn bytes(n: usize) -> Vec<u128> {
    (0..n.div_ceil(16) as u128).map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).collect()
}

fn equals_the_formula() {
    for n in test_byte_counts() {
        let x = bytes(n);
        let want = formula::fingerprint(&bytemuck::cast_slice(&x)[..n]);
        assert_eq!(of(&x, n, 1), want, "{n} bytes");
        assert_eq!(of(&x, n, 4), want, "{n} bytes, more threads");
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
