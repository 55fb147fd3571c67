//! The matrix products of device `dry` that kernels of the planned GPU can compute, with the share of the GPU that these
//! kernels keep busy. `reel plan` tells by it which products cuBLASLt computes.

use std::collections::BTreeMap;

use crate::launch::{Arch, Launch};

/// A matrix product that a kernel of the planned GPU can compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedProduct {
    /// Rows and columns of C, and the length of the sums.
    pub sizes: [usize; 3],
    /// Whether it is a forward product.
    pub is_forward: bool,
    /// Share of whole waves ([`ProductCode::wave_share`](crate::launch::ProductCode::wave_share)) in thousandths.
    wave_share: u16,
}

impl PlannedProduct {
    /// Returns the product of a launch. Returns `None` if the launch is not a product, or if no kernel can compute it.
    pub(crate) fn of_launch(launch: &Launch, arch: &Arch) -> Option<PlannedProduct> {
        let Launch::Matmul(product) = launch else { return None };
        let wave_share = (1000.0 * (product.code.wave_share)(product, arch)?) as u16;
        let sizes = [product.m, product.n, product.k];
        Some(PlannedProduct { sizes, is_forward: product.is_forward(), wave_share })
    }

    /// The share of whole waves, rounded down to thousandths.
    pub fn wave_share(&self) -> f64 {
        f64::from(self.wave_share) / 1000.0
    }
}

/// The planned products of one op, with their numbers of launches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlannedProducts(BTreeMap<PlannedProduct, u64>);

impl PlannedProducts {
    /// Adds `count` launches of a product.
    pub fn add(&mut self, product: PlannedProduct, count: u64) {
        *self.0.entry(product).or_default() += count;
    }

    /// Adds other products of the same op.
    pub fn add_all(&mut self, others: &PlannedProducts) {
        others.iter().for_each(|(product, count)| self.add(product, count));
    }

    /// Subtracts the products of `before`, an earlier state of the same counters.
    pub fn subtract(&mut self, before: &PlannedProducts) {
        for (product, before) in before.iter() {
            if let Some(count) = self.0.get_mut(&product) {
                *count = count.saturating_sub(before);
            }
        }
        self.0.retain(|_, count| *count > 0);
    }

    /// Returns each product with its number of launches.
    pub fn iter(&self) -> impl Iterator<Item = (PlannedProduct, u64)> {
        self.0.iter().map(|(product, count)| (*product, *count))
    }
}
