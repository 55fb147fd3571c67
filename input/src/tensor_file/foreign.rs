//! Recognises checkpoints of other programs, whose weights are not in safetensors files.

use std::fs;
use std::path::Path;

/// The largest number of names that are read in a folder.
const MAX_NAMES: usize = 10_000;

/// What the folder of a checkpoint holds in place of safetensors files, and how to convert it: a checkpoint of
/// DeepSpeed's ZeRO, of FSDP or of verl, or weights in a format of PyTorch or llama.cpp. Looks at the names of the
/// files in `folder` and in its sub-folders; `None` if no name is known, or if the folder has safetensors files.
pub fn foreign_checkpoint(folder: &Path) -> Option<(&'static str, &'static str)> {
    let own = names_in(folder);
    let below: Vec<String> = own.iter().flat_map(|name| names_in(&folder.join(name))).collect();
    let is_model = |name: &String| name.ends_with(".safetensors") && !name.starts_with("adapter_");
    if own.iter().any(is_model) {
        return None;
    }
    if below.iter().any(is_model) {
        return Some(("is not a model itself, but a folder in it has *.safetensors", "give that folder"));
    }
    let names = [own, below].concat();
    let has = |known: &dyn Fn(&str) -> bool| names.iter().any(|name| known(name));
    let ends = |name: &str, of: &[&str]| of.iter().any(|end| name.ends_with(end));
    if has(&|name| name == "zero_to_fp32.py" || name.contains("zero_pp_rank_") || name.ends_with("_model_states.pt")) {
        let help = "run `python zero_to_fp32.py . OUT --safe_serialization` in the folder with zero_to_fp32.py, and \
                    use OUT with the model's config.json and tokenizer.json";
        return Some(("is a checkpoint of DeepSpeed ZeRO, whose weights are in files of its ranks", help));
    }
    if has(&|name| name.starts_with("model_world_size_") && name.ends_with(".pt")) {
        let help = "run `python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUT`, and \
                    use OUT";
        return Some(("is an FSDP checkpoint of verl, whose weights are in files of its ranks", help));
    }
    if has(&|name| name.ends_with(".distcp")) {
        let help = "run `accelerate merge-weights FOLDER OUT` with the folder of the *.distcp files, and use OUT with \
                    the model's config.json and tokenizer.json";
        return Some(("is a sharded checkpoint of PyTorch (FSDP, *.distcp)", help));
    }
    let is_state = |name: &str| {
        ["training_args", "optimizer", "scheduler", "scaler", "rng_state"].iter().any(|start| name.starts_with(start))
    };
    if has(&|name| ends(name, &[".bin", ".pt", ".pth", ".ckpt"]) && !is_state(name)) {
        let help = "load the model with transformers and save it: save_pretrained(OUT, safe_serialization=True)";
        return Some(("has no *.safetensors, only weights of torch.save (.bin, .pt)", help));
    }
    has(&|name| name.ends_with(".gguf"))
        .then_some(("has no *.safetensors, only weights in the format GGUF", "use the safetensors of the model"))
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(MAX_NAMES).flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_other_programs_are_named() {
        for (files, what, help) in [
            (&["zero_to_fp32.py", "latest"][..], "DeepSpeed ZeRO", "zero_to_fp32.py"),
            (&["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "DeepSpeed ZeRO", "zero_to_fp32.py"),
            (&["global_step9/zero_pp_rank_1_mp_rank_00_model_states.pt"], "DeepSpeed ZeRO", "zero_to_fp32.py"),
            (&["pytorch_model_fsdp_0/__0_0.distcp", "config.json"], "FSDP", "accelerate merge-weights"),
            (&["model_world_size_8_rank_0.pt", "huggingface/config.json"], "verl", "verl.model_merger"),
            (&["pytorch_model-00001-of-00002.bin", "training_args.bin"], "torch.save", "save_pretrained"),
            (&["consolidated.00.pth"], "torch.save", "save_pretrained"),
            (&["model-q4.gguf"], "GGUF", "safetensors"),
            (
                &["checkpoint-2/zero_to_fp32.py", "checkpoint-2/model.safetensors"],
                "is not a model itself",
                "that folder",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                let path = folder.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let found = foreign_checkpoint(folder.path()).unwrap_or_else(|| panic!("{files:?}"));
            assert!(found.0.contains(what) && found.1.contains(help), "{files:?}: {found:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), "").unwrap();
        fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
        assert_eq!(foreign_checkpoint(folder.path()), None);
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "training_args.bin", "optimizer.pt", "rng_state_0.pth"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(foreign_checkpoint(folder.path()), None);
        assert_eq!(foreign_checkpoint(&folder.path().join("none")), None);
    }
}
