//! Finds out which program a command was written for, and adds that program's defaults.

use reel_train::runs::foreign_options::{ForeignDefault, PROGRAMS, foreign_defaults};

use super::translation::CommandTranslation;
use super::words::reel_argument;

/// Returns the program that a command was most likely written for: the one that has the most of its options; if
/// several have equally many, the first one in `ORDER`.
pub fn most_likely_program(t: &CommandTranslation) -> &'static str {
    const ORDER: [&str; 17] = [
        "trl",
        "video-r1",
        "vlm-r1",
        "swift",
        "llamafactory",
        "axolotl",
        "qwen-finetune",
        "2u1",
        "verl",
        "easyr1",
        "vllm",
        "vllm-bench",
        "sglang",
        "lmdeploy",
        "openrlhf",
        "lmms-eval",
        "vlmevalkit",
    ];
    let is_given = |name: &str| t.read.iter().any(|(given, _)| given == name);
    let votes = |name: &str| {
        let own = t.votes.get(name).copied().unwrap_or_default();
        // `temporal` and `len_control` of Video-R1 are options of reel too, so the option table has no rows for them
        // and their votes are counted here.
        // Only options that the user gave count: the translation itself may set `len_control`.
        let of_video_r1 = ["temporal", "len_control"].iter().filter(|option| is_given(option)).count();
        // The option table has joint rows for verl and EasyR1, so the keys that only EasyR1 has are counted here.
        let of_easyr1 = t.read.iter().filter(|(option, _)| option.starts_with("worker.")).count();
        match name {
            // These options belong to ms-swift and VLM-R1 alone.
            "video-r1" if is_given("rlhf_type") || is_given("data_file_paths") => 0,
            "video-r1" if t.is_foreign => own + 2 * of_video_r1,
            "easyr1" => own + of_easyr1,
            _ => own,
        }
    };
    let most = ORDER.iter().map(|name| votes(name)).max().unwrap_or_default();
    ORDER.into_iter().find(|name| most > 0 && votes(name) == most).unwrap_or_default()
}

/// Sets the output folder to the default of the other program if the command does not name one.
pub fn set_default_output_folder(t: &mut CommandTranslation) {
    if t.is_set("out") || t.is_set("config") || t.is_set("check_data") {
        return;
    }
    let name = t.parts.remove("experiment_name").map(|part| part.value);
    let folder = match most_likely_program(t) {
        "swift" => "output".to_string(),
        "trl" => "trainer_output".to_string(),
        "verl" | "easyr1" => {
            let project = t.option_value("wandb_project").unwrap_or("project").to_string();
            format!("checkpoints/{project}/{}", name.unwrap_or_else(|| "experiment".into()))
        }
        _ => return,
    };
    t.notes.push(format!("note: --out {folder} (the other program's default)"));
    t.add_option("out", vec![folder], "the program's output folder");
}

/// Adds a note about options that the command does not set and whose defaults in the other program differ from
/// reel's.
pub fn note_different_defaults(t: &mut CommandTranslation) {
    let program = most_likely_program(t);
    let Some((_, version)) = PROGRAMS.iter().find(|(name, _)| *name == program).filter(|_| t.is_foreign) else {
        return;
    };
    let has_adapter = t.is_set("lora_r");
    let own = |option: &str| reel_argument(t.parser(), option).map(|a| own_default(t, option, a)).unwrap_or_default();
    let stated = |d: &ForeignDefault| match d.option {
        "-" => format!("no such option ({})", d.words),
        option => format!("--{} {} ({})", option.replace('_', "-"), own(option), d.words),
    };
    let differs = |option: &&ForeignDefault| {
        option.program == program && option.command == t.command && !t.is_set(option.option) && {
            match option.option {
                // The program's LoRA defaults apply only to a command that does not switch LoRA on or off.
                "lora_r" => t.weights.lora.is_none(),
                "freeze_vision" => t.weights.tower.is_none(),
                "freeze_llm" => t.weights.decoder.is_none() && !has_adapter,
                "warmup_ratio" => !t.is_set("warmup_steps"),
                "max_pixels" | "min_pixels" => !t.is_set(&format!("image_{}", option.option)),
                "fps" => !t.is_set("nframes"),
                "-" if option.words.starts_with("lora_enable") => {
                    has_adapter && (t.weights.tower.is_none() || t.weights.merger.is_none())
                }
                "-" => {
                    let name = option.words.split([' ', ':']).next().unwrap_or_default();
                    let is_given = t.read.iter().any(|(given, _)| given == name);
                    !is_given && (has_adapter || !name.starts_with("lora_"))
                }
                _ => true,
            }
        }
    };
    let listed: Vec<String> = foreign_defaults().iter().filter(differs).map(stated).collect();
    if !listed.is_empty() {
        let name = version.split(' ').next().unwrap_or(program);
        t.notes.push(format!(
            "note: options that are not given and have another default in {name}: {}; \
             `reel {} --explain-defaults {program}` shows the sources",
            listed.join(", "),
            if t.command == "grpo" { "grpo" } else { "sft" }
        ));
    }
}

/// Returns the default of an option of reel, as text for the note about different defaults.
fn own_default(t: &CommandTranslation, option: &str, argument: &clap::Arg) -> String {
    match option {
        "lora_r" => "0: all weights".into(),
        "len_control" => "true".into(),
        "profile" => "videorft-train".into(),
        "max_length" | "max_prompt_length" | "image_max_pixels" | "video_max_pixels" | "fps" | "max_frames" => {
            "the profile's limit, or none".into()
        }
        "min_frames" | "max_pixels" | "min_pixels" | "image_min_pixels" | "video_min_pixels" => {
            "the profile's limit".into()
        }
        "epsilon_high" => t.option_value("epsilon").unwrap_or("0.2").into(),
        "labels" => "assistant".into(),
        _ if !argument.get_action().takes_values() => "false".into(),
        _ => argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","),
    }
}
