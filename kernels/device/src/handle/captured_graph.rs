//! Captured graphs: a sequence of launches that is captured once and replayed as a whole. On device `cuda` a captured
//! graph is a CUDA graph, on other devices a list of launches.
//!
//! ```text
//! capture(f):
//!     first pass    call f without running its launches: allocate memory, compile kernels, choose matmul algorithms
//!     second pass   call f again: its allocations get the same memory, its launches are captured
//! replay(graph):    enqueue all captured launches; on cuda that is one call of the driver
//! ```
//!
//! Captured launches keep their parameters and addresses. So a graph owns the memory that was allocated during its
//! capture, and no other tensor gets this memory. A value that changes between replays must be in device memory, not
//! in a launch's parameters.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use super::Device;
use crate::Launch;
use crate::error::{DeviceError, Result};
use crate::memory::MemoryCategory;
use reel_support::ranges::{LaunchOrigin, RangeName, current_origin, in_layer, range, with_origin};

/// Captured launches, which [`Device::replay`] enqueues again.
pub struct CapturedGraph {
    /// The native graph, on a device that has native graphs. Dropped before the memory that the graph uses.
    native: Option<NativeGraph>,
    /// The launches, each with the op and layer that it belongs to.
    launches: Vec<(Launch, LaunchOrigin)>,
    memory: Arc<GraphMemory>,
    /// Owns the other memory that the launches use: weights, caches, state.
    _keep: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for CapturedGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} launches, {} bytes", self.launches.len(), self.memory.bytes())
    }
}

impl CapturedGraph {
    /// The number of launches of one replay.
    pub fn launch_count(&self) -> usize {
        self.launches.len()
    }

    /// Bytes of device memory that the graph owns.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// A backend's handle of a native graph; dropping it destroys the graph.
struct NativeGraph {
    device: Device,
    handle: u64,
}

impl Drop for NativeGraph {
    fn drop(&mut self) {
        self.device.0.backend.destroy_graph(self.handle);
    }
}

/// The memory of a captured graph. During the capture, a freed block is reused for allocations of the same size. All
/// blocks are freed together with the graph.
pub(super) struct GraphMemory {
    /// A number that is unique in the process, for debug output.
    id: u64,
    device: Device,
    blocks: Mutex<GraphBlocks>,
}

#[derive(Default)]
struct GraphBlocks {
    all: Vec<Block>,
    free: HashMap<usize, Vec<u64>>,
}

struct Block {
    at: u64,
    bytes: usize,
    category: MemoryCategory,
}

impl GraphMemory {
    fn new(device: &Device) -> GraphMemory {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        GraphMemory { id, device: device.clone(), blocks: Mutex::default() }
    }

    fn blocks(&self) -> MutexGuard<'_, GraphBlocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> usize {
        self.blocks().all.iter().map(|block| block.bytes).sum()
    }

    /// Takes the most recently freed block of this size, if there is one.
    fn take_free_block(&self, bytes: usize) -> Option<u64> {
        self.blocks().free.get_mut(&bytes)?.pop()
    }

    /// Allocates a block. `None` if the device is out of memory.
    fn add_block(&self, bytes: usize, category: MemoryCategory) -> Option<u64> {
        let at = self.device.0.backend.alloc(bytes)?;
        self.device.0.memory.add(category, bytes);
        self.blocks().all.push(Block { at, bytes, category });
        Some(at)
    }

    /// Marks a block as free: later allocations of the same capture may take it.
    pub fn free_block(&self, addr: u64, bytes: usize) {
        self.blocks().free.entry(bytes).or_default().push(addr);
    }
}

impl std::fmt::Debug for GraphMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "memory of captured graph {}", self.id)
    }
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        for block in std::mem::take(&mut self.blocks().all) {
            self.device.0.memory.subtract(block.category, block.bytes);
            self.device.0.backend.free(block.at, block.bytes);
        }
    }
}

/// The state of a capture in progress on a device.
pub(super) struct CaptureState {
    thread: ThreadId,
    memory: Arc<GraphMemory>,
    /// False in the first pass, which allocates memory and prepares launches. True in the second pass, which captures
    /// the launches.
    second: bool,
    launches: Vec<(Launch, LaunchOrigin)>,
}

/// A guard for one pass of a capture. Dropping it ends the pass, even after an error or a panic.
struct CapturePass<'a>(&'a Device);

impl CapturePass<'_> {
    fn end(&self) -> Vec<(Launch, LaunchOrigin)> {
        self.0.current_capture().take().map_or_else(Vec::new, |r| r.launches)
    }
}

impl Drop for CapturePass<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

