//! Reports ranges to a profiling tool that uses NVTX 3, such as NVIDIA Nsight Systems.
//!
//! No library is linked. A tool names its own library in an environment variable; without it nothing is opened:
//!
//! ```text
//! tool                                           this program
//! NVTX_INJECTION64_PATH=/…/libTool.so
//!                                                open the library
//! InitializeInjectionNvtx2(export_table)    <--  call it
//! export_table(1).module_table(5)           -->  pointers to the variables for function pointers, by number
//! write its own functions to some of them
//! return 1
//!                                                create the domain "reel"; call push and pop for each range
//! ```
//!
//! Source: NVIDIA's NVTX headers (github.com/NVIDIA/NVTX), `nvtxTypes.h`, `nvtxInit.h` and `nvToolsExt.h`, for the
//! names, numbers and layouts.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString, c_char, c_int, c_uint, c_void};
use std::mem::{size_of, transmute};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::{NVTX, RangeName, listen};
use crate::shared_library::SharedLibrary;

/// The environment variable with the path of the tool's library.
pub const NVTX_INJECTION_VARIABLE: &str = "NVTX_INJECTION64_PATH";

/// The NVTX domain of the ranges, by which a tool can filter them.
const DOMAIN: &std::ffi::CStr = c"reel";
/// The version of the NVTX interface.
const VERSION: u32 = 3;
/// `NVTX_MESSAGE_TYPE_ASCII`: a zero-terminated string of bytes, which tools read as UTF-8.
const BYTE_STRING: i32 = 1;

/// Number of functions of each module, the unused function 0 included. The modules are: none, core, CUDA, OpenCL, CUDA
/// runtime, core with domains, synchronisation.
const FUNCTION_COUNTS: [usize; 7] = [0, 16, 9, 16, 7, 16, 7];
const MOST_FUNCTIONS: usize = 16;
/// The module of the functions with domains, `NVTX_CB_MODULE_CORE2`.
const DOMAIN_MODULE: usize = 5;
/// The numbers of four functions in [`DOMAIN_MODULE`]: begin a range, end a range, name a category, and create a
/// domain.
const PUSH: usize = 4;
const POP: usize = 5;
const NAME_CATEGORY: usize = 8;
const CREATE_DOMAIN: usize = 12;

/// The variables to which the tool writes the addresses of its functions, by module and function number.
static FUNCTIONS: [[AtomicPtr<c_void>; MOST_FUNCTIONS]; FUNCTION_COUNTS.len()] =
    [const { [const { AtomicPtr::new(ptr::null_mut()) }; MOST_FUNCTIONS] }; FUNCTION_COUNTS.len()];

