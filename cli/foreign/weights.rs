//! Translates the options for the trained weights: full fine-tuning or LoRA, the other program's default rank and
//! alpha of LoRA, and the frozen parts of the model.

use super::peers;
use super::translation::{CommandTranslation, PartValue, TrainedWeights, is_frozen};

/// The default rank and alpha of a LoRA adapter in other programs; `None` stands for twice the rank, as in reel.
/// Sources: TRL's `ModelConfig`, ms-swift's `tuner_args.py`, LLaMA-Factory's `finetuning_args.py` (alpha is twice the
/// rank), verl's `config/model/hf_model.yaml`, EasyR1's `workers/actor/config.py`, QwenLM's `train_qwen.py`, 2U1's
/// `params.py`.
const LORA_DEFAULTS: [(&str, &str, Option<&str>); 9] = [
    ("trl", "16", Some("32")),
    ("video-r1", "16", Some("32")),
    ("vlm-r1", "16", Some("32")),
    ("swift", "8", Some("32")),
    ("llamafactory", "8", None),
    ("verl", "8", Some("16")),
    ("easyr1", "8", Some("64")),
    ("qwen-finetune", "64", Some("128")),
    ("2u1", "64", Some("16")),
];

/// The layers to which QwenLM's `train_qwen.py` adds adapters.
const QWEN_TARGETS: &str = "q_proj,k_proj,v_proj,o_proj";

/// Sets full fine-tuning or LoRA, and the frozen parts of the model.
pub fn translate_weight_options(t: &mut CommandTranslation) {
    if let Some(PartValue { shown, .. }) = t.parts.remove("merger_only") {
        let frozen = |is_frozen| Some((is_frozen, shown.clone()));
        t.weights =
            TrainedWeights { tower: frozen(true), merger: frozen(false), decoder: frozen(true), ..t.weights.clone() };
    }
    let weights = t.weights.clone();
    let program = peers::most_likely_program(t);
    let all_linear = t.parts.remove("all_linear").map(|part| part.shown);
    if t.option_number("lora_r") == Some(0.0) || weights.lora == Some(false) {
        for name in ["lora_r", "lora_alpha", "lora_target_modules"] {
            t.remove_option(name);
        }
    }
    let names_an_adapter = t.is_set("lora_r") || t.is_set("lora_alpha") || t.is_set("lora_target_modules");
    let wants = weights.lora == Some(true) || (t.is_foreign && weights.lora.is_none() && names_an_adapter);
    set_rank_and_alpha(t, program, wants);
    let is_adapter = t.is_set("lora_r");
    if is_adapter {
        let adapts_tower = t.parts.contains_key("vision_lora");
        set_targets(t, program, all_linear);
        frozen_beside_an_adapter(t, program, adapts_tower);
    } else {
        frozen_parts(t, program);
    }
}

/// Sets the rank and alpha of LoRA to the other program's defaults if the command does not set them.
fn set_rank_and_alpha(t: &mut CommandTranslation, program: &str, wants: bool) {
    let known = LORA_DEFAULTS.iter().find(|(name, ..)| *name == program);
    let (_, rank, alpha) = known.copied().unwrap_or(("", "8", Some("32")));
    // If the rank is given by reel's own option name, alpha is not set: reel's default is twice the rank.
    let setting = t.settings.iter().find(|setting| setting.name == "lora_r");
    let is_own_rank = setting.is_some_and(|setting| setting.shown.split(' ').next() == Some("--lora-r"));
    let mut added = Vec::new();
    if wants && !t.is_set("lora_r") {
        t.add_option("lora_r", vec![rank.into()], "LoRA");
        added.push(format!("--lora-r {rank}"));
    } else if known.is_none() || is_own_rank || !t.is_foreign {
        return;
    }
    if let Some(alpha) = alpha.filter(|_| t.is_set("lora_r") && !t.is_set("lora_alpha")) {
        t.add_option("lora_alpha", vec![alpha.into()], "LoRA");
        added.push(format!("--lora-alpha {alpha}"));
    }
    if !added.is_empty() {
        t.notes.push(format!("note: {} (the other program's default for LoRA)", added.join(" ")));
    }
}

