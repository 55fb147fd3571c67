//! A server that answers requests with the weights in training (`--serve`). It uses the device that the run lends it
//! between passes: between micro-batches, between the decode steps of rollouts, and while the run waits for data or
//! for rewards. What the run computes does not depend on it.

use reel_model::qwen2_5_vl::Qwen25Vl;

use crate::Result;

/// Requests that a server decodes together. Few, because each decode step keeps the run waiting.
pub const SERVED_BATCH: usize = 16;

/// A server that answers requests with the model in training. Another thread answers them; it uses the device only
/// inside the calls of this trait, and between `begin_host_work` and `end_host_work`.
pub trait LiveServer: std::fmt::Debug {
    /// Starts to answer requests with `model`, whose weights are those after training step `step`.
    ///
    /// # Errors
    /// The server cannot be started.
    fn start(&self, model: &Qwen25Vl, step: u64) -> Result<()>;
    /// Lets the server use the device for its share of the time. Returns at once if there are no requests.
    fn lend_device(&self);
    /// Lets the server use the device until `end_host_work`.
    fn begin_host_work(&self);
    /// Takes the device back.
    fn end_host_work(&self);
    /// Says that the run has written the weights after step `step` in place.
    fn weights_changed(&self, step: u64);
}

/// Lends the device to the server of a run, if it has one.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceLender<'a>(pub Option<&'a dyn LiveServer>);

impl DeviceLender<'_> {
    /// Lets the server use the device for its share of the time. To be called where the run holds no activations.
    pub fn lend(&self) {
        if let Some(server) = self.0 {
            server.lend_device();
        }
    }

    /// Does work that needs no device, while the server may use it.
    pub fn during<T>(&self, host_work: impl FnOnce() -> T) -> T {
        let Some(server) = self.0 else { return host_work() };
        server.begin_host_work();
        let done = host_work();
        server.end_host_work();
        done
    }
}
