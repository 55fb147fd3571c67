//! Checks the dependencies between crates and between files, and the number of lines. A crate uses only crates that
//! `docs/design.md` allows, and the parts of a folder, its files and subfolders, have no circular dependency.
//!
//! A file depends on another file if it names an item of that file, in a `use` line or in a path such as
//! `crate::data::Row`. Re-exports are followed to the file that defines the item. Code under `#[cfg(test)]` does not
//! count.

#[path = "structure/circles.rs"]
mod circles;
#[path = "structure/layers.rs"]
mod layers;
#[path = "structure/lines.rs"]
mod lines;
#[path = "structure/modules.rs"]
mod modules;
#[path = "structure/tokens.rs"]
mod tokens;

use std::path::{Path, PathBuf};

use lines::CodeLines;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the folders of all crates of the workspace, relative to the repository; the folder of the binary's crate
/// is empty.
fn crates() -> Vec<PathBuf> {
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml")).expect("Cargo.toml is there");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).expect("a list of members");
    let names = members.split('"').skip(1).step_by(2).map(PathBuf::from);
    std::iter::once(PathBuf::new()).chain(names).collect()
}

/// Folders whose parts have circular dependencies.
const WITH_CIRCLES: [&str; 1] = ["kernels/src/attention/cpu"];

#[test]
fn no_circle_runs_through_several_parts_of_a_folder() {
    let mut found = Vec::new();
    for folder in crates() {
        for root in modules::crate_root_files(&repository(), &folder) {
            found.extend(circles::describe_circles(&modules::file_dependencies(&repository(), &root)));
        }
    }
    let is_known = |circle: &&String| WITH_CIRCLES.iter().any(|folder| circle.starts_with(&format!("{folder}: ")));
    let (known, new): (Vec<&String>, Vec<&String>) = found.iter().partition(is_known);
    assert!(new.is_empty(), "{}", new.iter().map(|circle| circle.as_str()).collect::<Vec<_>>().join("\n\n"));
    assert_eq!(known.len(), WITH_CIRCLES.len(), "a folder has no circle any more; remove it from WITH_CIRCLES");
}

/// The most folders of the repository, and the most crates.
const MOST_FOLDERS_AND_CRATES: (usize, usize) = (13, 17);

#[test]
fn the_repository_has_few_folders_and_crates() {
    let entries = std::fs::read_dir(repository()).expect("the repository").map(|entry| entry.expect("an entry"));
    // Builds write to `target`, and `./x demo` to `demo`.
    let is_output = |name: &str| ["target", "demo"].contains(&name);
    let is_folder = |name: &str| !is_output(name) && !name.starts_with('.') && repository().join(name).is_dir();
    let folders = entries.filter(|entry| is_folder(&entry.file_name().to_string_lossy())).count();
    assert!(
        folders <= MOST_FOLDERS_AND_CRATES.0 && crates().len() <= MOST_FOLDERS_AND_CRATES.1,
        "{folders} folders, {} crates",
        crates().len()
    );
}

