//! The form that a model's answer must have: a description as JSON, or a chain of thought with an answer. An answer in
//! another form is refused with a reason, and the request is sent again.

use serde::{Deserialize, Serialize};

/// Maximum length of an answer in bytes, which is more than any stage's maximum number of tokens can produce.
pub const MAX_ANSWER_BYTES: usize = 64 << 10;

const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// The description of a video or an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediaDescription {
    /// What the whole video shows.
    pub video_caption: String,
    /// The frames that are described, in order.
    pub frames: Vec<FrameDescription>,
}

/// The description of a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameDescription {
    /// The frame's time in seconds.
    pub timestamp: f64,
    /// What the frame shows.
    pub caption: String,
    /// Objects, actions and places in the frame.
    pub key_elements: KeyElements,
}

/// Objects, actions and places in a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyElements {
    /// Visible objects and persons.
    pub objects: Vec<String>,
    /// Actions of the objects and persons.
    pub actions: Vec<String>,
    /// The place of the scene.
    pub scene: String,
    /// Positions of the objects and persons relative to each other.
    pub spatial_relations: Vec<String>,
    /// Objects and persons that could act on each other, and how.
    pub potential_interactions: Vec<String>,
}

/// A chain of thought and the answer that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasoningChain {
    /// The text between the `<think>` tags.
    pub thought: String,
    /// The text between the `<answer>` tags.
    pub answer: String,
}

impl MediaDescription {
    /// Parses the text of an answer. A code fence around the JSON is accepted.
    ///
    /// # Errors
    /// The text is empty, too long, no JSON, or JSON of another form; a caption is empty; times are negative or do not
    /// ascend.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = check_length(text)?;
        let json = text.strip_prefix("```json").or(text.strip_prefix("```")).unwrap_or(text);
        let json = json.strip_suffix("```").unwrap_or(json);
        let description: Self = serde_json::from_str(json.trim()).map_err(|e| {
            let kind = if e.is_data() { "has the wrong form" } else { "is not complete JSON" };
            format!("{kind}: {e}")
        })?;
        if description.video_caption.trim().is_empty() {
            return Err("has the wrong form: video_caption is empty".into());
        }
        if description.frames.is_empty() {
            return Err("has the wrong form: frames is empty".into());
        }
        let mut before = 0.0;
        for (i, frame) in description.frames.iter().enumerate() {
            // Catches every negative or descending time. A NaN would pass this comparison, but JSON has no NaN.
            if frame.timestamp < before {
                return Err(format!("has the wrong form: frames[{i}].timestamp is {}, not ascending", frame.timestamp));
            }
            if frame.caption.trim().is_empty() {
                return Err(format!("has the wrong form: frames[{i}].caption is empty"));
            }
            before = frame.timestamp;
        }
        Ok(description)
    }
}

impl ReasoningChain {
    /// Parses the text of an answer. Reasoning models may first write other thoughts: the chain is the text in the last
    /// `<think>` tags before the last answer.
    ///
    /// # Errors
    /// The text is empty or too long, a tag is missing or inside of the chain or the answer, or the chain or the answer
    /// is empty.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = check_length(text)?;
        let missing = |tag: &str| format!("has no {tag}");
        let (before, after) = text.rsplit_once("<answer>").ok_or_else(|| missing("<answer>"))?;
        let (answer, _) = after.split_once("</answer>").ok_or_else(|| missing("</answer> after its <answer>"))?;
        let (before, _) = before.rsplit_once("</think>").ok_or_else(|| missing("</think> before its <answer>"))?;
        let (_, thought) = before.rsplit_once("<think>").ok_or_else(|| missing("<think> before its </think>"))?;
        let (thought, answer) = (thought.trim(), answer.trim());
        for (tag, content) in [("<think>", thought), ("<answer>", answer)] {
            if content.is_empty() {
                return Err(format!("has nothing in its {tag} tags"));
            }
            // A tag inside the chain or the answer is an error, because training would read the text only up to this
            // tag.
            if let Some(inner) = TAGS.iter().find(|inner| content.contains(*inner)) {
                return Err(format!("has {inner} inside of its {tag} tags"));
            }
        }
        Ok(Self { thought: thought.into(), answer: answer.into() })
    }

    /// The chain and its answer with tags: the text that tables hold and reward functions compare.
    pub fn to_tagged_text(&self) -> String {
        format!("<think>{}</think><answer>{}</answer>", self.thought, self.answer)
    }
}

