use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::error::{Error, Kind};
use crate::options::RunOptions;
use crate::step::hyperparameters::Hyperparameters;
use crate::step::trainer::Trainer;
use reel_device::{DType, Device};
use reel_input::config::ModelConfig;
use reel_model::checkpoint::Checkpoint;
use reel_model::save::ConfigAndTokenizerFiles;

use super::optimizer::OPTIMIZER_FILE;
use super::*;
use crate::runs::folder::entries::checkpoint_folder_name;
use crate::runs::folder::resume::RunState;
use crate::runs::testing::{assert_same_files, golden};

/// Makes a trainer and the base model of its checkpoints.
fn trainer(dtype: DType) -> (Trainer, BaseModel) {
    let folder = golden("model_a");
    let config = ModelConfig::open(&folder).unwrap();
    let hyperparameters = Hyperparameters::new(&RunOptions::default(), 1);
    let (trainer, files) = Trainer::open(&Device::cpu(1), &config, &folder, dtype, hyperparameters).unwrap();
    let files: Arc<Checkpoint> = Arc::new(files);
    let small_files = Arc::new(ConfigAndTokenizerFiles::read(&folder).unwrap());
    (trainer, BaseModel { small_files, files, name: "base".into() })
}

fn state(step: u64) -> RunState {
    let text = serde_json::json!({"version": "0", "step": step, "steps": 9, "position": {"slot": 0, "skipped": []}, "peak_bytes": 0,
        "model_hash": "", "model_files": {}, "data_hash": "", "data_files": [], "options": {}, "parameter_steps": {},
        "rewards": {"sum": 0.0, "steps": 0, "best": null}, "hash": ""});
    serde_json::from_value(text).unwrap()
}

#[test]
fn copied_snapshot_is_independent_of_later_steps() {
    for dtype in [DType::F32, DType::BF16] {
        let dir = tempfile::tempdir().unwrap();
        let (now, later) = (dir.path().join("now"), dir.path().join("later"));
        let (trainer, origin) = trainer(dtype);
        let files = || vec![("training/set.json", b"{}".to_vec())];
        CheckpointSnapshot::capture(&trainer, origin.clone(), state(3), files()).unwrap().write(&now).unwrap();
        let mut copy = CheckpointSnapshot::capture(&trainer, origin.clone(), state(3), files()).unwrap();
        assert!(copy.copy_tensors().unwrap());
        let live = CheckpointSnapshot::capture(&trainer, origin, state(4), files()).unwrap();
        for (_, weights, state) in trainer.optimizer.parameter_states() {
            [weights, &state.cells[0].m].into_iter().for_each(|t| t.write(&vec![1u8; t.bytes()]).unwrap());
        }
        copy.write(&later).unwrap();
        assert_same_files(&now, &later);
        // The snapshot `live` was captured without a copy, so it writes the weights that the further step has
        // changed.
        live.write(&later).unwrap();
        let weights = |step| fs::read(later.join(checkpoint_folder_name(step)).join("model.safetensors")).unwrap();
        assert!(weights(3) != weights(4));
        // `checkpoint_bytes` is the size of both files without their headers. The headers are smaller than 256 KiB.
        let size = |file: &str| fs::metadata(later.join("checkpoint-3").join(file)).unwrap().len();
        let files = size(OPTIMIZER_FILE) + size("model.safetensors");
        assert!(checkpoint_bytes(&trainer) < files && files < checkpoint_bytes(&trainer) + (1 << 18), "{files}");
    }
}

#[test]
fn jobs_run_in_background_one_at_a_time() {
    let mut saver = CheckpointWriter::default();
    let (go, wait) = mpsc::channel::<()>();
    let done = Arc::new(AtomicBool::new(false));
    let job_done = done.clone();
    saver
        .start(move || {
            wait.recv().unwrap();
            job_done.store(true, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
    saver.check_finished_job().unwrap();
    assert!(!done.load(Ordering::SeqCst), "the job was already done when the caller continued");
    go.send(()).unwrap();
    let job_done = done.clone();
    // The second job starts only after the first has ended.
    saver.start(move || if job_done.load(Ordering::SeqCst) { Ok(()) } else { panic!("two at a time") }).unwrap();
    saver.wait().unwrap();
}

#[test]
fn failed_job_is_reported_by_the_next_call() {
    let failing = || {
        let mut saver = CheckpointWriter::default();
        let full = || Error::cannot_write("out/checkpoint-3", io::Error::from(io::ErrorKind::StorageFull));
        saver.start(move || Err(full())).unwrap();
        saver
    };
    let said = |e: Error| assert!(e.to_string().starts_with("out/checkpoint-3: cannot be written: the disk is full; "));
    said(failing().wait().unwrap_err());
    said(failing().start(|| panic!("it does not follow")).unwrap_err());
    let mut polled = failing();
    let e = loop {
        if let Err(e) = polled.check_finished_job() {
            break e;
        }
        std::thread::yield_now();
    };
    said(e);
    polled.wait().unwrap();
    let mut dead = CheckpointWriter::default();
    dead.start(|| panic!("on purpose")).unwrap();
    assert!(dead.wait().unwrap_err().to_string().contains("panicked"));
    let device = Device::cpu(1);
    assert!(host_memory_has_room_for(&device, 0) && !host_memory_has_room_for(&device, u64::MAX));
}

/// Without memory for a copy, the checkpoint can still be written from the tensors themselves.
#[test]
fn snapshot_without_memory_for_a_copy_is_written_from_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let (trainer, origin) = trainer(DType::F32);
    let (want, got) = (dir.path().join("want"), dir.path().join("got"));
    let mut snapshot = CheckpointSnapshot::capture(&trainer, origin, state(3), Vec::new()).unwrap();
    snapshot.write(&want).unwrap();
    let left = std::cell::Cell::new(5_usize);
    let scarce = |_| left.replace(left.get().saturating_sub(1)) > 0;
    assert!(!snapshot.copy_tensors_if(&scarce).unwrap());
    assert!(snapshot.stored_tensors().all(|stored| matches!(stored, parts::TensorBytes::Tensor(_))));
    snapshot.write(&got).unwrap();
    assert_same_files(&want, &got);
    assert!(!parts::has_memory_for(usize::MAX));
}

/// An error about a checkpoint names the checkpoint's final path, not the hidden path under which it is written.
#[test]
fn errors_name_the_final_path_of_a_checkpoint() {
    let (draft, target) = (Path::new("out/.checkpoint-6.part"), Path::new("out/checkpoint-6"));
    let full = Error::cannot_write(draft.join("model.safetensors"), io::Error::from(io::ErrorKind::StorageFull));
    let e = full.with_path_renamed(draft, target);
    assert!(e.kind == Kind::DiskFull && e.to_string().starts_with("out/checkpoint-6/model.safetensors: "));
    // The error of a complete `write` must also name the final path if the draft folder cannot be created.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (trainer, origin) = trainer(DType::F32);
    let snapshot = CheckpointSnapshot::capture(&trainer, origin, state(6), Vec::new()).unwrap();
    let e = snapshot.write(&dir.path().join("file")).unwrap_err().to_string();
    assert!(e.contains("file/checkpoint-6: cannot be written") && !e.contains(".part"), "{e}");
}
