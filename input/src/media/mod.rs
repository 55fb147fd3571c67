//! Reads videos and images into plain arrays: frame selection, decoding (in a worker process), the resizes of the
//! reference recipes, and the patches that are the vision tower's input. Uses no tensors and no devices.
//!
//! For a video, [`selection::select_frames`] picks frame indices, [`worker::DecodeWorker`] decodes and resizes these
//! frames, and [`patches::patchify`] cuts them into patches. An image starts at [`image::open`].

pub mod encode;
pub mod error;
pub mod frames;
pub mod image;
pub mod libraries;
pub mod patches;
pub mod planned;
pub mod profile;
pub mod resize;
pub mod selection;
pub mod strip;
pub mod video;
pub mod worker;

pub use error::{DATA_URI, with_file_name, with_message_part};

pub use crate::error::Result;
