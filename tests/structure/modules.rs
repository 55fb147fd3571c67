//! The modules of a crate, and the dependencies between its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::tokens::{Token, index_after_brackets, tokens};

/// The first line in which a file names an item of another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemUse {
    /// The line, counted from 1.
    pub line: usize,
    /// The name of the item.
    pub item: String,
}

/// The dependencies between the files of a crate: for each file, the files whose items it names.
#[derive(Clone, Debug, Default)]
pub struct DependencyGraph(pub BTreeMap<String, BTreeMap<String, ItemUse>>);

impl DependencyGraph {
    /// Returns the dependencies as `from -> to`, sorted.
    pub fn dependency_names(&self) -> Vec<String> {
        let of_file = |(from, to): (&String, &BTreeMap<String, ItemUse>)| -> Vec<String> {
            to.keys().map(|to| format!("{from} -> {to}")).collect()
        };
        self.0.iter().flat_map(of_file).collect()
    }
}

/// Returns all Rust files below a folder.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Returns the root files of the library and the programs of the crate in `folder`, relative to the repository.
pub fn crate_root_files(repository: &Path, folder: &Path) -> Vec<PathBuf> {
    let bins = rust_files(&repository.join(folder).join("src/bin"));
    let bins = bins.iter().map(|path| path.strip_prefix(repository).expect("a path in the repository").to_path_buf());
    let roots = ["src/lib.rs", "src/main.rs", "cli/main.rs"].map(|name| folder.join(name));
    roots.into_iter().chain(bins).filter(|path| repository.join(path).exists()).collect()
}

/// Returns the dependencies between the files of the crate whose root file is `root`, relative to `repository`.
pub fn file_dependencies(repository: &Path, root: &Path) -> DependencyGraph {
    let mut tree = Modules { repository: repository.to_path_buf(), ..Modules::default() };
    let folder = root.parent().expect("a folder").to_path_buf();
    tree.add_file(None, root.to_path_buf(), folder);
    let mut graph = DependencyGraph::default();
    for module in &tree.modules {
        for path in &module.paths {
            let Some((to, item)) = tree.file_of(module.id, &path.names, &mut BTreeSet::new()) else { continue };
            if to != module.file {
                let named = graph.0.entry(module.file.clone()).or_default();
                named.entry(to).or_insert(ItemUse { line: path.line, item });
            }
        }
    }
    graph
}

/// A path in the code, such as `crate::data::Row`.
#[derive(Debug)]
struct CodePath {
    names: Vec<String>,
    line: usize,
}

#[derive(Debug, Default)]
struct Module {
    id: usize,
    parent: Option<usize>,
    file: String,
    /// The folder with the files of its child modules.
    folder: PathBuf,
    children: BTreeMap<String, usize>,
    /// Items that are defined in the module.
    items: BTreeSet<String>,
    /// Names imported by `use` lines, each with its full path.
    imports: BTreeMap<String, Vec<String>>,
    /// The paths of glob imports, `use …::*`.
    globs: Vec<Vec<String>>,
    paths: Vec<CodePath>,
}

/// The module or item that a path refers to; for an item, its file and name.
enum Target {
    Module(usize),
    Item(String, String),
}

#[derive(Debug, Default)]
struct Modules {
    repository: PathBuf,
    modules: Vec<Module>,
}

impl Modules {
    fn add(&mut self, parent: Option<usize>, file: String, folder: PathBuf) -> usize {
        let id = self.modules.len();
        self.modules.push(Module { id, parent, file, folder, ..Module::default() });
        id
    }

    /// Adds the module in `file`, whose child modules have their files in `folder`.
    fn add_file(&mut self, parent: Option<usize>, file: PathBuf, folder: PathBuf) -> usize {
        let source = fs::read_to_string(self.repository.join(&file))
            .unwrap_or_else(|e| panic!("{}: cannot be read: {e}", file.display()));
        let id = self.add(parent, file.display().to_string(), folder);
        self.read(id, &tokens(&source));
        id
    }

    /// Reads the source text of a module.
    fn read(&mut self, id: usize, code: &[Token]) {
        let text = |at: usize| code.get(at).map_or("", |token| token.text.as_str());
        let mut at = 0;
        while at < code.len() {
            match (text(at), text(at + 1), text(at + 2)) {
                ("mod", name, ";") => {
                    self.add_child_file(id, name);
                    at += 3;
                }
                ("mod", name, "{") => {
                    let end = index_after_brackets(code, at + 2);
                    let folder = self.modules[id].folder.join(name);
                    let child = self.add(Some(id), self.modules[id].file.clone(), folder);
                    self.modules[id].children.insert(name.to_string(), child);
                    self.read(child, &code[at + 3..end - 1]);
                    at = end;
                }
                ("use", ..) => at = self.read_use(id, code, at + 1),
                ("fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union", name, _) => {
                    self.modules[id].items.insert(name.to_string());
                    at += 1;
                }
                ("macro_rules", "!", name) => {
                    self.modules[id].items.insert(name.to_string());
                    at += 3;
                }
                // Modules may also be declared by a macro that lists them.
                (_, "!", "{") => {
                    let end = index_after_brackets(code, at + 2);
                    for listed in &code[at + 3..end - 1] {
                        if self.file_of_child(id, &listed.text).is_some() {
                            self.add_child_file(id, &listed.text);
                        }
                    }
                    at += 3;
                }
                _ => at = self.read_path(id, code, at),
            }
        }
    }

