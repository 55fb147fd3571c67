//! Suites: the lists of benchmarks that papers report (`eval/tasks/suites.toml`).

use serde::Deserialize;

use super::Task;
use crate::error::{Error, Result};

/// The benchmarks of a paper.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Suite {
    /// The name in `--suite`.
    pub name: String,
    /// The paper.
    pub title: String,
    /// The names of the benchmarks, in the order of the paper's tables.
    pub benchmarks: Vec<String>,
    /// The models of the paper, whose published scores are in the task files ([`Task::published`]).
    pub models: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    suite: Vec<Suite>,
}

impl Suite {
    /// Returns the suite of this name.
    ///
    /// # Errors
    /// There is no such suite.
    pub fn find(name: &str) -> Result<Self> {
        let text = include_str!("../../tasks/suites.toml");
        let suites = toml::from_str::<SuiteFile>(text).expect("the file is part of the program, and tested").suite;
        let known: Vec<String> = suites.iter().map(|suite| suite.name.clone()).collect();
        suites.into_iter().find(|suite| suite.name == name).ok_or_else(|| {
            let help = format!("use one of {}", known.join(", "));
            Error::usage("--suite", format!("unknown suite `{name}`"), help)
        })
    }

    /// Returns the tasks of the suite.
    ///
    /// # Errors
    /// Those of [`Task::from_names`].
    pub fn tasks(&self) -> Result<Vec<Task>> {
        Task::from_names(&self.benchmarks.join(","))
    }

    /// Returns the published score of a model on a benchmark, in percent.
    pub fn published(task: &Task, model: &str) -> Option<f64> {
        task.published.iter().find(|published| published.model == model).map(|published| published.score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_has_known_benchmarks_and_published_models() {
        for name in ["videorft", "video-r1", "one-thinker"] {
            let suite = Suite::find(name).unwrap();
            let tasks = suite.tasks().unwrap();
            for model in &suite.models {
                assert!(tasks.iter().any(|task| Suite::published(task, model).is_some()), "{name}: {model}");
            }
        }
        let e = Suite::find("nosuch").unwrap_err();
        assert!(e.is_usage_error() && e.to_string().contains("`nosuch`; use one of videorft, video-r1, one-thinker"));
    }
}
