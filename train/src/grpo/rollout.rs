//! Completions drawn from the weights as they are, and judged.
//!
//! All completions of a step decode together, those to shuffled films too. Draws depend on the run's seed, the step, and the place of prompt and
//! completion in it, so a step can be drawn again alone.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use reel_engine::{self as engine, Engine, FinishReason, Request, Sampling, Stop};
use reel_kernels::philox::philox4x32_10;
use reel_media::resize::FrameBuf;
use reel_model::input::Tokens;
use reel_rewards::Scores;
use reel_runtime::Cx;
use serde_json::{Map, Value, json};

use super::Setup;
use super::group::{Completion, Group, SECONDS};
use super::judge::Judge;
use super::prompts::{Prompt, Prompts};
use super::records::Records;
use crate::feed::Feed;
use crate::options::GrpoOptions;
use crate::run::Taken;
use crate::trainer::{Shown, Trainer};
use crate::{Result, TrainError};

/// Draws completions.
pub(super) struct Rollout<'a> {
    engine: Engine<'a>,
    options: &'a GrpoOptions,
    prompts: Arc<Prompts>,
    judge: Judge,
    records: Records,
    seed: u64,
    stop: &'a AtomicBool,
}

/// What was drawn for a prompt.
pub(super) struct Drawn {
    pub(super) prompt: Prompt,
    pub(super) completions: Vec<Answer>,
    /// Answers to the films with their frames in another order.
    pub(super) shuffled: Vec<Answer>,
}

/// A completion with its text.
pub(super) struct Answer {
    pub(super) ids: Vec<i32>,
    pub(super) log_probs: Vec<f32>,
    pub(super) text: String,
    pub(super) finish: FinishReason,
}

/// Groups to learn from, and what there is to tell of how they came about.
pub(super) struct Drawing {
    pub(super) groups: Vec<Group>,
    pub(super) more: Map<String, Value>,
    pub(super) shown: Shown,
}

/// How often further rows are drawn for, where groups without differences are left out.
const MOST_ROUNDS: u64 = 10;

/// What the draws of a place are for.
#[derive(Clone, Copy)]
enum Draw {
    Completions = 0x6772_706f,
    Shuffled = 0x7368_7566,
    Frames = 0x6672_616d,
}

impl<'a> Rollout<'a> {
    pub(super) fn new(setup: &Setup<'a>, prompts: Arc<Prompts>, trainer: &Trainer) -> Result<Self> {
        let cx = Cx::inference(&trainer.device, trainer.dtype);
        Ok(Self {
            engine: Engine::new(&trainer.model, &cx)?.stop_when(setup.stop),
            options: setup.options,
            judge: Judge::new(setup.options, &trainer.device, trainer.dtype)?,
            records: Records::new(&setup.options.out, trainer.recipe.schedule.max_steps),
            prompts,
            seed: setup.seed,
            stop: setup.stop,
        })
    }

    /// Groups for step `n`, of the next rows; `None` at the end of the data.
    pub(super) fn next(&mut self, n: u64, feed: &mut Feed<Prompts>, taken: &mut Taken) -> Result<Option<Drawing>> {
        let (begun, encoded) = (Instant::now(), self.judge.frames_encoded());
        let (mut kept, mut all, mut dropped) = (Vec::new(), Vec::new(), 0);
        let mut shown = Shown::default();
        for round in 0..MOST_ROUNDS {
            let Some(batch) = taken.next_of(feed, self.stop)? else { break };
            let drawn = self.draw(batch.samples, n, round)?;
            let scores = self.judge.score(&drawn)?;
            let dynamic = self.options.dynamic_sampling;
            let useful = |scores: &Scores| !dynamic || scores.reward.windows(2).any(|pair| pair[0] != pair[1]);
            self.records.add(n, round, &drawn, &scores, useful)?;
            shown.rewards.extend(scores.iter().flat_map(|s| &s.reward));
            if let (0, Some(drawn), Some(scores)) = (round, drawn.first(), scores.first()) {
                (shown.text, shown.strip) = (page(drawn, scores), self.records.strip(n, drawn)?);
            }
            for (drawn, scores) in drawn.into_iter().zip(scores) {
                if useful(&scores) {
                    kept.push(self.group(drawn, &scores));
                } else {
                    dropped += 1;
                }
                all.push(scores);
            }
            if !dynamic || kept.len() >= self.options.groups() {
                break;
            }
        }
        // Training needs the memory, and a run that goes on from here has the same peak.
        self.engine.release();
        if kept.is_empty() {
            // The data ended, or nothing that was drawn for ten steps' rows made a difference.
            return match dropped {
                0 => Ok(None),
                _ => Err(TrainError::option(
                    "--dynamic-sampling",
                    format!("in step {n} the rewards within each of {dropped} groups were all the same"),
                    "leave it out, raise --temperature, or give rows that the model sometimes gets right",
                )),
            };
        }
        kept.truncate(self.options.groups());
        let mut more = means(&all);
        if let Some(frames) = self.judge.frames_encoded() {
            more.insert("frames_encoded".into(), json!(frames - encoded.unwrap_or(0)));
        }
        if self.options.dynamic_sampling {
            more.insert("dropped_groups".into(), json!(dropped));
        }
        more.insert(SECONDS.into(), json!(begun.elapsed().as_secs_f64()));
        Ok(Some(Drawing { groups: kept, more, shown }))
    }

