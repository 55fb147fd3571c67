//! Tests that a resume detects a flipped bit in any file that it reads, names the file, and does not change OUT.

use crate::error::Kind;
use crate::file_names::{DIGESTS_FILE, HASHES_FILE};

use super::resumed::case;
use super::*;
use crate::runs::folder::digests;

fn resume(out: &Path, from: &str) -> Case {
    let from = if from == "last" { from.to_string() } else { out.join(from).display().to_string() };
    case(out).with(|o| (o.resume_from_checkpoint, o.max_steps) = (Some(from), Some(6)))
}

/// Flips one bit of a file; returns the original bytes of the file.
fn flip(path: &Path, share: f64) -> Vec<u8> {
    let before = fs::read(path).unwrap();
    let mut bytes = before.clone();
    let index = ((bytes.len() - 1) as f64 * share) as usize;
    bytes[index] ^= 1 << (index % 8);
    fs::write(path, bytes).unwrap();
    before
}

#[test]
fn flipped_bit_is_refused_with_the_file_and_the_checkpoint_before() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, out] = ["whole", "out"].map(|name| dir.path().join(name));
    case(&whole).with(|o| o.max_steps = Some(6)).run().unwrap();
    case(&out).run().unwrap();
    let in_checkpoint = ["model.safetensors", "training/optimizer.safetensors", RUN_STATE_FILE, DIGESTS_FILE];
    let logs = [METRICS_FILE, HASHES_FILE];
    let paths =
        in_checkpoint.map(|name| out.join("checkpoint-4").join(name)).into_iter().chain(logs.map(|log| out.join(log)));
    for path in paths {
        for share in [0.0, 0.3, 0.71, 1.0] {
            let before = flip(&path, share);
            let left = read_output_files(&out);
            let e = resume(&out, "last").run().unwrap_err();
            let message = e.to_string();
            assert!(e.kind == Kind::Damaged && message.starts_with(&path.display().to_string()), "{message}");
            assert!(message.ends_with("checkpoint-2") && message.contains("--resume-from-checkpoint "), "{message}");
            assert_eq!(read_output_files(&out), left, "a refused resume changes nothing");
            fs::write(&path, before).unwrap();
        }
    }
    // The run can resume from the previous checkpoint, which the message suggests.
    flip(&out.join("checkpoint-4/model.safetensors"), 0.5);
    resume(&out, "checkpoint-2").run().unwrap();
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&out));
    assert_same_files(&whole.join("checkpoint-6"), &out.join("checkpoint-6"));
}

/// A checkpoint is refused without its `digests.json`, and if its weights are not those of its step. An option that the
/// checkpoint lacks has its default, because a later version of the program may add options.
#[test]
fn checkpoint_is_checked_by_its_digests_and_the_hash_of_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    case(&out).run().unwrap();
    let folder = out.join("checkpoint-4");
    let logs = digests::verify_checkpoint(&folder).unwrap().logs;
    fs::remove_file(folder.join(DIGESTS_FILE)).unwrap();
    let e = resume(&out, "last").run().unwrap_err().to_string();
    assert!(e.contains("checkpoint-4/training/digests.json: is missing; "), "{e}");
    let mut state: Value = serde_json::from_slice(&fs::read(folder.join(RUN_STATE_FILE)).unwrap()).unwrap();
    state["options"].as_object_mut().unwrap().remove("no_decay_norms");
    fs::write(folder.join(RUN_STATE_FILE), state.to_string()).unwrap();
    let before = flip(&folder.join("model.safetensors"), 0.9);
    digests::write(&folder, logs.clone()).unwrap();
    let e = resume(&out, "last").run().unwrap_err().to_string();
    assert!(
        e.contains("checkpoint-4") && e.contains("its weights are not those that the run had after step 4; "),
        "{e}"
    );
    fs::write(folder.join("model.safetensors"), before).unwrap();
    digests::write(&folder, logs).unwrap();
    assert_eq!(resume(&out, "last").run().unwrap().resumed_after, 4);
}
