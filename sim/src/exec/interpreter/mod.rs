//! The interpreter executes the instructions of one warp until the warp waits or its turn is over.
//!
//! Within a turn it picks one of the warp's ready fragments at random, runs it for some instructions, and picks again.
//! Lane arithmetic, branches and `mma` run in [`Interpreter::run_fragment`]; every other instruction goes through
//! [`Interpreter::execute_instruction`] to the part of the machine that it belongs to.

mod address;
mod control;
mod dispatch;
mod divergence;
mod frames;
mod host;
mod matrix;
mod special;
mod spin;
mod warp_exchange;
mod warp_turn;

pub use frames::enter_function;
pub use warp_turn::Interpreter;