impl Device {
    /// Captures the launches of `f` without running them. `f` is called twice. Both calls must make the same
    /// allocations and launches, and must not copy from or to the host. `keep` owns the other memory that the
    /// launches use: weights, caches, state.
    ///
    /// # Errors
    /// `f` fails, copies from or to the host, or captures another graph; the device is out of memory.
    pub fn capture<E: From<DeviceError>>(
        &self,
        keep: impl Any + Send + Sync,
        f: impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<CapturedGraph, E> {
        let memory = Arc::new(GraphMemory::new(self));
        let first = self.pass(&memory, false)?;
        f()?;
        first.end();
        let second = self.pass(&memory, true)?;
        let native = self.0.backend.begin_capture()?;
        let done = f();
        // The native capture must end after an error too, because a stream that is still capturing refuses all other
        // work.
        let handle = if native { Some(self.0.backend.end_capture()) } else { None };
        let launches = second.end();
        let native = match (done, handle) {
            (Err(e), Some(Ok(handle))) => {
                self.0.backend.destroy_graph(handle);
                return Err(e);
            }
            (Err(e), _) => return Err(e),
            (Ok(()), handle) => handle.transpose()?.map(|handle| NativeGraph { device: self.clone(), handle }),
        };
        Ok(CapturedGraph { native, launches, memory, _keep: Box::new(keep) })
    }

    /// Enqueues the launches of a captured graph, in order.
    ///
    /// # Errors
    /// The graph belongs to another device; a launch fails.
    pub fn replay(&self, graph: &CapturedGraph) -> Result<()> {
        if !Arc::ptr_eq(&self.0, &graph.memory.device.0) {
            return Err(DeviceError::Failed(
                "captured graph: belongs to another device; replay it on the device that captured it".into(),
            ));
        }
        let _range = range(RangeName::Task("captured graph"));
        match &graph.native {
            Some(native) if !self.0.profile.needs_single_launches() => self.0.backend.replay_graph(native.handle),
            // A trace gets one range for each layer, not one for each launch.
            _ => graph.launches.chunk_by(|(_, a), (_, b)| a.layer == b.layer).try_for_each(|calls| {
                let layer = calls.first().and_then(|(_, origin)| origin.layer);
                let _layer = layer.map(|layer| in_layer(layer.stack, layer.index));
                calls.iter().try_for_each(|(launch, origin)| {
                    let _origin = with_origin(*origin);
                    self.launch(launch)
                })
            }),
        }
    }

    fn current_capture(&self) -> MutexGuard<'_, Option<CaptureState>> {
        self.0.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, memory: &Arc<GraphMemory>, second: bool) -> Result<CapturePass<'_>> {
        let mut capture = self.current_capture();
        if capture.is_some() {
            return Err(DeviceError::Failed(
                "graph capture: another capture is in progress on this device; end it first".into(),
            ));
        }
        let thread = thread::current().id();
        *capture = Some(CaptureState { thread, memory: memory.clone(), second, launches: Vec::new() });
        Ok(CapturePass(self))
    }

    /// Allocates a block during a capture, and returns the block with the graph memory that owns it. Returns `None`
    /// if this thread is not capturing.
    pub(super) fn alloc_in_graph_memory(
        &self,
        bytes: usize,
        category: MemoryCategory,
    ) -> Option<Result<(u64, Arc<GraphMemory>)>> {
        let (memory, second) = {
            let capture = self.current_capture();
            let r = capture.as_ref().filter(|r| r.thread == thread::current().id())?;
            (r.memory.clone(), r.second)
        };
        if let Some(at) = memory.take_free_block(bytes) {
            return Some(Ok((at, memory)));
        }
        if second {
            let what = format!(
                "graph capture: the second pass allocates {bytes} bytes of {} that the first pass did not allocate; allocate the same memory in both passes",
                category.name()
            );
            return Some(Err(DeviceError::Failed(what)));
        }
        let at = memory.add_block(bytes, category).ok_or_else(|| self.out_of_memory(bytes, category));
        Some(at.map(|at| (at, memory)))
    }

    /// Adds a launch to the capture in progress. Returns false if no capture is in progress: the caller must then run
    /// the launch.
    pub(super) fn capture_if_active(&self, launch: &Launch) -> Result<bool> {
        let mut capture = self.current_capture();
        let Some(r) = capture.as_mut() else { return Ok(false) };
        if r.thread != thread::current().id() {
            return Err(DeviceError::Failed(format!(
                "{}: launched while another thread captures a graph; wait until the capture has ended",
                launch.name()
            )));
        }
        if r.second {
            r.launches.push((launch.clone(), current_origin()));
            self.0.backend.capture_launch(launch)?;
        } else {
            self.0.backend.prepare_capture(launch)?;
        }
        Ok(true)
    }

    /// Returns an error if a graph is being captured. `operation` names the operation that the caller wants to do and
    /// that a graph cannot contain.
    pub(super) fn check_not_capturing(&self, operation: &str) -> Result<()> {
        match self.current_capture().as_ref() {
            None => Ok(()),
            Some(_) => Err(DeviceError::Failed(format!(
                "graph capture: {operation} is not possible here; a captured graph can only contain launches"
            ))),
        }
    }
}