    /// Returns the file of a child module; `None` if the module has no file of its own or has already been read.
    fn file_of_child(&self, id: usize, name: &str) -> Option<PathBuf> {
        let Module { folder, children, .. } = &self.modules[id];
        let candidates = [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")];
        let is_name = is_identifier(name) && !["mod", "lib", "main"].contains(&name);
        candidates
            .into_iter()
            .filter(|_| is_name)
            .find(|path| !children.contains_key(name) && self.repository.join(path).exists())
    }

    fn add_child_file(&mut self, id: usize, name: &str) {
        let file = self.file_of_child(id, name);
        let file = file.unwrap_or_else(|| panic!("{}: declares mod {name}, which has no file", self.modules[id].file));
        let inner = self.modules[id].folder.join(name);
        let child = self.add_file(Some(id), file, inner);
        self.modules[id].children.insert(name.to_string(), child);
    }

    /// Reads the rest of a `use` line, from index `at`. Returns the index of the token after the line.
    fn read_use(&mut self, id: usize, code: &[Token], at: usize) -> usize {
        let end = at + code[at..].iter().position(|token| token.text == ";").unwrap_or(code.len() - at);
        self.read_use_tree(id, Vec::new(), &code[at..end]);
        end + 1
    }

    fn read_use_tree(&mut self, id: usize, mut prefix: Vec<String>, code: &[Token]) {
        for (i, token) in code.iter().enumerate() {
            match token.text.as_str() {
                "{" => {
                    let inner = &code[i + 1..index_after_brackets(code, i) - 1];
                    for part in split_at_commas(inner) {
                        self.read_use_tree(id, prefix.clone(), part);
                    }
                    return;
                }
                "*" => {
                    self.modules[id].globs.push(prefix);
                    return;
                }
                "as" => break,
                "::" => {}
                name => prefix.push(name.to_string()),
            }
        }
        let Some(last) = code.last() else { return };
        if prefix.len() > 1 && prefix.last().is_some_and(|name| name == "self") {
            prefix.pop();
        }
        let Some(name) = prefix.last() else { return };
        let alias = if last.text == "self" { name.clone() } else { last.text.clone() };
        self.modules[id].imports.insert(alias, prefix.clone());
        self.modules[id].paths.push(CodePath { names: prefix, line: last.line });
    }

    /// Reads a path of two or more names at index `at`. Returns the index of the token after the path.
    fn read_path(&mut self, id: usize, code: &[Token], at: usize) -> usize {
        let text = |at: usize| code.get(at).map_or("", |token| token.text.as_str());
        let is_name = |at: usize| is_identifier(text(at));
        if !is_name(at) || at > 0 && text(at - 1) == "::" {
            return at + 1;
        }
        let (mut names, mut next) = (vec![text(at).to_string()], at + 1);
        while text(next) == "::" && is_name(next + 1) {
            names.push(text(next + 1).to_string());
            next += 2;
        }
        if names.len() > 1 {
            self.modules[id].paths.push(CodePath { names, line: code[at].line });
        }
        next
    }

    /// Resolves a Rust path such as `a::b::Item` that is used in module `id`. Returns the source file of the item,
    /// and the item's name; `None` if the path names a module or an item of another crate.
    fn file_of(&self, id: usize, names: &[String], seen: &mut BTreeSet<(usize, String)>) -> Option<(String, String)> {
        match self.target(id, names, seen)? {
            Target::Module(_) => None,
            Target::Item(file, item) => Some((file, item)),
        }
    }

    fn target(&self, id: usize, names: &[String], seen: &mut BTreeSet<(usize, String)>) -> Option<Target> {
        let (first, rest) = names.split_first()?;
        match first.as_str() {
            "crate" => self.inside(0, rest, seen),
            "self" => self.inside(id, rest, seen),
            "super" => self.inside(self.modules[id].parent?, rest, seen),
            name => {
                let module = &self.modules[id];
                let is_known = module.children.contains_key(name) || module.imports.contains_key(name);
                if is_known { self.inside(id, names, seen) } else { None }
            }
        }
    }

    /// Returns the module or item that the path `names` refers to, seen from module `id`.
    fn inside(&self, id: usize, names: &[String], seen: &mut BTreeSet<(usize, String)>) -> Option<Target> {
        let Some((name, rest)) = names.split_first() else { return Some(Target::Module(id)) };
        let module = &self.modules[id];
        if name == "super" {
            return self.inside(module.parent?, rest, seen);
        }
        if let Some(&child) =
            module.children.get(name).filter(|_| !rest.is_empty() || !module.imports.contains_key(name))
        {
            return self.inside(child, rest, seen);
        }
        if module.items.contains(name) {
            return Some(Target::Item(module.file.clone(), name.clone()));
        }
        if !seen.insert((id, name.clone())) {
            return None;
        }
        if let Some(path) = module.imports.get(name) {
            return match self.target(id, path, seen)? {
                Target::Module(found) => self.inside(found, rest, seen),
                item => Some(item),
            };
        }
        for glob in &module.globs {
            if let Some(Target::Module(found)) = self.target(id, glob, seen)
                && found != id
                && self.provides(found, name)
            {
                return self.inside(found, names, seen);
            }
        }
        // The item is not in the source text, so a macro must define it.
        Some(Target::Item(module.file.clone(), name.clone()))
    }

    fn provides(&self, id: usize, name: &str) -> bool {
        let module = &self.modules[id];
        module.items.contains(name) || module.children.contains_key(name) || module.imports.contains_key(name)
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Splits a braced list of a `use` line at its commas.
fn split_at_commas(code: &[Token]) -> Vec<&[Token]> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0);
    for (i, token) in code.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&code[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&code[from..]);
    parts
}
