//! The calls of the fake driver, and the documented rules that each call enforces.

use std::sync::Arc;

use reel_sim::program::Program;
use reel_sim::tensor_map::TensorMap;

use super::capture::Capture;
use super::execute::RunUntil;
use super::nccl::FakeNccl;
use super::products::FakeBlas;
use super::transfers::BlockedTransfer;
use super::{EnqueuedLaunch, EventRecord, FakeDriver, GRANULARITY, Inner, LoadedFunction, Op, Queue, failed, invalid};
use crate::compile::driver_code;
use crate::cuda::blas::Blas;
use crate::cuda::driver::Driver;
use crate::cuda::error::CudaError;
use crate::cuda::nccl::Nccl;
use crate::cuda::rules;
use crate::cuda::types::{
    CompiledCode, EventHandle, FunctionAttributes, FunctionHandle, GpuProperties, GraphHandle, LaunchConfig,
    ModuleHandle, PhysicalMemoryHandle, StreamHandle,
};

// SAFETY (of each call below): the callers guarantee what `Driver` requires of them, and the calls need no more.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Driver for FakeDriver {
    fn properties(&self) -> &GpuProperties {
        &self.0.properties
    }

    fn memory_free(&self) -> Result<u64, CudaError> {
        Ok(self.0.properties.memory - self.0.state_unless_faulted("querying the free memory")?.allocated_bytes())
    }

    // cuMemAlloc: a size of 0 is CUDA_ERROR_INVALID_VALUE.
    fn alloc(&self, bytes: usize) -> Result<u64, CudaError> {
        let mut s = self.0.state_unless_capturing("allocating")?;
        if bytes == 0 {
            return Err(invalid("allocating 0 bytes"));
        }
        if s.allocated_bytes() + bytes as u64 > self.0.properties.memory {
            return Err(CudaError::OutOfMemory { bytes });
        }
        let at = s.memory.try_alloc_uninitialized(bytes).ok_or(CudaError::OutOfMemory { bytes })?;
        s.allocated.insert(at, bytes);
        Ok(at)
    }

    // cuMemFree: waits for all enqueued work. Freeing an address that `alloc` did not return is recorded as a
    // violation.
    unsafe fn free(&self, at: u64) {
        let waited = self.0.wait_for_all_streams("freeing GPU memory");
        let mut s = self.0.state();
        if let (Err(e), None) = (waited, &s.faulted) {
            s.add_violation(e.to_string());
        }
        if s.allocated.remove(&at).is_none() {
            s.add_violation(format!("freeing {at:#x}, which was not allocated"));
        }
        s.memory.free(at);
    }

    fn granularity(&self) -> usize {
        GRANULARITY
    }

    // cuMemAddressReserve: the size must be a multiple of the granularity.
    fn reserve(&self, bytes: usize) -> Result<u64, CudaError> {
        let mut s = self.0.state_unless_capturing("reserving")?;
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(invalid("reserving"));
        }
        let at = s.memory.try_alloc_uninitialized(bytes).ok_or(CudaError::OutOfMemory { bytes })?;
        s.reserved.insert(at, bytes);
        Ok(at)
    }

    // cuMemCreate, cuMemMap: address and size are multiples of the granularity, the range lies within one
    // reservation, and nothing is mapped there.
    unsafe fn map_memory(&self, at: u64, bytes: usize) -> Result<PhysicalMemoryHandle, CudaError> {
        let mut s = self.0.state_unless_capturing("mapping")?;
        let end = at + bytes as u64;
        let within = s.reserved.range(..=at).next_back().filter(|(r, b)| end <= *r + **b as u64);
        // On a GPU, reservations begin at multiples of the granularity. In the simulator they begin wherever it has
        // free addresses, so the offset within the reservation is checked.
        let inside = within.is_some_and(|(r, _)| (at - r).is_multiple_of(GRANULARITY as u64));
        let taken = s.backed.range(..end).next_back().is_some_and(|(b, (len, _))| b + *len as u64 > at);
        let even = bytes.is_multiple_of(GRANULARITY) && bytes > 0;
        if !inside || taken || !even {
            return Err(invalid("mapping"));
        }
        if s.allocated_bytes() + bytes as u64 > self.0.properties.memory {
            return Err(CudaError::OutOfMemory { bytes });
        }
        let handle = s.new_handle() as u64;
        s.backed.insert(at, (bytes, handle));
        Ok(PhysicalMemoryHandle(handle))
    }

    // cuMemUnmap: the range is one whole mapping, and no work that uses it may be running.
    unsafe fn unmap_memory(&self, at: u64, bytes: usize, backing: PhysicalMemoryHandle) {
        let mut s = self.0.state();
        if s.has_pending_work() && s.faulted.is_none() {
            s.add_violation(format!("unmapping {at:#x} while enqueued work has not run"));
        }
        if s.backed.get(&at) == Some(&(bytes, backing.0)) {
            s.backed.remove(&at);
        } else {
            s.add_violation(format!("unmapping {bytes} bytes at {at:#x}, which are not exactly one mapping"));
        }
    }

    // cuMemAddressFree: the range must be a whole reservation in which nothing is mapped.
    unsafe fn release(&self, at: u64, bytes: usize) {
        let mut s = self.0.state();
        let mapped = s.backed.range(at..at + bytes as u64).next().is_some();
        if mapped || s.reserved.get(&at) != Some(&bytes) {
            s.add_violation(format!(
                "releasing {bytes} bytes at {at:#x}, which are not a reservation or have mapped memory"
            ));
        }
        s.reserved.remove(&at);
        s.memory.free(at);
    }

    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        let mut s = self.0.state_unless_capturing("page-locking host memory")?;
        let mut words = vec![0u64; bytes.div_ceil(8)];
        let at = words.as_mut_ptr().cast::<u8>();
        s.host.insert(at as usize, words);
        Ok(at)
    }

    // cuMemFreeHost: the memory comes from cuMemHostAlloc, and copies that use it must be done.
    unsafe fn free_host(&self, at: *mut u8) {
        let mut s = self.0.state();
        let uses = |op: &Op, words: &Vec<u64>| match op {
            Op::CopyIn { from: host, .. } | Op::CopyOut { to: host, .. } => {
                (at as usize..at as usize + 8 * words.len()).contains(host)
            }
            _ => false,
        };
        let used = s.host.get(&(at as usize)).map(|w| s.streams.values().any(|q| q.work.iter().any(|op| uses(op, w))));
        match used {
            None => s.add_violation("freeing host memory that was not page-locked".into()),
            Some(true) if s.faulted.is_none() => s.add_violation("freeing host memory that a copy still uses".into()),
            Some(_) => {}
        }
        s.host.remove(&(at as usize));
    }

    fn stream(&self) -> Result<StreamHandle, CudaError> {
        let mut s = self.0.state_unless_faulted("creating a stream")?;
        let handle = s.new_handle();
        s.streams.insert(handle, Queue::default());
        Ok(StreamHandle(handle))
    }

    // cuStreamDestroy: work that is already enqueued on the stream still runs.
    unsafe fn destroy_stream(&self, stream: StreamHandle) {
        let waited = self.0.wait_for_stream("destroying a stream", stream.0, RunUntil::End);
        let mut s = self.0.state();
        if let (Err(e), None) = (waited, &s.faulted) {
            s.add_violation(e.to_string());
        }
        if s.streams.remove(&stream.0).is_none() {
            s.add_violation("destroying a stream that does not exist".into());
        }
    }

    // cuStreamSynchronize: prohibited for a stream that is being captured, from any thread.
    unsafe fn synchronize(&self, stream: StreamHandle) -> Result<(), CudaError> {
        let mut s = self.0.state_unless_capturing("running the enqueued work")?;
        if let Some(capture) = s.streams.get_mut(&stream.0).and_then(|q| q.capture.as_mut()) {
            capture.invalidate();
            return Err(failed("running the enqueued work", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"));
        }
        if !s.streams.contains_key(&stream.0) {
            return Err(failed("running the enqueued work", "CUDA_ERROR_INVALID_HANDLE"));
        }
        drop(s);
        self.0.wait_for_stream("running the enqueued work", stream.0, RunUntil::End)
    }

    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        let mut s = self.0.state_unless_faulted("copying to the GPU")?;
        if !s.is_backed(to, bytes) {
            return Err(invalid("copying to the GPU"));
        }
        s.enqueue("copying to the GPU", stream, Op::CopyIn { to, from: from as usize, bytes })
    }

    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        let mut s = self.0.state_unless_faulted("copying from the GPU")?;
        if !s.is_backed(from, bytes) {
            return Err(invalid("copying from the GPU"));
        }
        s.enqueue("copying from the GPU", stream, Op::CopyOut { to: to as usize, from, bytes })
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        let mut s = self.0.state_unless_faulted("copying on the GPU")?;
        if !s.is_backed(from, bytes) || !s.is_backed(to, bytes) {
            return Err(invalid("copying on the GPU"));
        }
        if from < to + bytes as u64 && to < from + bytes as u64 {
            s.add_violation(format!("copying {bytes} bytes from {from:#x} to {to:#x}, which overlap"));
        }
        s.enqueue("copying on the GPU", stream, Op::Copy { to, from, bytes })
    }

    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        let mut s = self.0.state_unless_faulted("filling memory")?;
        if !s.is_backed(at, bytes) {
            return Err(invalid("filling memory"));
        }
        s.enqueue("filling memory", stream, Op::Fill { at, byte, bytes })
    }

    fn event(&self) -> Result<EventHandle, CudaError> {
        let mut s = self.0.state_unless_faulted("creating an event")?;
        let handle = s.new_handle();
        s.events.insert(handle, None);
        Ok(EventHandle(handle))
    }

    unsafe fn destroy_event(&self, event: EventHandle) {
        let mut s = self.0.state();
        if s.events.remove(&event.0).is_none() {
            s.add_violation("destroying an event that does not exist".into());
        }
    }

    unsafe fn record(&self, event: EventHandle, stream: StreamHandle) -> Result<(), CudaError> {
        let call = "recording an event";
        let mut s = self.0.state_unless_faulted(call)?;
        let ticket = s.new_handle() as u64;
        let captured = s.streams.get(&stream.0).is_some_and(|q| q.capture.is_some());
        let slot = s.events.get_mut(&event.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        *slot = Some(EventRecord { ticket, stream: stream.0, captured });
        s.enqueue(call, stream, Op::Record(ticket))
    }

    // cuEventSynchronize: an event that was never recorded counts as complete.
    unsafe fn wait(&self, event: EventHandle) -> Result<(), CudaError> {
        let call = "running the enqueued work";
        match self.0.recorded(call, event)? {
            Some((ticket, stream)) => self.0.wait_for_stream(call, stream, RunUntil::Event(ticket)),
            None => Ok(()),
        }
    }

    // cuEventQuery: an event that was never recorded counts as complete. If the host queries the same event twice and
    // enqueues nothing in between, it is polling. The second query then runs the work before the event, and a later
    // query returns true.
    unsafe fn is_complete(&self, event: EventHandle) -> Result<bool, CudaError> {
        let call = "querying an event";
        let Some((ticket, stream)) = self.0.recorded(call, event)? else { return Ok(true) };
        let mut s = self.0.state_unless_faulted(call)?;
        if s.reached.contains_key(&ticket) {
            s.overlap.end_transfers_before(ticket);
            return Ok(true);
        }
        let enqueued = s.streams.values().map(|queue| queue.enqueued).sum();
        if s.last_query.replace((ticket, enqueued)) != Some((ticket, enqueued)) {
            return Ok(false);
        }
        let blocked = self.0.run_stream(&mut s, stream, RunUntil::Event(ticket));
        drop(s);
        if let Some((group, rank)) = blocked.as_ref().map(BlockedTransfer::waiting_rank) {
            group.run_other_gpus(rank);
        }
        Ok(false)
    }

    // cuStreamWaitEvent: a captured stream must not wait for work outside the capture. A stream that is not captured
    // must not wait for work inside it.
    unsafe fn stream_wait(&self, stream: StreamHandle, event: EventHandle) -> Result<(), CudaError> {
        let call = "waiting for an event";
        let mut s = self.0.state_unless_faulted(call)?;
        let recorded = *s.events.get(&event.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let Some(EventRecord { ticket, captured, .. }) = recorded else { return Ok(()) };
        if captured != s.streams.get(&stream.0).is_some_and(|q| q.capture.is_some()) {
            return Err(failed(call, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"));
        }
        s.enqueue(call, stream, Op::Wait(ticket))
    }

    // cuEventElapsedTime: CUDA_ERROR_INVALID_HANDLE for an event that was never recorded, CUDA_ERROR_NOT_READY for
    // one that is not complete.
    unsafe fn elapsed(&self, start: EventHandle, end: EventHandle) -> Result<f64, CudaError> {
        let call = "reading the time between events";
        let s = self.0.state_unless_faulted(call)?;
        let time = |event: EventHandle| {
            let recorded = s.events.get(&event.0).copied().flatten();
            let recorded = recorded.ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
            s.reached.get(&recorded.ticket).copied().ok_or_else(|| failed(call, "CUDA_ERROR_NOT_READY"))
        };
        Ok(time(end)? - time(start)?)
    }

    // The simulator runs PTX, and reports findings by source line.
    fn needs_ptx(&self) -> bool {
        true
    }

    // cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE for machine code in a format that the driver does not know,
    // CUDA_ERROR_UNSUPPORTED_PTX_VERSION for PTX that is newer than the driver's compiler.
    fn load(&self, name: &str, image: CompiledCode<'_>) -> Result<ModuleHandle, CudaError> {
        let call = format!("loading {name}");
        let mut s = self.0.state_unless_faulted(&call)?;
        let version = self.0.properties.version;
        if !image.cubin.is_empty() && !driver_code::driver_reads_cubin(version, image.cubin) {
            return Err(failed(&call, "CUDA_ERROR_INVALID_IMAGE (machine code of a newer toolkit)"));
        }
        let newest = driver_code::newest_isa_of_driver(version);
        if image.cubin.is_empty() && driver_code::isa_of_ptx(image.ptx).is_some_and(|isa| isa > newest) {
            return Err(failed(&call, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"));
        }
        let program = Program::parse(image.ptx).map_err(|e| failed(&call, &format!("CUDA_ERROR_INVALID_PTX ({e})")))?;
        let handle = s.new_handle();
        s.modules.insert(handle, Arc::new(program));
        Ok(ModuleHandle(handle))
    }

    // cuModuleUnload: none of the module's functions may be running.
    unsafe fn unload(&self, module: ModuleHandle) {
        let mut s = self.0.state();
        let mine =
            |op: &Op| matches!(op, Op::Launch(l) if s.functions.get(&l.function).is_some_and(|f| f.module == module.0));
        let used = s.streams.values().any(|q| q.work.iter().any(mine));
        if used && s.faulted.is_none() {
            s.add_violation("unloading a module while its functions run".into());
        }
        if s.modules.remove(&module.0).is_none() {
            s.add_violation("unloading a module that is not loaded".into());
        }
        s.functions.retain(|_, f| f.module != module.0);
    }

    unsafe fn function(&self, module: ModuleHandle, symbol: &str) -> Result<FunctionHandle, CudaError> {
        let mut s = self.0.state_unless_faulted(symbol)?;
        let program = s.modules.get(&module.0).ok_or_else(|| failed(symbol, "CUDA_ERROR_INVALID_HANDLE"))?.clone();
        let kernel = program.kernel(symbol).map_err(|e| failed(symbol, &format!("CUDA_ERROR_NOT_FOUND ({e})")))?;
        let handle = s.new_handle();
        let known = LoadedFunction {
            module: module.0,
            kernel: Arc::new(kernel),
            shared: 0,
            prefers_shared: false,
            large_clusters: false,
        };
        s.functions.insert(handle, known);
        Ok(FunctionHandle(handle))
    }

    unsafe fn function_attributes(&self, function: FunctionHandle) -> Result<FunctionAttributes, CudaError> {
        let call = "querying a function attribute";
        let s = self.0.state_unless_faulted(call)?;
        let known = s.functions.get(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let threads = known.kernel.max_threads.or(known.kernel.required_threads).map_or(1024, |t| t.iter().product());
        // Registers are 0, because only ptxas knows their number, and the fake driver does not run it.
        Ok(FunctionAttributes { threads, static_shared: known.kernel.static_shared, registers: 0 })
    }

    // cuFuncSetAttribute: static and dynamic shared memory together must not exceed the maximum of a block.
    unsafe fn allow_shared(&self, function: FunctionHandle, bytes: u32) -> Result<(), CudaError> {
        let call = "allowing shared memory";
        let most = self.0.properties.limits.shared;
        let mut s = self.0.state_unless_faulted(call)?;
        let known = s.functions.get_mut(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        if known.kernel.static_shared + bytes > most {
            return Err(invalid(call));
        }
        known.shared = bytes;
        Ok(())
    }

    unsafe fn prefer_shared(&self, function: FunctionHandle) -> Result<(), CudaError> {
        let call = "preferring shared memory";
        let mut s = self.0.state_unless_faulted(call)?;
        let known = s.functions.get_mut(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        known.prefers_shared = true;
        Ok(())
    }

    unsafe fn allow_large_clusters(&self, function: FunctionHandle) -> Result<(), CudaError> {
        let call = "allowing large clusters";
        let mut s = self.0.state_unless_faulted(call)?;
        let known = s.functions.get_mut(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        known.large_clusters = true;
        Ok(())
    }

    unsafe fn resident(&self, function: FunctionHandle, threads: u32, shared: u32) -> Result<u32, CudaError> {
        let call = "querying the number of resident blocks";
        let s = self.0.state_unless_faulted(call)?;
        let known = s.functions.get(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        Ok(self.0.resident_blocks(&known.kernel, threads, shared))
    }

    // cuOccupancyMaxActiveClusters. Every pair of multiprocessors runs clusters of two blocks. Larger clusters run on the
    // multiprocessors that run clusters of eight.
    unsafe fn resident_clusters(&self, function: FunctionHandle, config: &LaunchConfig) -> Result<u32, CudaError> {
        let call = "querying the number of resident clusters";
        let arch = self.0.properties.arch;
        let each = unsafe { self.resident(function, config.block.iter().product(), config.shared)? };
        let blocks: u32 = config.cluster.iter().product();
        let multiprocessors = if blocks > 2 { 8 * arch.clusters_of_8 } else { arch.multiprocessors };
        if arch.sm < 90 || blocks == 0 {
            return Err(invalid(call));
        }
        Ok(each * (multiprocessors / blocks))
    }

    // cuTensorMapEncodeTiled: the map must obey the manual's rules. The returned bytes have the simulator's own format.
    fn encode(&self, map: &TensorMap) -> Result<[u8; 128], CudaError> {
        map.encode().map_err(|e| failed("encoding a tensor map", &format!("CUDA_ERROR_INVALID_VALUE ({e})")))
    }

    // cuLaunchKernelEx. Launches with more than 48 KiB of shared memory or more than 8 blocks per cluster need
    // function attributes that an earlier call has set.
    unsafe fn launch(
        &self,
        function: FunctionHandle,
        config: &LaunchConfig,
        arguments: &[&[u8]],
        stream: StreamHandle,
    ) -> Result<(), CudaError> {
        let call = "launching";
        self.count_launch();
        let attributes = unsafe { self.function_attributes(function)? };
        let mut s = self.0.state_unless_faulted(call)?;
        let known = s.functions.get(&function.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let sizes: Vec<usize> = arguments.iter().map(|a| a.len()).collect();
        let declared: Vec<usize> = known.kernel.params.iter().map(|p| p.1 as usize).collect();
        if sizes != declared {
            s.add_violation(format!(
                "launching with parameters of {sizes:?} bytes, where the function declares {declared:?}"
            ));
            return Err(invalid(call));
        }
        let total = sizes.iter().sum();
        if let Some(why) = rules::exceeded_launch_limit(config, &attributes, &self.0.properties.limits, total) {
            return Err(failed(call, &format!("CUDA_ERROR_INVALID_VALUE ({why})")));
        }
        let all = config.shared + attributes.static_shared;
        if all > rules::SHARED_BYTES_WITHOUT_ATTRIBUTE && config.shared > known.shared {
            return Err(failed(
                call,
                "CUDA_ERROR_INVALID_VALUE (more shared memory than was allowed for the function)",
            ));
        }
        if config.cluster.iter().product::<u32>() > rules::MAX_PORTABLE_CLUSTER_BLOCKS && !known.large_clusters {
            return Err(failed(call, "CUDA_ERROR_INVALID_CLUSTER_SIZE"));
        }
        if config.cooperative {
            let (threads, shared) = (config.block.iter().product(), config.shared);
            let resident =
                self.0.resident_blocks(&known.kernel, threads, shared) * self.0.properties.arch.multiprocessors;
            if rules::exceeded_residency_limit(config.grid, resident).is_some() {
                return Err(failed(call, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"));
            }
        }
        let mut params = vec![0; known.kernel.param_bytes as usize];
        // A programmatic edge of a graph connects two kernel nodes (CUgraphEdgeData). CUDA 12.3 introduced such
        // edges.
        let capture = s.streams.get(&stream.0).and_then(|queue| queue.capture.as_ref());
        let has_edges = rules::graphs_have_programmatic_launches(self.0.properties.version);
        if config.programmatic && capture.is_some() && !has_edges {
            return Err(failed(call, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (a programmatic launch)"));
        }
        if config.programmatic && capture.is_some_and(|c| !matches!(c.last_operation(), Some(Op::Launch(_)))) {
            s.add_violation("capturing a programmatic launch that does not follow a launch".into());
            return Err(invalid(call));
        }
        let known = &s.functions[&function.0];
        for (argument, (offset, _)) in arguments.iter().zip(&known.kernel.params) {
            params[*offset as usize..*offset as usize + argument.len()].copy_from_slice(argument);
        }
        s.enqueue(call, stream, Op::Launch(EnqueuedLaunch { function: function.0, config: *config, params }))
    }

    // cuStreamBeginCapture: prohibited for a stream that is already being captured, and for the legacy stream.
    unsafe fn begin_capture(&self, stream: StreamHandle) -> Result<(), CudaError> {
        let call = "beginning a capture";
        let mut s = self.0.state_unless_faulted(call)?;
        let queue = s.streams.get_mut(&stream.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        if queue.capture.is_some() {
            return Err(failed(call, "CUDA_ERROR_ILLEGAL_STATE"));
        }
        queue.capture = Some(Capture::begin());
        Ok(())
    }

    // cuStreamEndCapture: only the thread that began the capture may end it. If a call during the capture was
    // prohibited, this call returns an error, but still ends the capture.
    unsafe fn end_capture(&self, stream: StreamHandle) -> Result<GraphHandle, CudaError> {
        let call = "ending a capture";
        let mut s = self.0.state_unless_faulted(call)?;
        let queue = s.streams.get_mut(&stream.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?;
        let capture = queue.capture.take().ok_or_else(|| failed(call, "CUDA_ERROR_ILLEGAL_STATE"))?;
        if !capture.was_begun_by_this_thread() {
            queue.capture = Some(capture);
            return Err(failed(call, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"));
        }
        let ops = capture.end_and_take_operations().map_err(|code| failed(call, code))?;
        let handle = s.new_handle();
        s.graphs.insert(handle, ops);
        Ok(GraphHandle(handle))
    }

    // cuGraphLaunch: runs after the stream's earlier work, with the parameters and copy addresses of the capture.
    unsafe fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Result<(), CudaError> {
        let call = "launching a graph";
        let mut s = self.0.state_unless_capturing(call)?;
        let ops = s.graphs.get(&graph.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))?.clone();
        ops.into_iter().chain([Op::Launched(graph.0)]).try_for_each(|op| s.enqueue(call, stream, op))
    }

    // cuGraphExecDestroy: none of the graph's launches may be running.
    unsafe fn destroy_graph(&self, graph: GraphHandle) {
        let mut s = self.0.state();
        let runs = |q: &Queue| q.work.iter().any(|op| matches!(op, Op::Launched(g) if *g == graph.0));
        if s.streams.values().any(runs) && s.faulted.is_none() {
            s.add_violation("destroying a graph that is running".into());
        }
        if s.graphs.remove(&graph.0).is_none() {
            s.add_violation("destroying a graph that does not exist".into());
        }
    }

    // cuProfilerStart and cuProfilerStop do not affect the work. A profiler collects what the host enqueues between
    // the two calls, so each call records how many launches were enqueued before it.
    fn start_profiler(&self) -> Result<(), CudaError> {
        let mut s = self.0.state();
        let before = s.enqueued_launches;
        s.profiled.push(before..u64::MAX);
        Ok(())
    }

    fn stop_profiler(&self) -> Result<(), CudaError> {
        let mut s = self.0.state();
        let before = s.enqueued_launches;
        if let Some(window) = s.profiled.last_mut().filter(|window| window.end == u64::MAX) {
            window.end = before;
        }
        Ok(())
    }

    fn blas(&self) -> Result<Box<dyn Blas>, CudaError> {
        Ok(Box::new(FakeBlas::new(self.clone())))
    }

    fn nccl(&self) -> Result<Box<dyn Nccl>, CudaError> {
        Ok(Box::new(FakeNccl(self.clone())))
    }
}

impl Inner {
    /// Returns the newest recording of an event and its stream; `None` if it was never recorded.
    fn recorded(&self, call: &str, event: EventHandle) -> Result<Option<(u64, usize)>, CudaError> {
        let s = self.state_unless_faulted(call)?;
        match *s.events.get(&event.0).ok_or_else(|| failed(call, "CUDA_ERROR_INVALID_HANDLE"))? {
            Some(EventRecord { captured: true, .. }) => Err(failed(call, "CUDA_ERROR_CAPTURED_EVENT")),
            recorded => Ok(recorded.map(|r| (r.ticket, r.stream))),
        }
    }
}
