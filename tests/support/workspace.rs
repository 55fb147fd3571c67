//! A model folder whose files a test can damage.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{FinishedRun, file_names_in, run_in, tiny_model};

/// A folder with a tiny model whose files a test can damage.
pub struct ModelWorkspace {
    pub dir: tempfile::TempDir,
}

impl ModelWorkspace {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        tiny_model(dir.path());
        Self { dir }
    }

    pub fn model_file(&self, file: &str) -> PathBuf {
        self.dir.path().join("tiny").join(file)
    }

    pub fn run_score(&self) -> FinishedRun {
        let messages = self.dir.path().join("m.json");
        fs::write(&messages, "[{\"role\": \"user\", \"content\": \"x\"}]").expect("written");
        let got =
            run_in(self.dir.path(), ["score", "--model", "tiny", "--messages", "m.json", "--out", "s.safetensors"]);
        let left = file_names_in(self.dir.path());
        assert!(got.code == Some(0) || left.iter().all(|n| !n.contains("s.safetensors")), "left behind: {left:?}");
        got
    }

    /// Changes a JSON file of the model folder.
    pub fn edit_json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let text = fs::read_to_string(self.model_file(file)).expect("a file");
        let mut value: Value = serde_json::from_str(&text).expect("JSON");
        change(&mut value);
        fs::write(self.model_file(file), value.to_string()).expect("written");
    }

    /// Sets the number of positions in the model's config.
    pub fn set_positions(&self, positions: usize) {
        self.edit_json("config.json", |config| {
            config["max_position_embeddings"] = positions.into();
            if let Some(text) = config.get_mut("text_config") {
                text["max_position_embeddings"] = positions.into();
            }
        });
    }

    /// Changes the JSON header and the data of the weights file.
    pub fn edit_weights(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let bytes = fs::read(self.model_file("model.safetensors")).expect("weights");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
        let mut data = bytes[8 + length..].to_vec();
        change(&mut header, &mut data);
        let mut text = header.to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let parts = [&(text.len() as u64).to_le_bytes()[..], &text, &data];
        fs::write(self.model_file("model.safetensors"), parts.concat()).expect("written");
    }
}
