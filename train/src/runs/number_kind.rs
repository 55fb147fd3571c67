//! The kinds of numbers that options take.

use std::any::TypeId;

use clap::builder::ValueParser;

/// The kind of number that an option takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NumberKind {
    /// A whole number, 0 or more.
    Unsigned,
    /// A whole number.
    Signed,
    /// Any number.
    Float,
}

/// Returns the kind of numbers that a value parser accepts; `None` if the values are not numbers.
pub fn number_kind(parser: &ValueParser) -> Option<NumberKind> {
    let id = parser.type_id();
    let any = |types: &[TypeId]| types.iter().any(|of| id == *of);
    if any(&[TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()]) {
        Some(NumberKind::Unsigned)
    } else if any(&[TypeId::of::<i32>(), TypeId::of::<i64>()]) {
        Some(NumberKind::Signed)
    } else if any(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
        Some(NumberKind::Float)
    } else {
        None
    }
}
