//! Scores completions: rule-based rewards, the semantic reward by SigLIP, temporal rewards and the user's own reward
//! programs.

use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use reel_device::{DType, Device};
use reel_samples::error_if_stopped;
use reel_samples::reward_columns::solution_and_type;
use reel_samples::rewards::{
    self as rewards, AnswerRules, CustomReports, CustomReward, ProblemFields, ProblemType, RewardReply, RewardRules,
    Scores, TrainerState,
};
use serde_json::{Value, json};

use super::group::Rollout;
use super::tools::content::{AnsweredCall, ToolTurn};
use crate::error::{Error, Result};
use crate::rollout::prompts::Prompt;
use crate::rollout::reward_log::reward_log;
use crate::rollout::siglip::SiglipScorer;
use crate::setup::GrpoSetup;

/// Time that a step waits for custom rewards before it starts other work. Starting other work during fast rewards
/// gains nothing: on a machine with few cores, the reward program and this process would slow each other down.
const CUSTOM_REWARD_WAIT: Duration = Duration::from_millis(2);

/// Scores groups of completions with the rewards that the options name.
pub struct CompletionScorer<'a> {
    /// Becomes true when the run is interrupted.
    stop: &'a AtomicBool,
    rules: RewardRules,
    custom: Vec<CustomReward>,
    /// The model of the semantic reward (`--siglip`), which compares the reasoning of a completion with the frames.
    siglip: Option<SiglipScorer>,
}

/// The replies of one custom reward, by group and completion.
struct CustomScores {
    name: String,
    by_group: Vec<Vec<RewardReply>>,
}

impl<'a> CompletionScorer<'a> {
    /// Loads the reward models. SigLIP computes on `device` in `dtype`. `lender` lends the device while the run
    /// waits for custom rewards.
    pub fn new(setup: &GrpoSetup<'a>, device: &Device, dtype: DType) -> Result<Self> {
        let (options, stop) = (setup.options, setup.control.stop);
        let log = reward_log(setup);
        let timeout = Duration::from_secs_f64(options.reward_timeout);
        let commands = options.reward_command.iter().map(|shell| CustomReward::from_command(shell, timeout));
        let functions =
            options.python_reward_functions().map(|function| CustomReward::from_function(function, timeout));
        let programs = commands.chain(functions).map(|program| {
            let program = program?.with_log(log.clone());
            Ok(match options.reward_environment() {
                Some(names) => program.with_environment(names),
                None => program,
            })
        });
        let url = options.reward_url.iter().map(|url| CustomReward::from_url(url, timeout));
        let named = programs.chain(url).zip(options.custom_reward_names());
        let custom = named.map(|(reward, name)| Ok(reward?.with_name(name))).collect::<Result<_>>()?;
        let rules = options.reward_rules()?;
        let siglip = options.siglip.as_deref().map(|dir| SiglipScorer::open(device, dir, dtype)).transpose()?;
        Ok(Self { stop, rules, custom, siglip })
    }

