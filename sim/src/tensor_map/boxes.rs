//! Boxes of a tiled tensor map: which bytes of global memory a copy reads or writes, and which bytes of shared
//! memory.
//!
//! In shared memory the box is dense, dimension 0 innermost, and starts at a multiple of 128 bytes. If a swizzle has
//! a wider span than the rows of the box, each row still occupies a whole span, and the bytes in between are not
//! accessed (CUDA programming guide: shared memory has to accommodate the full swizzle width).

use super::{Interleave, InvalidTensorMap, MAX_RANK, Swizzle, TensorMap};

/// A part of a box copy whose bytes are contiguous both in shared and in global memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContiguousBoxPart {
    /// Global address; `None` for elements outside of the tensor, which a load fills with
    /// [`TensorMap::out_of_bounds_fill_bytes`] and a store or reduction skips.
    pub global: Option<u64>,
    /// Address in shared memory: with the swizzle applied if the part comes from [`BoxCopy::for_each_contiguous_part`],
    /// without it if it comes from [`BoxCopy::for_each_row`].
    pub shared: u32,
    /// Number of bytes, a multiple of the element size.
    pub bytes: u32,
}

/// A copy of one box between a tensor in global memory, at given coordinates, and an address in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct BoxCopy<'a> {
    map: &'a TensorMap,
    coordinates: [i64; MAX_RANK],
    shared: u32,
}

impl TensorMap {
    /// Returns the copy of the box at `coordinates` to or from the shared address `shared`. There is one coordinate
    /// per dimension, innermost first; coordinates outside of the tensor are allowed. The map must be valid.
    ///
    /// # Errors
    /// Returns an error for a wrong number of coordinates, a shared address that is not a multiple of 128,
    /// and interleaved maps.
    pub fn box_copy_at(&self, coordinates: &[i32], shared: u32) -> Result<BoxCopy<'_>, InvalidTensorMap> {
        if coordinates.len() != self.rank as usize {
            let what = format!("have {} elements, but the rank of the map is {}", coordinates.len(), self.rank);
            return Err(InvalidTensorMap::new("coordinates", what));
        }
        if self.interleave != Interleave::None {
            return Err(InvalidTensorMap::new("interleave", "is not none, and interleaved copies are not supported"));
        }
        if !shared.is_multiple_of(128) {
            return Err(InvalidTensorMap::new("shared address", format!("{shared:#x} is not a multiple of 128")));
        }
        let mut wide = [0; MAX_RANK];
        for (wide, coordinate) in wide.iter_mut().zip(coordinates) {
            *wide = *coordinate as i64;
        }
        Ok(BoxCopy { map: self, coordinates: wide, shared })
    }
}

impl BoxCopy<'_> {
    /// Returns the size of the box in bytes, which is also the number that a load reports to its mbarrier.
    pub fn bytes(&self) -> u32 {
        self.map.box_bytes()
    }

    /// Returns the distance in bytes between two rows of the box in shared memory.
    #[inline]
    fn pitch(&self) -> u32 {
        self.map.swizzle.span_bytes().unwrap_or(0).max(self.map.row_bytes())
    }

    /// Returns the size in bytes of the shared memory that the box occupies. It is larger than [`Self::bytes`] if the
    /// box's rows are narrower than the swizzle's span, because each row then occupies a whole span.
    pub fn occupied_shared_bytes(&self) -> u32 {
        self.bytes() / self.map.row_bytes().max(1) * self.pitch()
    }

    /// Returns true if the copy accesses every byte of [`Self::occupied_shared_bytes`].
    pub fn is_dense(&self) -> bool {
        self.pitch() == self.map.row_bytes()
    }

    /// Calls `each` with every row of the box, split into the parts inside and outside of the tensor; the shared
    /// addresses are without the swizzle. Used for range checks of global memory.
    #[inline(always)]
    pub fn for_each_row(&self, mut each: impl FnMut(ContiguousBoxPart)) {
        let map = self.map;
        let element = map.data_type.bytes();
        let row_bytes = map.row_bytes();
        // In each row of the box, elements [0, left) and [right, width) are outside of the tensor.
        let width = map.box_dims[0] as i64;
        let left = (-self.coordinates[0]).clamp(0, width);
        let right = (map.dims[0] as i64 - self.coordinates[0]).clamp(left, width);
        let (left, right) = (left as u32 * element, right as u32 * element);
        let first = map.address.wrapping_add_signed(self.coordinates[0].wrapping_mul(element as i64));
        let mut index = [0u32; MAX_RANK];
        let mut shared = self.shared;
        loop {
            let mut global = Some(first);
            for (i, index) in index.iter().enumerate().take(map.rank as usize).skip(1) {
                let at = self.coordinates[i] + (index * map.element_strides[i]) as i64;
                let inside = (0..map.dims[i] as i64).contains(&at);
                let offset = (at as u64).wrapping_mul(map.strides[i - 1]);
                global = global.filter(|_| inside).map(|address| address.wrapping_add(offset));
            }
            match global {
                Some(global) if left < right => {
                    if left > 0 {
                        each(ContiguousBoxPart { global: None, shared, bytes: left });
                    }
                    let inside = global.wrapping_add(left as u64);
                    each(ContiguousBoxPart { global: Some(inside), shared: shared + left, bytes: right - left });
                    if right < row_bytes {
                        each(ContiguousBoxPart { global: None, shared: shared + right, bytes: row_bytes - right });
                    }
                }
                _ => each(ContiguousBoxPart { global: None, shared, bytes: row_bytes }),
            }
            shared += self.pitch();
            let mut i = 1;
            loop {
                if i >= map.rank as usize {
                    return;
                }
                index[i] += 1;
                if index[i] < map.box_extent(i) {
                    break;
                }
                index[i] = 0;
                i += 1;
            }
        }
    }

    /// Calls `each` with every contiguous part of the copy: at most 16 bytes with a swizzle, a whole row without one.
    /// The swizzle is applied to the shared addresses.
    #[inline(always)]
    pub fn for_each_contiguous_part(&self, mut each: impl FnMut(ContiguousBoxPart)) {
        self.for_each_row(|row| self.for_each_contiguous_part_of_row(row, &mut each));
    }

    /// Calls `each` with every contiguous part of a row that comes from [`Self::for_each_row`].
    #[inline(always)]
    pub fn for_each_contiguous_part_of_row(&self, row: ContiguousBoxPart, mut each: impl FnMut(ContiguousBoxPart)) {
        let swizzle = self.map.swizzle;
        if swizzle == Swizzle::None {
            return each(row);
        }
        let mut done = 0;
        while done < row.bytes {
            let shared = row.shared + done;
            let bytes = (16 - shared % 16).min(row.bytes - done);
            let global = row.global.map(|address| address.wrapping_add(done as u64));
            each(ContiguousBoxPart { global, shared: swizzle.swizzled_address(shared), bytes });
            done += bytes;
        }
    }

    /// Returns all parts that [`Self::for_each_contiguous_part`] passes to `each`.
    pub fn contiguous_parts(&self) -> Vec<ContiguousBoxPart> {
        let mut runs = Vec::new();
        self.for_each_contiguous_part(|run| runs.push(run));
        runs
    }
}
