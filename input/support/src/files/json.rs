//! JSON objects that a run records. They contain their own fingerprint and no secrets of the user.

use crate::diagnostic::redact_urls;
use serde_json::Value;

use crate::files::fingerprint::bytes_fingerprint;

/// The key of a JSON object that holds the fingerprint of its other keys.
pub const DIGEST_KEY: &str = "digest";

/// Adds the fingerprint of a JSON object to the object, under the key `digest`.
pub fn with_digest(mut object: Value) -> Value {
    if let Value::Object(map) = &mut object {
        map.shift_remove(DIGEST_KEY);
        let digest = bytes_fingerprint(Value::Object(map.clone()).to_string().as_bytes());
        map.insert(DIGEST_KEY.into(), Value::String(digest));
    }
    object
}

/// Tells whether the keys of a JSON object have the fingerprint under its key `digest`. True if the key is missing,
/// because earlier versions wrote none.
pub fn has_valid_digest(object: &Value) -> bool {
    object.get(DIGEST_KEY).is_none() || with_digest(object.clone())[DIGEST_KEY] == object[DIGEST_KEY]
}

/// Removes user names, passwords and queries from the URLs in all texts of a JSON value.
pub fn redact_urls_in_json(value: &mut Value) {
    match value {
        Value::String(text) => *text = redact_urls(text),
        Value::Array(list) => list.iter_mut().for_each(redact_urls_in_json),
        Value::Object(map) => map.values_mut().for_each(redact_urls_in_json),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Tells whether a run's options contain a shell command of the user. Such commands may contain secrets, so only the
/// user may read files that contain them.
pub fn contains_commands(options: &Value) -> bool {
    options.get("reward_command").is_some_and(|command| !command.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_object_carries_its_own_digest() {
        let object = serde_json::json!({"a": 0.1, "b": [1e300, -0.0, 7], "c": {"d": "x"}});
        let protected = with_digest(object.clone());
        let read: Value = serde_json::from_str(&format!("{protected:#}")).unwrap();
        assert!(has_valid_digest(&read) && has_valid_digest(&object));
        let mut other = read.clone();
        other["c"]["d"] = "y".into();
        assert!(!has_valid_digest(&other));
    }
}
