//! What drawn completions are worth.

use std::time::Duration;

use reel_rewards::{self as rewards, OwnReward, ProblemType, Rules, Scores};
use serde_json::{Map, Value};

use super::rollout::{Answer, Drawn};
use crate::Result;
use crate::options::GrpoOptions;
use crate::rows::Fault;

/// Judges groups of completions.
pub(super) struct Judge {
    rules: Rules,
    own: Vec<OwnReward>,
    temporal: bool,
}

impl Judge {
    pub(super) fn new(options: &GrpoOptions) -> Result<Self> {
        let timeout = Duration::from_secs_f64(options.reward_timeout);
        let command = options.reward_command.as_deref().map(|shell| OwnReward::command(shell, timeout)).transpose()?;
        let url = options.reward_url.as_deref().map(|url| OwnReward::url(url, timeout)).transpose()?;
        let rules = Rules { parity: options.parity, weights: options.weights()?, scale: options.scale_rewards };
        Ok(Self { rules, own: command.into_iter().chain(url).collect(), temporal: options.temporal })
    }

    /// Whether answers to shuffled films are asked for.
    pub(super) fn temporal(&self) -> bool {
        self.temporal
    }

    /// The scores of each group.
    pub(super) fn score(&mut self, drawn: &[Drawn]) -> Result<Vec<Scores>> {
        let own = self.ask(drawn)?;
        let texts = |answers: &[Answer]| answers.iter().map(|a| a.text.clone()).collect::<Vec<_>>();
        let group = |(i, d): (usize, &Drawn)| {
            let (solution, kind) = truth(&d.prompt.columns);
            let group = rewards::Group {
                problem_type: kind.and_then(|kind| ProblemType::parse(kind).ok()),
                solution: solution.map(String::from),
                completions: texts(&d.completions),
                lengths: d.completions.iter().map(|a| a.ids.len()).collect(),
                shuffled: (!d.shuffled.is_empty()).then(|| texts(&d.shuffled)),
                semantic: None,
                own: own.iter().map(|(name, by_group)| (name.to_string(), by_group[i].clone())).collect(),
            };
            group.score(&self.rules)
        };
        Ok(drawn.iter().enumerate().map(group).collect())
    }

    /// The user's own rewards: a name, and the rewards of each group.
    fn ask(&mut self, drawn: &[Drawn]) -> Result<Vec<(&'static str, Vec<Vec<f32>>)>> {
        let mut rows = Vec::new();
        for d in drawn.iter().filter(|_| !self.own.is_empty()) {
            for answer in &d.completions {
                let mut row = d.prompt.columns.clone();
                row.insert("prompt".into(), d.prompt.messages.clone());
                row.insert("completion".into(), Value::String(answer.text.clone()));
                rows.push(Value::Object(row));
            }
        }
        let mut all = Vec::new();
        for own in &mut self.own {
            let flat = own.score(&rows)?;
            let mut rest = flat.iter().map(|&r| r as f32);
            let by_group = drawn.iter().map(|d| rest.by_ref().take(d.completions.len()).collect()).collect();
            all.push((own.name(), by_group));
        }
        Ok(all)
    }
}

/// The solution and the kind of problem that a row has.
fn truth(columns: &Map<String, Value>) -> (Option<&str>, Option<&str>) {
    let text = |name: &str| columns.get(name).and_then(Value::as_str);
    (text("solution"), text("problem_type"))
}

/// Whether answers to a row with these columns can be judged.
pub(super) fn check(columns: &Map<String, Value>, own: bool) -> Result<(), Fault> {
    let fault =
        |field: &str, what: &str, cure: &str| Err(Fault { field: field.into(), what: what.into(), cure: cure.into() });
    for name in ["solution", "problem_type"] {
        if columns.get(name).is_some_and(|value| !value.is_string() && !value.is_null()) {
            return fault(name, "is not text", "write it as a JSON string");
        }
    }
    let (solution, kind) = truth(columns);
    let Some(solution) = solution else {
        return if own {
            Ok(())
        } else {
            fault(
                "solution",
                "is missing, and there is no reward of your own",
                "add it, or give --reward-command or --reward-url",
            )
        };
    };
    // Two texts without tags are equal to the rules, whatever they say.
    if rewards::answer::answer(solution).is_empty() {
        return fault("solution", "has no answer in <answer> tags", "write <answer>…</answer>");
    }
    match kind.map(ProblemType::parse) {
        None => fault("problem_type", "is missing", "say what kind of answer is wanted, such as multiple choice"),
        Some(Err(e)) => {
            let text = e.to_string();
            let (what, cure) = text.split_once("; ").unwrap_or((&text, "see the rewards' kinds"));
            fault("problem_type", what.trim_start_matches("problem_type: "), cure)
        }
        Some(Ok(_)) => Ok(()),
    }
}
