//! The list of kernel folders and of plain matrix products with example calls: what `reel kernels` lists, shows,
//! checks and times.

mod products;

pub use crate::FOLDERS;
pub use crate::folder::{ExampleCall, KernelFolder, SizeError, Sizes};
pub use products::{ExampleProduct, example_output_layer, example_products};

/// Returns the kernel folder with this name.
pub fn find_kernel_folder(name: &str) -> Option<&'static KernelFolder> {
    FOLDERS.iter().find(|f| f.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;
    use crate::launch::KernelLaunch;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// Returns the names that `kernel!(pub X, "name", …)` declares in a module's text; none if the module calls
    /// `kernel!` in a macro of its own.
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
            assert!(declared.is_empty() || shown == declared, "{}: {shown:?}, not {declared:?}", folder.name);
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
            for arch in [Arch::A100, Arch::SM86, Arch::SM89, Arch::H100] {
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
}
