//! The parts of a planned time: what each rests on (measurements, prototypes, a model), the range in which it is
//! expected, and its time when its kernels were last measured.

use anyhow::Result;
use reel_tools::measure::machine::MachineSpec;
use reel_tools::measure::predicted_time::TimeSource;
use reel_tools::measure::pricing::record_of_gpu;
use serde_json::{Value, json};

use super::costs::{DryRunCounts, Line, lines, phase_seconds, total};
use super::format::format_duration;
use crate::output;

/// A part of the planned time, such as the backward pass, per step or call.
pub struct TimePart {
    name: String,
    seconds: f64,
    /// Share of the time by each source, in the order of [`TimeSource::ALL`].
    shares: [f64; TimeSource::ALL.len()],
    /// The shortest and the longest expected time; `None` if only the least possible time is known.
    range: Option<[f64; 2]>,
    /// The time by the last measurements of the part's kernels, the share of the predicted time that belongs to kernels
    /// that have one, and the latest day; `None` if no kernel has one.
    last_measured: Option<(f64, f64, String)>,
}

impl TimePart {
    fn of_lines(name: &str, lines: &[&Line], scale: f64) -> Self {
        let sum = |of: &dyn Fn(&Line) -> f64| scale * total(lines.iter().map(|line| of(line)));
        let seconds = sum(&|line| line.price.seconds);
        let share = |at: usize| {
            let of_source = sum(&|line| line.price.shares[at] * line.price.seconds);
            if seconds > 0.0 { of_source / seconds } else { 0.0 }
        };
        let has_range = lines.iter().any(|line| line.price.range_seconds().is_some());
        let bound = |at: usize| sum(&|line| line.price.range_seconds().map_or(line.price.seconds, |range| range[at]));
        let measured = |line: &Line| line.price.recorded.as_ref().map(|r| r.seconds);
        let covered = sum(&|line| measured(line).map_or(0.0, |_| line.price.seconds));
        let dates = lines.iter().filter_map(|line| line.price.recorded.as_ref());
        let last_measured = dates.map(|r| r.date.clone()).max().map(|date| {
            (sum(&|line| measured(line).unwrap_or(0.0)), if seconds > 0.0 { covered / seconds } else { 0.0 }, date)
        });
        Self {
            name: if name.is_empty() { "other".to_string() } else { name.to_string() },
            seconds,
            shares: std::array::from_fn(share),
            range: has_range.then(|| [bound(0), bound(1)]),
            last_measured,
        }
    }
}

/// The parts of the time in the order of their work, and the whole time (`all`) last.
fn time_parts(counts: &DryRunCounts, machine: &MachineSpec) -> Vec<TimePart> {
    let phases = counts.training.as_ref().map_or(&counts.phases, |training| &training.parts);
    let all = lines(phases, counts, machine);
    // The parts of a training step may be those of its first step only, so they are scaled to the mean step.
    let of_parts = total(all.iter().map(|line| line.price.seconds));
    let step = total(phase_seconds(counts, machine).into_iter().map(|(_, seconds)| seconds));
    let scale = if of_parts > 0.0 { step / of_parts } else { 1.0 };
    let part = |name: &str| {
        let own: Vec<&Line> = all.iter().filter(|line| line.phase == name).collect();
        TimePart::of_lines(name, &own, scale)
    };
    let mut parts: Vec<TimePart> =
        phases.0.iter().map(|(name, _)| part(name)).filter(|part| part.seconds > 0.0).collect();
    parts.push(TimePart::of_lines("all", &all.iter().collect::<Vec<_>>(), scale));
    parts
}

/// The parts as JSON; the last one, `all`, is the whole time.
pub fn parts_json(counts: &DryRunCounts, machine: &MachineSpec) -> Vec<Value> {
    let json = |part: TimePart| {
        let shares = TimeSource::ALL
            .iter()
            .zip(part.shares)
            .map(|(source, share)| (source.name().replace(' ', "_"), share.into()));
        let last = part
            .last_measured
            .map(|(seconds, share, date)| json!({"seconds": seconds, "share_of_prediction": share, "date": date}));
        json!({
            "part": part.name, "seconds": part.seconds, "shares": Value::Object(shares.collect()),
            "range_seconds": part.range, "last_measured": last,
        })
    };
    time_parts(counts, machine).into_iter().map(json).collect()
}

/// Prints a line for each part. For a GPU without a record, prints nothing: its times are the least possible ones.
pub fn print_parts(counts: &DryRunCounts, machine: &MachineSpec) -> Result<()> {
    if record_of_gpu(&machine.name).is_none() {
        return Ok(());
    }
    output::print_line(format!(
        "\n  {:10} {:>10} {:>22}  {:>24}  {}",
        "part",
        "predicted",
        "range",
        "kernels last measured",
        TimeSource::ALL[..3].iter().map(|source| format!("{:>13}", source.name())).collect::<String>()
    ))?;
    for part in time_parts(counts, machine) {
        let range = part.range.map(|range| range.map(format_duration));
        let last = part.last_measured.map_or("never".to_string(), |(seconds, share, date)| {
            // Kernels that were never measured are missing in the time, so their share is named.
            let of = if share > 0.995 { String::new() } else { format!(" ({:.0} %)", 100.0 * share) };
            format!("{}{of} {date}", format_duration(seconds))
        });
        output::print_line(format!(
            "  {:10} {:>10} {:>22}  {last:>24}  {}",
            part.name,
            format_duration(part.seconds),
            range.map_or("-".to_string(), |[least, most]| format!("{least} to {most}")),
            part.shares[..3].iter().map(|share| format!("{:>11.0} %", 100.0 * share)).collect::<String>()
        ))?;
    }
    output::print_line(
        "  measured: this very kernel was timed on this GPU; prototype: a program of the same schedule was, at this size; \
         modelled: computed from the kernel's tiles or code, or from the time of earlier code",
    )
}
