//! `--explain-defaults PROGRAM`: a table of another program's defaults beside the defaults of reel.

use clap::{Arg, ArgMatches, Command};
use reel_train::runs::foreign_options::{PROGRAMS, foreign_defaults};

use super::words::reel_argument;

/// The id of the option in the parser.
const OPTION: &str = "explain_defaults";

/// Adds `--explain-defaults` to a training command.
pub fn with_explain_option(command: Command) -> Command {
    let programs: Vec<&str> = PROGRAMS.iter().map(|(name, _)| *name).collect();
    command.arg(
        Arg::new(OPTION)
            .long("explain-defaults")
            .alias("explain_defaults")
            .value_name("PROGRAM")
            .value_parser(programs)
            .hide_possible_values(true)
            .help(
                "Print the defaults of another program that differ from those of this command, and exit: trl, swift, \
                 llamafactory, axolotl, verl, easyr1, qwen-finetune, 2u1, video-r1, vllm, sglang, lmdeploy or vllm-bench",
            )
            .help_heading("Training options"),
    )
}

/// Returns the table that `--explain-defaults` asks for; `None` if the option is not given. `root` is the parser of
/// the whole command line.
pub fn explain_defaults(root: &Command, matches: &ArgMatches) -> Option<String> {
    let program = matches.try_get_one::<String>(OPTION).ok().flatten()?;
    let version = PROGRAMS.iter().find(|(name, _)| name == program).map_or("", |(_, version)| version);
    let mut text = format!("Defaults of {version}, where those of reel differ:\n");
    for (name, path) in [("sft", "sft"), ("grpo", "grpo"), ("serve", "serve"), ("bench", "bench serve")] {
        let rows: Vec<_> = foreign_defaults().iter().filter(|d| d.program == *program && d.command == name).collect();
        let command = path.split(' ').try_fold(root, |command, name| command.find_subcommand(name));
        for (at, row) in rows.iter().enumerate() {
            if at == 0 {
                text += &format!("\nreel {path}\n  {:<32} {:<16} {program}\n", "option", "reel");
            }
            let own = command.and_then(|c| reel_argument(c, row.option)).map(default_text).unwrap_or_default();
            let option = if row.option == "-" { "-".into() } else { format!("--{}", row.option.replace('_', "-")) };
            text += &format!("  {option:<32} {own:<16} {}\n", row.words);
        }
    }
    Some(text)
}

/// Returns the default of an option as text; a dash if the option has none.
fn default_text(argument: &Arg) -> String {
    let values: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if values.is_empty() { "-".into() } else { values.join(",") }
}
