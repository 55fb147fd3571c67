use super::*;
use crate::adamw::small::{
    encode_first_moment, encode_second_moment, round_stochastically_to_bf16, rounding_random_bits,
};
use reel_support::philox;

/// The mean of 2²⁰ stochastically rounded samples equals the number within four standard deviations.
#[test]
fn stochastic_rounding_has_no_bias() {
    let draws = 1u64 << 20;
    let check = |name: &str, x: f64, low: f64, high: f64, round: &dyn Fn(u16) -> f64| {
        let mean = (0..draws / 4)
            .flat_map(|i| philox::random_words(3, 5, i))
            .map(|w| {
                let y = round(w as u16);
                assert!(
                    (y - low).abs() <= 1e-12 * high.abs() || (y - high).abs() <= 1e-12 * high.abs(),
                    "{name}: {x} became {y}"
                );
                y
            })
            .sum::<f64>()
            / draws as f64;
        let share = (x - low) / (high - low);
        let deviation = (high - low).abs() * (share * (1.0 - share) / draws as f64).sqrt();
        assert!((mean - x).abs() <= 4.0 * deviation + (high - low).abs() / 65536.0, "{name} {x}: {mean}");
    };
    for x in [1.002f32, -0.3, 7e-20, 1.0078124] {
        let low = f32::from_bits(x.to_bits() & 0xffff_0000);
        let high = f32::from_bits((x.to_bits() & 0xffff_0000) + 0x1_0000);
        check("bf16", x as f64, low as f64, high as f64, &|r| round_stochastically_to_bf16(x, r).to_f64());
    }
    for x in [0.9f32, 0.5, 1e-3, 1e-5, 0.0] {
        let c = (0..127).rfind(|&c| decode_first_moment(c) <= x).unwrap_or(0);
        check("m", x as f64, decode_first_moment(c) as f64, decode_first_moment(c + 1) as f64, &|r| {
            decode_first_moment(encode_first_moment(x, 1.0, r)) as f64
        });
        check("-m", -x as f64, -decode_first_moment(c) as f64, -decode_first_moment(c + 1) as f64, &|r| {
            decode_first_moment(encode_first_moment(-x, 1.0, r)) as f64
        });
        let c = (0..255).rfind(|&c| decode_second_moment(c) <= x).unwrap_or(0);
        check("v", x as f64, decode_second_moment(c) as f64, decode_second_moment(c + 1) as f64, &|r| {
            decode_second_moment(encode_second_moment(x, 1.0, r)) as f64
        });
    }
    assert_eq!((encode_first_moment(2.5, 2.5, 65535), encode_second_moment(2.5, 2.5, 65535)), (127, 255));
    assert_eq!((encode_first_moment(0.0, 0.0, 65535), encode_second_moment(0.0, 0.0, 65535)), (0, 0));
}

/// The sixteen random values of a group of eight weights are uniform, and no two of them are correlated.
#[test]
fn draws_are_uniform_and_independent() {
    const GROUPS: u64 = 1 << 16;
    let mut sums = [0.0; 16];
    let mut products = [[0.0; 16]; 16];
    for group in 0..GROUPS {
        // The random values, scaled to mean 0 and variance 1.
        let [m, v] = rounding_random_bits(5, 1 << 63, group)
            .map(|draws| draws.map(|x| (f64::from(x) - 32767.5) * 12f64.sqrt() / 65536.0));
        let all: Vec<f64> = m.into_iter().chain(v).collect();
        for (i, x) in all.iter().enumerate() {
            sums[i] += x;
            all.iter().enumerate().for_each(|(j, y)| products[i][j] += x * y);
        }
    }
    let (n, deviation) = (GROUPS as f64, (GROUPS as f64).sqrt().recip());
    for (i, (sum, products)) in sums.iter().zip(products).enumerate() {
        assert!((sum / n).abs() < 5.0 * deviation, "draw {i} has mean {}", sum / n);
        for (j, product) in products.iter().enumerate() {
            let (got, want) = (product / n, f64::from(u8::from(i == j)));
            assert!((got - want).abs() < 5.0 * deviation, "draws {i} and {j}: {got}, want {want}");
        }
    }
}

/// The CUDA code divides codes by a constant (127 or 255) with three operations. This test checks all quotients.
#[test]
fn codes_are_divided_exactly() {
    for d in [127.0f32, 255.0] {
        let inverse = 1.0 / d;
        for c in -255..=255 {
            let c = c as f32;
            let q = c * inverse;
            assert_eq!((-q).mul_add(d, c).mul_add(inverse, q), c / d, "{c} / {d}");
        }
    }
}
