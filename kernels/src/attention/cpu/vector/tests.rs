use proptest::prelude::*;
use reel_device::cpu::simd::best_isa;

use super::*;

/// Results of the functions for pairs.
#[derive(Clone, Debug, PartialEq)]
struct Results {
    pairs: [u32; LANES],
    stored: [u32; LANES / 2],
    loaded: [u32; LANES],
    first: [u32; LANES],
    dots: [f32; LANES],
}

/// Code that calls each function for pairs.
struct Pairs<'a> {
    first: &'a [f32; LANES],
    second: &'a [f32; LANES],
    count: usize,
    results: &'a mut Results,
}

#[allow(unsafe_code)]
impl VectorCode for Pairs<'_> {
    const DTYPE: DType = DType::BF16;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Pairs { first, second, count, results } = self;
        let rows = [first, second].map(|x| x.map(bf16::from_f32));
        // SAFETY: the caller dispatches to an instruction set of this machine; every array has a vector's length.
        unsafe {
            let (a, b) = (V::load(first.as_ptr()), V::load(second.as_ptr()));
            let pairs = a.pair_with(b);
            pairs.store(results.pairs.as_mut_ptr().cast());
            a.store_bf16(results.stored.as_mut_ptr().cast());
            let loaded = V::load_pairs(rows[0].as_ptr(), rows[1].as_ptr(), count);
            loaded.store(results.loaded.as_mut_ptr().cast());
            pairs.first_only().store(results.first.as_mut_ptr().cast());
            pairs.dot(loaded, a).store(results.dots.as_mut_ptr());
        }
    }
}

fn results(first: &[f32; LANES], second: &[f32; LANES], count: usize, isa: Isa) -> Results {
    let mut results = Results { pairs: [0; 16], stored: [0; 8], loaded: [0; 16], first: [0; 16], dots: [0.0; LANES] };
    let code = Pairs { first, second, count, results: &mut results };
    // SAFETY: the caller passes an instruction set of this machine.
    #[allow(unsafe_code)]
    unsafe {
        dispatch(isa, code);
    }
    results
}

proptest! {
    /// The portable functions define what the instructions compute, up to the roundings of the dot product.
    #[test]
    fn pairs_of_avx512_equal_portable_ones(
        first in prop::array::uniform16(-10f32..10.0),
        second in prop::array::uniform16(-10f32..10.0),
        count in 0usize..=16,
    ) {
        if best_isa() < Isa::Avx512Bf16 {
            return Ok(());
        }
        let (mut got, want) = (
            results(&first, &second, count, Isa::Avx512Bf16),
            results(&first, &second, count, Isa::Plain),
        );
        for (i, (got, want)) in got.dots.iter_mut().zip(want.dots).enumerate() {
            let size = first[i].powi(2) + second[i].powi(2) + first[i].abs();
            prop_assert!((*got - want).abs() <= 2.0 * f32::EPSILON * size, "lane {i}: {got}, want {want}");
            *got = want;
        }
        prop_assert_eq!(got, want);
    }
}
