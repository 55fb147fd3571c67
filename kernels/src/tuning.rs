//! Variants of kernels that are compiled in, and choices between them by architecture.
//!
//! A variant is another plan of the same kernel: other tile shapes, stages or splits, with results within the same
//! tolerance. `reel bench op NAME --variants` times the variants at a size (`./run.sh tune` of the GPU bundle, at the
//! sizes that matter). A folder registers the variants of its kernels (`variants` of `kernel_folder!`), and has the
//! table of what was chosen by these times (`choices.rs`); plans read nothing else.

use reel_device::launch::Kernel;

/// A kernel with a fixed choice.
pub struct Variant {
    /// The kernel whose plan chooses among its variants, by the table of its folder.
    pub of: &'static Kernel,
    /// What is fixed, as text.
    pub name: &'static str,
    /// The kernel whose plan always uses this variant.
    pub kernel: &'static Kernel,
}

/// Returns the choices for a GPU; `sm` is its compute capability times ten. An entry of `table` holds from its
/// compute capability up to that of the next entry; entries are in ascending order. A GPU older than the first entry
/// gets the choices of the first entry.
pub(crate) fn choices_for_sm<T>(table: &'static [(u32, T)], sm: u32) -> &'static T {
    let entry = table.iter().rev().find(|(from, _)| *from <= sm);
    &entry.unwrap_or(&table[0]).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_the_choices_of_the_last_entry_that_is_not_newer() {
        static TABLE: [(u32, char); 2] = [(80, 'a'), (90, 'b')];
        let chosen = [75, 80, 86, 89, 90, 100].map(|sm| *choices_for_sm(&TABLE, sm));
        assert_eq!(chosen, ['a', 'a', 'a', 'a', 'b', 'b']);
    }
}
