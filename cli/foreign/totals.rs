//! Translates what several options of another program set together, after all options are read: the trained weights,
//! the batch size, the rewards, the server's address.

use reel_samples::rewards::BuiltInReward;

use super::translation::{CommandTranslation, PartValue};
use super::{environment, peers, places, rules_data, weights};

/// Combines options that depend on each other, after all options have been read.
pub fn combine_options(t: &mut CommandTranslation) {
    for fallback in std::mem::take(&mut t.fallbacks) {
        if !t.is_set(&fallback.name) {
            t.add_option(&fallback.name, fallback.values, &fallback.shown);
        }
    }
    if t.is_foreign {
        frames_beside_a_rate(t);
    }
    match t.command.as_str() {
        "sft" | "grpo" => {
            epochs(t);
            checkpoints_of_epochs(t);
            evaluation_of_training(t);
            rules_data::combine_data_set_options(t);
            if t.is_foreign {
                places::translate_data_set_names(t);
                peers::set_default_output_folder(t);
            }
            other_folders(t);
            resume(t);
            weights::translate_weight_options(t);
            if t.command == "grpo" {
                rewards(t);
                divergence(t);
                second_bound(t);
                tokens_with_prompt(t);
                long_prompts(t);
            } else if t.is_foreign {
                long_rows(t);
            }
            environment::translate_batch_size(t);
        }
        "serve" if t.is_foreign => {
            rules_data::combine_data_set_options(t);
            server(t);
        }
        "eval" if t.is_foreign => evaluation(t),
        "bench" if t.is_foreign => load_test(t),
        _ => {}
    }
}

/// Translates ms-swift's `max_epochs`, which ends a run before its `num_train_epochs` epochs.
fn epochs(t: &mut CommandTranslation) {
    let Some(PartValue { value: most, shown }) = t.parts.remove("max_epochs") else { return };
    // In OpenRLHF, `max_epochs` is the number of passes over a rollout.
    if peers::most_likely_program(t) == "openrlhf" {
        return t.add_option("num_iterations", vec![most], &shown);
    }
    let Some(epochs) = t.option_number("num_train_epochs") else {
        return t.add_option("num_train_epochs", vec![most], &shown);
    };
    if most.parse::<f64>().is_ok_and(|most| most < epochs) {
        let what = format!("ends the run before its {epochs} epochs, whose learning rates it keeps");
        let help = "give --num-train-epochs alone, whose last step has the last learning rate (the command below has the \
                    smaller number)";
        t.refuse_option(&shown, &what, help);
        t.replace_option("num_train_epochs", &most, &shown);
    } else {
        t.harmless.push((shown, "bounds that the number of epochs does not reach"));
    }
}

/// Translates options that write a checkpoint after each epoch, or several in each epoch (`save_strategy epoch`,
/// Axolotl's `saves_per_epoch`). The other programs then ignore `save_steps`. reel counts steps, and writes a
/// checkpoint at the end, which is the only one of a run of one epoch.
fn checkpoints_of_epochs(t: &mut CommandTranslation) {
    let Some(PartValue { value: per_epoch, shown }) = t.parts.remove("saves_per_epoch") else { return };
    if let Some(setting) = t.remove_option("save_steps") {
        t.harmless.push((setting.shown, "intervals of checkpoints, which the other program ignores: it counts epochs"));
    }
    let is_bounded = t.option_number("max_steps").is_some_and(|steps| steps > 0.0);
    let has_one_epoch = !t.is_set("config") && t.option_number("num_train_epochs").unwrap_or(1.0) <= 1.0;
    if per_epoch == "1" && has_one_epoch && !is_bounded {
        return t.add_option("save_steps", vec!["0".into()], &shown);
    }
    let help = "give --save-steps N with the steps between two checkpoints (an epoch has as many steps as --data has \
                rows, divided by the rows of a step); the command below has the default of --save-steps";
    t.refuse_option(&shown, "counts the checkpoints of an epoch, and reel counts steps", help);
}

