//! Makes `docs/records.md` from the records of measurements, `tools/benches/results/MACHINE/*.json`, and their tables
//! (`README.md` beside them). `./x records` writes the page; a test checks that it is up to date.
//!
//! The fields of a record determine the tables of the page that show the record:
//!
//! | in a record | shown as |
//! |---|---|
//! | `works.WORK.ratios.PEER` or `works.WORK.median.reel_over_PEER` | ratio of speeds by work, peer and machine |
//! | `speed`, `memory` and `rounds` of peer `trl` | GRPO beside TRL |
//! | lists `kernels` and `peers` of the same kernels and sizes | speed of kernels beside other libraries |
//! | a list of objects with `tokens_per_second` or `Output token throughput (tok/s)` | speed of models on a GPU |
//! | anything | a row of the table of its machine |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The path of the page in the repository.
pub const RECORDS_PAGE_PATH: &str = "docs/records.md";

/// A record: one JSON file of `tools/benches/results`.
struct Record {
    /// Name of the folder that holds the record. It is the name of the machine, such as `h200`.
    folder: String,
    /// The name of the file.
    name: String,
    value: Value,
}

impl Record {
    /// A link from the page to the record, shown as `text`.
    fn link(&self, text: &str) -> String {
        format!("[{text}](../tools/benches/results/{}/{})", self.folder, self.name)
    }

    /// The file name without year and ending: the day and the remarks after it, such as `11-26-cpu-amx`.
    fn short_name(&self) -> &str {
        self.name.trim_end_matches(".json").trim_start_matches("2026-")
    }

    fn machine(&self) -> &str {
        self.value["machine"].as_str().unwrap_or(&self.folder)
    }
}

/// Adds `all.json` of `run.sh` to the records in the repository `root`: writes it as `DATE-run.json` (or with a number,
/// if there are several of a day) to the folder of `tools/benches/results` that has the GPU's name, and adds a row to
/// the folder's table. Returns the path of the record.
///
/// # Errors
/// The file is not `all.json` of `run.sh`, there is no folder for its GPU, or a file cannot be read or written.
pub fn add_run(root: &Path, all: &Path) -> Result<PathBuf, String> {
    let wrong = |what: &str| format!("{}: {what}; give all.json of tools/benches/gpu/run.sh", all.display());
    let text = read(all)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&format!("is not JSON: {e}")))?;
    let field = |name: &str| value[name].as_str().ok_or_else(|| wrong(&format!("has no text {name:?}")));
    let (date, commit, machine) = (field("date")?, field("commit")?, field("machine")?.to_lowercase());
    let count =
        |name: &str| value[name].as_array().map(Vec::len).ok_or_else(|| wrong(&format!("has no list {name:?}")));
    let (items, failures, undone) = (count("items")?, count("failures")?, count("not_done")?);
    let results = root.join("tools/benches/results");
    let of_gpu = |name: &String| machine.contains(&format!("nvidia {name}"));
    let folder = sorted_names(&results)?.into_iter().find(of_gpu);
    let folder = results.join(
        folder.ok_or("tools/benches/results: has no folder with the name of the GPU; make one, with a README.md")?,
    );
    let names = (1..).map(|n| if n == 1 { format!("{date}-run.json") } else { format!("{date}-run-{n}.json") });
    let name = names.into_iter().find(|name| !folder.join(name).exists()).unwrap_or_default();
    let table = folder.join("README.md");
    let row = format!(
        "| `{name}` | `./run.sh` of the bundle of {commit} | {items} items, of which {failures} failed; {undone} were not done |\n"
    );
    let mut lines = read(&table)?;
    let last = lines.rmatch_indices("\n|").next().ok_or_else(|| format!("{}: has no table", table.display()))?.0 + 1;
    let end = lines[last..].find('\n').map_or(lines.len(), |at| last + at + 1);
    lines.insert_str(end, &row);
    let record = folder.join(name);
    let write =
        |to: &Path, text: &str| fs::write(to, text).map_err(|e| format!("{}: cannot be written: {e}", to.display()));
    write(&record, &text)?;
    write(&table, &lines)?;
    Ok(record)
}

