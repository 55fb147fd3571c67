//! Helper functions that the tests of several modules use.

use reel_input::config::ModelConfig;
use serde_json::Value;

/// The text of a small valid config.json with text keys at the top level, as on the hub.
const TINY_CONFIG: &str = include_str!("../../input/src/config/tiny.json");

/// The small config as JSON.
pub(crate) fn flat_config_json() -> Value {
    serde_json::from_str(TINY_CONFIG).expect("the test's own config is JSON")
}

/// The small config, parsed.
pub(crate) fn tiny_config() -> ModelConfig {
    ModelConfig::parse("config.json", TINY_CONFIG).expect("the test's own config is right")
}

/// A small config of Qwen3-VL, parsed.
pub(crate) fn qwen3_config() -> ModelConfig {
    let text = include_str!("../../input/src/config/tiny_qwen3.json");
    ModelConfig::parse("config.json", text).expect("the test's own config is right")
}
