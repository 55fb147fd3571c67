//! Parses the value of `--data`: one file or folder, or several with commas between them. Either all or none of them
//! have a weight after a colon: `a.parquet:0.7,b.jsonl:0.3`. Names that contain a comma or a colon are supported: an
//! existing path with the whole name takes precedence.

use std::path::{Path, PathBuf};

use reel_support::diagnostic::Diagnostic;

use crate::rows::folder::DatasetFolder;

/// A file or folder of data, and its weight in a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedPath {
    /// The file, or the folder with its split (`DIR@split`).
    pub path: PathBuf,
    /// The weight after the colon, a positive number.
    pub weight: Option<f64>,
}

const WEIGHTS: &str = "give each file a positive weight, as in a.parquet:0.7,b.jsonl:0.3, or give no weights";

/// Parses the value of `--data`. A text that is an existing path is never split at commas and colons.
///
/// # Errors
/// A weight is not a positive finite number; only some files have a weight; a path is empty.
pub fn parse_data_paths(text: &Path) -> Result<Vec<WeightedPath>, Diagnostic> {
    let whole = || vec![WeightedPath { path: text.to_path_buf(), weight: None }];
    let Some(value) = text.to_str().filter(|_| !exists(text)) else { return Ok(whole()) };
    let pieces: Vec<&str> = value.split(',').collect();
    let (mut paths, mut next) = (Vec::new(), 0);
    while next < pieces.len() {
        // Names may contain commas. So the next name is the longest sequence of these comma-separated texts that is an
        // existing path, or else a single text.
        let runs = (next + 1..=pieces.len()).rev().map(|end| (end, pieces[next..end].join(",")));
        let found = runs.into_iter().find(|(_, run)| exists(Path::new(run)) || weighted(run).is_some());
        let (end, run) = found.unwrap_or((next + 1, pieces[next].to_string()));
        paths.push(parse_one(&run)?);
        next = end;
    }
    match paths.iter().filter(|path| path.weight.is_some()).count() {
        count if count == 0 || count == paths.len() => Ok(paths),
        _ => Err(Diagnostic::new(value, "has a weight for some files only", WEIGHTS)),
    }
}

/// Returns the folder that media paths in the data are relative to by default: the folder of the first data file, or
/// the folder of the data set.
pub fn media_root(data: &Path) -> PathBuf {
    let first = parse_data_paths(data).ok().and_then(|paths| paths.into_iter().next());
    let path = first.map_or_else(|| data.to_path_buf(), |first| first.path);
    match DatasetFolder::parse(&path) {
        Some(folder) => folder.folder,
        None => path.parent().map(PathBuf::from).unwrap_or_default(),
    }
}

/// Returns the files and folders on disk in the value of `--data`, without weights and splits.
pub fn input_paths(data: &Path) -> Vec<PathBuf> {
    let paths = parse_data_paths(data).unwrap_or_default().into_iter().map(|weighted| weighted.path);
    paths.map(|path| DatasetFolder::parse(&path).map_or(path, |folder| folder.folder)).collect()
}

/// Splits `PATH:WEIGHT` into path and weight; `None` if the path does not exist.
fn weighted(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once(':').filter(|(path, _)| exists(Path::new(path)))
}

fn parse_one(text: &str) -> Result<WeightedPath, Diagnostic> {
    if text.is_empty() {
        return Err(Diagnostic::new(
            "",
            "has an empty file name",
            "remove the comma, or write a file name on both sides of it",
        ));
    }
    let of_path = |path: &str, weight| Ok(WeightedPath { path: path.into(), weight });
    if exists(Path::new(text)) {
        return of_path(text, None);
    }
    // If a text is not an existing path and does not end with a colon and a number, it is the name of a missing file.
    let parts = weighted(text).or_else(|| text.rsplit_once(':').filter(|(_, weight)| weight.parse::<f64>().is_ok()));
    let Some((path, weight)) = parts else { return of_path(text, None) };
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() && weight > 0.0 => of_path(path, Some(weight)),
        _ if weight.split_once(',').is_some_and(|(first, _)| first.parse::<f64>().is_ok()) => {
            Err(Diagnostic::new(path, format!("has a weight, but a file after it has none (\"{weight}\")"), WEIGHTS))
        }
        _ => {
            Err(Diagnostic::new(path, format!("has the weight \"{weight}\", which is not a positive number"), WEIGHTS))
        }
    }
}

fn exists(path: &Path) -> bool {
    path.exists() || DatasetFolder::parse(path).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_names_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("{}/{name}", dir.path().display());
        for name in ["a.jsonl", "b:2", "c,d.jsonl", "e.jsonl:3,f"] {
            std::fs::write(path(name), "{}").unwrap();
        }
        std::fs::create_dir(path("g")).unwrap();
        let parse = |names: &[&str]| {
            let value = names.iter().map(|name| path(name)).collect::<Vec<_>>().join(",");
            let found = parse_data_paths(Path::new(&value));
            let short = |p: WeightedPath| (p.path.display().to_string().replace(&path(""), ""), p.weight);
            found
                .map(|all| all.into_iter().map(short).collect::<Vec<_>>())
                .map_err(|e| e.to_string().replace(&path(""), ""))
        };
        let of = |name: &str, weight: Option<f64>| (name.to_string(), weight);
        for (names, wanted) in [
            (&["a.jsonl"][..], vec![of("a.jsonl", None)]),
            (&["b:2"], vec![of("b:2", None)]),
            (&["b:2:3"], vec![of("b:2", Some(3.0))]),
            (&["c,d.jsonl", "a.jsonl"], vec![of("c,d.jsonl", None), of("a.jsonl", None)]),
            (&["c,d.jsonl:0.7", "a.jsonl:0.3"], vec![of("c,d.jsonl", Some(0.7)), of("a.jsonl", Some(0.3))]),
            (&["e.jsonl:3,f"], vec![of("e.jsonl:3,f", None)]),
            (&["g@train:1e-1", "a.jsonl:1"], vec![of("g@train", Some(0.1)), of("a.jsonl", Some(1.0))]),
            (&["none.jsonl"], vec![of("none.jsonl", None)]),
            (&["none.jsonl:2"], vec![of("none.jsonl", Some(2.0))]),
            (&["a.jsonl", "none"], vec![of("a.jsonl", None), of("none", None)]),
        ] {
            assert_eq!(parse(names), Ok(wanted), "{names:?}");
        }
        for (names, wanted) in [
            (&["a.jsonl:0"][..], "a.jsonl: has the weight \"0\", which is not a positive number; "),
            (&["a.jsonl:x"], "a.jsonl: has the weight \"x\", which is not a positive number; "),
            (&["a.jsonl:0.5,b.jsonl"], "a.jsonl: has a weight, but a file after it has none (\"0.5,b.jsonl\"); "),
            (&["a.jsonl:inf"], "a.jsonl: has the weight \"inf\""),
            (&["a.jsonl:-1"], "a.jsonl: has the weight \"-1\""),
            (&["a.jsonl:1", "b:2"], "a.jsonl:1,b:2: has a weight for some files only; "),
        ] {
            let e = parse(names).unwrap_err();
            assert!(e.starts_with(wanted), "{e}");
        }
        assert!(parse_data_paths(Path::new("a,,b")).unwrap_err().to_string().contains("an empty file name"));
    }
}
