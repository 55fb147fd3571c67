//! Reads the body of a request within limits of size, time and memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::api::{ApiError, REQUEST_LOCATION};

/// Number of bodies of maximum size that may be in memory at the same time.
const MAX_BODIES: usize = 16;

/// So many KiB of freed bodies are returned to the system.
const RETURNED_KIB: usize = 8 << 10;

/// The memory for bodies that are being read or encoded, and for the values parsed from them.
#[derive(Clone, Debug)]
pub(crate) struct BodyMemory {
    max_bytes: usize,
    read_timeout: Duration,
    /// Memory for bodies of at most 1/64 of the maximum size with their values, so that large bodies hold up no small
    /// ones.
    small: KibPool,
    large: KibPool,
    /// The most KiB in use since [`BodyMemory::has_freed_much`] was last true.
    peak_kib: Arc<AtomicUsize>,
}

/// A number of KiB, with a permit for each.
#[derive(Clone, Debug)]
struct KibPool {
    all: usize,
    free: Arc<Semaphore>,
}

impl KibPool {
    fn new(kib: usize) -> Self {
        let all = kib.clamp(1, Semaphore::MAX_PERMITS);
        Self { all, free: Arc::new(Semaphore::new(all)) }
    }

    fn used(&self) -> usize {
        self.all - self.free.available_permits()
    }
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
    /// Creates the memory for 16 bodies of `max_bytes` bytes, and a quarter of it for small bodies. `max_bytes` is the
    /// maximum size of a body; each MiB of a body may take `read_timeout`.
    pub(crate) fn new(max_bytes: usize, read_timeout: Duration) -> Self {
        let kib = (max_bytes >> 10).max(1).saturating_mul(MAX_BODIES);
        let (small, large) = (KibPool::new(kib / 4), KibPool::new(kib));
        Self { max_bytes, read_timeout, small, large, peak_kib: Arc::default() }
    }

    /// Whether much memory has become free since the last time that this was true.
    pub(crate) fn has_freed_much(&self) -> bool {
        let used = self.used_kib();
        let is_much = self.peak_kib.load(Ordering::Relaxed) >= used + RETURNED_KIB;
        if is_much {
            self.peak_kib.store(used, Ordering::Relaxed);
        }
        is_much
    }

    fn used_kib(&self) -> usize {
        self.small.used() + self.large.used()
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
    let begun = Instant::now();
    let mut read = RequestBody { bytes: Vec::new(), memory: None };
    loop {
        let end = begun + memory.read_timeout * (1 + (read.bytes.len() >> 20) as u32);
        let Ok(frame) = timeout_at(end, body.frame()).await else {
            let seconds = memory.read_timeout.as_secs();
            let message = format!("{REQUEST_LOCATION}: its body is too slow; send each MiB within {seconds} s");
            return Err(ApiError::unreadable_body(StatusCode::REQUEST_TIMEOUT, message));
        };
        let Some(frame) = frame else { return Ok(read) };
        let frame = frame.map_err(|e| {
            let message = format!("{REQUEST_LOCATION}: its body is incomplete or damaged ({e}); send it again");
            ApiError::unreadable_body(StatusCode::BAD_REQUEST, message)
        })?;
        // Ignores trailers, the only other kind of frame.
        let Ok(data) = frame.into_data() else { continue };
        if read.bytes.len() + data.len() > memory.max_bytes {
            return Err(memory.too_large());
        }
        read.append(&data, memory)?;
    }
}

impl RequestBody {
    /// Takes the memory for the values parsed from this body: in all `bytes` bytes, but at most a quarter of the whole
    /// memory, so that every body can be parsed when no other is held.
    pub(crate) fn reserve_values(&mut self, bytes: usize, all: &BodyMemory) -> Result<(), ApiError> {
        self.reserve(bytes.min(all.large.all * 1024 / 4), all)
    }

    fn append(&mut self, data: &[u8], all: &BodyMemory) -> Result<(), ApiError> {
        self.reserve(self.bytes.len() + data.len(), all)?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// Takes memory until `bytes` bytes are held.
    fn reserve(&mut self, bytes: usize, all: &BodyMemory) -> Result<(), ApiError> {
        let pool = if bytes > all.max_bytes / 64 { &all.large.free } else { &all.small.free };
        let held = self.memory.as_ref().filter(|memory| Arc::ptr_eq(memory.semaphore(), pool));
        let missing = bytes.div_ceil(1024).saturating_sub(held.map_or(0, OwnedSemaphorePermit::num_permits));
        let more = u32::try_from(missing).ok().and_then(|n| pool.clone().try_acquire_many_owned(n).ok());
        let more = more.ok_or_else(|| {
            ApiError::too_many_requests("too much data of other requests is being read; try again later")
        })?;
        all.peak_kib.fetch_max(all.used_kib(), Ordering::Relaxed);
        match &mut self.memory {
            Some(memory) if Arc::ptr_eq(memory.semaphore(), pool) => memory.merge(more),
            // A body that has become large returns the memory for small ones.
            memory => *memory = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Takes the memory for a body of `bytes` bytes.
    fn held(all: &BodyMemory, bytes: usize) -> Option<RequestBody> {
        let mut body = RequestBody { bytes: Vec::new(), memory: None };
        body.reserve(bytes, all).ok()?;
        Some(body)
    }

    #[test]
    fn large_bodies_leave_the_memory_for_small_ones() {
        let all = BodyMemory::new(64 * MIB, Duration::from_secs(1));
        let large: Vec<RequestBody> = (0..17).map_while(|_| held(&all, 64 * MIB)).collect();
        let small: Vec<RequestBody> = (0..300).map_while(|_| held(&all, MIB)).collect();
        assert_eq!((large.len(), small.len()), (16, 256));
        drop(large);
        // A small body that becomes large returns the memory for small ones.
        let mut grown = small;
        grown[0].reserve(2 * MIB, &all).unwrap();
        assert!(held(&all, MIB).is_some());
    }

    #[test]
    fn values_take_memory_and_every_body_can_be_parsed_alone() {
        for max_bytes in [1000, MIB, 64 * MIB] {
            let all = BodyMemory::new(max_bytes, Duration::from_secs(1));
            let mut alone = held(&all, max_bytes).unwrap();
            alone.reserve_values(usize::MAX / 2, &all).unwrap();
            let others = (0..17).map_while(|_| held(&all, max_bytes)).collect::<Vec<_>>();
            assert!(others.len() < 16, "{max_bytes}");
        }
    }

    #[test]
    fn freed_memory_is_found_while_other_bodies_are_held() {
        let all = BodyMemory::new(64 * MIB, Duration::from_secs(1));
        let (first, _second) = (held(&all, 32 * MIB), held(&all, 32 * MIB));
        assert!(!all.has_freed_much());
        drop(first);
        assert!(all.has_freed_much() && !all.has_freed_much());
    }
}
