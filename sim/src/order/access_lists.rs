//! Lists of accesses to a shadow cell that are older than its last write and last reads but must still be remembered.
//! Cells with equal history share a list.
//!
//! A list is immutable and singly linked, newest access first. A push creates one node; an equal push returns the
//! list that was created before.

use super::{AccessStamp, AccessStrength, FIRST_OP_KEY, OwnerKey};

/// Accesses by lanes of one warp (or asynchronous operation) in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AccessRecord {
    pub key: OwnerKey,
    pub stamp: AccessStamp,
    /// Mask of the lanes. In access lists the mask is rotated by [`AccessStamp::mask_rotation`], elsewhere it is not.
    pub mask: u32,
    pub pc: u32,
    pub write: bool,
}

impl AccessRecord {
    /// Returns true if this access can replace the earlier access `old` in the history: every later access that races
    /// with `old` also races with this one.
    pub(super) fn subsumes(&self, old: &AccessRecord) -> bool {
        let (mine, theirs) = (self.stamp.strength(), old.stamp.strength());
        let same_block = self.key < FIRST_OP_KEY && old.key < FIRST_OP_KEY && self.key >> 6 == old.key >> 6;
        let same_width = self.stamp.wide() == old.stamp.wide();
        (self.write || !old.write) && (mine == AccessStrength::Weak || mine <= theirs && same_block && same_width)
    }

