//! Typed getters for the fields of a JSON config file. Errors name the file, the key path, what is wrong and what to
//! do.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The largest accepted whole number. A larger one is surely a mistake in the file, and the limit keeps a product of
/// two such numbers within 64 bits.
const MAX_SIZE: u64 = 1 << 31;

/// A JSON object of a config file; errors name its file and its key path. A getter fails if the value has another type,
/// or if a required key is absent or null.
#[derive(Debug)]
pub struct JsonFields {
    file: String,
    path: String,
    map: Map<String, Value>,
    help: &'static str,
}

impl JsonFields {
    /// Parses `text`, which must be a JSON object. `help` is the advice in all errors that are made by
    /// [`JsonFields::error`].
    pub fn parse(file: &str, text: &str, help: &'static str) -> Result<Self> {
        let location = file.to_string();
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { file: location, path: String::new(), map, help }),
            Ok(_) => Err(Error::input(location, "is not a JSON object", help)),
            Err(e) => Err(Error::input(location, format!("is not JSON ({e})"), help)),
        }
    }

    /// An error about the value of `key`, with the advice that was given to [`JsonFields::parse`].
    pub fn error(&self, key: &str, what: impl Into<String>) -> Error {
        self.error_with_help(key, what, self.help)
    }

    /// An error about the value of `key`, with `help` as advice.
    pub fn error_with_help(&self, key: &str, what: impl Into<String>, help: &str) -> Error {
        Error::input(format!("{}: {}", self.file, self.path_of(key)), what, help)
    }

    /// Returns `FILE: KEY WHAT`, the text of a note about the value of `key`.
    pub fn error_text(&self, key: &str, what: &str) -> String {
        format!("{}: {} {what}", self.file, self.path_of(key))
    }

    /// The path of a key from the top of the file, such as `text_config.dtype`.
    pub fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The file and the path of this object, for messages.
    pub fn location(&self) -> String {
        match self.path.strip_suffix('.') {
            Some(path) => format!("{}: {path}", self.file),
            None => self.file.clone(),
        }
    }

    /// The value of a key; `None` if it is absent or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key has a value other than null.
    pub fn has_key(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The keys of the object.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The object under a key; `None` if it is absent or null.
    pub fn opt_object(&self, key: &str) -> Result<Option<Self>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let path = format!("{}{key}.", self.path);
                Ok(Some(Self { file: self.file.clone(), path, map: map.clone(), help: self.help }))
            }
            Some(other) => Err(self.error(key, format!("is {}, not an object", kind(other)))),
        }
    }

    /// The object under a key; an empty object if the key is absent or null.
    pub fn object_or_empty(&self, key: &str) -> Result<Self> {
        let empty =
            || Self { file: self.file.clone(), path: format!("{}{key}.", self.path), map: Map::new(), help: self.help };
        Ok(self.opt_object(key)?.unwrap_or_else(empty))
    }

    /// The string under a key; `None` if it is absent or null.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, format!("is {}, not a string", kind(other)))),
        }
    }

    /// The boolean under a key; `None` if it is absent or null.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(key, format!("is {}, not true or false", kind(other)))),
        }
    }

    /// The whole number of at least 0 under a key; `None` if it is absent or null.
    pub fn opt_int(&self, key: &str) -> Result<Option<usize>> {
        self.value(key).map(|value| self.to_index(key, value)).transpose()
    }

    /// The whole number of at least 0 under a key.
    pub fn int(&self, key: &str) -> Result<usize> {
        self.opt_int(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// The whole number of at least 1 under a key; `None` if it is absent or null.
    pub fn opt_positive_int(&self, key: &str) -> Result<Option<usize>> {
        match self.opt_int(key)? {
            Some(0) => Err(self.error(key, "is 0, expected at least 1")),
            found => Ok(found),
        }
    }

    /// The whole number of at least 1 under a key.
    pub fn positive_int(&self, key: &str) -> Result<usize> {
        self.opt_positive_int(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// The whole number from 1 to `max` under a key; `None` if the key is absent or null.
    pub fn opt_int_up_to(&self, key: &str, max: usize) -> Result<Option<usize>> {
        match self.opt_positive_int(key)? {
            Some(number) if number > max => Err(self.error(key, format!("is {number}; at most {max} is supported"))),
            found => Ok(found),
        }
    }

    /// The finite number under a key; `None` if it is absent or null.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(self.error(key, format!("is {}, not a finite number", kind(value)))),
            },
        }
    }

    /// The number above 0 under a key.
    pub fn positive_f64(&self, key: &str) -> Result<f64> {
        match self.opt_f64(key)? {
            None => Err(self.error(key, "is missing")),
            Some(number) if number > 0.0 => Ok(number),
            Some(number) => Err(self.error(key, format!("is {number}, expected a number above 0"))),
        }
    }

    /// The list of whole numbers under a key.
    pub fn int_list(&self, key: &str) -> Result<Vec<usize>> {
        match self.value(key) {
            None => Err(self.error(key, "is missing")),
            Some(Value::Array(items)) => items.iter().map(|item| self.to_index(key, item)).collect(),
            Some(other) => Err(self.error(key, format!("is {}, not a list of whole numbers", kind(other)))),
        }
    }

    /// The whole numbers under a key, which may be one number or a list; empty if the key is absent or null.
    pub fn int_or_int_list(&self, key: &str) -> Result<Vec<usize>> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(_)) => self.int_list(key),
            Some(value) => Ok(vec![self.to_index(key, value)?]),
        }
    }

    /// The list of numbers under a key; `None` if it is absent or null.
    pub fn opt_f64_list(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|items| items.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.error(key, format!("is {}, not a list of numbers", kind(value)))),
        }
    }

    /// The list of strings under a key; `None` if it is absent or null.
    pub fn opt_strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|items| {
            items.iter().map(|item| item.as_str().map(str::to_string)).collect::<Option<Vec<String>>>()
        });
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => Err(self.error(key, format!("is {}, not a list of strings", kind(value)))),
        }
    }

    fn to_index(&self, key: &str, value: &Value) -> Result<usize> {
        // Some programs write whole numbers as floats, such as 28.0.
        let whole = value.as_u64().or_else(|| {
            value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=MAX_SIZE as f64).contains(x)).map(|x| x as u64)
        });
        match whole {
            Some(number) if number <= MAX_SIZE => Ok(number as usize),
            Some(number) => Err(self.error(key, format!("is {number}; at most {MAX_SIZE} is supported"))),
            None => Err(self.error(key, format!("is {}, not a whole number of at least 0", kind(value)))),
        }
    }
}

/// Describes a value of the wrong type in words, for an error message.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("the string `{}`", text.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    }
}
