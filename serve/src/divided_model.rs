//! The processes that serve one model together, each with a part of it ([`reel_model::tensor_parallel`]).
//!
//! Rank 0 has the HTTP server. Every rank runs the same engine on the same requests: before each step rank 0 sends a
//! [`StepMessage`](crate::step_message::StepMessage), and all ranks apply it. All ranks generate the same tokens,
//! because they sample from the same gathered logits, so no tokens are sent.

use std::sync::Arc;

use reel_model::tensor_parallel::TensorParallel;
use reel_support::ranks::Ranks;

use crate::error::{Error, Result};

/// The name of rank 0's message before a step, for error messages.
const STEP: &str = "next step of the engine";

/// The processes that serve a model together, and how the model is divided among them.
#[derive(Clone, Debug)]
pub struct DividedModel {
    /// The division.
    pub parallel: TensorParallel,
    /// The processes.
    pub ranks: Arc<Ranks>,
}

impl DividedModel {
    /// Sends the message before a step to the other ranks. An empty message ends their loop.
    ///
    /// # Errors
    /// Another rank has failed.
    pub(crate) fn send_step(&self, step: Vec<u8>) -> Result<()> {
        self.ranks.broadcast(STEP, 0, Some(step))?;
        Ok(())
    }

    /// Waits for rank 0's message before a step. An empty message means that no step follows.
    ///
    /// # Errors
    /// Another rank has failed.
    pub(crate) fn receive_step(&self) -> Result<Vec<u8>> {
        Ok(self.ranks.broadcast(STEP, 0, None)?)
    }

    /// Returns `loaded` if loading has succeeded on all ranks. Otherwise returns this rank's error, or that of the
    /// first other rank with an error. All ranks call this.
    ///
    /// # Errors
    /// Another rank has failed.
    pub(crate) fn agree_on_load<T>(&self, name: &str, loaded: Result<T>) -> Result<Result<T, Error>> {
        let own = loaded.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let all = self.ranks.all_gather(name, own.as_bytes())?;
        let other = all.iter().enumerate().find(|(_, error)| !error.is_empty());
        Ok(match (loaded, other) {
            (Ok(_), Some((rank, error))) => {
                let text = String::from_utf8_lossy(error);
                Err(Error::request(format!("rank {rank}"), text, "see its message"))
            }
            (loaded, _) => loaded,
        })
    }
}
