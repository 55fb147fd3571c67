//! A GPU through its driver, which is opened at run time: memory, launches of our kernels, and the time that they take.
//!
//! One context, one stream; everything is ordered on that stream. Source: NVIDIA's CUDA Driver API manual, 13.0.
#![allow(unsafe_code)]

use crate::compile::{self, CompileError};
use crate::launch::{Arch, Kernel, Source, Stage};
use cudarc::driver::result as driver;
use cudarc::driver::sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};

/// Why a GPU could not do something. Each message is one line.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no driver on this machine.
    #[error("cuda: no NVIDIA driver (libcuda.so.1); install it, or choose --device cpu or --device sim")]
    NoDriver,
    /// A driver, but no such GPU.
    #[error("cuda: there is no GPU {0} ({1} found); choose another, or --device cpu or --device sim")]
    NoGpu(usize, usize),
    /// A call of the driver failed.
    #[error("cuda: {call}: {what}")]
    Call {
        /// What was being done.
        call: String,
        /// The driver's word for the failure.
        what: String,
    },
    /// The kernel has no CUDA source.
    #[error("{0}: has no CUDA source")]
    NoSource(&'static str),
    /// The source does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// Names the call that failed.
fn named<T>(call: impl Into<String>, result: Result<T, driver::DriverError>) -> Result<T, CudaError> {
    result.map_err(|e| {
        let text = e.error_string().ok().map(|s| s.to_string_lossy().into_owned());
        let code = e.error_name().ok().map(|s| s.to_string_lossy().into_owned());
        let what = match (code, text) {
            (Some(code), Some(text)) => format!("{code} ({text})"),
            _ => format!("error {}", e.0 as u32),
        };
        CudaError::Call { call: call.into(), what }
    })
}

/// A translation unit on the GPU.
struct Module {
    handle: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
}

/// An open GPU. It stays with the thread that opened it.
pub struct Gpu {
    name: String,
    arch: Arch,
    device: sys::CUdevice,
    stream: sys::CUstream,
    modules: RefCell<HashMap<&'static str, Module>>,
}

/// A function of PTX that is not ours; unloaded when dropped.
pub struct Foreign<'a> {
    gpu: &'a Gpu,
    module: sys::CUmodule,
    function: sys::CUfunction,
}

/// Bytes on a GPU, freed when dropped.
pub struct Buffer {
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Gpu {
    /// Opens a GPU by its number.
    pub fn open(ordinal: usize) -> Result<Gpu, CudaError> {
        // SAFETY: only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        named("initialising", driver::init())?;
        let count = named("counting GPUs", driver::device::get_count())? as usize;
        if ordinal >= count {
            return Err(CudaError::NoGpu(ordinal, count));
        }
        let device = named("opening the GPU", driver::device::get(ordinal as i32))?;
        let name = named("asking for the GPU's name", driver::device::get_name(device))?;
        let attribute = |which| {
            // SAFETY: `device` is a device of the driver.
            named("asking for an attribute", unsafe { driver::device::get_attribute(device, which) })
        };
        use sys::CUdevice_attribute_enum as A;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let arch = Arch { sm: (major * 10 + minor) as u32, shared_per_block: shared as u32, multiprocessors };
        // SAFETY: `device` is a device; its primary context is released when `Gpu` is dropped.
        let context = named("opening a context", unsafe { driver::primary_ctx::retain(device) })?;
        // SAFETY: the context was just retained.
        named("opening a context", unsafe { driver::ctx::set_current(context) })?;
        let stream = named("opening a stream", driver::stream::create(driver::stream::StreamKind::NonBlocking))?;
        Ok(Gpu { name, arch, device, stream, modules: RefCell::default() })
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What plans may depend on.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The architecture that kernels are compiled for, with the features of its own where there are any: `sm_80`, `sm_90a`.
    pub fn sm(&self) -> String {
        format!("sm_{}{}", self.arch.sm, if self.arch.sm >= 90 { "a" } else { "" })
    }

    /// `bytes` that hold anything; at least one is allocated.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, CudaError> {
        // SAFETY: the context is current; the buffer frees what it owns.
        let at = named(format!("allocating {bytes} bytes"), unsafe { driver::malloc_sync(bytes.max(1)) })?;
        Ok(Buffer { at, bytes })
    }

    /// Copies host bytes into the buffer from `offset` on, and returns when they are there.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(offset + bytes.len() <= buffer.bytes, "{} bytes at {offset} of {}", bytes.len(), buffer.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        // The driver's plain copy may return before the bytes are there, and other streams than its own do not wait for it.
        // SAFETY: the range lies in the buffer, and the host's bytes live until the wait is over.
        let asked = unsafe { driver::memcpy_htod_async(buffer.at + offset as u64, bytes, self.stream) };
        named("copying to the GPU", asked)?;
        self.synchronize()
    }

