//! A conversation becomes the model's inputs: template, tokenizer, media, positions. Plain arrays, no device.

pub mod chat;
pub mod encode;
pub mod fetch;
pub mod frames;
pub mod messages;
pub mod mrope;
pub mod tokenizer;
pub mod tokens;
pub mod window;

pub use encode::{Bundle, MediaOptions, SecondPerGrid, encode};
pub use frames::Frames;
pub use messages::Conversation;
pub use tokens::Tokens;
