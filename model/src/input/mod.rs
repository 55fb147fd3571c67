//! A conversation becomes the model's inputs: template, tokenizer, media, positions. Plain arrays, no device.

pub mod chat;
pub mod encode;
pub mod fetch;
pub mod media_frames;
pub mod messages;
pub mod model_input;
pub mod mrope;
pub mod tokenizer;
pub mod window;

pub use encode::{Bundle, MediaOptions, SecondPerGrid, encode};
pub use media_frames::MediaFrames;
pub use messages::Conversation;
pub use model_input::ModelInput;
