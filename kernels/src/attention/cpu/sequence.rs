//! Where the queries, keys and values of one sequence and key head lie.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

/// Number of keys of a block; also the block size of the KV cache.
pub const BLOCK_KEYS: usize = 64;

/// Number of f32 elements of working memory that [`SequenceArrays::joined_block`] needs.
pub const fn joined_block_element_count(head_dim: usize) -> usize {
    2 * BLOCK_KEYS * head_dim
}

/// The addresses and sizes of the arrays of one sequence and key head.
pub struct SequenceArrays<'a, T> {
    /// Query of the first new token, for the first query head that uses the key head.
    pub q: *const T,
    /// Output of the first new token, for the first query head that uses the key head.
    pub o: *mut T,
    /// Log-sum-exp of the first new token, for the first query head that uses the key head; may be null.
    pub lse: *mut f32,
    /// Keys of the key head, of the sequence's own tokens (not of its prefix).
    pub k: *const T,
    /// Values of the key head, of the sequence's own tokens (not of its prefix).
    pub v: *const T,
    /// Number of elements from one key to the next.
    pub key_stride: usize,
    /// Number of keys of the prefix, which come before the sequence's own, and the number of elements from `k` to the
    /// prefix's first key. The offset from `v` to the prefix's first value is the same.
    pub prefix: (usize, isize),
    /// Block table of a paged KV cache, and the number of tokens of a page, a power of two and a multiple of
    /// [`LANES`](super::vector::LANES). `None` if the keys are contiguous.
    pub table: Option<(&'a [i32], usize)>,
    /// Number of new tokens.
    pub queries: usize,
    /// Total number of keys: of the prefix, of earlier tokens and of the new tokens.
    pub keys: usize,
    /// Whether a query sees only the keys up to its own position.
    pub causal: bool,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl<'a, T> SequenceArrays<'a, T> {
    /// Number of query heads that use the key head.
    pub fn heads_per_key_head(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Returns the number of query rows: new tokens times query heads that use the key head.
    pub fn query_row_count(&self) -> usize {
        self.queries * self.heads_per_key_head()
    }

    /// Returns the number of keys that query row `row` sees.
    pub fn visible_key_count(&self, row: usize) -> usize {
        if self.causal { self.keys - self.queries + row / self.heads_per_key_head() + 1 } else { self.keys }
    }

    /// Returns [`Self::visible_key_count`] of row `row` and of the rows after it. It does not need a division for each
    /// row.
    #[inline(always)]
    pub fn visible_key_counts(&self, row: usize) -> impl Iterator<Item = usize> {
        let (group, step) = (self.heads_per_key_head(), usize::from(self.causal));
        let (mut head, mut count) = (row % group, self.visible_key_count(row));
        std::iter::repeat_with(move || {
            let now = count;
            head += 1;
            if head == group {
                (head, count) = (0, count + step);
            }
            now
        })
    }

    /// Returns the first query row that sees key `key`.
    pub fn first_query_row_that_sees(&self, key: usize) -> usize {
        if self.causal { (key + self.queries).saturating_sub(self.keys) * self.heads_per_key_head() } else { 0 }
    }

    /// Returns the index of the query head of row `row` in `q` and `o`, counted in heads from the addresses `q` and
    /// `o`.
    pub fn head_index(&self, row: usize) -> usize {
        row / self.heads_per_key_head() * self.heads + row % self.heads_per_key_head()
    }

    /// Returns the index of the first element of key `key` in `k` and `v`. `key` is a multiple of
    /// [`LANES`](super::vector::LANES). The keys `key .. key + LANES` are [`Self::key_stride`] elements apart, unless
    /// the prefix ends between them.
    pub fn key_offset(&self, key: usize) -> isize {
        let (prefix, to_prefix) = self.prefix;
        let at = |slot: usize| (slot * self.key_stride) as isize;
        match self.table {
            // The number of tokens of a page is a power of two, so no division is needed.
            Some((table, page)) => at(table[key >> page.trailing_zeros()] as usize * page + (key & (page - 1))),
            None if key < prefix => at(key) + to_prefix,
            None => at(key - prefix),
        }
    }

    /// Tells whether the block of 64 keys from `start` on lies in the same pages for `self` and `other`, and whether
    /// all query rows of both sequences see the whole block.
    pub fn shares_block(&self, start: usize, other: &SequenceArrays<'_, T>) -> bool {
        let end = start + BLOCK_KEYS;
        let (Some((pages, page)), Some((other_pages, _))) = (self.table, other.table) else { return false };
        let of_block = start / page..end.div_ceil(page);
        let all_see = self.visible_key_count(0) >= end && other.visible_key_count(0) >= end;
        all_see && pages[of_block.clone()] == other_pages[of_block]
    }

    /// Returns the sequence with a copy of the block of keys and values from `start` to at most `end`, if the prefix
    /// ends within this block. Only the keys and values of this block may be read from the result: its `k` and `v`
    /// point before the copy.
    ///
    /// # Safety
    /// The sequence's pointers cover its keys; `copy` has [`joined_block_element_count`] elements.
    pub unsafe fn joined_block(&self, start: usize, end: usize, copy: *mut f32) -> Option<SequenceArrays<'a, T>>
    where
        T: Copy,
    {
        let (prefix, _) = self.prefix;
        let keys = BLOCK_KEYS.min(end - start);
        if !(start + 1..start + keys).contains(&prefix) {
            return None;
        }
        let k = copy.cast::<T>();
        let v = k.add(BLOCK_KEYS * self.head_dim);
        for (from, to) in [(self.k, k), (self.v, v)] {
            for j in 0..keys {
                // `key_offset` is used here for one key only, so the key need not be a multiple of `LANES`.
                let from = from.offset(self.key_offset(start + j));
                std::ptr::copy_nonoverlapping(from, to.add(j * self.head_dim), self.head_dim);
            }
        }
        let first = start * self.head_dim;
        Some(SequenceArrays {
            k: k.cast_const().wrapping_sub(first),
            v: v.cast_const().wrapping_sub(first),
            key_stride: self.head_dim,
            prefix: (0, 0),
            ..*self
        })
    }

    /// Returns the same arrays with pairs of bf16 as their elements.
    pub fn pairs(&self) -> SequenceArrays<'a, f32> {
        SequenceArrays {
            q: self.q.cast(),
            o: self.o.cast(),
            lse: self.lse,
            k: self.k.cast(),
            v: self.v.cast(),
            key_stride: self.key_stride / 2,
            prefix: (self.prefix.0, self.prefix.1 / 2),
            table: self.table,
            queries: self.queries,
            keys: self.keys,
            causal: self.causal,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim / 2,
            scale: self.scale,
        }
    }

    /// Tells whether the keys of each block are [`Self::key_stride`] elements apart. A block in which the prefix ends
    /// is not considered.
    pub fn has_contiguous_blocks(&self) -> bool {
        self.table.is_none_or(|(_, page)| page.is_multiple_of(BLOCK_KEYS))
    }
}
