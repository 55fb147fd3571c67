//! NVIDIA's driver, opened at run time. Source: NVIDIA's CUDA Driver API manual, 13.0. Only calls of CUDA 12.0 are made
//! (`driver_calls.rs`).
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_uint, c_void};
use std::mem::MaybeUninit;

use cudarc::driver::result as driver;
use cudarc::driver::sys;
use reel_sim::tensor_map::TensorMap;

use super::blas::Blas;
use super::context::Context;
use super::cublaslt::CublasLt;
use super::driver::{
    CompiledCode, Driver, EventHandle, FunctionAttributes, FunctionHandle, GpuProperties, GraphHandle, LaunchConfig,
    LaunchLimits, ModuleHandle, PhysicalMemoryHandle, StreamHandle,
};
use super::driver_calls::DriverLibrary;
use super::error::{CudaError, named};
use super::nccl::{Nccl, NcclLibrary};
use crate::compile::driver_code::OLDEST_DRIVER;
use crate::launch::Arch;

/// NVIDIA's driver with the primary context of one GPU.
pub struct Nvidia {
    properties: GpuProperties,
    device: sys::CUdevice,
    context: sys::CUcontext,
    granularity: usize,
}

// SAFETY: any thread may use a context that it has made current, which every call does first.
unsafe impl Send for Nvidia {}
// SAFETY: every call makes the context current first, and the driver's calls are thread-safe.
unsafe impl Sync for Nvidia {}

/// Does the same as [`named`] for calls that allocate: out of memory becomes [`CudaError::OutOfMemory`].
fn memory<T>(bytes: usize, call: &str, result: Result<T, driver::DriverError>) -> Result<T, CudaError> {
    match result {
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(CudaError::OutOfMemory { bytes }),
        other => named(format!("{call} {bytes} bytes"), other),
    }
}

impl Nvidia {
    /// Tells whether the machine has an NVIDIA driver and a GPU. Opening the GPU may still fail.
    pub fn has_gpu() -> bool {
        Self::gpu_count() > 0
    }

    /// Returns the number of GPUs that this process can use; 0 without a driver.
    pub fn gpu_count() -> usize {
        // An incomplete driver library may lack the calls that follow.
        let library = DriverLibrary::open().is_some_and(|library| library.missing.is_empty());
        let count = if library && driver::init().is_ok() { driver::device::get_count().ok() } else { None };
        count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
    }

