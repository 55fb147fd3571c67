//! Rules that translate the options of other training programs.

use serde_json::Value;

use super::rules::listed_values;
use super::translation::{CommandTranslation, OptionSetting, PartValue};
use super::words::GivenOption;

/// Applies a rule for training options; returns `false` if `rule` is not one of them.
pub fn apply_train_rule(rule: &str, value: &str, given: &GivenOption, t: &mut CommandTranslation) -> bool {
    let number = value.parse::<f64>().ok();
    let is_true = is_python_true(value);
    match rule {
        // In transformers 5, a number below 1 is a share of all steps.
        "warmup_steps" => match number {
            Some(share) if share > 0.0 && share < 1.0 => {
                t.is_changed = true;
                t.set_option("warmup_ratio", vec![value.into()], given);
            }
            Some(steps) if steps >= 0.0 => t.set_option("warmup_steps", vec![format!("{steps}")], given),
            _ => t.set_option("warmup_steps", vec![value.into()], given),
        },
        "save_steps" => match number {
            Some(share) if share > 0.0 && share < 1.0 => {
                let help = "give --save-steps with a number of steps";
                t.is_foreign = true;
                t.refuse_option(
                    &given.text_for_messages(),
                    "is a share of all steps in transformers, and reel counts steps",
                    help,
                );
            }
            _ => t.set_option("save_steps", vec![value.trim_end_matches(".0").into()], given),
        },
        "save_freq" => match number {
            Some(steps) if steps <= 0.0 => t.set_option("save_steps", vec!["0".into()], given),
            _ => t.set_option("save_steps", vec![value.into()], given),
        },
        // How many epochs the run has is known only after all options are read.
        "save_each_epoch" => {
            let count = if given.name == "saves_per_epoch" { value } else { "1" };
            t.keep("saves_per_epoch", count.to_string(), given);
        }
        "logging_steps" => match number {
            Some(share) if share > 0.0 && share < 1.0 => {
                t.is_foreign = true;
                t.harmless.push((given.written.clone(), "logging and progress: OUT has the metrics of every step"));
            }
            _ => t.set_option("logging_steps", vec![value.trim_end_matches(".0").into()], given),
        },
        "eval_steps" => {
            // This option is named in messages without its value.
            t.parts.insert("eval_steps", PartValue { value: value.to_string(), shown: given.written.clone() });
        }
        "report_to" => report_to(given, t),
        // Of Axolotl's plugins, those for kernels alone leave the result as it is.
        "plugins" => {
            let is_kernel = |name: &String| ["liger", "cut_cross_entropy"].iter().any(|kernel| name.contains(kernel));
            let names = listed_values(given);
            match names.iter().flat_map(|text| text.split(',').map(String::from)).find(|name| !is_kernel(name)) {
                Some(name) => {
                    let what = format!("has {name}, code that reel does not run");
                    t.refuse_option(&given.written, &what, "leave it out");
                }
                None => t.harmless.push((given.written.clone(), "kernels and compilation: reel has its own")),
            }
        }
        "experiment_name" => {
            t.set_option("run_name", vec![value.into()], given);
            t.keep("experiment_name", value.to_string(), given);
        }
        "lora" => t.weights.lora = Some(is_true || value.eq_ignore_ascii_case("lora") || given.name.ends_with("type")),
        "full" => t.weights.lora = Some(false),
        "lora_targets" => lora_targets(given, t),
        "all_linear" => {
            t.keep("all_linear", String::new(), given);
            t.mark("all_linear_own");
        }
        "lora_exclusions" => lora_exclusions(given, t),
        // Another option may exclude the vision tower from LoRA, so this option is evaluated after all options are
        // read.
        "vision_lora" => {
            if is_true {
                t.keep("vision_lora", String::new(), given);
            }
        }
        "max_epochs" => t.keep("max_epochs", value.to_string(), given),
        // LLaMA-Factory then trains the merger alone, whatever the options that freeze parts say.
        "merger_only" => t.keep("merger_only", String::new(), given),
        "freezing" => freezing(given, is_true, t),
        "reward_funcs" => {
            let before = t.parts.remove("reward_funcs").map(|part| part.value);
            // If a list is given several times, Python's argument parsers keep the last one. With reel's own option
            // name, the lists are joined.
            let adds = given.written == "--reward-funcs";
            if let Some(lost) = before.as_ref().filter(|_| !adds) {
                t.is_foreign = true;
                t.notes.push(format!(
                    "note: {} is given several times: the last list counts, as in the other program, and {lost} is left \
                     out; to have all, write them behind one --reward-funcs, with commas",
                    given.written
                ));
            }
            let before = before.filter(|_| adds).map(|names| names + ",").unwrap_or_default();
            t.keep("reward_funcs", before + &listed_values(given).join(","), given);
        }
        "reward_weights" => {
            t.is_changed |= given.values.len() > 1;
            t.keep("reward_weights", listed_values(given).join(","), given);
        }
        "checkpointing" => {
            t.set_option("gradient_checkpointing", vec![if is_true { "full" } else { "none" }.into()], given);
        }
        "scheduler" => match value {
            "constant" | "linear" => t.set_option("lr_scheduler_type", vec![value.into()], given),
            "cosine" | "null" => t.set_option("lr_scheduler_type", vec!["cosine".into()], given),
            _ => t.refuse_option(
                &given.text_for_messages(),
                "is a schedule that reel does not have",
                "use --lr-scheduler-type linear, cosine or constant",
            ),
        },
        "prompts_per_rollout" => t.keep("prompts_per_rollout", value.to_string(), given),
        "prompts_per_step" => t.keep("prompts_per_step", value.to_string(), given),
        // In SFT, verl's batch size is the number of rows of a step.
        "global_batch" => t.keep("global_batch", value.to_string(), given),
        "zero_stage" => zero_stage(value, given, t),
        "dual_clip" => t.keep("dual_clip", given.written.clone(), given),
        // Whether the bound cuts completions depends on their length, which may come later on the command line.
        "tokens_with_prompt" => t.keep("tokens_with_prompt", value.to_string(), given),
        "use_kl_loss" => t.keep("use_kl_loss", is_true.to_string(), given),
        "kl_penalty" => {
            // verl has separate KL estimators for the loss and for the reward.
            let is_of_loss = given.name.ends_with("kl_loss_type");
            t.keep(if is_of_loss { "kl_loss_type" } else { "kl_penalty" }, value.to_string(), given);
        }
        "kl_in_reward" => {
            if is_true {
                t.refuse_option(&given.text_for_messages(), "reel has the KL term in the loss", "use --beta");
            }
        }
        "kl_coef" => {
            // Older configuration files of EasyR1 have one KL coefficient for the loss and one for the reward.
            let is_of_loss = given.name.ends_with("kl_loss_coef");
            t.keep(if is_of_loss { "kl_loss_coef" } else { "kl_coef" }, value.to_string(), given);
        }
        "disable_kl" => {
            let switches_off = is_true == given.name.ends_with("disable_kl");
            if switches_off {
                t.keep("no_kl", String::new(), given);
            }
        }
        _ => return false,
    }
    true
}

