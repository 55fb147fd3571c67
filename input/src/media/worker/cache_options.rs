//! The options of the cache of frames on disk.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::DiskFrameCache;
use crate::error::{Error, Result};

/// Options of commands that decode the same videos again and again.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Media options")]
pub struct FrameCacheOptions {
    /// Keep the selected and resized frames of videos in this folder, for all processes and later runs; the frames have
    /// the same bits as decoded ones
    #[arg(long, value_name = "DIR")]
    pub frame_cache: Option<PathBuf>,
    /// Maximum size of the folder of --frame-cache, such as 50GB or 20GiB; the frames that were not used for the longest
    /// time are removed first [default: 100GB]
    #[arg(long, value_name = "SIZE")]
    pub frame_cache_limit: Option<String>,
}

/// The limit without `--frame-cache-limit`.
const DEFAULT_LIMIT: &str = "100GB";

impl FrameCacheOptions {
    /// Opens the cache; `None` without `--frame-cache`.
    ///
    /// # Errors
    /// The limit is no size, or the folder cannot be used ([`DiskFrameCache::open`]).
    pub fn open(&self) -> Result<Option<DiskFrameCache>> {
        let limit = parse_size(self.frame_cache_limit.as_deref().unwrap_or(DEFAULT_LIMIT));
        let limit = limit.map_err(|what| Error::setting("frame_cache_limit", what, SIZE_HELP))?;
        self.frame_cache.as_deref().map(|folder| DiskFrameCache::open(folder, limit)).transpose()
    }
}

const SIZE_HELP: &str = "give a number with a unit, such as 50GB or 20GiB";

/// Units of sizes and their bytes.
const UNITS: [(&str, f64); 9] = [
    ("TiB", (1u64 << 40) as f64),
    ("GiB", (1 << 30) as f64),
    ("MiB", (1 << 20) as f64),
    ("KiB", (1 << 10) as f64),
    ("TB", 1e12),
    ("GB", 1e9),
    ("MB", 1e6),
    ("kB", 1e3),
    ("B", 1.0),
];

/// Parses a size above 0 with a unit; returns bytes. The error says what is wrong.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let size = UNITS.iter().find_map(|(unit, bytes)| {
        let number = text.strip_suffix(unit)?.trim_end().parse::<f64>();
        Some(number.ok()? * bytes).filter(|bytes| *bytes >= 1.0 && *bytes < u64::MAX as f64)
    });
    size.map(|bytes| bytes as u64).ok_or_else(|| format!("{text} is not a size above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        let cases = [
            ("50GB", 50_000_000_000),
            ("1.5 GiB", 3 << 29),
            ("7B", 7),
            ("2kB", 2000),
            ("3KiB", 3072),
            ("4TB", 4_000_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "5", "GB", "-1GB", "0B", "nanGB", "infTB", "1gb", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        let options = FrameCacheOptions { frame_cache_limit: Some("5".into()), ..FrameCacheOptions::default() };
        let error = options.open().unwrap_err().to_string();
        assert_eq!(error, format!("frame_cache_limit: 5 is not a size above 0; {SIZE_HELP}"));
    }
}
