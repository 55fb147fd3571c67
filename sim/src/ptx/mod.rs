//! Parses PTX text into a syntax tree with resolved names ([`ast`]), and analyses control flow ([`cfg`]).
//!
//! The parser is one struct in [`parser`]; its methods are in one file per part of the grammar: module, functions,
//! variables, operands, debug information.

pub mod ast;
pub mod cfg;
mod debug;
mod dominators;
mod expression;
mod function;
mod lexer;
mod line_info;
mod operand;
pub mod parser;
mod scope;
mod variable;

pub use parser::parse;

#[cfg(test)]
mod tests;
