//! Plans the requests of a stage: their number, and their maximum cost if each request is answered at the first
//! attempt.

use reel_support::client::{Prices, max_template_tokens};
use serde::Serialize;

use crate::curate::curation::Curation;
use crate::curate::recipe::StageName;

/// Number of messages in a request: the system message and the user message.
const MESSAGES: u64 = 2;

/// The requests of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PlannedStage {
    /// The stage.
    pub stage: StageName,
    /// Number of requests.
    pub requests: usize,
    /// Upper bound of the prompt tokens of all requests.
    pub prompt_tokens: u64,
    /// Upper bound of the generated tokens of all answers.
    pub completion_tokens: u64,
    /// Upper bound of the cost in US dollars, if each request is answered at the first attempt.
    pub max_cost: f64,
}

/// Plans a stage of a curation. A request has at most one token per byte of its texts, `image_tokens` per frame, and
/// the `max_tokens` of the previous stage's answer.
pub fn plan_stage(curation: &Curation, stage: StageName, prices: &Prices, image_tokens: u32) -> PlannedStage {
    let options = &curation.options;
    let prompt = &options.prompts[&stage];
    let tasks = curation.pending_tasks(stage, true);
    let maker = curation.request_maker(stage);
    let before = curation.stage_before(stage).map_or(0, |before| u64::from(options.prompts[&before].max_tokens));
    let mut prompt_tokens = 0;
    for question in tasks.iter().filter_map(|task| curation.rows[task.row].question.as_ref().ok()) {
        // Before the previous stage has run, the message is incomplete because that stage's output is missing. The
        // length of the template is used instead, and `before` adds the maximum number of tokens of the missing
        // output.
        let text = maker.prompt_text(question, None).map_or(prompt.user.len(), |text| text.len());
        let (frames, time_lines) = match (stage, question.is_video()) {
            (StageName::Reason, _) => (0, 0),
            (_, true) => (u64::from(options.frames.max_frames), 24 * u64::from(options.frames.max_frames)),
            (_, false) => (1, 0),
        };
        let texts = (text + prompt.system.len()) as u64 + time_lines + max_template_tokens(MESSAGES);
        prompt_tokens += texts + frames * u64::from(image_tokens) + before;
    }
    let completion_tokens = tasks.len() as u64 * u64::from(prompt.max_tokens);
    let max_cost = prices.cost(prompt_tokens, completion_tokens);
    PlannedStage { stage, requests: tasks.len(), prompt_tokens, completion_tokens, max_cost }
}
