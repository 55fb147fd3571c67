//! Tests of memory traffic: on the simulator, small launches must move as many bytes as their `Cost` states, without
//! bank conflicts.
//!
//! A folder's `examples.rs` makes the launches (`traffic_launches`), and `kernel_folder!` declares the test.

use reel_device::Addr;
use reel_device::launch::{Arch, Launch};
use reel_sim::counters::InstructionCounts;

use super::{addr, run_test_on_sim, simulated_counts, simulated_counts_on};

/// Number of rows in the traffic tests of normalisation kernels. With so many rows, a thread block of [`SMALL_GPU`]
/// gets as many rows as a thread block of a whole GPU gets from a long sequence.
pub(crate) const TRAFFIC_ROWS: u32 = 128;
/// Number of elements in the traffic tests of element-wise kernels.
pub(crate) const TRAFFIC_ELEMENTS: u64 = 1 << 17;

const SMALL_GPU: Arch = Arch::A100.with_two_multiprocessors();

/// Launches, each with its limit: the largest allowed ratio of the bytes that it moves to the bytes of its cost.
pub(crate) type TrafficLaunches = Vec<(Launch, MaxTrafficRatio)>;

/// The least allowed ratio of the bytes that a launch moves to the bytes of its cost. If a cost states too many
/// bytes, the computed least time of the launch (its floor) is too long, and a measured launch would seem to run
/// faster than its floor.
const MIN_TRAFFIC_RATIO: f64 = 0.9;

/// The largest allowed ratio of the bytes that a launch moves to the bytes of its cost.
pub(crate) type MaxTrafficRatio = f64;

/// Allocates the arrays of launches. The arrays live as long as this value.
#[derive(Default)]
pub(crate) struct TrafficArrays {
    numbers: Vec<Vec<u64>>,
    ids: Vec<Vec<i32>>,
}

impl TrafficArrays {
    /// Allocates `count` elements of `element_bytes` bytes each, with values from 0.5 to 1 in f32 and in bf16.
    pub(crate) fn alloc_elements(&mut self, count: impl TryInto<usize>, element_bytes: usize) -> Addr {
        let count = count.try_into().unwrap_or_else(|_| unreachable!("sizes are small"));
        let word = |i: usize| {
            0x3f00_3f00_3f00_3f00u64 | (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0x007f_007f_007f_007f
        };
        self.numbers.push((0..(count * element_bytes).div_ceil(16) * 2).map(word).collect());
        addr(&self.numbers[self.numbers.len() - 1])
    }

    /// Allocates an array that holds these structs.
    pub(crate) fn alloc_structs<T: bytemuck::Pod>(&mut self, entries: &[T]) -> Addr {
        let bytes: &[u8] = bytemuck::cast_slice(entries);
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        self.numbers.push(words);
        addr(&self.numbers[self.numbers.len() - 1])
    }

    /// Allocates an f32 array with values from 0.5 to 1.
    pub(crate) fn alloc_f32(&mut self, count: impl TryInto<usize>) -> Addr {
        self.alloc_elements(count, 4)
    }

    /// Allocates an i32 array with these values.
    pub(crate) fn alloc_i32(&mut self, ids: impl IntoIterator<Item = i32>) -> Addr {
        self.ids.push(ids.into_iter().collect());
        addr(&self.ids[self.ids.len() - 1])
    }
}

/// Allows each launch to move up to 1.1 times the bytes of its cost.
pub(crate) fn allow_one_tenth_more(launches: impl IntoIterator<Item = Launch>) -> TrafficLaunches {
    launches.into_iter().map(|l| (l, 1.1)).collect()
}

/// Simulates a launch on an A100 and asserts that it moves 0.9 to 1.1 times the bytes of its cost; returns its counts.
///
/// # Panics
/// If the launch moves more or fewer bytes.
pub(crate) fn assert_traffic_matches_cost(launch: &Launch) -> InstructionCounts {
    let (count, cost) = (simulated_counts(launch), launch.cost());
    let bytes = (count.global_read + count.global_written) as f64;
    let ratio = bytes / cost.bytes;
    assert!(
        (MIN_TRAFFIC_RATIO..=1.1).contains(&ratio),
        "{}: moves {ratio:.3} times the bytes of its cost",
        launch.name()
    );
    count
}

/// Simulates launches and checks the bytes that they move and their bank conflicts.
///
/// # Panics
/// If a launch moves more or fewer bytes than allowed or has a bank conflict; the message names every such launch.
pub(crate) fn assert_traffic_within_limits(calls: impl Fn(&mut TrafficArrays) -> TrafficLaunches) {
    run_test_on_sim(|| {
        let mut arrays = TrafficArrays::default();
        let mut wrong = String::new();
        for (launch, max_ratio) in calls(&mut arrays) {
            let (count, cost) = (simulated_counts_on(&launch, &SMALL_GPU), launch.cost());
            let bytes = (count.global_read + count.global_written) as f64;
            let (ratio, conflicts) = (bytes / cost.bytes, count.wavefronts - count.wavefronts_least);
            if !(MIN_TRAFFIC_RATIO..=max_ratio).contains(&ratio) {
                wrong += &format!(
                    "{}: moves {ratio:.3} times the bytes of its cost; {MIN_TRAFFIC_RATIO} to {max_ratio} times are \
                     allowed\n",
                    launch.name()
                );
            }
            if conflicts > 0 {
                wrong += &format!(
                    "{}: {conflicts} of {} wavefronts repeat an access because of bank conflicts\n",
                    launch.name(),
                    count.wavefronts
                );
            }
        }
        assert!(wrong.is_empty(), "\n{wrong}");
    });
}
