//! Sums of wgmma products that several runs of a kernel share. The interleavings of a kernel without races multiply
//! the same operands, so only the first run computes their sums; the others find them here.
//!
//! ```text
//! D = A0·B0;  D += A1·B1;  D += A2·B2      sum 0: zero  + A0·B0
//!                                          sum 1: sum 0 + A1·B1
//!                                          sum 2: sum 1 + A2·B2
//! ```
//!
//! A sum is known by its operands and by what they are added to. Operands are equal if all their bits are: the hash
//! only finds the operand to compare with. Adding a product computes nothing. [`ProductCache::values`] computes the
//! products between the last sum whose values are known and the given one, and keeps only the given one's values.

use super::{D_ROWS, WgmmaOp, WgmmaTiles};
use crate::matrix::Lanes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Maximum bytes of the operands and sums in one cache. A full cache takes no more.
const MAX_BYTES: usize = 256 << 20;
/// Bytes that a sum takes in the tables, besides its operands and values.
const SUM_BYTES: usize = 3 * size_of::<Product>();

/// Registers with equal contents: an operand of a product, or accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentId(u32);

/// A sum of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SumId(u32);

/// What a product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addend {
    /// Nothing: the product replaces the accumulators.
    Zero,
    /// Accumulators with these contents.
    Content(ContentId),
    /// An earlier sum.
    Sum(SumId),
}

/// A product of a warpgroup and what it is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Product {
    op: WgmmaOp,
    a: ContentId,
    b: ContentId,
    addend: Addend,
}

/// Operands and sums of wgmma products, shared by the runs of a check.
#[derive(Debug, Default)]
pub struct ProductCache(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    bytes: usize,
    contents: Vec<Arc<[Lanes]>>,
    content_by_hash: HashMap<u64, ContentId>,
    /// The product that each sum ends with, and the values of the sums that were computed.
    sums: Vec<(Product, Option<Arc<[Lanes]>>)>,
    sum_by_product: HashMap<Product, SumId>,
}

impl ProductCache {
    /// Returns the id of these contents; `None` if the cache is full, or has other contents of the same hash.
    pub fn content(&self, registers: &[Lanes]) -> Option<ContentId> {
        let hash = hash(registers);
        self.tables().content(hash, registers)
    }

    /// Returns the sum of `addend` and the product of the operands in `tiles`; `None` if the cache is full.
    pub fn add(&self, op: &WgmmaOp, tiles: &WgmmaTiles, addend: Addend) -> Option<SumId> {
        let [a, b] = [tiles.a.as_flattened(), tiles.b_registers(op)];
        let hashes = [hash(a), hash(b)];
        let mut tables = self.tables();
        let (a, b) = (tables.content(hashes[0], a)?, tables.content(hashes[1], b)?);
        let product = Product { op: *op, a, b, addend };
        if let Some(&sum) = tables.sum_by_product.get(&product) {
            return Some(sum);
        }
        if !tables.takes(SUM_BYTES) {
            return None;
        }
        let sum = SumId(tables.sums.len() as u32);
        tables.sums.push((product, None));
        tables.sum_by_product.insert(product, sum);
        Some(sum)
    }

    /// Returns the values of a sum: the accumulators of the warpgroup's first warp, then those of the next warps.
    pub fn values(&self, sum: SumId) -> Arc<[Lanes]> {
        let (mut steps, mut start, mut addend) = (Vec::new(), None, Addend::Sum(sum));
        let tables = self.tables();
        while let Addend::Sum(SumId(at)) = addend {
            let (product, values) = &tables.sums[at as usize];
            if values.is_some() {
                start = values.clone();
                break;
            }
            let [a, b] = [product.a, product.b].map(|id| tables.contents[id.0 as usize].clone());
            steps.push((*product, a, b));
            addend = product.addend;
        }
        if let Addend::Content(id) = addend {
            start = Some(tables.contents[id.0 as usize].clone());
        }
        drop(tables);
        let Some((last, ..)) = steps.first() else { return start.expect("a sum without steps has values") };
        let count = last.op.d_registers_per_lane();
        let mut d = start.map_or_else(|| vec![[0; 32]; D_ROWS / 16 * count], |start| start.to_vec());
        let mut tiles = WgmmaTiles::default();
        for (product, a, b) in steps.iter().rev() {
            tiles.set(&product.op, a, b);
            for (warp, d) in d.chunks_exact_mut(count).enumerate() {
                product.op.multiply_add(&tiles, warp, product.addend != Addend::Zero, d);
            }
        }
        let values: Arc<[Lanes]> = d.into();
        let mut tables = self.tables();
        if tables.takes(size_of_val(&values[..])) {
            tables.sums[sum.0 as usize].1 = Some(values.clone());
        }
        values
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().expect("no run panics while it holds the lock")
    }
}

