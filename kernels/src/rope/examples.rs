//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    FLOAT_DTYPES, HEAD_DIM, HEADS, KV_HEADS, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params,
};
use crate::rope;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let table = rope::TableParams { tokens: SEQUENCE_LEN, half: HEAD_DIM / 2, ..placeholder_params() };
    let apply = rope::ApplyParams {
        heads0: HEADS,
        heads1: KV_HEADS,
        x_stride0: HEADS * HEAD_DIM,
        y_stride0: HEADS * HEAD_DIM,
        x_stride1: KV_HEADS * HEAD_DIM,
        y_stride1: KV_HEADS * HEAD_DIM,
        rotated: 2,
        tokens: SEQUENCE_LEN,
        head_dim: HEAD_DIM,
        ..placeholder_params()
    };
    let size = "8192 tokens, 28 query and 4 key heads of 128 elements";
    let apply = FLOAT_DTYPES.map(|t| (size, rope::apply(t, &apply)));
    [(size, rope::cos_sin_table(&table))].into_iter().chain(apply).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (tokens, heads, head_dim) = (64u32, HEADS, HEAD_DIM);
    let half = head_dim / 2;
    let positions = arrays.alloc_i32(0..tokens as i32);
    let axis = arrays.alloc_i32((0..half).map(|_| 0));
    let inv_freq = arrays.alloc_f32(half);
    let [cos, sin] = [(); 2].map(|()| arrays.alloc_f32(tokens * half));
    let [x, y] = [(); 2].map(|()| arrays.alloc_f32(tokens * heads * head_dim));
    let table = rope::cos_sin_table(&rope::TableParams { positions, inv_freq, axis, cos, sin, tokens, half });
    let stride = heads * head_dim;
    let rotation = rope::Rotation { cos, sin, tokens, head_dim, inverse: false };
    let p =
        rope::ApplyParams::new(&rotation, &[rope::RopeTensor { x, x_stride: stride, y, y_stride: stride, heads }], 1);
    let mut all = allow_one_tenth_more(FLOAT_DTYPES.map(|t| rope::apply(t, &p)));
    // Each thread of the table kernel reads its position, frequency and axis from memory; on a GPU the L1 cache
    // serves most of these reads.
    all.push((table, 1.63));
    all
}