    /// Waits until the record of what was drawn is on disk.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.records.settle()
    }

    fn group(&self, drawn: Drawn, scores: &Scores) -> Group {
        let (stop_ids, mask) = (self.prompts.stop_ids(), self.options.mask_truncated_completions);
        let completion = |a: Answer| Completion { log_probs: a.log_probs, ..Completion::new(a.ids, stop_ids, mask) };
        Group {
            prompt: Arc::new(drawn.prompt),
            completions: drawn.completions.into_iter().map(completion).collect(),
            rewards: scores.reward.clone(),
            advantages: Vec::new(),
        }
    }

    /// Completes the prompts of a step.
    fn draw(&self, prompts: Vec<Prompt>, n: u64, round: u64) -> Result<Vec<Drawn>> {
        let place = |i: usize| (round << 32) + i as u64;
        let shuffle = |(i, prompt): (usize, &Prompt)| -> Option<Tokens> {
            let wanted = self.judge.temporal() && !prompt.tokens.frames.films.is_empty();
            wanted.then(|| shuffled(&prompt.tokens, self.seed_of(n, place(i), Draw::Frames)))
        };
        let shuffled: Vec<Option<Tokens>> = prompts.iter().enumerate().map(shuffle).collect();
        let group = self.options.num_generations;
        let mut requests = Vec::new();
        for (i, prompt) in prompts.iter().enumerate() {
            requests.push(self.request(&prompt.tokens, group, self.seed_of(n, place(i), Draw::Completions)));
        }
        for (i, tokens) in shuffled.iter().enumerate() {
            if let Some(tokens) = tokens {
                requests.push(self.request(tokens, group / 2, self.seed_of(n, place(i), Draw::Shuffled)));
            }
        }
        let (completions, _) = self.engine.generate(requests, |_| {}).map_err(|e| match e {
            engine::Error::Interrupted => TrainError::interrupted(),
            e => e.into(),
        })?;
        let mut by_request: Vec<Vec<Answer>> = Vec::new();
        for c in completions {
            by_request.resize_with(by_request.len().max(c.request + 1), Vec::new);
            by_request[c.request].push(self.answer(c));
        }
        let mut answers = by_request.into_iter();
        let mut drawn: Vec<Drawn> = prompts
            .into_iter()
            .map(|prompt| Drawn { prompt, completions: answers.next().unwrap_or_default(), shuffled: Vec::new() })
            .collect();
        for (drawn, _) in drawn.iter_mut().zip(&shuffled).filter(|(_, tokens)| tokens.is_some()) {
            drawn.shuffled = answers.next().unwrap_or_default();
        }
        Ok(drawn)
    }

    fn request<'b>(&'b self, tokens: &'b Tokens, completions: usize, seed: u64) -> Request<'b> {
        let o = self.options;
        Request {
            prompt: tokens.sequence(),
            rope_delta: tokens.rope_delta,
            sampling: Sampling {
                temperature: o.temperature as f32,
                top_p: o.top_p as f32,
                top_k: o.top_k,
                repetition_penalty: 1.0,
                seed,
            },
            max_new_tokens: o.max_completion_length,
            min_new_tokens: o.min_completion_length,
            eos: self.prompts.stop_ids(),
            stops: (0..completions).map(|_| Stop::none()).collect(),
        }
    }

    fn answer(&self, c: engine::Completion) -> Answer {
        Answer {
            text: self.prompts.text(&c.ids),
            ids: c.ids.iter().map(|&id| id as i32).collect(),
            log_probs: c.log_probs,
            finish: c.finish_reason,
        }
    }

    fn seed_of(&self, n: u64, place: u64, draw: Draw) -> u64 {
        let counter = [place as u32, n as u32, (n >> 32) as u32 ^ (place >> 32) as u32, draw as u32];
        let [a, b, ..] = philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        u64::from(a) | u64::from(b) << 32
    }
}

/// A group as TensorBoard's text page shows it.
fn page(drawn: &Drawn, scores: &Scores) -> String {
    let quoted = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let mut page = format!("{}\n\n", drawn.prompt.place);
    for (i, answer) in drawn.completions.iter().enumerate() {
        let parts: Vec<String> = scores.parts().map(|(name, values)| format!("{name} {}", values[i])).collect();
        page += &format!("**{}** = {}\n\n{}\n", scores.reward[i], parts.join(" + "), quoted(&answer.text));
    }
    page
}

/// The mean of each reward over all completions that have it, under `rewards/<name>`.
fn means(all: &[Scores]) -> Map<String, Value> {
    let mut sums: Vec<(String, f64, usize)> = Vec::new();
    for (name, values) in all.iter().flat_map(Scores::parts) {
        let sum = values.iter().map(|&x| f64::from(x)).sum::<f64>();
        match sums.iter_mut().find(|s| s.0 == name) {
            Some(s) => (s.1, s.2) = (s.1 + sum, s.2 + values.len()),
            None => sums.push((name.to_string(), sum, values.len())),
        }
    }
    sums.into_iter().map(|(name, sum, n)| (format!("rewards/{name}"), json!(sum / n as f64))).collect()
}

/// The same prompt with the frames of its films in an order that `seed` gives.
pub fn shuffled(tokens: &Tokens, seed: u64) -> Tokens {
    let mut tokens = tokens.clone();
    for (film, frames) in (0u32..).zip(&mut tokens.frames.films) {
        let order = permutation(frames.frames, seed, film);
        let size = frames.height * frames.width * 3;
        let data = order.iter().flat_map(|&f| &frames.data[f * size..(f + 1) * size]).copied().collect();
        *frames = FrameBuf { data, ..*frames };
    }
    tokens
}

/// Fisher and Yates' shuffle of `0..n`.
fn permutation(n: usize, seed: u64, stream: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let [random, ..] = philox4x32_10([i as u32, 0, 0, stream], [seed as u32, (seed >> 32) as u32]);
        order.swap(i, ((u64::from(random) * (i as u64 + 1)) >> 32) as usize);
    }
    order
}