/// The text of the page, from the records in the repository `root`.
///
/// # Errors
/// A file cannot be read or is not JSON, or a folder has a record that its table does not name; the error names the
/// file or record.
pub fn records_page(root: &Path) -> Result<String, String> {
    let results = root.join("tools/benches/results");
    let folders = sorted_names(&results)?;
    let (mut records, mut tables) = (Vec::new(), Vec::new());
    for folder in folders.into_iter().filter(|name| results.join(name).is_dir()) {
        let path = results.join(&folder);
        let table = read(&path.join("README.md"))?;
        for name in sorted_names(&path)?.into_iter().filter(|name| name.ends_with(".json")) {
            let file = path.join(&name);
            let value =
                serde_json::from_str(&read(&file)?).map_err(|e| format!("{}: is not JSON: {e}", file.display()))?;
            records.push(Record { folder: folder.clone(), name, value });
        }
        tables.push((folder, table));
    }
    let mut page = String::from(
        "# Records\n\n\
         Every measurement that this repository keeps. `./x records` writes this page from the files of\n\
         `tools/benches/results`; a test checks that it is up to date. A ratio is reel's speed divided by the peer's, both on the\n\
         same machine in the same run: the median of the rounds of a run. Most machines were shared or virtual, so ratios of\n\
         single runs differ by a tenth. `tools/benches/peers/` has the scripts.\n",
    );
    page += &ratios_by_work(&records);
    page += &trl(&records);
    page += &models(&records);
    page += &kernels(&records);
    for (folder, table) in &tables {
        let own: Vec<&Record> = records.iter().filter(|record| record.folder == *folder).collect();
        page += &machine_table(folder, table, &own)?;
    }
    Ok(page)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: cannot be read: {e}", path.display()))
}

fn sorted_names(folder: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: cannot be read: {e}", folder.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// The median over the rounds of one speed ratio in a record.
struct Ratio {
    work: String,
    peer: String,
    median: f64,
}

fn ratios(record: &Record) -> Vec<Ratio> {
    let mut all = Vec::new();
    for (work, measured) in record.value["works"].as_object().into_iter().flatten() {
        let mut add = |peer: &str, median: &Value| {
            let median = median.as_f64().filter(|ratio| *ratio > 0.0);
            all.extend(median.map(|median| Ratio { work: work.clone(), peer: peer.to_string(), median }));
        };
        for (peer, ratio) in measured["ratios"].as_object().into_iter().flatten() {
            add(peer, &ratio["median"]);
        }
        for (key, ratio) in measured["median"].as_object().into_iter().flatten() {
            if let Some(peer) = key.strip_prefix("reel_over_") {
                add(peer, ratio);
            }
        }
    }
    all
}

/// A table for each machine with a row per work and a column per peer. A cell lists the medians of all runs, in the
/// order of the runs' names.
fn ratios_by_work(records: &[Record]) -> String {
    let mut machines: BTreeMap<&str, Vec<(&Record, Vec<Ratio>)>> = BTreeMap::new();
    for record in records {
        let ratios = ratios(record);
        if !ratios.is_empty() {
            machines.entry(record.machine()).or_default().push((record, ratios));
        }
    }
    let mut text = String::from("\n## Ratios by work\n\n");
    text += &wrapped(
        "A decoder of 0.5 B parameters and a vision tower of 8 blocks on 2 cores. Each number is one run, in the order listed.",
    );
    for (machine, runs) in machines {
        // Keeps the machine's name and drops the remarks after it.
        let _ = write!(text, "\n### {}\n\n", machine.split(", 2 cores").next().unwrap_or(machine));
        let links: Vec<String> = runs.iter().map(|(record, _)| record.link(record.short_name())).collect();
        text += &wrapped(&format!("Runs: {}.", links.join(", ")));
        let (mut works, mut peers): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for ratio in runs.iter().flat_map(|(_, ratios)| ratios) {
            if !works.contains(&ratio.work.as_str()) {
                works.push(&ratio.work);
            }
            if !peers.contains(&ratio.peer.as_str()) {
                peers.push(&ratio.peer);
            }
        }
        works.sort_by_key(|work| WORKS.iter().position(|(id, _)| id == work).unwrap_or(WORKS.len()));
        let _ = write!(text, "\n| work | {} |\n|---|{}\n", peers.join(" | "), "---|".repeat(peers.len()));
        for work in works {
            let cell = |peer: &&str| {
                let of = |(_, ratios): &(&Record, Vec<Ratio>)| {
                    ratios.iter().find(|r| r.work == work && r.peer == **peer).map(|r| format!("{:.2}", r.median))
                };
                runs.iter().filter_map(of).collect::<Vec<_>>().join(", ")
            };
            let cells: Vec<String> = peers.iter().map(cell).collect();
            let label = WORKS.iter().find(|(id, _)| *id == work).map_or(work, |(_, label)| *label);
            let _ = writeln!(text, "| {label} | {} |", cells.join(" | "));
        }
    }
    text
}

/// Names of the works (measured tasks) in `tools/benches/peers/cpu.py` and `serving.py`, with their descriptions.
const WORKS: [(&str, &str); 15] = [
    ("prefill_f32", "prompt of 512 tokens, f32"),
    ("prefill_bf16", "prompt of 512 tokens, bf16"),
    ("decode_bf16_1", "decoding 1 sequence, bf16"),
    ("decode_bf16_8", "decoding 8 sequences, bf16"),
    ("decode_bf16_32", "decoding 32 sequences, bf16"),
    ("video_f32", "video of 16 frames with 64 tokens, f32"),
    ("video_bf16", "video of 16 frames with 64 tokens, bf16"),
    ("train_f32", "training step of 512 tokens, f32"),
    ("train_bf16", "training step, bf16 with f32 masters"),
    ("clients_1", "serving 1 client"),
    ("clients_8", "serving 8 clients"),
    ("clients_32", "serving 32 clients"),
    ("batch", "serving one batch of prompts"),
    ("completions", "serving several completions of a prompt"),
    ("clip", "serving a video"),
];

/// The table that compares GRPO runs with runs of TRL.
fn trl(records: &[Record]) -> String {
    let mut text = String::from("\n## GRPO beside TRL\n\n");
    text += &wrapped(
        "Steps per minute of a tiny model with 2 cores: median of the rounds (least to most). Memory is reel's divided by \
         TRL's.",
    );
    text += "\n| run | machine | speed | memory |\n|---|---|---|---|\n";
    for record in records {
        let rounds = record.value["rounds"].as_array().into_iter().flatten();
        let speeds: Vec<f64> = rounds
            .filter(|round| round["peer"].as_str().is_some_and(|peer| peer.starts_with("trl")))
            .filter_map(|round| round["speed"].as_f64())
            .collect();
        let (Some(speed), false) = (record.value["speed"].as_f64(), speeds.is_empty()) else { continue };
        let (least, most) = speeds.iter().fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(*x), b.max(*x)));
        let memory = record.value["memory"].as_f64().map_or("–".into(), |ratio| format!("{ratio:.2}"));
        let (link, machine) = (record.link(record.short_name()), cell(record.machine()));
        let _ = writeln!(text, "| {link} | {machine} | {speed:.1} ({least:.1} to {most:.1}) | {memory} |");
    }
    text
}

