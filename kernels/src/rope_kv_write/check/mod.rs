use reel_device::DType::{self, BF16, F32};

use super::formula::{self, HeadShape};
use super::{Params, write};
use crate::checks::{RandomChoices, TestArray, addr, checks, normal_numbers, rounding, run, runs_cuda_code};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use crate::rope;

checks!(equals_the_formula_and_writes_nothing_else, the_rotation_has_the_bits_of_rope);

/// A case with its arrays.
pub(crate) struct Case {
    pub(crate) shape: HeadShape,
    pub(crate) page: usize,
    pub(crate) pages: usize,
    pub(crate) slots: Vec<i32>,
    pub(crate) q: TestArray,
    pub(crate) k: TestArray,
    pub(crate) v: TestArray,
    pub(crate) cos: TestArray,
    pub(crate) sin: TestArray,
    pub(crate) k_cache: TestArray,
    pub(crate) v_cache: TestArray,
}

impl Case {
    pub(crate) fn random(picks: &mut RandomChoices, dtype: DType) -> Case {
        let tokens = picks.integer_between(0, 70);
        let kv_heads = picks.integer_between(1, 4);
        let heads = kv_heads * picks.integer_between(1, 7);
        // Picks among head sizes that are a multiple of 16 bytes, the unit that a thread moves, and head sizes that
        // are not.
        let head_dim = 2 * picks.one_of(&[1, 3, 8, 20, 32]);
        Self::new(picks, dtype, tokens, HeadShape { heads, kv_heads, head_dim })
    }

    pub(crate) fn new(picks: &mut RandomChoices, dtype: DType, tokens: usize, shape: HeadShape) -> Case {
        let HeadShape { heads, kv_heads, head_dim } = shape;
        let (page, seed) = (picks.one_of(&[16, 32, 64, 128, 256]), picks.random_u64());
        let pages = 256usize.div_ceil(page);
        // `place` permutes all cache slots: 257 is coprime to their number. One token in five gets a negative slot,
        // which means none.
        let place = |t: usize| ((t * 257 + (seed % 1000) as usize) % (pages * page)) as i32;
        let none = |t: usize| (t as u64 + seed).is_multiple_of(5);
        let slots = (0..tokens).map(|t| if none(t) { -1 - place(t) } else { place(t) }).collect();
        let data = |i: u64, dtype, count| TestArray::new(dtype, &normal_numbers(count, seed ^ i, 1.0));
        let angles = |i: u64, f: fn(f32) -> f32| {
            let angles = normal_numbers(tokens * head_dim / 2, seed ^ i, 3.0);
            TestArray::new(F32, &angles.iter().map(|&a| f(a)).collect::<Vec<_>>())
        };
        Case {
            shape,
            page,
            pages,
            slots,
            q: data(1, dtype, tokens * heads * head_dim),
            k: data(2, dtype, tokens * kv_heads * head_dim),
            v: data(3, dtype, tokens * kv_heads * head_dim),
            cos: angles(4, f32::cos),
            sin: angles(4, f32::sin),
            k_cache: data(5, dtype, pages * page * kv_heads * head_dim),
            v_cache: data(6, dtype, pages * page * kv_heads * head_dim),
        }
    }

    pub(crate) fn params(&self) -> Params {
        Params {
            q: self.q.addr(),
            k: self.k.addr(),
            v: self.v.addr(),
            cos: self.cos.addr(),
            sin: self.sin.addr(),
            k_cache: self.k_cache.addr(),
            v_cache: self.v_cache.addr(),
            slots: addr(&self.slots),
            tokens: self.slots.len() as u32,
            heads: self.shape.heads as u32,
            kv_heads: self.shape.kv_heads as u32,
            head_dim: self.shape.head_dim as u32,
            pages: self.pages as u32,
            page_tokens: self.page as u32,
        }
    }
}

fn equals_the_formula_and_writes_nothing_else() {
    let mut picks = RandomChoices::new(1);
    for _ in 0..if runs_cuda_code() { 15 } else { 60 } {
        for dtype in [F32, BF16] {
            let case = Case::random(&mut picks, dtype);
            let [q, k, v, kc, vc] = [&case.q, &case.k, &case.v, &case.k_cache, &case.v_cache].map(TestArray::to_f64);
            let [cos, sin] = [&case.cos, &case.sin].map(TestArray::to_f64);
            let want = |round| formula::write([&q, &k, &v], [&cos, &sin], [&kc, &vc], &case.slots, case.shape, round);
            let (with, want) = (want(rounding::f32), want(rounding::unrounded));
            run(&write(dtype, &case.params()), picks.integer_between(1, 4));
            let name = format!("{:?} {} tokens", case.shape, case.slots.len());
            let held = |name: &str, got: &TestArray, with: &[f64], want: &[f64]| {
                assert_rounded(name, dtype, &got.values(), with, want, DEFAULT_ROUNDING_FACTOR);
            };
            held(&name, &case.q, &with.q, &want.q);
            held(&name, &case.k_cache, &with.k_cache, &want.k_cache);
            assert_eq!(case.v_cache.to_f64(), want.v_cache, "{name}");
            // Cache rows that belong to no token keep their bits.
            let written = |row: usize| case.slots.contains(&(row as i32));
            let row = case.shape.kv_heads * case.shape.head_dim;
            for (i, (now, before)) in case.k_cache.to_f64().chunks(row).zip(kc.chunks(row)).enumerate() {
                assert!(written(i) || now == before, "{name}: row {i}");
            }
        }
    }
}

fn the_rotation_has_the_bits_of_rope() {
    let mut picks = RandomChoices::new(2);
    for dtype in [F32, BF16] {
        let shape = HeadShape { heads: 14, kv_heads: 2, head_dim: 64 };
        for tokens in [1, 33] {
            let case = Case::new(&mut picks, dtype, tokens, shape);
            let rotated = |x: &TestArray, heads: usize| {
                let y = TestArray::output(dtype, x.values().len());
                let stride = (heads * shape.head_dim) as u32;
                let (cos, sin) = (case.cos.addr(), case.sin.addr());
                let (tokens, head_dim) = (tokens as u32, shape.head_dim as u32);
                let rotation = rope::Rotation { cos, sin, tokens, head_dim, inverse: false };
                let part = rope::RopeTensor {
                    x: x.addr(),
                    x_stride: stride,
                    y: y.addr(),
                    y_stride: stride,
                    heads: heads as u32,
                };
                run(&rope::apply(dtype, &rope::ApplyParams::new(&rotation, &[part], 1)), 2);
                y.values()
            };
            let (q, k) = (rotated(&case.q, shape.heads), rotated(&case.k, shape.kv_heads));
            run(&write(dtype, &case.params()), 3);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&case.q.values()), bits(&q), "{dtype} {tokens}");
            let (cache, row) = (case.k_cache.values(), shape.kv_heads * shape.head_dim);
            for (t, &slot) in case.slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
                let at = slot as usize * row;
                assert_eq!(bits(&cache[at..at + row]), bits(&k[t * row..(t + 1) * row]), "{dtype} {tokens} {t}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
