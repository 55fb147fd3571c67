//! Lets a caller stop the decoding of media for which no one waits any more.

use std::fmt::Debug;

use crate::media::Result;

/// Decides whether the decoding of the media of one conversation goes on.
pub trait DecodeControl: Debug + Send + Sync {
    /// Called after each image, with its number of pixels, and every few milliseconds while a worker decodes a video,
    /// with 0. After an error, the worker is killed and no further medium is decoded.
    ///
    /// # Errors
    /// The decoding should end. The caller of the decoder gets this error.
    fn check(&self, decoded_pixels: u64) -> Result<()>;
}
