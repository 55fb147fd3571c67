//! How much memory of the host is free, and how much this process uses.

use std::fs;
use std::path::Path;

/// The bytes of host memory that this process can still allocate: the smaller of the machine's free memory and, if
/// there is a limit, of the free memory of its cgroup. `None` if they are unknown.
pub fn free_host_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
    let group = free_in_cgroup("memory.max", "memory.current", "inactive_file").or_else(|| {
        free_in_cgroup("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")
    });
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// The bytes of host memory that this process has in use (its resident set), files that it has mapped included. `None`
/// if they are unknown.
pub fn resident_host_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Bytes that the process's cgroup can still allocate, if it has a memory limit. The page cache does not count as
/// used.
fn free_in_cgroup(limit: &str, used: &str, files: &str) -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let number = |name: &str| fs::read_to_string(root.join(name)).ok()?.trim().parse::<u64>().ok();
    // Without a limit the file has the word `max`, and the result is `None`.
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
