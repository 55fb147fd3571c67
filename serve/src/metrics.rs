//! The metrics that `/metrics` returns, in the text format of Prometheus. Names and bucket bounds are the same as in
//! vLLM for metrics with the same meaning, so that dashboards for vLLM work with this server.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reel_engine::{EngineStats, FinishReason};

use crate::hardware_gauges::HardwareGauges;
use crate::histogram::Histogram;

/// Upper bounds of the time to the first token, in seconds.
const FIRST_TOKEN_SECONDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Upper bounds of the time between two tokens, in seconds.
const TOKEN_SECONDS: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// Upper bounds of the duration of a request, in seconds.
const REQUEST_SECONDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Statistics that only the engine knows. The engine's thread sets them after each step.
#[derive(Debug, Default)]
pub(crate) struct EngineGauges(Mutex<Option<EngineStats>>);

impl EngineGauges {
    /// Replaces the engine's statistics.
    pub(crate) fn set(&self, stats: EngineStats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
    }

    fn get(&self) -> Option<EngineStats> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a completion ended: the values of the label `finished_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompletionOutcome {
    /// The completion is complete.
    Finished(FinishReason),
    /// The client has disconnected.
    Abort,
    /// The engine failed.
    Error,
}

impl CompletionOutcome {
    const ALL: [CompletionOutcome; 4] = [
        CompletionOutcome::Finished(FinishReason::Stop),
        CompletionOutcome::Finished(FinishReason::Length),
        CompletionOutcome::Abort,
        CompletionOutcome::Error,
    ];

    fn name(self) -> &'static str {
        match self {
            CompletionOutcome::Finished(reason) => reason.openai_name(),
            CompletionOutcome::Abort => "abort",
            CompletionOutcome::Error => "error",
        }
    }
}

/// The counters and histograms of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// The label `model_name="…"`, which all series have.
    labels: String,
    /// What the engine reports.
    pub(crate) engine: Arc<EngineGauges>,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    weight_replacements: AtomicU64,
    outcomes: [AtomicU64; CompletionOutcome::ALL.len()],
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    first_token_seconds: Histogram,
    token_seconds: Histogram,
    request_seconds: Histogram,
    hardware: HardwareGauges,
}

impl Metrics {
    /// Creates the metrics of the model `model`, which has `positions` positions.
    pub(crate) fn new(model: &str, positions: usize, hardware: HardwareGauges) -> Self {
        let escaped = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        Self {
            labels: format!("model_name=\"{escaped}\""),
            engine: Arc::default(),
            prompt_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            weight_replacements: AtomicU64::new(0),
            outcomes: Default::default(),
            request_prompt_tokens: Histogram::with_bounds_up_to(positions),
            request_generation_tokens: Histogram::with_bounds_up_to(positions),
            first_token_seconds: Histogram::new(&FIRST_TOKEN_SECONDS),
            token_seconds: Histogram::new(&TOKEN_SECONDS),
            request_seconds: Histogram::new(&REQUEST_SECONDS),
            hardware,
        }
    }

    /// Records a prompt of `tokens` tokens whose first token was generated `seconds` after the request arrived.
    pub(crate) fn record_first_token(&self, tokens: usize, seconds: f64) {
        self.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.first_token_seconds.observe(seconds);
    }

    /// Records a generated token, and the seconds since the previous token of its completion.
    pub(crate) fn record_token(&self, seconds: Option<f64>) {
        self.generation_tokens.fetch_add(1, Ordering::Relaxed);
        if let Some(seconds) = seconds {
            self.token_seconds.observe(seconds);
        }
    }

    /// Counts a replacement of the weights.
    pub(crate) fn record_weight_replacement(&self) {
        self.weight_replacements.fetch_add(1, Ordering::Relaxed);
    }

    /// Records the end of a completion of `tokens` tokens, `seconds` after the request arrived.
    pub(crate) fn record_completion(
        &self,
        outcome: CompletionOutcome,
        prompt_tokens: usize,
        tokens: usize,
        seconds: f64,
    ) {
        for (count, other) in self.outcomes.iter().zip(CompletionOutcome::ALL) {
            count.fetch_add(u64::from(other == outcome), Ordering::Relaxed);
        }
        if matches!(outcome, CompletionOutcome::Finished(_)) {
            self.request_prompt_tokens.observe(prompt_tokens as f64);
            self.request_generation_tokens.observe(tokens as f64);
            self.request_seconds.observe(seconds);
        }
    }

    /// All metrics as text. Reading the GPU takes milliseconds.
    pub(crate) fn prometheus_text(&self) -> String {
        let (mut out, labels, engine) = (String::new(), &self.labels, self.engine.get());
        let mut family = |name: &str, kind: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return };
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}");
        };
        let counted = |counter: &AtomicU64| Some(counter.load(Ordering::Relaxed) as f64);
        if let Some(EngineStats { running, waiting, blocks, blocks_in_use, .. }) = engine {
            let used = blocks_in_use as f64 / blocks.max(1) as f64;
            family("vllm:num_requests_running", "gauge", "Completions that decode.", Some(running as f64));
            family("vllm:num_requests_waiting", "gauge", "Completions that wait.", Some(waiting as f64));
            family("vllm:kv_cache_usage_perc", "gauge", "Used share of the KV blocks, 0 to 1.", Some(used));
        }
        for (name, help, value) in [
            (
                "vllm:prefix_cache_queries_total",
                "Tokens looked up in the prefix cache.",
                engine.map(|e| e.prefix_tokens_queried),
            ),
            (
                "vllm:prefix_cache_hits_total",
                "Tokens found in the prefix cache.",
                engine.map(|e| e.prefix_tokens_found),
            ),
            (
                "vllm:num_preemptions_total",
                "Sequences whose KV blocks were freed to make room.",
                engine.map(|e| e.preemptions),
            ),
        ] {
            family(name, "counter", help, value.map(|value| value as f64));
        }
        family("vllm:prompt_tokens_total", "counter", "Prompt tokens.", counted(&self.prompt_tokens));
        family("vllm:generation_tokens_total", "counter", "Generated tokens.", counted(&self.generation_tokens));
        let replacements = counted(&self.weight_replacements);
        family("reel:weight_replacements_total", "counter", "Replacements of the weights.", replacements);
        let name = "vllm:request_success_total";
        let _ = writeln!(out, "# HELP {name} Completions by how they ended.\n# TYPE {name} counter");
        for (count, outcome) in self.outcomes.iter().zip(CompletionOutcome::ALL) {
            let (reason, count) = (outcome.name(), count.load(Ordering::Relaxed));
            let _ = writeln!(out, "{name}{{finished_reason=\"{reason}\",{labels}}} {count}");
        }
        for (histogram, name, help) in [
            (&self.request_prompt_tokens, "vllm:request_prompt_tokens", "Prompt tokens of a completion."),
            (&self.request_generation_tokens, "vllm:request_generation_tokens", "Generated tokens of a completion."),
            (
                &self.first_token_seconds,
                "vllm:time_to_first_token_seconds",
                "Seconds from a request to its first generated token.",
            ),
            (&self.token_seconds, "vllm:inter_token_latency_seconds", "Seconds between two tokens of a completion."),
            (
                &self.request_seconds,
                "vllm:e2e_request_latency_seconds",
                "Seconds from a request to its last generated token.",
            ),
        ] {
            histogram.write(&mut out, name, help, labels);
        }
        self.hardware.write(&mut out, labels, engine);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Metrics of a server on a CPU.
    fn new(model: &str) -> Metrics {
        Metrics::new(model, 100, HardwareGauges::with_sensor(None, None))
    }

    #[test]
    fn gauges_appear_once_the_engine_has_set_them() {
        let metrics = new("a\"b");
        let before = metrics.prometheus_text();
        assert!(!before.contains("vllm:num_requests_running") && !before.contains("vllm:kv_cache_usage_perc"));
        metrics.engine.set(EngineStats {
            running: 3,
            waiting: 7,
            blocks: 4,
            blocks_in_use: 1,
            prefix_tokens_queried: 100,
            prefix_tokens_found: 60,
            preemptions: 2,
            ..EngineStats::default()
        });
        let text = metrics.prometheus_text();
        for line in [
            "vllm:num_requests_running{model_name=\"a\\\"b\"} 3",
            "vllm:num_requests_waiting{model_name=\"a\\\"b\"} 7",
            "vllm:kv_cache_usage_perc{model_name=\"a\\\"b\"} 0.25",
            "vllm:prefix_cache_queries_total{model_name=\"a\\\"b\"} 100",
            "vllm:prefix_cache_hits_total{model_name=\"a\\\"b\"} 60",
            "vllm:num_preemptions_total{model_name=\"a\\\"b\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn completions_are_counted_by_how_they_ended() {
        let metrics = new("m");
        metrics.record_first_token(5, 0.02);
        metrics.record_weight_replacement();
        metrics.record_token(None);
        metrics.record_token(Some(0.03));
        metrics.record_completion(CompletionOutcome::Finished(FinishReason::Length), 5, 2, 0.4);
        metrics.record_completion(CompletionOutcome::Abort, 5, 1, 0.4);
        let text = metrics.prometheus_text();
        for line in [
            "vllm:prompt_tokens_total{model_name=\"m\"} 5",
            "vllm:generation_tokens_total{model_name=\"m\"} 2",
            "reel:weight_replacements_total{model_name=\"m\"} 1",
            "vllm:request_success_total{finished_reason=\"length\",model_name=\"m\"} 1",
            "vllm:request_success_total{finished_reason=\"abort\",model_name=\"m\"} 1",
            "vllm:request_success_total{finished_reason=\"stop\",model_name=\"m\"} 0",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.02\"} 1",
            "vllm:inter_token_latency_seconds_count{model_name=\"m\"} 1",
            "vllm:e2e_request_latency_seconds_count{model_name=\"m\"} 1",
            "vllm:request_generation_tokens_sum{model_name=\"m\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
    }
}