    /// Returns the identity of the GPU with this index, as `nvidia-smi -L` prints it (`GPU-…`). The identity is the
    /// same in all processes, while the indices of GPUs may differ. `None` if the driver does not report it.
    pub fn gpu_uuid(ordinal: usize) -> Option<String> {
        if ordinal >= Self::gpu_count() {
            return None;
        }
        let device = driver::device::get(c_int::try_from(ordinal).ok()?).ok()?;
        let uuid = driver::device::get_uuid(device).ok()?;
        let digits: String = uuid.bytes.iter().map(|&byte| format!("{:02x}", byte as u8)).collect();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]);
        Some(format!("GPU-{}", parts.join("-")))
    }

    /// Opens the GPU with this index.
    ///
    /// # Errors
    /// No driver, a driver that is too old, no such GPU, or the driver's own error.
    pub fn open(ordinal: usize) -> Result<Nvidia, CudaError> {
        let DriverLibrary { version, missing } = DriverLibrary::open().ok_or(CudaError::NoDriver)?;
        if version < OLDEST_DRIVER {
            return Err(CudaError::OldDriver { has: version, needs: OLDEST_DRIVER });
        }
        if !missing.is_empty() {
            return Err(CudaError::IncompleteDriver { version, missing });
        }
        named("initialising", driver::init())?;
        let count = named("counting GPUs", driver::device::get_count())? as usize;
        if ordinal >= count {
            return Err(CudaError::NoGpu(ordinal, count));
        }
        let device = named("opening the GPU", driver::device::get(ordinal as c_int))?;
        // SAFETY: `device` is valid; its primary context is released when the value is dropped.
        let context = named("opening a CUDA context", unsafe { driver::primary_ctx::retain(device) })?;
        let mut opened = Nvidia { properties: GpuProperties::unknown(version), device, context, granularity: 0 };
        opened.current()?;
        opened.properties = opened.query_properties(version)?;
        // A driver that cannot compile PTX cannot report the number of resident clusters. With 0 clusters, launch plans
        // use no clusters of 8 blocks and give the same bits.
        opened.properties.arch.clusters_of_8 = opened.query_clusters_of_8().unwrap_or(0);
        let mut granularity = 0;
        let minimum = sys::CUmemAllocationGranularity_flags_enum::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: the driver reads the allocation properties and writes one number to `granularity`.
        let asked = unsafe { sys::cuMemGetAllocationGranularity(&mut granularity, &opened.memory_kind(), minimum) };
        named("querying the memory granularity", asked.result())?;
        opened.granularity = granularity;
        Ok(opened)
    }

    fn query_properties(&self, version: u32) -> Result<GpuProperties, CudaError> {
        use sys::CUdevice_attribute_enum as A;
        let attribute = |which| {
            // SAFETY: `device` was returned by the driver.
            let value = unsafe { driver::device::get_attribute(self.device, which) };
            named("querying a GPU attribute", value).map(|v| v as u32)
        };
        let name = named("querying the GPU's name", driver::device::get_name(self.device))?;
        let sm = 10 * attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let limits = LaunchLimits {
            sm,
            grid: [
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
            ],
            block: [
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
            ],
            threads: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            shared,
            registers: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK)?,
        };
        // SAFETY: `device` was returned by the driver.
        let bytes = named("querying the GPU's memory size", unsafe { driver::device::total_mem(self.device) })?;
        // `clusters_of_8` is queried after the GPU is open, because the query needs a loaded kernel.
        let arch = Arch { sm, shared_per_block: shared, multiprocessors, clusters_of_8: 0 };
        Ok(GpuProperties { name, arch, limits, memory: bytes as u64, version })
    }

    /// Returns [`Arch::clusters_of_8`]. The driver reports this number for a given kernel. The kernel here does
    /// nothing, but uses all shared memory of a multiprocessor, so that each block has a multiprocessor to itself.
    fn query_clusters_of_8(&self) -> Result<u32, CudaError> {
        const PTX: &str = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry one_block() { ret; }\n";
        let Arch { sm, shared_per_block: shared, .. } = self.properties.arch;
        if sm < 90 {
            return Ok(0);
        }
        let module = self.load("a kernel without instructions", CompiledCode { cubin: &[], ptx: PTX })?;
        // SAFETY: the module is loaded; its function is not used after it is unloaded.
        let clusters = unsafe {
            self.function(module, "one_block").and_then(|function| {
                self.allow_shared(function, shared)?;
                let (grid, block) = ([8, 1, 1], [32, 1, 1]);
                let config =
                    LaunchConfig { grid, block, cluster: grid, shared, cooperative: false, programmatic: false };
                self.resident_clusters(function, &config)
            })
        };
        // SAFETY: the function was not launched.
        unsafe { self.unload(module) };
        clusters
    }

    /// Makes the context of this GPU current on this thread.
    fn current(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until `self` is dropped.
        unsafe { Context(self.context as usize).make_current() }
    }

    /// Calls `f` with the GPU's context current on this thread.
    fn call<T>(&self, what: &str, f: impl FnOnce() -> Result<T, driver::DriverError>) -> Result<T, CudaError> {
        self.current()?;
        named(what, f())
    }

    /// Returns the driver's description of memory on this GPU, for calls that allocate it.
    fn memory_kind(&self) -> sys::CUmemAllocationProp {
        // SAFETY: all bytes zero is a valid value of every field.
        let mut kind: sys::CUmemAllocationProp = unsafe { MaybeUninit::zeroed().assume_init() };
        kind.type_ = sys::CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED;
        kind.location = self.location();
        kind
    }

    fn location(&self) -> sys::CUmemLocation {
        sys::CUmemLocation { type_: sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE, id: self.device }
    }
}

