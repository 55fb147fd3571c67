//! Finds circular dependencies between files of different parts of a crate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::modules::DependencyGraph;

/// Returns the part of a crate that a file belongs to: a file in `src`, or a folder in `src` with all its subfolders.
fn part(file: &str) -> &str {
    let from = file.find("src/").map_or(0, |at| at + "src/".len());
    file[from..].split('/').next().unwrap_or(file)
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

/// Returns the shortest circle through each dependency between two parts of the crate. A circle's first file is not
/// repeated at its end.
fn circles(graph: &DependencyGraph) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (from, named) in &graph.0 {
        for to in named.keys().filter(|to| part(to) != part(from)) {
            found.extend(shortest_path(graph, to, from));
        }
    }
    found
}

/// Describes the shortest circular dependency between parts of the crate, and how many files are in such circles.
/// Returns `None` if there are none.
pub fn describe_shortest_circle(graph: &DependencyGraph) -> Option<String> {
    let all = circles(graph);
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
        "a dependency cycle of {} files; {help}:\n{}\n  files in cycles: {}",
        circle.len(),
        steps.join("\n"),
        others.join(" ")
    ))
}