/// Sets the layers that get a LoRA adapter. By default, reel adapts all linear layers of the decoder.
fn set_targets(t: &mut CommandTranslation, program: &str, all_linear: Option<String>) {
    let tower_frozen = is_frozen(&t.weights.tower);
    let tower_excluded = t.parts.remove("tower_excluded").is_some();
    let vision_lora = t.parts.remove("vision_lora").map(|part| part.shown);
    let own = t.parts.contains_key("all_linear_own") || ["trl", "axolotl"].contains(&program);
    // verl and EasyR1 adapt all linear layers by default, those of the vision tower included.
    let of_verl = ["verl", "easyr1"].contains(&program) && !t.is_set("lora_target_modules");
    let shown = vision_lora.clone().or(all_linear.clone()).unwrap_or_else(|| "LoRA".into());
    let with_tower = match all_linear {
        _ if vision_lora.is_some() => true,
        Some(_) if tower_frozen.is_some() => tower_frozen == Some(false),
        Some(_) => own || of_verl,
        None => of_verl && tower_frozen != Some(true),
    };
    let with_tower = with_tower && !tower_excluded;
    if let Some(excluded) = t.parts.remove("merger_excluded").filter(|_| with_tower) {
        let help = "leave this option out: the merger gets an adapter with the tower";
        t.refuse_option(&excluded.shown, "excludes the merger from LoRA, but not the tower", help);
    }
    if with_tower && !t.is_set("lora_target_modules") {
        t.add_option("lora_target_modules", vec!["all-linear".into()], &shown);
    }
    if program == "qwen-finetune" && !t.is_set("lora_target_modules") {
        t.add_option("lora_target_modules", vec![QWEN_TARGETS.into()], "LoRA");
        t.notes.push(format!("note: --lora-target-modules {QWEN_TARGETS} (the layers that the other program adapts)"));
    }
}

/// Translates the freezing options of a run with LoRA. LoRA trains no weights of the model itself, so an option that
/// freezes a part says that the part gets no adapter.
///
/// The program 2U1 is an exception: with its `vision_lora` (`adapts_tower`), the weights of the tower are frozen and
/// the tower gets an adapter.
fn frozen_beside_an_adapter(t: &mut CommandTranslation, program: &str, adapts_tower: bool) {
    let weights = t.weights.clone();
    if program == "qwen-finetune" {
        // The training script of QwenLM reads the freezing options only in runs without LoRA.
        let given = [weights.tower, weights.merger, weights.decoder].into_iter().flatten();
        t.harmless.extend(given.map(|(_, shown)| (shown, "options of a run without LoRA")));
        return;
    }
    if let Some((true, shown)) = &weights.tower
        && !adapts_tower
    {
        t.add_option("freeze_vision", vec!["true".into()], shown);
    }
    if program == "2u1" {
        for (part, of_part) in [("tower", &weights.tower), ("merger", &weights.merger)] {
            if let Some((false, shown)) = of_part {
                let what = format!("trains the {part}'s own weights beside an adapter, which reel cannot do");
                let help = format!(
                    "leave this option out: the {part} is frozen; or train all weights (no LoRA), or adapt the tower \
                     with its merger, too, with --lora-target-modules all-linear"
                );
                t.refuse_option(shown, &what, &help);
            }
        }
    }
    let has_rates = t.is_set("learning_rate_vision") || t.is_set("learning_rate_merger");
    if has_rates && t.is_foreign && !t.is_set("lora_target_modules") {
        for name in ["learning_rate_vision", "learning_rate_merger"] {
            if let Some(setting) = t.remove_option(name) {
                let what = "is a learning rate of weights that have no adapter";
                let help = "leave this option out, or name the layers of these weights in --lora-target-modules";
                t.refuse_option(&setting.shown, what, help);
            }
        }
    }
    // Scripts of the program 2U1 freeze the weights of the decoder and add an adapter to it, as reel does.
    if let Some((true, shown)) = &weights.decoder
        && program != "2u1"
    {
        let help = "leave this option out, or name the layers that get an adapter in --lora-target-modules";
        t.refuse_option(shown, "leaves the decoder without an adapter", help);
    }
}

/// Translates the freezing options of a run without LoRA, in which all parts of the model are trained by default.
///
/// `--freeze-vision` of reel also freezes the merger. The program 2U1 trains the merger unless `freeze_merger` freezes
/// it.
fn frozen_parts(t: &mut CommandTranslation, program: &str) {
    let mut weights = t.weights.clone();
    let tower = is_frozen(&weights.tower).unwrap_or(false);
    if program == "2u1" && tower {
        weights.merger.get_or_insert((false, "freeze_merger".into()));
    }
    if let Some((true, shown)) = &weights.tower {
        t.add_option("freeze_vision", vec!["true".into()], shown);
    }
    if let Some((merger, shown)) = weights.merger.as_ref().filter(|(merger, _)| *merger != tower) {
        t.add_option("freeze_merger", vec![merger.to_string()], shown);
    }
    if let Some((true, shown)) = &weights.decoder {
        t.add_option("freeze_llm", vec!["true".into()], shown);
    }
    let merger = is_frozen(&weights.merger).unwrap_or(tower);
    for (frozen, name) in [(tower, "learning_rate_vision"), (merger, "learning_rate_merger")] {
        if frozen
            && t.is_foreign
            && let Some(setting) = t.remove_option(name)
        {
            t.harmless.push((setting.shown, "learning rates of frozen weights"));
        }
    }
}
