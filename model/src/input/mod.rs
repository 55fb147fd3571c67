//! Converts a conversation to the model's input: plain arrays in host memory. [`encode()`] does all of it with the
//! chat template ([`chat`]), the tokenizer ([`tokenizer`]), images and videos ([`media_frames`]) and positions
//! ([`mrope`]). The result is a [`ModelInput`].

pub mod chat;
pub mod encode;
pub mod fetch;
pub mod frame_folder;
pub mod media_frames;
pub mod messages;
pub mod model_input;
pub mod mrope;
mod part_keys;
pub mod prompt_fields;
pub mod request;
pub mod tokenizer;
mod tool_messages;
pub mod tools;
pub mod window;

pub use encode::{MediaOptions, ModelFolder, SecondPerGrid, encode};
pub use media_frames::MediaFrames;
pub use messages::Conversation;
pub use model_input::ModelInput;
