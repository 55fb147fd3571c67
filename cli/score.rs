//! `reel score`: runs one forward pass and writes logits, log-probabilities and vision embeddings.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_input::tensor_file::{HeaderEntry, write_safetensors_header};
use reel_input::window::GridThw;
use reel_model::batch::Batch;
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::ForwardOptions;
use reel_runtime::{Tensor, ops};
use reel_support::files::AtomicFile;
use reel_tools::measure::trace;

use crate::common::CommonOptions;
use crate::model::LoadedModel;
use crate::output;
use crate::prompt::{MessageFlags, ModelFlags};

/// Run one forward pass over a conversation and write logits, log-probabilities and vision embeddings.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"role\": \"user\", \"content\": \"Hello\"}]' > messages.json
  reel score --model tiny --messages messages.json --out score.safetensors")]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelFlags,
    /// Model inputs as `reel preprocess` writes them, instead of messages; only `input_ids` is required
    #[arg(long, value_name = "F.safetensors", conflicts_with = "messages", required_unless_present = "messages")]
    inputs: Option<PathBuf>,
    #[command(flatten)]
    messages: MessageFlags,
    /// Safetensors file to write: `logits` f32 [S,V], `logprobs` f32 [S-1], `image_embeds` and `video_embeds` f32
    /// [n,H]; for Qwen3-VL also `image_deepstack` and `video_deepstack` f32 [features,n,H]
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

/// The outputs of the forward pass. `hidden` holds the final hidden states. Logits are computed from them while they
/// are written, a few positions at a time, because the logits of all positions may not fit into memory.
struct Scored {
    hidden: Tensor,
    /// The vision tokens of all images and of all videos, then their DeepStack features: name, shape and values.
    vision: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl ScoreArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let (base, adapter) = self.model.base_model_and_adapter_folder()?;
        let (folder, tokens) = self.tokens(&base, adapter.as_deref(), common)?;
        let config = ModelConfig::open(&folder)?;
        let model = LoadedModel::open_with_adapter(&folder, adapter.as_deref(), &config, Quantization::None, common)?;
        let place = self.inputs.as_ref().map_or("the conversation".to_string(), |p| p.display().to_string());
        let scored = trace::span("forward", || forward(&model, &tokens, &place))?;
        let mean = trace::span("logits", || self.write(&model, &tokens, &scored))?;
        if common.json {
            return output::print_json(
                &serde_json::json!({"tokens": tokens.len(), "mean_logprob": mean, "out": self.out}),
            );
        }
        if !common.quiet {
            output::print_line(format!(
                "{}: {} tokens, mean log-probability {mean:.4}",
                self.out.display(),
                tokens.len()
            ))?;
        }
        Ok(())
    }

    fn tokens(&self, base: &str, adapter: Option<&Path>, common: &CommonOptions) -> Result<(PathBuf, Arc<ModelInput>)> {
        let Some(inputs) = &self.inputs else {
            let prompt = self.messages.encode(base, adapter, common)?;
            return Ok((prompt.folder, prompt.tokens));
        };
        let folder = crate::prompt::find_or_download_model(base)?;
        let tokens = ModelInput::read(inputs, &ModelConfig::open(&folder)?)?;
        Ok((folder, Arc::new(tokens)))
    }

    /// Computes the logits of a few positions at a time and writes them. Returns the mean log-probability of the
    /// tokens.
    fn write(&self, model: &LoadedModel, tokens: &ModelInput, scored: &Scored) -> Result<f64> {
        let (rows, vocab) = (tokens.len(), model.weights.config.text.vocab_size);
        let mut entries = vec![("logits", vec![rows, vocab]), ("logprobs", vec![rows - 1])];
        entries.extend(scored.vision.iter().map(|(name, shape, _)| (name.as_str(), shape.clone())));
        let mut file = TensorWriter::begin(&self.out, &entries)?;
        let mut log_probs = Vec::with_capacity(rows);
        let most = ops::max_logit_rows(vocab);
        for start in (0..rows).step_by(most) {
            let n = most.min(rows - start);
            let logits = model.weights.logits(&model.cx, &scored.hidden.rows(start, n)?)?;
            // The last position has no next token: its target is -1, and its log-probability is removed below.
            let next: Vec<i32> =
                (start + 1..=start + n).map(|i| tokens.input_ids.get(i).map_or(-1, |&id| id as i32)).collect();
            let targets = Tensor::from_i32(model.cx.device(), &[n], &next)?;
            log_probs.extend(ops::log_prob(&model.cx, &logits, &targets, 1.0)?.0.to_f32()?);
            file.add(&logits.to_f32()?)?;
        }
        log_probs.truncate(rows - 1);
        file.add(&log_probs)?;
        scored.vision.iter().try_for_each(|(_, _, values)| file.add(values))?;
        file.commit()?;
        Ok(log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() / log_probs.len().max(1) as f64)
    }
}

