//! Names of options in other programs: TRL, transformers, the scripts of VideoRFT and Video-R1, vLLM, LLaMA-Factory.
//!
//! A name with the same meaning as an option of reel is an alias; the command line and configuration files accept it.
//! For other known names, [`advice_on`] says which option to use instead, or why reel has no such option.

/// Pairs (alias, option): a name that is accepted for an option, and the option's name as in configuration files.
const ALIASES: [(&str, &str); 13] = [
    ("model_name_or_path", "model"),
    ("dataset_name", "data"),
    ("output_dir", "out"),
    ("output", "out"),
    ("out", "output"),
    ("overwrite_output_dir", "overwrite"),
    ("max_seq_length", "max_length"),
    ("lora_rank", "lora_r"),
    ("torch_dtype", "dtype"),
    ("media_dir", "media_root"),
    ("max_tokens", "max_new_tokens"),
    ("max_completion_tokens", "max_new_tokens"),
    ("num_return_sequences", "n"),
];

/// Pairs (names, options): for each of the names, the error suggests the first of the options that the command has.
const SUGGESTIONS: &[(&[&str], &[&str])] = &[
    (&["lr", "base_lr", "peak_lr", "max_lr"], &["learning_rate"]),
    (&["lr_scheduler", "lr_schedule", "scheduler"], &["lr_scheduler_type"]),
    (&["epochs", "epoch", "num_epochs", "n_epochs", "max_epochs", "train_epochs"], &["num_train_epochs"]),
    (&["steps", "num_steps", "total_steps", "train_steps", "num_train_steps", "iters"], &["max_steps", "step"]),
    (
        &["batch_size", "batch", "bs", "train_batch_size", "micro_batch_size", "per_device_batch_size"],
        &["per_device_train_batch_size", "batch"],
    ),
    (
        &["grad_accum", "grad_acc", "gradient_accumulation", "accumulation_steps", "grad_accum_steps"],
        &["gradient_accumulation_steps"],
    ),
    (&["warmup", "num_warmup_steps"], &["warmup_steps"]),
    (&["clip_grad", "grad_clip", "gradient_clipping", "clip_grad_norm", "gradient_clip_val"], &["max_grad_norm"]),
    (&["wd"], &["weight_decay"]),
    (&["beta1"], &["adam_beta1"]),
    (&["beta2"], &["adam_beta2"]),
    (&["adam_eps"], &["adam_epsilon"]),
    (&["optimizer"], &["optim"]),
    (&["bf16", "use_bf16", "fp16", "half", "precision", "mixed_precision", "data_type"], &["dtype"]),
    (&["use_peft", "peft", "lora", "use_lora", "rank", "finetuning_type", "train_type"], &["lora_r"]),
    (&["target_modules", "lora_target", "lora_modules"], &["lora_target_modules"]),
    (&["group_size", "num_rollouts", "num_samples", "rollout_n", "n_generations"], &["num_generations", "n"]),
    (&["kl", "kl_coef", "kl_coeff", "kl_beta", "kl_loss_coef"], &["beta"]),
    (&["eps", "clip_eps", "clip_range", "clip_ratio", "eps_clip", "epsilon_low"], &["epsilon"]),
    (&["clip_eps_high", "clip_ratio_high", "eps_clip_high"], &["epsilon_high"]),
    (&["t_grpo", "tgrpo", "use_temporal"], &["temporal"]),
    (&["semantic"], &["siglip"]),
    (&["reward_funcs", "reward_func", "reward_fn", "reward_function", "reward_model_path"], &["reward_command"]),
    (
        &["max_new_tokens", "max_tokens", "max_completion_tokens", "max_response_length", "max_gen_len"],
        &["max_completion_length"],
    ),
    (&["max_completion_length", "max_length", "max_gen_len"], &["max_new_tokens"]),
    (&["max_seq_len", "seq_len", "seq_length", "cutoff_len", "model_max_length", "block_size"], &["max_length"]),
    (&["max_prompt_tokens", "prompt_length"], &["max_prompt_length"]),
    (&["assistant_only_loss", "completion_only_loss", "train_on_inputs", "mask_prompt"], &["labels"]),
    (&["shuffle", "shuffle_dataset"], &["no_shuffle"]),
    (
        &["freeze_vit", "freeze_visual", "freeze_vision_tower", "freeze_vision_modules", "freeze_vision_encoder"],
        &["freeze_vision"],
    ),
    (&["activation_checkpointing", "checkpoint_activations", "recompute"], &["gradient_checkpointing"]),
    (&["save_every", "save_interval", "save_freq", "save_strategy"], &["save_steps"]),
    (
        &[
            "eval_strategy",
            "evaluation_strategy",
            "do_eval",
            "eval_every",
            "eval_interval",
            "eval_freq",
            "val_check_interval",
        ],
        &["eval_steps"],
    ),
    (&["eval_before_train", "val_before_train"], &["eval_on_start"]),
    (&["eval_benchmarks", "eval_tasks", "eval_task"], &["eval_benchmark"]),
    (&["eval_dataset", "eval_data_path", "eval_file", "validation_file", "val_file", "val_data"], &["eval_data"]),
    (&["max_eval_samples", "eval_max_samples", "eval_num_samples"], &["eval_limit"]),
    (&["per_device_eval_batch_size", "val_batch_size"], &["eval_batch_size"]),
    (&["metric_for_best", "best_metric", "metric_for_best_checkpoint"], &["metric_for_best_model"]),
    (&["log_every", "log_interval", "log_steps", "logging_strategy"], &["logging_steps"]),
    (&["keep_checkpoints", "max_checkpoints", "keep_last"], &["save_total_limit"]),
    (&["resume", "resume_from", "continue", "checkpoint", "from_checkpoint"], &["resume_from_checkpoint"]),
    (&["force", "overwrite_out"], &["overwrite"]),
    (&["wandb", "use_wandb", "tensorboard", "logger"], &["report_to"]),
    (&["name", "experiment_name", "exp_name", "wandb_name", "wandb_run_name"], &["run_name"]),
    (&["project"], &["wandb_project"]),
    (&["config_file", "cfg", "conf"], &["config"]),
    (&["model_path", "model_name", "model_id", "base_model", "pretrained", "model_dir"], &["model"]),
    (
        &["dataset", "dataset_path", "data_path", "data_file", "data_files", "train_file", "train_data"],
        &["data", "input", "predictions"],
    ),
    (&["out_dir", "outdir", "output_path", "output_file", "save_dir", "save_path", "save"], &["out", "output"]),
    (&["input_file", "completions"], &["input", "rollouts", "predictions"]),
    (&["image_folder", "video_folder", "image_root", "video_root", "data_root", "data_dir"], &["media_root"]),
    (&["num_frames", "n_frames", "frames", "max_num_frames"], &["nframes"]),
    (&["video_max_frames", "video_maxlen", "fps_max_frames"], &["max_frames"]),
    (&["video_fps", "frame_rate", "sample_fps"], &["fps"]),
    (&["video_max_pixels", "image_max_pixels"], &["max_pixels"]),
    (&["question", "query", "text"], &["prompt"]),
    (&["video_path"], &["video"]),
    (&["image_path", "img"], &["image"]),
    (&["conversation", "chat"], &["messages"]),
    (&["gpu", "gpus", "cuda", "device_map"], &["device"]),
    (&["num_threads", "n_threads", "cpus", "cores"], &["threads"]),
    (&["random_seed", "manual_seed", "data_seed"], &["seed"]),
    (&["verbosity", "log_level", "debug"], &["verbose"]),
    (&["disable_tqdm", "silent"], &["quiet"]),
];

