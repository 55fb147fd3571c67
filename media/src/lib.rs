//! Media in, plain arrays out: which frames of a film to take, decoding them (in a worker process), pictures, the
//! reference's resizes, and the patches that the vision tower reads. No tensors and no devices here.

pub mod error;
pub mod frames;
pub mod profile;

pub use error::{MediaError, Result};
