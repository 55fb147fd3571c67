//! A GPU: its memory, its kernels, their launches and run times. All work runs in order on one stream.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::driver::{
    CompiledCode, Driver, EventHandle, FunctionAttributes, FunctionHandle, LaunchConfig, ModuleHandle, StreamHandle,
};
use super::error::CudaError;
use super::nvidia::Nvidia;
use super::rules;
use crate::compile::CompileError;
use crate::compile::builtin::{self, BuiltinCode};
use crate::compile::driver_code::compile_for_driver;
use crate::launch::{Arch, Kernel, Source, Stage};

/// The kernel folders whose launches a following programmatic dependent launch ([`Stage::programmatic`]) may overlap.
/// Until such a launch waits for its predecessor, it reads only weights. The kernels of these folders write
/// activations, the KV cache and the state of sequences, but no weights. After any other work, a launch starts when
/// that work has ended. So all writes of weights have ended before the first launch of a chain of early launches
/// starts.
const FOLDERS_BEFORE_EARLY_LAUNCHES: [&str; 6] =
    ["paged_attention", "rms_norm", "rope_kv_write", "rope_kv_write_norm", "sample", "skinny"];

/// An opened GPU with its loaded kernels and one stream.
pub struct Gpu {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) stream: StreamHandle,
    modules: Mutex<HashMap<&'static str, Loaded>>,
    /// Whether the newest work of the stream is a launch of a kernel in [`FOLDERS_BEFORE_EARLY_LAUNCHES`].
    pub(super) next_may_start_early: Arc<AtomicBool>,
    /// Whether launches are captured by a driver whose graphs have no programmatic dependent launches.
    pub(super) captures_without_overlap: AtomicBool,
}

/// A loaded translation unit, and those of its functions that have been used.
struct Loaded {
    module: ModuleHandle,
    /// Whether the code waits for the preceding launch in programmatic dependent launches. The PTX of sm_80 in the
    /// binary has no such waits.
    has_waits: bool,
    functions: HashMap<&'static str, LoadedFunction>,
}

/// A loaded function with its properties. `shared` (bytes of dynamic shared memory), `prefers_shared` and
/// `large_clusters` are driver attributes that earlier launches of this function have set.
#[derive(Clone, Copy)]
struct LoadedFunction {
    function: FunctionHandle,
    attributes: FunctionAttributes,
    shared: u32,
    prefers_shared: bool,
    large_clusters: bool,
}

/// A function from a user's PTX; dropping it unloads the code.
pub struct PtxFunction<'a> {
    gpu: &'a Gpu,
    module: ModuleHandle,
    function: FunctionHandle,
}

/// An allocation of GPU memory; dropping it frees the memory.
pub struct Buffer {
    driver: Arc<dyn Driver>,
    at: u64,
    bytes: usize,
}

impl Gpu {
    /// Opens the NVIDIA GPU with this index.
    pub fn open(ordinal: usize) -> Result<Gpu, CudaError> {
        Gpu::from_driver(Arc::new(Nvidia::open(ordinal)?))
    }

    /// Makes a GPU from its driver and creates the stream.
    pub fn from_driver(driver: Arc<dyn Driver>) -> Result<Gpu, CudaError> {
        let stream = driver.stream()?;
        let (modules, next_may_start_early) = (Mutex::default(), Arc::default());
        Ok(Gpu { driver, stream, modules, next_may_start_early, captures_without_overlap: AtomicBool::new(false) })
    }

    /// Returns the driver of the GPU.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Returns the compute stream, on which all launches of this GPU run.
    pub fn stream(&self) -> StreamHandle {
        self.stream
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.driver.properties().name
    }

    /// Returns the architecture that determines how kernels plan their launches. It is that of the GPU up to Hopper.
    /// Hopper's kernels use instructions that no other GPU has, so newer GPUs run the kernels for compute capability
    /// 8.0.
    pub fn arch(&self) -> Arch {
        let arch = self.driver.properties().arch;
        if arch.sm > Arch::H100.sm { Arch { sm: Arch::A100.sm, clusters_of_8: 0, ..arch } } else { arch }
    }

    /// Returns the architecture that kernels are compiled for: `sm_80`, or `sm_90a` with the features that only this
    /// architecture has.
    pub fn sm_name(&self) -> String {
        let sm = self.driver.properties().arch.sm;
        format!("sm_{sm}{}", if sm == Arch::H100.sm { "a" } else { "" })
    }

