//! The error of devices, tensors and the tape.

use reel_device::DType;

/// An error of a device, a tensor or the tape.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// An op was called with shapes or dtypes that it does not accept.
    #[error("{op}: {what}")]
    Shape {
        /// The name of the op, such as `linear`.
        op: &'static str,
        /// The argument, its expected and actual shape or dtype, and a likely cause.
        what: String,
    },
    /// A device memory allocation failed.
    #[error(
        "device memory: cannot allocate {} for {category}, in use: {}; {advice} (`reel plan` shows what fits)",
        format_bytes(*.bytes as u64),
        list(.held)
    )]
    OutOfMemory {
        /// The size of the failed allocation, in bytes.
        bytes: usize,
        /// The category that the memory was for.
        category: &'static str,
        /// Bytes in use at the time of the failure, by category.
        held: Vec<(&'static str, usize)>,
        /// The options that would reduce this memory.
        advice: &'static str,
    },
    /// A trained parameter was used in the forward pass but received no gradient, because an op has no backward rule.
    #[error(
        "{0}: used in the forward pass, but no gradient reached it; an op between it and the loss has no backward rule"
    )]
    NoGradient(String),
    /// The backward pass was started from a result that does not depend on any trained parameter.
    #[error("backward: the loss does not depend on any trained parameter; check which parameters are frozen")]
    NothingToTrain,
    /// A tensor was read with a dtype that it does not have.
    #[error("a tensor of dtype {got} was read as {want}; cast it first")]
    DType {
        /// The dtype of the tensor.
        got: DType,
        /// The dtype that the caller wanted.
        want: DType,
    },
    /// The device is not available, or it failed.
    #[error("{0}")]
    Device(String),
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// The error of an op that was called with shapes or dtypes that it does not accept.
pub(crate) fn shape_error(op: &'static str, what: impl Into<String>) -> RuntimeError {
    RuntimeError::Shape { op, what: what.into() }
}

/// Formats a number of bytes, for example `1.5 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.into_iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or_else(|| format!("{bytes} B"), |(name, unit)| format!("{:.1} {name}", bytes as f64 / unit as f64))
}

/// Formats the categories with bytes in use: `weights 14.2 GiB, gradients 14.2 GiB`.
fn list(held: &[(&'static str, usize)]) -> String {
    let held: Vec<String> = held
        .iter()
        .filter(|h| h.1 > 0)
        .map(|(name, bytes)| format!("{} {}", name.replace('_', " "), format_bytes(*bytes as u64)))
        .collect();
    if held.is_empty() { "nothing".to_string() } else { held.join(", ") }
}