    /// Scores the completions of `rollouts`. Custom rewards are computed by other processes, which also get `state`. If
    /// they take longer than [`CUSTOM_REWARD_WAIT`], `meanwhile` is called during their computation.
    pub fn score(
        &mut self,
        rollouts: &[Rollout],
        state: &TrainerState,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<Scores>> {
        let custom = match self.custom.is_empty() {
            true => Vec::new(),
            false => self.custom_scores(rollouts, state, meanwhile)?,
        };
        let semantic = rollouts.iter().map(|r| self.semantic_rewards(r)).collect::<Result<Vec<_>>>()?;
        let score = |(i, r): (usize, &Rollout)| {
            let (solution, problem_type) = solution_and_type(&r.prompt.columns);
            let rewards_of = |own: &CustomScores| own.by_group[i].iter().map(|reply| reply.reward as f32).collect();
            let mut reports = CustomReports::default();
            custom.iter().for_each(|own| reports.add(&own.by_group[i]));
            let kind = problem_type.and_then(|name| ProblemType::parse(name).ok());
            let group = rewards::ScoringGroup {
                problem_type: kind,
                fields: problem_fields(&r.prompt, kind, self.rules.answers),
                solution: solution.filter(|_| problem_type.is_some()).map(String::from),
                completions: r.answers(),
                lengths: r.completions.iter().map(|c| c.ids.len()).collect(),
                shuffled: (!r.shuffled_texts.is_empty()).then(|| r.shuffled_texts.clone()),
                semantic: semantic[i].clone(),
                custom: custom.iter().map(|own| (own.name.clone(), rewards_of(own))).collect(),
                reports,
            };
            group.score(&self.rules)
        };
        Ok(rollouts.iter().enumerate().map(score).collect())
    }

    /// Number of frames that SigLIP has encoded so far; `None` without `--siglip`.
    pub fn frames_encoded(&self) -> Option<u64> {
        self.siglip.as_ref().map(SiglipScorer::frames_encoded)
    }

    /// Returns the semantic reward of each completion, which measures how similar its reasoning is to the frames of the
    /// prompt. `None` for prompts without media, or without `--siglip`.
    fn semantic_rewards(&mut self, rollout: &Rollout) -> Result<Option<Vec<f32>>> {
        let frames = &rollout.prompt.tokens.frames;
        let (seen, video) = match frames.videos.is_empty() {
            true => (&frames.images, false),
            false => (&frames.videos, true),
        };
        let Some(siglip) = self.siglip.as_mut().filter(|_| !seen.is_empty()) else { return Ok(None) };
        let answers = rollout.answers();
        let texts: Vec<&str> = answers.iter().map(|text| rewards::reasoning_text(text)).collect();
        let cosines = siglip.similarities_of(&texts, seen, self.rules.answers.recipe.uses_negative_frames(video))?;
        Ok(Some(cosines.iter().map(|cosines| rewards::semantic_reward(cosines)).collect()))
    }

    /// Sends one JSON row per completion to each custom reward and collects the scores. Calls `meanwhile` if the custom
    /// rewards take longer than [`CUSTOM_REWARD_WAIT`].
    fn custom_scores(
        &mut self,
        rollouts: &[Rollout],
        state: &TrainerState,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<CustomScores>> {
        let rows = custom_reward_rows(rollouts);
        let (stop, custom) = (self.stop, &mut self.custom);
        for reward in custom.iter_mut() {
            reward.send_batch(&rows, Some(state))?;
        }
        let patience = Instant::now() + CUSTOM_REWARD_WAIT;
        let early: Vec<_> = custom.iter_mut().map(|reward| reward.finish_by(patience, stop)).collect();
        let is_slow = early.iter().any(Option::is_none);
        let finish = || -> Vec<_> {
            let all = custom.iter_mut().zip(early);
            all.map(|(reward, early)| early.unwrap_or_else(|| reward.finish(stop))).collect()
        };
        let (done, scored) = match is_slow {
            false => (Ok(()), finish()),
            true => thread::scope(|scope| {
                let waiting = thread::Builder::new().name("rewards".into()).spawn_scoped(scope, finish);
                let waiting = match waiting {
                    Ok(waiting) => waiting,
                    Err(e) => return (Err(Error::cannot_start_thread("rewards", &e)), Vec::new()),
                };
                let done = meanwhile();
                (done, waiting.join().unwrap_or_else(|panic| resume_unwind(panic)))
            }),
        };
        let scores = |(reward, flat): (&CustomReward, Result<Vec<RewardReply>>)| {
            // If the run was interrupted, returns the interruption as the error, not the failure of the unfinished
            // reward.
            let flat = flat.or_else(|e| error_if_stopped(stop).and(Err(e)))?;
            let mut rest = flat.into_iter();
            let by_group = rollouts.iter().map(|r| rest.by_ref().take(r.completions.len()).collect()).collect();
            Ok(CustomScores { name: reward.name().to_string(), by_group })
        };
        done.and(self.custom.iter().zip(scored).map(scores).collect())
    }
}

/// What a prompt's row says about its problem. A row without `data_type` has the type of its media. Rows were checked
/// when they were read, except for those that only custom rewards score.
fn problem_fields(prompt: &Prompt, kind: Option<ProblemType>, rules: AnswerRules) -> ProblemFields {
    let fields = ProblemFields::from_row(&prompt.columns, kind, rules).unwrap_or_default();
    let frames = &prompt.tokens.frames;
    let of_media = match (frames.videos.is_empty(), frames.images.is_empty()) {
        (false, _) => Some(true),
        (true, false) => Some(false),
        (true, true) => None,
    };
    ProblemFields { is_video: fields.is_video.or(of_media), ..fields }
}

/// Makes the JSON rows that are sent to custom rewards, one for each completion. With tools, `completion` is the last
/// turn of the model, `messages` are all turns, and `tool_calls` are the calls with their answers.
fn custom_reward_rows(rollouts: &[Rollout]) -> Vec<Value> {
    let mut rows = Vec::new();
    for rollout in rollouts {
        for (i, (completion, text)) in rollout.completions.iter().zip(rollout.answers()).enumerate() {
            let mut row = rollout.prompt.columns.clone();
            row.insert("prompt".into(), rollout.prompt.content.clone());
            row.insert("completion".into(), Value::String(text));
            row.insert("completion_ids".into(), Value::from(completion.ids.clone()));
            if let Some(turns) = rollout.turns.get(i) {
                let calls: Vec<&AnsweredCall> = completion.tool_turns.iter().flat_map(|turn| &turn.calls).collect();
                row.insert("messages".into(), messages_of(turns, &completion.tool_turns));
                row.insert("tool_calls".into(), json!(calls));
            }
            rows.push(Value::Object(row));
        }
    }
    rows
}

/// The turns of a completion as chat messages.
fn messages_of(turns: &[String], tool_turns: &[ToolTurn]) -> Value {
    let mut messages = Vec::new();
    for (i, text) in turns.iter().enumerate() {
        messages.push(json!({"role": "assistant", "content": text}));
        for call in tool_turns.get(i).map_or(&[][..], |turn| &turn.calls) {
            messages.push(json!({"role": "tool", "name": call.name, "content": call.content}));
        }
    }
    Value::from(messages)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::rollout::group::CompletionTokens;

    const STATE: TrainerState = TrainerState { global_step: 0, max_steps: 1, epoch: 0.0 };

    /// Returns a rollout of two completions without text.
    fn rollout() -> Rollout {
        let prompt = Prompt {
            row: 0,
            location: String::new(),
            tokens: Arc::default(),
            content: Value::Null,
            columns: serde_json::Map::new(),
            given: None,
        };
        let completion =
            CompletionTokens { ids: vec![1], learned_len: 1, log_probs: vec![0.0], ..CompletionTokens::default() };
        let rollout = Rollout::with_rewards(Arc::new(prompt), vec![completion; 2], Vec::new());
        Rollout { texts: vec![String::new(); 2], ..rollout }
    }

    fn scorer<'a>(command: &str, stop: &'a AtomicBool) -> CompletionScorer<'a> {
        CompletionScorer {
            stop,
            rules: RewardRules::default(),
            custom: vec![CustomReward::from_command(command, Duration::from_secs(60)).unwrap()],
            siglip: None,
        }
    }

