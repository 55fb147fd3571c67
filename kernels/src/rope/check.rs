use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{
    ApplyParams, RopeTensor, Rotation, TableParams, apply, cos_sin_table, formula,
    test_cases_tokens_heads_head_dim_max_position,
};
use crate::checks::rounding;
use crate::checks::{RandomChoices, TestArray, addr, checks, normal_numbers, run, runs_cuda_code};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(
    the_table_is_accurate_to_an_ulp,
    application_equals_the_formula_and_its_transpose,
    parts_equal_launches_of_one_part
);

fn make_table(
    positions: &[i32],
    inv_freq: &[f32],
    axis: &[i32],
    tokens: usize,
    threads: usize,
) -> (TestArray, TestArray) {
    let n = tokens * inv_freq.len();
    let (cos, sin) = (TestArray::output(F32, n), TestArray::output(F32, n));
    let params = TableParams {
        positions: addr(positions),
        inv_freq: addr(inv_freq),
        axis: addr(axis),
        cos: cos.addr(),
        sin: sin.addr(),
        tokens: tokens as u32,
        half: inv_freq.len() as u32,
    };
    run(&cos_sin_table(&params), threads);
    (cos, sin)
}

/// Returns the distance of `got` from `want` in units in the last place of the f32 nearest to `want`.
fn ulps(got: f32, want: f64) -> f64 {
    let near = (want as f32).abs();
    let unit = f32::from_bits(near.to_bits() + 1) as f64 - near as f64;
    (got as f64 - want).abs() / unit
}

/// A random cosine table to test: (tokens, frequencies, axes, bits of the largest position, threads, seed).
type Table = (usize, usize, usize, u32, usize, u64);

fn the_table_is_accurate_to_an_ulp() {
    let mut picks = RandomChoices::new(1);
    for _ in 0..if runs_cuda_code() { 15 } else { 60 } {
        let sizes = (
            picks.integer_between(0, 40),
            picks.integer_between(1, 70),
            picks.integer_between(1, 4),
            picks.integer_between(0, 31) as u32,
        );
        is_right((sizes.0, sizes.1, sizes.2, sizes.3, picks.integer_between(1, 4), picks.random_u64()));
    }
}

fn is_right((tokens, half, axes, magnitude, threads, seed): Table) {
    let random = normal_numbers(axes * tokens + half, seed, 1.0);
    let limit = (1i64 << magnitude) as f32;
    let positions: Vec<i32> = random[..axes * tokens].iter().map(|x| (x * limit) as i32).collect();
    let axis: Vec<i32> = (0..half).map(|f| ((f as u64 * 7 + seed % 5) % axes as u64) as i32).collect();
    let inv_freq: Vec<f32> = (0..half).map(|f| 10_000f32.powf(-(f as f32) / half as f32)).collect();
    let (cos, sin) = make_table(&positions, &inv_freq, &axis, tokens, threads);
    let (want_cos, want_sin) = formula::cos_sin_table(&positions, &inv_freq, &axis, tokens);
    for (got, want) in [(&cos, &want_cos), (&sin, &want_sin)] {
        assert_rounded("table", F32, &got.values(), want, want, DEFAULT_ROUNDING_FACTOR);
    }
    for (got, want) in cos.values().iter().zip(&want_cos).chain(sin.values().iter().zip(&want_sin)) {
        assert!(ulps(*got, *want) <= 1.0, "{got} {want}");
    }
}

fn rotated(
    dtype: DType,
    x: &TestArray,
    y: Addr,
    tables: (&TestArray, &TestArray),
    case: (usize, usize, usize),
    inverse: u32,
) {
    let stride = (case.1 * case.2) as u32;
    let part = RopeTensor { x: x.addr(), x_stride: stride, y, y_stride: stride, heads: case.1 as u32 };
    run(&apply(dtype, &ApplyParams::new(&rotation(tables, case, inverse), &[part], 1)), 3);
}

fn rotation(tables: (&TestArray, &TestArray), (tokens, _, d): (usize, usize, usize), inverse: u32) -> Rotation {
    let (tokens, head_dim, inverse) = (tokens as u32, d as u32, inverse == 1);
    Rotation { cos: tables.0.addr(), sin: tables.1.addr(), tokens, head_dim, inverse }
}

