//! The CUDA launches that a GPU would execute for the launches of device `dry`, with the grids that the kernels'
//! launch plans contain. `reel plan` computes modelled times from these launches.

use std::collections::BTreeMap;

use crate::launch::Arch;
use crate::{Cost, Launch};

/// One CUDA launch of a plan, without its parameters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedStage {
    /// The kernel's symbol, its `extern "C"` name.
    pub symbol: &'static str,
    /// Number of blocks of the grid.
    pub blocks: u32,
    /// Number of blocks of a cluster; 1 without clusters.
    pub cluster: u32,
    /// Number of threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared: u32,
    /// Whether the blocks may start before the previous launch has ended (programmatic dependent launch).
    pub programmatic: bool,
    /// The sizes of the kernel's call by name, such as `("tokens", 8192)`.
    pub sizes: Vec<(&'static str, u64)>,
}

impl PlannedStage {
    /// The size with this name, if the kernel has it.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.sizes.iter().find(|(own, _)| *own == name).map(|(_, size)| *size)
    }
}

/// The stages that a GPU of this architecture executes for a launch. Empty for a matrix product that a library
/// computes.
pub(crate) fn planned_stages(launch: &Launch, arch: &Arch) -> Vec<PlannedStage> {
    let of_product = match launch {
        Launch::Matmul(product) => (product.code.gpu_kernel)(product, arch).map(Launch::Kernel),
        Launch::Kernel(_) | Launch::WeightGroups(_) => None,
    };
    let call = of_product.as_ref().unwrap_or(launch);
    let Launch::Kernel(launch) = call else { return Vec::new() };
    let sizes = call.sizes();
    let product = |sizes: [u32; 3]| sizes.into_iter().product();
    let stages = (launch.kernel.plan)(&launch.params, arch).into_iter();
    stages
        .map(|s| PlannedStage {
            symbol: s.symbol,
            blocks: product(s.grid),
            cluster: product(s.cluster),
            threads: product(s.block),
            shared: s.shared,
            programmatic: s.programmatic,
            sizes: sizes.clone(),
        })
        .collect()
}

/// The planned launches of one kernel, grouped by stages and cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlannedLaunches(BTreeMap<Group, Launches>);

/// The key of a group of equal launches: their stages, and the operations and bytes of one launch as the bits of f64
/// values.
type Group = (Vec<PlannedStage>, [u64; 2]);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Launches {
    count: u64,
    /// The cost of all launches of the group together.
    cost: Cost,
}

impl PlannedLaunches {
    /// Adds `count` launches with these stages, each of the given cost. A launch without stages is not counted.
    pub fn add(&mut self, stages: &[PlannedStage], cost: Cost, count: u64) {
        if stages.is_empty() {
            return;
        }
        let group = self.0.entry((stages.to_vec(), [cost.flops.to_bits(), cost.bytes.to_bits()])).or_default();
        group.count += count;
        group.cost += Cost { flops: cost.flops * count as f64, bytes: cost.bytes * count as f64 };
    }

    /// Adds other launches of the same kernel.
    pub fn add_all(&mut self, others: &PlannedLaunches) {
        for (group, other) in &others.0 {
            let mine = self.0.entry(group.clone()).or_default();
            mine.count += other.count;
            mine.cost += other.cost;
        }
    }

    /// Subtracts the launches of `before`, an earlier state of the same counters.
    pub fn subtract(&mut self, before: &PlannedLaunches) {
        for (group, before) in &before.0 {
            if let Some(mine) = self.0.get_mut(group) {
                mine.count = mine.count.saturating_sub(before.count);
                mine.cost.flops -= before.cost.flops;
                mine.cost.bytes -= before.cost.bytes;
            }
        }
        self.0.retain(|_, launches| launches.count > 0);
    }

    /// Multiplies the operations of all launches by `flops`, and the bytes of all launches by `bytes`.
    pub fn scale(&mut self, flops: f64, bytes: f64) {
        for launches in self.0.values_mut() {
            launches.cost.flops *= flops;
            launches.cost.bytes *= bytes;
        }
    }

    /// The number of launches.
    pub fn count(&self) -> u64 {
        self.0.values().map(|launches| launches.count).sum()
    }

    /// Returns for each group of equal launches the stages, the number of launches and the cost of all launches
    /// together.
    pub fn groups(&self) -> impl Iterator<Item = (&[PlannedStage], u64, Cost)> {
        self.0.iter().map(|((stages, _), launches)| (stages.as_slice(), launches.count, launches.cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: PlannedStage = PlannedStage {
        symbol: "k",
        blocks: 2,
        cluster: 1,
        threads: 32,
        shared: 0,
        programmatic: false,
        sizes: Vec::new(),
    };

    #[test]
    fn equal_launches_are_one_group_and_earlier_ones_can_be_subtracted() {
        let (small, large) = (Cost { flops: 1.0, bytes: 2.0 }, Cost { flops: 1.0, bytes: 4.0 });
        let mut before = PlannedLaunches::default();
        before.add(&[STAGE], small, 3);
        before.add(&[], small, 1);
        let mut all = before.clone();
        all.add(&[STAGE], small, 2);
        all.add(&[STAGE], large, 1);
        assert_eq!((all.groups().count(), all.count(), before.count()), (2, 6, 3));
        all.subtract(&before);
        all.scale(1.0, 0.5);
        let groups: Vec<_> = all.groups().map(|(_, count, cost)| (count, cost.bytes)).collect();
        assert_eq!(groups, [(2, 2.0), (1, 2.0)]);
        before.add_all(&all);
        assert_eq!(before.count(), 6);
    }
}