#[test]
fn crates_use_those_that_the_design_page_allows() {
    let page = std::fs::read_to_string(repository().join("docs/design.md")).expect("the design page");
    let wrong = layers::violations(&layers::layers_of_table(&page), &crates(), |folder| {
        std::fs::read_to_string(repository().join(folder).join("Cargo.toml")).expect("a manifest")
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The most lines of the product and of its proof. A change that adds lines raises these numbers, so that its author and
/// its reviewer see the price; a change that removes lines lowers them.
const MOST_LINES: CodeLines = CodeLines { product: 172_700, proof: 50_600 };

#[test]
fn product_and_proof_stay_within_their_lines() {
    let lines = lines::count(&repository());
    println!("product {} lines, proof {} lines", lines.product, lines.proof);
    for (name, own, most) in [("product", lines.product, MOST_LINES.product), ("proof", lines.proof, MOST_LINES.proof)]
    {
        let help = "remove lines, or raise MOST_LINES and say in the commit what the lines are worth";
        assert!(own <= most, "the {name} has {own} lines, above {most}; {help}");
        assert!(own + 1000 > most, "the {name} has {own} lines, far below {most}; lower MOST_LINES");
    }
}

/// Tests of this program's own parser, with source texts as inputs.
#[cfg(test)]
mod parser {
    use super::*;

    fn graph(files: &[(&str, &str)]) -> modules::DependencyGraph {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("written");
        }
        modules::file_dependencies(dir.path(), Path::new("src/lib.rs"))
    }

    #[test]
    fn paths_lead_to_the_file_that_defines_the_item() {
        let graph = graph(&[
            ("src/lib.rs", "mod a;\nmod b;\nmod c;\n"),
            ("src/a/mod.rs", "mod deep;\npub use deep::Deep;\npub struct Near;\n"),
            ("src/a/deep.rs", "// use crate::b::Never;\npub struct Deep(&'static str, char);\nconst X: char = '\"';\n"),
            (
                "src/b.rs",
                "use crate::{a::Deep, c};\nfn f() { let _ = (c::g(), \"crate::a::Near\", r#\"crate::a::Near\"#); }\n",
            ),
            (
                "src/c.rs",
                "pub fn g() {}\n#[cfg(test)]\nmod tests {\n    use crate::b::f;\n}\nfn h() { super::a::Near; }\n",
            ),
        ]);
        let want = ["src/a/mod.rs -> src/a/deep.rs", "src/b.rs -> src/a/deep.rs", "src/b.rs -> src/c.rs"];
        assert_eq!(graph.dependency_names(), [&want[..], &["src/c.rs -> src/a/mod.rs"]].concat());
    }

    #[test]
    fn the_shortest_circle_is_named_with_its_lines() {
        let graph = graph(&[
            ("src/lib.rs", "mod a;\nmod b;\n"),
            ("src/a/mod.rs", "mod x;\nmod y;\n"),
            ("src/a/x.rs", "use super::y::Y;\npub struct X(Y);\n"),
            ("src/a/y.rs", "use super::x::X;\npub struct Y(X);\n"),
            ("src/b.rs", "use crate::a;\n"),
        ]);
        let found = circles::describe_circles(&graph);
        assert!(found.len() == 1 && found[0].starts_with("src/a: "), "{found:?}");
        let graph = self::graph(&[
            ("src/lib.rs", "mod a;\n"),
            ("src/a/mod.rs", "mod x;\npub struct Y(x::X);\n"),
            ("src/a/x.rs", "use super::Y;\npub struct X(Y);\n"),
        ]);
        assert!(circles::describe_circles(&graph).is_empty(), "mod.rs and a file of its folder may name each other");
        let graph = self::graph(&[
            ("src/lib.rs", "mod a;\nmod b;\n"),
            ("src/a.rs", "\nuse crate::b::B;\npub struct A(B);\n"),
            ("src/b.rs", "pub struct B(crate::a::A);\n"),
        ]);
        let found = circles::describe_circles(&graph).pop().expect("a circle");
        assert!(found.contains("src/a.rs:2 names B of src/b.rs") && found.contains("src/b.rs:1 names A of src/a.rs"));
    }

    #[test]
    fn a_crate_above_is_refused() {
        let page = "| `low/` | x | – |\n| `high/` | x | low |\n| `top/` | x | high |\n";
        let manifest = |folder: &Path| match folder.to_str() {
            Some("low") => "[dependencies]\nreel-high = { workspace = true }\n".to_string(),
            Some("top") => "[dependencies]\nreel-low = { path = \"low\" }\n".to_string(),
            _ => String::new(),
        };
        let folders = ["low", "high", "top", "new"].map(PathBuf::from);
        let wrong = layers::violations(&layers::layers_of_table(page), &folders, manifest);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].starts_with("low/Cargo.toml: uses high") && wrong[1].starts_with("new: "), "{wrong:?}");
    }

    #[test]
    fn a_crate_of_a_higher_folder_is_refused_although_its_row_is_above() {
        let page = "| `serve/` | x | – |\n| `train/samples/` | x | serve |\n| `cli/` | x | serve, samples |\n";
        let manifest = |folder: &Path| match folder.to_str() {
            Some("train/samples" | "") => "[dependencies]\nreel-serve = { workspace = true }\n".to_string(),
            _ => String::new(),
        };
        let folders = ["serve", "train/samples", ""].map(PathBuf::from);
        let wrong = layers::violations(&layers::layers_of_table(page), &folders, manifest);
        assert_eq!(wrong, ["train/samples/Cargo.toml: uses serve, a crate of a higher folder"]);
    }
}