    #[test]
    fn other_work_runs_while_custom_rewards_compute() {
        let dir = tempfile::tempdir().unwrap();
        let (file, stop) = (dir.path().join("written-meanwhile"), AtomicBool::new(false));
        // The reward command answers only after the other work (`meanwhile`) has written a file.
        let wait = format!("until test -e '{}'; do sleep 0.01; done", file.display());
        let mut scorer = scorer(&format!("while read -r line; do {wait}; echo 2; done"), &stop);
        let write = || {
            fs::write(&file, "").unwrap();
            Ok(())
        };
        let scores = scorer.score(&[rollout()], &STATE, write).unwrap();
        let custom: Vec<_> = scores[0].named_rewards().filter(|(name, _)| *name == "command").collect();
        assert_eq!(format!("{custom:?}"), r#"[("command", [2.0, 2.0])]"#);
    }

    #[test]
    fn custom_rewards_compute_at_the_same_time() {
        let (dir, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        // Each reward command answers only after the other command has started.
        let command = |own: &str, other: &str| {
            let [own, other] = [own, other].map(|name| dir.path().join(name).display().to_string());
            let wait = format!("until test -e '{other}'; do sleep 0.01; done");
            CustomReward::from_command(
                &format!("while read -r line; do touch '{own}'; {wait}; echo 1; done"),
                Duration::from_secs(60),
            )
            .unwrap()
        };
        let custom = vec![command("a", "b"), command("b", "a")];
        let mut scorer = CompletionScorer { custom, ..scorer("cat", &stop) };
        let scores = scorer.score(&[rollout()], &STATE, || Ok(())).unwrap();
        assert_eq!(scores[0].named_rewards().filter(|(name, _)| *name == "command").count(), 2);
    }

    #[test]
    fn an_error_of_the_other_work_is_returned() {
        let stop = AtomicBool::new(false);
        let failed = scorer("while read -r line; do sleep 0.1; echo 2; done", &stop)
            .score(&[rollout()], &STATE, || Err(Error::interrupted()))
            .unwrap_err();
        assert_eq!(failed.to_string(), Error::interrupted().to_string());
    }
}
