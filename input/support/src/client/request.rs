//! A chat request, and bounds on its size in tokens.

use serde_json::{Map, Value, json};

/// Upper bound of the tokens that a chat template adds: the template's own texts, and the special tokens around each
/// message.
pub const fn max_template_tokens(messages: u64) -> u64 {
    64 + 16 * messages
}

/// The average number of bytes per token, for the token rate limit.
const BYTES_PER_TOKEN: u64 = 4;

/// A request for one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// OpenAI's messages: `{"role": …, "content": …}`.
    pub messages: Vec<Value>,
    /// Maximum number of tokens of the answer.
    pub max_tokens: u32,
    /// Further fields of the request's body: `temperature`, `top_p`, `seed`, `response_format`, …. A field here
    /// replaces a field of the same name, such as `max_tokens`; null removes the field.
    pub params: Map<String, Value>,
}

/// Returns a message part that contains an image as a data URI of the file's content. `media_type` is `image/jpeg` or
/// `image/png`.
pub fn image_part(media_type: &str, base64: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:{media_type};base64,{base64}")}})
}

/// The size of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PromptSize {
    text_bytes: u64,
    messages: u64,
    images: u64,
}

impl PromptSize {
    pub fn of_messages(messages: &[Value]) -> Self {
        let mut size = Self { messages: messages.len() as u64, ..Self::default() };
        messages.iter().for_each(|message| size.add(message));
        size
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text_bytes += text.len() as u64,
            Value::Array(values) => values.iter().for_each(|value| self.add(value)),
            Value::Object(fields) => match fields.get("type").and_then(Value::as_str) {
                Some("image_url" | "image") => self.images += 1,
                _ => fields.values().for_each(|value| self.add(value)),
            },
            _ => {}
        }
    }

    /// Upper bound of the prompt's tokens: each token stands for at least one byte of text.
    pub fn max_tokens(&self, image_tokens: u32) -> u64 {
        self.fixed(image_tokens) + self.text_bytes
    }

    /// The approximate number of tokens of the prompt.
    pub fn estimated_tokens(&self, image_tokens: u32) -> u64 {
        self.fixed(image_tokens) + self.text_bytes / BYTES_PER_TOKEN
    }

    fn fixed(&self, image_tokens: u32) -> u64 {
        max_template_tokens(self.messages) + self.images * u64::from(image_tokens)
    }
}

impl ChatRequest {
    /// The body of the HTTP request.
    pub(crate) fn request_body(&self, model: &str) -> Value {
        let mut body = json!({"model": model, "messages": self.messages, "max_tokens": self.max_tokens});
        if let Value::Object(fields) = &mut body {
            fields.extend(self.params.clone());
            // A parameter whose value is null removes the field.
            fields.retain(|_, value| !value.is_null());
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_counts_text_and_images_but_not_the_bytes_of_images() {
        let image = image_part("image/jpeg", &"A".repeat(10_000));
        let messages = [
            json!({"role": "system", "content": "Answer."}),
            json!({"role": "user", "content": [{"type": "text", "text": "What is it?"}, image.clone(), image]}),
        ];
        let size = PromptSize::of_messages(&messages);
        assert_eq!(size.images, 2);
        // Roles and the types of content parts are included, because the size is an upper bound.
        assert!((18..60).contains(&size.text_bytes), "{size:?}");
        assert_eq!(size.max_tokens(100), 64 + 2 * 16 + 200 + size.text_bytes);
        assert!(size.estimated_tokens(100) < size.max_tokens(100));
    }

    #[test]
    fn params_are_fields_of_the_body() {
        let params = json!({"temperature": 0.01, "seed": 7, "n": null}).as_object().unwrap().clone();
        let request = ChatRequest { messages: vec![json!({"role": "user", "content": "a"})], max_tokens: 9, params };
        let body = request.request_body("m");
        assert_eq!((&body["model"], &body["max_tokens"], &body["seed"]), (&json!("m"), &json!(9), &json!(7)));
        assert!(body.get("n").is_none());
    }
}
