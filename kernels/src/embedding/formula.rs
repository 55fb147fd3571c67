//! The definition of the embedding in f64, and its gradient with the roundings that `mod.rs` documents.

use crate::checks::rounding::f32;

/// Returns the table's rows of `ids`; zeros for ids outside the table.
pub fn fwd(table: &[f64], ids: &[i32], hidden: usize) -> Vec<f64> {
    let vocab = (table.len() / hidden) as i32;
    let element = |id: i32, c: usize| if (0..vocab).contains(&id) { table[id as usize * hidden + c] } else { 0.0 };
    ids.iter().flat_map(|&id| (0..hidden).map(move |c| (id, c))).map(|(id, c)| element(id, c)).collect()
}

/// Adds each token's gradient to its row of `dw`: the transpose of the linear map [`fwd`].
pub fn bwd(ids: &[i32], dy: &[f64], dw: &[f64], hidden: usize) -> Vec<f64> {
    let mut sum = dw.to_vec();
    for (i, sum) in sum.iter_mut().enumerate() {
        let (row, c) = ((i / hidden) as i32, i % hidden);
        *sum += (0..ids.len()).filter(|&t| ids[t] == row).map(|t| dy[t * hidden + c]).sum::<f64>();
    }
    sum
}

/// Returns `text`, the output of [`fwd`], after replacing row t by row `vision_index[t]` of `vision` for each token t
/// whose index is not negative.
pub fn fwd_with_vision(text: &[f64], vision: &[f64], vision_index: &[i32], hidden: usize) -> Vec<f64> {
    let rows = (vision.len() / hidden.max(1)) as i32;
    let element = |t: usize, c: usize| match vision_index[t] {
        vision_row if vision_row < 0 => text[t * hidden + c],
        vision_row if vision_row < rows => vision[vision_row as usize * hidden + c],
        _ => 0.0,
    };
    (0..vision_index.len()).flat_map(|t| (0..hidden).map(move |c| (t, c))).map(|(t, c)| element(t, c)).collect()
}

/// Computes [`bwd`] with each addition rounded to f32: the tokens of a row in order, then their sum and the old value.
pub fn bwd_rounded(ids: &[i32], dy: &[f64], dw: &[f64], hidden: usize) -> Vec<f64> {
    let mut sum = vec![0.0; dw.len()];
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(hidden)).filter(|(id, _)| **id >= 0) {
        for (sum, d) in sum.iter_mut().skip(id as usize * hidden).zip(dy) {
            *sum = f32(*sum + d);
        }
    }
    dw.iter().zip(sum).map(|(old, sum)| f32(old + sum)).collect()
}