    /// Allocates `bytes` uninitialised bytes, at least one.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, CudaError> {
        let at = self.driver.alloc(bytes.max(1))?;
        Ok(Buffer { driver: self.driver.clone(), at, bytes })
    }

    /// Copies host bytes into the buffer from `offset` on, and returns when the copy is done.
    ///
    /// # Panics
    /// If the bytes do not fit into the buffer.
    pub fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        let end = offset + bytes.len();
        assert!(
            end <= buffer.bytes,
            "upload to bytes {offset}..{end}, beyond the end of a buffer of {} bytes",
            buffer.bytes
        );
        if bytes.is_empty() {
            return Ok(());
        }
        self.make_next_launch_wait();
        // The driver's synchronous copy may return before the bytes arrive, and other streams do not wait for it. So
        // the copy is enqueued and waited for.
        // SAFETY: the range lies in the buffer, and the host's bytes live until the wait is over.
        unsafe { self.driver.copy_in(buffer.at + offset as u64, bytes.as_ptr(), bytes.len(), self.stream)? }
        self.synchronize()
    }

    /// Copies bytes of the buffer from `offset` on to the host, and returns when the copy is done.
    ///
    /// # Panics
    /// If the range of bytes is beyond the end of the buffer.
    pub fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        let end = offset + bytes.len();
        assert!(
            end <= buffer.bytes,
            "download of bytes {offset}..{end}, beyond the end of a buffer of {} bytes",
            buffer.bytes
        );
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the buffer, and the host's bytes live until the wait is over.
        unsafe { self.driver.copy_out(bytes.as_mut_ptr(), buffer.at + offset as u64, bytes.len(), self.stream)? }
        self.synchronize()
    }

    /// Enqueues setting every byte of the buffer to one value.
    pub fn fill(&self, buffer: &Buffer, byte: u8) -> Result<(), CudaError> {
        self.make_next_launch_wait();
        // SAFETY: the buffer owns the range.
        unsafe { self.driver.fill(buffer.at, byte, buffer.bytes, self.stream) }
    }

    /// Enqueues a copy of a whole buffer to another of the same size.
    ///
    /// # Panics
    /// If the sizes of the buffers differ.
    pub fn copy(&self, from: &Buffer, to: &Buffer) -> Result<(), CudaError> {
        assert_eq!(from.bytes, to.bytes);
        self.make_next_launch_wait();
        // SAFETY: both buffers own their ranges.
        unsafe { self.driver.copy(to.at, from.at, from.bytes, self.stream) }
    }

    /// Enqueues copies that fill the buffer with repetitions of its first `period` bytes.
    ///
    /// # Panics
    /// If `period` is not a positive divisor of the buffer's size.
    pub fn fill_with_repeated_prefix(&self, buffer: &Buffer, period: usize) -> Result<(), CudaError> {
        assert!(period > 0 && buffer.bytes.is_multiple_of(period));
        self.make_next_launch_wait();
        let mut done = period;
        while done < buffer.bytes {
            let part = done.min(buffer.bytes - done);
            // SAFETY: source and destination lie in the buffer and do not overlap.
            unsafe { self.driver.copy(buffer.at + done as u64, buffer.at, part, self.stream)? }
            done += part;
        }
        Ok(())
    }

    /// Records that work other than a kernel launch was enqueued on the stream. The next launch then starts after the
    /// end of this work, even if it is a programmatic dependent launch.
    pub fn make_next_launch_wait(&self) {
        self.next_may_start_early.store(false, Ordering::Relaxed);
    }

    /// Waits until all enqueued work is done. Returns the error of a kernel that failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream belongs to this GPU.
        unsafe { self.driver.synchronize(self.stream) }
    }

    fn modules(&self) -> MutexGuard<'_, HashMap<&'static str, Loaded>> {
        self.modules.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Loads a kernel folder's code before its first use, at which [`Gpu::launch`] would load it. The code is, in
    /// order of preference: the machine code in the binary for this GPU and driver, the code that NVRTC compiles
    /// (cached on disk), or, without a compiler for this driver, the PTX in the binary.
    pub fn load(&self, source: &'static Source) -> Result<(), CudaError> {
        if self.modules().contains_key(source.name) {
            return Ok(());
        }
        // No lock is held during the load, because compiling may take seconds. Other threads may load other code at
        // the same time.
        let (module, has_waits) = self.load_code(source)?;
        let beaten = self.modules().insert(source.name, Loaded { module, has_waits, functions: HashMap::new() });
        if let Some(other) = beaten {
            // SAFETY: functions of the replaced module may be running; after the wait none is running.
            unsafe {
                self.driver.synchronize(self.stream)?;
                self.driver.unload(other.module);
            }
        }
        Ok(())
    }

    /// Loads a folder's code. Also returns whether the code has the waits of programmatic dependent launches.
    fn load_code(&self, source: &'static Source) -> Result<(ModuleHandle, bool), CudaError> {
        let sm = self.sm_name();
        let has_waits = self.arch().sm >= 90 && source.has_dependent_launches();
        let version = self.driver.properties().version;
        let load = |cubin: &[u8], ptx: &str| self.driver.load(source.name, CompiledCode { cubin, ptx });
        let builtin = if self.driver.needs_ptx() { None } else { builtin::builtin_code(source, &sm, version) };
        if let Some(BuiltinCode::Cubin(cubin)) = &builtin {
            return Ok((load(cubin, "")?, has_waits));
        }
        match (compile_for_driver(source, &sm, version), builtin) {
            (Ok(code), _) => Ok((load(&code.cubin, &code.ptx)?, has_waits)),
            (Err(CompileError::NoNvrtc | CompileError::NoOlderPtxas(_)), Some(BuiltinCode::Ptx(ptx))) => {
                Ok((load(&[], &ptx)?, false))
            }
            (Err(e), _) => Err(e.into()),
        }
    }

    /// Loads a user's PTX and returns its function with this name.
    pub fn load_ptx(&self, ptx: &str, entry: &str) -> Result<PtxFunction<'_>, CudaError> {
        let module = self.driver.load("PTX", CompiledCode { cubin: &[], ptx })?;
        // SAFETY: the module is loaded.
        let function = unsafe { self.driver.function(module, entry) };
        // SAFETY: none of the module's functions was launched.
        let function = function.inspect_err(|_| unsafe { self.driver.unload(module) })?;
        Ok(PtxFunction { gpu: self, module, function })
    }

    /// Returns the function of a stage. Before that, checks the launch against the GPU's limits and raises the
    /// function's driver attributes where the launch needs it.
    pub(super) fn function_for_launch(
        &self,
        source: &'static Source,
        stage: &Stage,
        parameters: usize,
    ) -> Result<FunctionHandle, CudaError> {
        self.load(source)?;
        let mut modules = self.modules();
        let loaded = modules.get_mut(source.name).expect("the module was just loaded");
        let function_state = match loaded.functions.get_mut(stage.symbol) {
            Some(function_state) => function_state,
            None => {
                // SAFETY: the module is loaded.
                let function_state = unsafe {
                    let function = self.driver.function(loaded.module, stage.symbol)?;
                    let attributes = self.driver.function_attributes(function)?;
                    LoadedFunction { function, attributes, shared: 0, prefers_shared: false, large_clusters: false }
                };
                loaded.functions.entry(stage.symbol).or_insert(function_state)
            }
        };
        let limits = &self.driver.properties().limits;
        if let Some(why) = rules::exceeded_launch_limit(&config(stage), &function_state.attributes, limits, parameters)
        {
            return Err(CudaError::Launch { symbol: stage.symbol, why });
        }
        if stage.shared + function_state.attributes.static_shared > rules::SHARED_BYTES_WITHOUT_ATTRIBUTE
            && stage.shared > function_state.shared
        {
            // SAFETY: the function belongs to a loaded module.
            unsafe { self.driver.allow_shared(function_state.function, stage.shared)? }
            function_state.shared = stage.shared;
        }
        let several = stage.resident_blocks > self.driver.properties().arch.multiprocessors;
        if several && stage.shared > 0 && !function_state.prefers_shared {
            // SAFETY: the function belongs to a loaded module.
            unsafe { self.driver.prefer_shared(function_state.function)? }
            function_state.prefers_shared = true;
        }
        if stage.cluster.iter().product::<u32>() > rules::MAX_PORTABLE_CLUSTER_BLOCKS && !function_state.large_clusters
        {
            // SAFETY: the function belongs to a loaded module.
            unsafe { self.driver.allow_large_clusters(function_state.function)? }
            function_state.large_clusters = true;
        }
        Ok(function_state.function)
    }

    /// Returns how many blocks of a launch can be resident at a time, as the driver says. Plans assume such numbers
    /// ([`Stage::resident_blocks`]).
    pub fn resident_blocks(&self, source: &'static Source, stage: &Stage, parameters: usize) -> Result<u32, CudaError> {
        self.resident_blocks_of(self.function_for_launch(source, stage, parameters)?, stage)
    }

    fn resident_blocks_of(&self, function: FunctionHandle, stage: &Stage) -> Result<u32, CudaError> {
        let blocks: u32 = stage.cluster.iter().product();
        // SAFETY: the function belongs to a loaded module.
        unsafe {
            if blocks > 1 {
                return Ok(blocks * self.driver.resident_clusters(function, &config(stage))?);
            }
            let each = self.driver.resident(function, stage.block.iter().product(), stage.shared)?;
            Ok(each * self.driver.properties().arch.multiprocessors)
        }
    }

    /// Enqueues all launches of a kernel call, in order.
    ///
    /// # Safety
    /// The addresses in `params` point to memory of this GPU with the sizes that the kernel documents. The memory
    /// stays allocated until [`Gpu::synchronize`].
    pub unsafe fn launch(&self, kernel: &'static Kernel, params: &[u8]) -> Result<(), CudaError> {
        for stage in (kernel.plan)(params, &self.arch()) {
            // SAFETY: the caller guarantees the addresses in `params`.
            unsafe { self.launch_stage(kernel.source, &stage, params)? }
        }
        Ok(())
    }

    /// Enqueues one launch of a kernel call.
    ///
    /// # Safety
    /// The conditions of [`Gpu::launch`] hold.
    pub unsafe fn launch_stage(&self, source: &'static Source, stage: &Stage, params: &[u8]) -> Result<(), CudaError> {
        let function = self.function_for_launch(source, stage, params.len())?;
        if stage.cooperative {
            let resident = self.resident_blocks_of(function, stage)?;
            if let Some(why) = rules::exceeded_residency_limit(stage.grid, resident) {
                return Err(CudaError::Launch { symbol: stage.symbol, why });
            }
        }
        let params = stage.with_tensor_maps(params, |map| self.driver.encode(map))?;
        let next_may_start_early = FOLDERS_BEFORE_EARLY_LAUNCHES.contains(&source.name);
        let early = self.next_may_start_early.swap(next_may_start_early, Ordering::Relaxed)
            && !self.captures_without_overlap.load(Ordering::Relaxed);
        let has_waits = self.modules().get(source.name).is_some_and(|loaded| loaded.has_waits);
        let config = LaunchConfig { programmatic: stage.programmatic && early && has_waits, ..config(stage) };
        // SAFETY: the function takes one parameter struct; the caller guarantees the addresses in it.
        let launched = unsafe { self.driver.launch(function, &config, &[&*params], self.stream) };
        launched.map_err(|e| match e {
            CudaError::Call { call, what } => {
                CudaError::Call { call: format!("{call} {} as {stage:?}", stage.symbol), what }
            }
            other => other,
        })
    }

    /// Returns the duration in seconds of the work that `f` enqueues, by the GPU's own clock.
    pub fn time_seconds(&self, f: impl FnOnce() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let events = [self.driver.event()?, self.driver.event()?];
        let seconds = self.time_between(events, f);
        for event in events {
            // SAFETY: each event was created above and is destroyed once.
            unsafe { self.driver.destroy_event(event) }
        }
        seconds
    }

    fn time_between(
        &self,
        [start, end]: [EventHandle; 2],
        f: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<f64, CudaError> {
        // SAFETY: events and stream are live.
        unsafe {
            self.driver.record(start, self.stream)?;
            f()?;
            self.driver.record(end, self.stream)?;
            self.driver.wait(end)?;
            self.driver.elapsed(start, end)
        }
    }
}

