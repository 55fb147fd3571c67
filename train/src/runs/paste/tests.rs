//! Tests of the tables and of the rules that they name.

use std::collections::HashMap;

use super::rules::has_rule;
use super::table::*;

#[test]
fn every_line_of_the_table_is_parsed() {
    let lines = include_str!("options.txt").lines().filter(|l| !l.starts_with('#') && l.contains(" | "));
    assert_eq!(lines.count(), ROWS.len());
    for row in ROWS.iter() {
        let text = format!("{:?}", row.names);
        assert!(!row.names.is_empty() && !row.programs.is_empty() && !row.commands.is_empty(), "{text}");
        match row.class {
            OptionClass::Result => assert!(row.reason.contains("; "), "{text}: {}", row.reason),
            OptionClass::Harmless => assert!(!row.reason.is_empty(), "{text}"),
            OptionClass::Same | OptionClass::Off => assert!(row.reason.is_empty(), "{text}"),
        }
        assert!(row.reason.contains(' ') || ["", "cache", "memory"].iter().any(|r| row.reason.starts_with(r)));
    }
}

/// Checks that no name and value has two rows for one command, because the second row would have no effect.
#[test]
fn no_row_is_hidden_by_another() {
    let mut seen: HashMap<(&str, Option<&str>, &str), &OptionRow> = HashMap::new();
    for row in
        ROWS.iter().filter(|row| row.becomes.iter().all(|b| b.starts_with('@')) || row.class != OptionClass::Same)
    {
        for (name, value) in &row.names {
            for command in &row.commands {
                let before = seen.insert((name, *value, command), row);
                assert!(before.is_none(), "the table has two rows of {name}={value:?} for {command}");
            }
        }
    }
}

/// Options whose names tell of rows, weights or scores are without effect only if someone has looked at them: the
/// names here are of validation rows, of speed, or of algorithms that are not chosen.
#[test]
fn names_that_tell_of_an_effect_are_reviewed() {
    let tell = "resume drop_last judge verifier dropout decay shuffle ckpt use_cpu no_cuda ignore_data penalty callbacks \
                group_by sampling filter streaming auto_find watchdog async_generate";
    let reviewed = "actor_rollout_ref.actor.shuffle data.filter_overlong_prompts_workers data.validation_shuffle \
                    dataset_shuffle disable_shuffle judge_api_nproc judge_base_url judge_key judge_retry judge_timeout \
                    length_penalty logging_nan_inf_filter missing_eos_penalty repetition_penalty sampling_backend \
                    save_hf_ckpt shuffle_buffer_size shuffle_merged_datasets trainer.del_local_ckpt_after_load \
                    streaming trainer.max_critic_ckpt_to_keep use_flash_ckpt val_dataset_shuffle \
                    watchdog_timeout";
    let reviewed: Vec<&str> = reviewed.split_whitespace().collect();
    let harmless = ROWS.iter().filter(|row| row.class == OptionClass::Harmless);
    let tells = |name: &&str| tell.split_whitespace().any(|word| name.contains(word));
    let names: Vec<&str> = harmless.flat_map(|row| &row.names).map(|(name, _)| *name).filter(tells).collect();
    let new: Vec<_> = names.iter().filter(|name| !reviewed.contains(name)).collect();
    assert!(new.is_empty(), "{new:?}");
    let gone: Vec<_> = reviewed.iter().filter(|name| !names.contains(name)).collect();
    assert!(gone.is_empty(), "{gone:?}");
}

#[test]
fn exact_names_and_values_stand_before_patterns() {
    let found = |name: &str, value: &str, command: &str| {
        find_row(name, Some(value), command, |_, _| true).map(|row| (row.class, row.becomes.join(" ")))
    };
    assert_eq!(found("finetuning_type", "Full", "sft").unwrap().1, "@full");
    assert_eq!(found("finetuning_type", "freeze", "sft").unwrap().0, OptionClass::Result);
    assert_eq!(found("lora_dropout", "0.0", "grpo").unwrap().0, OptionClass::Off);
    assert_eq!(found("lora_dropout", "0.05", "grpo").unwrap().0, OptionClass::Result);
    assert_eq!(found("vllm_mode", "colocate", "grpo").unwrap().0, OptionClass::Harmless);
    assert_eq!(found("vllm_anything", "1", "grpo").unwrap().0, OptionClass::Result);
    assert_eq!(found("actor_rollout_ref.rollout.n", "5", "grpo").unwrap().1, "num_generations=$");
    assert_eq!(found("actor_rollout_ref.rollout.name", "vllm", "grpo").unwrap().0, OptionClass::Harmless);
    assert!(found("nonsense", "1", "sft").is_none());
}

#[test]
fn patterns_and_values_are_compared() {
    for (pattern, text, wanted) in
        [("a*", "abc", true), ("a*c", "abc", true), ("a*d", "abc", false), ("*", "", true), ("a", "A", false)]
    {
        assert_eq!(matches(pattern, text), wanted, "{pattern} {text}");
    }
    assert!(
        are_equal_option_values("0", "0.0")
            && are_equal_option_values("true", "True")
            && !are_equal_option_values("0", "0.1")
    );
}

#[test]
fn every_line_is_parsed_and_names_a_program_with_a_version() {
    assert_eq!(
        include_str!("defaults.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')).count(),
        PROGRAMS.len() + DEFAULTS.len()
    );
    for default in DEFAULTS.iter() {
        assert!(PROGRAMS.iter().any(|(program, _)| *program == default.program), "{default:?}");
    }
}

#[test]
fn aliases_stand_for_options_of_the_command_only() {
    let options = |name: &str| ["out", "model", "max_length"].contains(&name);
    assert_eq!(option_of_alias("output_dir", "sft", options), "out");
    assert_eq!(option_of_alias("max_seq_len", "sft", options), "max_length");
    assert_eq!(option_of_alias("out", "sft", options), "out");
    assert_eq!(option_of_alias("lora_rank", "sft", options), "lora_rank");
}

/// Every rule that the option table names exists.
#[test]
fn the_table_names_rules_that_exist() {
    for rule in ROWS.iter().flat_map(|row| &row.becomes).filter_map(|becomes| becomes.strip_prefix('@')) {
        assert!(has_rule(rule), "{rule}");
    }
}

/// Every rule, function and action that `rules.txt` names exists.
#[test]
fn the_rules_name_what_exists() {
    let named = |source: &str, name: &str| source.contains(&format!("\"{name}\""));
    let (mut rules, mut functions, mut actions) = (0, 0, 0);
    for line in include_str!("rules.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let columns: Vec<&str> = line.splitn(4, '|').collect();
        assert!(columns.len() >= 3, "{line}");
        for part in line.split('~').skip(1) {
            let function = part.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap_or_default();
            assert!(named(include_str!("terms.rs"), function), "{line}: {function}");
            functions += 1;
        }
        // Words between double quotes are values.
        for word in columns[2].split('"').step_by(2).flat_map(|part| part.split(' ')).filter(|word| !word.is_empty()) {
            let (verb, rest) = word.split_once(':').unwrap_or((word, ""));
            assert!(named(include_str!("rules.rs"), verb), "{line}: {verb}");
            let is_call = ["do", "for", "each", "list", "fields", "pairs"].contains(&verb);
            let rule = rest.split('=').next().unwrap_or_default();
            assert!(!is_call || has_rule(rule), "{line}: {rule}");
            rules += usize::from(is_call);
            actions += 1;
        }
    }
    assert!(rules > 50 && functions > 150 && actions > 500, "{rules} {functions} {actions}");
}
