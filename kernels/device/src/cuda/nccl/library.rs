//! NVIDIA's NCCL library, opened at run time. Source: nccl.h of NCCL 2.32.3 and NVIDIA's NCCL user guide.
//!
//! No binding crate is used, because the library must be opened from a folder found at run time, like cuBLASLt.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::null;
use std::sync::OnceLock;

use super::{CommHandle, Nccl, NcclResult, UniqueId};
use crate::compile::toolkit::Toolkit;
use crate::cuda::context::Context;
use crate::cuda::error::{CudaError, nccl_version_text};
use crate::cuda::types::StreamHandle;
use reel_support::shared_library::SharedLibrary;

/// The oldest supported version, 2.18: the first whose `ncclConfig_t` has the fields of [`Config`].
const OLDEST: u32 = 21_800;
/// The file name of the library.
const LIBRARY: &str = "libnccl.so.2";
/// `ncclInt8`, the data type of bytes.
const INT8: c_int = 0;
/// `NCCL_API_MAGIC` of nccl.h, the value of the field `magic` in `ncclConfig_t`.
const MAGIC: c_uint = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT`: the library chooses the value.
const UNDEFINED: c_int = c_int::MIN;

type Comm = *mut c_void;
type Status = c_int;
type OfComm = unsafe extern "C" fn(Comm) -> Status;

#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; 128]);

/// `ncclConfig_t` as of version 2.18. Newer versions append fields. If `size` is the size of an older version's struct,
/// a newer library uses the defaults for the appended fields.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    fn nonblocking() -> Config {
        Config {
            size: size_of::<Config>(),
            magic: MAGIC,
            version: OLDEST,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: null(),
            split_share: UNDEFINED,
        }
    }
}

struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> Status,
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    get_unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    init_rank_config: unsafe extern "C" fn(*mut Comm, c_int, Id, c_int, *mut Config) -> Status,
    get_async_error: unsafe extern "C" fn(Comm, *mut Status) -> Status,
    group_start: unsafe extern "C" fn() -> Status,
    group_end: unsafe extern "C" fn() -> Status,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status,
    recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status,
    finalize: OfComm,
    destroy: OfComm,
    abort: OfComm,
    // Keeps the library open, because the function pointers above point into it.
    _library: SharedLibrary,
}

impl Functions {
    /// Returns the functions of the library. The library is opened once and never closed, because it runs its own
    /// threads.
    fn get() -> Result<&'static Functions, CudaError> {
        static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
        match FUNCTIONS.get() {
            Some(functions) => Ok(functions),
            None => {
                let functions = Functions::open()?;
                Ok(FUNCTIONS.get_or_init(|| functions))
            }
        }
    }

    fn open() -> Result<Functions, CudaError> {
        let places = places_beside_toolkit();
        let file = places.into_iter().find(|path| path.is_file());
        let name = file.as_deref().map_or(OsStr::new(LIBRARY), |path| path.as_os_str());
        let failed = |reason: String| CudaError::library_error(name, reason);
        let library = SharedLibrary::open(name).map_err(|reason| {
            let is_missing = file.is_none() && reason.contains("No such file");
            if is_missing { CudaError::NoNccl } else { failed(reason) }
        })?;
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the field's type is the function's type in nccl.h.
                unsafe { library.function($name) }.map_err(failed)?
            };
        }
        let functions = Functions {
            get_version: get!(c"ncclGetVersion"),
            get_error_string: get!(c"ncclGetErrorString"),
            get_last_error: get!(c"ncclGetLastError"),
            get_unique_id: get!(c"ncclGetUniqueId"),
            init_rank_config: get!(c"ncclCommInitRankConfig"),
            get_async_error: get!(c"ncclCommGetAsyncError"),
            group_start: get!(c"ncclGroupStart"),
            group_end: get!(c"ncclGroupEnd"),
            send: get!(c"ncclSend"),
            recv: get!(c"ncclRecv"),
            finalize: get!(c"ncclCommFinalize"),
            destroy: get!(c"ncclCommDestroy"),
            abort: get!(c"ncclCommAbort"),
            _library: library,
        };
        match functions.version() {
            has if has < OLDEST => Err(CudaError::OldNccl { has, needs: OLDEST }),
            _ => Ok(functions),
        }
    }

    fn version(&self) -> u32 {
        let mut version: c_int = 0;
        // SAFETY: the library writes one number.
        unsafe { (self.get_version)(&mut version) };
        version.max(0) as u32
    }
}

/// Returns the paths at which the library may be, besides the loader's search path: the folder of NVRTC or cuBLASLt,
/// and the package `nvidia-nccl` of the same Python environment.
fn places_beside_toolkit() -> Vec<PathBuf> {
    let toolkit = Toolkit::from_environment();
    // `u32::MAX` accepts every major version of cuBLASLt: NCCL may lie beside any of them.
    let libraries = [toolkit.nvrtc(), toolkit.cublas_lt(u32::MAX)].into_iter().flatten();
    libraries
        .flat_map(|library| {
            let packages = library.ancestors().filter(|folder| folder.file_name() == Some(OsStr::new("nvidia")));
            let packages = packages.map(|folder| folder.join("nccl/lib").join(LIBRARY));
            [library.with_file_name(LIBRARY)].into_iter().chain(packages).collect::<Vec<_>>()
        })
        .collect()
}

/// Returns the path of the NCCL library beside the CUDA libraries, as in one Python environment; `None` if not found.
/// The loader may find another NCCL library elsewhere. Opens no library.
pub fn library_beside_toolkit() -> Option<PathBuf> {
    places_beside_toolkit().into_iter().find(|path| path.is_file())
}

/// Returns the version of the installed NCCL library, for example `2.32.3`. Needs no GPU.
///
/// # Errors
/// [`CudaError::NoNccl`] if the library is not installed, [`CudaError::OldNccl`], or the loader's error.
pub fn installed_version() -> Result<String, CudaError> {
    Functions::get().map(|functions| nccl_version_text(functions.version()))
}

/// The NCCL library, used for one GPU.
pub(in crate::cuda) struct NcclLibrary {
    functions: &'static Functions,
    /// The GPU's context. Each call makes it current, because NCCL uses the current GPU of the calling thread.
    context: Context,
}

impl NcclLibrary {
    /// Opens the library for a GPU's context. The caller keeps the context retained as long as it uses the library.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`] if the library is not installed, [`CudaError::OldNccl`], or the loader's error.
    pub fn open(context: Context) -> Result<NcclLibrary, CudaError> {
        Ok(NcclLibrary { functions: Functions::get()?, context })
    }

    /// Calls `f` with the GPU's context current on this thread.
    fn call(&self, f: impl FnOnce(&Functions) -> Status) -> NcclResult {
        // SAFETY: the caller of `open` keeps the context retained.
        match unsafe { self.context.make_current() } {
            Ok(()) => NcclResult(f(self.functions)),
            Err(_) => NcclResult::UNHANDLED_CUDA_ERROR,
        }
    }
}

