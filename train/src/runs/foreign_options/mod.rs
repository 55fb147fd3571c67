//! The options of other programs: TRL, ms-swift, LLaMA-Factory, Axolotl, verl, EasyR1, the scripts of VideoRFT,
//! Video-R1 and Qwen, vLLM, SGLang, LMDeploy, lmms-eval and VLMEvalKit.
//!
//! `options.txt` lists the programs' options by name and, where it matters, by value. For each it says which programs
//! have it, and what it is in reel: an option with the same meaning, an option without effect on the result, an
//! option that changes the result, or something that is off. `defaults.txt` has the defaults of these programs that
//! differ from reel's. Both files describe their own format.

mod defaults;

use std::collections::HashMap;
use std::sync::LazyLock;

pub use defaults::{ForeignDefault, PROGRAMS, foreign_defaults};

/// What an option of another program corresponds to in reel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionClass {
    /// The option has the same meaning as an option of reel.
    Same,
    /// The option has no effect on the result.
    Harmless,
    /// The option changes the result, and reel has no option with the same meaning.
    Result,
    /// The option switches off a feature that reel does not have.
    Off,
}

impl OptionClass {
    /// The name of this class of options in `options.txt` and in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Harmless => "harmless",
            Self::Result => "result",
            Self::Off => "off",
        }
    }
}

/// One row of `options.txt`: option names that reel handles in the same way.
#[derive(Clone, Debug)]
pub struct OptionRow {
    /// Option names (`*` stands for any characters), each with the value to which the row applies; `None` stands for
    /// every value.
    pub names: Vec<(&'static str, Option<&'static str>)>,
    /// The programs that have these options.
    pub programs: Vec<&'static str>,
    /// The commands of reel to which the row applies.
    pub commands: Vec<&'static str>,
    /// What these options correspond to in reel.
    pub class: OptionClass,
    /// The options of reel that replace these options: `name=$`, `name=value`, `name?=value`, `name`, or `@rule`.
    pub becomes: Vec<&'static str>,
    /// The reason: for class `Harmless`, a group of options; for class `Result`, what is wrong and what to do,
    /// separated by "; ".
    pub reason: &'static str,
}

static ROWS: LazyLock<Vec<OptionRow>> = LazyLock::new(|| parse_rows(include_str!("options.txt")));

/// For each option of reel, the options of other programs that are just other names with the same values.
static ALIASES: LazyLock<HashMap<&'static str, Vec<(&'static str, usize)>>> = LazyLock::new(|| {
    let mut aliases: HashMap<_, Vec<_>> = HashMap::new();
    for (index, row) in ROWS.iter().enumerate() {
        let [becomes] = row.becomes[..] else { continue };
        let Some(option) = becomes.strip_suffix("=$").filter(|option| !option.ends_with('?')) else { continue };
        let names = row.names.iter().filter(|(name, value)| value.is_none() && !name.contains(['*', '.']));
        aliases.entry(option).or_default().extend(names.map(|(name, _)| (*name, index)));
    }
    aliases
});

/// All rows of `options.txt`.
pub fn option_rows() -> &'static [OptionRow] {
    &ROWS
}

/// Returns the command whose options the subcommand `path` takes, as the table names it: `reel plan sft` takes the
/// options of `reel sft`.
pub fn command_of_subcommand(path: &str) -> &str {
    match path {
        "bench serve" => "bench",
        _ => path.strip_prefix("plan ").unwrap_or(path),
    }
}

/// Returns the other names of an option in the command `command` (such as `sft`), as field names.
pub fn aliases_of(option: &str, command: &str) -> impl Iterator<Item = &'static str> {
    let named = ALIASES.get(option).map_or(&[][..], Vec::as_slice).iter();
    let command = command.to_string();
    named.filter(move |(_, row)| ROWS[*row].applies_to_command(&command)).map(|(name, _)| *name)
}

/// Finds the row for an option of another program. `name` is a field name, `value` its value if it has one; `accepts`
/// tells whether a row can be used. A row for the exact name is preferred to a row with a pattern, and a row for the
/// value to a row for all values.
pub fn find_row(
    name: &str,
    value: Option<&str>,
    command: &str,
    accepts: impl Fn(&OptionRow, Option<&str>) -> bool,
) -> Option<&'static OptionRow> {
    let fits_value =
        |wanted: Option<&str>| wanted.is_none_or(|wanted| are_equal_option_values(wanted, value.unwrap_or("true")));
    let mut best: Option<(u8, &'static OptionRow)> = None;
    for row in ROWS.iter().filter(|row| row.applies_to_command(command)) {
        for (pattern, wanted) in &row.names {
            let is_exact = *pattern == name;
            let rank = 2 * u8::from(is_exact) + u8::from(wanted.is_some());
            let is_better = best.is_none_or(|(best, _)| rank > best);
            if is_better && (is_exact || matches(pattern, name)) && fits_value(*wanted) && accepts(row, *wanted) {
                best = Some((rank, row));
            }
        }
    }
    best.map(|(_, row)| row)
}

