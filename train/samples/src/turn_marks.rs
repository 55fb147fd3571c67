//! Refuses messages whose texts contain the marks of turns. The label rule `assistant` finds the answers in the
//! rendered conversation by `<|im_start|>assistant` and `<|im_end|>`. Such a mark in a text would begin or end an
//! answer at a wrong place.

use reel_input::Conversation;
use reel_input::messages::{ContentPart, Message, MessageContent};

use crate::error::{Error, Result};

const END: &str = "<|im_end|>";
const MARKS: [&str; 2] = ["<|im_start|>", END];

/// Refuses a conversation with a mark of a turn in a role, a text or another key of a message. An `<|im_end|>` at the
/// end of an answer is removed: the chat template writes it.
///
/// # Errors
/// A message has a mark. The error names the message at the row `location`.
pub(crate) fn refuse_turn_marks(location: &str, conversation: &mut Conversation) -> Result<()> {
    for (i, message) in conversation.messages.iter_mut().enumerate() {
        if message.role == "assistant" {
            remove_end(message);
        }
        if let Some(mark) = MARKS.into_iter().find(|mark| has_mark(message, mark)) {
            return Err(Error::row(
                format!("{location}: message {i}"),
                format!("has the mark {mark} in its text, which the model takes for the start or end of a message"),
                "remove it, or write the text as messages of their own; give a `prompt` and a `completion` as texts to \
                 use them without the chat template",
            ));
        }
    }
    Ok(())
}

fn remove_end(message: &mut Message) {
    let last = match &mut message.content {
        MessageContent::Text(text) => Some(text),
        MessageContent::Parts(parts) => match parts.last_mut() {
            Some(ContentPart::Text(text)) => Some(text),
            _ => None,
        },
    };
    if let Some(text) = last
        && let Some(rest) = text.trim_end().strip_suffix(END)
    {
        *text = rest.to_string();
    }
}

fn has_mark(message: &Message, mark: &str) -> bool {
    let has = |text: &str| text.contains(mark);
    let in_content = match &message.content {
        MessageContent::Text(text) => has(text),
        MessageContent::Parts(parts) => parts.iter().any(|part| matches!(part, ContentPart::Text(text) if has(text))),
    };
    // A mark contains no character that JSON escapes, so the JSON text can be searched for it.
    in_content || has(&message.role) || message.others.values().any(|value| has(&value.to_string()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(messages: Value) -> Conversation {
        Conversation::from_json("d.jsonl:1", &messages, Path::new("")).unwrap()
    }

    proptest! {
        /// A mark is refused in each text that a template may write, wherever it stands.
        #[test]
        fn marks_are_refused_by_message(
            mark in prop::sample::select(MARKS.to_vec()),
            place in 0..4,
            before in "[a-z ]{0,4}",
            after in "[a-z]{1,4}",
        ) {
            let text = format!("{before}{mark}{after}");
            let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": text}}}]);
            let message = match place {
                0 => json!({"role": "user", "content": text}),
                1 => json!({"role": "assistant", "content": [{"type": "text", "text": text}, {"type": "text", "text": ""}]}),
                2 => json!({"role": text, "content": "?"}),
                _ => json!({"role": "assistant", "content": "", "tool_calls": call}),
            };
            let e = refuse_turn_marks("d.jsonl:1", &mut read(json!([{"role": "user", "content": "?"}, message])));
            let e = e.unwrap_err().to_string();
            prop_assert!(e.starts_with(&format!("d.jsonl:1: message 1: has the mark {mark} in its text")), "{e}");
        }
    }

    #[test]
    fn the_end_of_an_answer_may_be_written() {
        let (user, plain) = (json!({"role": "user", "content": "?"}), json!({"role": "assistant", "content": "Red."}));
        for end in ["<|im_end|>", "<|im_end|>\n"] {
            let answer = json!({"role": "assistant", "content": format!("Red.{end}")});
            let mut conversation = read(json!([user, answer]));
            refuse_turn_marks("d", &mut conversation).unwrap();
            assert_eq!(conversation, read(json!([user, plain])));
        }
        assert!(refuse_turn_marks("d", &mut read(json!([{"role": "user", "content": "?<|im_end|>"}, plain]))).is_err());
    }
}