/// An option of other programs without a counterpart in reel: its names (`ddp_*` stands for all names that begin with
/// `ddp_`), what reel does instead, and what the user can do.
struct Absent {
    names: &'static [&'static str],
    what: &'static str,
    help: &'static str,
}

const LEAVE_OUT: &str = "leave it out";

const ABSENT: &[Absent] = &[
    Absent {
        names: &["use_vllm", "vllm*"],
        what: "has no effect here: reel samples with its own engine, from the weights that it trains",
        help: LEAVE_OUT,
    },
    Absent {
        names: &[
            "deepspeed*",
            "zero_stage",
            "fsdp*",
            "ddp_*",
            "nproc_per_node",
            "nnodes",
            "node_rank",
            "master_addr",
            "master_port",
            "local_rank",
            "num_processes",
            "tensor_parallel_size",
            "ds3_gather_for_generation",
        ],
        what: "has no effect here: reel shares the micro-batches of a step among its processes by itself",
        help: "leave it out; --gpus N or torchrun starts several processes (docs/cluster.md)",
    },
    Absent {
        names: &[
            "attn_implementation",
            "attn_impl",
            "flash_attn",
            "use_flash_attention_2",
            "use_liger*",
            "torch_compile*",
            "tf32",
            "use_transformers_paged",
            "cache_implementation",
        ],
        what: "has no effect here: reel has its own kernels",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["load_in_4bit", "load_in_8bit", "use_qlora", "quantization*", "bnb_4bit*"],
        what: "is not supported: reel trains weights that are not quantized",
        help: "use LoRA (lora_r) in bf16; `reel plan` predicts the memory",
    },
    Absent {
        names: &["save_only_model"],
        what: "has no effect here: a checkpoint always holds the optimizer state, from which the run can resume",
        help: "leave it out; save_steps 0 writes no checkpoints",
    },
    Absent {
        names: &["logging_dir", "logging_first_step", "log_completions", "num_completions_to_print", "log_unique*"],
        what: "has no effect here: the output folder has the metrics of every step, the event files, and every completion",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["load_best_model_at_end"],
        what: "has no effect here: the output folder has the weights after the last step",
        help: "leave it out; trainer_state.json names the best checkpoint, and metric_for_best_model how it is chosen",
    },
    Absent {
        names: &["greater_is_better"],
        what: "has no effect here: the best checkpoint has the highest score or reward",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["eval_*", "validation_*"],
        what: "is not supported: an evaluation during training answers the questions of benchmarks, as `reel eval` does",
        help: "leave it out; eval_steps, eval_benchmark and eval_data choose when and on what",
    },
    Absent { names: &["do_train"], what: "has no effect here: this command always trains", help: LEAVE_OUT },
    Absent {
        names: &["push_to_hub", "hub_*"],
        what: "has no effect here: reel uploads nothing",
        help: "leave it out, and upload the output folder with the hub's client",
    },
    Absent {
        names: &["lora_dropout", "disable_dropout", "attention_dropout"],
        what: "has no effect here: reel trains without dropout",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["use_dora", "use_rslora", "lora_bias", "lora_modules_to_save", "modules_to_save", "init_lora_weights"],
        what: "is not supported: reel trains plain LoRA adapters",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["dataloader_*", "num_workers", "preprocessing_num_workers", "dataset_num_proc"],
        what: "has no effect here: reel decodes media ahead of the steps, in its own worker processes",
        help: LEAVE_OUT,
    },
    Absent {
        names: &[
            "remove_unused_columns",
            "dataset_config",
            "dataset_train_split",
            "dataset_test_split",
            "dataset_text_field",
            "dataset_kwargs",
            "dataset_streaming",
        ],
        what: "has no effect here: the data are all rows of one JSON file, with all columns",
        help: "leave it out; the option data names the file",
    },
    Absent {
        names: &["trust_remote_code", "model_revision", "model_init_kwargs", "use_fast"],
        what: "has no effect here: reel reads the files of the model folder and runs no code from it",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["tokenizer*", "processor*", "template", "chat_template*", "system", "system_prompt"],
        what: "has no effect here: tokenizer and chat template are those of the model folder",
        help: "leave it out; a system prompt is a message of the role system",
    },
    Absent {
        names: &["repetition_penalty", "min_p", "presence_penalty", "frequency_penalty", "generation_kwargs"],
        what: "is not supported: completions are sampled by temperature, top_p and top_k alone",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["do_sample", "greedy"],
        what: "has no effect here: the temperature decides",
        help: "use temperature 0 for greedy decoding, and a higher one for sampling",
    },
    Absent {
        names: &["num_beams", "beam_size"],
        what: "is not supported: reel has no beam search",
        help: "use temperature 0 for greedy decoding",
    },
    Absent {
        names: &["steps_per_generation", "generation_batch_size"],
        what: "has no effect here: the completions of a step are sampled together",
        help: "leave it out; num_iterations is the number of steps on each set of completions",
    },
    Absent {
        names: &["sync_ref_model", "ref_model*"],
        what: "has no effect here: the reference model is the one that the run starts from",
        help: LEAVE_OUT,
    },
    Absent {
        names: &[
            "padding*",
            "pad_to*",
            "group_by_length",
            "length_column_name",
            "packing_strategy",
            "eos_token",
            "pad_token",
        ],
        what: "has no effect here: rows of different lengths are computed together without padding",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["neftune_noise_alpha", "label_smoothing_factor", "delta", "top_entropy_quantile", "sapo_*"],
        what: "is not supported by this version",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["gradient_checkpointing_kwargs", "auto_find_batch_size", "optim_args", "torch_empty_cache_steps"],
        what: "has no effect here",
        help: LEAVE_OUT,
    },
    Absent {
        names: &["stream"],
        what: "has no effect here: text appears as it is generated if stdout is a terminal",
        help: LEAVE_OUT,
    },
];