    /// Copies bytes from `offset` on to the host.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        assert!(offset + bytes.len() <= buffer.bytes, "{} bytes at {offset} of {}", bytes.len(), buffer.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the buffer, and the host's bytes live until the wait is over.
        let asked = unsafe { driver::memcpy_dtoh_async(bytes, buffer.at + offset as u64, self.stream) };
        named("copying from the GPU", asked)?;
        self.synchronize()
    }

    /// Sets every byte of the buffer, in stream order.
    pub fn fill(&self, buffer: &Buffer, byte: u8) -> Result<(), CudaError> {
        // SAFETY: the buffer owns the range.
        named("filling memory", unsafe { driver::memset_d8_async(buffer.at, byte, buffer.bytes, self.stream) })
    }

    /// Copies the whole of a buffer to another of the same size, in stream order.
    ///
    /// # Panics
    /// When their sizes differ.
    pub fn copy(&self, from: &Buffer, to: &Buffer) -> Result<(), CudaError> {
        assert_eq!(from.bytes, to.bytes);
        // SAFETY: both own their ranges.
        named("copying on the GPU", unsafe { driver::memcpy_dtod_async(to.at, from.at, from.bytes, self.stream) })
    }

    /// Fills the buffer by repeating its first `period` bytes, in stream order.
    ///
    /// # Panics
    /// When `period` is not a positive divisor of the buffer's size.
    pub fn repeat(&self, buffer: &Buffer, period: usize) -> Result<(), CudaError> {
        assert!(period > 0 && buffer.bytes.is_multiple_of(period));
        let mut done = period;
        while done < buffer.bytes {
            let part = done.min(buffer.bytes - done);
            // SAFETY: source and destination lie in the buffer and do not overlap.
            let copied = unsafe { driver::memcpy_dtod_async(buffer.at + done as u64, buffer.at, part, self.stream) };
            named("copying on the GPU", copied)?;
            done += part;
        }
        Ok(())
    }

    /// Waits until all that was asked for is done. A kernel that went wrong shows here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is ours.
        named("running what was launched", unsafe { driver::stream::synchronize(self.stream) })
    }

    /// Compiles and loads a kernel's source; [`Gpu::launch`] does it at first use.
    pub fn load(&self, source: &'static Source) -> Result<(), CudaError> {
        if self.modules.borrow().contains_key(source.name) {
            return Ok(());
        }
        let cubin = compile::cubin(source, &self.sm())?;
        // SAFETY: the image is a whole CUBIN and lives through the call.
        let handle = named(format!("loading {}", source.name), unsafe {
            driver::module::load_data(cubin.image.as_ptr().cast::<c_void>())
        })?;
        self.modules.borrow_mut().insert(source.name, Module { handle, functions: HashMap::new() });
        Ok(())
    }

    /// Loads PTX text that is not ours, and gives its function of this name.
    pub fn load_ptx(&self, ptx: &str, entry: &str) -> Result<Foreign<'_>, CudaError> {
        let text = CString::new(ptx)
            .map_err(|_| CudaError::Call { call: "loading PTX".into(), what: "the text has a NUL".into() })?;
        // SAFETY: the text ends with a NUL and lives through the call.
        let module = named("loading PTX", unsafe { driver::module::load_data(text.as_ptr().cast::<c_void>()) })?;
        let symbol = CString::new(entry).expect("PTX without a NUL has no such name");
        // SAFETY: the module is loaded.
        let function = named(entry, unsafe { driver::module::get_function(module, symbol) })?;
        Ok(Foreign { gpu: self, module, function })
    }

    /// The function of a stage, ready for its shared memory.
    fn function(&self, source: &'static Source, stage: &Stage) -> Result<sys::CUfunction, CudaError> {
        self.load(source)?;
        let mut modules = self.modules.borrow_mut();
        let module = modules.get_mut(source.name).expect("it was just loaded");
        let function = match module.functions.get(stage.symbol) {
            Some(&function) => function,
            None => {
                let symbol = CString::new(stage.symbol).expect("a symbol has no NUL");
                // SAFETY: the module is loaded.
                let found = unsafe { driver::module::get_function(module.handle, symbol) };
                *module.functions.entry(stage.symbol).or_insert(named(stage.symbol, found)?)
            }
        };
        // Beyond 48 KiB, static shared memory included, a function must ask.
        if stage.shared > 0 {
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            let set = unsafe { driver::function::set_function_attribute(function, which, stage.shared as i32) };
            named(format!("{}: {} bytes of shared memory", stage.symbol, stage.shared), set)?;
        }
        Ok(function)
    }

    /// Asks for the launches of a call, in order, and returns before they have run.
    ///
    /// # Safety
    /// The addresses in `params` are addresses of this GPU that cover what the kernel documents, until [`Gpu::synchronize`].
    pub unsafe fn launch(&self, kernel: &'static Kernel, params: &[u8]) -> Result<(), CudaError> {
        let cuda = kernel.cuda.ok_or(CudaError::NoSource(kernel.name))?;
        for stage in (cuda.plan)(params, &self.arch) {
            // SAFETY: the caller's promise.
            unsafe { self.launch_stage(cuda.source, &stage, params)? }
        }
        Ok(())
    }

    /// Asks for one launch.
    ///
    /// # Safety
    /// As [`Gpu::launch`].
    pub unsafe fn launch_stage(&self, source: &'static Source, stage: &Stage, params: &[u8]) -> Result<(), CudaError> {
        let function = self.function(source, stage)?;
        let mut params = params.to_vec();
        let mut arguments = [params.as_mut_ptr().cast::<c_void>()];
        let [x, y, z] = stage.cluster;
        let mut cluster = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: stage.grid[0],
            gridDimY: stage.grid[1],
            gridDimZ: stage.grid[2],
            blockDimX: stage.block[0],
            blockDimY: stage.block[1],
            blockDimZ: stage.block[2],
            sharedMemBytes: stage.shared,
            hStream: self.stream,
            attrs: &mut cluster,
            numAttrs: u32::from(stage.cluster != [1; 3]),
        };
        // SAFETY: the function takes one parameter struct, whose bytes are copied by the call; the caller vouches for the
        // addresses in it.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) };
        named(format!("launching {} with {stage:?}", stage.symbol), launched.result())
    }

    /// Seconds between the begin and the end of what `f` asks for, by the GPU's own clock.
    pub fn timed(&self, f: impl FnOnce() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let event = || named("making an event", driver::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let (start, end) = (event()?, event()?);
        // SAFETY: events and stream are ours, and the events are destroyed once.
        let result = unsafe {
            (|| {
                named("recording an event", driver::event::record(start, self.stream))?;
                f()?;
                named("recording an event", driver::event::record(end, self.stream))?;
                named("running what was launched", driver::event::synchronize(end))?;
                named("reading an event", driver::event::elapsed(start, end))
            })()
        };
        for event in [start, end] {
            // SAFETY: as above.
            named("freeing an event", unsafe { driver::event::destroy(event) })?;
        }
        Ok(f64::from(result?) * 1e-3)
    }
}

