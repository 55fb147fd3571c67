//! The matrix products of a planned command that cuBLASLt computes although kernels of this program can, because their
//! tiles would leave too much of the GPU idle.

use std::collections::BTreeMap;

use anyhow::Result;
use reel_device::{MIN_WAVE_SHARE, PlannedProduct};
use serde_json::{Value, json};

use super::costs::DryRunCounts;
use crate::output;
use crate::training::default_products;

/// Returns these products by op, with their numbers of launches in all steps or calls.
fn cublaslt_products(counts: &DryRunCounts) -> BTreeMap<(&'static str, PlannedProduct), u64> {
    let implementation = default_products(counts.command);
    let mut found = BTreeMap::new();
    for (op, totals) in counts.phases.0.iter().flat_map(|(_, ops)| ops) {
        let taken = totals.products.iter().filter(|(p, _)| implementation.takes_cublaslt(p.is_forward, p.wave_share()));
        taken.for_each(|(product, launches)| *found.entry((*op, product)).or_default() += launches);
    }
    found
}

/// Returns these products as JSON: op, sizes, share of whole waves, and launches per step or call.
pub fn cublaslt_products_json(counts: &DryRunCounts) -> Value {
    let product = |((op, product), launches): ((&str, PlannedProduct), u64)| {
        let [m, n, k] = product.sizes;
        let launches = launches as f64 / counts.units as f64;
        json!({"op": op, "m": m, "n": n, "k": k, "wave_share": product.wave_share(), "launches": launches})
    };
    cublaslt_products(counts).into_iter().map(product).collect()
}

/// Prints these products, if there are any.
pub fn print_cublaslt_products(counts: &DryRunCounts) -> Result<()> {
    let products = cublaslt_products(counts);
    if products.is_empty() {
        return Ok(());
    }
    output::print_line(format!(
        "\ncuBLASLt, if it is installed, computes the matrix products with whose tiles this program's kernels reach less \
         than {MIN_WAVE_SHARE}\nof whole waves of the GPU's multiprocessors; --products own or cublaslt chooses one code \
         for all:"
    ))?;
    for ((op, product), launches) in products {
        let ([m, n, k], each) = (product.sizes, launches as f64 / counts.units as f64);
        let share = product.wave_share();
        output::print_line(format!("  {op} {m} x {n} x {k}: {share:.2} of whole waves, {each:.0} launches"))?;
    }
    Ok(())
}