/// Returns the driver's launch configuration for a stage.
fn config(stage: &Stage) -> LaunchConfig {
    let Stage { grid, block, cluster, shared, cooperative, programmatic, .. } = *stage;
    LaunchConfig { grid, block, cluster, shared, cooperative, programmatic }
}

impl PtxFunction<'_> {
    /// Enqueues a launch of `grid` blocks of `block` threads.
    ///
    /// # Safety
    /// `arguments` are the bytes of each parameter of the function, in the order of its declaration. Every address in
    /// them points to memory of this GPU. This memory contains everything that the function accesses, and stays
    /// allocated until [`Gpu::synchronize`].
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &[&[u8]],
    ) -> Result<(), CudaError> {
        let config = LaunchConfig { grid, block, cluster: [1; 3], shared, cooperative: false, programmatic: false };
        // SAFETY: the caller guarantees arguments and addresses; the module is loaded.
        unsafe { self.gpu.driver.launch(self.function, &config, arguments, self.gpu.stream) }
    }
}

impl Drop for PtxFunction<'_> {
    fn drop(&mut self) {
        // SAFETY: after the wait nothing uses the module.
        unsafe {
            let _ = self.gpu.driver.synchronize(self.gpu.stream);
            self.gpu.driver.unload(self.module);
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: after the wait nothing uses the stream and the modules. After a failed kernel the wait fails too,
        // which a destructor cannot report; then nothing runs either.
        unsafe {
            let _ = self.driver.synchronize(self.stream);
            for loaded in self.modules().values() {
                self.driver.unload(loaded.module);
            }
            self.driver.destroy_stream(self.stream);
        }
    }
}

impl Buffer {
    /// Returns the buffer's address on the GPU, a multiple of 256.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// The size of the buffer in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the buffer owns the allocation; the driver waits for launches that may use it.
        unsafe { self.driver.free(self.at) }
    }
}
