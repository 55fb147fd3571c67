//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TrafficArrays, TrafficLaunches};
use crate::fingerprint::{self, ByteRange};
use crate::folder::{HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, Sizes, placeholder_params};
use reel_device::launch::AddressTable;
#[cfg(test)]
use reel_device::launch::chunks;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let bytes = 2 * HIDDEN_SIZE as u64 * INTERMEDIATE_SIZE as u64;
    let chunk_count = bytes.div_ceil(fingerprint::BYTES_PER_CHUNK as u64);
    let p = fingerprint::Params { chunk_count, ..placeholder_params() };
    let table = AddressTable::new(&[ByteRange { x: PLACEHOLDER_ADDRESS, len: bytes, first_word: 0 }]);
    vec![("a matrix of 3584 by 18944 in bf16", fingerprint::fingerprint(&p, table, bytes))]
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch. The first tensor has one and a half chunks; the second one ends within a word.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let sizes = [768 << 10, (64 << 10) + 7];
    let entries = sizes.map(|bytes| ByteRange { x: arrays.alloc_elements(bytes, 1), len: bytes as u64, first_word: 0 });
    let chunks = chunks(sizes, fingerprint::BYTES_PER_CHUNK);
    let params = fingerprint::Params {
        arrays: arrays.alloc_structs(&entries),
        chunks: arrays.alloc_structs(&chunks),
        sums: arrays.alloc_elements(chunks.len() * fingerprint::SUMS_PER_CHUNK, 8),
        chunk_count: chunks.len() as u64,
    };
    let bytes = sizes.iter().sum::<usize>() as u64;
    vec![(fingerprint::fingerprint(&params, AddressTable::new(&entries), bytes), 1.05)]
}
