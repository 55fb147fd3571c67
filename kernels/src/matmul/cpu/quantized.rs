//! Products of a few rows of A with a weight that stays quantised in memory:
//!
//! ```text
//! for each block of rows of the weight:      # a task of one thread
//!     dequantise the block into a buffer     # which stays in the second-level cache
//!     columns of C = A · blockᵀ              # the product with a plain weight
//! ```
//!
//! So memory is read for codes instead of elements, and the sums have the bits of a product with the dequantised
//! weight. Each task packs A for itself, so with many rows of A it is faster to dequantise the whole weight before.

use super::*;
use crate::dequantize::Params;
use crate::dequantize::cpu::Weight;

/// Maximum number of rows of A for which [`multiply`] is faster than a product with the weight that is dequantised
/// before.
pub const MAX_ROWS: usize = 64;
/// Approximate number of bytes of a dequantised block.
const BLOCK_BYTES: usize = 256 << 10;
/// The number of rows of a block is a multiple of this number, which all functions for few rows of A take.
const BLOCK_ROWS: usize = 32;

thread_local! {
    /// The buffer for a dequantised block and its columns of C, in each thread that computes with them.
    static BLOCK: RefCell<Scratch> = RefCell::default();
}

/// Computes a product with a quantised B. It is not added to an old C.
///
/// # Safety
/// The addresses cover the shapes that [`Matmul`] and, for all but y, [`Params`] document, and nothing else uses C. The
/// machine has `isa`.
pub(super) unsafe fn multiply(isa: Isa, p: &Matmul, team: &Team) {
    // SAFETY: the caller promises it.
    unsafe {
        match p.b.dtype {
            DType::F32 => multiply_as::<f32>(isa, p, team),
            _ => multiply_as::<bf16>(isa, p, team),
        }
    }
}

/// Does what [`multiply`] does, with a weight that is dequantised to T.
unsafe fn multiply_as<T: Element>(isa: Isa, p: &Matmul, team: &Team) {
    // SAFETY: the address of a quantised B is that of its description, whose addresses are valid.
    let weight = unsafe { Weight::new(&*(p.b.addr.0 as *const Params)) };
    let by_size = BLOCK_BYTES / (p.k * size_of::<T>()).max(1);
    let rows_at_once = by_size.min(p.n.div_ceil(team.threads())).max(1).next_multiple_of(BLOCK_ROWS);
    let element = p.c_dtype.size();
    // SAFETY: C has `[m, n]` elements.
    let c = unsafe { OutputArray::<u8>::new(p.c, p.m * p.n * element) };
    team.run(p.n.div_ceil(rows_at_once), |task| {
        let first = task * rows_at_once;
        let rows = rows_at_once.min(p.n - first);
        BLOCK.with_borrow_mut(|scratch| {
            let words = (rows * p.k * size_of::<T>()).div_ceil(64) * 16;
            let block = scratch.words(words + p.m * rows * element / 4 + 1);
            // SAFETY: the buffer has room for the rows, and then for the columns of C.
            let (elements, columns) =
                unsafe { (std::slice::from_raw_parts_mut(block.cast::<T>(), rows * p.k), block.add(words)) };
            if p.k > 0 {
                elements.chunks_exact_mut(p.k).zip(first..).for_each(|(y, row)| weight.write_row(row, y));
            }
            let at = |addr: Addr| if addr.is_null() { addr } else { Addr(addr.0 + (first * element) as u64) };
            let c_of_block = if p.m == 1 { at(p.c) } else { Addr(columns as u64) };
            let b = Operand { addr: Addr(block as u64), ..p.b };
            // SAFETY: the block and its columns have the sizes of the product; a task of a task runs on its thread.
            unsafe {
                let plain = RightLayout::Plain;
                run_on(isa, &Matmul { n: rows, b, b_layout: plain, c: c_of_block, bias: at(p.bias), ..*p }, team);
            }
            for row in (0..p.m).filter(|_| p.m > 1) {
                // SAFETY: tasks own disjoint columns of C; the product has written the buffer.
                unsafe {
                    let from = columns.cast::<u8>().add(row * rows * element);
                    let to = c.part((row * p.n + first) * element, rows * element);
                    to.copy_from_slice(std::slice::from_raw_parts(from, rows * element));
                }
            }
        });
    });
}
