//! Quantises the rows of a weight to int8: `q = round(x / scale)` with `scale = max |x| / 127` of the row, ties to
//! even. So `|x - q · scale|` is at most half a scale, and zeros stay zeros.

use half::bf16;
use reel_device::Element;

/// The largest magnitude of a quantised element. -128 is not used, so that the range is symmetric.
pub const MAX_INT8: f32 = 127.0;

/// Quantises a row and returns its scale; `None` if an element is NaN or infinite. A row whose scale would be below the
/// normal numbers of f32 becomes zeros with the scale 0. `x` and `q` have the same length.
pub fn quantize_row(x: &[f32], q: &mut [i8]) -> Option<f32> {
    quantize(x, q)
}

/// Quantises a bf16 row as [`quantize_row`] does. Widening bf16 to f32 is exact.
pub fn quantize_bf16_row(x: &[bf16], q: &mut [i8]) -> Option<f32> {
    quantize(x, q)
}

reel_device::simd_fn! {
    fn quantize<T: Element>(x: &[T], q: &mut [i8]) -> Option<f32> {
        let mut lanes = [0u32; 16];
        let chunks = x.chunks_exact(16);
        let rest = chunks.remainder();
        // Magnitudes of f32 are ordered like their bits without the sign; NaN and infinity are the largest.
        let magnitude = |x: T| x.to_f32().to_bits() & 0x7fff_ffff;
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = (*lane).max(magnitude(x));
            }
        }
        let largest = rest.iter().map(|&x| magnitude(x)).chain(lanes).max().map_or(0.0, f32::from_bits);
        if !largest.is_finite() {
            return None;
        }
        let scale = largest / MAX_INT8;
        if scale < f32::MIN_POSITIVE {
            q.fill(0);
            return Some(0.0);
        }
        // 1.5 · 2^23. Adding it rounds a small number to an integer (ties to even); the low bits of the f32 sum are
        // then that integer in two's complement.
        const ROUNDER: f32 = 12_582_912.0;
        for (q, x) in q.iter_mut().zip(x) {
            // The quotient is at most 127 plus one rounding error, so it rounds to at most 127.
            *q = (x.to_f32() / scale + ROUNDER).to_bits() as i8;
        }
        Some(scale)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Generates rows of finite numbers whose magnitudes differ by up to 2^40.
    fn any_row() -> impl Strategy<Value = Vec<f32>> {
        let element = prop_oneof![8 => -1.0..1.0f32, 1 => Just(0.0), 1 => -1e-12..1e-12f32];
        (prop::collection::vec(element, 0..200), -100..100i32)
            .prop_map(|(row, exponent)| row.into_iter().map(|x| x * (exponent as f32).exp2()).collect())
    }

    proptest! {
        #[test]
        fn an_element_is_off_by_at_most_half_a_scale(row in any_row()) {
            let mut q = vec![1i8; row.len()];
            let scale = quantize_row(&row, &mut q).unwrap();
            let largest = row.iter().fold(0f32, |a, x| a.max(x.abs()));
            prop_assert_eq!(scale, if largest / 127.0 < f32::MIN_POSITIVE { 0.0 } else { largest / 127.0 });
            for (x, q) in row.iter().zip(&q) {
                let error = (*x as f64 - *q as f64 * scale as f64).abs();
                let half = if scale == 0.0 { 127.0 * f32::MIN_POSITIVE as f64 } else { scale as f64 / 2.0 };
                prop_assert!(error <= half * (1.0 + 1e-4), "{x} {q} {scale}");
                prop_assert!((-127..=127).contains(q) && (*x != 0.0 || *q == 0));
            }
            // The element with the largest magnitude is quantised to 127 or -127.
            prop_assert!(scale == 0.0 || q.iter().any(|q| q.unsigned_abs() == 127));
        }

        #[test]
        fn bf16_gives_the_numbers_of_f32(row in any_row()) {
            let stored: Vec<bf16> = row.iter().map(|&x| <bf16 as Element>::from_f32(x)).collect();
            let wide: Vec<f32> = stored.iter().map(|x| x.to_f32()).collect();
            let (mut q, mut want) = (vec![0; row.len()], vec![0; row.len()]);
            prop_assert_eq!(quantize_bf16_row(&stored, &mut q), quantize_row(&wide, &mut want));
            prop_assert_eq!(q, want);
        }

        #[test]
        fn negated_rows_have_negated_numbers(row in any_row()) {
            let (mut q, mut negated) = (vec![0i8; row.len()], vec![0i8; row.len()]);
            let scales = [quantize_row(&row, &mut q), quantize_row(&row.iter().map(|x| -x).collect::<Vec<_>>(), &mut negated)];
            prop_assert_eq!(scales[0], scales[1]);
            prop_assert!(q.iter().zip(&negated).all(|(a, b)| *a == -b));
        }

        #[test]
        fn a_row_with_nan_or_infinity_is_refused(mut row in any_row(), at: prop::sample::Index, kind in 0..4usize) {
            prop_assume!(!row.is_empty());
            let at = at.index(row.len());
            row[at] = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
            prop_assert!(quantize_row(&row, &mut vec![0; row.len()]).is_none());
        }
    }

    #[test]
    fn ties_go_to_the_even_number() {
        let mut q = [0i8; 7];
        let row = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5];
        assert_eq!(quantize_row(&row, &mut q), Some(1.0));
        assert_eq!(q, [127, 0, 2, 2, 0, -2, -2]);
    }
}