/// Advice on a name that is not an option: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What is wrong with the name.
    pub what: String,
    /// What the user can do.
    pub help: String,
}

/// Converts an option's name, as a user may write it, to its field name: `--learning-rate` to `learning_rate`.
pub fn field_name(written: &str) -> String {
    written.trim_start_matches('-').replace('-', "_").to_ascii_lowercase()
}

/// Returns the option for which `name` is an alias, if the command has this option (`is_option`), else `name` itself.
/// Argument and result are field names.
pub fn option_of_alias(name: &str, is_option: impl Fn(&str) -> bool) -> &str {
    if is_option(name) {
        return name;
    }
    ALIASES.iter().find(|(alias, option)| *alias == name && is_option(option)).map_or(name, |(_, option)| option)
}

/// The aliases of an option, as field names.
pub fn aliases_of(option: &str) -> impl Iterator<Item = &'static str> {
    ALIASES.iter().filter(move |(_, own)| *own == option).map(|(alias, _)| *alias)
}

/// Returns advice on the field name `name`, which is not an option of the command; `None` if the name is unknown.
/// `is_option` tells whether a field name is an option; `spelled` returns the spelling that the user must write.
pub fn advice_on(name: &str, is_option: impl Fn(&str) -> bool, spelled: impl Fn(&str) -> String) -> Option<Advice> {
    let candidates = SUGGESTIONS.iter().filter(|(names, _)| names.contains(&name)).flat_map(|(_, options)| *options);
    if let Some(option) = candidates.copied().find(|option| is_option(option)) {
        let help = match (name, option) {
            ("fp16" | "half", _) => format!("use {} bf16: reel computes in bf16 or f32", spelled(option)),
            ("bf16" | "use_bf16", _) => format!("use {} bf16", spelled(option)),
            ("use_peft" | "peft" | "lora" | "use_lora" | "finetuning_type" | "train_type", _) => {
                format!("use {} with a rank, such as 16", spelled(option))
            }
            ("semantic", _) => format!("use {} with the folder of a SigLIP model", spelled(option)),
            ("shuffle" | "shuffle_dataset", _) => {
                format!("rows are shuffled; use {} to keep the order of the file", spelled(option))
            }
            ("eval_strategy" | "evaluation_strategy" | "do_eval", _) => {
                format!("use {} with a number; 0 does not evaluate", spelled(option))
            }
            ("save_strategy", _) => format!("use {} with a number; 0 writes no checkpoints", spelled(option)),
            _ => format!("use {}", spelled(option)),
        };
        return Some(Advice { what: "is not an option of this command".into(), help });
    }
    let fits = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => *pattern == name,
    };
    let absent = ABSENT.iter().find(|absent| absent.names.iter().any(fits))?;
    Some(Advice { what: absent.what.into(), help: absent.help.into() })
}

