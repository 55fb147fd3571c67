//! The figures of a run, as JSON with the names of `vllm bench serve` and as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::loadgen::answer::MeasuredAnswer;
use crate::loadgen::error::{FailureKind, RequestFailure};
use crate::loadgen::media::MediaKind;
use crate::loadgen::settings::{LoadSettings, RequestAmount};
use crate::loadgen::statistics::Distribution;

/// The results of a run. A failed request adds only to the number of failures.
#[derive(Clone, Debug)]
pub struct LoadReport {
    settings: LoadSettings,
    /// The model's name in the requests.
    pub model: String,
    /// Seconds from the first request to the end of the last answer.
    pub seconds: f64,
    /// The highest number of requests that were being answered at the same time.
    pub peak_concurrency: usize,
    /// Complete answers.
    pub answers: Vec<MeasuredAnswer>,
    /// Failed requests by kind.
    pub failures: BTreeMap<FailureKind, FailureGroup>,
}

/// Failed requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureGroup {
    /// Number of failed requests of this kind.
    pub count: usize,
    /// The failure that happened first.
    pub first: RequestFailure,
}

/// A measured time in milliseconds, with its names in JSON and in the table.
struct Latency {
    /// As in the keys of the JSON.
    key: &'static str,
    name: &'static str,
    title: &'static str,
    distribution: Option<Distribution>,
}

impl LoadReport {
    pub(crate) fn new(
        settings: &LoadSettings,
        model: String,
        seconds: f64,
        peak_concurrency: usize,
        results: Vec<Result<MeasuredAnswer, RequestFailure>>,
    ) -> Self {
        let (mut answers, mut failures) = (Vec::new(), BTreeMap::new());
        for result in results {
            match result {
                Ok(answer) => answers.push(answer),
                Err(first) => {
                    failures.entry(first.kind).or_insert(FailureGroup { count: 0, first }).count += 1;
                }
            }
        }
        Self { settings: settings.clone(), model, seconds, peak_concurrency, answers, failures }
    }

    /// Number of failed requests.
    pub fn failed_requests(&self) -> usize {
        self.failures.values().map(|group| group.count).sum()
    }

    /// Tokens of all prompts; `None` if the server did not report them for every answer.
    pub fn input_tokens(&self) -> Option<u64> {
        self.answers.iter().map(|answer| answer.prompt_tokens).sum()
    }

    /// Tokens of all answers.
    pub fn output_tokens(&self) -> u64 {
        self.answers.iter().map(|answer| answer.output_tokens).sum()
    }

    /// Number of answers for which the server reported no token count. For these answers, token events are counted
    /// instead.
    pub fn answers_without_usage(&self) -> usize {
        self.answers.iter().filter(|answer| !answer.has_usage).count()
    }

    /// Number of answers with fewer tokens per completion than requested, because an end token or a limit ended them.
    pub fn short_answers(&self) -> usize {
        let asked = self.settings.output_tokens as u64;
        self.answers.iter().filter(|answer| answer.output_tokens < asked * answer.completions).count()
    }

    fn per_second(&self, amount: f64) -> f64 {
        amount / self.seconds
    }

    fn latencies(&self) -> [Latency; 4] {
        let of = |key, name, title, seconds: Vec<f64>| {
            let distribution = Distribution::from_values(seconds.into_iter().map(|s| 1e3 * s).collect());
            Latency { key, name, title, distribution }
        };
        let answers = || self.answers.iter();
        [
            of("ttft", "TTFT", "Time to First Token", answers().map(|a| a.time_to_first_token).collect()),
            of(
                "tpot",
                "TPOT",
                "Time per Output Token (excl. 1st token)",
                answers().filter_map(MeasuredAnswer::time_per_output_token).collect(),
            ),
            of("itl", "ITL", "Inter-token Latency", answers().flat_map(|a| a.gaps.iter().copied()).collect()),
            of("e2el", "E2EL", "End-to-end Latency", answers().map(|a| a.latency).collect()),
        ]
    }