/// One launch splits a matrix `[tokens, q | k | v]` into rotated queries and keys and copied values. Another launch
/// joins them again with the inverse rotation. Both are bit-identical to separate launches for queries, keys and
/// values.
fn parts_equal_launches_of_one_part() {
    for dtype in [F32, BF16] {
        for (tokens, heads, d, largest) in test_cases_tokens_heads_head_dim_max_position() {
            let positions: Vec<i32> = (0..tokens).map(|t| (largest as usize / tokens * t) as i32).collect();
            let inv_freq: Vec<f32> = (0..d / 2).map(|f| 1e4f32.powf(-(f as f32) / (d / 2) as f32)).collect();
            let (cos, sin) = make_table(&positions, &inv_freq, &vec![0; d / 2], tokens, 2);
            // The second and the third tensor have fewer heads, and 11 heads are more than one thread rotates.
            let heads = [heads.max(11), heads.div_ceil(2), 1];
            let (width, element) = (heads.iter().sum::<usize>() * d, dtype.size());
            let all = normal_numbers(tokens * width, 1, 1.0);
            let fused = TestArray::new(dtype, &all);
            let first = |i: usize| heads[..i].iter().sum::<usize>() * d;
            let parts: [TestArray; 3] = std::array::from_fn(|i| TestArray::output(dtype, tokens * heads[i] * d));
            let fused_part = |i: usize, fused: &TestArray| fused.addr().offset(first(i) * element);
            let stride = |i: usize| (heads[i] * d) as u32;
            let case = (tokens, 0, d);
            let split: [RopeTensor; 3] = std::array::from_fn(|i| RopeTensor {
                x: fused_part(i, &fused),
                x_stride: width as u32,
                y: parts[i].addr(),
                y_stride: stride(i),
                heads: heads[i] as u32,
            });
            run(&apply(dtype, &ApplyParams::new(&rotation((&cos, &sin), case, 0), &split, 2)), 2);
            for (i, part) in parts.iter().enumerate() {
                let with_message_part =
                    |x: &f32, at: usize| (first(i)..first(i) + heads[i] * d).contains(&(at % width)).then_some(*x);
                let x: Vec<f32> =
                    fused.values().iter().enumerate().filter_map(|(at, x)| with_message_part(x, at)).collect();
                let (x, alone) = (TestArray::new(dtype, &x), TestArray::output(dtype, tokens * heads[i] * d));
                rotated(dtype, &x, alone.addr(), (&cos, &sin), (tokens, heads[i], d), 0);
                let want = if i < 2 { alone.values() } else { x.values() };
                assert_eq!(part.values(), want, "{dtype} {tokens} {heads:?} {d}: part {i}");
            }
            let (joined, expected) =
                (TestArray::output(dtype, tokens * width), TestArray::output(dtype, tokens * width));
            let join = |i: usize, to: &TestArray| RopeTensor {
                x: parts[i].addr(),
                x_stride: stride(i),
                y: fused_part(i, to),
                y_stride: width as u32,
                heads: heads[i] as u32,
            };
            let inverse = rotation((&cos, &sin), case, 1);
            run(&apply(dtype, &ApplyParams::new(&inverse, &[0, 1, 2].map(|i| join(i, &joined)), 2)), 3);
            for (i, rotated) in [(0, 1), (1, 1), (2, 0)] {
                run(&apply(dtype, &ApplyParams::new(&inverse, &[join(i, &expected)], rotated)), 1);
            }
            assert_eq!(joined.values(), expected.values(), "{dtype} {tokens} {heads:?} {d}: joined");
        }
    }
}

fn application_equals_the_formula_and_its_transpose() {
    for dtype in [F32, BF16] {
        for (tokens, heads, d, largest) in test_cases_tokens_heads_head_dim_max_position() {
            let name = format!("rope {tokens} {heads} {d}");
            let positions: Vec<i32> = (0..tokens).map(|t| (largest as usize / tokens * t) as i32).collect();
            let inv_freq: Vec<f32> = (0..d / 2).map(|f| 1e6f32.powf(-(f as f32) / (d / 2) as f32)).collect();
            let (cos, sin) = make_table(&positions, &inv_freq, &vec![0; d / 2], tokens, 2);
            let count = tokens * heads * d;
            let x = TestArray::new(dtype, &normal_numbers(count, 1, 1.0));
            let y = TestArray::output(dtype, count);
            rotated(dtype, &x, y.addr(), (&cos, &sin), (tokens, heads, d), 0);
            let held = |name: &str, y: &TestArray, sin: &[f64]| {
                let [with, want] = [rounding::f32, rounding::unrounded]
                    .map(|r| formula::apply(&x.to_f64(), [&cos.to_f64(), sin], heads, d, r));
                assert_rounded(name, dtype, &y.values(), &with, &want, DEFAULT_ROUNDING_FACTOR);
            };
            held(&name, &y, &sin.to_f64());

            // The gradient needs the inverse of the rotation, which is the rotation by the negative angle.
            let back = TestArray::output(dtype, count);
            rotated(dtype, &x, back.addr(), (&cos, &sin), (tokens, heads, d), 1);
            let minus: Vec<f64> = sin.to_f64().iter().map(|s| -s).collect();
            held(&format!("{name} inverse"), &back, &minus);

            let place = TestArray::new(dtype, &x.values());
            rotated(dtype, &place, place.addr(), (&cos, &sin), (tokens, heads, d), 0);
            let bits = |d: &TestArray| d.values().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&place), bits(&y), "{name} in place");
        }
    }
}
