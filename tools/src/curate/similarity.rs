//! The similarity of chains of thought with the frames of their videos, computed by a model of texts and images
//! (SigLIP). Computed values are kept in `OUT/similarity.jsonl`, so that a resumed run does not compute them again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use reel_input::media::frames::FrameBuf;
use reel_samples::rewards::{reasoning_text, semantic_reward};
use reel_support::diagnostic::input;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::curate::complete_file::cannot_write_curation;
use crate::curate::prompts::hex;
use crate::error::Result;

/// A model that compares texts with frames.
pub trait VisualSimilarity {
    /// Identifies the model and its weights. Stored values that another model computed are not used.
    fn id(&self) -> &str;

    /// The cosine similarity of a text with each frame.
    ///
    /// # Errors
    /// The model fails; the message is one line.
    fn cosines(&mut self, text: &str, frames: &FrameBuf) -> Result<Vec<f32>, String>;
}

/// The similarity of a chain of thought (a text with its tags) with frames: VideoRFT's semantic reward, which is the
/// mean over the frames of min(1, 2 max(cos, 0)). The first sentence of the chain is left out.
///
/// # Errors
/// The model fails.
pub fn chain_similarity(model: &mut dyn VisualSimilarity, chain: &str, frames: &FrameBuf) -> Result<f32, String> {
    Ok(semantic_reward(&model.cosines(reasoning_text(chain), frames)?))
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// SHA-256 of model, row and chain.
    key: String,
    similarity: f32,
}

/// The similarities that earlier runs and this run have computed.
#[derive(Debug)]
pub struct SimilarityCache {
    path: PathBuf,
    known: HashMap<String, f32>,
    file: Option<File>,
}

impl SimilarityCache {
    /// Reads the values of earlier runs. A line that cannot be read is skipped, and its value is computed again when it
    /// is needed.
    pub fn open(out: &Path) -> Self {
        let path = out.join("similarity.jsonl");
        let text = input::read_file(&path, input::MAX_ROWS_BYTES).unwrap_or_default();
        let lines = text.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        Self { known: lines.map(|line| (line.key, line.similarity)).collect(), path, file: None }
    }

    /// The similarity of a chain. Returns the stored value if there is one. Otherwise calls `compute` and stores the
    /// result.
    ///
    /// # Errors
    /// The file cannot be written. `compute` fails: its error is the inner `Err`.
    pub fn get_or_compute(
        &mut self,
        model: &str,
        row: &str,
        chain: &str,
        compute: impl FnOnce() -> Result<f32, String>,
    ) -> Result<Result<f32, String>> {
        let key = hex(&Sha256::digest(format!("{model}\0{row}\0{chain}").as_bytes()));
        if let Some(known) = self.known.get(&key) {
            return Ok(Ok(*known));
        }
        let similarity = match compute() {
            Ok(similarity) => similarity,
            Err(what) => return Ok(Err(what)),
        };
        let failed = |e| cannot_write_curation(&self.path, &e);
        let line = Line { key, similarity };
        // Each line begins with a line break, so that it is not joined to an incomplete line that a killed process
        // has left.
        let text = format!("\n{}", serde_json::to_string(&line).map_err(|e| failed(e.into()))?);
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().append(true).create(true).open(&self.path).map_err(failed)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(text.as_bytes()).map_err(failed)?;
        }
        self.known.insert(line.key, similarity);
        Ok(Ok(similarity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_computed_once_per_model_row_and_chain() {
        let dir = tempfile::tempdir().unwrap();
        let mut computed = 0;
        for (model, row, chain, count) in
            [("m", "1", "a", 1), ("m", "1", "a", 1), ("n", "1", "a", 2), ("m", "2", "a", 3), ("m", "1", "b", 4)]
        {
            let mut known = SimilarityCache::open(dir.path());
            let value = known.get_or_compute(model, row, chain, || {
                computed += 1;
                Ok(0.1 + 0.2 * count as f32)
            });
            assert_eq!((value.unwrap(), computed), (Ok(0.1 + 0.2 * count as f32), count));
            // A line that was cut short.
            let mut file = OpenOptions::new().append(true).open(dir.path().join("similarity.jsonl")).unwrap();
            file.write_all(b"\n{\"key\": \"x").unwrap();
        }
        let failed = SimilarityCache::open(dir.path()).get_or_compute("m", "9", "a", || Err("no frames".into()));
        assert_eq!(failed.unwrap(), Err("no frames".to_string()));
    }
}
