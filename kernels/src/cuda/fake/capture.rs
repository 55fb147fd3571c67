//! What a stream may be asked for while it is captured. Source: CUDA C++ Programming Guide 13.0, "Creating a Graph Using Stream Capture"
//! and "Prohibited and Unhandled Operations"; Driver API manual 13.0, the functions named below.

use std::thread::{self, ThreadId};

/// A capture under way, in thread-local mode.
pub(super) struct Capture<T> {
    ops: Vec<T>,
    /// Who began it.
    thread: ThreadId,
    /// A prohibited call was made: nothing more is taken, and the end gives no graph.
    invalid: bool,
}

impl<T> Capture<T> {
    /// Begun by this thread.
    pub fn begin() -> Capture<T> {
        Capture { ops: Vec::new(), thread: thread::current().id(), invalid: false }
    }

    /// Whether this thread began it: cuThreadExchangeStreamCaptureMode has only that thread's unsafe calls prohibited in this mode.
    pub fn is_mine(&self) -> bool {
        self.thread == thread::current().id()
    }

    /// After a prohibited call.
    pub fn invalidate(&mut self) {
        self.invalid = true;
    }

    /// Takes what is asked of the stream.
    pub fn take(&mut self, op: T) -> Result<(), &'static str> {
        if self.invalid {
            return Err("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
        }
        self.ops.push(op);
        Ok(())
    }

    /// What was captured. cuStreamEndCapture: none after a prohibited call.
    pub fn end(self) -> Result<Vec<T>, &'static str> {
        if self.invalid { Err("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED") } else { Ok(self.ops) }
    }
}
