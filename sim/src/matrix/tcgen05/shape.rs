//! The extent of tensor memory, its regions, and the shape of a product.

use crate::matrix::format::{AccumulatorFormat, ElementFormat};
use std::ops::Range;

/// Number of lanes of tensor memory.
pub const LANES: usize = 128;
/// Number of columns of tensor memory.
pub const COLUMNS: usize = 512;
/// Number of lanes in a group: all accesses cover whole groups of lanes.
pub const GROUP_LANES: usize = 16;

/// A product D = ±A·B + D of one or two blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmaShape {
    /// Number of blocks that compute the product: 1 or 2.
    pub blocks: u32,
    /// Rows of A and D, of all blocks.
    pub m: u32,
    /// Columns of B and D, of all blocks.
    pub n: u32,
    /// Format of A's elements.
    pub a: ElementFormat,
    /// Format of B's elements.
    pub b: ElementFormat,
    /// Format of D's elements.
    pub accumulator: AccumulatorFormat,
    /// Whether s32 sums clamp instead of wrapping.
    pub saturate: bool,
    /// Whether exactly one of A and B is negated.
    pub negate: bool,
    /// Whether A in shared memory is M-major.
    pub transpose_a: bool,
    /// Whether B is N-major.
    pub transpose_b: bool,
}

/// Lanes and columns of tensor memory: a mask of the eight groups of 16 lanes, and the columns in each of them.
pub type Region = (u8, Range<u32>);