/// Returns true if a value switches an option on in Python programs (`true`, `yes`, `1`, …).
pub fn is_python_true(value: &str) -> bool {
    ["true", "yes", "on", "1", "y", "t"].contains(&value.to_ascii_lowercase().as_str())
}

fn tracker_names(given: &GivenOption) -> Vec<String> {
    listed_values(given).iter().flat_map(|text| text.split(',').map(str::to_string)).collect()
}

fn is_own_tracker(name: &str) -> bool {
    ["tensorboard", "wandb", "none"].contains(&name)
}

/// The trackers to which reel does not report. The loggers `console` and `file` of verl and EasyR1 are what reel does
/// anyway.
fn other_trackers(names: &[String]) -> Vec<&str> {
    let always = |name: &str| ["all", "console", "file"].contains(&name);
    names.iter().map(String::as_str).filter(|name| !is_own_tracker(name) && !always(name)).collect()
}

/// Whether an option of a configuration file names an experiment tracker that reel does not have.
pub fn names_other_tracker(given: &GivenOption) -> bool {
    given.name == "report_to" && !other_trackers(&tracker_names(given)).is_empty()
}

/// Translates the option that names experiment trackers. Other trackers than those of reel are refused, because
/// nothing would be written for them.
fn report_to(given: &GivenOption, t: &mut CommandTranslation) {
    let names = tracker_names(given);
    let others = other_trackers(&names);
    if !others.is_empty() {
        t.is_foreign = true;
        let what = format!("names {}, and reel reports to tensorboard and wandb alone", others.join(", "));
        let help = "write a script with the client of the other service and give it as --report-command CMD \
                    (docs/examples/report.py)";
        t.refuse_option(&given.text_for_messages(), &what, help);
    }
    let mut places: Vec<String> = names.iter().filter(|name| is_own_tracker(name)).cloned().collect();
    if names.iter().any(|name| name == "all") || given.values.len() > 1 {
        t.is_changed = true;
    }
    if names.iter().any(|name| name == "all") {
        places = vec!["tensorboard".into(), "wandb".into()];
        t.notes.push(format!("note: {} is tensorboard and wandb here", given.text_for_messages()));
    }
    if places.is_empty() {
        places = vec!["tensorboard".into()];
    }
    t.set_option("report_to", vec![places.join(",")], given);
}

