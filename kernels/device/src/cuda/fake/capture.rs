//! Rules about what may be enqueued on a stream during a capture. Source: CUDA C++ Programming Guide 13.0, "Creating
//! a Graph Using Stream Capture" and "Prohibited and Unhandled Operations"; Driver API manual 13.0, the functions
//! named below.

use std::thread::{self, ThreadId};

/// A stream capture in progress, in CUDA's thread-local mode.
pub(super) struct Capture<T> {
    ops: Vec<T>,
    /// The thread that began the capture.
    thread: ThreadId,
    /// True after a prohibited call: the capture records nothing more, and its end returns no graph.
    invalid: bool,
}

impl<T> Capture<T> {
    /// Begins a capture by the calling thread.
    pub fn begin() -> Capture<T> {
        Capture { ops: Vec::new(), thread: thread::current().id(), invalid: false }
    }

    /// Tells whether the calling thread began the capture. In thread-local mode, potentially unsafe calls are
    /// prohibited for that thread only (cuThreadExchangeStreamCaptureMode).
    pub fn was_begun_by_this_thread(&self) -> bool {
        self.thread == thread::current().id()
    }

    /// Invalidates the capture after a prohibited call.
    pub fn invalidate(&mut self) {
        self.invalid = true;
    }

    /// The newest recorded operation.
    pub fn last_operation(&self) -> Option<&T> {
        self.ops.last()
    }

    /// Records one operation of the stream.
    pub fn record_operation(&mut self, op: T) -> Result<(), &'static str> {
        if self.invalid {
            return Err("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
        }
        self.ops.push(op);
        Ok(())
    }

    /// Ends the capture and returns its operations. As in cuStreamEndCapture, this is an error after a prohibited
    /// call.
    pub fn end_and_take_operations(self) -> Result<Vec<T>, &'static str> {
        if self.invalid { Err("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED") } else { Ok(self.ops) }
    }
}