/// Settles a number of frames beside a frame rate, which exclude each other in reel. In `--media-io-kwargs` of vLLM,
/// the number of frames is the maximum for a video that is read at the frame rate (`vllm/multimodal/video.py`).
fn frames_beside_a_rate(t: &mut CommandTranslation) {
    let setting = |name: &str| t.settings.iter().find(|setting| setting.name == name).cloned();
    let Some((frames, rate)) = setting("nframes").zip(setting("fps")) else { return };
    t.remove_option("nframes");
    let is_of_vllm = frames.shown == rate.shown && frames.shown.replace('-', "_").contains("media_io_kwargs");
    if is_of_vllm && !t.is_set("max_frames") {
        return t.add_option("max_frames", frames.values, &frames.shown);
    }
    let what = match frames.shown == rate.shown {
        true => "sets a number of frames and a frame rate".to_string(),
        false => format!("sets a number of frames, and {} sets a frame rate", rate.shown),
    };
    let help =
        "give one of --nframes and --fps (the command below has --fps); --max-frames limits the frames at a rate";
    t.refuse_option(&frames.shown, &what, help);
}

/// Removes `--resume_from_checkpoint True` if the output folder has no checkpoint. Scripts that are started again
/// after an interruption have this option from their first start on.
fn resume(t: &mut CommandTranslation) {
    // Without --out on the command line, the folder is that of a configuration file, or of an earlier run.
    let Some(out) = t.option_value("out") else { return };
    let is_checkpoint = |name: std::ffi::OsString| name.to_string_lossy().starts_with("checkpoint-");
    let mut entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    if t.option_value("resume_from_checkpoint") != Some("last") || entries.any(|entry| is_checkpoint(entry.file_name()))
    {
        return;
    }
    let shown = t.settings.iter().find(|s| s.name == "resume_from_checkpoint").map(|s| s.shown.clone());
    if let Some(shown) = shown.filter(|shown| !shown.ends_with(" last")) {
        t.remove_option("resume_from_checkpoint");
        t.notes.push(format!("note: {shown}: --out has no checkpoint, so the run starts with its first step"));
    }
}

/// Translates the evaluation interval (`eval_steps`). reel has this option only if the command names a benchmark or
/// validation rows. reel selects the best checkpoint by default, which needs checkpoint intervals that are multiples
/// of the evaluation interval; other programs do so only on request. If the intervals do not fit, the selection is
/// switched off.
fn evaluation_of_training(t: &mut CommandTranslation) {
    let Some(PartValue { value: steps, shown }) = t.parts.remove("eval_steps") else { return };
    let validates = t.is_set("val_size") || t.is_set("eval_file");
    let is_share = steps.parse::<f64>().is_ok_and(|steps| steps > 0.0 && steps < 1.0);
    if t.is_foreign && validates && is_share {
        return t.harmless.push((shown, "evaluation during training: the loss is computed at each checkpoint"));
    }
    match !t.is_foreign || t.is_set("eval_benchmark") || t.is_set("eval_data") || validates {
        true => {
            let divides = |saves: f64| steps.parse::<f64>().is_ok_and(|steps| steps > 0.0 && saves % steps == 0.0);
            let is_compared = t.is_foreign && validates && !t.is_set("metric_for_best_model");
            if is_compared && !divides(t.option_number("save_steps").unwrap_or(500.0)) {
                t.add_option("metric_for_best_model", vec!["none".into()], &shown);
            }
            t.add_option("eval_steps", vec![steps], &shown);
        }
        false => t.harmless.push((shown, "evaluation during training: it does not change the weights")),
    }
}

