//! The list of kernel folders and of plain matrix products with example calls: what `reel kernels` lists, shows,
//! checks and times.

mod products;

pub use crate::FOLDERS;
pub use crate::folder::{ExampleCall, KernelFolder, SizeError, Sizes};
use reel_device::{Kernel, Source};

use crate::tuning::Variant;

pub use products::{ExampleProduct, example_output_layer, example_products};

/// Returns the CUDA sources of all kernel folders.
pub fn sources() -> Vec<&'static Source> {
    FOLDERS.iter().map(|folder| folder.source).collect()
}

/// Returns the kernel folder with this name.
pub fn find_kernel_folder(name: &str) -> Option<&'static KernelFolder> {
    FOLDERS.iter().find(|f| f.name == name)
}

/// Returns the variants of a kernel, from which the kernel's plan chooses. A kernel whose plan has no choice has no
/// variants.
pub fn variants_of(kernel: &'static Kernel) -> impl Iterator<Item = &'static Variant> {
    FOLDERS.iter().flat_map(|folder| folder.variants).filter(move |v| std::ptr::eq(v.of, kernel))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use reel_device::Arch;
    use reel_device::compile::{builtin, compile_to_ptx, skip_without_nvrtc};
    use reel_device::launch::KernelLaunch;

    use super::*;

    const ARCHS: [Arch; 4] = [Arch::A100, Arch::SM86, Arch::SM89, Arch::H100];

    /// Returns the names that `kernel!(pub X, "name", …)` declares in a module's text; none if the module calls
    /// `kernel!` inside another macro.
    fn declared(module: &str) -> BTreeSet<&str> {
        let calls = module.split("kernel!(").skip(1).filter(|rest| !rest.starts_with("pub $"));
        calls.filter_map(|rest| rest.split('"').nth(1)).collect()
    }

    #[test]
    fn every_kernel_has_an_example() {
        for folder in FOLDERS {
            let examples = folder.examples();
            let shown: BTreeSet<&str> = examples.iter().map(|e| e.launch.kernel.name).collect();
            let declared = declared(folder.module);
            assert!(
                declared.is_empty() || shown == declared,
                "{}: examples of {shown:?}, but `kernel!` declares {declared:?}",
                folder.name
            );
            assert_eq!(shown.len(), examples.len(), "{}: one example a kernel", folder.name);
            assert!(folder.documentation().len() > 50, "{}", folder.name);
        }
    }

    #[test]
    fn every_folder_is_listed() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut with_kernels = BTreeSet::new();
        for entry in fs::read_dir(src).unwrap() {
            let entry = entry.unwrap();
            let module = fs::read_to_string(entry.path().join("mod.rs")).unwrap_or_default();
            if module.contains("\nkernel_folder! {") {
                with_kernels.insert(entry.file_name().into_string().unwrap());
            }
        }
        assert_eq!(FOLDERS.iter().map(|f| f.name.to_string()).collect::<BTreeSet<_>>(), with_kernels);
        assert!(FOLDERS.iter().all(|f| f.name == f.source.name));
    }

    #[test]
    fn every_plan_stays_within_the_limits_of_each_gpu() {
        for example in FOLDERS.iter().flat_map(KernelFolder::examples) {
            let KernelLaunch { kernel, params, cost, .. } = &example.launch;
            assert!(cost.bytes > 0.0 && cost.bytes.is_finite() && cost.flops.is_finite(), "{}", kernel.name);
            for arch in ARCHS {
                let stages = (kernel.plan)(params, &arch);
                // The symbol of the first stage begins with the kernel's name; several kernels may share later
                // stages.
                assert!(
                    stages.first().is_some_and(|s| s.symbol.starts_with(kernel.name)),
                    "{}: {stages:?}",
                    kernel.name
                );
                for s in stages {
                    let threads: u32 = s.block.iter().product();
                    assert!((1..=1024).contains(&threads), "{}: {threads} threads", s.symbol);
                    assert!(s.grid.iter().all(|&n| n > 0) && s.grid[1].max(s.grid[2]) < 65536, "{}", s.symbol);
                    assert!(s.shared <= arch.shared_per_block, "{} on sm_{}: {} bytes", s.symbol, arch.sm, s.shared);
                }
            }
        }
    }

    /// Checks the archive of compiled kernels in the binary, if the build has one. `./x release` runs this test.
    #[test]
    fn what_is_built_in_is_of_these_sources() {
        let archive = builtin::archive();
        let is_empty = archive.architectures().is_empty();
        let wanted = if is_empty { 0 } else { FOLDERS.len() * builtin::all_architectures().len() };
        assert_eq!(archive.fresh_and_stale_counts(&sources()), (wanted, 0));
    }

    /// `reel kernels` compares variants of attention kernels. On Hopper at least one variant must have another plan
    /// than the default kernel, and on every GPU one variant must have the same plan.
    #[test]
    fn attention_has_variants_with_other_plans_on_every_gpu() {
        for (folder, name) in [("attention", "attention_fwd_bf16"), ("paged_attention", "paged_attention_fwd_bf16")] {
            let folder = find_kernel_folder(folder).unwrap();
            let examples = folder.examples_with_sizes(&Sizes::default()).unwrap();
            for launch in examples.iter().map(|e| &e.launch).filter(|launch| launch.kernel.name == name) {
                for arch in [Arch::A100, Arch::H100] {
                    let plan = |kernel: &Kernel| (kernel.plan)(&launch.params, &arch);
                    let others = variants_of(launch.kernel).filter(|v| plan(v.kernel) != plan(launch.kernel)).count();
                    assert!(others > 0 || arch.sm < 90, "{name}: {:?}", plan(launch.kernel));
                    assert!(variants_of(launch.kernel).any(|v| plan(v.kernel) == plan(launch.kernel)), "{name}");
                }
            }
        }
    }

    /// Each kernel symbol is written out in full in the CUDA source, so that a text search finds it; no macro assembles
    /// it.
    #[test]
    fn every_symbol_is_a_word_in_the_cuda_of_its_folder() {
        let with_nvrtc = skip_without_nvrtc().is_some();
        for folder in FOLDERS {
            let texts = std::iter::once(folder.source.sm80).chain(folder.source.headers.iter().map(|(_, text)| *text));
            let code = texts.flat_map(str::lines).map(|line| line.split_once("//").map_or(line, |(code, _)| code));
            let is_in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let words: BTreeSet<&str> = code.flat_map(|line| line.split(|c| !is_in_word(c))).collect();
            let mut symbols = BTreeSet::new();
            for launch in folder.examples().iter().map(|example| &example.launch) {
                let plans = std::iter::once(launch.kernel).chain(variants_of(launch.kernel).map(|v| v.kernel));
                for (kernel, arch) in plans.flat_map(|kernel| ARCHS.map(|arch| (kernel, arch))) {
                    symbols.extend((kernel.plan)(&launch.params, &arch).iter().map(|stage| stage.symbol.to_string()));
                }
            }
            // Adds the entry points of the compiled code: some of them may not be in the plan of any example.
            for sm in ["sm_80", "sm_90a"].into_iter().filter(|_| with_nvrtc) {
                let ptx = compile_to_ptx(folder.source, sm).unwrap();
                let entries = ptx.split(".entry ").skip(1).filter_map(|rest| rest.split('(').next());
                symbols.extend(entries.map(str::to_string));
            }
            for symbol in symbols {
                assert!(words.contains(symbol.as_str()), "{symbol} is not in the .cu and .cuh of {}", folder.name);
            }
        }
    }
}
