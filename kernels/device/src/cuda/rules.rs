//! Checks each launch against the GPU's limits before it reaches the driver, because the driver's error names neither
//! the kernel nor the limit.
//!
//! Source: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability" and "Thread Block
//! Clusters"; Driver API manual, cuLaunchKernelEx, cuFuncSetAttribute and cuTensorMapEncodeTiled.

use super::types::{FunctionAttributes, LaunchConfig, LaunchLimits};

/// Bytes of static and dynamic shared memory that a function may use without raising its driver attribute.
pub const SHARED_BYTES_WITHOUT_ATTRIBUTE: u32 = 48 << 10;
/// Maximum number of blocks of a cluster on every GPU that supports clusters.
pub const MAX_PORTABLE_CLUSTER_BLOCKS: u32 = 8;
/// Maximum number of blocks of a cluster if the function's driver attribute allows large clusters.
pub const MAX_CLUSTER_BLOCKS: u32 = 16;
/// Maximum bytes of a kernel's parameters in this project. The driver accepts 32764 bytes from compute capability 7.0
/// on.
pub const MAX_PARAMETER_BYTES: usize = 4096;
/// The first CUDA version (times 1000) whose graphs can hold programmatic dependent launches. Such a launch needs a
/// graph edge with data (`CUgraphEdgeData`).
pub const MIN_CUDA_WITH_PROGRAMMATIC_GRAPHS: u32 = 12_030;
/// The number of registers of a warp is rounded up to a multiple of this number.
const REGISTER_UNIT: u32 = 256;

/// Tells whether graphs of a driver of this CUDA version (times 1000) can hold programmatic dependent launches.
pub fn graphs_have_programmatic_launches(version: u32) -> bool {
    version >= MIN_CUDA_WITH_PROGRAMMATIC_GRAPHS
}

/// Returns a text that says which limit a launch exceeds; `None` if the launch is possible.
pub fn exceeded_launch_limit(
    config: &LaunchConfig,
    attributes: &FunctionAttributes,
    limits: &LaunchLimits,
    parameters: usize,
) -> Option<String> {
    let LaunchConfig { grid, block, cluster, shared, programmatic, .. } = *config;
    for (what, sizes, most) in [("blocks", grid, limits.grid), ("threads per block", block, limits.block)] {
        for (i, axis) in ["x", "y", "z"].iter().enumerate() {
            if sizes[i] == 0 {
                return Some(format!("no {what} in {axis}"));
            }
            if sizes[i] > most[i] {
                return Some(format!("{} {what} in {axis}, where the GPU has at most {}", sizes[i], most[i]));
            }
        }
    }
    let threads = product(block);
    if threads > u64::from(limits.threads) {
        return Some(format!("{threads} threads per block, where the GPU has at most {}", limits.threads));
    }
    if threads > u64::from(attributes.threads) {
        return Some(format!("{threads} threads per block, where the kernel was compiled for {}", attributes.threads));
    }
    let registers = registers_of(threads as u32, attributes.registers);
    if registers > limits.registers {
        return Some(format!("{registers} registers per block, where the GPU has {}", limits.registers));
    }
    let all = u64::from(attributes.static_shared) + u64::from(shared);
    if all > u64::from(limits.shared) {
        return Some(format!(
            "{shared} bytes of dynamic and {} of static shared memory, where a block has at most {}",
            attributes.static_shared, limits.shared
        ));
    }
    if parameters > MAX_PARAMETER_BYTES {
        return Some(format!("{parameters} bytes of parameters, where kernels have at most {MAX_PARAMETER_BYTES}"));
    }
    if programmatic && limits.sm < 90 {
        let capability = dotted(limits.sm);
        return Some(format!(
            "a programmatic dependent launch, which compute capability {capability} does not support"
        ));
    }
    broken_cluster(grid, cluster, limits)
}

/// Returns why a cooperative launch is impossible on a GPU on which `resident` blocks can be resident; `None` if it
/// is possible.
pub fn exceeded_residency_limit(grid: [u32; 3], resident: u32) -> Option<String> {
    let blocks = product(grid);
    (blocks > u64::from(resident)).then(|| {
        format!("a cooperative launch of {blocks} blocks, where at most {resident} can be resident on the GPU")
    })
}

fn broken_cluster(grid: [u32; 3], cluster: [u32; 3], limits: &LaunchLimits) -> Option<String> {
    if cluster == [1; 3] {
        return None;
    }
    let blocks = product(cluster);
    if limits.sm < 90 {
        return Some(format!(
            "a cluster of {blocks} blocks, which compute capability {} does not support",
            dotted(limits.sm)
        ));
    }
    if blocks == 0 || blocks > u64::from(MAX_CLUSTER_BLOCKS) {
        return Some(format!("a cluster of {blocks} blocks, where the GPU supports 1 to {MAX_CLUSTER_BLOCKS}"));
    }
    let uneven = (0..3).find(|&i| !grid[i].is_multiple_of(cluster[i]))?;
    let axis = ["x", "y", "z"][uneven];
    Some(format!("{} blocks in {axis}, which is not a multiple of the cluster size {}", grid[uneven], cluster[uneven]))
}

