//! The settings of a run as HTML: model, frames, decoding, data files with their fingerprints.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::EvaluationRun;
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;

/// The name of the model that a run has evaluated: the last part of its path, or its id on the hub, with the adapter.
pub fn model_name(settings: &Value) -> String {
    let name = |part: &str| settings[part]["path"].as_str().map(name_of_folder);
    let model = name("model").unwrap_or_else(|| "given predictions".into());
    name("adapter").map_or(model.clone(), |adapter| format!("{model} with {adapter}"))
}

/// The last part of a path. For a folder in the hub's cache, the id of the model.
fn name_of_folder(path: &str) -> String {
    let parts: Vec<&str> = Path::new(path).iter().filter_map(|part| part.to_str()).collect();
    let cached = parts.iter().find_map(|part| part.strip_prefix("models--"));
    cached.map(|id| id.replace("--", "/")).or(parts.last().map(|last| last.to_string())).unwrap_or_default()
}

/// Frames, decoding and device in one line.
pub fn settings_summary(settings: &Value) -> String {
    let options = &settings["options"];
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    let frames = match (&options["text_only"], &options["nframes"], &options["fps"]) {
        (Value::Bool(true), ..) => "No videos".to_string(),
        (_, Value::Null, Value::Null) => format!("Frames of the profile {}", shown(&options["profile"])),
        (_, Value::Null, fps) => format!("{fps} frames/s"),
        (_, frames, _) => format!("{frames} frames a video"),
    };
    let decoding = [("temperature", "temperature"), ("max_new_tokens", "at most")].map(|(name, words)| {
        let unit = if words == "at most" { " tokens" } else { "" };
        format!("{words} {}{unit}", shown(&options[name]))
    });
    if options.is_null() {
        return String::new();
    }
    format!(
        "{frames}, {}; {} in {}, reel {}.",
        decoding.join(", "),
        shown(&settings["device"]),
        shown(&options["dtype"]),
        shown(&settings["version"])
    )
}

/// Adds the settings of a run. For two runs, the settings that differ come first.
pub fn add_settings(page: &mut HtmlPage, run: &EvaluationRun, against: Option<&EvaluationRun>) {
    page.add("<section aria-labelledby=\"settings\"><h2 id=\"settings\">Settings and protocol</h2>\n");
    page.add(
        "<p>Frames, prompts, decoding, extraction and scoring follow the protocol in <code>docs/protocol.md</code> of \
         reel, which compares each choice with papers, benchmark authors and other harnesses.</p>\n",
    );
    let [own, other] = [Some(run), against].map(|run| run.map(named_settings).unwrap_or_default());
    let value = |list: &[(String, String)], name: &str| {
        list.iter().find(|(own, _)| own == name).map_or(String::new(), |(_, value)| escape_html(value))
    };
    let mut known = BTreeSet::new();
    let names: Vec<&String> =
        own.iter().chain(&other).map(|(name, _)| name).filter(|name| known.insert(*name)).collect();
    let (same, different): (Vec<&String>, Vec<&String>) =
        names.into_iter().partition(|name| against.is_none() || value(&own, name) == value(&other, name));
    if against.is_some() && different.is_empty() {
        page.add("<p>The runs have the same settings.</p>\n");
    }
    let mut table = HtmlTable::new(&["setting that differs", "A", "B"]).with_text_columns(3);
    for name in different {
        table.add_row(vec![escape_html(name), value(&own, name), value(&other, name)]);
    }
    page.add_table(&table);
    let item = |name: &&String| format!("<dt>{}</dt><dd>{}</dd>", escape_html(name), value(&own, name));
    page.add(&format!("<dl class=\"options\">{}</dl>\n", same.iter().map(item).collect::<String>()));
    add_data_files(page, run);
    add_prompt(page, run);
    page.add("</section>\n");
}

/// The settings that apply to all benchmarks of a run, in the order of the settings file.
fn named_settings(run: &EvaluationRun) -> Vec<(String, String)> {
    let settings = run.first_settings();
    let mut list = vec![("model".to_string(), model_name(settings))];
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    for (name, path) in [("model fingerprint", "model"), ("adapter fingerprint", "adapter")] {
        list.extend(settings[path]["fingerprint"].as_str().map(|text| (name.to_string(), text.to_string())));
    }
    for name in ["device", "instruction_set", "batch_size", "version"] {
        let value = &settings[name];
        let name = if name == "version" { "reel" } else { name };
        list.extend((!value.is_null()).then(|| (name.replace('_', " "), shown(value))));
    }
    // Options that differ between benchmarks. The table of data files shows them instead of this list.
    const OF_BENCHMARK: [&str; 4] = ["benchmark", "task_version", "data_files", "stop"];
    let options = settings["options"].as_object().into_iter().flatten();
    let options = options.filter(|(name, value)| !OF_BENCHMARK.contains(&&name[..]) && !value.is_null());
    list.extend(options.map(|(name, value)| (name.replace('_', " "), shown(value))));
    if let Some(benchmark) = run.benchmarks.first() {
        list.push(("extraction".into(), benchmark.extraction().name().into()));
    }
    list
}

fn add_data_files(page: &mut HtmlPage, run: &EvaluationRun) {
    page.add("<h3>Data files</h3>\n");
    let columns = ["benchmark", "task version", "layout", "file", "fingerprint", "rows"];
    let mut table = HtmlTable::new(&columns).with_text_columns(5);
    for benchmark in &run.benchmarks {
        let data = &benchmark.settings["options"]["data_files"];
        for file in data["files"].as_array().into_iter().flatten() {
            let text = |value: &Value| escape_html(&value.as_str().map_or_else(|| value.to_string(), String::from));
            table.add_row(vec![
                escape_html(&benchmark.task.title),
                benchmark.report.task_version.to_string(),
                text(&data["layout"]),
                text(&file["name"]),
                format!("<code>{}</code>", text(&file["fingerprint"])),
                text(&file["rows"]),
            ]);
        }
    }
    page.add_table(&table);
}

/// Adds the whole prompt of the first question of each benchmark.
fn add_prompt(page: &mut HtmlPage, run: &EvaluationRun) {
    for benchmark in &run.benchmarks {
        let Some(first) = benchmark.answers.iter().find(|answer| !answer.prompt.is_empty()) else { continue };
        page.add(&format!(
            "<details><summary>Prompt of the first question of {}</summary><pre class=\"text\">{}</pre></details>\n",
            escape_html(&benchmark.task.title),
            escape_html(&first.prompt.join("\n\n")),
        ));
    }
}
