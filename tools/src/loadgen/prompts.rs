//! Prompts of random words, and the bodies of the requests that carry them.

use hyper::body::Bytes;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::loadgen::settings::{LoadSettings, OpenAiApi};

/// Common English words. With a space before it, each word is one token for the tokenizers of most models.
const WORDS: [&str; 128] = [
    "about", "after", "again", "air", "all", "also", "and", "animal", "any", "area", "back", "ball", "bank", "base",
    "bed", "best", "big", "bird", "black", "blue", "boat", "body", "book", "box", "boy", "bread", "bridge", "but",
    "call", "car", "care", "case", "city", "class", "clean", "clear", "cold", "come", "cost", "could", "country",
    "cut", "dark", "day", "deep", "door", "down", "dry", "each", "early", "earth", "east", "eat", "end", "even", "eye",
    "face", "fact", "fall", "far", "farm", "fast", "feel", "few", "field", "find", "fire", "fish", "food", "foot",
    "for", "form", "four", "free", "from", "full", "game", "get", "girl", "give", "glass", "gold", "good", "grass",
    "great", "green", "ground", "group", "hand", "hard", "have", "head", "help", "high", "hill", "home", "horse",
    "hot", "hour", "house", "ice", "idea", "job", "keep", "kind", "king", "land", "large", "last", "law", "leaf",
    "left", "life", "light", "line", "long", "low", "man", "many", "map", "mind", "moon", "more", "most", "name",
    "near", "new", "night",
];

/// Fields of a request that the options of a run set; `--extra-body` may not set them.
const OWN_FIELDS: [&str; 7] = ["messages", "prompt", "model", "stream", "stream_options", "max_tokens", "ignore_eos"];

/// Makes the bodies of a run's requests.
///
/// All bodies of a run are equal except for the text of the prompt, so the bytes before and after this text are made
/// once. Media can be large, and copying them for each request would delay the reading of other requests' events.
#[derive(Debug)]
pub(crate) struct RequestBodies {
    head: Vec<u8>,
    tail: Vec<u8>,
    shared_words: Vec<&'static str>,
    own_words: usize,
    seed: u64,
}

impl RequestBodies {
    /// # Errors
    /// `extra_body` has a field that other options set, or the endpoint takes no images and videos.
    pub(crate) fn new(settings: &LoadSettings, model: &str) -> Result<Self> {
        if let Some(field) = settings.extra_body.keys().find(|field| OWN_FIELDS.contains(&field.as_str())) {
            let what = format!("has the field {field:?}, which other options set");
            return Err(Error::usage("--extra-body", what, "leave that field out"));
        }
        if settings.endpoint == OpenAiApi::Completions && !settings.media.is_empty() {
            let what = "accepts only text, but images or videos are given";
            return Err(Error::usage("--endpoint completions", what, "use --endpoint chat"));
        }
        let mut fields = Map::new();
        fields.insert("model".into(), json!(model));
        fields.insert("max_tokens".into(), json!(settings.output_tokens));
        fields.insert("stream".into(), json!(true));
        fields.insert("stream_options".into(), json!({"include_usage": true}));
        if settings.ignore_eos {
            fields.insert("ignore_eos".into(), json!(true));
        }
        fields.extend(settings.extra_body.clone());
        let (before, after) = around_prompt(settings);
        let fields = Value::Object(fields).to_string();
        Ok(Self {
            head: format!("{{{before}").into_bytes(),
            tail: format!("{after},{}", &fields[1..]).into_bytes(),
            shared_words: words(settings.shared_prefix_tokens, settings.seed, 0),
            own_words: settings.prompt_tokens,
            seed: settings.seed,
        })
    }

    /// The body of the request with this number. Apart from the shared prefix, each number has its own random words.
    pub(crate) fn body(&self, number: u64) -> Bytes {
        let mut all = self.shared_words.clone();
        all.extend(words(self.own_words, self.seed, number + 1));
        let text = Value::String(all.join(" ")).to_string();
        [self.head.as_slice(), text.as_bytes(), &self.tail].concat().into()
    }
}

