//! Checks the crates' manifests against the table of layers in `docs/design.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A row of the table of layers: a folder, and the crates that its crate may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The crate's folder, such as `train` or `train/samples`.
    pub folder: String,
    /// The names of the crates in the last column of the table.
    pub may_use: Vec<String>,
}

impl Layer {
    /// Returns the last part of the folder: the crate's name without `reel-`.
    fn name(&self) -> &str {
        self.folder.rsplit('/').next().unwrap_or(&self.folder)
    }
}

/// The folders of the repository that have crates, from the lowest layer up. A crate uses none of a later folder.
const FOLDERS: [&str; 11] =
    ["sim", "input", "kernels", "runtime", "model", "engine", "train", "eval", "serve", "tools", "cli"];

/// Returns the place in [`FOLDERS`] of the first part of a folder's path.
fn floor(folder: &str) -> usize {
    let first = folder.split('/').next().unwrap_or(folder);
    FOLDERS.iter().position(|name| *name == first).unwrap_or(FOLDERS.len())
}

/// Parses the table of layers; the rows go from the lowest layer up.
pub fn layers_of_table(page: &str) -> Vec<Layer> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.trim_end_matches(" |").split(" | ").collect();
        let [folder, .., may_use] = cells.as_slice() else { return None };
        let folder = folder.strip_suffix("/`")?.to_string();
        let names = may_use.split(", ").filter(|name| *name != "–").map(str::to_string).collect();
        Some(Layer { folder, may_use: names })
    };
    page.lines().filter_map(row).collect()
}

/// Returns the crates that the crate of row `at` may use, directly or indirectly.
fn reachable(layers: &[Layer], at: usize) -> BTreeSet<&str> {
    let below = &layers[..at];
    if layers[at].may_use.iter().any(|name| name == "all") {
        return below.iter().map(Layer::name).collect();
    }
    let mut found = BTreeSet::new();
    for name in &layers[at].may_use {
        if let Some(i) = below.iter().position(|layer| layer.name() == name) {
            found.insert(name.as_str());
            found.extend(reachable(layers, i));
        }
    }
    found
}

/// Describes all contradictions to the table: a crate without a row, a row that names a crate which is not above it
/// in the table, a dependency that the crate's row does not allow, and a dependency on a crate of a higher folder.
/// `manifest` returns the Cargo.toml in a folder.
pub fn violations(layers: &[Layer], crates: &[PathBuf], manifest: impl Fn(&Path) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let is_above = |name: &&String| !layers[..at].iter().any(|lower| lower.name() == name.as_str());
        for name in layer.may_use.iter().filter(|name| !["all", "the binary"].contains(&name.as_str())).filter(is_above)
        {
            wrong.push(format!("docs/design.md: {} may use {name}, whose row is not above it", layer.folder));
        }
    }
    for folder in crates {
        let name = if folder.as_os_str().is_empty() { "cli" } else { folder.to_str().expect("a name in UTF-8") };
        let Some(at) = layers.iter().position(|layer| layer.folder == name) else {
            wrong.push(format!("{name}: has no row in the table of layers of docs/design.md"));
            continue;
        };
        let allowed = reachable(layers, at);
        for used in dependencies(&manifest(folder)).into_iter().filter(|used| !allowed.contains(used.as_str())) {
            let path = folder.join("Cargo.toml");
            wrong.push(format!("{}: uses {used}, which docs/design.md does not allow", path.display()));
        }
        let used = dependencies(&manifest(folder));
        for higher in layers.iter().filter(|layer| used.iter().any(|used| used == layer.name())) {
            if floor(&higher.folder) > floor(name) {
                let path = folder.join("Cargo.toml");
                wrong.push(format!("{}: uses {}, a crate of a higher folder", path.display(), higher.folder));
            }
        }
    }
    wrong
}

/// Returns the folders of the workspace crates in the section `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    let lines = section.take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.strip_prefix("reel-")?.split_once(" =")?.0.to_string())).collect()
}