/// Translates the reward names of TRL and ms-swift into weights of reel's rewards. A reward that is not named gets
/// the weight 0.
fn rewards(t: &mut CommandTranslation) {
    let weights = t.parts.remove("reward_weights");
    let Some(PartValue { value: names, shown }) = t.parts.remove("reward_funcs") else {
        if let Some(weights) = weights {
            t.add_option("reward_weights", vec![weights.value], &weights.shown);
        }
        return;
    };
    let listed: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    for name in
        listed.iter().filter(|name| !name.contains(':') && BuiltInReward::listed_names().all(|own| own != **name))
    {
        let own: Vec<&str> = BuiltInReward::listed_names().collect();
        let what = format!("has {name}, which is not a reward of reel ({} are)", own.join(" and "));
        t.refuse_option(&shown, &what, "give --reward-funcs FILE.py:NAME, a function written for TRL");
    }
    let numbers: Vec<String> = weights.iter().flat_map(|part| part.value.split(',').map(str::to_string)).collect();
    let weight = |at: usize| numbers.get(at).cloned().unwrap_or_else(|| "1".into());
    let kept = listed.iter().enumerate().filter_map(|(at, name)| Some((own_reward(name)?, weight(at))));
    let chosen: Vec<(&str, String)> = kept.collect();
    let has_accuracy = chosen.iter().any(|(own, _)| *own == "accuracy");
    if has_accuracy && !["", "video-r1"].contains(&peers::most_likely_program(t)) {
        let rule = "compares the answer by the row's problem_type (docs/data.md); other programs have other rules";
        t.notes.push(format!("note: the reward accuracy {rule} under this name"));
    }
    if names.contains(':') {
        // The list names functions in Python files, and may also name rewards of reel.
        let (names, of_names): (Vec<&str>, Vec<String>) = chosen.into_iter().unzip();
        t.add_option("reward_funcs", vec![names.join(",")], &shown);
        if let Some(PartValue { value, shown }) = weights {
            let value = if numbers.len() == listed.len() { of_names.join(",") } else { value };
            t.add_option("reward_weights", vec![value], &shown);
        }
        return;
    }
    let weight = |name: &str| chosen.iter().find(|(own, _)| *own == name).map_or("0", |(_, weight)| weight);
    let all = BuiltInReward::listed_names().map(|name| (name, weight(name)));
    if !chosen.is_empty() && !t.is_set("reward_command") {
        if all.clone().any(|(_, weight)| weight != "1") {
            let all: Vec<String> = all.map(|(name, weight)| format!("{name}={weight}")).collect();
            t.add_option("reward_weights", vec![all.join(",")], &shown);
        }
        if !t.is_set("len_control") {
            t.add_option("len_control", vec!["false".into()], &shown);
        }
    }
}

/// Returns the reward that the translated command has for a listed one: a function of a Python file, or a reward of
/// reel; for a refused name the reward of reel that is closest to it, if there is one. Only the same rule has the same
/// name: reel's rewards are the rules of Video-R1 and VideoRFT. TRL's `think_format_reward` asks for no `<answer>`
/// tags, and its `accuracy_reward` compares whole completions by `math_verify`.
fn own_reward(name: &str) -> Option<&str> {
    if name.contains(':') {
        return Some(name);
    }
    BuiltInReward::listed_names().find(|own| name.contains(own))
}

