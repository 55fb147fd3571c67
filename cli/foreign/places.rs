//! Names of data sets in the syntax of other programs: ms-swift's `ID:SUBSET#1000`, QwenLM's `FILE%50`, and the names
//! in LLaMA-Factory's `dataset_info.json`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::peers;
use super::translation::CommandTranslation;

/// A data set named in `--data`, translated into reel's syntax.
struct Place {
    /// The data set in reel's syntax.
    path: String,
    /// The number of rows to use, if the name sets one (`#1000`).
    rows: Option<u64>,
}

/// Translates the data set names in `--data` into reel's syntax.
pub fn translate_data_set_names(t: &mut CommandTranslation) {
    let folder = t.parts.remove("dataset_dir");
    let Some(setting) = t.settings.iter().find(|setting| setting.name == "data").cloned() else { return };
    let text = setting.values.join(",");
    let names_a_set = t.read.iter().any(|(name, _)| name == "dataset");
    let uses_names = names_a_set && peers::most_likely_program(t) == "llamafactory";
    let info = DatasetInfo::read(folder.as_ref().map_or("data", |folder| &folder.value))
        .filter(|_| folder.is_some() || uses_names);
    if exists(&text) {
        return t.replace_option("data", &text, &setting.shown);
    }
    let (mut counts, mut paths) = (BTreeSet::new(), Vec::new());
    for part in text.split(',') {
        if let Some(path) = info.as_ref().and_then(|info| info.place(part)) {
            t.notes.push(format!("note: --data {path} ({part} of {})", info.as_ref().map_or("", |info| &info.file)));
            paths.push(path);
            continue;
        }
        let is_name = !exists(part) && !part.contains(['/', '.', '#', '@', ':']);
        if is_name && (folder.is_some() || uses_names) {
            let shown = folder.as_ref().map_or(&setting.shown, |folder| &folder.shown);
            let what = format!("has no dataset_info.json with the data set {part}");
            t.refuse_option(shown, &what, "give the data file itself in place of DATA in the command below");
            paths.push("DATA".into());
            continue;
        }
        let place = place_of(part, &setting.shown, t);
        counts.insert(place.rows);
        paths.push(place.path);
    }
    t.replace_option("data", &paths.join(","), &setting.shown);
    if counts.len() > 1 {
        let help = "write the first N rows of each data set into a file of their own (head -n N FILE), and give these \
                    files; --max-samples N takes at most N rows of each data set, and the command below takes all rows";
        t.refuse_option(&setting.shown, "has different numbers of rows (#N) for its data sets", help);
    } else if let Some(Some(rows)) = counts.first().filter(|_| !t.is_set("max_samples")) {
        t.add_option("max_samples", vec![rows.to_string()], &setting.shown);
    }
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// Translates one data set name and removes the suffixes of other programs. Refuses a suffix that selects a share of
/// the rows.
fn place_of(part: &str, shown: &str, t: &mut CommandTranslation) -> Place {
    if exists(part) {
        return Place { path: part.into(), rows: None };
    }
    let counted = part.rsplit_once('#').and_then(|(path, rows)| Some((path, rows.parse::<u64>().ok()?)));
    let (path, rows) = counted.map_or((part, None), |(path, rows)| (path, Some(rows)));
    let share = path.rsplit_once('%').and_then(|(path, share)| Some((path, share.parse::<u64>().ok()?)));
    let path = match share {
        Some((path, share)) => {
            if share < 100 {
                let what = format!("takes {share} % of the rows of {path}, which are drawn at random there");
                t.refuse_option(shown, &what, "give --max-samples N, the number of rows");
            }
            path
        }
        None => path,
    };
    if exists(path) {
        return Place { path: path.into(), rows };
    }
    // A file has no splits. EasyR1 writes the split behind each path.
    if let Some((file, split)) = path.rsplit_once('@').filter(|(file, _)| Path::new(file).is_file()) {
        if split != "train" {
            let what = format!("names the split {split} of {file}, and a file has no splits");
            t.refuse_option(shown, &what, "give the file with the rows of this split; the command below has this file");
        }
        return Place { path: file.into(), rows };
    }
    // A data set id of a hub, followed by its subsets (`ID:SUBSET/SUBSET`). A number after the colon is a sampling
    // weight in reel's syntax.
    let path = path.strip_prefix("HF::").unwrap_or(path);
    let subsets = path.rsplit_once(':').filter(|(id, subsets)| {
        id.contains('/') && !id.contains(':') && !subsets.is_empty() && subsets.parse::<f64>().is_err()
    });
    let path = match subsets {
        Some((id, "all" | "default")) => id.to_string(),
        Some((id, subsets)) => subsets.split('/').map(|subset| format!("{id}#{subset}")).collect::<Vec<_>>().join(","),
        None => path.strip_suffix(":all").unwrap_or(path).to_string(),
    };
    Place { path, rows }
}

/// The contents of `dataset_info.json`, LLaMA-Factory's list of data sets.
struct DatasetInfo {
    folder: String,
    file: String,
    entries: Value,
}

impl DatasetInfo {
    fn read(folder: &str) -> Option<Self> {
        let file = format!("{}/dataset_info.json", folder.trim_end_matches('/'));
        let entries = serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok()?;
        Some(Self { folder: folder.trim_end_matches('/').into(), file, entries })
    }

    /// Returns the data set `name` of the list, in reel's syntax.
    fn place(&self, name: &str) -> Option<String> {
        let entry = self.entries.get(name)?;
        let field = |name: &str| entry.get(name).and_then(Value::as_str);
        if let Some(file) = field("file_name") {
            return Some(if Path::new(file).is_absolute() { file.into() } else { format!("{}/{file}", self.folder) });
        }
        let subset = field("subset").map(|subset| format!("#{subset}")).unwrap_or_default();
        let split = field("split").filter(|split| *split != "train").map(|split| format!("@{split}"));
        Some(format!("{}{subset}{}", field("hf_hub_url")?, split.unwrap_or_default()))
    }
}
