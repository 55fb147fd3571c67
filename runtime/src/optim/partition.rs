//! Assigns the optimizer state of weights to the ranks of a job (ZeRO: Rajbhandari et al., arXiv 1910.02054).
//!
//! Each parameter is cut into cells, and each cell belongs to one rank, its owner: the owner keeps the moments and the
//! low halves of its weights, adds up its gradients and updates its weights. Example, two ranks, cells of 4 weights:
//!
//! ```text
//! parameter   a (10 weights)     b (3)    c (6)
//! cell        0..4  4..8  8..10  0..3     0..4  4..6
//! rank        0     1     0      1        0     1
//! ```
//!
//! In a single process each parameter is one cell.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use reel_kernels::{adamw, reduce};

use crate::error::Result;
use crate::tensor::Tensor;

/// The maximum number of weights of a cell. Jobs of up to 16 ranks have cells of this size.
const LARGEST_CELL: usize = 1 << 20;

/// In jobs of more than 16 ranks, one cell per rank together have about this number of weights. With such small
/// cells, all ranks take part in the exchange of a bucket.
const WEIGHTS_OF_ALL_RANKS: usize = 16 << 20;

/// The size of a cell is a multiple of this number of weights, the chunk in which kernels process parameters. So the
/// chunks of a parameter, and the bits of sums over chunks, do not depend on whether it is cut into cells.
const CHUNK: usize = reduce::ELEMENTS_PER_CHUNK;

const _: () = assert!(CHUNK.is_multiple_of(adamw::WEIGHTS_PER_CHUNK));
const _: () = assert!(CHUNK.is_multiple_of(adamw::WEIGHTS_PER_SCALE));

/// The largest number of weights of a cell in a job of this many ranks.
fn cell_size(ranks: usize) -> usize {
    (WEIGHTS_OF_ALL_RANKS / ranks / CHUNK * CHUNK).clamp(CHUNK, LARGEST_CELL)
}

/// A part of a parameter that belongs to one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterCell {
    /// Index of the parameter among all parameters, sorted by name.
    pub parameter: usize,
    /// The weights of the cell, as indices into the parameter.
    pub range: Range<usize>,
    /// The rank that the cell belongs to.
    pub owner: usize,
}

impl ParameterCell {
    /// The cell's elements in a tensor of its parameter, `[n]`; the tensor itself if the cell is the whole parameter.
    ///
    /// # Errors
    /// The tensor has fewer elements.
    pub fn slice_of(&self, t: &Tensor) -> Result<Tensor> {
        if self.range == (0..t.count()) {
            return Ok(t.detach());
        }
        t.reshape(&[t.count()])?.rows(self.range.start, self.range.len())
    }
}

/// The size of a parameter, and whether it may be cut into cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterSize {
    /// Number of weights, padding included.
    pub weights: usize,
    /// Whether the parameter may be cut. A padded parameter stays whole, because files have its weights without
    /// padding.
    pub divisible: bool,
}

impl ParameterSize {
    /// The size of the parameter `p`.
    pub fn of_tensor(p: &Tensor) -> Self {
        Self { weights: p.count(), divisible: p.unpadded_shape() == p.shape() }
    }
}

/// The cells of all parameters of an optimizer, from the view of one rank.
#[derive(Clone, Debug)]
pub struct Partition {
    rank: usize,
    cells: Vec<ParameterCell>,
    /// For each parameter, the index of its first cell; at the end, the number of all cells.
    first_cells: Vec<usize>,
}

impl Partition {
    /// Creates the partition for rank `rank` of `ranks`. `sizes` has the sizes of the parameters, in the order of their
    /// names.
    pub fn new(sizes: &[ParameterSize], rank: usize, ranks: usize) -> Self {
        Self::with_cell_size(sizes, rank, ranks, cell_size(ranks))
    }

    pub(crate) fn with_cell_size(sizes: &[ParameterSize], rank: usize, ranks: usize, cell_size: usize) -> Self {
        // The top of the heap is the rank with the fewest weights so far; among equal ranks, the lowest number.
        let mut by_weights: BinaryHeap<Reverse<(usize, usize)>> = (0..ranks.max(1)).map(|r| Reverse((0, r))).collect();
        let (mut cells, mut first_cells) = (Vec::new(), vec![0]);
        for (parameter, size) in sizes.iter().enumerate() {
            let len = if ranks > 1 && size.divisible { cell_size } else { size.weights.max(1) };
            for start in (0..size.weights.max(1)).step_by(len) {
                let range = start..(start + len).min(size.weights);
                let Some(mut fewest) = by_weights.peek_mut() else { break };
                let Reverse((weights, owner)) = &mut *fewest;
                *weights += range.len();
                cells.push(ParameterCell { parameter, range, owner: *owner });
            }
            first_cells.push(cells.len());
        }
        Self { rank, cells, first_cells }
    }

