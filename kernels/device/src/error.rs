//! The error type of this crate.

use reel_support::error::{Error, Kind};

/// A device failed, or it is not available.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A device memory allocation failed.
    #[error(
        "device memory: cannot allocate {} for {category}, in use: {}; {advice} (`reel plan` shows what fits)",
        format_bytes(*.bytes as u64),
        list(.held)
    )]
    OutOfMemory {
        /// The size of the failed allocation, in bytes.
        bytes: usize,
        /// The category of the memory, such as weights.
        category: &'static str,
        /// Bytes in use at the time of the failure, by category.
        held: Vec<(&'static str, usize)>,
        /// The options that would reduce this memory.
        advice: &'static str,
    },
    /// The device is not available, or it failed.
    #[error("{0}")]
    Failed(String),
}

impl From<DeviceError> for Error {
    fn from(e: DeviceError) -> Self {
        let kind = if matches!(e, DeviceError::OutOfMemory { .. }) { Kind::OutOfMemory } else { Kind::Device };
        Error { kind, ..Error::device(e.to_string()) }
    }
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, DeviceError>;

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
