//! Reads the data files of a benchmark. Each publisher of a benchmark has its own layout, which is recognised by the
//! names of the files and by the columns of their first row.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use reel_samples::rewards::ProblemType;
use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value};

use crate::BenchmarkRow;
use crate::error::{Error, Kind, Result};
use crate::expand::{LookupFile, add_lookup_columns, expand};
use crate::row::ParsedRow;
use crate::source::{SourceFile, add_file_columns};
use crate::task::{Layout, OptionalColumns, Task, column};

/// The rows of a benchmark.
#[derive(Clone, Debug)]
pub struct LoadedBenchmark {
    /// The name of the files' layout, which tells who published the files in this form.
    pub layout: String,
    /// The data files that were read.
    pub files: Vec<DataFile>,
    /// The questions, in the order of the files.
    pub rows: Vec<BenchmarkRow>,
    /// Number of rows that do not count in the benchmark's score, by reason.
    pub left_out: BTreeMap<String, usize>,
    /// Number of questions whose options the model does not see, because neither the task's template nor the question
    /// lists them.
    pub without_options: usize,
    /// The folder that the paths of videos are relative to.
    pub media_root: PathBuf,
}

/// A data file of a benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Fingerprint of the file's content.
    pub fingerprint: String,
    /// Number of rows of the file.
    pub rows: usize,
}

/// The reason under which unusable rows are counted in [`LoadedBenchmark::left_out`].
const BAD_ROW: &str = "bad row";

/// Reads the rows of a benchmark. `data` is a data file, a folder with the data files, or a folder that contains a
/// folder of the task's name with the files. Paths of videos are relative to `media_root` if it is given, else to the
/// folder of the files. With `skip_bad_rows`, unusable rows are left out and counted.
///
/// # Errors
/// There is no file of the benchmark; a file cannot be read, or belongs to another benchmark; without `skip_bad_rows`, a
/// row cannot be used. For a user's task also: a rule names a column that no row has; without `skip_bad_rows`, two rows
/// have the same id.
pub fn load_benchmark(
    task: &Task,
    data: &Path,
    media_root: Option<&Path>,
    skip_bad_rows: bool,
) -> Result<LoadedBenchmark> {
    let FoundLayout { layout, files, folder, first } = find_files(task, data)?;
    let media_root = media_root.map_or_else(|| folder.clone(), Path::to_path_buf);
    let mut loaded = LoadedBenchmark {
        layout: layout.name.clone(),
        files: Vec::new(),
        rows: Vec::new(),
        left_out: BTreeMap::new(),
        without_options: 0,
        media_root: media_root.clone(),
    };
    let mut first = Some(first);
    // Built-in tasks accept published files of several versions. In such files a column may be missing from all rows,
    // and several rows may have the same id.
    let is_own = task.user_file_text.is_some();
    let mut unseen = if is_own { layout.optional_columns() } else { Vec::new() };
    let mut known_columns = BTreeSet::new();
    let lookups = layout.lookup.iter().map(|rule| LookupFile::open(rule, &folder)).collect::<Result<Vec<_>>>()?;
    let mut indices_by_id: HashMap<String, usize> = HashMap::new();
    for path in files {
        let source = match first.take() {
            Some(first) => first,
            None => SourceFile::open(&path)?,
        };
        let rows = expand(source.rows(&layout.nested)?, layout);
        let fingerprint = source.table.fingerprint();
        drop(source);
        let count = rows.len();
        for (index, (location, row)) in rows.into_iter().enumerate() {
            let parsed = row.and_then(|mut columns| {
                add_file_columns(&mut columns, &path);
                layout.add_derived_columns(&mut columns, index, count);
                if let Some(reason) = add_lookup_columns(&lookups, &mut columns)? {
                    return Ok(ParsedRow::Excluded(reason));
                }
                layout.remove_found_columns(&mut unseen, &columns);
                if !unseen.is_empty() && known_columns.len() < MAX_NAMED_COLUMNS {
                    known_columns.extend(columns.keys().cloned());
                }
                refuse_other_benchmark(task, &columns)?;
                let row = BenchmarkRow::parse(&columns, layout, &location, &media_root)?;
                if is_own {
                    refuse_used_id(&row, &indices_by_id, &loaded.rows)?;
                }
                Ok(row)
            });
            match parsed {
                Ok(ParsedRow::Question(row)) => {
                    let has_options = row.kind == ProblemType::MultipleChoice;
                    let shows_options = !has_options || task.shows_options(&row.question, &row.options);
                    loaded.without_options += usize::from(!shows_options);
                    indices_by_id.insert(row.id.clone(), loaded.rows.len());
                    loaded.rows.push(*row);
                }
                Ok(ParsedRow::Excluded(reason)) => *loaded.left_out.entry(reason).or_default() += 1,
                Err(_) if skip_bad_rows => *loaded.left_out.entry(BAD_ROW.into()).or_default() += 1,
                Err(wrong) => return Err(Kind::Failed.error(wrong.at(location))),
            }
        }
        loaded.files.push(DataFile { path, fingerprint, rows: count });
    }
    if let Some(columns) = unseen.first() {
        return Err(unknown_column(task, layout, columns, known_columns));
    }
    if loaded.rows.is_empty() {
        let location = loaded.files.first().map_or(data, |file| &file.path).display().to_string();
        let what = format!("has no row that is part of {}", task.title);
        return Err(data_error(location, what, "give the files of the benchmark's test set"));
    }
    Ok(loaded)
}

