//! PTX text to an abstract syntax tree with resolved names.

pub mod ast;
