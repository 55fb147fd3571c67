//! Which blocks of the cache are free, and which a sequence holds.

use reel_runtime::ops::KvPages;

/// Hands out the blocks of a cache, lowest first.
#[derive(Debug)]
pub(crate) struct Blocks {
    free: Vec<i32>,
}

impl Blocks {
    /// All of `count` blocks are free.
    pub(crate) fn new(count: usize) -> Blocks {
        Blocks { free: (0..count as i32).rev().collect() }
    }

    /// Blocks that hold `tokens` tokens.
    pub(crate) fn needed(tokens: usize) -> usize {
        tokens.div_ceil(KvPages::BLOCK)
    }

    /// Adds blocks to `held` until it covers `tokens` tokens; false when there are too few.
    #[must_use]
    pub(crate) fn cover(&mut self, held: &mut Vec<i32>, tokens: usize) -> bool {
        while held.len() < Blocks::needed(tokens) {
            match self.free.pop() {
                Some(b) => held.push(b),
                None => return false,
            }
        }
        true
    }

    /// Takes a finished sequence's blocks back.
    pub(crate) fn give_back(&mut self, held: &mut Vec<i32>) {
        self.free.extend(held.drain(..).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_and_takes_back() {
        let mut blocks = Blocks::new(3);
        let (mut a, mut b) = (vec![], vec![]);
        assert!(blocks.cover(&mut a, 1) && blocks.cover(&mut a, 64) && a == [0]);
        assert!(blocks.cover(&mut a, 65) && a == [0, 1]);
        assert!(blocks.cover(&mut b, 2) && b == [2]);
        assert!(!blocks.cover(&mut b, 65));
        blocks.give_back(&mut a);
        assert!(blocks.cover(&mut b, 192) && b == [2, 0, 1]);
    }
}