/// The table of the speeds of models on GPUs, measured with reel and with other programs (peers).
fn models(records: &[Record]) -> String {
    let mut rows = String::new();
    for record in records.iter().filter(|record| record.value["machine"].as_str().is_some_and(|m| m.contains("NVIDIA")))
    {
        for (key, list) in record.value.as_object().into_iter().flatten() {
            for entry in list.as_array().into_iter().flatten() {
                rows += &model_row(record, key, entry).unwrap_or_default();
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let what = wrapped(
        "Tokens per second: all tokens of a training step or a prompt, otherwise new tokens. Random weights in bf16.",
    );
    format!(
        "\n## Models on GPUs\n\n{what}\n| record | list | work | program | sequences | context | tokens/s | seconds | \
         peak memory, GB | MFU |\n|---|---|---|---|---|---|---|---|---|---|\n{rows}"
    )
}

/// The row of one measurement of a model; `None` if the entry measures something else.
fn model_row(record: &Record, list: &str, entry: &Value) -> Option<String> {
    let number = |key: &str| entry[key].as_f64();
    let shown = |key: &str, digits: usize| number(key).map_or("–".to_string(), |x| format!("{x:.digits$}"));
    let served = number("Output token throughput (tok/s)");
    let rate = served.or(number("tokens_per_second")).filter(|_| entry["kernel"].is_null())?;
    let work = [entry["op"].as_str().unwrap_or("step"), entry["model"].as_str().unwrap_or_default()].join(" ");
    let (work, sequences) = match served {
        Some(_) => ("serve".to_string(), shown("Maximum request concurrency", 0)),
        None => (work.trim().to_string(), shown("batch", 0)),
    };
    let seconds = if number("step_seconds").is_some() { shown("step_seconds", 3) } else { shown("seconds", 3) };
    let memory = number("peak_bytes").map_or("–".to_string(), |bytes| format!("{:.2}", bytes / 1e9));
    let mfu = number("mfu").map_or("–".to_string(), |share| format!("{:.1} %", 100.0 * share));
    let program = cell(entry["peer"].as_str().unwrap_or("reel"));
    let link = record.link(&format!("{}, {}", record.folder, record.short_name()));
    let context = number("context").filter(|n| *n > 0.0).map_or("–".to_string(), |n| format!("{n:.0}"));
    let rate = if rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") };
    Some(format!(
        "| {link} | {list} | {work} | {program} | {sequences} | {context} | {rate} | {seconds} | {memory} | {mfu} |\n"
    ))
}

/// The table that compares kernel times with the times of other libraries at the same size.
fn kernels(records: &[Record]) -> String {
    let mut rows = String::new();
    for record in records {
        let list = |key: &str| record.value[key].as_array().into_iter().flatten();
        for peer in list("peers").filter(|peer| peer["kernel"].is_string() && peer["size"].is_string()) {
            let is_same =
                |own: &&Value| ["kernel", "size"].iter().all(|key| own[*key] == peer[*key]) && own["variant"].is_null();
            let own = list("kernels").find(is_same).and_then(|own| own["seconds"].as_f64());
            let (Some(own), Some(seconds)) = (own, peer["seconds"].as_f64()) else { continue };
            let text = |key: &str| cell(peer[key].as_str().unwrap_or_default());
            let link = record.link(&format!("{}, {}", record.folder, record.short_name()));
            let (kernel, size, name) = (text("kernel"), text("size"), text("peer"));
            let [reel, other] = [own, seconds].map(|seconds| format!("{:.1}", seconds * 1e6));
            let _ = writeln!(rows, "| {link} | {kernel} | {size} | {name} | {reel} | {other} | {:.2} |", seconds / own);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\n## Kernels beside other libraries\n\n| record | kernel | size | library | reel, µs | library, µs | speed |\n\
         |---|---|---|---|---|---|---|\n{rows}"
    )
}

/// The table of a machine's records from the folder's `README.md`, with links to the records.
///
/// An error names a record that the table lacks.
fn machine_table(folder: &str, table: &str, records: &[&Record]) -> Result<String, String> {
    let mut text = String::from("\n");
    let mut prose = String::new();
    for line in table.lines() {
        if let Some(heading) = line.strip_prefix("# ") {
            let _ = writeln!(text, "## {heading}");
        } else if line.starts_with('|') || line.is_empty() {
            text += &wrapped(&std::mem::take(&mut prose));
            let _ = writeln!(text, "{}", linked(line, records));
        } else {
            let _ = write!(prose, "{}{line}", if prose.is_empty() { "" } else { " " });
        }
    }
    text += &wrapped(&prose);
    let names = |record: &&&Record| {
        // A table gives only the ending of the file name for a second run: `2026-11-20-cpu-run1.json`, then
        // `-run2.json`.
        let ending = record.name.rfind('-').map_or(&record.name[..], |at| &record.name[at..]);
        !table.contains(&format!("`{}`", record.name)) && !table.contains(&format!("`{ending}`"))
    };
    match records.iter().find(names) {
        None => Ok(text),
        Some(record) => Err(format!(
            "tools/benches/results/{folder}/README.md: has no table row for {}; add a row with the command that wrote the record and remarks about it",
            record.name
        )),
    }
}

/// Changes a line of a folder's table: names of records become links, and paths become relative to `docs/`.
fn linked(line: &str, records: &[&Record]) -> String {
    let line = line.replace("](../../../docs/", "](");
    records.iter().fold(line, |line, record| {
        line.replace(&format!("`{}`", record.name), &record.link(&format!("`{}`", record.name)))
    })
}

/// Escapes `|`, so that the text can be a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Wraps a paragraph into lines of at most 120 characters. The text ends with a newline.
fn wrapped(paragraph: &str) -> String {
    const WIDTH: usize = 120;
    let mut lines: Vec<String> = Vec::new();
    for word in paragraph.split_whitespace() {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= WIDTH) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_string()),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn page_is_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let page = records_page(&root).unwrap();
        let kept = fs::read_to_string(root.join(RECORDS_PAGE_PATH)).unwrap_or_default();
        let differs = page.lines().zip(kept.lines()).position(|(a, b)| a != b).unwrap_or(kept.lines().count());
        assert!(
            page == kept,
            "{RECORDS_PAGE_PATH}:{}: differs from tools/benches/results; run ./x records",
            differs + 1
        );
    }

    /// What run.sh wrote becomes a record of the folder with the GPU's name, and the page shows it.
    #[test]
    fn a_run_is_added_to_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("tools/benches/results/h200");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("README.md"), "# H200\n\n| record | by | what |\n|---|---|---|\n\nMore.\n").unwrap();
        let run = json!({"date": "2026-12-01", "commit": "abc", "machine": "name\nNVIDIA H200, 580", "items": [{}, {}],
            "failures": [], "not_done": ["x"], "kernels": [], "models": [{"op": "decode", "tokens_per_second": 5.0}]});
        let all = root.path().join("all.json");
        let given = |value: &Value| fs::write(&all, value.to_string()).unwrap();
        for (wrong, words) in [
            (json!({"date": "2026-12-01"}), "has no text \"commit\""),
            (json!({"date": "1", "commit": "2", "machine": "NVIDIA H100"}), "has no list \"items\""),
            (
                json!({"date": "1", "commit": "2", "machine": "CPU", "items": [], "failures": [], "not_done": []}),
                "no folder",
            ),
        ] {
            given(&wrong);
            let error = add_run(root.path(), &all).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        given(&run);
        let names = [(); 2].map(|()| add_run(root.path(), &all).unwrap().file_name().unwrap().to_owned());
        assert_eq!(names, ["2026-12-01-run.json", "2026-12-01-run-2.json"]);
        let page = records_page(root.path()).unwrap();
        assert!(
            page.contains("[h200, 12-01-run](../tools/benches/results/h200/2026-12-01-run.json) | models | decode"),
            "{page}"
        );
        assert!(
            page.contains("`./run.sh` of the bundle of abc | 2 items, of which 0 failed; 1 were not done |\n| ["),
            "{page}"
        );
    }

    #[test]
    fn records_are_shown_by_what_they_have() {
        let record = |value| Record { folder: "m".into(), name: "2026-01-02-x.json".into(), value };
        let all = [
            record(json!({"machine": "one", "works": {"clients_8": {"median": {"reel": 3.0, "reel_over_a": 1.5}}}})),
            record(json!({"machine": "one", "works": {"clients_8": {"ratios": {"a": {"median": 2.0}}}}})),
            record(
                json!({"machine": "two", "speed": 4.0, "rounds": [{"peer": "trl", "speed": 3.0}, {"peer": "trl", "speed": 5.0}]}),
            ),
            record(
                json!({"machine": "NVIDIA X", "models": [{"op": "decode", "model": "7b", "tokens_per_second": 12.34, "batch": 1,
                "peak_bytes": 2e9}], "served": [{"Output token throughput (tok/s)": 250.4, "Maximum request concurrency": 8.0}]}),
            ),
        ];
        assert!(
            ratios_by_work(&all).contains("### one")
                && ratios_by_work(&all).contains("| serving 8 clients | 1.50, 2.00 |")
        );
        assert!(trl(&all).contains("| two | 4.0 (3.0 to 5.0) | – |"));
        let models = models(&all);
        assert!(models.contains("| models | decode 7b | reel | 1 | – | 12.3 | – | 2.00 | – |"), "{models}");
        let lists = json!({"kernels": [{"kernel": "k", "size": "n=1", "seconds": 2e-6}],
            "peers": [{"kernel": "k", "size": "n=1", "peer": "torch", "seconds": 3e-6}, {"kernel": "k", "size": "n=2", "seconds": 1.0}]});
        assert!(kernels(&[record(lists)]).ends_with("| k | n=1 | torch | 2.0 | 3.0 | 1.50 |\n"));
        assert!(models.contains("| served | serve | reel | 8 | – | 250 | – | – | – |"), "{models}");
        let own: Vec<&Record> = all[..1].iter().collect();
        let error = machine_table("m", "# M\n", &own).unwrap_err();
        assert!(error.contains("no table row for 2026-01-02-x.json"), "{error}");
        assert!(
            machine_table("m", "# M\n\n| `2026-01-02-x.json` | a |\n", &own)
                .unwrap()
                .contains("[`2026-01-02-x.json`](../tools/benches")
        );
    }
}
