//! Media in, plain arrays out: which frames of a film to take, decoding them (in a worker process), pictures, the
//! reference's resizes, and the patches that the vision tower reads. No tensors and no devices here.

pub mod encode;
pub mod error;
pub mod image;
pub mod libraries;
pub mod patches;
pub mod profile;
pub mod resize;
pub mod selection;
pub mod strip;
pub mod video;
pub mod worker;

pub use error::{MediaError, Result};
