//! Interface of the server that answers requests with the weights in training (`--serve`). The run lends the device to
//! the server between passes: between micro-batches, between the decode steps of rollouts, and while the run waits for
//! data or rewards. The server does not change the run's results.

use reel_device::{RangeName, range};
use reel_model::qwen2_5_vl::Qwen25Vl;

use crate::Result;

/// Maximum number of requests that the server decodes together. It is small, because the training run waits during
/// each decode step of the server.
pub const SERVED_BATCH_SIZE: usize = 16;

/// A server that answers requests with the model in training. The server has its own thread, which uses the device only
/// during a call of this trait's methods, and between `begin_host_work` and `end_host_work`.
pub trait LiveServer: std::fmt::Debug {
    /// Starts to answer requests with `model`, whose weights are those after training step `step`.
    ///
    /// # Errors
    /// The server cannot be started.
    fn start(&self, model: &Qwen25Vl, step: u64) -> Result<()>;
    /// Lets the server use the device for the server's share of the time. Returns at once if no request is waiting.
    fn lend_device(&self);
    /// Lets the server use the device until `end_host_work`.
    fn begin_host_work(&self);
    /// Takes the device back from the server after `begin_host_work`.
    fn end_host_work(&self);
    /// Tells the server that the run has updated the weights in place; they are now those after step `step`.
    fn weights_changed(&self, step: u64);
}

/// Lends the device to the server of a run, if it has one.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceLender<'a>(pub Option<&'a dyn LiveServer>);

impl DeviceLender<'_> {
    /// Lets the server use the device for the server's share of the time. Must be called where the run holds no
    /// activations.
    pub fn lend_to_server(&self) {
        if let Some(server) = self.0 {
            let _range = range(RangeName::Phase("serving"));
            server.lend_device();
        }
    }

    /// Runs `host_work`, which needs no device. The server can use the device during this time.
    pub fn lend_device_during<T>(&self, host_work: impl FnOnce() -> T) -> T {
        let Some(server) = self.0 else { return host_work() };
        server.begin_host_work();
        let done = host_work();
        server.end_host_work();
        done
    }
}