impl Foreign<'_> {
    /// Asks for a launch of `grid` blocks of `block` threads.
    ///
    /// # Safety
    /// `arguments` are the bytes of each parameter of the function, as it declares them; every address in them is one of this GPU
    /// that covers what the function touches, until [`Gpu::synchronize`].
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &[&[u8]],
    ) -> Result<(), CudaError> {
        let mut arguments: Vec<*mut c_void> = arguments.iter().map(|a| a.as_ptr().cast_mut().cast()).collect();
        let (g, b) = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]));
        // SAFETY: the caller's promise; the driver only reads the arguments.
        let launched = unsafe { driver::launch_kernel(self.function, g, b, shared, self.gpu.stream, &mut arguments) };
        named("launching", launched)
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing uses the module after the wait.
        unsafe {
            let _ = driver::stream::synchronize(self.gpu.stream);
            let _ = driver::module::unload(self.module);
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream, the modules or the context any more. After a failed kernel these fail too, which
        // nobody can help.
        unsafe {
            let _ = driver::stream::synchronize(self.stream);
            for module in self.modules.borrow().values() {
                let _ = driver::module::unload(module.handle);
            }
            let _ = driver::stream::destroy(self.stream);
            let _ = driver::primary_ctx::release(self.device);
        }
    }
}

impl Buffer {
    /// Its address on the GPU; at least 256-byte aligned.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the buffer owns the allocation; the driver waits for launches that may use it.
        let _ = unsafe { driver::free_sync(self.at) };
    }
}