    fn hash(&self, list: ListId) -> u64 {
        let mix = |hash: u64, low: u32, high: u32| {
            (hash.rotate_left(23) ^ low as u64 ^ (high as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        mix(mix(mix(list as u64, self.key, self.stamp.0), self.mask, self.pc), self.write as u32, 0)
    }

    /// Returns true if `old` is an earlier access by the same owner and by a subset of this access's lanes, and this
    /// access can replace it.
    fn replaces(&self, old: &AccessRecord) -> bool {
        let earlier = self.key == old.key && old.stamp.epoch() <= self.stamp.epoch();
        earlier && self.stamp.has_same_mask_rotation(old.stamp) && old.mask & !self.mask == 0 && self.subsumes(old)
    }

    /// Returns true if both accesses were made by one warp in one epoch and differ only in their lanes.
    fn joins(&self, old: &AccessRecord) -> bool {
        (self.key, self.stamp, self.write, self.pc) == (old.key, old.stamp, old.write, old.pc)
    }
}

impl AccessStamp {
    fn has_same_mask_rotation(self, other: AccessStamp) -> bool {
        self.wide() == other.wide()
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    entry: AccessRecord,
    next: u32,
    depth: u32,
    has_write: bool,
    has_read: bool,
    /// The width code of the accesses, if all accesses in the access list have the same width, are strong at `.gpu`
    /// scope and were made by threads; else [`NOT_ALL_STRONG`]. One byte, so that a node has 32 bytes.
    strong_width: u8,
    /// Whether the accesses in the access list were made by threads of more than one block.
    across_blocks: bool,
}

/// Value of [`Node::strong_width`] for an access list whose accesses differ in width or are not all strong at `.gpu`
/// scope. No width code has this value.
const NOT_ALL_STRONG: u8 = u8::MAX;

/// Id of an access list: the index of its first node plus one, or 0 for the empty list.
pub(super) type ListId = u32;

/// Maximum length of an access list. Longer lists lose their oldest accesses, so races with the lost accesses may be
/// missed; no false race is reported.
const MAX_DEPTH: u32 = 4096;
/// Number of accesses at the front of an access list that [`AccessLists::push`] compares with a new access, to see
/// whether the new one replaces them. Applies to lists whose accesses all come from one block. The number is above the
/// number of warps of a block.
const MAX_SEARCH: usize = 80;
const MAX_SEARCH_ACROSS_BLOCKS: usize = 12;
/// Maximum number of cached pushes; small, so that the cache stays in the processor's cache.
const MAX_CACHED_PUSHES: usize = 1 << 11;
/// Number of nodes before the first garbage collection; small in tests, so that tests run it.
const FIRST_LIMIT: usize = if cfg!(test) { 64 } else { 1 << 20 };

/// A cached push: the pushed record, the access list onto which it was pushed, and the resulting list.
#[derive(Clone, Copy, Debug)]
struct CachedPush {
    /// Hash of the access list and the record; comparing it first avoids loading the whole record.
    hash: u64,
    of: ListId,
    entry: AccessRecord,
    new: ListId,
}

/// All access lists of one shadow memory.
#[derive(Clone, Debug)]
pub(super) struct AccessLists {
    nodes: Vec<Node>,
    /// Recent pushes, indexed by a hash of the access list and the record. `new` is 0 in unused entries.
    cache: Vec<CachedPush>,
    limit: usize,
}

impl Default for AccessLists {
    fn default() -> Self {
        AccessLists { nodes: Vec::new(), cache: Vec::new(), limit: FIRST_LIMIT }
    }
}

impl AccessLists {
    /// Iterates over the accesses in an access list, newest first, with rotated masks.
    pub(super) fn accesses(&self, list: ListId) -> impl Iterator<Item = &AccessRecord> {
        let mut at = list;
        std::iter::from_fn(move || {
            let node = self.nodes.get(at.checked_sub(1)? as usize)?;
            at = node.next;
            Some(&node.entry)
        })
    }

    #[inline(always)]
    pub(super) fn has_write(&self, list: ListId) -> bool {
        list != 0 && self.nodes[list as usize - 1].has_write
    }

    pub(super) fn has_read(&self, list: ListId) -> bool {
        list != 0 && self.nodes[list as usize - 1].has_read
    }

    /// Returns true if all accesses in the access list are morally strong with an access of a thread that is strong at
    /// `.gpu` scope and has width code `wide`. This holds if all of them were made by threads, are strong at `.gpu`
    /// scope and have the same width.
    pub(super) fn are_all_morally_strong_with(&self, list: ListId, wide: u32) -> bool {
        list == 0 || self.nodes[list as usize - 1].strong_width == wide as u8
    }

    /// Adds `entry`, whose mask is rotated, to the front of an access list and drops the accesses that it replaces.
    /// Returns the new list.
    #[inline]
    pub(super) fn push(&mut self, list: ListId, entry: &AccessRecord) -> ListId {
        // Do not cache pushes of asynchronous operations onto the empty access list: equal pushes are rare, and the
        // access check caches its own last push.
        if list == 0 && entry.key >= FIRST_OP_KEY {
            return self.cons(0, *entry);
        }
        if self.cache.len() < MAX_CACHED_PUSHES && self.nodes.len() >= self.cache.len() {
            let none = AccessRecord { key: 0, stamp: AccessStamp(0), mask: 0, pc: 0, write: false };
            let none = CachedPush { hash: 0, of: 0, entry: none, new: 0 };
            self.cache.clear();
            self.cache.resize((2 * self.nodes.len()).next_power_of_two().clamp(64, MAX_CACHED_PUSHES), none);
        }
        let hash = entry.hash(list);
        let at = (hash >> 32) as usize & (self.cache.len() - 1);
        let known = &self.cache[at];
        if known.hash == hash && known.new != 0 && known.of == list && known.entry == *entry {
            return known.new;
        }
        let new = self.push_new(list, *entry);
        self.cache[at] = CachedPush { hash, of: list, entry: *entry, new };
        new
    }

    #[cold]
    fn push_new(&mut self, list: ListId, entry: AccessRecord) -> ListId {
        let look = self.search_length(list);
        let stands = |entry: &AccessRecord, old: &AccessRecord| entry.joins(old) || entry.replaces(old);
        if !self.accesses(list).take(look).any(|old| stands(&entry, old)) {
            return self.cons(list, entry);
        }
        let mut merged = entry;
        let below = self.without_newest(list, |old| {
            let joins = merged.joins(old);
            if joins {
                merged.mask |= old.mask;
            }
            joins || merged.replaces(old)
        });
        self.cons(below, merged)
    }

    /// Returns the number of accesses at the front of an access list that are compared with a new access, which may
    /// replace them.
    fn search_length(&self, list: ListId) -> usize {
        let across = list != 0 && self.nodes[list as usize - 1].across_blocks;
        if across { MAX_SEARCH_ACROSS_BLOCKS } else { MAX_SEARCH }
    }

    /// Returns the list without those of its newest accesses for which `drop` returns true. Tests as many accesses as
    /// [`AccessLists::push`] does.
    pub(super) fn without_newest(&mut self, list: ListId, mut drop: impl FnMut(&AccessRecord) -> bool) -> ListId {
        // `kept` are the tested accesses that stay in the access list, the first `newer` of them newer than the last
        // dropped access; `rest` is the list after this dropped access.
        let (mut kept, mut newer, mut at, mut rest) = (Vec::new(), 0, list, list);
        for _ in 0..self.search_length(list) {
            let Some(node) = at.checked_sub(1).map(|at| &self.nodes[at as usize]) else { break };
            at = node.next;
            if drop(&node.entry) {
                (newer, rest) = (kept.len(), at);
            } else {
                kept.push(node.entry);
            }
        }
        kept[..newer].iter().rev().fold(rest, |list, &entry| self.cons(list, entry))
    }

    fn cons(&mut self, list: ListId, entry: AccessRecord) -> ListId {
        let below = list.checked_sub(1).map(|at| self.nodes[at as usize]);
        let below = below.filter(|node| node.depth < MAX_DEPTH);
        let gpu = entry.stamp.strength() == AccessStrength::Gpu && entry.key < FIRST_OP_KEY;
        let width = if gpu { entry.stamp.wide() as u8 } else { NOT_ALL_STRONG };
        self.nodes.push(Node {
            entry,
            next: if below.is_some() { list } else { 0 },
            depth: below.map_or(1, |node| node.depth + 1),
            has_write: entry.write || below.is_some_and(|node| node.has_write),
            has_read: !entry.write || below.is_some_and(|node| node.has_read),
            across_blocks: below.is_some_and(|node| node.across_blocks || node.entry.key >> 6 != entry.key >> 6),
            strong_width: below.map_or(width, |node| if node.strong_width == width { width } else { NOT_ALL_STRONG }),
        });
        self.nodes.len() as ListId
    }

    /// Returns true if there are so many nodes that [`collect_garbage`](AccessLists::collect_garbage) should run.
    #[inline(always)]
    pub(super) fn needs_garbage_collection(&self) -> bool {
        self.nodes.len() > self.limit
    }

    /// Garbage collection: keeps only the nodes that are reachable from `lists`, and updates the ids in `lists`.
    pub(super) fn collect_garbage<'a>(&mut self, lists: impl Iterator<Item = &'a mut ListId>) {
        let lists: Vec<&mut ListId> = lists.filter(|list| **list != 0).collect();
        let mut live = vec![false; self.nodes.len() + 1];
        for list in &lists {
            let mut at = **list;
            while at != 0 && !live[at as usize] {
                live[at as usize] = true;
                at = self.nodes[at as usize - 1].next;
            }
        }
        let mut renamed = vec![0; self.nodes.len() + 1];
        let mut kept: Vec<Node> = Vec::new();
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| live[at + 1]) {
            kept.push(Node { next: renamed[node.next as usize], ..*node });
            renamed[at + 1] = kept.len() as ListId;
        }
        lists.into_iter().for_each(|list| *list = renamed[*list as usize]);
        self.limit = (2 * kept.len()).max(FIRST_LIMIT);
        (self.nodes, self.cache) = (kept, Vec::new());
    }
}