/// Whether the table of other programs' options has the option `name` for the command `command`, whatever its value.
pub fn is_foreign_option(name: &str, command: &str) -> bool {
    ROWS.iter()
        .any(|row| row.applies_to_command(command) && row.names.iter().any(|(pattern, _)| matches(pattern, name)))
}

/// Returns another command than `command` whose options in the table include exactly this name; `None` if no other
/// command has it.
pub fn other_command_with(name: &str, command: &str) -> Option<&'static str> {
    let row =
        ROWS.iter().find(|row| !row.applies_to_command(command) && row.names.iter().any(|(own, _)| *own == name))?;
    match *row.commands.first()? {
        "train" => Some("sft"),
        "bench" => Some("bench serve"),
        other => Some(other),
    }
}

impl OptionRow {
    /// Whether the row applies to this command.
    pub fn applies_to_command(&self, command: &str) -> bool {
        let trains = ["sft", "grpo"].contains(&command);
        self.commands.iter().any(|own| *own == command || *own == "all" || (*own == "train" && trains))
    }

    /// Returns the names of reel's options that the row sets; none for a rule.
    pub fn target_option_names(&self) -> impl Iterator<Item = &'static str> {
        let set = self.becomes.iter().filter(|becomes| !becomes.starts_with('@'));
        set.map(|becomes| becomes.split(['=', '?']).next().unwrap_or(becomes))
    }

    /// Returns what is wrong with an option of class `Result`, and what to do.
    pub fn problem_and_help(&self) -> (&'static str, &'static str) {
        self.reason.split_once("; ").unwrap_or((self.reason, "leave it out"))
    }
}

/// Whether two values mean the same: letter case is ignored, and numbers are compared by their value.
pub fn are_equal_option_values(wanted: &str, value: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    match number(wanted).zip(number(value)) {
        Some((a, b)) => a == b,
        None => matches(&wanted.to_ascii_lowercase(), &value.to_ascii_lowercase()),
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    (0..=text.len()).any(|at| text.get(at..).is_some_and(|text| matches(rest, text)))
}

/// Parses `options.txt`. A test checks that each line has the form that this function expects.
fn parse_rows(text: &'static str) -> Vec<OptionRow> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (reasons, rows): (Vec<&str>, Vec<&str>) = lines.partition(|line| !line.contains(" | "));
    let reasons: HashMap<&str, &str> = reasons.iter().filter_map(|line| line.split_once(" := ")).collect();
    let row = |line: &&'static str| {
        let columns: Vec<&'static str> = line.split('|').map(str::trim).collect();
        let [names, programs, commands, class, becomes, reason] = columns[..] else { return None };
        Some(OptionRow {
            names: words(names).map(|name| name.split_once('=').map_or((name, None), |(n, v)| (n, Some(v)))).collect(),
            programs: words(programs).collect(),
            commands: words(commands).collect(),
            class: match class {
                "same" => OptionClass::Same,
                "harmless" => OptionClass::Harmless,
                "result" => OptionClass::Result,
                "off" => OptionClass::Off,
                _ => return None,
            },
            becomes: words(becomes).filter(|word| *word != "-").collect(),
            reason: reasons.get(reason).copied().unwrap_or(reason),
        })
    };
    rows.iter().filter_map(row).collect()
}

fn words(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split(' ').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_parsed() {
        let lines = include_str!("options.txt").lines().filter(|l| !l.starts_with('#') && l.contains(" | "));
        assert_eq!(lines.count(), option_rows().len());
        for row in option_rows() {
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
        for row in option_rows()
            .iter()
            .filter(|row| row.becomes.iter().all(|b| b.starts_with('@')) || row.class != OptionClass::Same)
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
                        vllm_importance_sampling_* watchdog_timeout";
        let reviewed: Vec<&str> = reviewed.split_whitespace().collect();
        let harmless = option_rows().iter().filter(|row| row.class == OptionClass::Harmless);
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
}
