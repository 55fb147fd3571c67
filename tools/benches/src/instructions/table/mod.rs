//! The table of instructions: patterns with the formats of their operands.
//!
//! Each entry has a pattern of an opcode or of statements, and the formats of its destinations and sources, one
//! letter each ([`OperandFormat::from_letter`](super::format::OperandFormat::from_letter)). For an opcode, the
//! operands are appended in order. Statements name their operands: `$d0` is a destination, `$a0` a source; `$t0` to
//! `$t3` are 32-bit registers, `$u0` to `$u3` 64-bit registers and `$q0` to `$q3` predicates; `$g` is the address of
//! the lane's 16 bytes in global memory, `$s` the address of its 16 bytes in shared memory, and `$w` the first
//! address of the warp in shared memory. `$c` is the block's rank; a kernel that uses it has clusters of two blocks.

mod cluster;
mod compare;
mod convert;
mod float;
mod half;
mod integer;
mod logic;
mod memory;
mod warp;

/// A pattern, and the formats of its operands written as `destinations=sources`.
pub type PatternAndFormats = (&'static str, &'static str);

/// Returns all rows of the instruction table.
pub fn instruction_patterns() -> impl Iterator<Item = PatternAndFormats> {
    let all = [
        integer::INSTRUCTION_PATTERNS,
        logic::INSTRUCTION_PATTERNS,
        compare::INSTRUCTION_PATTERNS,
        float::INSTRUCTION_PATTERNS,
        half::INSTRUCTION_PATTERNS,
        convert::INSTRUCTION_PATTERNS,
        warp::INSTRUCTION_PATTERNS,
        memory::INSTRUCTION_PATTERNS,
        cluster::INSTRUCTION_PATTERNS,
    ];
    all.into_iter().flatten().copied()
}
