//! The host-only part of Qwen2.5-VL and Qwen3-VL: reads the small files of a model folder, and converts a conversation
//! to the model's input, plain arrays in host memory. [`rows`] reads data files, [`media`] images and videos. No device
//! is needed.
//!
//! [`encode()`] converts a conversation to a [`ModelInput`]. It uses the config ([`config`]), the chat template
//! ([`chat`]), the tokenizer ([`tokenizer`]), images and videos ([`media_frames`]) and positions ([`mrope`]).
//!
//! Read [`messages`] first, which defines a conversation, then [`mod@encode`].

pub mod chat;
pub mod config;
pub mod encode;
pub mod expected_tokens;
pub mod family;
pub mod fetch;
pub mod frame_folder;
pub mod grammar;
pub mod grammar_fields;
pub mod interpolation;
pub mod media;
pub mod media_frames;
pub mod media_loading;
pub mod messages;
pub mod model_input;
pub mod mrope;
pub mod network;
pub mod prompt_fields;
pub mod prompt_media;
mod python_json;
pub mod request;
pub mod rows;
pub mod sampling;
pub mod tensor_file;
pub mod tokenizer;
pub mod tokenizer_json;
pub mod tools;
pub mod video_marks;
pub mod window;

pub use encode::{ModelFolder, encode};
pub use media_frames::MediaFrames;
pub use media_loading::{MediaOptions, SecondPerGrid};
pub use messages::Conversation;
pub use model_input::{ModelInput, Sequence};
pub use reel_support::error::{self, Result};
pub use tokenizer::TokenId;
