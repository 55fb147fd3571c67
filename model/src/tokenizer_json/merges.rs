//! Checks that the merges of a tokenizer.json fit its vocabulary.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// What the merges of a byte-pair encoding need of its vocabulary. The tokenizer joins the parts of each merge in a
/// buffer that is as long as the longest token, and panics if they do not fit.
#[derive(Default, Deserialize)]
pub(super) struct Merges {
    #[serde(default, rename = "vocab")]
    longest_token: LongestToken,
    #[serde(default, rename = "merges")]
    parts: MergedParts,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

impl Merges {
    /// Returns what is wrong with the merges.
    pub fn check(&self) -> Result<(), String> {
        let prefix = self.continuing_subword_prefix.as_deref().unwrap_or_default();
        // The second part of a merge loses the prefix.
        if !prefix.is_empty() && self.parts.common_prefix.as_ref().is_some_and(|common| !common.starts_with(prefix)) {
            return Err(format!(
                "has a merge whose second part does not begin with the continuing_subword_prefix `{prefix}`"
            ));
        }
        match self.longest_token.0 {
            Some(longest) if self.parts.longest > longest + prefix.len() => {
                Err("has a merge whose result is longer than every token of the vocabulary".into())
            }
            _ => Ok(()),
        }
    }
}

/// The length in bytes of the longest token of a vocabulary; `None` if the vocabulary is not a map of tokens.
#[derive(Default)]
struct LongestToken(Option<usize>);

impl<'de> Deserialize<'de> for LongestToken {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = LongestToken;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut tokens: A) -> Result<LongestToken, A::Error> {
                let mut longest = 0;
                while let Some((token, _)) = tokens.next_entry::<Text<'de>, IgnoredAny>()? {
                    longest = longest.max(token.0.len());
                }
                Ok(LongestToken(Some(longest)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<LongestToken, A::Error> {
                while tokens.next_element::<IgnoredAny>()?.is_some() {}
                Ok(LongestToken(None))
            }
        }
        from.deserialize_any(Tokens)
    }
}

/// The parts of all merges of a byte-pair encoding.
#[derive(Default)]
struct MergedParts {
    /// The largest length in bytes of the two parts of a merge together.
    longest: usize,
    /// The longest prefix that all second parts have in common; `None` without merges.
    common_prefix: Option<String>,
}

impl MergedParts {
    fn add(&mut self, first: &str, second: &str) {
        self.longest = self.longest.max(first.len() + second.len());
        match &mut self.common_prefix {
            Some(prefix) => {
                let same = prefix.char_indices().zip(second.chars()).take_while(|((_, a), b)| a == b);
                let length = same.last().map_or(0, |((at, c), _)| at + c.len_utf8());
                prefix.truncate(length);
            }
            None => self.common_prefix = Some(second.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for MergedParts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Lines;
        impl<'de> Visitor<'de> for Lines {
            type Value = MergedParts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_unit<E>(self) -> Result<MergedParts, E> {
                Ok(MergedParts::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> Result<MergedParts, A::Error> {
                let mut parts = MergedParts::default();
                while let Some(merge) = lines.next_element::<Merge<'de>>()? {
                    match &merge {
                        Merge::Pair(Text(first), Text(second)) => parts.add(first, second),
                        Merge::Line(line) => {
                            let (first, second) = line.split_once(' ').unwrap_or((line, ""));
                            parts.add(first, second);
                        }
                    }
                }
                Ok(parts)
            }
        }
        from.deserialize_any(Lines)
    }
}

/// A merge in either of the two forms that files have: `["a", "b"]` or `"a b"`.
enum Merge<'a> {
    Pair(Text<'a>, Text<'a>),
    Line(Cow<'a, str>),
}

impl<'de> Deserialize<'de> for Merge<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct PairOrLine;
        impl<'de> Visitor<'de> for PairOrLine {
            type Value = Merge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens")
            }

            fn visit_borrowed_str<E>(self, line: &'de str) -> Result<Merge<'de>, E> {
                Ok(Merge::Line(line.into()))
            }

            fn visit_str<E>(self, line: &str) -> Result<Merge<'de>, E> {
                Ok(Merge::Line(line.to_string().into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Merge<'de>, A::Error> {
                let mut part = || parts.next_element()?.ok_or_else(|| A::Error::custom("a merge has two tokens"));
                let pair = Merge::Pair(part()?, part()?);
                match parts.next_element::<IgnoredAny>()? {
                    Some(_) => Err(A::Error::custom("a merge has two tokens")),
                    None => Ok(pair),
                }
            }
        }
        from.deserialize_any(PairOrLine)
    }
}

/// A string of the file; only one with escapes is copied.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    #[test]
    fn merges_that_do_not_fit_the_vocabulary_are_refused() {
        let check = |vocab: &[&str], merges: Value, prefix: Value| {
            let vocab: Map<String, Value> = vocab.iter().map(|token| (token.to_string(), json!(0))).collect();
            let model = json!({"vocab": vocab, "merges": merges, "continuing_subword_prefix": prefix});
            serde_json::from_str::<Merges>(&model.to_string()).map_err(|e| e.to_string())?.check()
        };
        assert_eq!(check(&["a", "b", "ab"], json!(["a b"]), json!(null)), Ok(()));
        assert_eq!(check(&["a", "b", "ab"], json!([["a", "b"]]), json!("")), Ok(()));
        assert_eq!(check(&["a", "\n", "a\n"], json!([["a", "\n"]]), json!("")), Ok(()));
        assert_eq!(check(&["a", "##b", "ab"], json!([["a", "##b"]]), json!("##")), Ok(()));
        for (vocab, merges, prefix) in [
            (["a", "b"].as_slice(), json!(["a b"]), json!(null)),
            (&["a", "b"], json!([["a", "b"]]), json!(null)),
            (&["a", "b", "ab"], json!(["a b"]), json!("##")),
            (&["a", "b", "ab"], json!([["a", "b", "ab"]]), json!(null)),
            (&["a", "b", "ab"], json!([["a"]]), json!(null)),
        ] {
            let error = check(vocab, merges.clone(), prefix).unwrap_err();
            assert!(error.contains("merge"), "{merges}: {error}");
        }
        assert_eq!(serde_json::from_str::<Merges>(r#"{"vocab": [["a", 0.0]]}"#).unwrap().check(), Ok(()));
    }
}
