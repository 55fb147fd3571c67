//! The native module `reel_sim._native` of the Python package: the program, a check, and SARIF.
//!
//! The package converts Python objects; what passes between it and this module are JSON texts and bytes (`request.rs`).

mod request;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use reel_sim::front;
use reel_sim::kernel_check;

use request::Request;

/// The time between two looks at whether the check has ended or the user has interrupted it.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// A check's report as JSON, as text and as a speedscope document, and the bytes of the buffers after the first run.
type Outcome = (String, String, String, Vec<Py<PyBytes>>);

/// What a check returns to the thread that waits for it.
type Checked = anyhow::Result<(String, String, String, Vec<Vec<u8>>)>;

/// Checks a kernel. `request` is a JSON object; `buffers` are the contents of its buffers, `None` for memory that
/// nothing has written.
///
/// Raises ValueError with one line if the kernel could not be checked.
#[pyfunction]
fn check(py: Python<'_>, request: &str, buffers: Vec<Option<Vec<u8>>>) -> PyResult<Outcome> {
    let request: Request = serde_json::from_str(request).map_err(|e| PyValueError::new_err(format!("request: {e}")))?;
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = cancelled.clone();
    let worker = std::thread::spawn(move || -> Checked { request.check(buffers, flag) });
    while !worker.is_finished() {
        py.detach(|| std::thread::sleep(BETWEEN_LOOKS));
        if let Err(interrupt) = py.check_signals() {
            cancelled.store(true, Ordering::Relaxed);
            return Err(interrupt);
        }
    }
    let done = worker.join().map_err(|_| PyRuntimeError::new_err("the simulator failed; please report this kernel"))?;
    let (json, text, flame_graph, after) = done.map_err(|e| PyValueError::new_err(e.to_string()))?;
    Ok((json, text, flame_graph, after.iter().map(|bytes| PyBytes::new(py, bytes).unbind()).collect()))
}

/// Returns a SARIF document of reports, which `check` returned as JSON; files below `root` are named relative to it.
#[pyfunction]
fn sarif(reports: Vec<String>, root: &str) -> PyResult<String> {
    let parsed: Result<Vec<serde_json::Value>, _> = reports.iter().map(|text| serde_json::from_str(text)).collect();
    let reports = parsed.map_err(|e| PyValueError::new_err(format!("report: {e}")))?;
    Ok(kernel_check::sarif(&reports, Path::new(root)).to_string())
}

/// Compiles CUDA C++ to PTX with line information by NVRTC or nvcc. `request` is as for `check`.
#[pyfunction]
fn compile(py: Python<'_>, request: &str) -> PyResult<String> {
    let request: Request = serde_json::from_str(request).map_err(|e| PyValueError::new_err(format!("request: {e}")))?;
    py.detach(|| request.ptx()).map_err(|e| PyValueError::new_err(e.to_string()))
}

/// Runs the program reel-sim with the words of a command line, and returns its exit code.
#[pyfunction]
fn program(py: Python<'_>, words: Vec<String>) -> u8 {
    py.detach(|| front::run_program(words))
}

/// Checks CUDA kernels on the CPU.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(check, module)?)?;
    module.add_function(wrap_pyfunction!(sarif, module)?)?;
    module.add_function(wrap_pyfunction!(compile, module)?)?;
    module.add_function(wrap_pyfunction!(program, module)?)
}
