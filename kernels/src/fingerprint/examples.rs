//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

use crate::fingerprint::{self, ByteRange};
use crate::folder::{HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, Sizes, placeholder_params};
use crate::launch::AddressTable;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let bytes = 2 * HIDDEN_SIZE as u64 * INTERMEDIATE_SIZE as u64;
    let chunk_count = bytes.div_ceil(fingerprint::BYTES_PER_CHUNK as u64);
    let p = fingerprint::Params { chunk_count, ..placeholder_params() };
    let table = AddressTable::new(&[ByteRange { x: PLACEHOLDER_ADDRESS, len: bytes, first_word: 0 }]);
    vec![("a matrix of 3584 by 18944 in bf16", fingerprint::fingerprint(&p, table, bytes))]
}