    /// All figures and settings. Times are in milliseconds, rates per second. A figure without samples is null.
    pub fn json(&self) -> Value {
        let mut record = Map::new();
        let mut put = |key: &str, value: Value| drop(record.insert(key.to_string(), value));
        put("url", json!(self.settings.url.to_string()));
        put("endpoint_type", json!(self.settings.endpoint.name()));
        put("model_id", json!(self.model));
        put("settings", self.settings_json());
        put("duration", json!(self.seconds));
        put("completed", json!(self.answers.len()));
        put("failed", json!(self.failed_requests()));
        put("total_input_tokens", json!(self.input_tokens()));
        put("total_output_tokens", json!(self.output_tokens()));
        put("answers_without_usage", json!(self.answers_without_usage()));
        put("short_answers", json!(self.short_answers()));
        put("request_throughput", json!(self.per_second(self.answers.len() as f64)));
        put("output_throughput", json!(self.per_second(self.output_tokens() as f64)));
        put("total_token_throughput", json!(self.total_token_throughput()));
        put("max_concurrent_requests", json!(self.peak_concurrency));
        for Latency { key, distribution, .. } in self.latencies() {
            let value = |of: fn(&Distribution) -> f64| json!(distribution.as_ref().map(of));
            put(&format!("mean_{key}_ms"), value(|d| d.mean));
            put(&format!("median_{key}_ms"), value(|d| d.median));
            put(&format!("std_{key}_ms"), value(|d| d.std));
            put(&format!("p50_{key}_ms"), value(|d| d.median));
            put(&format!("p90_{key}_ms"), value(|d| d.p90));
            put(&format!("p99_{key}_ms"), value(|d| d.p99));
        }
        let group = |group: &FailureGroup| json!({"kind": group.first.kind.to_string(), "count": group.count, "first": group.first.message});
        put("errors", self.failures.values().map(group).collect());
        Value::Object(record)
    }

    fn total_token_throughput(&self) -> Option<f64> {
        let input = self.input_tokens()?;
        Some(self.per_second((input + self.output_tokens()) as f64))
    }

    /// The settings without the API key. `request_rate` is `"inf"` if requests are not spaced in time, as JSON has no
    /// infinite number.
    fn settings_json(&self) -> Value {
        let s = &self.settings;
        let (requests, duration) = match s.amount {
            RequestAmount::Requests(n) => (Some(n), None),
            RequestAmount::Time(time) => (None, Some(time.as_secs_f64())),
        };
        let media = |kind| s.media.iter().filter(|media| media.kind == kind).count();
        json!({
            "num_prompts": requests, "duration_seconds": duration,
            "request_rate": s.request_rate.map_or(json!("inf"), |rate| json!(rate)), "burstiness": s.burstiness,
            "max_concurrency": s.max_concurrency, "prompt_tokens": s.prompt_tokens,
            "shared_prefix_tokens": s.shared_prefix_tokens, "output_tokens": s.output_tokens,
            "ignore_eos": s.ignore_eos, "images": media(MediaKind::Image), "videos": media(MediaKind::Video),
            "extra_body": s.extra_body, "seed": s.seed, "warmup": s.warmup, "timeout_seconds": s.timeout.as_secs_f64(),
        })
    }

    /// The figures as a table for a terminal.
    pub fn table(&self) -> String {
        let mut lines = vec![centered(" Serving Benchmark Result ", '=')];
        let mut row =
            |label: &str, value: String| lines.push(format!("{label:<40} {value:<10}").trim_end().to_string());
        let unknown = || "unknown".to_string();
        row("Successful requests:", self.answers.len().to_string());
        row("Failed requests:", self.failed_requests().to_string());
        if let Some(most) = self.settings.max_concurrency {
            row("Maximum request concurrency:", most.to_string());
        }
        if let Some(rate) = self.settings.request_rate {
            row("Request rate configured (RPS):", format!("{rate:.2}"));
        }
        row("Benchmark duration (s):", format!("{:.2}", self.seconds));
        row("Total input tokens:", self.input_tokens().map_or_else(unknown, |n| n.to_string()));
        row("Total generated tokens:", self.output_tokens().to_string());
        row("Request throughput (req/s):", format!("{:.2}", self.per_second(self.answers.len() as f64)));
        row("Output token throughput (tok/s):", format!("{:.2}", self.per_second(self.output_tokens() as f64)));
        let total = self.total_token_throughput();
        row("Total token throughput (tok/s):", total.map_or_else(unknown, |rate| format!("{rate:.2}")));
        row("Peak concurrent requests:", self.peak_concurrency.to_string());
        for Latency { name, title, distribution, .. } in self.latencies() {
            lines.push(centered(title, '-'));
            let Some(d) = distribution else {
                lines.push("no sample".to_string());
                continue;
            };
            for (figure, value) in
                [("Mean", d.mean), ("Median", d.median), ("P90", d.p90), ("P99", d.p99), ("Std", d.std)]
            {
                lines.push(format!("{:<40} {value:.2}", format!("{figure} {name} (ms):")));
            }
        }
        lines.push("=".repeat(WIDTH));
        lines.join("\n")
    }

    /// Remarks on the figures, one per line: failures by kind, answers that ended early, and answers without a token
    /// count of the server.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self
            .failures
            .values()
            .map(|group| {
                format!("{} failed; the first: {}; {}", requests(group.count), group.first, group.first.help())
            })
            .collect();
        match self.short_answers() {
            0 => {}
            n => {
                let asked = self.settings.output_tokens;
                notes.push(format!(
                    "{} ended before {asked} tokens; --ignore-eos makes the server generate all of them",
                    requests(n)
                ));
            }
        }
        let gaps = self.answers.iter().map(|answer| answer.gaps.len()).sum::<usize>();
        let expected = self.answers.iter().map(|a| a.output_tokens.saturating_sub(a.completions)).sum::<u64>();
        if gaps == 0 && expected > 0 {
            notes.push("no inter-token latency: the server sent no two events with tokens for one completion".into());
        }
        match self.answers_without_usage() {
            0 => {}
            n => notes.push(format!(
                "the server did not report the number of tokens of {}; events were counted instead",
                requests(n)
            )),
        }
        notes
    }
}

