//! Makes the request of a stage about a row, and checks the model's answer.

use reel_input::media::worker::DecodeWorker;
use reel_samples::prompts::{QuestionTemplate, answer_instruction, question_text};
use reel_samples::rewards::{ProblemType, Recipe};
use reel_support::client::ChatRequest;
use serde_json::{Value, json};

use crate::curate::answers::{MediaDescription, ReasoningChain};
use crate::curate::frames::{FrameSettings, read_frames};
use crate::curate::prompts::{ResponseFormat, StagePrompt, fill_template};
use crate::curate::recipe::StageName;
use crate::curate::rows::Question;

/// Makes the requests of one stage from the settings that these requests share.
#[derive(Debug)]
pub struct RequestMaker<'a> {
    /// The stage.
    pub stage: StageName,
    /// The stage's prompt.
    pub prompt: &'a StagePrompt,
    /// Which frames are shown.
    pub frames: &'a FrameSettings,
    /// How a request asks for a description as JSON.
    pub response_format: ResponseFormat,
    /// The seed of sampling.
    pub seed: Option<u64>,
    /// Decodes videos.
    pub decoder: &'a DecodeWorker,
}

impl RequestMaker<'_> {
    /// The request about a question. `before` is the output of the previous stage: a description or a chain.
    ///
    /// # Errors
    /// The video cannot be decoded, or the previous stage's output in the table is not a chain.
    pub fn make_request(&self, question: &Question, before: Option<&str>) -> Result<ChatRequest, String> {
        let prompt = self.prompt;
        let mut parts = Vec::new();
        if self.stage != StageName::Reason {
            let frames = read_frames(&question.media, question.is_video(), self.frames, self.decoder);
            parts = frames.and_then(|frames| frames.message_parts()).map_err(|e| e.to_string())?;
        }
        parts.push(json!({"type": "text", "text": self.prompt_text(question, before)?}));
        let mut messages = Vec::new();
        if !prompt.system.is_empty() {
            messages.push(json!({"role": "system", "content": prompt.system}));
        }
        // The content of a request without images is a plain string, because servers of text-only models accept no list
        // of parts.
        let content = match &parts[..] {
            [only] => only["text"].clone(),
            _ => Value::Array(parts),
        };
        messages.push(json!({"role": "user", "content": content}));
        let is_description = self.stage == StageName::Caption;
        let format = is_description.then(|| self.response_format.description_response_format()).flatten();
        Ok(ChatRequest { messages, max_tokens: prompt.max_tokens, params: prompt.request_params(format, self.seed) })
    }

    /// The text of the user message.
    pub fn prompt_text(&self, question: &Question, before: Option<&str>) -> Result<String, String> {
        let asked = question.text_with_options();
        let media = if question.is_video() { "video" } else { "image" };
        let form = answer_instruction(question.kind.name()).unwrap_or_default();
        let mut values = vec![("question", &*asked), ("media", media), ("answer_form", form)];
        let (chain, evaluation);
        match (self.stage, before) {
            (StageName::Reason, Some(description)) => values.push(("description", description)),
            (StageName::Revise, Some(text)) => {
                let damaged = |what: String| format!("the chain in reason.jsonl {what}; give --redo reason");
                chain = ReasoningChain::parse(text).map_err(damaged)?;
                values.extend([("chain", &*chain.thought), ("answer", &*chain.answer)]);
            }
            (StageName::Answer, _) => {
                let options = (question.kind == ProblemType::MultipleChoice).then_some(&question.problem.options[..]);
                let template = QuestionTemplate::Evaluation;
                evaluation = question_text(&question.problem.problem, options, form, Recipe::VideoR1, template);
                values.push(("evaluation_prompt", &evaluation));
            }
            _ => {}
        }
        Ok(fill_template(&self.prompt.user, &values))
    }
}

/// Checks the text of a stage's answer. Returns the text that is recorded.
///
/// # Errors
/// The answer does not have the form that the stage needs.
pub fn check_answer(stage: StageName, text: &str) -> Result<String, String> {
    match stage {
        StageName::Caption => {
            let description = MediaDescription::parse(text)?;
            serde_json::to_string(&description).map_err(|e| e.to_string())
        }
        StageName::Reason | StageName::Revise | StageName::Answer => Ok(ReasoningChain::parse(text)?.to_tagged_text()),
    }
}