/// Translates the KL term of verl and EasyR1: whether it is in the loss or in the reward, its coefficient and its
/// estimator.
fn divergence(t: &mut CommandTranslation) {
    let is_easyr1 = peers::most_likely_program(t) == "easyr1";
    let (of_reward, of_loss) = (t.parts.remove("kl_coef"), t.parts.remove("kl_loss_coef"));
    let (coefficient, shown) = of_loss.or(of_reward).map(|part| (part.value, part.shown)).unzip();
    let shown: String = shown.unwrap_or_default();
    let in_loss = t.parts.remove("use_kl_loss").map(|part| (part.value == "true", part.shown));
    let (in_loss, in_loss_shown): (_, Option<String>) = in_loss.unzip();
    let in_loss_shown = in_loss_shown.unwrap_or_default();
    let no_kl = t.parts.remove("no_kl").map(|part| part.shown);
    // Without the KL loss, verl has no KL term (its KL reward is refused by another rule), but EasyR1 puts the KL
    // term into the reward.
    let off = no_kl.clone().or((in_loss == Some(false) && !is_easyr1).then(|| in_loss_shown.clone()));
    let off = off.or((in_loss.is_none() && !is_easyr1 && coefficient.is_some()).then(|| shown.clone()));
    // EasyR1's `use_kl_loss` is false by default, so a coefficient, or a KL term that is switched on, is of the reward.
    let is_zero = coefficient.as_ref().is_some_and(|value| value.parse::<f64>() == Ok(0.0));
    let switched_on = t
        .read
        .iter()
        .find(|(name, _)| name.ends_with(".disable_kl"))
        .map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("true")));
    let kl_shown = match in_loss {
        Some(true) => None,
        Some(false) => Some(in_loss_shown.clone()),
        None if coefficient.is_some() => Some(shown.clone()).filter(|_| !is_zero),
        None => switched_on,
    };
    let in_reward = is_easyr1 && no_kl.is_none() && kl_shown.is_some();
    if let Some(kl_shown) = kl_shown.filter(|_| in_reward) {
        t.refuse_option(&kl_shown, "puts the KL term into the reward, but reel has it in the loss", "use --beta");
    }
    let (of_loss, of_reward) = (t.parts.remove("kl_loss_type"), t.parts.remove("kl_penalty"));
    let estimator = if is_easyr1 { of_loss.or(of_reward) } else { of_loss };
    let other = estimator.filter(|part| !["low_var_kl", "k3"].contains(&part.value.as_str()));
    if let Some(other) = other.filter(|_| off.is_none() && !in_reward) {
        let what = "is not reel's estimate of the KL term, which is low_var_kl (k3)";
        let help = "leave this option out, or use --beta 0 for no KL term";
        t.refuse_option(&other.shown, what, help);
    }
    match (off, coefficient) {
        (Some(shown), _) if !t.is_set("beta") => t.add_option("beta", vec!["0".into()], &shown),
        (None, Some(value)) if !t.is_set("beta") => t.add_option("beta", vec![value], &shown),
        // If the command switches the KL loss on without a coefficient, it gets 0.001, the default of verl and
        // EasyR1.
        (None, None) if in_loss == Some(true) && !t.is_set("beta") => {
            t.notes.push("note: --beta 0.001 (the other program's default coefficient of the KL term)".into());
            t.add_option("beta", vec!["0.001".into()], &in_loss_shown);
        }
        _ => {}
    }
}

/// Adds a note about prompts that are too long: reel skips such rows; TRL and the trainers that are based on it cut
/// the beginning of the prompt.
fn long_prompts(t: &mut CommandTranslation) {
    if ["trl", "video-r1"].contains(&peers::most_likely_program(t)) && t.is_set("max_prompt_length") {
        let note = "note: --max-prompt-length skips rows with a longer prompt; the other program cuts the beginning of \
                    such a prompt";
        t.notes.push(note.into());
    }
}

/// Translates a second clip bound of the probability ratio (verl's dual clip, TRL's `delta`). reel samples a rollout
/// for each step, and the ratio is 1 in the first step after a rollout. The bound therefore has an effect only if
/// `--num-iterations` exceeds 1.
fn second_bound(t: &mut CommandTranslation) {
    let Some(PartValue { value: name, shown }) = t.parts.remove("dual_clip") else { return };
    match t.option_number("num_iterations").is_some_and(|n| n > 1.0) {
        true => {
            let what = "is a second bound of the probability ratio, which changes a loss if --num-iterations exceeds 1";
            t.refuse_option(&shown, what, "leave this option out: --epsilon and --epsilon-high are the bounds of reel");
        }
        false => t.harmless.push((name, "bounds of the probability ratio, which is 1: each rollout has one step")),
    }
}