/// Approximate maximum number of columns that an error lists.
const MAX_NAMED_COLUMNS: usize = 64;

/// The error for a rule that names only columns that no row has.
fn unknown_column(
    task: &Task,
    layout: &Layout,
    columns: &OptionalColumns<'_>,
    known_columns: BTreeSet<String>,
) -> Error {
    let names = columns.alternatives.concat().join(", ");
    let is_of_file = |name: &String| !name.starts_with("file.") && !name.starts_with("row.");
    let known: Vec<String> = known_columns.into_iter().filter(is_of_file).collect();
    let location = format!("benchmark {}: layout `{}`: {}", task.name, layout.name, columns.rule);
    let what = format!("names the column {names}, which no row has; rows have {}", known.join(", "));
    Error::failed(location, what, "correct the name, or remove the rule")
}

/// Refuses a row with the id of an earlier row, because predictions are matched with questions by their ids.
fn refuse_used_id(
    row: &ParsedRow,
    indices_by_id: &HashMap<String, usize>,
    rows: &[BenchmarkRow],
) -> Result<(), Diagnostic> {
    let ParsedRow::Question(row) = row else { return Ok(()) };
    let Some(other) = indices_by_id.get(&row.id).and_then(|&index| rows.get(index)) else { return Ok(()) };
    let what = format!("is `{}`, which is also the id of {}", row.id, other.location);
    Err(Diagnostic::new("id", what, "give every row of the benchmark its own id, such as {file.stem}-{row.number}"))
}

fn data_error(location: String, what: String, help: &str) -> Error {
    Error::failed(location, what, help)
}

/// The files of a benchmark, and the layout that fits them.
struct FoundLayout<'t> {
    layout: &'t Layout,
    files: Vec<PathBuf>,
    /// The folder in which the files were found.
    folder: PathBuf,
    /// The first file. It is already open, because the layout was recognised by its first row.
    first: SourceFile,
}

fn find_files<'t>(task: &'t Task, data: &Path) -> Result<FoundLayout<'t>> {
    if data.is_file() {
        let first = SourceFile::open(data)?;
        let columns = first_row_columns(&first, task)?;
        let folder = data.parent().unwrap_or(Path::new("")).to_path_buf();
        return match task.layouts.iter().find(|layout| columns.iter().any(|columns| fits(layout, columns))) {
            Some(layout) => Ok(FoundLayout { layout, files: vec![data.to_path_buf()], folder, first }),
            None => Err(other_columns(task, data, &columns)),
        };
    }
    if !data.is_dir() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Error::cannot_read(data, &missing));
    }
    let mut looked_for = Vec::new();
    let mut other = None;
    // Files that stay open while the next layout is tried, because several layouts may have the same file names.
    let mut opened: BTreeMap<PathBuf, SourceFile> = BTreeMap::new();
    for folder in [data.join(&task.name), data.to_path_buf()].into_iter().filter(|folder| folder.is_dir()) {
        for layout in &task.layouts {
            for pattern in &layout.files {
                let files = matches(&folder, pattern)?;
                let Some(first) = files.first() else {
                    looked_for.push(pattern.as_str());
                    continue;
                };
                let source = match opened.remove(first) {
                    Some(source) => source,
                    None => SourceFile::open(first)?,
                };
                let columns = first_row_columns(&source, task)?;
                if columns.iter().any(|columns| fits(layout, columns)) {
                    return Ok(FoundLayout { layout, files, folder, first: source });
                }
                other.get_or_insert((first.clone(), columns));
                opened.insert(first.clone(), source);
            }
        }
    }
    if let Some((file, columns)) = other {
        return Err(other_columns(task, &file, &columns));
    }
    looked_for.sort_unstable();
    looked_for.dedup();
    let what = format!("has no data file of {}", task.title);
    let help = format!("put one of {} into that folder, or into a folder {}/ in it", looked_for.join(", "), task.name);
    Err(Error::failed(data.display().to_string(), what, help))
}

