//! How the vision tower sees a grid of patches: which attend to each other, in which order they stand, and where each is.
//!
//! The image processor gives patches in squares of `merge × merge`, each square one token later. Windowed blocks attend
//! inside windows of `side × side` squares, so the tower puts the squares of a window next to each other (`window_index`),
//! computes all blocks in that order and puts the tokens back (`reverse_index`) at the end. Frames never attend to
//! each other. Rules of transformers' `Qwen2_5_VisionTransformerPretrainedModel`.

use crate::config::VisionConfig;

/// Time, height and width of one picture or film, in patches. Height and width are multiples of the merge size.
pub type GridThw = [usize; 3];

/// Orders and boundaries of all patches of a batch of grids. N patches, M = N / merge² squares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// [M]: the square (in processor order) that stands at each place of the tower's order.
    pub window_index: Vec<usize>,
    /// [M]: the place in the tower's order of each square: `window_index[reverse_index[i]] == i`.
    pub reverse_index: Vec<usize>,
    /// Ends of the windows, in patches of the tower's order, from 0; for windowed blocks.
    pub cu_window_seqlens: Vec<usize>,
    /// Ends of the frames, in patches, from 0; for full blocks. The same in both orders.
    pub cu_seqlens: Vec<usize>,
}

impl Windows {
    /// Plans the tower's order for these grids.
    pub fn plan(grids: &[GridThw], vision: &VisionConfig) -> Self {
        let merge = vision.spatial_merge_size;
        let side = vision.window_size / merge / vision.patch_size;
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

    /// One frame of `rows × columns` squares, cut into windows of `side × side` from its top left corner.
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
    for (place, &item) in order.iter().enumerate() {
        inverse[item] = place;
    }
    inverse
}

/// [N] (row, column) of each patch inside its frame, in processor order: what the rotary angles are made from.
pub fn patch_positions(grids: &[GridThw], merge: usize) -> Vec<[usize; 2]> {
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

/// [N] (row, column) of each patch in the tower's order: [`patch_positions`] moved square by square.
pub fn windowed_positions(grids: &[GridThw], vision: &VisionConfig, windows: &Windows) -> Vec<[usize; 2]> {
    let unit = vision.merge_unit();
    let positions = patch_positions(grids, vision.spatial_merge_size);
    windows
        .window_index
        .iter()
        .flat_map(|&square| positions[square * unit..(square + 1) * unit].iter().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vision(merge: usize, side: usize) -> VisionConfig {
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
            window_size: 14 * merge * side,
            fullatt_block_indexes: vec![1],
            out_hidden_size: 16,
            tokens_per_second: 2.0,
            rms_norm_eps: 1e-6,
        }
    }

    /// The definition by coordinates: frame, then window row, window column, row, column.
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
        fn equals_the_definition(
            shapes in prop::collection::vec((1usize..4, 1usize..9, 1usize..9), 1..4), merge in 1usize..4, side in 1usize..5,
        ) {
            let grids: Vec<GridThw> = shapes.iter().map(|&(t, h, w)| [t, h * merge, w * merge]).collect();
            let vision = vision(merge, side);
            let plan = Windows::plan(&grids, &vision);
            let (order, ends) = by_sorting(&grids, merge, side);
            prop_assert_eq!(&plan.window_index, &order);
            prop_assert_eq!(&plan.cu_window_seqlens, &ends);
            for (i, &place) in plan.reverse_index.iter().enumerate() {
                prop_assert_eq!(plan.window_index[place], i);
            }
            let frames: Vec<usize> = grids.iter().flat_map(|&[t, h, w]| std::iter::repeat_n(h * w, t)).collect();
            let mut end = 0;
            let mut ends = vec![0];
            for n in frames { end += n; ends.push(end); }
            prop_assert_eq!(&plan.cu_seqlens, &ends);
        }

        #[test]
        fn every_patch_is_somewhere_once(t in 1usize..3, h in 1usize..6, w in 1usize..6, merge in 1usize..4) {
            let grid = [t, h * merge, w * merge];
            let positions = patch_positions(&[grid], merge);
            prop_assert_eq!(positions.len(), t * grid[1] * grid[2]);
            let frame = &positions[..grid[1] * grid[2]];
            let mut sorted = frame.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), frame.len());
            // a square of patches is one token: its patches are neighbours
            for square in positions.chunks(merge * merge) {
                prop_assert!(square.iter().all(|p| p[0] / merge == square[0][0] / merge && p[1] / merge == square[0][1] / merge));
            }
            let vision = vision(merge, 2);
            let plan = Windows::plan(&[grid], &vision);
            let moved = windowed_positions(&[grid], &vision, &plan);
            for (place, &square) in plan.window_index.iter().enumerate() {
                let unit = merge * merge;
                prop_assert_eq!(&moved[place * unit..(place + 1) * unit], &positions[square * unit..(square + 1) * unit]);
            }
        }
    }
}
