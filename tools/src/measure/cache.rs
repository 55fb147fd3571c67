//! The caches of this CPU: their total capacity, and the rate at which the cores read data from them.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use reel_device::{Device, Team, simd_fn};
use serde::Serialize;

/// Capacity and bandwidth of the CPU's caches. If the operands of a launch are in the caches, this bandwidth limits
/// the launch, not the bandwidth of memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CacheCeiling {
    /// Bytes that all caches hold together.
    pub capacity: f64,
    /// Bytes per second that the cores together read from their first-level caches.
    pub bytes: f64,
}

/// Where Linux describes the caches of each CPU.
const SYSFS: &str = "/sys/devices/system/cpu";

/// The capacity in bytes that is assumed if Linux does not describe the caches. It is more than any CPU has, so that
/// the memory bandwidth never limits data that may be in a cache.
const ASSUMED_CAPACITY: f64 = 1e9;

/// Number of bytes that each thread reads repeatedly. They fit into the first-level cache of every current CPU.
const BLOCK: usize = 16 << 10;

/// Number of times that a thread reads its block in one timing. One timing then takes about a millisecond.
const REPETITIONS: usize = 3_000;

/// Measures the caches with this team of threads.
pub fn measure_caches(team: &Team) -> CacheCeiling {
    CacheCeiling { capacity: capacity(Path::new(SYSFS)).unwrap_or(ASSUMED_CAPACITY), bytes: bytes_per_second(team) }
}

/// Size in bytes of an array that does not fit into the caches: several times the capacity of the caches, but at most a
/// quarter of the free memory.
pub(crate) fn bytes_beyond_caches() -> usize {
    const LEAST: usize = 256 << 20;
    const TIMES: f64 = 4.0;
    let caches = capacity(Path::new(SYSFS)).map_or(0, |capacity| (TIMES * capacity) as usize);
    let free = Device::cpu(1).free_bytes().map_or(0, |free| usize::try_from(free / 4).unwrap_or(usize::MAX));
    caches.min(free).max(LEAST)
}

/// The sum of the sizes of all data caches in bytes; a cache that several CPUs share counts once. `None` if `sysfs`
/// does not describe the caches.
fn capacity(sysfs: &Path) -> Option<f64> {
    let mut sizes = BTreeMap::new();
    for cpu in fs::read_dir(sysfs).ok()?.flatten().map(|entry| entry.path().join("cache")) {
        for cache in fs::read_dir(cpu).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let text = |name: &str| fs::read_to_string(cache.join(name)).ok().map(|text| text.trim().to_string());
            let (Some(level), Some(kind), Some(shared)) = (text("level"), text("type"), text("shared_cpu_list")) else {
                continue;
            };
            if let Some(bytes) = text("size").and_then(|size| parse_size(&size)).filter(|_| kind != "Instruction") {
                sizes.insert((level, shared), bytes);
            }
        }
    }
    if sizes.is_empty() { None } else { Some(sizes.values().sum()) }
}

/// Parses a size such as `32K` or `48M`.
fn parse_size(text: &str) -> Option<f64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" => 1.0,
        "K" => 1024.0,
        "M" => 1024.0 * 1024.0,
        "G" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

/// The highest of several measured rates, in bytes per second of all threads together. In each timing, every thread
/// reads its own block from its first-level cache.
fn bytes_per_second(team: &Team) -> f64 {
    let blocks: Vec<Vec<u32>> = (0..team.threads()).map(|_| (0..BLOCK as u32 / 4).collect()).collect();
    let read = |i: usize| {
        for _ in 0..REPETITIONS {
            black_box(fold(black_box(&blocks[i])));
        }
    };
    let amount = (BLOCK * REPETITIONS * team.threads()) as f64;
    let seconds = (0..5).map(|_| {
        let start = Instant::now();
        team.run(team.threads(), read);
        start.elapsed().as_secs_f64()
    });
    amount / seconds.fold(f64::INFINITY, f64::min)
}

simd_fn! {
    fn fold(x: &[u32]) -> u32 {
        let mut lanes = [0u32; 128];
        for x in x.as_chunks::<128>().0 {
            for i in 0..128 {
                lanes[i] ^= x[i];
            }
        }
        lanes.iter().fold(0, |a, b| a ^ b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_caches_count_once() {
        let sysfs = tempfile::tempdir().unwrap();
        for (cpu, index, level, kind, size, shared) in [
            (0, 0, "1", "Data", "32K", "0"),
            (0, 1, "1", "Instruction", "32K", "0"),
            (0, 2, "3", "Unified", "2M", "0-1"),
            (1, 0, "1", "Data", "32K", "1"),
            (1, 2, "3", "Unified", "2M", "0-1"),
        ] {
            let cache = sysfs.path().join(format!("cpu{cpu}/cache/index{index}"));
            fs::create_dir_all(&cache).unwrap();
            for (name, text) in [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)] {
                fs::write(cache.join(name), format!("{text}\n")).unwrap();
            }
        }
        assert_eq!(capacity(sysfs.path()), Some((2.0 * 32.0 + 2048.0) * 1024.0));
        assert_eq!(capacity(&sysfs.path().join("none")), None);
        assert_eq!((parse_size("7"), parse_size("1G"), parse_size("x")), (Some(7.0), Some(1_073_741_824.0), None));
    }

    #[test]
    fn caches_are_plausible() {
        let caches = measure_caches(&Team::new(1));
        assert!((1e4..1e11).contains(&caches.capacity) && (1e6..1e15).contains(&caches.bytes), "{caches:?}");
    }
}
