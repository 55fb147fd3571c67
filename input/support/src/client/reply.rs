//! Parses the replies of a server: an answer, or the message of an error.

use crate::diagnostic::{escape_controls, redact_urls};
use serde_json::Value;

/// Maximum number of characters of a reply in a message.
const MAX_QUOTED: usize = 200;

/// The model's answer, parsed from the body of a reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelAnswer {
    pub text: String,
    pub reasoning: Option<String>,
    pub finish_reason: Option<String>,
    pub model: Option<String>,
    /// Tokens of prompt and answer; `None` if the reply does not state them.
    pub usage: Option<(u64, u64)>,
}

/// Parses the answer from the body of a reply with status 200. The error is the problem and its help text.
pub(crate) fn parse_answer(body: &str) -> Result<ModelAnswer, (String, &'static str)> {
    let help = "check that this is the base URL of a server with OpenAI's API (it often ends in /v1)";
    let Ok(reply) = serde_json::from_str::<Value>(body) else {
        let what = match body.trim() {
            "" => "sent an empty reply".to_string(),
            body => format!("replied `{}`, which is not complete JSON", quoted(body)),
        };
        return Err((what, help));
    };
    if let Some(message) = error_message(&reply) {
        return Err((format!("replied with an error: {message}"), "check the log of the server"));
    }
    let Some(choice) = reply.pointer("/choices/0") else {
        return Err((format!("replied `{}`, without choices", quoted(body)), help));
    };
    let message = &choice["message"];
    let field = |name: &str| message[name].as_str().map(String::from);
    let reasoning = field("reasoning_content").or_else(|| field("reasoning")).filter(|text| !text.is_empty());
    let text = match (field("content").or_else(|| field("refusal")), &reasoning) {
        (Some(text), _) => text,
        // A reasoning model reached its token limit before its answer began.
        (None, Some(_)) => String::new(),
        (None, None) => return Err((format!("replied `{}`, without a text", quoted(body)), help)),
    };
    let tokens = |name: &str| reply["usage"][name].as_u64();
    Ok(ModelAnswer {
        text,
        reasoning,
        finish_reason: choice["finish_reason"].as_str().map(String::from),
        model: reply["model"].as_str().map(String::from),
        usage: tokens("prompt_tokens").zip(tokens("completion_tokens")),
    })
}

/// Returns the error message in an error reply: OpenAI's `{"error": {"message": …}}`, FastAPI's `{"detail": …}`, or
/// the start of the reply's text.
pub(crate) fn describe_error(body: &str) -> String {
    let message = serde_json::from_str(body).ok().and_then(|reply| error_message(&reply));
    message.unwrap_or_else(|| quoted(body.trim()))
}

fn error_message(reply: &Value) -> Option<String> {
    let error = reply.get("error").filter(|error| !error.is_null());
    let text = error.and_then(|error| error.get("message").or(Some(error))).or_else(|| reply.get("detail"))?;
    Some(quoted(text.as_str().unwrap_or(&text.to_string())))
}

/// Returns the start of a text, on one line.
fn quoted(text: &str) -> String {
    let start: String = text.chars().take(MAX_QUOTED).collect();
    let end = if start.len() < text.len() { " […]" } else { "" };
    let line: Vec<&str> = start.split_whitespace().collect();
    let line = redact_urls(&line.join(" "));
    format!("{}{end}", escape_controls(&line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn answers_of_known_servers_are_read() {
        let reply = json!({
            "model": "m", "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "B"}}],
        });
        let answer = parse_answer(&reply.to_string()).unwrap();
        assert_eq!((answer.text.as_str(), answer.usage, answer.reasoning), ("B", Some((5, 2)), None));
        let message = json!({"content": null, "reasoning_content": "First"});
        let cut = json!({"choices": [{"finish_reason": "length", "message": message}]});
        let answer = parse_answer(&cut.to_string()).unwrap();
        assert_eq!((answer.text.as_str(), answer.reasoning.as_deref(), answer.usage), ("", Some("First"), None));
        let refused = json!({"choices": [{"message": {"content": null, "refusal": "No."}}]});
        assert_eq!(parse_answer(&refused.to_string()).unwrap().text, "No.");
    }

    #[test]
    fn replies_without_an_answer_are_described() {
        for (body, part) in [
            ("", "sent an empty reply"),
            ("{\"choices\": [{\"mess", "not complete JSON"),
            ("<html>\n<b>x</b>", "`<html> <b>x</b>`"),
            ("{}", "without choices"),
            ("{\"choices\": []}", "without choices"),
            ("{\"choices\": [{\"message\": {\"content\": null}}]}", "without a text"),
            ("{\"error\": {\"message\": \"model is loading\"}}", "an error: model is loading"),
            ("{\"choices\":[{\"message\":{\"content\":\"B\"}}]}{}", "not complete JSON"),
        ] {
            let (what, _) = parse_answer(body).unwrap_err();
            assert!(what.contains(part), "{body}: {what}");
        }
        assert_eq!(describe_error("{\"detail\": \"Not Found\"}"), "Not Found");
        assert_eq!(describe_error(" busy\n"), "busy");
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_a_panic(body in "\\PC{0,300}|\\{\"(choices|error)\":[\\[\\]{}0-9a-z\":,]{0,40}") {
            let _ = parse_answer(&body);
            prop_assert!(!describe_error(&body).contains('\n'));
        }
    }
}