/// For each module: the addresses of its variables in [`FUNCTIONS`], followed by a null.
type FunctionTable = [Option<&'static AtomicPtr<c_void>>; MOST_FUNCTIONS + 1];

/// The attributes of a range, `nvtxEventAttributes_t`.
#[repr(C)]
struct EventAttributes {
    version: u16,
    size: u16,
    category: u32,
    color_type: i32,
    color: u32,
    payload_type: i32,
    reserved: i32,
    payload: u64,
    message_type: i32,
    message: *const c_char,
}

const _: () = assert!(size_of::<EventAttributes>() == 48, "the layout in nvToolsExt.h");

/// The struct `NvtxExportTableCallbacks` of `nvtxTypes.h`.
#[repr(C)]
struct Callbacks {
    struct_size: usize,
    module_table: extern "C" fn(c_int, *mut *const Option<&'static AtomicPtr<c_void>>, *mut c_uint) -> c_int,
}

/// The struct `NvtxExportTableVersionInfo` of `nvtxTypes.h`.
#[repr(C)]
struct VersionInfo {
    struct_size: usize,
    version: u32,
    reserved: u32,
    set_injection_version: extern "C" fn(u32),
}

type Initialise = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
type CreateDomain = unsafe extern "C" fn(*const c_char) -> *mut c_void;
type NameCategory = unsafe extern "C" fn(*mut c_void, u32, *const c_char);
type Push = unsafe extern "C" fn(*mut c_void, *const EventAttributes) -> c_int;
type Pop = unsafe extern "C" fn(*mut c_void) -> c_int;

/// An attached profiling tool that receives ranges.
struct Tool {
    domain: AtomicPtr<c_void>,
    push: Push,
    pop: Pop,
    /// Keeps the library open, because the function pointers of this struct point into it.
    _library: SharedLibrary,
}

static TOOL: OnceLock<Tool> = OnceLock::new();

/// Opens the library that [`NVTX_INJECTION_VARIABLE`] names, if it is set, and reports ranges to it from now on.
///
/// # Errors
/// The library cannot be opened, is not a library for NVTX 3, or fails to start. The error is the reason in one line.
/// The tool then gets no ranges.
pub fn attach_nvtx_tool() -> Result<(), String> {
    match std::env::var_os(NVTX_INJECTION_VARIABLE) {
        Some(path) if !path.is_empty() && TOOL.get().is_none() => attach(path),
        _ => Ok(()),
    }
}

fn attach(path: OsString) -> Result<(), String> {
    let library = SharedLibrary::open(path)?;
    // SAFETY: `Initialise` is the type of this function in `nvtxTypes.h`.
    let initialise = unsafe { library.function::<Initialise>(c"InitializeInjectionNvtx2") }?;
    // SAFETY: a library for NVTX 3 is called once, with the function that returns the export tables.
    if unsafe { initialise(export_table) } == 0 {
        return Err("its function InitializeInjectionNvtx2 returned 0, which means that it failed".into());
    }
    let function = |number: usize| -> *mut c_void { FUNCTIONS[DOMAIN_MODULE][number].load(Ordering::Acquire) };
    let (push, pop) = (function(PUSH), function(POP));
    if push.is_null() || pop.is_null() {
        // A tool takes only the functions that it needs, and this tool takes none for ranges. Its library stays open,
        // because the library may have started threads.
        std::mem::forget(library);
        return Ok(());
    }
    // SAFETY: the tool has written functions of these types to the variables with these numbers.
    let (push, pop) = unsafe { (transmute::<*mut c_void, Push>(push), transmute::<*mut c_void, Pop>(pop)) };
    let create = function(CREATE_DOMAIN);
    let domain = match create.is_null() {
        true => ptr::null_mut(),
        // SAFETY: the tool's function has this type. The name is a zero-terminated string of the program.
        false => unsafe { transmute::<*mut c_void, CreateDomain>(create)(DOMAIN.as_ptr()) },
    };
    let name_category = function(NAME_CATEGORY);
    if !name_category.is_null() {
        // SAFETY: the tool's function has this type, and its arguments live during the call.
        let name_category = unsafe { transmute::<*mut c_void, NameCategory>(name_category) };
        for (number, kind) in (1..).zip(RangeName::KINDS) {
            let Ok(kind) = CString::new(kind) else { continue };
            // SAFETY: the domain is the tool's own; the name is a zero-terminated string during the call.
            unsafe { name_category(domain, number, kind.as_ptr()) };
        }
    }
    let tool = Tool { domain: AtomicPtr::new(domain), push, pop, _library: library };
    if TOOL.set(tool).is_ok() {
        listen(NVTX, true);
    }
    Ok(())
}

/// Tells whether a profiling tool receives the ranges.
pub fn is_tool_attached() -> bool {
    TOOL.get().is_some()
}

/// Begins a range of this thread in the profiling tool.
pub(super) fn push_range(name: &RangeName) {
    let Some(tool) = TOOL.get() else { return };
    let message = CString::new(name.to_string()).unwrap_or_default();
    let attributes = EventAttributes {
        version: VERSION as u16,
        size: size_of::<EventAttributes>() as u16,
        category: name.kind_index() as u32 + 1,
        color_type: 0,
        color: 0,
        payload_type: 0,
        reserved: 0,
        payload: 0,
        message_type: BYTE_STRING,
        message: message.as_ptr(),
    };
    // SAFETY: the tool's function, called with its domain. The attributes and the message live during the call.
    unsafe { (tool.push)(tool.domain.load(Ordering::Relaxed), &attributes) };
}

/// Ends the innermost range of this thread in the profiling tool.
pub(super) fn pop_range() {
    let Some(tool) = TOOL.get() else { return };
    // SAFETY: the tool's function, called with its domain.
    unsafe { (tool.pop)(tool.domain.load(Ordering::Relaxed)) };
}

/// Returns the export table with this number to the tool: `NvtxGetExportTableFunc_t`.
extern "C" fn export_table(number: u32) -> *const c_void {
    static CALLBACKS: Callbacks = Callbacks { struct_size: size_of::<Callbacks>(), module_table };
    static VERSION_INFO: VersionInfo =
        VersionInfo { struct_size: size_of::<VersionInfo>(), version: VERSION, reserved: 0, set_injection_version };
    match number {
        1 => ptr::from_ref(&CALLBACKS).cast(),
        3 => ptr::from_ref(&VERSION_INFO).cast(),
        _ => ptr::null(),
    }
}

/// Passes the function table of a module to the tool. Returns 0 if there is no such module.
extern "C" fn module_table(
    module: c_int,
    table: *mut *const Option<&'static AtomicPtr<c_void>>,
    count: *mut c_uint,
) -> c_int {
    static TABLES: OnceLock<[FunctionTable; FUNCTION_COUNTS.len()]> = OnceLock::new();
    let tables = TABLES.get_or_init(|| {
        std::array::from_fn(|module| {
            let functions = 1..FUNCTION_COUNTS[module];
            std::array::from_fn(|number| functions.contains(&number).then(|| &FUNCTIONS[module][number]))
        })
    });
    let known = usize::try_from(module).ok().filter(|&module| module > 0);
    let Some((functions, &own_count)) = known.and_then(|module| tables.get(module).zip(FUNCTION_COUNTS.get(module)))
    else {
        return 0;
    };
    if !table.is_null() {
        // SAFETY: the tool passes the address of one of its variables, or null.
        unsafe { table.write(functions.as_ptr()) };
    }
    if !count.is_null() {
        // SAFETY: the tool passes the address of one of its variables, or null.
        unsafe { count.write(own_count as c_uint) };
    }
    1
}

/// The tool passes the NVTX version that it uses. All versions have the functions that are used here.
extern "C" fn set_injection_version(_version: u32) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the table of a module's functions, and the number of functions.
    fn table_of(module: c_int) -> Option<(&'static [Option<&'static AtomicPtr<c_void>>], usize)> {
        let (mut table, mut count) = (ptr::null(), 0);
        let found = module_table(module, &mut table, &mut count) != 0;
        // SAFETY: a table has one entry more than there are functions, the null at its end.
        found.then(|| (unsafe { std::slice::from_raw_parts(table, count as usize + 1) }, count as usize))
    }

    #[test]
    fn a_tool_finds_a_variable_for_each_function() {
        for (module, want) in FUNCTION_COUNTS.into_iter().enumerate().skip(1) {
            let (table, count) = table_of(module as c_int).unwrap();
            assert_eq!(count, want);
            assert!(table[0].is_none() && table[count].is_none() && table[1..count].iter().all(Option::is_some));
        }
        assert!(table_of(0).is_none() && table_of(7).is_none() && table_of(-1).is_none());
        let (table, _) = table_of(DOMAIN_MODULE as c_int).unwrap();
        let [push, pop] = [PUSH, POP].map(|number| ptr::from_ref(table[number].unwrap()));
        let own = |number: usize| ptr::from_ref(&FUNCTIONS[DOMAIN_MODULE][number]);
        assert!(push == own(PUSH) && pop == own(POP));
        assert!(!export_table(1).is_null() && export_table(2).is_null() && !export_table(3).is_null());
    }

    #[test]
    fn a_library_that_is_no_tool_is_an_error_in_one_line() {
        let missing = attach("/nowhere/libtool.so".into()).unwrap_err();
        let other = attach("libc.so.6".into()).unwrap_err();
        assert!(missing.contains("/nowhere/libtool.so") && other.contains("InitializeInjectionNvtx2"), "{other}");
        assert!(!missing.contains('\n') && !other.contains('\n'));
    }
}
