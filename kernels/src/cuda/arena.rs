//! Allocates blocks within one growing address range: where buffers of a GPU lie.
//!
//! ```text
//! take(bytes): cut the block from the smallest free range that holds it (the lowest of several)
//! give(start): the range is free again and is joined with free neighbours
//! ```
//!
//! So a step that takes the same blocks in the same order gets the same addresses, and asks the driver for nothing
//! after the first step. All work is ordered on one stream, so a range can be taken again as soon as it was given
//! back.

use std::collections::{BTreeMap, BTreeSet};

/// Alignment of sizes and addresses in bytes: what the widest access and tensor maps need, and enough for every
/// algorithm of cuBLASLt.
pub const ALIGN: usize = 256;

/// The free and allocated blocks of the range `0 .. end`.
#[derive(Debug, Default)]
pub struct Arena {
    end: usize,
    /// Free ranges: start → length.
    free: BTreeMap<usize, usize>,
    /// Free ranges as (length, start), to find the smallest one.
    by_length: BTreeSet<(usize, usize)>,
    /// Taken blocks: start → length.
    taken: BTreeMap<usize, usize>,
}

impl Arena {
    /// An empty range.
    pub fn new() -> Arena {
        Arena::default()
    }

    /// Returns the size of the whole range in bytes.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Returns the bytes of all taken blocks, rounded up to [`ALIGN`].
    pub fn taken(&self) -> usize {
        self.taken.values().sum()
    }

    /// Extends the range by `bytes` at its end.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of [`ALIGN`].
    pub fn grow(&mut self, bytes: usize) {
        assert!(bytes.is_multiple_of(ALIGN), "{bytes}");
        let start = self.end;
        self.end += bytes;
        self.insert(start, bytes);
    }

    /// Returns by how much the range must grow before `take(bytes)` succeeds; `None` if there is room.
    pub fn lacks(&self, bytes: usize) -> Option<usize> {
        let size = rounded(bytes)?;
        if self.by_length.range((size, 0)..).next().is_some() {
            return Some(0);
        }
        let behind = self.free.last_key_value().filter(|(start, length)| **start + **length == self.end);
        size.checked_sub(behind.map_or(0, |(_, length)| *length))
    }

    /// Takes a block of `bytes` and returns its start; `None` if there is no room.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let size = rounded(bytes)?;
        let &(length, start) = self.by_length.range((size, 0)..).next()?;
        self.remove(start, length);
        if length > size {
            self.insert(start + size, length - size);
        }
        self.taken.insert(start, size);
        Some(start)
    }

    /// Gives back the block at `start`; false if there is none.
    pub fn give(&mut self, start: usize) -> bool {
        let Some(length) = self.taken.remove(&start) else { return false };
        self.insert(start, length);
        true
    }

    /// Adds a free range and joins it with its free neighbours.
    fn insert(&mut self, mut start: usize, mut length: usize) {
        if length == 0 {
            return;
        }
        if let Some((&before, &len)) = self.free.range(..start).next_back()
            && before + len == start
        {
            self.remove(before, len);
            (start, length) = (before, len + length);
        }
        if let Some(&len) = self.free.get(&(start + length)) {
            self.remove(start + length, len);
            length += len;
        }
        self.free.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove(&mut self, start: usize, length: usize) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

fn rounded(bytes: usize) -> Option<usize> {
    bytes.max(1).checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes a block and grows the arena if needed, as a device does.
    fn take(arena: &mut Arena, bytes: usize) -> usize {
        arena.grow(arena.lacks(bytes).unwrap());
        arena.take(bytes).expect("room was made")
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let mut arena = Arena::new();
        assert_eq!(arena.take(1), None);
        assert_eq!((arena.lacks(usize::MAX), arena.take(usize::MAX)), (None, None));
        assert!(!arena.give(0));
    }

    #[test]
    fn an_end_that_is_free_counts() {
        let mut arena = Arena::new();
        let first = take(&mut arena, 1000);
        assert!(arena.give(first));
        assert_eq!(arena.lacks(4096), Some(4096 - 1024));
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_room_comes_back(
            steps in prop::collection::vec((1usize..5000, any::<prop::sample::Index>(), any::<bool>()), 1..200)
        ) {
            let mut arena = Arena::new();
            let mut live: Vec<(usize, usize)> = Vec::new();
            for (bytes, which, give) in steps {
                if give && !live.is_empty() {
                    let (start, _) = live.swap_remove(which.index(live.len()));
                    prop_assert!(arena.give(start) && !arena.give(start));
                } else {
                    let start = take(&mut arena, bytes);
                    prop_assert!(start.is_multiple_of(ALIGN) && start + bytes <= arena.end());
                    prop_assert!(live.iter().all(|&(s, b)| s + b <= start || start + bytes <= s));
                    live.push((start, bytes));
                }
                prop_assert!(arena.taken() >= live.iter().map(|(_, b)| b).sum::<usize>());
            }
            live.iter().for_each(|(start, _)| assert!(arena.give(*start)));
            prop_assert_eq!(arena.free.clone().into_iter().collect::<Vec<_>>(), vec![(0, arena.end())]);
            prop_assert_eq!(arena.by_length.len(), 1);
        }

        /// A repeated step gets the addresses of the first one, without growing.
        #[test]
        fn a_repeated_step_repeats_its_places(sizes in prop::collection::vec(1usize..100_000, 1..40)) {
            let mut arena = Arena::new();
            let step = |arena: &mut Arena| -> Vec<usize> {
                let starts: Vec<usize> = sizes.iter().map(|&b| take(arena, b)).collect();
                starts.iter().rev().for_each(|&s| assert!(arena.give(s)));
                starts
            };
            step(&mut arena);
            let (end, second) = (arena.end(), step(&mut arena));
            prop_assert_eq!(second, step(&mut arena));
            prop_assert_eq!(arena.end(), end);
        }
    }
}
