//! Typed getters for the fields of a JSON config file. Errors name the file, the key path, what is wrong and what to
//! do.

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// The largest accepted size. Larger ones are errors in the file; the limit also keeps a product of two sizes within 64
/// bits.
const MAX_SIZE: u64 = 1 << 31;

/// A JSON object, with its file and key path for errors.
pub(crate) struct Fields {
    file: String,
    path: String,
    map: Map<String, Value>,
    help: &'static str,
}

impl Fields {
    /// Parses `text`, which must be a JSON object. `help` is the advice of most errors.
    pub(crate) fn parse(file: &str, text: &str, help: &'static str) -> Result<Self> {
        let location = file.to_string();
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { file: location, path: String::new(), map, help }),
            Ok(_) => Err(ModelError::config(location, "is not a JSON object", help)),
            Err(e) => Err(ModelError::config(location, format!("is not JSON ({e})"), help)),
        }
    }

    /// An error at `key` with the usual advice.
    pub(crate) fn error(&self, key: &str, what: impl Into<String>) -> ModelError {
        self.fault(key, what, self.help)
    }

    /// An error at `key` with its own advice.
    pub(crate) fn fault(&self, key: &str, what: impl Into<String>, help: &str) -> ModelError {
        ModelError::config(format!("{}: {}{key}", self.file, self.path), what, help)
    }

    /// The value of a key; `None` if it is absent or null.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(crate) fn child(&self, key: &str) -> Result<Option<Self>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let path = format!("{}{key}.", self.path);
                Ok(Some(Self { file: self.file.clone(), path, map: map.clone(), help: self.help }))
            }
            Some(other) => Err(self.error(key, format!("is {}, not an object", kind(other)))),
        }
    }

    pub(crate) fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, format!("is {}, not a string", kind(other)))),
        }
    }

    pub(crate) fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(key, format!("is {}, not true or false", kind(other)))),
        }
    }

    /// A whole number of at least 0.
    pub(crate) fn opt_index(&self, key: &str) -> Result<Option<usize>> {
        self.value(key).map(|value| self.to_index(key, value)).transpose()
    }

    pub(crate) fn index(&self, key: &str) -> Result<usize> {
        self.opt_index(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A whole number of at least 1.
    pub(crate) fn opt_count(&self, key: &str) -> Result<Option<usize>> {
        match self.opt_index(key)? {
            Some(0) => Err(self.error(key, "is 0, expected at least 1")),
            found => Ok(found),
        }
    }

    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        self.opt_count(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn opt_count_to(&self, key: &str, max: usize) -> Result<Option<usize>> {
        match self.opt_count(key)? {
            Some(number) if number > max => Err(self.error(key, format!("is {number}; at most {max} is supported"))),
            found => Ok(found),
        }
    }

    pub(crate) fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(self.error(key, format!("is {}, not a finite number", kind(value)))),
            },
        }
    }

    /// A number above 0.
    pub(crate) fn positive(&self, key: &str) -> Result<f64> {
        match self.opt_f64(key)? {
            None => Err(self.error(key, "is missing")),
            Some(number) if number > 0.0 => Ok(number),
            Some(number) => Err(self.error(key, format!("is {number}, expected a number above 0"))),
        }
    }

    /// A list of whole numbers.
    pub(crate) fn indexes(&self, key: &str) -> Result<Vec<usize>> {
        match self.value(key) {
            None => Err(self.error(key, "is missing")),
            Some(Value::Array(items)) => items.iter().map(|item| self.to_index(key, item)).collect(),
            Some(other) => Err(self.error(key, format!("is {}, not a list of whole numbers", kind(other)))),
        }
    }

    /// A whole number or a list of whole numbers; empty if the key is absent.
    pub(crate) fn one_or_more(&self, key: &str) -> Result<Vec<usize>> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(_)) => self.indexes(key),
            Some(value) => Ok(vec![self.to_index(key, value)?]),
        }
    }

    /// A list of numbers.
    pub(crate) fn opt_f64s(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|items| items.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.error(key, format!("is {}, not a list of numbers", kind(value)))),
        }
    }

    pub(crate) fn opt_strings(&self, key: &str) -> Result<Option<Vec<String>>> {
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
        // Some programs write whole numbers as floats.
        let whole = value.as_u64().or_else(|| {
            value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=MAX_SIZE as f64).contains(x)).map(|x| x as u64)
        });
        match whole {
            Some(number) if number <= MAX_SIZE => Ok(number as usize),
            Some(number) => Err(self.error(key, format!("is {number}, larger than any supported model"))),
            None => Err(self.error(key, format!("is {}, not a whole number of at least 0", kind(value)))),
        }
    }
}

/// The text by which an error shows a value of the wrong type.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("the string `{}`", text.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    }
}
