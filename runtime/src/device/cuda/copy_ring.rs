//! Small copies to the host that nobody waits for yet: a piece of page-locked memory and an event each, used again.
#![allow(unsafe_code)]

use std::sync::Arc;

use reel_kernels::cuda::driver::{Event, Stream};
use reel_kernels::cuda::{CudaError, Driver};

/// Bytes of a piece: the tokens and log-probabilities of a step have room many times over.
pub(super) const PIECE: usize = 64 << 10;

/// Pieces, each free or under a copy that somebody will wait for.
pub(super) struct CopyRing {
    driver: Arc<dyn Driver>,
    stream: Stream,
    pieces: Vec<Piece>,
}

struct Piece {
    memory: *mut u8,
    event: Event,
    taken: bool,
}

// SAFETY: the memory is this value's own.
unsafe impl Send for CopyRing {}

impl CopyRing {
    pub fn new(driver: Arc<dyn Driver>, stream: Stream) -> CopyRing {
        CopyRing { driver, stream, pieces: Vec::new() }
    }

    /// Asks for a copy of at most [`PIECE`] bytes behind what was asked of the stream; a handle to wait for it by.
    ///
    /// # Safety
    /// The range is live memory of the GPU.
    pub unsafe fn start(&mut self, from: u64, bytes: usize) -> Result<u64, CudaError> {
        debug_assert!(bytes <= PIECE);
        let at = match self.pieces.iter().position(|p| !p.taken) {
            Some(at) => at,
            None => {
                let memory = self.driver.alloc_host(PIECE)?;
                // SAFETY: nothing uses the memory yet.
                let event = self.driver.event().inspect_err(|_| unsafe { self.driver.free_host(memory) })?;
                self.pieces.push(Piece { memory, event, taken: false });
                self.pieces.len() - 1
            }
        };
        let piece = &mut self.pieces[at];
        // A piece that was given up may have its copy before it still; this one comes behind it on the same stream.
        // SAFETY: the caller's promise; the piece has room and stays until the event is reached.
        unsafe {
            self.driver.copy_out(piece.memory, from, bytes, self.stream)?;
            self.driver.record(piece.event, self.stream)?;
        }
        piece.taken = true;
        Ok(at as u64)
    }

    /// Waits for a copy and takes its bytes; the piece is free whatever comes of it.
    pub fn finish(&mut self, handle: u64, to: &mut [u8]) -> Result<(), CudaError> {
        let piece = &mut self.pieces[handle as usize];
        piece.taken = false;
        // SAFETY: the event was recorded behind the copy; the bytes are read after it was reached.
        unsafe {
            self.driver.wait(piece.event)?;
            std::ptr::copy_nonoverlapping(piece.memory, to.as_mut_ptr(), to.len().min(PIECE));
        }
        Ok(())
    }

    /// Nobody waits for the copy any more.
    pub fn forget(&mut self, handle: u64) {
        self.pieces[handle as usize].taken = false;
    }
}

impl Drop for CopyRing {
    fn drop(&mut self) {
        // SAFETY: after the wait no copy uses the memory. After a failed kernel the wait fails too, which nobody can help.
        unsafe {
            if !self.pieces.is_empty() {
                let _ = self.driver.synchronize(self.stream);
            }
            for piece in self.pieces.drain(..) {
                self.driver.end_event(piece.event);
                self.driver.free_host(piece.memory);
            }
        }
    }
}
