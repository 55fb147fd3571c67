//! Finds circular dependencies between the files of a crate, folder by folder. The parts of a folder are its files and
//! its subfolders, each with all that is in it. A folder's `mod.rs` speaks for the whole folder: the other files of the
//! folder may name it, and it them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::modules::DependencyGraph;

/// Returns the part of `folder` that a file in it belongs to.
fn part<'a>(folder: &str, file: &'a str) -> &'a str {
    file[folder.len() + 1..].split('/').next().unwrap_or(file)
}

/// Returns the dependencies between the files in `folder`, without those of its `mod.rs`.
fn inside(graph: &DependencyGraph, folder: &str) -> DependencyGraph {
    let is_inside = |file: &str| {
        file.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).is_some_and(|rest| rest != "mod.rs")
    };
    let files = graph.0.iter().filter(|(from, _)| is_inside(from));
    DependencyGraph(
        files
            .map(|(from, named)| {
                let named = named.iter().filter(|(to, _)| is_inside(to));
                (from.clone(), named.map(|(to, item)| (to.clone(), item.clone())).collect())
            })
            .collect(),
    )
}

/// Returns all folders that have files of the graph, with their parents.
fn folders(graph: &DependencyGraph) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for file in graph.0.keys() {
        let mut rest = file.as_str();
        while let Some((folder, _)) = rest.rsplit_once('/') {
            found.insert(folder);
            rest = folder;
        }
    }
    found
}

/// Returns the files of a shortest dependency path from `from` to `to`, both included.
fn shortest_path(graph: &DependencyGraph, from: &str, to: &str) -> Option<Vec<String>> {
    let (mut before, mut queue) = (BTreeMap::new(), VecDeque::from([from.to_string()]));
    while let Some(file) = queue.pop_front() {
        if file == to {
            let mut files = vec![file];
            while let Some(earlier) = files.last().filter(|file| *file != from).and_then(|file| before.get(file)) {
                files.push(String::clone(earlier));
            }
            files.reverse();
            return Some(files);
        }
        for next in graph.0.get(&file).into_iter().flat_map(BTreeMap::keys) {
            if next != from && !before.contains_key(next) {
                before.insert(next.clone(), file.clone());
                queue.push_back(next.clone());
            }
        }
    }
    None
}

/// Returns the shortest circle through each dependency between two parts of `folder`. A circle's first file is not
/// repeated at its end.
fn circles(graph: &DependencyGraph, folder: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (from, named) in &graph.0 {
        for to in named.keys().filter(|to| part(folder, to) != part(folder, from)) {
            found.extend(shortest_path(graph, to, from));
        }
    }
    found
}

/// Describes, for each folder with circular dependencies between its parts, the shortest one, and which files are in
/// such circles.
pub fn describe_circles(graph: &DependencyGraph) -> Vec<String> {
    folders(graph).into_iter().filter_map(|folder| describe_shortest_circle(&inside(graph, folder), folder)).collect()
}

fn describe_shortest_circle(graph: &DependencyGraph, folder: &str) -> Option<String> {
    let all = circles(graph, folder);
    let files: BTreeSet<&String> = all.iter().flatten().collect();
    let circle = all.iter().min_by_key(|circle| circle.len())?;
    let step = |i: usize| {
        let (from, to) = (&circle[i], &circle[(i + 1) % circle.len()]);
        let mention = &graph.0[from][to];
        format!("  {from}:{} names {} of {to}", mention.line, mention.item)
    };
    let steps: Vec<String> = (0..circle.len()).map(step).collect();
    let others: Vec<&str> = files.iter().map(|file| file.as_str()).collect();
    let help = "move what both need into a file below them, or pass it as an argument";
    Some(format!(
        "{folder}: a dependency cycle of {} files; {help}:\n{}\n  files in cycles: {}",
        circle.len(),
        steps.join("\n"),
        others.join(" ")
    ))
}