    /// All cells, in the order of parameters and weights.
    pub fn cells(&self) -> &[ParameterCell] {
        &self.cells
    }

    /// The cells of the parameter with this index, in the order of its weights.
    pub fn cells_of(&self, parameter: usize) -> &[ParameterCell] {
        &self.cells[self.first_cells[parameter]..self.first_cells[parameter + 1]]
    }

    /// The cells that this rank owns, in the order of parameters and weights.
    pub fn owned_cells(&self) -> impl Iterator<Item = &ParameterCell> + Clone {
        self.cells.iter().filter(|cell| cell.owner == self.rank)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes() -> impl Strategy<Value = Vec<ParameterSize>> {
        prop::collection::vec((0usize..50, any::<bool>()), 0..12).prop_map(|sizes| {
            sizes.into_iter().map(|(weights, divisible)| ParameterSize { weights, divisible }).collect()
        })
    }

    proptest! {
        #[test]
        fn each_weight_belongs_to_one_rank_and_all_ranks_agree(sizes in sizes(), ranks in 1usize..6) {
            let cells = Partition::with_cell_size(&sizes, 0, ranks, 8).cells;
            for rank in 0..ranks {
                let partition = Partition::with_cell_size(&sizes, rank, ranks, 8);
                prop_assert_eq!(&partition.cells, &cells);
                prop_assert!(partition.owned_cells().all(|cell| cell.owner == rank));
            }
            for (index, size) in sizes.iter().enumerate() {
                let partition = Partition::with_cell_size(&sizes, 0, ranks, 8);
                let of_parameter = partition.cells_of(index);
                prop_assert!(of_parameter.iter().eq(cells.iter().filter(|cell| cell.parameter == index)));
                let mut end = 0;
                for cell in of_parameter {
                    prop_assert_eq!(cell.range.start, end);
                    end = cell.range.end;
                }
                prop_assert_eq!(end, size.weights);
                let is_cut = of_parameter.len() > 1;
                prop_assert!(!is_cut || size.divisible && ranks > 1);
            }
        }

        #[test]
        fn shares_of_ranks_differ_by_at_most_one_cell(
            weights in prop::collection::vec(0usize..50, 0..12), ranks in 1usize..6,
        ) {
            let sizes: Vec<ParameterSize> =
                weights.iter().map(|&weights| ParameterSize { weights, divisible: true }).collect();
            let share = |rank| -> usize {
                Partition::with_cell_size(&sizes, rank, ranks, 8).owned_cells().map(|cell| cell.range.len()).sum()
            };
            let shares: Vec<usize> = (0..ranks).map(share).collect();
            if let (Some(least), Some(most)) = (shares.iter().min(), shares.iter().max()) {
                prop_assert!(ranks == 1 || most - least <= 8, "{shares:?}");
            }
        }

        /// Each cell belongs to the rank that has the fewest weights before it. Among equal ranks, the lowest number
        /// counts.
        #[test]
        fn owners_are_the_ranks_with_the_fewest_weights(sizes in sizes(), ranks in 1usize..6) {
            let mut weights = vec![0; ranks];
            for cell in Partition::with_cell_size(&sizes, 0, ranks, 8).cells() {
                let fewest = weights.iter().min().unwrap();
                prop_assert_eq!(weights.iter().position(|of_rank| of_rank == fewest), Some(cell.owner));
                weights[cell.owner] += cell.range.len();
            }
        }
    }

    /// Partitions a 72B model for 1024 ranks: 1,000 parameters, 1.1 million cells.
    #[test]
    fn a_large_job_is_cut_in_a_short_time() {
        let sizes = vec![ParameterSize { weights: 72_000_000, divisible: true }; 1000];
        let begun = std::time::Instant::now();
        let partition = Partition::new(&sizes, 1023, 1024);
        let found: usize = (0..sizes.len()).map(|parameter| partition.cells_of(parameter).len()).sum();
        assert!(found == partition.cells().len() && found > 1_000_000, "{found}");
        // Searching all cells for each rank or each parameter would take a billion steps.
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }
}
