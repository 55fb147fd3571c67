//! Helpers for the fake driver's state: which address ranges have memory, and which work is on a stream.

use super::capture::Capture;
use super::{Op, Queue, State, failed};
use crate::cuda::error::CudaError;
use crate::cuda::types::StreamHandle;

impl State {
    pub(super) fn new_handle(&mut self) -> usize {
        self.handles += 1;
        self.handles
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated.values().map(|&b| b as u64).sum::<u64>() + self.backed.values().map(|b| b.0 as u64).sum::<u64>()
    }

    /// Tells whether the whole range is allocated or has mapped memory.
    pub(super) fn is_backed(&self, at: u64, bytes: usize) -> bool {
        let end = at.saturating_add(bytes as u64);
        if self.allocated.range(..=at).next_back().is_some_and(|(s, b)| end <= s + *b as u64) {
            return true;
        }
        let mut from = at;
        while from < end {
            match self.backed.range(..=from).next_back() {
                Some((s, (b, _))) if from < s + *b as u64 => from = s + *b as u64,
                _ => return false,
            }
        }
        true
    }

    pub(super) fn enqueue(&mut self, call: &str, stream: StreamHandle, op: Op) -> Result<(), CudaError> {
        // Work on the legacy stream waits for all other streams. A capture does not allow this.
        if stream.0 == 0 {
            let captures = self.streams.values_mut().filter_map(|q| q.capture.as_mut());
            let prohibited = captures.map(Capture::invalidate).count() > 0;
            let code = if prohibited { "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT" } else { "CUDA_ERROR_INVALID_HANDLE" };
            return Err(failed(call, code));
        }
        // Work on a stream outside the capture would run now and not when the graph is launched, although the graph
        // may depend on this work.
        let outside = |(&s, q): (&usize, &Queue)| {
            s != stream.0 && q.capture.as_ref().is_some_and(Capture::was_begun_by_this_thread)
        };
        let elsewhere = self.streams.iter().any(outside);
        let queue = self.streams.get_mut(&stream.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        match &mut queue.capture {
            Some(capture) => return capture.record_operation(op).map_err(|code| failed(call, code)),
            None => {
                self.overlap.count_operation(stream.0, &op);
                queue.work.push_back(op);
                queue.enqueued += 1;
            }
        }
        if elsewhere {
            self.add_violation(format!("{call} on a stream outside the capture in progress"));
        }
        Ok(())
    }

    pub(super) fn has_pending_work(&self) -> bool {
        self.streams.values().any(|q| !q.work.is_empty())
    }

    pub(super) fn add_violation(&mut self, what: String) {
        self.violations.push(what);
    }
}
