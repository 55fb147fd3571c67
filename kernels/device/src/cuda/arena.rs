//! Decides where a GPU's buffers lie: allocates blocks within one address range that can grow.
//!
//! ```text
//! alloc(bytes): cut the block from the smallest free range that holds it (the lowest of several)
//! free(start):  the range is free again and is joined with free neighbours
//! grow(bytes):  a free range is added at the end; the caller has mapped memory there
//! ```
//!
//! So a step that allocates the same blocks in the same order gets the same offsets, and needs no driver call after
//! the first step. All work runs on one stream, so a range can be allocated again as soon as it was freed.

use std::collections::{BTreeMap, BTreeSet};

/// Alignment of block sizes and addresses in bytes. It is enough for the widest memory access, for tensor maps and
/// for every algorithm of cuBLASLt.
pub const ALIGN: usize = 256;

/// The free and allocated blocks of the address range `0 .. end`.
#[derive(Debug, Default)]
pub struct Arena {
    end: usize,
    /// The length of each free range, by its start.
    free: BTreeMap<usize, usize>,
    /// The free ranges as (length, start), ordered by length, to find the smallest sufficient one.
    by_length: BTreeSet<(usize, usize)>,
    /// The length of each allocated block, by its start.
    allocated: BTreeMap<usize, usize>,
}

impl Arena {
    /// Makes an arena whose range is empty.
    pub fn new() -> Arena {
        Arena::default()
    }

    /// Returns the size of the whole range in bytes.
    pub fn size_bytes(&self) -> usize {
        self.end
    }

    /// Extends the range by `bytes` at its end.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of [`ALIGN`].
    pub fn grow(&mut self, bytes: usize) {
        assert!(bytes.is_multiple_of(ALIGN), "{bytes}");
        let start = self.end;
        self.end += bytes;
        self.insert_free(start, bytes);
    }

    /// Returns the bytes by which the range must grow before `alloc(bytes)` succeeds: 0 if a free range is large
    /// enough, `None` if `bytes` is too large for any range.
    pub fn bytes_to_grow_before_alloc(&self, bytes: usize) -> Option<usize> {
        let size = rounded(bytes)?;
        if self.by_length.range((size, 0)..).next().is_some() {
            return Some(0);
        }
        let behind = self.free.last_key_value().filter(|(start, length)| **start + **length == self.end);
        size.checked_sub(behind.map_or(0, |(_, length)| *length))
    }

    /// Allocates a block of `bytes` bytes and returns its start; `None` if no free range is large enough.
    pub fn alloc(&mut self, bytes: usize) -> Option<usize> {
        let size = rounded(bytes)?;
        let &(length, start) = self.by_length.range((size, 0)..).next()?;
        self.remove_free(start, length);
        if length > size {
            self.insert_free(start + size, length - size);
        }
        self.allocated.insert(start, size);
        Some(start)
    }

    /// Frees the block at `start`. Returns false if no block is allocated there.
    pub fn free(&mut self, start: usize) -> bool {
        let Some(length) = self.allocated.remove(&start) else { return false };
        self.insert_free(start, length);
        true
    }

    /// Adds a free range and joins it with its free neighbours.
    fn insert_free(&mut self, mut start: usize, mut length: usize) {
        if length == 0 {
            return;
        }
        if let Some((&before, &len)) = self.free.range(..start).next_back()
            && before + len == start
        {
            self.remove_free(before, len);
            (start, length) = (before, len + length);
        }
        if let Some(&len) = self.free.get(&(start + length)) {
            self.remove_free(start + length, len);
            length += len;
        }
        self.free.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove_free(&mut self, start: usize, length: usize) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

fn rounded(bytes: usize) -> Option<usize> {
    bytes.max(1).checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Grows the arena if necessary and allocates a block, as device `cuda` does.
    fn grow_and_alloc(arena: &mut Arena, bytes: usize) -> usize {
        arena.grow(arena.bytes_to_grow_before_alloc(bytes).unwrap());
        arena.alloc(bytes).expect("the arena has grown")
    }

    #[test]
    fn refuses_impossible_sizes() {
        let mut arena = Arena::new();
        assert_eq!(arena.alloc(1), None);
        assert_eq!((arena.bytes_to_grow_before_alloc(usize::MAX), arena.alloc(usize::MAX)), (None, None));
        assert!(!arena.free(0));
    }

    #[test]
    fn free_range_at_the_end_reduces_growth() {
        let mut arena = Arena::new();
        let first = grow_and_alloc(&mut arena, 1000);
        assert!(arena.free(first));
        assert_eq!(arena.bytes_to_grow_before_alloc(4096), Some(4096 - 1024));
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_bytes_become_free(
            steps in prop::collection::vec((1usize..5000, any::<prop::sample::Index>(), any::<bool>()), 1..200)
        ) {
            let mut arena = Arena::new();
            let mut live: Vec<(usize, usize)> = Vec::new();
            for (bytes, which, give) in steps {
                if give && !live.is_empty() {
                    let (start, _) = live.swap_remove(which.index(live.len()));
                    prop_assert!(arena.free(start) && !arena.free(start));
                } else {
                    let start = grow_and_alloc(&mut arena, bytes);
                    prop_assert!(start.is_multiple_of(ALIGN) && start + bytes <= arena.size_bytes());
                    prop_assert!(live.iter().all(|&(s, b)| s + b <= start || start + bytes <= s));
                    live.push((start, bytes));
                }
                prop_assert!(arena.allocated.values().sum::<usize>() >= live.iter().map(|(_, b)| b).sum::<usize>());
            }
            live.iter().for_each(|(start, _)| assert!(arena.free(*start)));
            prop_assert_eq!(arena.free.clone().into_iter().collect::<Vec<_>>(), vec![(0, arena.size_bytes())]);
            prop_assert_eq!(arena.by_length.len(), 1);
        }

        /// A repeated step gets the same addresses as the first step, and the arena does not grow.
        #[test]
        fn repeated_step_gets_the_same_offsets(sizes in prop::collection::vec(1usize..100_000, 1..40)) {
            let mut arena = Arena::new();
            let step = |arena: &mut Arena| -> Vec<usize> {
                let starts: Vec<usize> = sizes.iter().map(|&b| grow_and_alloc(arena, b)).collect();
                starts.iter().rev().for_each(|&s| assert!(arena.free(s)));
                starts
            };
            step(&mut arena);
            let (end, second) = (arena.size_bytes(), step(&mut arena));
            prop_assert_eq!(second, step(&mut arena));
            prop_assert_eq!(arena.size_bytes(), end);
        }
    }
}
