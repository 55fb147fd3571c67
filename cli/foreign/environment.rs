//! Environment variables that other training programs read, and the translation of their batch sizes, which depend on
//! the number of processes.

use super::translation::{CommandTranslation, PartValue};
use super::{TranslationOutcome, message, peers, totals};

/// Environment variables of ms-swift and qwen-vl-utils, each with the option of reel that has the same meaning.
pub const MEDIA_VARIABLES: [(&str, &str); 9] = [
    ("MAX_PIXELS", "image_max_pixels"),
    ("MIN_PIXELS", "image_min_pixels"),
    ("VIDEO_MAX_PIXELS", "video_max_pixels"),
    ("VIDEO_MIN_PIXELS", "video_min_pixels"),
    ("VIDEO_TOTAL_PIXELS", "total_pixels"),
    ("FPS_MAX_FRAMES", "max_frames"),
    ("FPS_MIN_FRAMES", "min_frames"),
    ("NFRAMES", "nframes"),
    ("FPS", "fps"),
];

/// The commands that read images and videos for a model. Only these commands use [`MEDIA_VARIABLES`].
const READERS: [&str; 5] = ["sft", "grpo", "serve", "eval", "generate"];

/// Adds the options whose environment variables in [`MEDIA_VARIABLES`] are set, except for options that the command
/// line sets.
pub fn add_environment_options(t: &mut CommandTranslation) {
    let path = t.line.path.join(" ");
    if !READERS.contains(&path.strip_prefix("plan ").unwrap_or(&path)) {
        return;
    }
    let mut taken = Vec::new();
    for (variable, option) in MEDIA_VARIABLES {
        let value = (t.surroundings.variable)(variable).filter(|value| value.parse::<f64>().is_ok());
        let Some(value) = value.filter(|_| t.has_option(option) && !t.is_set(option)) else { continue };
        // The number of frames and the frame rate exclude each other, so a variable has no effect if the command line
        // sets the other option.
        let other = match option {
            "nframes" => Some("fps"),
            "fps" => Some("nframes"),
            // The options --max-pixels and --min-pixels apply to images and videos, so they override these variables.
            "image_max_pixels" | "video_max_pixels" => Some("max_pixels"),
            "image_min_pixels" | "video_min_pixels" => Some("min_pixels"),
            _ => None,
        };
        if other.is_some_and(|other| t.is_set(other)) {
            continue;
        }
        t.add_option(option, vec![value.clone()], variable);
        taken.push(format!("--{} {value} ({variable})", option.replace('_', "-")));
    }
    if !taken.is_empty() {
        t.notes.push(format!("note: taken from environment variables: {}", taken.join(", ")));
    }
}

/// Returns the outcome for a command that has only options of reel, to which only environment variables can add
/// options.
pub fn outcome_with_environment_options_only(mut t: CommandTranslation) -> TranslationOutcome {
    if !t.problems.is_empty() {
        return TranslationOutcome::Unchanged;
    }
    let before = t.settings.len();
    add_environment_options(&mut t);
    if t.settings.len() == before && !t.is_changed {
        return TranslationOutcome::Unchanged;
    }
    totals::combine_options(&mut t);
    message::translation_outcome(&t)
}

