//! The options of other programs: TRL, ms-swift, LLaMA-Factory, Axolotl, verl, EasyR1, the scripts of VideoRFT,
//! Video-R1 and Qwen, vLLM, SGLang, LMDeploy, lmms-eval and VLMEvalKit.
//!
//! `options.txt` lists the programs' options by name and, where it matters, by value, and says what each is in reel.
//! `defaults.txt` has the defaults of these programs that differ from reel's. Both files describe their own format.

use std::collections::HashMap;
use std::sync::LazyLock;

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

/// A default value of another program that differs from reel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDefault {
    /// The program's name as in `options.txt`.
    pub program: &'static str,
    /// The command of reel: `sft`, `grpo` or `serve`.
    pub command: &'static str,
    /// The name of reel's option, as a field name.
    pub option: &'static str,
    /// The program's default, converted to a value of reel's option.
    pub value: &'static str,
    /// The default as the program itself writes it.
    pub words: &'static str,
}

/// The programs, in the order in which one is preferred if a command has equally many options of several.
pub const ORDER: &str = "trl video-r1 vlm-r1 swift llamafactory axolotl qwen-finetune 2u1 verl easyr1 vllm vllm-bench \
                         sglang lmdeploy openrlhf lmms-eval vlmevalkit";

/// All rows of `options.txt`.
pub static ROWS: LazyLock<Vec<OptionRow>> = LazyLock::new(|| parse_rows(include_str!("options.txt")));

/// The programs in the table of defaults, each with its full name and version.
pub static PROGRAMS: LazyLock<Vec<(&'static str, &'static str)>> =
    LazyLock::new(|| lines(include_str!("defaults.txt")).filter_map(|line| line.split_once(" := ")).collect());

/// All rows of the table of defaults, program by program.
pub static DEFAULTS: LazyLock<Vec<ForeignDefault>> = LazyLock::new(|| {
    let default = |line: &'static str| {
        let columns: Vec<&'static str> = line.split('|').map(str::trim).collect();
        let [program, command, option, value, words] = columns[..] else { return None };
        Some(ForeignDefault { program, command, option, value, words })
    };
    lines(include_str!("defaults.txt")).filter_map(default).collect()
});

/// Returns the command whose options the subcommand `path` takes, as the table names it: `reel plan sft` takes the
/// options of `reel sft`.
pub fn command_of_subcommand(path: &str) -> &str {
    match path {
        "bench serve" => "bench",
        _ => path.strip_prefix("plan ").unwrap_or(path),
    }
}

/// Returns the other names of an option in the command `command` (such as `sft`), as field names: the options of other
/// programs that are just other names with the same values.
pub fn aliases_of(option: &str, command: &str) -> Vec<&'static str> {
    static RENAMING: LazyLock<HashMap<&str, Vec<&OptionRow>>> = LazyLock::new(|| {
        let mut rows: HashMap<_, Vec<_>> = HashMap::new();
        ROWS.iter().for_each(|row| row.renamed_option().into_iter().for_each(|o| rows.entry(o).or_default().push(row)));
        rows
    });
    let rows = RENAMING.get(option).into_iter().flatten().filter(|row| row.applies_to_command(command));
    let names = rows.flat_map(|row| &row.names);
    names.filter(|(name, value)| value.is_none() && !name.contains(['*', '.'])).map(|(name, _)| *name).collect()
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
    let value = value.unwrap_or("true");
    let mut best: Option<(u8, &'static OptionRow)> = None;
    for row in ROWS.iter().filter(|row| row.applies_to_command(command)) {
        for (pattern, wanted) in &row.names {
            let rank = 2 * u8::from(*pattern == name) + u8::from(wanted.is_some());
            if best.is_none_or(|(best, _)| rank > best)
                && matches(pattern, name)
                && wanted.is_none_or(|wanted| are_equal_option_values(wanted, value))
                && accepts(row, *wanted)
            {
                best = Some((rank, row));
            }
        }
    }
    best.map(|(_, row)| row)
}

/// Returns the option for which `name` is an alias in the command `command`, if the command has this option
/// (`is_option`), else `name` itself. Names and result are field names.
pub fn option_of_alias<'a>(name: &'a str, command: &str, is_option: impl Fn(&str) -> bool) -> &'a str {
    let renames = |row: &OptionRow| row.renamed_option().is_some_and(&is_option);
    let row = Some(name).filter(|name| !is_option(name));
    let row = row.and_then(|name| find_row(name, None, command, |row, value| value.is_none() && renames(row)));
    row.and_then(OptionRow::renamed_option).unwrap_or(name)
}

/// Returns another command than `command` whose options in the table include exactly this name; `None` if no other
/// command has it.
pub fn other_command_with(name: &str, command: &str) -> Option<&'static str> {
    let has = |row: &&OptionRow| !row.applies_to_command(command) && row.names.iter().any(|(own, _)| *own == name);
    match *ROWS.iter().find(has)?.commands.first()? {
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

    /// Returns the option of reel of which the row's names are just other names.
    pub fn renamed_option(&self) -> Option<&'static str> {
        let [becomes] = self.becomes[..] else { return None };
        becomes.strip_suffix("=$").filter(|option| !option.ends_with('?'))
    }
}

/// Whether two values mean the same: letter case is ignored, `*` in `wanted` stands for any characters, and numbers are
/// compared by their value.
pub fn are_equal_option_values(wanted: &str, value: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    match number(wanted).zip(number(value)) {
        Some((a, b)) => a == b,
        None => matches(&wanted.to_ascii_lowercase(), &value.to_ascii_lowercase()),
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
pub fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    (0..=text.len()).any(|at| text.get(at..).is_some_and(|text| matches(rest, text)))
}

/// Parses `options.txt`. A test checks that each line has the form that this function expects.
fn parse_rows(text: &'static str) -> Vec<OptionRow> {
    let (reasons, rows): (Vec<&str>, Vec<&str>) = lines(text).partition(|line| !line.contains(" | "));
    let reasons: HashMap<&str, &str> = reasons.iter().filter_map(|line| line.split_once(" := ")).collect();
    let row = |line: &&'static str| {
        let columns: Vec<&'static str> = line.split('|').map(str::trim).collect();
        let [names, programs, commands, class, becomes, reason] = columns[..] else { return None };
        Some(OptionRow {
            names: names
                .split_whitespace()
                .map(|n| n.split_once('=').map_or((n, None), |(n, v)| (n, Some(v))))
                .collect(),
            programs: programs.split_whitespace().collect(),
            commands: commands.split_whitespace().collect(),
            class: match class {
                "same" => OptionClass::Same,
                "harmless" => OptionClass::Harmless,
                "result" => OptionClass::Result,
                "off" => OptionClass::Off,
                _ => return None,
            },
            becomes: becomes.split_whitespace().filter(|word| *word != "-").collect(),
            reason: reasons.get(reason).copied().unwrap_or(reason),
        })
    };
    rows.iter().filter_map(row).collect()
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}