impl Tables {
    fn content(&mut self, hash: u64, registers: &[Lanes]) -> Option<ContentId> {
        if let Some(&id) = self.content_by_hash.get(&hash) {
            let known: &[u8] = bytemuck::cast_slice(&self.contents[id.0 as usize]);
            return (known == bytemuck::cast_slice::<_, u8>(registers)).then_some(id);
        }
        if !self.takes(size_of_val(registers)) {
            return None;
        }
        let id = ContentId(self.contents.len() as u32);
        self.contents.push(registers.into());
        self.content_by_hash.insert(hash, id);
        Some(id)
    }

    /// Counts further bytes. Returns false if the cache has no room for them.
    fn takes(&mut self, bytes: usize) -> bool {
        let fits = self.bytes + bytes <= MAX_BYTES;
        if fits {
            self.bytes += bytes;
        }
        fits
    }
}

/// Returns a hash of registers. Each of eight parts is hashed by itself, so that the multiplications overlap.
fn hash(registers: &[Lanes]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut parts: [u64; 8] = std::array::from_fn(|part| part as u64 + 1);
    for words in bytemuck::cast_slice::<Lanes, [[u32; 2]; 8]>(registers) {
        for (part, [low, high]) in parts.iter_mut().zip(words) {
            let word = u64::from(*low) | u64::from(*high) << 32;
            *part = (part.rotate_left(29) ^ word).wrapping_mul(FACTOR);
        }
    }
    parts.iter().fold(registers.len() as u64, |all, part| (all.rotate_left(29) ^ part).wrapping_mul(FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_random::Random;

    #[test]
    fn sums_have_the_values_of_the_products_one_after_the_other() {
        let op = WgmmaOp::decode("wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16", false, &[1, 1, 0, 0]).unwrap();
        let mut random = Random(7);
        let mut lanes = |count: usize| -> Vec<Lanes> {
            // Numbers between 1 and 2, so that every bit of an operand counts.
            (0..count).map(|_| std::array::from_fn(|_| random.next() & 0x7f_007f | 0x3f80_3f80)).collect()
        };
        let (a, b, mut d) = (lanes(16), lanes(6), lanes(4 * op.d_registers_per_lane()));
        let (cache, mut tiles) = (ProductCache::default(), WgmmaTiles::default());
        let mut sums = Vec::new();
        let mut addend = Addend::Content(cache.content(&d).unwrap());
        for step in 0..3u32 {
            let mut b = b.clone();
            b[5][31] ^= step;
            tiles.set(&op, &a, &b);
            let sum = cache.add(&op, &tiles, addend).unwrap();
            assert_eq!(cache.add(&op, &tiles, addend), Some(sum));
            for (warp, d) in d.chunks_exact_mut(op.d_registers_per_lane()).enumerate() {
                op.multiply_add(&tiles, warp, true, d);
            }
            sums.push((sum, d.clone()));
            addend = Addend::Sum(sum);
        }
        // The last sum is computed from the beginning, the second again with the first one's values.
        for at in [2, 0, 1, 1] {
            assert_eq!(cache.values(sums[at].0)[..], sums[at].1[..], "{at}");
        }
        assert_ne!(cache.add(&op, &tiles, Addend::Zero), Some(sums[2].0));
        assert_ne!(cache.content(&a), cache.content(&b));
    }

    #[test]
    fn a_full_cache_takes_no_more() {
        let cache = ProductCache::default();
        let known = cache.content(&[[1; 32]]).unwrap();
        cache.tables().bytes = MAX_BYTES - size_of::<Lanes>() + 1;
        assert_eq!(cache.content(&[[2; 32]]), None);
        assert_eq!(cache.content(&[[1; 32]]), Some(known));
    }
}
