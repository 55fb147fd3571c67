//! The options of the cache of frames on disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::DiskFrameCache;
use crate::error::Result;

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
    pub frame_cache_limit: Option<ByteSize>,
}

/// The limit without `--frame-cache-limit`: 100 GB.
const DEFAULT_LIMIT: ByteSize = ByteSize(100_000_000_000);

impl FrameCacheOptions {
    /// Opens the cache; `None` without `--frame-cache`.
    ///
    /// # Errors
    /// The folder cannot be used ([`DiskFrameCache::open`]).
    pub fn open(&self) -> Result<Option<DiskFrameCache>> {
        let limit = self.frame_cache_limit.unwrap_or(DEFAULT_LIMIT);
        self.frame_cache.as_deref().map(|folder| DiskFrameCache::open(folder, limit.0)).transpose()
    }
}

/// A number of bytes, written with a unit: B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB or TiB (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

/// The units of [`ByteSize`].
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text} is not a size above 0; give a number with a unit, such as 50GB or 20GiB");
        let (number, unit) =
            UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes))).ok_or_else(wrong)?;
        let bytes = number.trim_end().parse::<f64>().map_err(|_| wrong())? * unit as f64;
        if bytes >= 1.0 && bytes < u64::MAX as f64 { Ok(Self(bytes as u64)) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for ByteSize {
    /// Writes the size in the largest unit of which it is a multiple.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = UNITS
            .into_iter()
            .filter(|(_, bytes)| self.0.is_multiple_of(*bytes))
            .max_by_key(|u| u.1)
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        let parse = |text: &str| text.parse::<ByteSize>().map(|size| size.0).ok();
        let cases = [
            ("50GB", 50_000_000_000),
            ("1.5 GiB", 3 << 29),
            ("7B", 7),
            ("2kB", 2000),
            ("3KiB", 3072),
            ("4TB", 4_000_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "5", "GB", "-1GB", "0B", "nanGB", "infTB", "1gb", "99999999999TiB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn written_sizes_are_read_again(bytes in 1u64..1 << 53) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>(), Ok(ByteSize(bytes)));
        }
    }
}