// SAFETY (of each call below): `Nccl` requires of its callers what the library requires of its callers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Nccl for NcclLibrary {
    fn version(&self) -> u32 {
        self.functions.version()
    }

    fn describe(&self, result: NcclResult) -> String {
        let text = |text: *const c_char| match text.is_null() {
            true => String::new(),
            false => {
                let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            }
        };
        let meaning = text(unsafe { (self.functions.get_error_string)(result.0) });
        // `ncclGetLastError` ignores its communicator argument.
        let last = text(unsafe { (self.functions.get_last_error)(std::ptr::null_mut()) });
        if last.is_empty() { meaning } else { format!("{meaning}; {last}") }
    }

    fn unique_id(&self) -> Result<UniqueId, NcclResult> {
        let mut id = Id([0; 128]);
        match self.call(|f| unsafe { (f.get_unique_id)(&mut id) }) {
            NcclResult::SUCCESS => Ok(id.0),
            error => Err(error),
        }
    }

    fn init_rank(&self, size: usize, id: &UniqueId, rank: usize) -> Result<CommHandle, NcclResult> {
        let (mut comm, mut config) = (std::ptr::null_mut(), Config::nonblocking());
        let init = |f: &Functions| unsafe {
            (f.init_rank_config)(&mut comm, size as c_int, Id(*id), rank as c_int, &mut config)
        };
        match self.call(init) {
            result if result.is_accepted() => Ok(CommHandle(comm as usize)),
            error => Err(error),
        }
    }

    unsafe fn async_error(&self, comm: CommHandle) -> NcclResult {
        let mut state = 0;
        match self.call(|f| unsafe { (f.get_async_error)(comm.raw(), &mut state) }) {
            NcclResult::SUCCESS => NcclResult(state),
            error => error,
        }
    }

    fn group_start(&self) -> NcclResult {
        self.call(|f| unsafe { (f.group_start)() })
    }

    fn group_end(&self) -> NcclResult {
        self.call(|f| unsafe { (f.group_end)() })
    }

    unsafe fn send(&self, from: u64, bytes: usize, peer: usize, comm: CommHandle, stream: StreamHandle) -> NcclResult {
        let (from, stream) = (from as *const c_void, stream.0 as *mut c_void);
        self.call(|f| unsafe { (f.send)(from, bytes, INT8, peer as c_int, comm.raw(), stream) })
    }

    unsafe fn receive(&self, to: u64, bytes: usize, peer: usize, comm: CommHandle, stream: StreamHandle) -> NcclResult {
        let (to, stream) = (to as *mut c_void, stream.0 as *mut c_void);
        self.call(|f| unsafe { (f.recv)(to, bytes, INT8, peer as c_int, comm.raw(), stream) })
    }

    unsafe fn finalize(&self, comm: CommHandle) -> NcclResult {
        self.call(|f| unsafe { (f.finalize)(comm.raw()) })
    }

    unsafe fn destroy(&self, comm: CommHandle) -> NcclResult {
        self.call(|f| unsafe { (f.destroy)(comm.raw()) })
    }

    unsafe fn abort(&self, comm: CommHandle) -> NcclResult {
        self.call(|f| unsafe { (f.abort)(comm.raw()) })
    }
}

