//! The definition, in f64.

/// The caches of keys and values `[slots, row]`, and the rotated queries.
pub struct WriteResult {
    pub q: Vec<f64>,
    pub k_cache: Vec<f64>,
    pub v_cache: Vec<f64>,
}

/// Sizes of a case.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Rotates the pairs `(i, i + head_dim / 2)` of q and k by the angles of their token, and writes k and v to the slots
/// of `caches`; `round` rounds each product of the rotation.
pub fn write(
    [q, k, v]: [&[f64]; 3],
    [cos, sin]: [&[f64]; 2],
    caches: [&[f64]; 2],
    slots: &[i32],
    shape: HeadShape,
    round: fn(f64) -> f64,
) -> WriteResult {
    let HeadShape { heads, kv_heads, head_dim: d } = shape;
    let half = d / 2;
    let rotated = |x: &[f64], t: usize, h: usize, heads: usize, i: usize| {
        let (at, pair) = ((t * heads + h) * d, i % half);
        let (a, b) = (x[at + pair], x[at + pair + half]);
        let (c, s) = (cos[t * half + pair], sin[t * half + pair]);
        if i < half { round(a * c) - round(b * s) } else { round(b * c) + round(a * s) }
    };
    let mut written = WriteResult { q: Vec::new(), k_cache: caches[0].to_vec(), v_cache: caches[1].to_vec() };
    for (t, &slot) in slots.iter().enumerate() {
        for h in 0..heads {
            written.q.extend((0..d).map(|i| rotated(q, t, h, heads, i)));
        }
        for h in 0..if slot < 0 { 0 } else { kv_heads } {
            for i in 0..d {
                let to = (slot as usize * kv_heads + h) * d + i;
                written.k_cache[to] = rotated(k, t, h, kv_heads, i);
                written.v_cache[to] = v[(t * kv_heads + h) * d + i];
            }
        }
    }
    written
}
