//! Tests of operands that are stored in groups of rows: their layout, that int8 changes no bit of a sum, and that
//! nothing outside the groups is read. `check_bits` tests that groups of f32 and bf16 change no bit.

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
        let groups = arrange_in_int8_groups(&rows, n, k);
        assert_eq!(groups.len(), n.next_multiple_of(16) * k);
        for (at, &x) in groups.iter().enumerate() {
            let (row, column) = (at / (16 * k) * 16 + at % 16, at / 16 % k);
            assert_eq!(x, if row < n { rows[row * k + column] } else { 0 }, "{n} {k} {at}");
        }
    }
}

/// The shapes `[n, k]` of weights whose groups are compared.
const GROUPED_SHAPES: [(usize, usize); 7] = [(0, 3), (3, 0), (1, 1), (32, 6), (33, 5), (70, 301), (64, 48)];

#[test]
#[allow(unsafe_code)]
fn arranged_weights_are_groups() {
    for (isa, (n, k)) in isas().into_iter().flat_map(|isa| GROUPED_SHAPES.map(|shape| (isa, shape))) {
        for dtype in [F32, BF16] {
            let from = TestArray::new(dtype, &normal_numbers(n * k, 1, 1.0));
            let to = TestArray::output(dtype, group_elements(dtype, n, k));
            let p = WeightGroups { n, k, dtype, from: from.addr(), to: to.addr(), code: &PRODUCT_CODE };
            // SAFETY: the arrays have the sizes of the weight and of its groups.
            unsafe { cpu::pack_into_groups_on(isa, &p, &Team::new(2)) };
            assert_eq!(to.values(), groups_of(dtype, &from.values(), n, k), "{isa:?} {n} {k} {dtype}");
        }
    }
}
