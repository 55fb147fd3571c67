//! The instructions: a pattern and what its operands hold.
//!
//! A row is a pattern of an opcode, or of statements, and the formats of destinations and sources, a letter each
//! ([`Format::named`](super::format::Format::named)). An opcode is followed by its operands in order. In statements `$d0` is a destination, `$a0` a source,
//! `$t0` to `$t3`, `$u0` to `$u3` and `$q0` to `$q3` are registers of 32 bits, of 64 bits and predicates, `$g` is the address of 16
//! bytes of the lane in global memory, `$s` in shared memory, and `$w` the warp's first of the latter.

mod compare;
mod convert;
mod float;
mod half;
mod integer;
mod logic;
mod memory;
mod warp;

/// A pattern and its formats, as `destinations=sources`.
pub type Row = (&'static str, &'static str);

/// All rows.
pub fn rows() -> impl Iterator<Item = Row> {
    let all =
        [integer::ROWS, logic::ROWS, compare::ROWS, float::ROWS, half::ROWS, convert::ROWS, warp::ROWS, memory::ROWS];
    all.into_iter().flatten().copied()
}