/// Returns the driver's attributes of a launch.
fn launch_attributes(config: &LaunchConfig) -> Vec<sys::CUlaunchAttribute> {
    use sys::CUlaunchAttributeID as Id;
    let [x, y, z] = config.cluster;
    let cluster =
        sys::CUlaunchAttributeValue { clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z } };
    let cooperative = sys::CUlaunchAttributeValue { cooperative: 1 };
    let early = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    let all = [
        (config.cluster != [1; 3], Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, cluster),
        (config.cooperative, Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, cooperative),
        (config.programmatic, Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, early),
    ];
    let attribute = |(_, id, value)| sys::CUlaunchAttribute { id, pad: [0; 4], value };
    all.into_iter().filter(|(wanted, ..)| *wanted).map(attribute).collect()
}

/// Returns the driver's form of a launch configuration, which points to `attributes`.
fn raw_config(
    config: &LaunchConfig,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: config.grid[0],
        gridDimY: config.grid[1],
        gridDimZ: config.grid[2],
        blockDimX: config.block[0],
        blockDimY: config.block[1],
        blockDimZ: config.block[2],
        sharedMemBytes: config.shared,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

impl GpuProperties {
    /// Returns properties that contain the driver's version and otherwise zeros. The caller queries the driver for
    /// the other values.
    fn unknown(version: u32) -> GpuProperties {
        let arch = Arch { sm: 0, shared_per_block: 0, multiprocessors: 0, clusters_of_8: 0 };
        GpuProperties { name: String::new(), arch, limits: LaunchLimits::new(0, 0), memory: 0, version }
    }
}

impl StreamHandle {
    fn raw(self) -> sys::CUstream {
        self.0 as sys::CUstream
    }
}

impl EventHandle {
    fn raw(self) -> sys::CUevent {
        self.0 as sys::CUevent
    }
}

impl FunctionHandle {
    fn raw(self) -> sys::CUfunction {
        self.0 as sys::CUfunction
    }
}

// SAFETY (of each call below): the conditions that `Driver` requires of its callers are those of the driver's calls.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Driver for Nvidia {
    fn properties(&self) -> &GpuProperties {
        &self.properties
    }

    fn bus_id(&self) -> Option<String> {
        let mut text = [0u8; 32];
        let asked = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as c_int, self.device) };
        asked.result().ok()?;
        let text = text.split(|&b| b == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn memory_free(&self) -> Result<u64, CudaError> {
        self.call("querying the free memory", driver::mem_get_info).map(|(free, _)| free as u64)
    }

    fn alloc(&self, bytes: usize) -> Result<u64, CudaError> {
        self.current()?;
        memory(bytes, "allocating", unsafe { driver::malloc_sync(bytes) })
    }

    unsafe fn free(&self, at: u64) {
        let _ = self.call("freeing GPU memory", || unsafe { driver::free_sync(at) });
    }

    fn granularity(&self) -> usize {
        self.granularity
    }

    fn reserve(&self, bytes: usize) -> Result<u64, CudaError> {
        self.current()?;
        let mut at = 0;
        let reserved = unsafe { sys::cuMemAddressReserve(&mut at, bytes, 0, 0, 0) };
        memory(bytes, "reserving", reserved.result())?;
        Ok(at)
    }

    unsafe fn map_memory(&self, at: u64, bytes: usize) -> Result<PhysicalMemoryHandle, CudaError> {
        self.current()?;
        let mut handle = 0;
        memory(bytes, "allocating", unsafe { sys::cuMemCreate(&mut handle, bytes, &self.memory_kind(), 0) }.result())?;
        let access = sys::CUmemAccessDesc {
            location: self.location(),
            flags: sys::CUmemAccess_flags_enum::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let mapped = unsafe { sys::cuMemMap(at, bytes, 0, handle, 0) }.result();
        let mapped = mapped.and_then(|()| unsafe { sys::cuMemSetAccess(at, bytes, &access, 1) }.result());
        if let Err(e) = memory(bytes, "mapping", mapped) {
            // If cuMemMap has failed, cuMemUnmap fails too and changes nothing.
            unsafe {
                let _ = sys::cuMemUnmap(at, bytes);
                let _ = sys::cuMemRelease(handle);
            }
            return Err(e);
        }
        Ok(PhysicalMemoryHandle(handle))
    }

    unsafe fn unmap_memory(&self, at: u64, bytes: usize, backing: PhysicalMemoryHandle) {
        let _ = self.call("unmapping GPU memory", || unsafe {
            sys::cuMemUnmap(at, bytes).result()?;
            sys::cuMemRelease(backing.0).result()
        });
    }

    unsafe fn release(&self, at: u64, bytes: usize) {
        let _ = self.call("releasing an address range", || unsafe { sys::cuMemAddressFree(at, bytes) }.result());
    }

    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        const PORTABLE: c_uint = 1;
        self.current()?;
        let at = unsafe { driver::malloc_host(bytes, PORTABLE) };
        named(format!("page-locking {bytes} bytes of host memory"), at).map(<*mut c_void>::cast)
    }

    unsafe fn free_host(&self, at: *mut u8) {
        let _ = self.call("freeing host memory", || unsafe { driver::free_host(at.cast()) });
    }

    fn stream(&self) -> Result<StreamHandle, CudaError> {
        let made = self.call("creating a stream", || driver::stream::create(driver::stream::StreamKind::NonBlocking));
        made.map(|s| StreamHandle(s as usize))
    }

    unsafe fn destroy_stream(&self, stream: StreamHandle) {
        let _ = self.call("destroying a stream", || unsafe { driver::stream::destroy(stream.raw()) });
    }

    unsafe fn synchronize(&self, stream: StreamHandle) -> Result<(), CudaError> {
        self.call("running the enqueued work", || unsafe { driver::stream::synchronize(stream.raw()) })
    }

    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        let copy = || unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, stream.raw()) }.result();
        self.call("copying to the GPU", copy)
    }

    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        let copy = || unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, stream.raw()) }.result();
        self.call("copying from the GPU", copy)
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        self.call("copying on the GPU", || unsafe { driver::memcpy_dtod_async(to, from, bytes, stream.raw()) })
    }

    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize, stream: StreamHandle) -> Result<(), CudaError> {
        self.call("filling memory", || unsafe { driver::memset_d8_async(at, byte, bytes, stream.raw()) })
    }

    fn event(&self) -> Result<EventHandle, CudaError> {
        let made = self.call("creating an event", || driver::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT));
        made.map(|e| EventHandle(e as usize))
    }

    unsafe fn destroy_event(&self, event: EventHandle) {
        let _ = self.call("destroying an event", || unsafe { driver::event::destroy(event.raw()) });
    }

    unsafe fn record(&self, event: EventHandle, stream: StreamHandle) -> Result<(), CudaError> {
        self.call("recording an event", || unsafe { driver::event::record(event.raw(), stream.raw()) })
    }

    unsafe fn wait(&self, event: EventHandle) -> Result<(), CudaError> {
        self.call("running the enqueued work", || unsafe { driver::event::synchronize(event.raw()) })
    }

    unsafe fn is_complete(&self, event: EventHandle) -> Result<bool, CudaError> {
        self.call("querying an event", || match unsafe { driver::event::query(event.raw()) } {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            done => done.map(|()| true),
        })
    }

    unsafe fn stream_wait(&self, stream: StreamHandle, event: EventHandle) -> Result<(), CudaError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        self.call("waiting for an event", || unsafe { driver::stream::wait_event(stream.raw(), event.raw(), flags) })
    }

    unsafe fn elapsed(&self, start: EventHandle, end: EventHandle) -> Result<f64, CudaError> {
        let ms =
            self.call("reading the time between events", || unsafe { driver::event::elapsed(start.raw(), end.raw()) });
        ms.map(|ms| f64::from(ms) * 1e-3)
    }

    fn load(&self, name: &str, image: CompiledCode<'_>) -> Result<ModuleHandle, CudaError> {
        let text = || CString::new(image.ptx);
        let module = if image.cubin.is_empty() {
            let nul = |_| CudaError::Call { call: format!("loading {name}"), what: "the PTX has a NUL".into() };
            let text = text().map_err(nul)?;
            self.call(&format!("loading {name}"), || unsafe { driver::module::load_data(text.as_ptr().cast()) })
        } else {
            self.call(&format!("loading {name}"), || unsafe { driver::module::load_data(image.cubin.as_ptr().cast()) })
        };
        module.map(|m| ModuleHandle(m as usize))
    }

    unsafe fn unload(&self, module: ModuleHandle) {
        let _ = self.call("unloading a module", || unsafe { driver::module::unload(module.0 as sys::CUmodule) });
    }

    unsafe fn function(&self, module: ModuleHandle, symbol: &str) -> Result<FunctionHandle, CudaError> {
        let name =
            CString::new(symbol).map_err(|_| CudaError::Call { call: symbol.into(), what: "has a NUL".into() })?;
        let found = self.call(symbol, || unsafe { driver::module::get_function(module.0 as sys::CUmodule, name) });
        found.map(|f| FunctionHandle(f as usize))
    }

    unsafe fn function_attributes(&self, function: FunctionHandle) -> Result<FunctionAttributes, CudaError> {
        use sys::CUfunction_attribute_enum as A;
        let attribute = |which| {
            let ask = || unsafe { driver::function::get_function_attribute(function.raw(), which) };
            self.call("querying a function attribute", ask).map(|v| v as u32)
        };
        Ok(FunctionAttributes {
            threads: attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            static_shared: attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            registers: attribute(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        })
    }

    unsafe fn allow_shared(&self, function: FunctionHandle, bytes: u32) -> Result<(), CudaError> {
        let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let set = || unsafe { driver::function::set_function_attribute(function.raw(), which, bytes as c_int) };
        self.call(&format!("allowing {bytes} bytes of shared memory"), set)
    }

    unsafe fn prefer_shared(&self, function: FunctionHandle) -> Result<(), CudaError> {
        let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        let most = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as c_int;
        let set = || unsafe { driver::function::set_function_attribute(function.raw(), which, most) };
        self.call("preferring shared memory", set)
    }

    unsafe fn allow_large_clusters(&self, function: FunctionHandle) -> Result<(), CudaError> {
        let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        let set = || unsafe { driver::function::set_function_attribute(function.raw(), which, 1) };
        self.call("allowing large clusters", set)
    }

    unsafe fn resident(&self, function: FunctionHandle, threads: u32, shared: u32) -> Result<u32, CudaError> {
        let mut blocks: c_int = 0;
        let ask = || unsafe {
            let (threads, shared) = (threads as c_int, shared as usize);
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function.raw(), threads, shared).result()
        };
        self.call("querying the number of resident blocks", ask)?;
        Ok(blocks.max(0) as u32)
    }

    unsafe fn resident_clusters(&self, function: FunctionHandle, config: &LaunchConfig) -> Result<u32, CudaError> {
        let mut attributes = launch_attributes(config);
        let config = raw_config(config, std::ptr::null_mut(), &mut attributes);
        let mut clusters: c_int = 0;
        let ask = || unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, function.raw(), &config).result() };
        self.call("querying the number of resident clusters", ask)?;
        Ok(clusters.max(0) as u32)
    }

    // cuTensorMapEncodeTiled. The enumerations of `TensorMap` have the driver's values; their tests compare these
    // values with the manual.
    fn encode(&self, map: &TensorMap) -> Result<[u8; 128], CudaError> {
        let mut out = sys::CUtensorMap { opaque: [0; 16] };
        let strides = map.strides;
        // SAFETY: the arrays have an entry for every possible dimension; the enumerations have the driver's values.
        let encode = || unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut out,
                std::mem::transmute::<u32, sys::CUtensorMapDataType>(map.data_type as u32),
                map.rank,
                map.address as *mut c_void,
                map.dims.as_ptr(),
                strides.as_ptr(),
                map.box_dims.as_ptr(),
                map.element_strides.as_ptr(),
                std::mem::transmute::<u32, sys::CUtensorMapInterleave>(map.interleave as u32),
                std::mem::transmute::<u32, sys::CUtensorMapSwizzle>(map.swizzle as u32),
                std::mem::transmute::<u32, sys::CUtensorMapL2promotion>(map.l2_promotion as u32),
                std::mem::transmute::<u32, sys::CUtensorMapFloatOOBfill>(map.oob_fill as u32),
            )
            .result()
        };
        self.call("encoding a tensor map", encode)?;
        Ok(bytemuck::cast(out.opaque))
    }

    unsafe fn launch(
        &self,
        function: FunctionHandle,
        config: &LaunchConfig,
        arguments: &[&[u8]],
        stream: StreamHandle,
    ) -> Result<(), CudaError> {
        let mut arguments: Vec<*mut c_void> = arguments.iter().map(|a| a.as_ptr().cast_mut().cast()).collect();
        let mut attributes = launch_attributes(config);
        let config = raw_config(config, stream.raw(), &mut attributes);
        // The driver copies the arguments before the call returns.
        let call = || unsafe {
            sys::cuLaunchKernelEx(&config, function.raw(), arguments.as_mut_ptr(), std::ptr::null_mut()).result()
        };
        self.call("launching", call)
    }

    unsafe fn begin_capture(&self, stream: StreamHandle) -> Result<(), CudaError> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.call("beginning a capture", || unsafe { driver::stream::begin_capture(stream.raw(), mode) })
    }

    unsafe fn end_capture(&self, stream: StreamHandle) -> Result<GraphHandle, CudaError> {
        let end = || unsafe {
            let graph = driver::stream::end_capture(stream.raw())?;
            let ready = driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0));
            driver::graph::destroy(graph)?;
            ready
        };
        self.call("ending a capture", end).map(|g| GraphHandle(g as usize))
    }

    unsafe fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Result<(), CudaError> {
        self.call("launching a graph", || unsafe { driver::graph::launch(graph.0 as sys::CUgraphExec, stream.raw()) })
    }

    unsafe fn destroy_graph(&self, graph: GraphHandle) {
        let _ = self.call("destroying a graph", || unsafe { driver::graph::exec_destroy(graph.0 as sys::CUgraphExec) });
    }

    fn start_profiler(&self) -> Result<(), CudaError> {
        // SAFETY: the call has no preconditions but a current context.
        self.call("starting the profiler", || unsafe { sys::cuProfilerStart() }.result())
    }

    fn stop_profiler(&self) -> Result<(), CudaError> {
        // SAFETY: the call has no preconditions but a current context.
        self.call("stopping the profiler", || unsafe { sys::cuProfilerStop() }.result())
    }

    fn blas(&self) -> Result<Box<dyn Blas>, CudaError> {
        self.current()?;
        Ok(Box::new(CublasLt::open(Context(self.context as usize), self.properties.version / 1000)?))
    }

    fn nccl(&self) -> Result<Box<dyn Nccl>, CudaError> {
        Ok(Box::new(NcclLibrary::open(Context(self.context as usize))?))
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // SAFETY: nothing uses the context after this.
        unsafe {
            let _ = driver::primary_ctx::release(self.device);
        }
    }
}
