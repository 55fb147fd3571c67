//! What can go wrong below the model.

use reel_kernels::DType;

/// An error of a device, a tensor or the tape.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// An op was given shapes or dtypes that it does not take.
    #[error("{op}: {what}")]
    Shape {
        /// The op's name.
        op: &'static str,
        /// Argument, expected, got, likely cause.
        what: String,
    },
    /// The device has no room.
    #[error(
        "device memory: no room for {} of {category} beside {}; {advice} (`reel plan` says what fits)",
        size(*.bytes),
        list(.held)
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// What they were for.
        category: &'static str,
        /// Bytes held by then, by what they are for.
        held: Vec<(&'static str, usize)>,
        /// What to do.
        advice: &'static str,
    },
    /// A trainable parameter was used and got no gradient: a backward rule is missing.
    #[error("{0}: used in the forward pass, but no gradient reached it; an op on the way has no backward rule")]
    NoGradient(String),
    /// Backward was asked of a result that no trainable parameter took part in.
    #[error("backward: nothing trainable took part in this result; check which parameters are frozen")]
    NothingToTrain,
    /// A tensor has another dtype than the caller asked to read.
    #[error("tensor of {got} read as {want}; cast it first")]
    DType {
        /// What it is.
        got: DType,
        /// What was asked.
        want: DType,
    },
    /// The device is not there.
    #[error("{0}")]
    Device(String),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// A [`RuntimeError::Shape`].
pub(crate) fn shape_error(op: &'static str, what: impl Into<String>) -> RuntimeError {
    RuntimeError::Shape { op, what: what.into() }
}

/// `1.5 GiB`.
fn size(bytes: usize) -> String {
    const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.into_iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or_else(|| format!("{bytes} bytes"), |(name, unit)| format!("{:.1} {name}", bytes as f64 / unit as f64))
}

/// `weights 14.2 GiB, gradients 14.2 GiB`, of what takes any.
fn list(held: &[(&'static str, usize)]) -> String {
    let held: Vec<String> = held
        .iter()
        .filter(|h| h.1 > 0)
        .map(|(name, bytes)| format!("{} {}", name.replace('_', " "), size(*bytes)))
        .collect();
    if held.is_empty() { "nothing".to_string() } else { held.join(", ") }
}
