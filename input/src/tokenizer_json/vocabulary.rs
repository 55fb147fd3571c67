//! The tokens of a vocabulary with their ids. To save memory, all tokens are in one text with two tables, instead of
//! two strings per token.

use std::fmt;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{MAX_STRING_BYTES, Text};

/// Ids must be smaller than this. The largest published vocabularies have 262 144 tokens.
const MAX_IDS: u32 = 1 << 21;

/// Tokens and their ids. Each token has one id, and each id has at most one token.
#[derive(Default)]
pub(super) struct Vocabulary {
    /// The texts of all tokens, one after another.
    text: String,
    /// For each id, the byte range of its token in `text`; `None` for an id without a token.
    places: Vec<Option<Place>>,
    /// A hash table of the tokens, for looking up an id by the token's text.
    tokens: HashTable<Entry>,
    hasher: DefaultHashBuilder,
}

/// A range of bytes of [`Vocabulary::text`].
#[derive(Clone, Copy)]
struct Place {
    start: u32,
    length: u16,
}

/// A token with its id.
#[derive(Clone, Copy)]
struct Entry {
    place: Place,
    id: u32,
}

impl Vocabulary {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The largest id; `None` if the vocabulary has no token.
    pub fn largest_id(&self) -> Option<u32> {
        self.places.len().checked_sub(1).map(|id| id as u32)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        let is_it = |entry: &Entry| text_at(&self.text, entry.place) == token;
        self.tokens.find(self.hasher.hash_one(token), is_it).map(|entry| entry.id)
    }

    /// The token with this id.
    pub fn token(&self, id: u32) -> Option<&str> {
        let place = (*self.places.get(id as usize)?)?;
        Some(text_at(&self.text, place))
    }

    /// All tokens with their ids, in the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.places.len() as u32).filter_map(|id| Some((self.token(id)?, id)))
    }

    /// Builds the tables for the tokens at `entries` in `text`. The error says what is wrong with a token.
    fn new(text: String, entries: &[Entry]) -> Result<Self, String> {
        let ids = entries.iter().map(|entry| entry.id as usize + 1).max().unwrap_or(0);
        let mut places = vec![None; ids];
        let mut tokens = HashTable::with_capacity(entries.len());
        let hasher = DefaultHashBuilder::default();
        for &entry in entries {
            let token = text_at(&text, entry.place);
            if let Some(other) = places[entry.id as usize].replace(entry.place) {
                let other = text_at(&text, other);
                return Err(format!("the tokens `{other}` and `{token}` have the same id, {}", entry.id));
            }
            let hash = hasher.hash_one(token);
            if tokens.find(hash, |other: &Entry| text_at(&text, other.place) == token).is_some() {
                return Err(format!("the token `{token}` is in the vocabulary twice"));
            }
            tokens.insert_unique(hash, entry, |entry| hasher.hash_one(text_at(&text, entry.place)));
        }
        Ok(Self { text, places, tokens, hasher })
    }
}

fn text_at(text: &str, place: Place) -> &str {
    &text[place.start as usize..][..usize::from(place.length)]
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary, a map from tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut tokens: A) -> Result<Vocabulary, A::Error> {
                let (mut text, mut entries) = (String::new(), Vec::new());
                while let Some((Text(token), id)) = tokens.next_entry::<Text<'de>, u32>()? {
                    let length = u16::try_from(token.len()).ok().filter(|&n| usize::from(n) <= MAX_STRING_BYTES);
                    let (Some(length), Ok(start)) = (length, u32::try_from(text.len())) else {
                        return Err(A::Error::custom(super::oversized_token(token.len())));
                    };
                    if id >= MAX_IDS {
                        let most = MAX_IDS - 1;
                        return Err(A::Error::custom(format!("the id {id} of `{token}` is above the limit of {most}")));
                    }
                    text.push_str(&token);
                    entries.push(Entry { place: Place { start, length }, id });
                }
                Vocabulary::new(text, &entries).map_err(A::Error::custom)
            }
        }
        from.deserialize_map(Tokens)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_and_ids_are_found_both_ways(tokens in prop::collection::hash_map("\\PC{0,6}", 0u32..300, 0..60)) {
            let mut of_id = HashMap::new();
            let unique: HashMap<_, _> = tokens.into_iter().filter(|(t, id)| of_id.insert(*id, t.clone()).is_none()).collect();
            let of_id: HashMap<u32, String> = unique.iter().map(|(t, id)| (*id, t.clone())).collect();
            let json = serde_json::to_vec(&unique).unwrap();
            let vocabulary: Vocabulary = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(vocabulary.len(), unique.len());
            prop_assert_eq!(vocabulary.largest_id(), of_id.keys().max().copied());
            for id in 0..301 {
                prop_assert_eq!(vocabulary.token(id), of_id.get(&id).map(String::as_str));
            }
            for (token, id) in &unique {
                prop_assert_eq!(vocabulary.id(token), Some(*id));
                prop_assert_eq!(vocabulary.id(&format!("{token}!")), unique.get(&format!("{token}!")).copied());
            }
            let all: HashMap<String, u32> = vocabulary.iter().map(|(t, id)| (t.to_string(), id)).collect();
            prop_assert_eq!(all, unique);
        }
    }

    #[test]
    fn ambiguous_and_oversized_vocabularies_are_refused() {
        let long = format!("{{\"{}\": 0}}", "x".repeat(MAX_STRING_BYTES + 1));
        for (json, what) in [
            (r#"{"a": 0, "a": 1}"#, "twice"),
            (r#"{"a": 7, "b": 7}"#, "the same id, 7"),
            (r#"{"a": 4294967295}"#, "above the limit"),
            (r#"{"a": -1}"#, "u32"),
            (r#"["a"]"#, "a vocabulary"),
            (&long, "above the limit"),
        ] {
            let error = serde_json::from_str::<Vocabulary>(json).err().unwrap().to_string();
            assert!(error.contains(what), "{json}: {error}");
        }
    }
}
