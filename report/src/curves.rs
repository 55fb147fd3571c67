//! The curves of a training run: a small chart per metric over the steps.

use std::collections::BTreeMap;
use std::fmt::Write;

use reel_train::reporting::metrics::StepMetrics;

use crate::chart::LineChart;
use crate::html;

const CHART: LineChart = LineChart { width: 360.0, height: 170.0, log: false };

/// Metrics whose charts come first, in this order; all others follow by name.
const FIRST: [&str; 8] =
    ["reward", "loss", "kl", "completion_length", "entropy", "grad_norm", "learning_rate", "tokens_per_second"];

/// Charts of all numeric metrics of the steps.
pub fn curves_html(steps: &[StepMetrics]) -> String {
    let mut curves: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    for step in steps {
        for (name, value) in step.named_metric_values().into_iter().filter(|(_, value)| value.is_finite()) {
            curves.entry(name.trim_start_matches("train/").to_string()).or_default().push((step.step, value));
        }
    }
    let rank = |name: &str| FIRST.iter().position(|f| *f == name).unwrap_or(FIRST.len());
    let mut names: Vec<&String> = curves.keys().collect();
    names.sort_by_key(|name| (rank(name), !name.starts_with("rewards/"), (*name).clone()));
    let mut page = "<h2>Curves</h2><div class=\"curves\">".to_string();
    for name in names {
        let _ = write!(
            page,
            "<figure><figcaption>{}</figcaption>{}</figure>",
            html::escape_html(name),
            CHART.to_svg(&curves[name], name)
        );
    }
    page + "</div>"
}
