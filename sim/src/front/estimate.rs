//! `--estimate`: tells how long a run will take, before it is started.

use std::time::Duration;

use crate::check::CheckEstimate;
use crate::kernel_check::PreparedLaunch;
use anyhow::Result;
use serde_json::json;

use super::CommonSettings;
use super::output;

/// The time that an estimate takes at most.
const TIME: Duration = Duration::from_secs(2);

/// Prints the estimated time of the run of `case`. `preparation` is the time that reading and compiling the file took,
/// which the run needs, too.
pub fn print_estimate(case: &PreparedLaunch, settings: &CommonSettings, preparation: Duration) -> Result<()> {
    let estimate = case.estimate(TIME)?;
    let seconds = estimate.seconds.map(|seconds| seconds + preparation.as_secs_f64());
    if settings.json {
        let CheckEstimate { measured_interleavings, measured_part, measured_seconds, counted, .. } = estimate;
        return output::print_json(&json!({ "estimate": {
            "seconds": seconds, "at_least": seconds.is_none().then_some(estimate.at_least),
            "interleavings": case.interleavings, "threads": settings.threads,
            "measured_interleavings": measured_interleavings, "measured_part": measured_part,
            "measured_seconds": measured_seconds, "counted": counted,
        } }));
    }
    output::print_line(text(case, &estimate, seconds))
}

/// Describes an estimate in one line.
fn text(case: &PreparedLaunch, e: &CheckEstimate, seconds: Option<f64>) -> String {
    let PreparedLaunch { source, kernel, interleavings, threads, .. } = case;
    let file = source.name();
    let check = format!("{interleavings} interleavings on {threads} threads");
    let Some(seconds) = seconds else {
        return format!(
            "{file}: {}: no estimate for {check}, but at least {:.1} s: no block ended within {:.1} s, because the \
             blocks are long or wait for each other",
            kernel.name, e.at_least, e.measured_seconds
        );
    };
    let counted = if e.counted { ", counted without checks" } else { "" };
    format!(
        "{file}: {}: about {seconds:.2} s for {check} (measured: {} of them for {:.1} s, at least {:.0} % of their \
         instructions{counted})",
        kernel.name,
        e.measured_interleavings,
        e.measured_seconds,
        100.0 * e.measured_part,
    )
}