fn check_length(text: &str) -> Result<&str, String> {
    let trimmed = text.trim();
    match trimmed.len() {
        0 => Err("is empty".into()),
        bytes if bytes > MAX_ANSWER_BYTES => {
            Err(format!("has {bytes} bytes, above the limit of {MAX_ANSWER_BYTES} bytes for an answer"))
        }
        _ => Ok(trimmed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn description() -> Value {
        json!({"video_caption": "A ball rolls.", "frames": [
            {"timestamp": 0, "caption": "A red ball.", "key_elements": {"objects": ["ball"], "actions": ["rolls"],
                "scene": "a floor", "spatial_relations": [], "potential_interactions": []}},
            {"timestamp": 1.5, "caption": "The ball at the right.", "key_elements": {"objects": [], "actions": [],
                "scene": "", "spatial_relations": ["right"], "potential_interactions": []}}]})
    }

    #[test]
    fn descriptions_of_another_form_are_refused_with_the_field() {
        let text = description().to_string();
        assert_eq!(MediaDescription::parse(&text).unwrap().frames.len(), 2);
        assert_eq!(MediaDescription::parse(&format!("```json\n{text}\n```")), MediaDescription::parse(&text));
        for (pointer, value, words) in [
            ("/video_caption", json!(" "), "video_caption is empty"),
            ("/video_caption", json!(3), "invalid type: integer `3`, expected a string"),
            ("/frames", json!([]), "frames is empty"),
            ("/frames/1/timestamp", json!(-1), "frames[1].timestamp is -1, not ascending"),
            ("/frames/1/caption", json!(""), "frames[1].caption is empty"),
            ("/frames/0/key_elements/objects", json!("ball"), "expected a sequence"),
            ("/frames/0/key_elements", json!({"objects": []}), "missing field `actions`"),
            ("/frames/0/key_elements/mood", json!("glad"), "unknown field `mood`"),
        ] {
            let mut bad = description();
            match bad.pointer_mut(pointer) {
                Some(field) => *field = value,
                None => bad["frames"][0]["key_elements"]["mood"] = value,
            }
            let e = MediaDescription::parse(&bad.to_string()).unwrap_err();
            assert!(e.starts_with("has the wrong form: ") && e.contains(words), "{pointer}: {e}");
        }
        assert!(MediaDescription::parse(&text[..text.len() / 2]).unwrap_err().starts_with("is not complete JSON"));
        assert!(MediaDescription::parse(&format!("{text}{text}")).unwrap_err().starts_with("is not complete JSON"));
        assert_eq!(MediaDescription::parse(" \n").unwrap_err(), "is empty");
        assert!(MediaDescription::parse(&"x".repeat(100 << 10)).unwrap_err().contains("above the limit"));
    }

    #[test]
    fn chain_stands_in_the_last_tags() {
        let parse = |text: &str| ReasoningChain::parse(text).map(|chain| (chain.thought, chain.answer));
        let chain = |thought: &str, answer: &str| Ok((thought.to_string(), answer.to_string()));
        assert_eq!(parse("<think> a </think> <answer> B </answer>"), chain("a", "B"));
        assert_eq!(parse("own thoughts </think><think>a</think><answer>B</answer> bye"), chain("a", "B"));
        assert_eq!(parse("<think>own <answer>X</answer></think><think>a</think><answer>B</answer>"), chain("a", "B"));
        for (text, wanted) in [
            ("", "is empty"),
            ("<think>a</think>", "has no <answer>"),
            ("<think>a</think><answer>B", "has no </answer> after its <answer>"),
            ("<think>a<answer>B</answer>", "has no </think> before its <answer>"),
            ("a</think><answer>B</answer>", "has no <think> before its </think>"),
            ("<think> </think><answer>B</answer>", "has nothing in its <think> tags"),
            ("<think>a</think><answer></answer>", "has nothing in its <answer> tags"),
            ("<think>a <answer>B</answer></think><answer>B</answer>", "has <answer> inside of its <think> tags"),
        ] {
            assert_eq!(parse(text), Err(wanted.to_string()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_a_chain_is_parsed_back(text in "(<think>|</think>|<answer>|</answer>|a|\\PC){0,20}") {
            let _ = MediaDescription::parse(&text);
            if let Ok(chain) = ReasoningChain::parse(&text) {
                prop_assert_eq!(ReasoningChain::parse(&chain.to_tagged_text()), Ok(chain));
            }
        }
    }
}