/// Returns the option in `options` whose name is most similar to the field name `name`; `None` if none is similar
/// enough.
pub fn most_similar<'a>(name: &str, options: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = options.map(|option| (strsim::jaro(name, option), option)).filter(|(score, _)| *score > 0.8);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, option)| option)
}

#[cfg(test)]
mod tests {
    use reel_train::options::{GrpoOptions, SftOptions, TrainingOptions};

    use super::*;

    fn advice(name: &str, options: &[&str]) -> String {
        let found = advice_on(name, |option| options.contains(&option), |option| format!("--{option}"));
        found.map_or(String::new(), |advice| format!("{}; {}", advice.what, advice.help))
    }

    #[test]
    fn advice_names_an_option_that_the_command_has() {
        assert_eq!(advice("lr", &["learning_rate"]), "is not an option of this command; use --learning_rate");
        assert_eq!(advice("lr", &["model"]), "");
        assert!(advice("max_new_tokens", &["max_completion_length"]).ends_with("use --max_completion_length"));
        assert!(advice("use_peft", &["lora_r"]).contains("--lora_r with a rank"));
        assert!(advice("vllm_gpu_memory_utilization", &[]).contains("own engine"));
        assert!(advice("deepspeed", &[]).contains("among its processes"));
        assert_eq!(advice("nonsense", &["learning_rate"]), "");
    }

