//! Tables of arrays: one launch works on many arrays, whose addresses and lengths it reads from device memory.
//!
//! The arrays are cut into chunks of equal length; the last chunk of an array may be shorter. A list of all chunks
//! says which part of which array each block of threads (or task on device `cpu`) works on, so the number of launches
//! does not depend on the number of arrays. Example, for arrays of 5, 0 and 2 elements and chunks of 3 elements:
//!
//! ```text
//! chunk     0              1              2
//! array     0              0              2
//! index     0              1              0
//! elements  0 1 2          3 4            0 1
//! ```

use std::sync::Arc;

use super::params::{Addr, ParamField, Params};

params! {
    /// A chunk of an array.
    pub struct Chunk {
        /// The array's number in the table.
        pub array: u32,
        /// The chunk's number in the array.
        pub index: u32,
    }
}

params! {
    /// An entry of a table of arrays.
    pub struct ArrayEntry {
        /// The array; null if the launch leaves it out.
        pub x: Addr,
        /// The length of the array, in the unit that the kernel documents.
        pub len: u64,
    }
}

/// Returns the chunks of arrays of these lengths, in order. Each chunk has `chunk_len` elements, except the last one of
/// an array.
///
/// # Panics
/// If there are more than 2³² arrays, or chunks in one array: more than the memory of a GPU holds.
pub fn chunks(lens: impl IntoIterator<Item = usize>, chunk_len: usize) -> Vec<Chunk> {
    let number = |n: usize| u32::try_from(n).expect("fewer than 2^32 arrays, and chunks in an array");
    let lens = lens.into_iter().enumerate();
    lens.flat_map(|(array, len)| {
        (0..len.div_ceil(chunk_len)).map(move |index| Chunk { array: number(array), index: number(index) })
    })
    .collect()
}

/// The contents of an operand that is a table with addresses of further operands.
///
/// The kernel reads the table in device memory. The launch has this copy of it because a device must know which memory
/// a launch accesses: the simulator lets the launch access no other memory, and checks and benchmarks move operands to
/// other addresses.
#[derive(Clone, Debug)]
pub struct AddressTable {
    fields: &'static [ParamField],
    entry_bytes: usize,
    bytes: Arc<[u8]>,
}

impl AddressTable {
    /// The table with these entries.
    pub fn new<E: Params>(entries: &[E]) -> AddressTable {
        let bytes = bytemuck::cast_slice(entries).into();
        AddressTable { fields: E::FIELDS, entry_bytes: size_of::<E>(), bytes }
    }

    /// The bytes of all entries.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The addresses in the table that are not null, each with its byte offset in the table.
    pub fn addresses(&self) -> impl Iterator<Item = (usize, Addr)> + '_ {
        let entries = (0..self.bytes.len()).step_by(self.entry_bytes.max(1));
        let offsets = entries.flat_map(|at| self.fields.iter().filter(|f| f.address).map(move |f| at + f.offset));
        let address = |at: usize| Some((at, bytemuck::pod_read_unaligned::<Addr>(self.bytes.get(at..at + 8)?)));
        offsets.filter_map(address).filter(|(_, address)| !address.is_null())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_each_array_once() {
        let of = |lens: &[usize]| -> Vec<(u32, u32)> {
            chunks(lens.iter().copied(), 3).into_iter().map(|c| (c.array, c.index)).collect()
        };
        assert_eq!(of(&[5, 0, 2]), [(0, 0), (0, 1), (2, 0)]);
        assert_eq!(of(&[6]), [(0, 0), (0, 1)]);
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn tables_list_the_addresses_of_their_entries() {
        let entries = [(64, 3), (0, 5), (128, 7)].map(|(x, len)| ArrayEntry { x: Addr(x), len });
        let table = AddressTable::new(&entries);
        assert_eq!(table.addresses().collect::<Vec<_>>(), [(0, Addr(64)), (32, Addr(128))]);
        assert_eq!(table.bytes().len(), 48);
    }
}
