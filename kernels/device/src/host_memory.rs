//! Queries the free memory of the host, and the memory that this process uses.

use std::fs;
use std::path::Path;

/// Returns the bytes of host memory that this process can still allocate: the smaller of the machine's free memory
/// and the free memory of its cgroup, if the cgroup has a limit. `None` if unknown.
pub fn free_host_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
    let group = free_in_cgroup("memory.max", "memory.current", "inactive_file").or_else(|| {
        free_in_cgroup("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")
    });
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// Returns the bytes of host memory that this process uses (its resident set), mapped files included. `None` if
/// unknown.
pub fn resident_host_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Returns the bytes that the process's cgroup can still allocate, if the cgroup has a memory limit. The page cache
/// does not count as used.
fn free_in_cgroup(limit: &str, used: &str, files: &str) -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let number = |name: &str| fs::read_to_string(root.join(name)).ok()?.trim().parse::<u64>().ok();
    // Without a limit, the file contains the word `max`, and the result is `None`.
    let (limit, used_path) = (number(limit)?, root.join(used));
    let stat = fs::read_to_string(used_path.with_file_name("memory.stat")).ok()?;
    let files = stat.lines().find_map(|line| line.strip_prefix(files)?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(number(used)?.saturating_sub(files.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_written_is_resident() {
        let block = vec![1u8; 64 << 20];
        assert!(resident_host_bytes().unwrap() >= block.len() as u64);
    }
}
