use super::*;
use crate::gelu::cpu::normal_cdf_and_exp;
use proptest::prelude::*;

proptest! {
    #[test]
    fn cdf_is_good_to_the_last_places(x in -6.0f32..6.0) {
        let (got, want) = (normal_cdf_and_exp(x).0 as f64, 0.5 * (1.0 + formula::erf(x as f64 / 2f64.sqrt())));
        // Below -4 the formula with 1 + erf is inexact because of cancellation. There the test bounds the absolute
        // error.
        let allowed = if x > -4.0 { 1e-6 * want } else { 1e-10 };
        prop_assert!((got - want).abs() <= allowed, "{x}: {got} {want}");
    }
}