/// The JSON of a request before and after the text of the prompt.
fn around_prompt(settings: &LoadSettings) -> (String, &'static str) {
    if settings.endpoint == OpenAiApi::Completions {
        return ("\"prompt\":".to_string(), "");
    }
    let message = "\"messages\":[{\"role\":\"user\",\"content\":";
    if settings.media.is_empty() {
        return (message.to_string(), "}]");
    }
    let parts: String = settings.media.iter().map(|media| format!("{},", media.message_part())).collect();
    (format!("{message}[{parts}{{\"type\":\"text\",\"text\":"), "}]}]")
}

/// `n` random words. Each seed and stream gives another sequence of words.
fn words(n: usize, seed: u64, stream: u64) -> Vec<&'static str> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    (0..n).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::media::{MediaFile, MediaKind};
    use crate::loadgen::settings::tests::settings;

    fn parsed(bodies: &RequestBodies, number: u64) -> Value {
        serde_json::from_slice(&bodies.body(number)).unwrap()
    }

    #[test]
    fn bodies_carry_the_settings_and_words_of_their_own() {
        let mut settings = LoadSettings { shared_prefix_tokens: 5, prompt_tokens: 20, ..settings() };
        settings.extra_body.insert("temperature".into(), json!(0.5));
        let bodies = RequestBodies::new(&settings, "m \"1\"").unwrap();
        let (a, b) = (parsed(&bodies, 0), parsed(&bodies, 1));
        assert_eq!(a["model"], "m \"1\"");
        assert_eq!((&a["max_tokens"], &a["temperature"]), (&json!(settings.output_tokens), &json!(0.5)));
        assert_eq!((&a["stream"], &a["stream_options"]["include_usage"]), (&json!(true), &json!(true)));
        assert_eq!(a.get("ignore_eos"), None);
        let text = |body: &Value| body["messages"][0]["content"].as_str().unwrap().to_string();
        let (a, b) = (text(&a), text(&b));
        let (a, b): (Vec<&str>, Vec<&str>) = (a.split(' ').collect(), b.split(' ').collect());
        assert_eq!((a.len(), b.len(), &a[..5]), (25, 25, &b[..5]));
        assert_ne!(a[5..], b[5..]);
        let again = RequestBodies::new(&settings, "m \"1\"").unwrap();
        assert_eq!(again.body(1), bodies.body(1));
        let other = RequestBodies::new(&LoadSettings { seed: 1, ..settings }, "m \"1\"").unwrap();
        assert_ne!(other.body(1), bodies.body(1));
    }

    #[test]
    fn media_come_before_the_text_and_completions_have_a_prompt() {
        let image = MediaFile { kind: MediaKind::Image, bytes: b"BM".as_slice().into() };
        let settings = LoadSettings { media: vec![image.clone(), image], ignore_eos: true, ..settings() };
        let body = parsed(&RequestBodies::new(&settings, "m").unwrap(), 0);
        let parts = body["messages"][0]["content"].as_array().unwrap();
        let types: Vec<&Value> = parts.iter().map(|part| &part["type"]).collect();
        assert_eq!(types, ["image_url", "image_url", "text"]);
        assert_eq!(body["ignore_eos"], true);
        let mut plain = LoadSettings { endpoint: OpenAiApi::Completions, ..settings };
        let refused = RequestBodies::new(&plain, "m").unwrap_err().to_string();
        assert!(refused.starts_with("--endpoint completions: "), "{refused}");
        plain.media.clear();
        let body = parsed(&RequestBodies::new(&plain, "m").unwrap(), 0);
        assert_eq!(body["prompt"].as_str().unwrap().split(' ').count(), plain.prompt_tokens);
        plain.extra_body.insert("stream".into(), json!(false));
        let refused = RequestBodies::new(&plain, "m").unwrap_err().to_string();
        assert!(refused.starts_with("--extra-body: has the field \"stream\""), "{refused}");
    }
}