/// Translates the limit of an engine for a prompt together with its completion. It has no effect if the options allow
/// no longer ones; otherwise completions are cut after fewer tokens than `--max-completion-length`.
fn tokens_with_prompt(t: &mut CommandTranslation) {
    let Some(PartValue { value, shown }) = t.parts.remove("tokens_with_prompt") else { return };
    let Ok(limit) = value.parse::<f64>() else { return };
    let prompt = t.option_number("max_prompt_length").unwrap_or(1.0);
    if limit < prompt + t.option_number("max_completion_length").unwrap_or(1.0) {
        let what = "is less than the tokens of a prompt and its completion, so it cuts completions";
        return t.refuse_option(&shown, what, "give --max-prompt-length and --max-completion-length, and leave it out");
    }
    t.harmless.push((shown, "the engine that samples: reel has its own, with the weights that it trains"));
}

/// Sets what happens to rows above the maximum length, and the length of a packed batch, to the defaults of the other
/// program.
fn long_rows(t: &mut CommandTranslation) {
    let program = peers::most_likely_program(t);
    let default = match program {
        "trl" => "1024",
        "llamafactory" => "2048",
        "axolotl" => "512",
        _ => "",
    };
    let packs = t.option_value("packing").is_some_and(|value| value != "false")
        || t.settings.iter().any(|setting| setting.name == "packing" && setting.values.is_empty());
    if packs && !t.is_set("max_length") && !t.is_set("config") && !default.is_empty() {
        t.notes.push(format!("note: --max-length {default} (the other program's default; packing needs such a limit)"));
        t.add_option("max_length", vec![default.to_string()], "packing");
    }
    if program == "trl" && t.is_set("max_length") && !t.is_set("truncation_strategy") {
        t.add_option("truncation_strategy", vec!["right".into()], "max_length");
    }
}

/// Refuses another folder for the tokenizer or the configuration than that of the model. A reference of a configuration
/// file (`${worker.actor.model.model_path}`) is to that of the model.
fn other_folders(t: &mut CommandTranslation) {
    for part in ["tokenizer", "data_tokenizer", "config_path"] {
        let Some(folder) = t.parts.remove(part).filter(|folder| !folder.value.starts_with("${")) else { continue };
        if t.option_value("model") != Some(folder.value.as_str()) {
            let help = "put the files there, and leave this option out";
            t.refuse_option(&folder.shown, "reel reads the tokenizer and config.json of the model folder", help);
        }
    }
}

/// Translates the options of a server. vLLM serves every client that reaches it; reel needs an API key or `--no-auth`
/// for an address that other machines can reach.
fn server(t: &mut CommandTranslation) {
    if !t.is_set("model") {
        // The model may have been read as the value of a switch of the other program that precedes it.
        let path = |text: &str| text.contains('/') || std::path::Path::new(text).exists();
        let found = t.harmless_values.iter().find(|value| path(value)).cloned();
        if let Some(model) = found {
            t.add_option("model", vec![model], "model");
        }
    }
    other_folders(t);
    let host = t.option_value("host").unwrap_or("127.0.0.1").to_string();
    let is_local = ["localhost", "::1"].contains(&host.as_str()) || host.starts_with("127.");
    let has_key =
        t.is_set("api_key") || t.is_set("api_key_file") || (t.surroundings.variable)("VLLM_API_KEY").is_some();
    if !is_local && !has_key && !t.is_set("no_auth") {
        let what = "can be reached from other machines, and there is no API key";
        let help = "give --api-key-file FILE (or set VLLM_API_KEY), or --no-auth to serve everybody, as vLLM does";
        t.refuse_option(&format!("--host {host}"), what, help);
        t.add_option("no_auth", Vec::new(), "--host");
    }
}