impl CommHandle {
    fn raw(self) -> Comm {
        self.0 as Comm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of `ncclConfig_v21700` in nccl.h of version 2.18.
    #[test]
    fn config_has_the_layout_of_nccl_h() {
        let offsets = [
            std::mem::offset_of!(Config, magic),
            std::mem::offset_of!(Config, version),
            std::mem::offset_of!(Config, blocking),
            std::mem::offset_of!(Config, net_name),
            std::mem::offset_of!(Config, split_share),
        ];
        assert_eq!((offsets, size_of::<Config>()), ([8, 12, 16, 32, 40], 48));
    }

    /// Creating an id needs the library but no GPU.
    #[test]
    fn library_opens_without_a_gpu() {
        let functions = match Functions::get() {
            Ok(functions) => functions,
            Err(e) => {
                assert_eq!(installed_version().unwrap_err().to_string(), e.to_string());
                assert!(matches!(e, CudaError::NoNccl), "{e}");
                println!("skipped: library_opens_without_a_gpu: {e}");
                return;
            }
        };
        assert_eq!(installed_version().unwrap(), nccl_version_text(functions.version()));
        let new_id = || {
            let mut id = Id([0; 128]);
            // SAFETY: the library writes an id.
            assert_eq!(unsafe { (functions.get_unique_id)(&mut id) }, 0);
            id.0
        };
        assert_ne!(new_id(), new_id());
    }
}
