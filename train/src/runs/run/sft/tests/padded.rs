//! Tests a vision tower whose MLP weights are padded with zeros on a GPU: files have the unpadded shapes and values,
//! and every device can resume from these files.

use reel_device::{SimOptions, compile};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;

/// The intermediate size of the vision tower's MLP: a multiple of 4 but not of 8, so that a GPU pads it.
const INNER: usize = 44;

/// Copies the golden model `model_a` with fewer intermediate features of the vision tower.
fn narrow_model(to: &Path) {
    let from = golden("model_a");
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(&from).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config["vision_config"]["intermediate_size"] = INNER.into();
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let narrow = |name: String, shape: &[usize], data: &[u8]| {
        let mut shape = shape.to_vec();
        let mlp = name.contains("visual.blocks.") && name.contains(".mlp.");
        let axis = if name.ends_with("down_proj.weight") { 1 } else { 0 };
        let is_cut = mlp && !name.ends_with("down_proj.bias");
        let row = 4 * shape[axis..].iter().product::<usize>();
        if is_cut {
            shape[axis] = INNER;
        }
        let kept = 4 * shape[axis..].iter().product::<usize>();
        let data: Vec<u8> = data.chunks(row).flat_map(|row| &row[..kept]).copied().collect();
        (name, shape, data)
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.iter().all(|(_, view)| view.dtype() == Dtype::F32));
    let all: Vec<_> = file.iter().map(|(name, view)| narrow(name.to_string(), view.shape(), view.data())).collect();
    let views = all
        .iter()
        .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
}

/// Makes a run on a row with a small image, so that a step on the simulator takes little time.
fn case(model: &Path, out: &Path, steps: i64, device: &Device) -> Case {
    let rows = golden("sft_videorft_rows");
    let case = Case::new("sft_videorft_rows", "model_a", out).with(|o| {
        o.model = model.display().to_string();
        (o.media_root, o.labels, o.no_shuffle) = (Some(rows), None, true);
        (o.max_steps, o.save_steps, o.weight_decay) = (Some(steps), 1, 0.1);
    });
    Case { device: Some(device.clone()), max_pixels: Some(12_544), ..case }
}

fn sim() -> Device {
    Device::sim(SimOptions { threads: 2, ..SimOptions::default() }).unwrap()
}

/// Copies a folder with its subfolders.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for path in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}

#[test]
fn files_have_the_published_shapes_and_every_device_resumes_from_them() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [model, whole, parts, on_cpu, still] =
        ["model", "whole", "parts", "on-cpu", "still"].map(|name| dir.path().join(name));
    narrow_model(&model);

    let config = reel_input::config::ModelConfig::open(&model).unwrap();
    let hyperparameters = Hyperparameters::new(&SftOptions::default(), 1);
    let (trainer, _) = Trainer::open(&sim(), &config, &model, DType::F32, hyperparameters).unwrap();
    let down = |t: &&reel_runtime::Tensor| t.parameter_name() == Some("visual.blocks.0.mlp.down_proj.weight");
    let down = trainer.model.parameters().find(down).unwrap();
    assert_eq!((down.unpadded_shape()[1], down.shape()[1]), (INNER, 48));

    // A resumed run gives the same bits as an uninterrupted run.
    case(&model, &whole, 2, &sim()).run().unwrap();
    case(&model, &parts, 1, &sim()).run().unwrap();
    copy_folder(&parts, &on_cpu);
    let resumed = |o: &mut SftOptions| o.resume_from_checkpoint = Some("last".into());
    assert_eq!(case(&model, &parts, 2, &sim()).with(resumed).run().unwrap().resumed_after, 1);
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&parts));
    let state = "checkpoint-2/training/optimizer.safetensors";
    for file in ["model.safetensors", "checkpoint-2/model.safetensors", state] {
        assert_eq!(fs::read(whole.join(file)).unwrap(), fs::read(parts.join(file)).unwrap(), "{file}");
    }
    let bytes = fs::read(whole.join(state)).unwrap();
    let moments = SafeTensors::deserialize(&bytes).unwrap();
    let moment = moments.tensor("m/visual.blocks.0.mlp.down_proj.weight").unwrap();
    assert_eq!((moment.shape()[1], moment.data().len() % (4 * INNER)), (INNER, 0));

    // The CPU accepts the checkpoint: weights have the recorded hash, moments the expected shapes.
    assert_eq!(case(&model, &on_cpu, 2, &Device::cpu(2)).with(resumed).run().unwrap().resumed_after, 1);
    let [a, b] = [&whole, &on_cpu].map(|out| metrics_without_times(out)[1].clone());
    assert!((a.loss / b.loss - 1.0).abs() < 1e-4, "{} on sim, {} on cpu", a.loss, b.loss);
    assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-3, "{} on sim, {} on cpu", a.grad_norm, b.grad_norm);

    // If training does not change the weights (learning rate 0), the saved file has the same bits as the loaded file.
    case(&model, &still, 1, &sim()).with(|o| o.learning_rate = 0.0).run().unwrap();
    let [before, after] = [&model, &still].map(|folder| Checkpoint::open(folder).unwrap());
    for (name, shape) in reel_model::checkpoint::expected_tensors(&config) {
        let [a, b] = [&before, &after].map(|files| files.tensor(&name).unwrap());
        assert!(a.bytes == b.bytes && b.shape == shape, "{name}");
    }
}
