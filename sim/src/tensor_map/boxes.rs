//! Boxes of a tiled tensor map: which bytes of global memory go to or come from which bytes of shared memory.
//!
//! In shared memory the box lies dense, dimension 0 innermost, from a 128-byte aligned address. With a swizzle whose span
//! is wider than the box's rows, a row still takes the whole span (CUDA programming guide: shared memory has to accommodate
//! the full swizzle width); the bytes between are not touched.

use super::{DataType, Interleave, InvalidTensorMap, MAX_RANK, Swizzle, TensorMap};

/// A piece of a copy: contiguous in shared and in global memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoxRun {
    /// Global address; `None` for elements outside of the tensor: a load fills them with [`TensorMap::fill`], a store or
    /// reduction leaves them out.
    pub global: Option<u64>,
    /// Absolute shared address (after the swizzle for [`BoxCopy::for_each_run`]).
    pub shared: u32,
    /// Bytes; a multiple of the element's size.
    pub bytes: u32,
}

/// A box at given coordinates and a given shared address.
#[derive(Clone, Copy, Debug)]
pub struct BoxCopy<'a> {
    map: &'a TensorMap,
    coordinates: [i64; MAX_RANK],
    shared: u32,
}

impl TensorMap {
    /// The copy of the box at `coordinates` (as many as dimensions, innermost first, may be negative or beyond) to or from
    /// the absolute shared address `shared`. The map must be valid. Interleaved maps and types that convert on the way
    /// (flushing f32, tf32) are errors.
    pub fn box_at(&self, coordinates: &[i32], shared: u32) -> Result<BoxCopy<'_>, InvalidTensorMap> {
        if coordinates.len() != self.rank as usize {
            let what = format!("number {}, the map's rank is {}", coordinates.len(), self.rank);
            return Err(InvalidTensorMap::new("coordinates", what));
        }
        if self.interleave != Interleave::None {
            return Err(InvalidTensorMap::new("interleave", "is not supported by copies"));
        }
        if matches!(self.data_type, DataType::F32Ftz | DataType::Tf32 | DataType::Tf32Ftz) {
            return Err(InvalidTensorMap::new("tensorDataType", "converts elements, which copies do not support"));
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
    /// Bytes of the box: what a load credits to its mbarrier.
    pub fn bytes(&self) -> u32 {
        self.map.box_bytes()
    }

    /// Bytes from one row of the box to the next in shared memory.
    #[inline]
    fn pitch(&self) -> u32 {
        self.map.swizzle.span().unwrap_or(0).max(self.map.row_bytes())
    }

    /// Bytes of shared memory from its address on that the box spreads over. Larger than [`Self::bytes`] when the rows are
    /// narrower than the swizzle's span; else every byte of them is touched.
    pub fn shared_bytes(&self) -> u32 {
        self.bytes() / self.map.row_bytes().max(1) * self.pitch()
    }

    /// Whether the box touches every byte of [`Self::shared_bytes`].
    pub fn is_dense(&self) -> bool {
        self.pitch() == self.map.row_bytes()
    }

    /// Every row of the box in pieces inside and outside of the tensor; `shared` is before the swizzle. For range checks of
    /// the global side.
    #[inline(always)]
    pub fn for_each_row(&self, mut each: impl FnMut(BoxRun)) {
        let map = self.map;
        let element = map.data_type.bytes();
        let row_bytes = map.row_bytes();
        // Elements of a row: [0, left) and [right, width) are outside.
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
                        each(BoxRun { global: None, shared, bytes: left });
                    }
                    let inside = global.wrapping_add(left as u64);
                    each(BoxRun { global: Some(inside), shared: shared + left, bytes: right - left });
                    if right < row_bytes {
                        each(BoxRun { global: None, shared: shared + right, bytes: row_bytes - right });
                    }
                }
                _ => each(BoxRun { global: None, shared, bytes: row_bytes }),
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

    /// Every piece of the copy, with final shared addresses: at most 16 bytes each under a swizzle, else whole rows.
    #[inline(always)]
    pub fn for_each_run(&self, mut each: impl FnMut(BoxRun)) {
        let swizzle = self.map.swizzle;
        self.for_each_row(|row| {
            if swizzle == Swizzle::None {
                return each(row);
            }
            let mut done = 0;
            while done < row.bytes {
                let shared = row.shared + done;
                let bytes = (16 - shared % 16).min(row.bytes - done);
                let global = row.global.map(|address| address.wrapping_add(done as u64));
                each(BoxRun { global, shared: swizzle.apply(shared), bytes });
                done += bytes;
            }
        });
    }

    /// [`Self::for_each_run`], collected.
    pub fn runs(&self) -> Vec<BoxRun> {
        let mut runs = Vec::new();
        self.for_each_run(|run| runs.push(run));
        runs
    }
}
