//! Reads the body of a request within limits of size, time and memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::stall::StallBudget;
use crate::api::{ApiError, REQUEST_LOCATION};

/// Number of bodies of maximum size that may be in memory at the same time.
const MAX_BODIES: usize = 16;

/// A body of more KiB than this is large.
const LARGE_KIB: usize = 1024;

/// The memory for bodies that are being read or encoded.
#[derive(Clone, Debug)]
pub(crate) struct BodyMemory {
    max_bytes: usize,
    read_timeout: Duration,
    all_kib: usize,
    /// One permit for each KiB.
    free_kib: Arc<Semaphore>,
    /// Whether a large body has come since [`BodyMemory::is_free_again`] was last true.
    had_large: Arc<AtomicBool>,
}

/// The body of a request.
#[derive(Debug)]
pub(crate) struct RequestBody {
    pub(crate) bytes: Vec<u8>,
    /// The permit for the memory of the body, or of the values parsed from it. Dropping the permit frees this memory
    /// for other bodies.
    pub(crate) memory: Option<OwnedSemaphorePermit>,
}

impl BodyMemory {
    /// Creates the memory for 16 bodies of `max_bytes` bytes. `max_bytes` is the maximum size of a body; a body may
    /// stop making progress for at most `read_timeout`.
    pub(crate) fn new(max_bytes: usize, read_timeout: Duration) -> Self {
        let kib = (max_bytes >> 10).max(1).saturating_mul(MAX_BODIES).min(Semaphore::MAX_PERMITS);
        Self {
            max_bytes,
            read_timeout,
            all_kib: kib,
            free_kib: Arc::new(Semaphore::new(kib)),
            had_large: Arc::default(),
        }
    }

    /// Whether large bodies were held since the last time that this was true, and no body is held now.
    pub(crate) fn is_free_again(&self) -> bool {
        self.free_kib.available_permits() == self.all_kib && self.had_large.swap(false, Ordering::Relaxed)
    }

    fn too_large(&self) -> ApiError {
        let message = format!(
            "{REQUEST_LOCATION}: its body is larger than {} bytes; send less media, or raise --max-body",
            self.max_bytes
        );
        ApiError::unreadable_body(StatusCode::PAYLOAD_TOO_LARGE, message)
    }
}

/// Reads the whole body of a request. If the announced length (`Content-Length`) is too large, the body is refused
/// before it is read.
///
/// # Errors
/// The body is too large, too slow or incomplete, or other bodies take all the memory.
pub(crate) async fn read_body(memory: &BodyMemory, mut body: Body) -> Result<RequestBody, ApiError> {
    if body.size_hint().lower() > memory.max_bytes as u64 {
        return Err(memory.too_large());
    }
    let mut budget = StallBudget::new(memory.read_timeout);
    let mut read = RequestBody { bytes: Vec::new(), memory: None };
    loop {
        let begun = Instant::now();
        let Ok(frame) = timeout(budget.remaining_time(), body.frame()).await else {
            let message = format!("{REQUEST_LOCATION}: its body makes no progress; send it faster than 1 KiB/s");
            return Err(ApiError::unreadable_body(StatusCode::REQUEST_TIMEOUT, message));
        };
        let Some(frame) = frame else { return Ok(read) };
        let frame = frame.map_err(|e| {
            let message = format!("{REQUEST_LOCATION}: its body is incomplete or damaged ({e}); send it again");
            ApiError::unreadable_body(StatusCode::BAD_REQUEST, message)
        })?;
        // Ignores trailers, the only other kind of frame.
        let Ok(data) = frame.into_data() else { continue };
        budget.record_transfer(begun.elapsed(), data.len());
        if read.bytes.len() + data.len() > memory.max_bytes {
            return Err(memory.too_large());
        }
        read.append(&data, memory)?;
    }
}

impl RequestBody {
    fn append(&mut self, data: &[u8], all: &BodyMemory) -> Result<(), ApiError> {
        let length = self.bytes.len() + data.len();
        let held = self.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = length.div_ceil(1024).saturating_sub(held);
        let more = u32::try_from(missing).ok().and_then(|n| all.free_kib.clone().try_acquire_many_owned(n).ok());
        let more = more.ok_or_else(|| {
            ApiError::too_many_requests("too much data of other requests is being read; try again later")
        })?;
        if held + missing > LARGE_KIB {
            all.had_large.store(true, Ordering::Relaxed);
        }
        match &mut self.memory {
            Some(memory) => memory.merge(more),
            None => self.memory = Some(more),
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}
