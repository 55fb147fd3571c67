//! The table of instructions: patterns with the formats of their operands.
//!
//! A row is a pattern of an opcode, or of statements, and the formats of destinations and sources, one letter each
//! ([`Format::named`](super::format::Format::named)). An opcode is followed by its operands in order. In statements
//! `$d0` is a destination, `$a0` a source, `$t0` to `$t3`, `$u0` to `$u3` and `$q0` to `$q3` are registers of 32
//! bits, of 64 bits and predicates, `$g` is the address of the lane's 16 bytes in global memory, `$s` in shared
//! memory, and `$w` the first address of the warp in shared memory.

mod compare;
mod convert;
mod float;
mod half;
mod integer;
mod logic;
mod memory;
mod warp;

/// A pattern and its operands' formats, written `destinations=sources`.
pub type Row = (&'static str, &'static str);

/// All rows.
pub fn rows() -> impl Iterator<Item = Row> {
    let all =
        [integer::ROWS, logic::ROWS, compare::ROWS, float::ROWS, half::ROWS, convert::ROWS, warp::ROWS, memory::ROWS];
    all.into_iter().flatten().copied()
}