/// Translates the batch size of another program. In reel, as in TRL, `--per-device-train-batch-size` of GRPO counts
/// completions, in whole groups, and `--gradient-accumulation-steps` of reel counts the micro-batches of all
/// processes. Other programs count prompts, or have groups that span several processes.
pub fn translate_batch_size(t: &mut CommandTranslation) {
    let program = peers::most_likely_program(t);
    if t.command == "grpo" {
        group_batch(t, program);
    }
    if let Some(rows) = t.parts.remove("global_batch").and_then(|part| part.value.parse::<u64>().ok()) {
        // By default, a micro-batch of verl has four rows.
        let rows_per_micro_batch = t.option_number("per_device_train_batch_size").unwrap_or(4.0).max(1.0) as u64;
        t.mark("processes_counted");
        t.replace_option("per_device_train_batch_size", &rows_per_micro_batch.to_string(), "batch");
        let steps = rows.div_ceil(rows_per_micro_batch).max(1);
        t.replace_option("gradient_accumulation_steps", &steps.to_string(), "batch");
        t.notes.push(format!(
            "note: a step has {rows} rows: --per-device-train-batch-size {rows_per_micro_batch} \
             --gradient-accumulation-steps {steps}"
        ));
    }
    // In the other programs, each process of a launcher has its own gradient accumulation.
    let processes = t.surroundings.processes;
    // The batch size of GRPO may have been converted to the total of all processes already (`processes_counted`).
    if t.is_foreign && processes > 1 && !t.parts.contains_key("processes_counted") {
        let steps = t.option_number("gradient_accumulation_steps").unwrap_or(1.0).max(1.0) as usize;
        let all = steps.saturating_mul(processes);
        t.replace_option("gradient_accumulation_steps", &all.to_string(), "gradient_accumulation_steps");
        t.notes.push(format!(
            "note: --gradient-accumulation-steps is {all}, {steps} for each of {processes} processes: reel counts the \
             micro-batches of all processes"
        ));
    }
    if let Some((shown, wanted)) = launched_processes(t).filter(|_| processes == 1 && t.is_foreign && !t.is_set("gpus"))
    {
        let steps = t.option_number("gradient_accumulation_steps").unwrap_or(1.0).max(1.0) as usize;
        let taken = t.parts.contains_key("processes_counted");
        let all = if taken { steps } else { steps.saturating_mul(wanted) };
        // A group of completions is never divided, and each process needs a micro-batch.
        t.notes.push(match all < wanted {
            true => format!(
                "note: {shown}: the batch of these {wanted} processes is {all} micro-batches of whole groups, so reel can \
                 share it among at most {all} processes (--gpus {all})"
            ),
            false => format!(
                "note: {shown}: reel starts this many processes with --gpus {wanted}; with any number of them \
                 --gradient-accumulation-steps {all} keeps the batch of {wanted} processes"
            ),
        });
    }
}

/// Returns the number of processes that the other program's launcher would start, if it is more than one, and the
/// variable or option that sets it: `NPROC_PER_NODE`, `num_processes` of accelerate, or `nproc_per_node` of torchrun.
fn launched_processes(t: &CommandTranslation) -> Option<(String, usize)> {
    let number = |name: &str| {
        let value = t.read.iter().find(|(given, _)| given == name)?.1.as_deref()?;
        value.parse::<usize>().ok()
    };
    let of_variable = (t.surroundings.variable)("NPROC_PER_NODE").and_then(|n| n.parse().ok());
    let of_variable = of_variable.map(|n: usize| (format!("NPROC_PER_NODE={n}"), n));
    let of_accelerate = || number("num_processes").map(|n| (format!("num_processes {n}"), n));
    let of_torchrun = || {
        let (processes, nodes) = (number("nproc_per_node")?, number("nnodes").unwrap_or(1));
        Some((format!("nproc_per_node {processes} on {nodes} node(s)"), processes.saturating_mul(nodes)))
    };
    of_variable.or_else(of_accelerate).or_else(of_torchrun).filter(|(_, processes)| *processes > 1)
}

/// Multiplies the options that count the rollouts of verl and EasyR1 (steps, checkpoints, warmup) by the optimizer
/// steps of a rollout, because reel counts optimizer steps. Returns the changed options as text.
fn count_optimizer_steps(t: &mut CommandTranslation, steps_per_rollout: u64) -> Vec<String> {
    let mut changed = Vec::new();
    for setting in &mut t.settings {
        let counts = ["max_steps", "save_steps", "warmup_steps"].contains(&setting.name.as_str());
        let is_of_rollouts = counts && ["trainer.", "optim."].iter().any(|key| setting.shown.contains(key));
        let number = setting.values.first().and_then(|value| value.parse::<u64>().ok()).filter(|number| *number > 0);
        if let Some(number) = number.filter(|_| is_of_rollouts) {
            let steps = number.saturating_mul(steps_per_rollout);
            setting.values = vec![steps.to_string()];
            changed.push(format!("--{} {steps} ({})", setting.name.replace('_', "-"), setting.shown));
        }
    }
    changed
}

