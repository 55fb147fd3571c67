//! Launches that are recorded once and asked for again as one: a CUDA graph on cuda, the list of launches elsewhere.
//!
//! Recorded launches keep their addresses, so a recording keeps the memory that was allocated while it was made, and nothing else is ever
//! put there. Nothing that changes from one replay to the next may be in a launch's parameters: it has to lie in device memory.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use reel_kernels::{Cost, Launch};

use super::{Category, Device};
use crate::error::{Result, RuntimeError};

/// Recorded launches; [`Device::replay`] asks for them.
pub struct CapturedGraph {
    /// The device's own form, where it has one. Before the memory that it uses.
    native: Option<Native>,
    launches: Vec<Launch>,
    memory: Arc<Private>,
    /// What else the launches use.
    _keep: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for CapturedGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} launches, {} bytes", self.launches.len(), self.memory.bytes())
    }
}

impl CapturedGraph {
    /// Launches of one replay.
    pub fn launches(&self) -> usize {
        self.launches.len()
    }

    /// What one replay costs, as its launches declare it.
    pub fn cost(&self) -> Cost {
        let sum = |f: fn(&Cost) -> f64| self.launches.iter().map(|launch| f(&launch.cost())).sum();
        Cost { flops: sum(|c| c.flops), bytes: sum(|c| c.bytes) }
    }

    /// Bytes of device memory that it keeps.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// A backend's form of a recording.
struct Native {
    device: Device,
    handle: u64,
}

impl Drop for Native {
    fn drop(&mut self) {
        self.device.0.backend.end_replays(self.handle);
    }
}

/// The memory of a recording: blocks that are given back are taken again by allocations of the same size, and leave with the recording.
pub(super) struct Private {
    /// Tells it from others.
    id: u64,
    device: Device,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    all: Vec<(u64, usize, Category)>,
    free: HashMap<usize, Vec<u64>>,
}

impl Private {
    fn new(device: &Device) -> Private {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Private { id: NEXT.fetch_add(1, Ordering::Relaxed), device: device.clone(), blocks: Mutex::default() }
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> usize {
        self.blocks().all.iter().map(|b| b.1).sum()
    }

    /// The last block of this size that was given back.
    fn take(&self, bytes: usize) -> Option<u64> {
        self.blocks().free.get_mut(&bytes)?.pop()
    }

    /// A new block of the device joins.
    fn add(&self, at: u64, bytes: usize, category: Category) {
        self.blocks().all.push((at, bytes, category));
    }

    /// A block is free again, for this recording.
    pub fn give(&self, at: u64, bytes: usize) {
        self.blocks().free.entry(bytes).or_default().push(at);
    }
}

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "memory of recording {}", self.id)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        for (at, bytes, category) in std::mem::take(&mut self.blocks().all) {
            self.device.0.memory.sub(category, bytes);
            self.device.0.backend.free(at, bytes);
        }
    }
}

/// A recording under way on a device.
pub(super) struct Recorder {
    thread: ThreadId,
    memory: Arc<Private>,
    /// The first pass finds out what memory is needed and makes launches ready; the second records them.
    second: bool,
    launches: Vec<Launch>,
}

/// Ends a recording however the closure ends.
struct Pass<'a>(&'a Device);