    /// Every option that the tables suggest must exist in a command, or the suggestion would mislead the user.
    #[test]
    fn training_options_that_tables_name_exist() {
        let (sft, grpo) = (SftOptions::default().resolved(), GrpoOptions::default().resolved());
        let others = [
            "output",
            "out",
            "overwrite",
            "max_new_tokens",
            "n",
            "dtype",
            "device",
            "threads",
            "seed",
            "verbose",
            "quiet",
            "config",
            "resume_from_checkpoint",
            "nframes",
            "max_frames",
            "fps",
            "max_pixels",
            "prompt",
            "video",
            "image",
            "messages",
            "input",
            "predictions",
            "step",
            "batch",
        ];
        let known = |name: &str| sft.contains_key(name) || grpo.contains_key(name) || others.contains(&name);
        let suggested = SUGGESTIONS.iter().flat_map(|(_, options)| *options).copied();
        for name in suggested.chain(ALIASES.iter().map(|(_, option)| *option)) {
            assert!(known(name), "{name}");
        }
    }

    #[test]
    fn aliases_stand_for_options_of_the_command_only() {
        let options = |name: &str| ["out", "model", "max_length"].contains(&name);
        assert_eq!(option_of_alias("output_dir", options), "out");
        assert_eq!(option_of_alias("max_seq_length", options), "max_length");
        assert_eq!(option_of_alias("out", options), "out");
        assert_eq!(option_of_alias("lora_rank", options), "lora_rank");
        assert_eq!(field_name("--Learning-Rate"), "learning_rate");
        assert_eq!(most_similar("learning_rat", ["model", "learning_rate"].into_iter()), Some("learning_rate"));
        assert_eq!(most_similar("zzz", ["model"].into_iter()), None);
    }
}
