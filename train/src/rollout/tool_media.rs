//! Loads the images and videos that tools have shown in completions again: for completions that another process has
//! sampled, or that come from a checkpoint or a record.

use std::sync::Arc;

use reel_input::ModelInput;
use reel_input::media_loading::LoadedMedia;

use super::group::{CompletionTokens, Rollout};
use super::prompts::PromptSource;
use super::tools::ToolSet;
use crate::error::{Error, Result};

/// Loads what tools have shown in the completions of a group, unless it is loaded. The prompt must be prepared.
///
/// # Errors
/// A file is missing or has changed; tools have written into a completion, but the run has no tools.
pub fn load_tool_media(source: &PromptSource, group: &mut Rollout) -> Result<()> {
    let prompt = group.prompt.clone();
    for completion in group.completions.iter_mut().filter(|c| c.sequence.is_none() && !c.tool_turns.is_empty()) {
        let Some(tools) = source.tools() else {
            return Err(Error::damaged(&*prompt.location, "has answers of tools", "give --tools as in the run"));
        };
        let sequence = sequence_of(source, tools, &prompt.tokens, completion, &prompt.location)?;
        completion.sequence = Some(Arc::new(sequence));
    }
    Ok(())
}

/// The prompt and all tokens of a completion, with all images and videos.
fn sequence_of(
    source: &PromptSource,
    tools: &ToolSet,
    prompt: &ModelInput,
    completion: &CompletionTokens,
    location: &str,
) -> Result<ModelInput> {
    let (model, config) = (source.bundle(), source.config());
    let mut sequence = prompt.clone();
    for (turn, of_model) in completion.tool_turns.iter().zip(completion.model_turns()) {
        let mut shown = LoadedMedia::empty(model.preprocessor, None);
        for call in &turn.calls {
            shown.append(tools.load(&call.content, model)?.media);
        }
        sequence.input_ids.extend_from_slice(&completion.ids[of_model]);
        let answer = ModelInput {
            input_ids: completion.ids[turn.tokens.clone()].to_vec(),
            frames: shown.frames,
            image_grid_thw: shown.image_grid_thw,
            video_grid_thw: shown.video_grid_thw,
            second_per_grid_ts: shown.second_per_grid_ts,
            frame_indices: shown.frame_indices,
            ..ModelInput::default()
        };
        sequence.append(&answer, config, location)?;
    }
    let last = completion.model_turns().last().unwrap_or_default();
    let rest = ModelInput { input_ids: completion.ids[last].to_vec(), ..ModelInput::default() };
    sequence.append(&rest, config, location)?;
    sequence.check(config, location)?;
    Ok(sequence)
}
