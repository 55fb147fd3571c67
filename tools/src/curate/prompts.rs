//! The prompts of the stages (`prompts.toml`), their sampling settings, and the fingerprint of both that a stage's
//! table records with each answer.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::curate::recipe::StageName;

/// The prompt of a stage, with the sampling parameters of its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StagePrompt {
    /// Version of the prompt's text, increased by each change of the text.
    pub version: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Nucleus sampling.
    pub top_p: f64,
    /// Maximum number of tokens of an answer.
    pub max_tokens: u32,
    /// The system message; an empty one is not sent.
    pub system: String,
    /// The template of the user message: names in braces, such as `{question}`, are replaced by values.
    pub user: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prompts {
    caption: StagePrompt,
    reason: StagePrompt,
    revise: StagePrompt,
    answer: StagePrompt,
}

/// The prompts. The file is compiled in, and a test parses it, so parsing cannot fail at run time.
static PROMPTS: LazyLock<Prompts> =
    LazyLock::new(|| toml::from_str(include_str!("prompts.toml")).expect("prompts.toml is part of the program"));

/// How a request asks the model for a description as JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResponseFormat {
    /// `response_format` with the JSON schema of descriptions.
    #[default]
    Schema,
    /// `response_format` that asks for any JSON object.
    Json,
    /// No `response_format`, for endpoints that refuse it.
    None,
}

impl StagePrompt {
    /// The prompt of a stage.
    pub fn of_stage(stage: StageName) -> &'static StagePrompt {
        match stage {
            StageName::Caption => &PROMPTS.caption,
            StageName::Reason => &PROMPTS.reason,
            StageName::Revise => &PROMPTS.revise,
            StageName::Answer => &PROMPTS.answer,
        }
    }

    /// The name of this prompt in records: `STAGE-VERSION-FINGERPRINT`. `further` holds other settings that an answer
    /// depends on; the fingerprint covers them too.
    pub fn id(&self, stage: StageName, further: &Value) -> String {
        let text = json!({"prompt": self, "further": further}).to_string();
        format!("{stage}-{}-{}", self.version, &hex(&Sha256::digest(text.as_bytes()))[..16])
    }

    /// The parameters of a request, besides its messages and its number of tokens.
    pub fn request_params(&self, response_format: Option<Value>, seed: Option<u64>) -> Map<String, Value> {
        let mut params = Map::new();
        params.insert("temperature".into(), json!(self.temperature));
        params.insert("top_p".into(), json!(self.top_p));
        params.extend(response_format.map(|format| ("response_format".to_string(), format)));
        params.extend(seed.map(|seed| ("seed".to_string(), json!(seed))));
        params
    }
}

impl ResponseFormat {
    /// The value of `response_format` in a request for a description; `None` leaves the field out.
    pub fn description_response_format(self) -> Option<Value> {
        match self {
            Self::None => None,
            Self::Json => Some(json!({"type": "json_object"})),
            Self::Schema => {
                let schema = json!({"name": "description", "strict": true, "schema": description_schema()});
                Some(json!({"type": "json_schema", "json_schema": schema}))
            }
        }
    }
}

/// The JSON schema of descriptions.
pub fn description_schema() -> Value {
    let text = json!({"type": "string"});
    let texts = json!({"type": "array", "items": text});
    let object = |properties: Value| {
        let names: Vec<String> = properties.as_object().into_iter().flat_map(Map::keys).cloned().collect();
        json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
    };
    let elements = object(json!({"objects": texts, "actions": texts, "scene": text, "spatial_relations": texts,
        "potential_interactions": texts}));
    let frame = object(json!({"timestamp": {"type": "number"}, "caption": text, "key_elements": elements}));
    object(json!({"video_caption": text, "frames": {"type": "array", "items": frame}}))
}

/// Bytes in hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Replaces each `{name}` in a template by its value. Braces within a value are not replaced.
pub fn fill_template(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        text += &rest[..open];
        let value = values.iter().find_map(|(name, value)| {
            let after = rest[open + 1..].strip_prefix(name)?.strip_prefix('}')?;
            Some((*value, after))
        });
        (text, rest) = match value {
            Some((value, after)) => (text + value, after),
            None => (text + "{", &rest[open + 1..]),
        };
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_the_values_that_their_stages_put_in() {
        let names = |stage: StageName| {
            let all = ["question", "description", "media", "answer_form", "chain", "answer", "evaluation_prompt"];
            let text = &StagePrompt::of_stage(stage).user;
            let known: usize = all.iter().map(|name| text.matches(&format!("{{{name}}}")).count()).sum();
            assert_eq!(text.matches('{').count(), known);
            all.into_iter().filter(|name| text.contains(&format!("{{{name}}}"))).collect::<Vec<_>>()
        };
        assert!(names(StageName::Caption).is_empty());
        assert_eq!(names(StageName::Reason), ["question", "description", "media", "answer_form"]);
        assert_eq!(names(StageName::Revise), ["question", "media", "chain", "answer"]);
        assert_eq!(names(StageName::Answer), ["evaluation_prompt"]);
        let answer = StagePrompt::of_stage(StageName::Answer);
        assert_eq!((answer.temperature, answer.top_p, answer.max_tokens), (1.0, 0.95, 512));
    }

    #[test]
    fn fingerprint_depends_on_text_and_settings() {
        let prompt = StagePrompt::of_stage(StageName::Reason);
        let id = |prompt: &StagePrompt, further| prompt.id(StageName::Reason, &further);
        let own = id(prompt, json!({}));
        assert!(own.starts_with("reason-1-") && own.len() == 25, "{own}");
        let other = StagePrompt { temperature: 0.7, ..prompt.clone() };
        assert!(own == id(prompt, json!({})) && own != id(&other, json!({})) && own != id(prompt, json!({"fps": 1})));
    }

    #[test]
    fn values_are_put_in_once() {
        assert_eq!(fill_template("{a} {b} {c} {", &[("a", "{b}"), ("b", "x")]), "{b} x {c} {");
    }
}
