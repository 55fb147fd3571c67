//! Window order: the order in which the vision tower computes patches, and which patches attend to each other.
//!
//! The image processor writes patches square by square; each square of `merge × merge` patches becomes one vision
//! token. Most blocks of the tower attend within windows of `side × side` squares only, so the tower places the
//! squares of a window next to each other. Patches of different frames never attend to each other. These are the
//! rules of transformers' `Qwen2_5_VisionTransformerPretrainedModel`.
//!
//! Example: one frame of 2 × 3 squares, windows of 2 × 2 squares (the last column of windows is narrower), 4 patches
//! per square:
//!
//! ```text
//! processor order    windows         window_index      = [0, 1, 3, 4, 2, 5]    squares, in window order
//!   0 1 2            A A B           reverse_index     = [0, 1, 4, 2, 3, 5]    where each square went
//!   3 4 5            A A B           cu_window_seqlens = [0, 16, 24]           patches: 4 squares of A, 2 of B
//!                                    cu_seqlens        = [0, 24]               patches: the frame
//! ```

use crate::config::VisionConfig;

/// The number of patches of an image or video along time, height and width. Height and width are multiples of the
/// merge size.
pub type GridThw = [usize; 3];

/// The window order of all grids of a batch, which have N patches in M = N / merge² squares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowOrder {
    /// `[M]`: the squares in window order, each as its index in processor order.
    pub window_index: Vec<usize>,
    /// `[M]`: for each square in processor order, its index in window order. The inverse of `window_index`:
    /// `window_index[reverse_index[i]] == i`.
    pub reverse_index: Vec<usize>,
    /// Cumulative lengths of the windows in patches, for blocks with windowed attention.
    pub cu_window_seqlens: Vec<usize>,
    /// Cumulative lengths of the frames in patches, for blocks with full attention. They are the same in processor
    /// order and in window order.
    pub cu_seqlens: Vec<usize>,
}

impl WindowOrder {
    /// Computes the window order of these grids in a tower with windows of `window_size` pixels.
    pub fn from_grids(grids: &[GridThw], vision: &VisionConfig, window_size: usize) -> Self {
        let merge = vision.spatial_merge_size;
        let side = window_size / merge / vision.patch_size;
        let mut plan = Self {
            window_index: Vec::new(),
            reverse_index: Vec::new(),
            cu_window_seqlens: vec![0],
            cu_seqlens: vec![0],
        };
        for &[t, h, w] in grids {
            let (rows, columns) = (h / merge, w / merge);
            for _ in 0..t {
                plan.add_frame(rows, columns, side, merge * merge);
            }
        }
        plan.reverse_index = invert(&plan.window_index);
        plan
    }

    /// Appends a frame of `rows × columns` squares to the order. Windows of `side × side` squares start at its top
    /// left corner; a square has `unit` patches.
    fn add_frame(&mut self, rows: usize, columns: usize, side: usize, unit: usize) {
        let first = self.window_index.len();
        for top in (0..rows).step_by(side) {
            for left in (0..columns).step_by(side) {
                for row in top..rows.min(top + side) {
                    let start = first + row * columns;
                    self.window_index.extend(start + left..start + columns.min(left + side));
                }
                self.cu_window_seqlens.push(self.window_index.len() * unit);
            }
        }
        self.cu_seqlens.push(self.window_index.len() * unit);
    }
}

fn invert(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (index, &item) in order.iter().enumerate() {
        inverse[item] = index;
    }
    inverse
}

/// `[N]`: (row, column) of each patch in its frame, in processor order; the rotary angles are computed from them.
pub fn patch_rows_and_columns(grids: &[GridThw], merge: usize) -> Vec<[usize; 2]> {
    let mut positions = Vec::new();
    for &[t, h, w] in grids {
        let first = positions.len();
        for (top, left) in (0..h).step_by(merge).flat_map(|top| (0..w).step_by(merge).map(move |left| (top, left))) {
            positions.extend((top..top + merge).flat_map(|row| (left..left + merge).map(move |column| [row, column])));
        }
        for _ in 1..t {
            positions.extend_from_within(first..first + h * w);
        }
    }
    positions
}

