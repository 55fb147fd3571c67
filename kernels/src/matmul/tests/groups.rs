//! Tests of operands that are stored in groups of rows: their layout; that int8 changes no bit of a sum; that nothing
//! beside bf16 groups is read. That bf16 groups change no bit is a part of `check_bits`.

use super::*;

/// An int8 is exact in bf16, so an int8 B gives the sums of a bf16 B with the same numbers.
#[test]
fn int8_has_the_bits_of_bf16_with_the_same_numbers() {
    for isa in isas() {
        for (i, (m, n, k)) in test_cases_m_n_k().into_iter().enumerate() {
            for a in [F32, BF16] {
                let (dtypes, scale) = ([a, I8, F32], 1.0);
                let c = Case { m, n, k, dtypes, transposed: [false; 2], bias: false, accumulate: false, scale };
                let x = inputs(&c, i as u64);
                let scales = scales_of_b(&x.b, &c);
                let of = |dtypes| product(isa, &Case { dtypes, ..c }, &x.a, &x.b, &x.bias, &x.old, 2);
                let scaled: Vec<f32> =
                    of([a, BF16, F32]).iter().enumerate().map(|(i, sum)| sum * scales[i % n]).collect();
                same(&format!("{isa:?} {c:?}"), &scaled, &of(dtypes)).unwrap();
            }
        }
    }
}

#[test]
fn int8_groups_hold_each_element_and_zeros() {
    for (n, k) in [(0, 3), (3, 0), (1, 1), (16, 5), (17, 4), (50, 3)] {
        let rows: Vec<i8> = (0..n * k).map(|i| (i % 251) as u8 as i8).collect();
        let groups = int8_groups(&rows, n, k);
        assert_eq!(groups.len(), n.next_multiple_of(16) * k);
        for (at, &x) in groups.iter().enumerate() {
            let (row, column) = (at / (16 * k) * 16 + at % 16, at / 16 % k);
            assert_eq!(x, if row < n { rows[row * k + column] } else { 0 }, "{n} {k} {at}");
        }
    }
}

#[test]
fn bf16_groups_hold_each_element_and_zeros() {
    for (n, k) in [(0, 3), (3, 0), (1, 1), (32, 6), (33, 5), (70, 301)] {
        let rows: Vec<half::bf16> = (0..n * k).map(|i| half::bf16::from_bits(i as u16 + 1)).collect();
        let groups = bf16_groups(&rows, n, k);
        let pairs = k.div_ceil(2);
        assert_eq!(groups.len(), n.next_multiple_of(32) * 2 * pairs);
        for (at, x) in groups.iter().enumerate() {
            let (row, column) = (at / (64 * pairs) * 32 + at / 2 % 32, at / 64 % pairs * 2 + at % 2);
            let want = if row < n && column < k { rows[row * k + column].to_bits() } else { 0 };
            assert_eq!(x.to_bits(), want, "{n} {k} {at}");
        }
    }
}
