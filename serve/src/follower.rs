//! The loop of the ranks other than 0 that serve a divided model: they repeat each step of rank 0's engine.

use std::sync::Arc;

use reel_engine::{Engine, GrammarCompiler};
use reel_model::lora::Adapter;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;
use reel_support::diagnostic::Diagnostic;
use tokio::sync::{mpsc, oneshot};

use crate::divided_model::DividedModel;
use crate::engine_thread::{EngineCommand, GenerationJob, LoadAdapterCommand, ReplaceWeightsCommand, ServedRequests};
use crate::error::{Kind, Result};
use crate::new_weights::CheckedWeightFiles;
use crate::settings::{ServedModel, ServerLimits};
use crate::step_message::{NewRequest, StepChange, StepMessage};

/// Does the steps of rank 0's engine until rank 0's server ends. `divided` are the processes that serve the model.
///
/// # Errors
/// The device is out of memory; a device error; another rank has failed.
pub fn follow_rank_0(model: ServedModel, weights: QwenVl, divided: &DividedModel, limits: ServerLimits) -> Result<()> {
    let model = Arc::new(model);
    let cx = Cx::inference(&model.device, model.dtype);
    let engine = Engine::new(&weights, &cx)?.max_slots(limits.batch);
    drop(weights);
    let batch = engine.continuous_batch(limits.kv_bytes)?;
    batch.prefault_kv_blocks();
    let mut requests = ServedRequests::new(&model, batch);
    let mut grammars = None;
    loop {
        let bytes = divided.receive_step()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let message = StepMessage::parse(&bytes).ok_or_else(|| {
            let help = "start all ranks with the same version of the program";
            Kind::Rank.error(Diagnostic::new("rank 0", "has sent a step that this rank cannot read", help))
        })?;
        for change in message.changes {
            requests.execute(command(change, &model, &mut grammars)?)?;
        }
        requests.drop_requests(&message.dropped)?;
        requests.step()?;
    }
}

/// Makes the command with which this rank's engine repeats a change of rank 0's engine. The results are dropped,
/// because rank 0 has the same results and answers the client.
fn command(
    change: StepChange,
    model: &Arc<ServedModel>,
    grammars: &mut Option<GrammarCompiler>,
) -> Result<EngineCommand> {
    Ok(match change {
        StepChange::Generate(request) => {
            let NewRequest { prompt, settings, adapter } = *request;
            let grammar = match &settings.grammar {
                None => None,
                Some(spec) => {
                    let compiler = match grammars.take() {
                        Some(compiler) => compiler,
                        // Rank 0 has checked this grammar in a worker process.
                        None => GrammarCompiler::without_workers(&model.folder)?,
                    };
                    Some(grammars.insert(compiler).compile(spec)?)
                }
            };
            let job = GenerationJob { prompt, settings, grammar, adapter, deadline: None };
            EngineCommand::Generate(Box::new(job), mpsc::unbounded_channel().0)
        }
        StepChange::ReplaceWeights(folder) => {
            let (from, model) = (folder.clone(), model.clone());
            // Rank 0 has checked the values of these files. This rank reads only its part, because all ranks wait
            // until it is loaded.
            let load = Box::new(move |device: &_, dtype| CheckedWeightFiles::open(&from, &model)?.load(device, dtype));
            EngineCommand::ReplaceWeights(ReplaceWeightsCommand { folder, load, done: oneshot::channel().0 })
        }
        StepChange::LoadAdapter(folder) => {
            let (from, model) = (folder.clone(), model.clone());
            let open = Box::new(move || {
                let adapter = Adapter::open(&from)?;
                adapter.check_shared(&model.folder.config)?;
                Ok(adapter)
            });
            EngineCommand::LoadAdapter(Box::new(LoadAdapterCommand { folder, open, done: oneshot::channel().0 }))
        }
        StepChange::UnloadAdapter(id) => EngineCommand::UnloadAdapter(id),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use reel_model::init::{InitOptions, Preset, init_model_folder};
    use tempfile::TempDir;

    use super::*;

    /// The weights have a NaN that only a check of all values finds. Rank 0 makes this check before its message. The
    /// other ranks do not repeat the check while the engine waits for them.
    #[test]
    fn only_rank_0_reads_all_values_of_new_weights() {
        let folder = TempDir::new().unwrap();
        let options = InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: 3 };
        init_model_folder(&options, folder.path()).unwrap();
        let (model, _) = ServedModel::open_on_cpu(folder.path()).unwrap();
        let model = Arc::new(model);
        // The last bytes of the file are the last values of a tensor.
        let file = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
        fs::remove_file(&file).unwrap();
        fs::write(&file, bytes).unwrap();
        let e = CheckedWeightFiles::open(folder.path(), &model).unwrap().check_values().unwrap_err();
        assert!(e.to_string().contains("NaN or infinite"), "{e}");
        let of_follower = command(StepChange::ReplaceWeights(folder.path().into()), &model, &mut None).unwrap();
        let EngineCommand::ReplaceWeights(weights) = of_follower else { panic!("not new weights") };
        (weights.load)(&model.device, model.dtype).unwrap();
    }
}