/// Returns the files in `folder` that match the glob `pattern`, sorted.
fn matches(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let all = format!("{}/{pattern}", glob::Pattern::escape(&folder.to_string_lossy()));
    let wrong = |e: glob::PatternError| Error::failed(pattern, e.msg, "correct `files` of the task");
    let mut files: Vec<PathBuf> = glob::glob(&all).map_err(wrong)?.flatten().filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// Returns the columns of the first row of a file. The result has at most one entry for each list `nested` among the
/// task's layouts.
fn first_row_columns(file: &SourceFile, task: &Task) -> Result<Vec<Map<String, Value>>> {
    let mut depths: Vec<&[String]> = task.layouts.iter().map(|layout| &layout.nested[..]).collect();
    depths.sort_unstable();
    depths.dedup();
    let mut columns = Vec::new();
    let mut error = None;
    for nested in depths {
        match file.first_row(nested) {
            Ok(Some((_, Ok(mut row)))) => {
                add_file_columns(&mut row, &file.path);
                columns.push(row);
            }
            Ok(Some((location, Err(wrong)))) => error = Some(Kind::Failed.error(wrong.at(location))),
            Ok(None) => {}
            Err(e) => error = Some(e),
        }
    }
    match error {
        Some(error) if columns.is_empty() => Err(error),
        _ => Ok(columns),
    }
}

fn fits(layout: &Layout, columns: &Map<String, Value>) -> bool {
    layout.is_layout_of(columns)
}

/// The error for a file whose columns fit no layout of the task. If the columns fit another benchmark, the error names
/// that benchmark.
fn other_columns(task: &Task, file: &Path, columns: &[Map<String, Value>]) -> Error {
    let location = file.display().to_string();
    let found = columns.first().cloned().unwrap_or_default();
    let names: Vec<&str> = found.keys().map(String::as_str).filter(|name| !name.contains("file.")).collect();
    // The name of a file in a folder determines the file's layout.
    if let Some(own) = task.layouts.iter().find(|layout| columns.iter().any(|columns| fits(layout, columns))) {
        let what = format!("has the columns of layout {} of {}, whose files have other names", own.name, task.title);
        let help = format!("rename the file to {}, or give the file itself as --data", own.files.join(" or "));
        return data_error(location, what, &help);
    }
    let other = Task::built_in_tasks()
        .into_iter()
        .filter(|other| other.name != task.name)
        .find(|other| other.layouts.iter().any(|layout| columns.iter().any(|columns| fits(layout, columns))));
    match other {
        Some(other) => {
            let what = format!("has the columns of {}, not those of {}", other.title, task.title);
            data_error(location, what, "give the file of the benchmark that --benchmark names")
        }
        None => {
            let missing = task.layouts.iter().map(|layout| {
                // Of the readings of a nested file, the one that has most of the layout's columns.
                let index = |name: &&str| layout.columns.iter().position(|own| own == name);
                let missing = columns.iter().filter_map(|columns| layout.missing_column(columns)).max_by_key(index);
                format!("`{}` (layout {})", missing.unwrap_or(&layout.columns[0]), layout.name)
            });
            let missing: Vec<String> = missing.collect();
            let what = format!("is not a data file of {}: its first row has no {}", task.title, missing.join(", no "));
            data_error(location, format!("{what}; it has {}", names.join(", ")), "give the benchmark's own file")
        }
    }
}

/// Refuses a row of another benchmark. VideoRFT's files have the same columns for all benchmarks, so the benchmark of a
/// row is recognised by the benchmark's name in the row, or by the folder in the path of its video.
fn refuse_other_benchmark(task: &Task, columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    let text = |name: &str| column(columns, name).and_then(Value::as_str).unwrap_or_default();
    let folder_of = |task: &Task| task.media_folder.as_ref().map(|folder| format!("/{}/", folder.to_ascii_lowercase()));
    let path = format!("/{}", text("path").to_ascii_lowercase());
    let is_in = |task: &Task| folder_of(task).is_some_and(|folder| path.contains(&folder));
    let is_own = [text("benchmark"), text("data_source")].contains(&&task.name[..]) || is_in(task);
    if is_own {
        return Ok(());
    }
    let is_row_of = |name: &str, other: &Task| text(name) == other.name || text(name) == other.title;
    let names = |other: &&Task| is_row_of("benchmark", other) || is_row_of("data_source", other) || is_in(other);
    match Task::cached_built_in_tasks().iter().filter(|other| other.name != task.name).find(names) {
        Some(other) => {
            let name = ["benchmark", "data_source"].into_iter().find(|name| is_row_of(name, other)).unwrap_or("path");
            let what = format!("shows that the row belongs to {}, not to {}", other.title, task.title);
            Err(Diagnostic::new(name, what, "give the file of the benchmark that --benchmark names"))
        }
        None => Ok(()),
    }
}
