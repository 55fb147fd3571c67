//! A conversation becomes the model's inputs: template, tokenizer, media, positions. Plain arrays, no device.

pub mod mrope;
pub mod tokens;
pub mod window;

pub use tokens::Tokens;
