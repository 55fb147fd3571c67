//! Where the prompt of a conversation ends, and prompts that end within the last message.

use crate::error::{Error, Result};
use crate::messages::{ContentPart, Conversation, MessageContent};

/// Where the prompt of a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptEnd {
    /// At the beginning of a new message of the assistant (the generation prompt).
    NewMessage,
    /// After the last message, which is complete.
    LastMessage,
    /// After the text of the last message, which the model continues.
    WithinLastMessage,
}

impl PromptEnd {
    /// The end that a conversation has by default: a new message of the assistant, unless the last message is the
    /// assistant's.
    pub fn default_for_conversation(conversation: &Conversation) -> Self {
        match conversation.ends_with_assistant() {
            true => Self::LastMessage,
            false => Self::NewMessage,
        }
    }
}

/// A text that stands after the text of the last message while the template is rendered. The prompt is cut there, so
/// that the prompt has neither the end token of the message nor any text that the template writes after it.
const MARK: &str = "[reel-continues-here]";

/// Returns the conversation with a mark after the text of its last message, for [`text_before_mark`].
///
/// # Errors
/// The last message is not the assistant's, has tool calls, or does not end with a text.
pub(super) fn mark_end_of_text(conversation: &Conversation) -> Result<Conversation> {
    let refused = |what: String, help: &str| {
        let location = format!("{}: continue_final_message", conversation.location);
        Err(Error::input(location, what, help))
    };
    let mut marked = conversation.clone();
    let Some(last) = marked.messages.last_mut().filter(|last| last.role == "assistant") else {
        let role = conversation.messages.last().map_or("", |last| &last.role);
        let what = format!("is true, but the role of the last message is {role}");
        return refused(what, "end the messages with the assistant's, or remove it");
    };
    if last.others.get("tool_calls").and_then(serde_json::Value::as_array).is_some_and(|calls| !calls.is_empty()) {
        return refused("is true, but the last message has tool calls".into(), "remove it, or the tool calls");
    }
    match &mut last.content {
        MessageContent::Text(text) => text.push_str(MARK),
        MessageContent::Parts(parts) => match parts.last_mut() {
            Some(ContentPart::Text(text)) => text.push_str(MARK),
            Some(_) => return refused("is true, but the last message ends with media".into(), "end it with a text"),
            None => parts.push(ContentPart::Text(MARK.into())),
        },
    }
    Ok(marked)
}

/// The prompt up to the mark; `None` if the template did not write the text of the last message.
pub(super) fn text_before_mark(prompt: &str) -> Option<String> {
    prompt.rfind(MARK).map(|end| prompt[..end].to_string())
}
