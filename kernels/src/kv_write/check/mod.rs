use super::{Params, write};
use crate::DType::{BF16, F32};
use crate::checks::{RandomChoices, TestArray, addr, checks, normal_numbers, run, runs_cuda_code};

checks!(writes_its_slots_and_nothing_else);

/// A test case: tokens, heads, elements of a head, threads, tokens of a cache block, seed.
type Case = (usize, usize, usize, usize, usize, u64);

fn writes_its_slots_and_nothing_else() {
    let mut picks = RandomChoices::new(1);
    for _ in 0..if runs_cuda_code() { 15 } else { 60 } {
        let (tokens, kv_heads, head_dim) =
            (picks.integer_between(0, 300), picks.integer_between(1, 4), picks.integer_between(1, 40));
        fills((
            tokens,
            kv_heads,
            head_dim,
            picks.integer_between(1, 4),
            picks.one_of(&[16, 32, 64, 128, 256]),
            picks.random_u64(),
        ));
    }
}

fn fills((tokens, kv_heads, head_dim, threads, page, seed): Case) {
    let (row, pages) = (kv_heads * head_dim, 512usize.div_ceil(page));
    // `place` permutes all cache slots: 257 is coprime to their number. One token in five gets a negative slot, which
    // means none.
    let place = |t: usize| ((t * 257 + (seed % 1000) as usize) % (pages * page)) as i32;
    let none = |t: usize| (t as u64 + seed).is_multiple_of(5);
    let slots: Vec<i32> = (0..tokens).map(|t| if none(t) { -1 - place(t) } else { place(t) }).collect();
    for dtype in [F32, BF16] {
        let data = |seed, count| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
        let (k, v) = (data(seed, tokens * row), data(seed ^ 1, tokens * row));
        let (kc, vc) = (data(seed ^ 2, pages * page * row), data(seed ^ 3, pages * page * row));
        let (mut want_k, mut want_v) = (kc.values(), vc.values());
        for (t, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
            let to = slot as usize * row;
            want_k[to..to + row].copy_from_slice(&k.values()[t * row..(t + 1) * row]);
            want_v[to..to + row].copy_from_slice(&v.values()[t * row..(t + 1) * row]);
        }
        let params = Params {
            k: k.addr(),
            v: v.addr(),
            k_cache: kc.addr(),
            v_cache: vc.addr(),
            slots: addr(&slots),
            tokens: tokens as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            pages: pages as u32,
            page: page as u32,
            reserved: 0,
        };
        run(&write(dtype, &params), threads);
        assert_eq!(kc.values(), want_k);
        assert_eq!(vc.values(), want_v);
    }
}

#[cfg(test)]
mod tests;
