//! Libraries that every other crate of the program may use, without a model or a device: error messages as data
//! ([`diagnostic`]), files that are complete or absent ([`files`]), processes for work that can crash ([`worker`]), the
//! processes of one job ([`ranks`]), the hub's models and data sets ([`hub`]), and a client of servers with OpenAI's
//! chat API ([`client`]), named ranges of host time for traces and profiling tools ([`ranges`]), and counter-based
//! random numbers ([`philox`]).

pub mod client;
pub mod diagnostic;
pub mod error;
pub mod files;
pub mod hub;
pub mod philox;
pub mod ranges;
pub mod ranks;
pub mod shared_library;
pub mod worker;
