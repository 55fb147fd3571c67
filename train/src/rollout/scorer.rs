//! What drawn completions are worth.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reel_rewards::{self as rewards, CustomReward, ProblemType, RewardRules, Scores};
use reel_runtime::{DType, Device};
use serde_json::{Map, Value};

use super::worker::{Answer, Rollout};
use crate::Result;
use crate::data::rows::Fault;
use crate::options::GrpoOptions;
use crate::rollout::siglip::SiglipScorer;
use crate::run::stop_if;

/// Judges groups of completions.
pub(crate) struct CompletionScorer<'a> {
    /// Turns true where the run is to end.
    stop: &'a AtomicBool,
    rules: RewardRules,
    own: Vec<CustomReward>,
    /// What compares thoughts with frames.
    siglip: Option<SiglipScorer>,
}

/// What one of the user's own rewards gave.
struct Own {
    name: &'static str,
    by_group: Vec<Vec<f32>>,
}

impl<'a> CompletionScorer<'a> {
    /// `device` and `dtype`: where and in what SigLIP computes.
    pub(crate) fn new(options: &GrpoOptions, device: &Device, dtype: DType, stop: &'a AtomicBool) -> Result<Self> {
        let timeout = Duration::from_secs_f64(options.reward_timeout);
        let command =
            options.reward_command.as_deref().map(|shell| CustomReward::command(shell, timeout)).transpose()?;
        let url = options.reward_url.as_deref().map(|url| CustomReward::url(url, timeout)).transpose()?;
        let rules = RewardRules { recipe: options.parity, weights: options.weights()?, scale: options.scale_rewards };
        let siglip = options.siglip.as_deref().map(|dir| SiglipScorer::open(device, dir, dtype)).transpose()?;
        Ok(Self { stop, rules, own: command.into_iter().chain(url).collect(), siglip })
    }

    /// The scores of each group.
    pub(crate) fn score(&mut self, drawn: &[Rollout]) -> Result<Vec<Scores>> {
        let own = self.ask(drawn)?;
        let semantic = drawn.iter().map(|d| self.agreement(d)).collect::<Result<Vec<_>>>()?;
        let texts = |answers: &[Answer]| answers.iter().map(|a| a.text.clone()).collect::<Vec<_>>();
        let group = |(i, d): (usize, &Rollout)| {
            let (solution, kind) = truth(&d.prompt.columns);
            let group = rewards::ScoringGroup {
                problem_type: kind.and_then(|kind| ProblemType::parse(kind).ok()),
                solution: solution.map(String::from),
                completions: texts(&d.completions),
                lengths: d.completions.iter().map(|a| a.ids.len()).collect(),
                shuffled: (!d.shuffled.is_empty()).then(|| texts(&d.shuffled)),
                semantic: semantic[i].clone(),
                custom: own.iter().map(|own| (own.name.to_string(), own.by_group[i].clone())).collect(),
            };
            group.score(&self.rules)
        };
        Ok(drawn.iter().enumerate().map(group).collect())
    }

    /// Frames that SigLIP encoded so far, where it judges.
    pub(crate) fn frames_encoded(&self) -> Option<u64> {
        self.siglip.as_ref().map(SiglipScorer::frames_encoded)
    }

    /// How well each completion's thoughts agree with the frames as the policy sees them; nothing without frames.
    fn agreement(&mut self, drawn: &Rollout) -> Result<Option<Vec<f32>>> {
        let frames = &drawn.prompt.tokens.frames;
        let (seen, video) = match frames.videos.is_empty() {
            true => (&frames.images, false),
            false => (&frames.videos, true),
        };
        let Some(siglip) = self.siglip.as_mut().filter(|_| !seen.is_empty()) else { return Ok(None) };
        let texts: Vec<&str> = drawn.completions.iter().map(|a| rewards::reasoning_text(&a.text)).collect();
        let cosines = siglip.similarities_of(&texts, seen, self.rules.recipe.uses_negative_frames(video))?;
        Ok(Some(cosines.iter().map(|cosines| rewards::semantic_reward(cosines)).collect()))
    }

    /// The user's own rewards.
    fn ask(&mut self, drawn: &[Rollout]) -> Result<Vec<Own>> {
        let mut rows = Vec::new();
        for d in drawn.iter().filter(|_| !self.own.is_empty()) {
            for answer in &d.completions {
                let mut row = d.prompt.columns.clone();
                row.insert("prompt".into(), d.prompt.asked.clone());
                row.insert("completion".into(), Value::String(answer.text.clone()));
                row.insert("completion_ids".into(), Value::from(answer.ids.clone()));
                rows.push(Value::Object(row));
            }
        }
        let mut all = Vec::new();
        for own in &mut self.own {
            // Where the run is to end, that is why there is no answer, or nobody's concern any more.
            let flat = own.score_or_stop(&rows, self.stop).or_else(|e| stop_if(self.stop).and(Err(e.into())))?;
            let mut rest = flat.iter().map(|&r| r as f32);
            let by_group = drawn.iter().map(|d| rest.by_ref().take(d.completions.len()).collect()).collect();
            all.push(Own { name: own.name(), by_group });
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
pub(crate) fn check(columns: &Map<String, Value>, own: bool) -> Result<(), Fault> {
    let fault =
        |field: &str, what: &str, help: &str| Err(Fault { field: field.into(), what: what.into(), help: help.into() });
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
    if rewards::extract_answer(solution).is_empty() {
        return fault("solution", "has no answer in <answer> tags", "write <answer>…</answer>");
    }
    match kind.map(ProblemType::parse) {
        None => fault("problem_type", "is missing", "say what kind of answer is wanted, such as multiple choice"),
        Some(Err(e)) => {
            let text = e.to_string();
            let (what, help) = text.split_once("; ").unwrap_or((&text, "see the rewards' kinds"));
            fault("problem_type", what.trim_start_matches("problem_type: "), help)
        }
        Some(Ok(_)) => Ok(()),
    }
}