fn group_batch(t: &mut CommandTranslation, program: &'static str) {
    let group = t.option_number("num_generations").unwrap_or(8.0).max(2.0) as u64;
    if let Some(prompts) = t.parts.remove("prompts_per_step").and_then(|part| part.value.parse::<u64>().ok()) {
        let rollout = t.parts.remove("prompts_per_rollout");
        let of_rollout = |part: PartValue| Some((part.value.parse::<u64>().ok()?, part.shown));
        if let Some((rollout, shown)) = rollout.and_then(of_rollout).filter(|(rollout, _)| *rollout != prompts) {
            let steps = rollout.div_ceil(prompts.max(1));
            let what = format!("samples {rollout} prompts at once for {steps} steps");
            let help = format!("leave this option out: reel samples before each step, here {prompts} prompts");
            t.refuse_option(&shown, &what, &help);
            let changed = count_optimizer_steps(t, steps);
            if !changed.is_empty() {
                t.notes.push(format!(
                    "note: the other program counts rollouts of {steps} steps, and reel counts steps: {}",
                    changed.join(", ")
                ));
            }
        }
        return set_groups(t, group, prompts);
    }
    if let Some(prompts) = t.parts.remove("prompts_per_rollout").and_then(|part| part.value.parse::<u64>().ok()) {
        return set_groups(t, group, prompts);
    }
    let given = t.option_number("per_device_train_batch_size").map(|n| n as u64);
    let rows = given.unwrap_or(8).max(1);
    let steps = t.option_number("gradient_accumulation_steps").unwrap_or(1.0).max(1.0) as u64;
    let processes = launched_processes(t).map_or(1, |(_, processes)| processes as u64);
    let processes = processes.max(t.surroundings.processes as u64);
    let is_whole_batch_of_groups = rows.saturating_mul(steps).saturating_mul(processes).is_multiple_of(group);
    let of_r1v = program == "trl" && counts_prompts_as_r1v(t, !is_whole_batch_of_groups);
    let counts_prompts = t.is_foreign && given.is_some() && (program == "video-r1" || of_r1v);
    if !counts_prompts && (rows.is_multiple_of(group) || !(t.is_foreign || t.has_underscores && given.is_some())) {
        // The command uses reel's own option names, so the batch size is not translated: reel's own check of the
        // batch applies.
        return;
    }
    let (prompts, meaning) = match counts_prompts {
        true if of_r1v => (rows.saturating_mul(steps), "R1-V and Visual-RFT count prompts, TRL counts completions"),
        true => (rows.saturating_mul(steps), "Video-R1 and VideoRFT count prompts, TRL counts completions"),
        false => {
            t.mark("processes_counted");
            let all = rows.saturating_mul(steps).saturating_mul(processes);
            // The batch must have at least one micro-batch for each process of the launcher.
            let fewest = t.surroundings.processes.max(1) as u64;
            let meaning = "TRL and ms-swift count completions of all processes, Video-R1 counts prompts";
            (all.div_ceil(group).max(fewest), meaning)
        }
    };
    let is_rounded = !counts_prompts && !is_whole_batch_of_groups;
    let rounding = if is_rounded { "; rounded up to whole groups" } else { "" };
    let accumulation = if counts_prompts { steps } else { prompts };
    let per_micro_batch = if counts_prompts { rows } else { 1 };
    let rows_text = given.map_or("the default batch".to_string(), |rows| format!("a batch of {rows}"));
    t.replace_option("per_device_train_batch_size", &(per_micro_batch.saturating_mul(group)).to_string(), "batch");
    t.replace_option("gradient_accumulation_steps", &accumulation.to_string(), "batch");
    t.notes.push(format!(
        "note: {rows_text} with {group} generations ({meaning}) is a step of {prompts} prompts with {group} completions \
         each: --per-device-train-batch-size {} --gradient-accumulation-steps {accumulation}{rounding}",
        per_micro_batch.saturating_mul(group)
    ));
}

/// Returns true if a command with TRL's options was written for R1-V or Visual-RFT. Their trainers sample
/// `--num_generations` completions for each row of a micro-batch (`num_return_sequences` in `grpo_trainer.py`), so
/// their batch size counts prompts. Two facts identify such a command: it has `--max_pixels` or `--min_pixels`, which
/// are not options of TRL; or its batch is not a multiple of the group, which TRL refuses (`is_refused_by_trl`). With
/// `--use_vllm`, R1-V counts completions, as TRL does.
fn counts_prompts_as_r1v(t: &CommandTranslation, is_refused_by_trl: bool) -> bool {
    let has = |names: &[&str]| t.read.iter().any(|(name, value)| names.contains(&name.as_str()) && !is_off(value));
    !has(&["use_vllm"]) && (is_refused_by_trl || has(&["max_pixels", "min_pixels"]))
}

fn is_off(value: &Option<String>) -> bool {
    value.as_deref().is_some_and(|value| ["false", "no", "0", "none"].contains(&value.to_ascii_lowercase().as_str()))
}

/// Sets the batch size of a step of `prompts` prompts whose micro-batches have one group each.
fn set_groups(t: &mut CommandTranslation, group: u64, prompts: u64) {
    t.mark("processes_counted");
    t.replace_option("per_device_train_batch_size", &group.to_string(), "batch");
    t.replace_option("gradient_accumulation_steps", &prompts.max(1).to_string(), "batch");
    t.notes.push(format!(
        "note: a step has {prompts} prompts with {group} completions each (--per-device-train-batch-size {group} \
         --gradient-accumulation-steps {prompts})"
    ));
}