impl Pass<'_> {
    fn end(&self) -> Vec<Launch> {
        self.0.recorder().take().map_or_else(Vec::new, |r| r.launches)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

impl Device {
    /// Records the launches of `f` without running them. `f` is called twice and must ask for the same each time; it may not copy from or to
    /// the host. `keep` is whatever else the launches use and must live as long: weights, caches, state.
    ///
    /// # Errors
    /// What `f` reports; a copy or a second recording inside of it; what the device reports.
    pub fn record<E: From<RuntimeError>>(
        &self,
        keep: impl Any + Send + Sync,
        f: impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<CapturedGraph, E> {
        let memory = Arc::new(Private::new(self));
        let first = self.pass(&memory, false)?;
        f()?;
        first.end();
        let second = self.pass(&memory, true)?;
        let native = self.0.backend.begin_recording()?;
        let done = f();
        // The end comes in any case: a stream that goes on recording is of no use to anybody.
        let handle = if native { Some(self.0.backend.end_recording()) } else { None };
        let launches = second.end();
        let native = match (done, handle) {
            (Err(e), Some(Ok(handle))) => {
                self.0.backend.end_replays(handle);
                return Err(e);
            }
            (Err(e), _) => return Err(e),
            (Ok(()), handle) => handle.transpose()?.map(|handle| Native { device: self.clone(), handle }),
        };
        Ok(CapturedGraph { native, launches, memory, _keep: Box::new(keep) })
    }

    /// Asks for the launches of a recording of this device again, in order.
    ///
    /// # Errors
    /// A recording of another device; what the device reports.
    pub fn replay(&self, recording: &CapturedGraph) -> Result<()> {
        if !Arc::ptr_eq(&self.0, &recording.memory.device.0) {
            return Err(RuntimeError::Device("a recording is replayed on the device that it was made on".into()));
        }
        match &recording.native {
            // A profile wants the time of each launch.
            Some(native) if !self.0.profile.active() => self.0.backend.replay(native.handle),
            _ => recording.launches.iter().try_for_each(|launch| self.launch(launch)),
        }
    }

    /// [`replay`](Self::replay) of several recordings, none of which uses what another writes: on the cpu a thread takes one from its first
    /// launch to its last, elsewhere they follow each other.
    ///
    /// # Errors
    /// As for one.
    pub fn replay_together(&self, recordings: &[CapturedGraph]) -> Result<()> {
        let ours = recordings.iter().all(|r| Arc::ptr_eq(&self.0, &r.memory.device.0) && r.native.is_none());
        if !ours || recordings.len() < 2 || self.0.profile.active() {
            return recordings.iter().try_for_each(|r| self.replay(r));
        }
        let lists: Vec<&[Launch]> = recordings.iter().map(|r| &r.launches[..]).collect();
        self.0.backend.launch_lists(&lists)
    }

    fn recorder(&self) -> MutexGuard<'_, Option<Recorder>> {
        self.0.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, memory: &Arc<Private>, second: bool) -> Result<Pass<'_>> {
        let mut recorder = self.recorder();
        if recorder.is_some() {
            return Err(RuntimeError::Device("a recording is under way already; end it first".into()));
        }
        let thread = thread::current().id();
        *recorder = Some(Recorder { thread, memory: memory.clone(), second, launches: Vec::new() });
        Ok(Pass(self))
    }

    /// A block for an allocation inside of a recording, and the memory that it belongs to.
    pub(super) fn alloc_recorded(&self, bytes: usize, category: Category) -> Option<Result<(u64, Arc<Private>)>> {
        let (memory, second) = {
            let recorder = self.recorder();
            let r = recorder.as_ref().filter(|r| r.thread == thread::current().id())?;
            (r.memory.clone(), r.second)
        };
        if let Some(at) = memory.take(bytes) {
            return Some(Ok((at, memory)));
        }
        if second {
            let what = format!("recording: {bytes} bytes of {} that its first pass did not need", category.name());
            return Some(Err(RuntimeError::Device(what)));
        }
        let Some(at) = self.0.backend.alloc(bytes) else { return Some(Err(self.no_room(bytes, category))) };
        self.0.memory.add(category, bytes);
        memory.add(at, bytes, category);
        Some(Ok((at, memory)))
    }

    /// Takes a launch into the recording under way; false: there is none, the launch is to run.
    pub(super) fn recorded(&self, launch: &Launch) -> Result<bool> {
        let mut recorder = self.recorder();
        let Some(r) = recorder.as_mut() else { return Ok(false) };
        if r.thread != thread::current().id() {
            return Err(RuntimeError::Device(format!("{}: launched while another thread records", launch.name())));
        }
        if r.second {
            r.launches.push(launch.clone());
            self.0.backend.take_recorded(launch)?;
        } else {
            self.0.backend.prepare(launch)?;
        }
        Ok(true)
    }

    /// Refuses what a recording cannot hold.
    pub(super) fn not_recording(&self, what: &str) -> Result<()> {
        match self.recorder().as_ref() {
            None => Ok(()),
            Some(_) => Err(RuntimeError::Device(format!("{what} inside of a recording, which holds launches only"))),
        }
    }
}

/// What a backend that records keeps of its recordings, by handle.
pub(super) struct Kept<T> {
    next: u64,
    by_handle: BTreeMap<u64, T>,
}

impl<T> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept { next: 0, by_handle: BTreeMap::new() }
    }
}

impl<T> Kept<T> {
    /// A handle for it.
    pub fn keep(&mut self, what: T) -> u64 {
        self.next += 1;
        self.by_handle.insert(self.next, what);
        self.next
    }

    /// What the handle names.
    pub fn get(&self, handle: u64) -> Option<&T> {
        self.by_handle.get(&handle)
    }

    /// What the handle named, no longer kept.
    pub fn remove(&mut self, handle: u64) -> Option<T> {
        self.by_handle.remove(&handle)
    }
}

#[cfg(test)]
mod tests;