/// Columns of the table.
const WIDTH: usize = 50;

fn requests(n: usize) -> String {
    match n {
        1 => "1 request".to_string(),
        n => format!("{n} requests"),
    }
}

fn centered(title: &str, fill: char) -> String {
    let mut line = String::new();
    let left = WIDTH.saturating_sub(title.chars().count()) / 2;
    line.extend(std::iter::repeat_n(fill, left));
    // Writing to a String never fails.
    let _ = write!(line, "{title}");
    let right = WIDTH.saturating_sub(line.chars().count());
    line.extend(std::iter::repeat_n(fill, right));
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::settings::tests::settings;

    fn answer(ttft: f64, latency: f64, tokens: u64) -> Result<MeasuredAnswer, RequestFailure> {
        Ok(MeasuredAnswer {
            prompt_tokens: Some(10),
            output_tokens: tokens,
            has_usage: true,
            completions: 1,
            time_to_first_token: ttft,
            latency,
            gaps: vec![0.25; tokens.saturating_sub(1) as usize],
        })
    }

    fn failed(kind: FailureKind, message: &str) -> Result<MeasuredAnswer, RequestFailure> {
        Err(RequestFailure::new(kind, message))
    }

    #[test]
    fn figures_follow_from_the_answers() {
        let settings = LoadSettings { output_tokens: 5, ..settings() };
        let results = vec![
            answer(0.5, 1.5, 5),
            failed(FailureKind::Status(503), "busy"),
            answer(1.5, 2.0, 3),
            failed(FailureKind::Status(503), "busy again"),
            failed(FailureKind::Timeout, "slow"),
        ];
        let report = LoadReport::new(&settings, "m".into(), 4.0, 3, results);
        let json = report.json();
        for (key, wanted) in [
            ("completed", 2.0),
            ("failed", 3.0),
            ("total_input_tokens", 20.0),
            ("total_output_tokens", 8.0),
            ("request_throughput", 0.5),
            ("output_throughput", 2.0),
            ("total_token_throughput", 7.0),
            ("max_concurrent_requests", 3.0),
            ("short_answers", 1.0),
            ("mean_ttft_ms", 1000.0),
            ("std_ttft_ms", 500.0),
            ("p90_ttft_ms", 1400.0),
            ("mean_tpot_ms", 250.0),
            ("median_itl_ms", 250.0),
            ("p99_e2el_ms", 1995.0),
        ] {
            assert_eq!(json[key].as_f64(), Some(wanted), "{key}");
        }
        let wanted = json!([
            {"kind": "timeout", "count": 1, "first": "slow"},
            {"kind": "status 503", "count": 2, "first": "busy"},
        ]);
        assert_eq!(json["errors"], wanted);
        let table = report.table();
        assert!(table.contains("Median TTFT (ms):                        1000.00\n"), "{table}");
        assert!(table.lines().all(|line| line.len() <= WIDTH + 10), "{table}");
        let notes = report.notes();
        assert_eq!(notes.len(), 3);
        assert!(notes[1].starts_with("2 requests failed; the first: busy (status 503); the server is too busy"));
        assert!(notes[2].starts_with("1 request ended before 5 tokens"), "{notes:?}");
    }

    #[test]
    fn without_answers_and_without_usage_figures_are_unknown_and_not_zero() {
        let none = LoadReport::new(&settings(), "m".into(), 1.0, 1, vec![failed(FailureKind::Connect, "refused")]);
        assert!(none.json()["mean_ttft_ms"].is_null() && none.table().contains("no sample"));
        let mut whole = answer(1.0, 2.0, 4).unwrap();
        whole.gaps.clear();
        let report = LoadReport::new(&settings(), "m".into(), 1.0, 1, vec![Ok(whole)]);
        assert!(report.notes().concat().contains("no inter-token latency: the server sent"), "{:?}", report.notes());
        let mut uncounted = answer(1.0, 2.0, 4).unwrap();
        (uncounted.prompt_tokens, uncounted.has_usage) = (None, false);
        let report = LoadReport::new(&settings(), "m".into(), 1.0, 1, vec![Ok(uncounted), answer(1.0, 2.0, 4)]);
        let json = report.json();
        assert!(json["total_input_tokens"].is_null() && json["total_token_throughput"].is_null());
        assert_eq!((&json["output_throughput"], &json["answers_without_usage"]), (&json!(8.0), &json!(1)));
        assert!(
            report.table().contains("unknown")
                && report.notes().concat().contains("did not report the number of tokens of ")
        );
    }
}
