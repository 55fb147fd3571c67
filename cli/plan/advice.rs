//! Advice for a planned command that does not fit into memory: option changes that `search` has found, with which the
//! command fits.

use anyhow::Result;
use reel_train::step::checkpointing::usable_memory_share;
use serde_json::{Map, Value, json};

use super::Sizes;
use super::format::{format_duration, format_rate};
use super::search::{FittingSettings, PlanOutcome, SearchDimension, SearchResult, search_fitting_settings};
use crate::common::CommonOptions;
use crate::output;

/// The memory that the tensors of a command can use. It excludes the part that the driver, libraries and gaps between
/// allocations take, or other processes of the command.
#[derive(Clone, Copy, Debug)]
pub struct UsableMemory {
    pub all: f64,
    pub share: f64,
}

impl UsableMemory {
    /// Returns the memory of the planned machine; `None` if it is unknown.
    pub fn of_planned_machine(sizes: &Sizes, memory: Option<f64>, common: &CommonOptions) -> Result<Option<Self>> {
        let Some(all) = memory else { return Ok(None) };
        Ok(Some(Self { all, share: usable_memory_share(&sizes.device(common)?) }))
    }

    pub fn bytes(&self) -> u64 {
        (self.share * self.all) as u64
    }
}

/// Additional results of a plan: fields of its JSON, and lines after its text.
#[derive(Debug, Default)]
pub struct PlanAdditions {
    pub fields: Map<String, Value>,
    pub lines: Vec<String>,
}

impl PlanAdditions {
    /// Adds the fields to the JSON of a plan.
    pub fn merge_into(self, plan: &mut Value) {
        if let Some(map) = plan.as_object_mut() {
            map.extend(self.fields);
        }
    }

    pub fn print_lines(&self) -> Result<()> {
        self.lines.iter().try_for_each(output::print_line)
    }
}

/// Returns true if a search should show its progress on stderr.
pub fn shows_progress(common: &CommonOptions) -> bool {
    !common.quiet && !common.json && output::stderr_is_terminal()
}

/// Searches for settings that fit into memory, and describes them. `options_of` returns the command-line options that
/// change `start` to other settings. `peak` is the peak memory of `start` in bytes, if it is known.
pub fn advise_on_settings<S: Clone>(
    start: &S,
    dimensions: &[SearchDimension<S>],
    common: &CommonOptions,
    usable: UsableMemory,
    peak: Option<u64>,
    options_of: impl Fn(&S) -> String,
    plan: impl FnMut(&S) -> Result<PlanOutcome>,
) -> PlanAdditions {
    let found = search_fitting_settings(start, dimensions, shows_progress(common), plan);
    let choices: Vec<(String, PlanOutcome, u32)> = found
        .choices
        .iter()
        .map(|FittingSettings { settings, changes, outcome }| (options_of(settings), *outcome, *changes))
        .collect();
    let json: Vec<Value> = choices
        .iter()
        .map(|(options, o, changes)| {
            json!({
                "options": options, "changes": changes, "peak_bytes": o.peak, "seconds": o.seconds,
                "tokens_per_second": o.tokens_per_second, "gpus": o.gpus,
            })
        })
        .collect();
    let names: Vec<&str> = dimensions.iter().map(|d| d.name).collect();
    let fields = json!({
        "advice": {
            "usable_bytes": usable.bytes(), "choices": json, "smallest_peak_bytes": found.smallest_peak, "tried": names,
            "dry_runs": found.runs, "is_cut_short": found.is_cut_short,
        }
    });
    let Value::Object(fields) = fields else { return PlanAdditions::default() };
    PlanAdditions { fields, lines: lines(&choices, &found, usable, peak, &names) }
}

fn lines<S>(
    choices: &[(String, PlanOutcome, u32)],
    found: &SearchResult<S>,
    usable: UsableMemory,
    peak: Option<u64>,
    names: &[&str],
) -> Vec<String> {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let limit = format!(
        "{:.1} GB, {:.0} % of the memory: the rest is for drivers, libraries, gaps and other processes",
        gb(usable.bytes()),
        100.0 * usable.share
    );
    let mut lines = Vec::new();
    if choices.is_empty() {
        let smallest = found.smallest_peak.into_iter().chain(peak).min();
        let by = smallest.map_or(String::new(), |peak| {
            let over = gb(peak.saturating_sub(usable.bytes()));
            format!("; the smallest plan needs {:.3} GB, {over:.3} GB too much", gb(peak))
        });
        let tried = match names {
            [] => "nothing is left that would save memory".to_string(),
            names => format!("nothing that was tried fits ({})", names.join(", ")),
        };
        lines.push(format!("\n{tried}{by} (usable: {limit})"));
    } else {
        lines.push(format!(
            "\noptions that would fit, the fewest changes first, then the fastest on each GPU; each was planned \
             (usable: {limit}):"
        ));
        let width = choices.iter().map(|(options, ..)| options.len()).max().unwrap_or(0);
        lines.extend(choices.iter().map(|(options, o, _)| {
            let gpus = if o.gpus > 1 { format!(" of {} GPUs", o.gpus) } else { String::new() };
            format!(
                "  {options:width$}  {:>9.3} GB, {:>9}, {} tokens/s{gpus}",
                gb(o.peak),
                format_duration(o.seconds),
                format_rate(o.tokens_per_second)
            )
        }));
    }
    if found.is_cut_short {
        let runs = found.runs;
        lines.push(format!("the search ended after {runs} runs on device dry; choices with fewer changes may exist"));
    }
    lines
}

/// Adds an option with a value to `options` if the value differs from `before`.
pub fn push_changed_option<T: PartialEq + std::fmt::Display>(
    options: &mut Vec<String>,
    name: &str,
    before: &T,
    after: &T,
) {
    if before != after {
        options.push(format!("{name} {after}"));
    }
}