fn evaluation(t: &mut CommandTranslation) {
    if t.parts.contains_key("model_args") {
        // In lmms-eval, `--model` names the Python class that runs the model, so it is removed.
        t.remove_option("model");
        let endpoint = t.is_set("endpoint");
        match t.parts.remove("pretrained") {
            Some(model) if !endpoint => t.add_option("model", vec![model.value], "--model_args pretrained"),
            // Some classes call the model `model_version` or `model_name`.
            None if !endpoint => {
                if let Some(setting) = t.remove_option("endpoint_model") {
                    t.add_option("model", setting.values, &setting.shown);
                }
            }
            Some(model) if !t.is_set("endpoint_model") => {
                t.add_option("endpoint_model", vec![model.value], "--model_args model")
            }
            _ => {}
        }
        if !endpoint {
            t.remove_option("endpoint_model");
        }
    }
    let variable = |name: &str| (t.surroundings.variable)(name).filter(|value| !value.is_empty());
    let base = variable("OPENAI_API_BASE").or(variable("OPENAI_BASE_URL"));
    let data = variable("LMUData");
    if t.parts.contains_key("vlmevalkit") {
        let model = t.option_value("model").unwrap_or_default().to_string();
        let is_served = ["gpt", "claude", "gemini", "qwen-vl-max", "lmdeploy"]
            .iter()
            .any(|start| model.to_ascii_lowercase().starts_with(start));
        if is_served {
            t.remove_option("model");
            let url = base.unwrap_or_else(|| "http://127.0.0.1:8000/v1".into());
            t.add_option("endpoint", vec![url.trim_end_matches("/chat/completions").to_string()], "OPENAI_API_BASE");
            t.add_option("endpoint_model", vec![model], "--model");
        } else if model.starts_with("Qwen2.5-VL-") && !std::path::Path::new(&model).exists() {
            t.replace_option("model", &format!("Qwen/{model}"), "--model");
        }
        if !t.is_set("out") {
            t.add_option("out", vec!["outputs".into()], "VLMEvalKit's folder for results");
        }
        let value = data.unwrap_or_else(|| "LMUData".into());
        t.parts.entry("eval_data").or_insert(PartValue { value, ..PartValue::default() });
    }
    let needs_data = !t.is_set("data") && !t.is_set("score_only");
    if needs_data && !t.parts.contains_key("eval_data") {
        t.refuse_option("--data", "is missing", "give the folder with the benchmarks' own files, as published");
        t.add_option("data", vec!["DATA".into()], "--data");
    }
    if let Some(PartValue { value: folder, .. }) = t.parts.remove("eval_data").filter(|_| needs_data) {
        t.add_option("data", vec![folder.clone()], "the program's folder of data");
        if !std::path::Path::new(&folder).exists() {
            let what = format!("is missing: the other program downloads benchmarks, or reads them from {folder}");
            t.refuse_option("--data", &what, "give the folder with the benchmarks' own files, as published");
        }
    }
}

/// Translates the options of a load test: the server's address, and the file for the result.
fn load_test(t: &mut CommandTranslation) {
    let mut take = |name: &str| t.parts.remove(name).map(|part| part.value);
    let (host, port, api) = (take("host"), take("port"), take("endpoint"));
    let (folder, file, saves) = (take("result_dir"), take("result_filename"), take("save_result").is_some());
    if (host.is_some() || port.is_some()) && !t.is_set("url") {
        // A client cannot connect to 0.0.0.0 or ::, which mean all addresses of the server's machine.
        let host = host.filter(|host| !["0.0.0.0", "::"].contains(&host.as_str())).unwrap_or("127.0.0.1".into());
        t.add_option("url", vec![format!("http://{host}:{}", port.unwrap_or("8000".into()))], "--host, --port");
    }
    if let Some(api) = api.filter(|_| !t.is_set("endpoint")) {
        t.add_option("endpoint", vec![api], "--backend");
    }
    if saves && !t.is_set("out") {
        let file = file.unwrap_or_else(|| "reel-bench-serve.json".into());
        let (path, missing) = match folder {
            Some(folder) if std::path::Path::new(&folder).is_dir() => {
                (format!("{}/{file}", folder.trim_end_matches('/')), String::new())
            }
            Some(folder) => (file, format!("; there is no folder {folder}")),
            None => (file, String::new()),
        };
        t.notes.push(format!("note: the result goes to {path} (--out){missing}"));
        t.add_option("out", vec![path], "--save-result");
    }
}