/// Translates the list of layers without a LoRA adapter. Refuses the name of a decoder layer, because reel cannot
/// exclude single decoder layers by name. A regular expression of verl (`.*visual.*|lm_head`) is read as the names in
/// it.
fn lora_exclusions(given: &GivenOption, t: &mut CommandTranslation) {
    let is_mark = |c: char| "()^$.*\\".contains(c);
    let names: Vec<String> = listed_values(given)
        .iter()
        .flat_map(|text| text.split([',', '|']))
        .map(|name| name.trim_matches(|c: char| is_mark(c) || c.is_whitespace()).to_string())
        .filter(|name| !name.is_empty())
        .collect();
    let is_tower = |name: &str| ["visual", "vision_tower"].contains(&name.trim_start_matches("model."));
    let never_adapted =
        |name: &str| ["lm_head", "embed_tokens", "merger", "patch_embed"].contains(&name.trim_start_matches("model."));
    match names.iter().find(|name| !is_tower(name) && !never_adapted(name)) {
        Some(name) => t.refuse_option(
            &given.text_for_messages(),
            &format!("excludes {name} from LoRA"),
            "name the layers that get an adapter in --lora-target-modules",
        ),
        None => t.harmless.push((given.written.clone(), "layers that get no adapter")),
    }
    if names.iter().any(|name| is_tower(name)) {
        t.mark("tower_excluded");
    }
    if names.iter().any(|name| name.ends_with("merger")) {
        t.keep("merger_excluded", String::new(), given);
    }
}

/// Translates the list of layers with a LoRA adapter. If the vision tower is frozen, which is the default of other
/// programs, `all` of LLaMA-Factory and `all-linear` of other programs do not include it: these are the layers that
/// reel adapts by default.
fn lora_targets(given: &GivenOption, t: &mut CommandTranslation) {
    let names: Vec<String> =
        listed_values(given).iter().flat_map(|text| text.split(',').map(|name| name.trim().to_string())).collect();
    if names.iter().any(|name| ["all", "all-linear", "all_linear"].contains(&name.as_str())) {
        // Whether the vision tower is frozen is known only after all options are read.
        t.keep("all_linear", String::new(), given);
        if given.name == "lora_target_modules" && given.written.starts_with("--lora-") {
            t.mark("all_linear_own");
        }
        return;
    }
    if names.iter().any(|name| name.contains(['[', '(', '|', '*', '+', '^', '$', '\\'])) {
        let help =
            "name the layers, such as q_proj,v_proj; without the option all linear layers of the decoder are adapted";
        t.refuse_option(&given.text_for_messages(), "is a regular expression", help);
        return;
    }
    t.is_changed |= given.values.len() > 1;
    t.set_option("lora_target_modules", vec![names.join(",")], given);
}

/// Translates the options of several programs that freeze parts of the model.
fn freezing(given: &GivenOption, is_true: bool, t: &mut CommandTranslation) {
    let name = given.name.as_str();
    let frozen = if name.starts_with("tune_") || name.starts_with("unfreeze_") { !is_true } else { is_true };
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if ends(&["llm", "language_model"]) {
        t.weights.decoder = Some((frozen, given.text_for_messages()));
    } else if ends(&["aligner", "merger", "projector", "mlp"]) {
        t.weights.merger = Some((frozen, given.text_for_messages()));
    } else {
        t.weights.tower = Some((frozen, given.text_for_messages()));
    }
    if name == "freeze_vision" {
        // The option `--freeze-vision` of reel also freezes the merger.
        t.weights.merger.get_or_insert((frozen, String::new()));
    }
}

/// Parts of DeepSpeed's configuration file that decide how a model is trained, whatever the options of the program say.
/// Its other parts divide, place or move the work; `gradient_clipping` and the batch sizes must agree with the options.
const TRAINING_KEYS: [&str; 6] = [
    "optimizer",
    "scheduler",
    "data_efficiency",
    "curriculum_learning",
    "compression_training",
    "progressive_layer_drop",
];

/// Translates DeepSpeed's configuration and FSDP's sharding mode. A stage that shards the weights becomes ZeRO-3. The
/// other stages, and offloading, need no option in reel. A configuration file with an optimizer other than AdamW, or
/// with another part that changes the training, is refused.
fn zero_stage(value: &str, given: &GivenOption, t: &mut CommandTranslation) {
    let text = value.to_ascii_lowercase();
    let file = std::fs::read_to_string(value).ok();
    let file = file.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let of_file = file.as_ref().and_then(|file| file.pointer("/zero_optimization/stage")?.as_u64());
    let is_adam = |part: &Value| ["Adam", "AdamW"].map(Value::from).contains(&part["type"]);
    let changes = |key: &&&str| {
        let part = file.as_ref().and_then(|file| file.get(**key));
        part.is_some_and(|part| !(part["enabled"] == Value::Bool(false) || **key == "optimizer" && is_adam(part)))
    };
    if let Some(key) = TRAINING_KEYS.iter().find(changes) {
        let what = format!("has {key}, which changes the training");
        let help = "take it out of the file, and give reel's options, such as --optim and --lr-scheduler-type";
        t.harmless.retain(|(name, _)| *name != given.written);
        t.refuse_option(&given.text_for_messages(), &what, help);
    }
    let names_stage = ["zero3", "zero_3", "zero-3", "_z3", "stage3", "stage_3"].iter().any(|name| text.contains(name));
    let divides_weights = match given.name.as_str() {
        "fsdp" => is_python_true(value) || text.contains("full_shard") || text.contains("hybrid_shard"),
        _ => of_file.map_or(names_stage, |stage| stage == 3),
    };
    if divides_weights {
        let values = vec!["3".to_string()];
        t.fallbacks.push(OptionSetting { name: "zero_stage".into(), values, shown: given.text_for_messages() });
    }
}