/// `[N]`: (row, column) of each patch in its frame, in window order.
pub fn patch_rows_and_columns_in_window_order(
    grids: &[GridThw],
    vision: &VisionConfig,
    windows: &WindowOrder,
) -> Vec<[usize; 2]> {
    let unit = vision.patches_per_vision_token();
    let positions = patch_rows_and_columns(grids, vision.spatial_merge_size);
    windows
        .window_index
        .iter()
        .flat_map(|&square| positions[square * unit..(square + 1) * unit].iter().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Qwen3Tower, Tower};

    fn vision(merge: usize) -> VisionConfig {
        VisionConfig {
            depth: 2,
            hidden_size: 16,
            intermediate_size: 16,
            num_heads: 2,
            head_dim: 8,
            in_channels: 3,
            patch_size: 14,
            temporal_patch_size: 2,
            spatial_merge_size: merge,
            out_hidden_size: 16,
            norm_eps: 1e-6,
            tower: Tower::Qwen3(Qwen3Tower { position_side: 1, deepstack_block_indexes: Vec::new() }),
        }
    }

    /// The window order computed from its definition, by sorting the squares by frame, window row, window column, row
    /// and column.
    fn by_sorting(grids: &[GridThw], merge: usize, side: usize) -> (Vec<usize>, Vec<usize>) {
        let mut squares = Vec::new();
        for (g, &[t, h, w]) in grids.iter().enumerate() {
            for f in 0..t {
                for y in 0..h / merge {
                    for x in 0..w / merge {
                        squares.push(((g, f, y / side, x / side), y, x, squares.len()));
                    }
                }
            }
        }
        squares.sort();
        let mut ends = vec![0];
        for (i, pair) in squares.windows(2).enumerate() {
            if pair[0].0 != pair[1].0 {
                ends.push((i + 1) * merge * merge);
            }
        }
        ends.push(squares.len() * merge * merge);
        (squares.iter().map(|s| s.3).collect(), ends)
    }

    proptest! {
        #[test]
        fn window_order_equals_sorting_by_window(
            shapes in prop::collection::vec((1usize..4, 1usize..9, 1usize..9), 1..4), merge in 1usize..4, side in 1usize..5,
        ) {
            let grids: Vec<GridThw> = shapes.iter().map(|&(t, h, w)| [t, h * merge, w * merge]).collect();
            let plan = WindowOrder::from_grids(&grids, &vision(merge), 14 * merge * side);
            let (order, ends) = by_sorting(&grids, merge, side);
            prop_assert_eq!(&plan.window_index, &order);
            prop_assert_eq!(&plan.cu_window_seqlens, &ends);
            for (i, &index) in plan.reverse_index.iter().enumerate() {
                prop_assert_eq!(plan.window_index[index], i);
            }
            let frames: Vec<usize> = grids.iter().flat_map(|&[t, h, w]| std::iter::repeat_n(h * w, t)).collect();
            let mut end = 0;
            let mut ends = vec![0];
            for n in frames { end += n; ends.push(end); }
            prop_assert_eq!(&plan.cu_seqlens, &ends);
        }

        #[test]
        fn every_patch_has_one_position(t in 1usize..3, h in 1usize..6, w in 1usize..6, merge in 1usize..4) {
            let grid = [t, h * merge, w * merge];
            let positions = patch_rows_and_columns(&[grid], merge);
            prop_assert_eq!(positions.len(), t * grid[1] * grid[2]);
            let frame = &positions[..grid[1] * grid[2]];
            let mut sorted = frame.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), frame.len());
            // Each run of merge² consecutive patches lies in one square of the frame.
            for square in positions.chunks(merge * merge) {
                prop_assert!(square.iter().all(|p| p[0] / merge == square[0][0] / merge && p[1] / merge == square[0][1] / merge));
            }
            let vision = vision(merge);
            let plan = WindowOrder::from_grids(&[grid], &vision, 28 * merge);
            let moved = patch_rows_and_columns_in_window_order(&[grid], &vision, &plan);
            for (index, &square) in plan.window_index.iter().enumerate() {
                let unit = merge * merge;
                prop_assert_eq!(&moved[index * unit..(index + 1) * unit], &positions[square * unit..(square + 1) * unit]);
            }
        }
    }
}