/// Returns the number of registers that a block occupies. Each warp gets a multiple of [`REGISTER_UNIT`].
fn registers_of(threads: u32, registers: u32) -> u32 {
    threads.div_ceil(32) * (registers * 32).next_multiple_of(REGISTER_UNIT)
}

fn product(sizes: [u32; 3]) -> u64 {
    sizes.iter().map(|&n| u64::from(n)).fold(1, u64::saturating_mul)
}

/// Returns a compute capability as text: `9.0` for 90.
fn dotted(sm: u32) -> String {
    format!("{}.{}", sm / 10, sm % 10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const H100: LaunchLimits = LaunchLimits::new(90, 227 << 10);
    const FACTS: FunctionAttributes = FunctionAttributes { threads: 256, static_shared: 1024, registers: 64 };
    const FINE: LaunchConfig = LaunchConfig {
        grid: [8, 1, 1],
        block: [256, 1, 1],
        cluster: [1; 3],
        shared: 64 << 10,
        cooperative: false,
        programmatic: false,
    };

    #[track_caller]
    fn says(config: LaunchConfig, limits: LaunchLimits, words: &str) {
        let why = exceeded_launch_limit(&config, &FACTS, &limits, 64).expect("an impossible launch");
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn every_limit_is_named() {
        assert_eq!(exceeded_launch_limit(&FINE, &FACTS, &H100, 64), None);
        says(LaunchConfig { grid: [0, 1, 1], ..FINE }, H100, "no blocks in x");
        says(LaunchConfig { grid: [1, 65_536, 1], ..FINE }, H100, "65536 blocks in y, where the GPU has at most 65535");
        says(LaunchConfig { grid: [1 << 31, 1, 1], ..FINE }, H100, "at most 2147483647");
        says(LaunchConfig { block: [1, 1, 65], ..FINE }, H100, "65 threads per block in z");
        says(LaunchConfig { block: [64, 32, 1], ..FINE }, H100, "2048 threads per block, where the GPU");
        says(LaunchConfig { block: [288, 1, 1], ..FINE }, H100, "compiled for 256");
        says(
            LaunchConfig { shared: 227 << 10, ..FINE },
            H100,
            "1024 of static shared memory, where a block has at most 232448",
        );
        says(
            LaunchConfig { cluster: [2, 1, 1], ..FINE },
            LaunchLimits::new(80, 163 << 10),
            "compute capability 8.0 does not support",
        );
        says(
            LaunchConfig { programmatic: true, ..FINE },
            LaunchLimits::new(89, 99 << 10),
            "compute capability 8.9 does not support",
        );
        assert_eq!(exceeded_launch_limit(&LaunchConfig { programmatic: true, ..FINE }, &FACTS, &H100, 64), None);
        assert_eq!(exceeded_residency_limit([4, 2, 1], 8), None);
        assert!(exceeded_residency_limit([3, 3, 1], 8).is_some_and(|w| w.contains("9 blocks")));
        says(LaunchConfig { cluster: [32, 1, 1], grid: [32, 1, 1], ..FINE }, H100, "a cluster of 32 blocks");
        says(
            LaunchConfig { cluster: [3, 1, 1], ..FINE },
            H100,
            "8 blocks in x, which is not a multiple of the cluster size 3",
        );
        assert_eq!(exceeded_launch_limit(&LaunchConfig { cluster: [8, 1, 1], ..FINE }, &FACTS, &H100, 64), None);
        assert!(
            exceeded_launch_limit(&FINE, &FACTS, &H100, 4097).is_some_and(|w| w.contains("4097 bytes of parameters"))
        );
        let hungry = FunctionAttributes { registers: 255, threads: 1024, ..FACTS };
        let why = exceeded_launch_limit(&LaunchConfig { block: [288, 1, 1], ..FINE }, &hungry, &H100, 64);
        assert!(why.is_some_and(|w| w.contains("73728 registers")));
    }

    proptest! {
        /// If a launch is allowed, the same launch with fewer blocks, threads and bytes is allowed too.
        #[test]
        fn less_is_never_worse(x in 1u32..2048, y in 1u32..64, shared in 0u32..300_000, blocks in 1u32..100_000) {
            let config = LaunchConfig { grid: [blocks, y, 1], block: [x, y, 1], shared, ..FINE };
            let attributes = FunctionAttributes { threads: 1024, ..FACTS };
            if exceeded_launch_limit(&config, &attributes, &H100, 64).is_none() {
                let less = LaunchConfig { grid: [blocks.div_ceil(2), y, 1], block: [x.div_ceil(2), y, 1], shared: shared / 2, ..config };
                prop_assert_eq!(exceeded_launch_limit(&less, &attributes, &H100, 64), None);
            }
        }
    }
}