fn forward(model: &LoadedModel, tokens: &ModelInput, place: &str) -> Result<Scored> {
    let (cx, weights) = (&model.cx, &model.weights);
    let batch = Batch::new(cx.device(), &weights.config, &[tokens.sequence()], place)?;
    let vision = batch.vision.as_ref().map(|input| weights.vision_tokens(cx, input)).transpose()?;
    let options = ForwardOptions { vision: vision.as_ref(), ..Default::default() };
    let hidden = weights.forward(cx, &batch, options)?;
    let Some(vision) = vision else { return Ok(Scored { hidden, vision: Vec::new() }) };
    // Vision tokens are in the order of Qwen's processor: the tokens of all images, then the tokens of all videos.
    let merged = |grids: &[GridThw]| {
        grids.iter().map(|g| g.iter().product::<usize>()).sum::<usize>()
            / weights.config.vision.patches_per_vision_token()
    };
    let (images, all) = (merged(&tokens.image_grid_thw), vision.embeddings.shape()[0]);
    let width = weights.config.text.hidden_size;
    let kinds = [("image", 0..images), ("video", images..all)].into_iter().filter(|(_, rows)| !rows.is_empty());
    let values = |part: &Tensor, rows: &Range<usize>| part.rows(rows.start, rows.len())?.to_f32();
    let mut outputs = Vec::new();
    for (kind, rows) in kinds.clone() {
        outputs.push((format!("{kind}_embeds"), vec![rows.len(), width], values(&vision.embeddings, &rows)?));
    }
    for (kind, rows) in kinds.filter(|_| !vision.deepstack.is_empty()) {
        let features = vision.deepstack.iter().map(|feature| values(feature, &rows)).collect::<Result<Vec<_>, _>>()?;
        outputs.push((format!("{kind}_deepstack"), vec![features.len(), rows.len(), width], features.concat()));
    }
    Ok(Scored { hidden, vision: outputs })
}

/// A safetensors file of f32 tensors, written from front to back.
struct TensorWriter<'a> {
    to: &'a Path,
    file: AtomicFile,
}

impl<'a> TensorWriter<'a> {
    fn begin(to: &'a Path, entries: &[(&str, Vec<usize>)]) -> Result<Self> {
        let entries = entries.iter().map(|(name, shape)| HeaderEntry {
            name,
            dtype: "F32",
            shape,
            bytes: shape.iter().product::<usize>() as u64 * 4,
        });
        let mut file = AtomicFile::create(to)?;
        write_safetensors_header(&mut file, entries).map_err(|e| output::cannot_write(to, e))?;
        Ok(Self { to, file })
    }

    fn add(&mut self, values: &[f32]) -> Result<()> {
        self.file.write_all(bytemuck::cast_slice(values)).map_err(|e| output::cannot_write(self.to, e))
    }

    fn commit(self) -> Result<()> {
        Ok(self.file.commit()?)
    }
}
