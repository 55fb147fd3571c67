//! PTX text to an abstract syntax tree with resolved names.

pub mod ast;
pub mod cfg;
mod debug;
mod dominators;
mod expression;
mod function;
mod lexer;
mod operand;
pub mod parser;
mod scope;
mod variable;

pub use parser::parse;

#[cfg(test)]
mod tests;
