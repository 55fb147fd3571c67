//! Changes to the argument parser that clap derives from the structs, for all subcommands:
//!
//! - An option is accepted with underscores (`--learning_rate`), and by the names of other programs for it
//!   (`--output_dir`; `reel_train::runs::paste`).
//! - A value may be a negative number ([`join_negative_numbers`]): `--fps -1` is an invalid rate, not an unknown
//!   option.
//! - A switch of a training command may have a value, as in TRL: `--temporal true`.
//! - An option that takes one value is refused if it is given twice; a switch without a value may be repeated.
//! - `--help` of a subcommand lists those common options that have an effect there. All are accepted everywhere.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};
use reel_train::runs::paste::{self, table};

use crate::fail::usage_error;
use crate::init;

/// Joins an option and a negative number that follows it: `--fps -1e-6` becomes `--fps=-1e-6`. The parser would take
/// the number for an option. Nothing is changed after `--`.
pub fn join_negative_numbers(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut only_values = false;
    for word in words {
        let text = word.to_str().unwrap_or_default();
        let is_negative = text.starts_with('-') && text.parse::<f64>().is_ok();
        let takes_value = |option: &OsString| {
            option.to_str().is_some_and(|option| option.len() > 2 && option.starts_with("--") && !option.contains('='))
        };
        only_values |= text == "--";
        match joined.last_mut().filter(|option| !only_values && is_negative && takes_value(option)) {
            Some(option) => {
                option.push("=");
                option.push(&word);
            }
            None => joined.push(word),
        }
    }
    joined
}

/// Refuses command-line words that are not UTF-8. Paths appear as text in JSON results, records of runs and message
/// files, where other bytes could not be written. `parser` knows which options take paths.
pub fn refuse_non_utf8_words(words: &[OsString], parser: &Command) -> anyhow::Result<()> {
    let Some(at) = words.iter().position(|word| word.to_str().is_none()) else { return Ok(()) };
    let word = words[at].as_encoded_bytes().escape_ascii().to_string();
    let before = at.checked_sub(1).and_then(|before| words[before].to_str()).unwrap_or_default();
    let (option, value) = match word.split_once('=').filter(|(option, _)| option.starts_with("--")) {
        Some((option, value)) => (option.to_string(), value),
        None if before.starts_with("--") && !before.contains('=') => (before.to_string(), &*word),
        None => (format!("argument {at}"), &*word),
    };
    let help = match option_takes_path(&option, parser) {
        Some(true) => "rename the file or folder",
        Some(false) => "give the text in UTF-8",
        None => "give it in UTF-8; rename a file or folder",
    };
    Err(usage_error(&option, format!("is {value}, which is not UTF-8"), help))
}

/// Returns true if the value of the option `name`, such as `--out`, is a path; `None` if no command has this option.
fn option_takes_path(name: &str, parser: &Command) -> Option<bool> {
    let long = name.strip_prefix("--")?;
    let is_option = |a: &&Arg| a.get_long() == Some(long) || a.get_all_aliases().is_some_and(|all| all.contains(&long));
    let is_path = |a: &Arg| {
        // Values that are either a path or a name, such as a model id, have the type string in the parser. The
        // placeholder of the value in the help text (such as FILE or MODEL) shows that it may be a path.
        let names = a.get_value_names().into_iter().flatten();
        let names_path = |name: &str| ["FILE", "DIR", "MODEL", "OUT", "F."].iter().any(|part| name.contains(part));
        a.get_value_parser().type_id() == TypeId::of::<PathBuf>() || names.map(|n| n.as_str()).any(names_path)
    };
    let inner = parser.get_subcommands().filter_map(|command| option_takes_path(name, command));
    parser.get_arguments().find(is_option).map(is_path).into_iter().chain(inner).max()
}

/// Refuses a common option (one of several commands, such as `--seed`) that is given twice. The parser treats an
/// occurrence before and one after the subcommand's name as two options and would keep only one value.
pub fn refuse_repeated_common_options(words: &[OsString], root: &Command) -> anyhow::Result<()> {
    let texts = words.iter().skip(1).take_while(|word| *word != "--").filter_map(|word| word.to_str());
    let given: Vec<&str> = texts.filter_map(|word| word.strip_prefix("--")?.split('=').next()).collect();
    let commands = std::iter::once(root).chain(root.get_subcommands());
    let common =
        commands.flat_map(Command::get_arguments).filter(|a| a.is_global_set() && a.get_action().takes_values());
    for option in common {
        let aliases = option.get_all_aliases().unwrap_or_default();
        let is_option = |word: &&&str| option.get_long() == Some(**word) || aliases.contains(*word);
        if given.iter().filter(is_option).count() > 1 {
            let name = format!("--{}", option.get_long().unwrap_or_default());
            return Err(usage_error(&name, "is given more than once", "give it once"));
        }
    }
    Ok(())
}

/// Returns the parser with the changes that this module describes.
pub fn with_additional_spellings(root: Command) -> Command {
    let common: Vec<Arg> = root.get_arguments().filter(|a| a.is_global_set()).cloned().collect();
    let common: Vec<Arg> = common.into_iter().map(|argument| adapt_argument(argument, "", |_| false)).collect();
    root.mut_args(|argument| adapt_argument(argument, "", |_| false)).mut_subcommands(|inner| {
        let path = inner.get_name().to_string();
        let adapted = adapt_subcommand(inner, &path, &common);
        if ["sft", "grpo"].contains(&path.as_str()) { paste::with_explain_option(adapted) } else { adapted }
    })
}

/// Adds the common options and other spellings of all options to the subcommand `path` (such as `sim run`) and to its
/// own subcommands.
fn adapt_subcommand(mut command: Command, path: &str, common: &[Arg]) -> Command {
    let trains = ["sft", "grpo", "plan sft", "plan grpo"].contains(&path);
    let options: Vec<String> = command.get_arguments().map(|a| a.get_id().to_string()).collect();
    let is_option = |name: &str| options.iter().any(|option| option == name);
    command = command.mut_args(|argument| {
        let is_switch = matches!(argument.get_action(), ArgAction::SetTrue);
        let argument = if trains && is_switch { with_optional_value(argument) } else { argument };
        adapt_argument(argument, path, is_option)
    });
    for argument in common.iter().filter(|argument| !is_option(argument.get_id().as_str())) {
        let argument = argument.clone().hide(!has_effect(argument.get_id().as_str(), path));
        command = command.arg(match own_help(argument.get_id().as_str(), path) {
            Some(help) => argument.help(help),
            None => argument,
        });
    }
    command.mut_subcommands(|inner| {
        let path = format!("{path} {}", inner.get_name());
        adapt_subcommand(inner, &path, common)
    })
}

/// Makes the parser accept further spellings of an option of the subcommand `path`: underscores in its name, the
/// words that Python uses for true and false as its value, and the names of this option in other programs. A name
/// that is itself an option of the command (`is_option`) is not added.
fn adapt_argument(argument: Arg, path: &str, is_option: impl Fn(&str) -> bool) -> Arg {
    let option = argument.get_id().to_string();
    let foreign = table::aliases_of(&option, table::command_of_subcommand(path));
    let foreign = foreign.into_iter().filter(|alias| !is_option(alias));
    let own = argument.get_long().map(str::to_string);
    let mut aliases: Vec<String> = foreign.flat_map(|name| [name.to_string(), name.replace('_', "-")]).collect();
    aliases.extend(own.iter().map(|long| long.replace('-', "_")));
    aliases.sort();
    aliases.dedup();
    aliases.retain(|alias| own.as_ref().is_some_and(|own| own != alias));
    let argument = argument.aliases(aliases);
    match argument.get_action() {
        ArgAction::SetTrue => {
            let id = argument.get_id().clone();
            argument.overrides_with(id)
        }
        ArgAction::Set if argument.get_value_parser().type_id() == TypeId::of::<bool>() => {
            argument.value_parser(BoolishValueParser::new()).hide_possible_values(true)
        }
        _ => argument,
    }
}

/// Lets a switch have a value: `--packing`, `--packing true`, `--packing false`.
fn with_optional_value(switch: Arg) -> Arg {
    switch
        .action(ArgAction::Set)
        .num_args(0..=1)
        .value_name("BOOL")
        .value_parser(BoolishValueParser::new())
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .hide_possible_values(true)
}

/// The help text of the common option `option` at the subcommand `path`, if it has another meaning or default there.
fn own_help(option: &str, path: &str) -> Option<String> {
    match (option, path) {
        ("device", plan) if plan.starts_with("plan ") => {
            Some("Machine to plan for without --gpu: cpu or cuda[:N], of this machine".into())
        }
        ("device", "bench op") => {
            Some("Device that runs the kernels: cpu or cuda[:N] [default: cuda if there is a GPU, else cpu]".into())
        }
        ("device", "kernels bench") => Some("Device that runs the kernels: cuda[:N] [default: cuda]".into()),
        ("dtype", "dequantize") => Some("Data type of all weights [default: bf16]".into()),
        ("dtype", "quantize") => Some(
            "Data type in which calibration and perplexity are computed [default: bf16 on cuda, f32 on cpu]".into(),
        ),
        ("dtype", "init") => Some(init::dtype_help()),
        ("dtype", "bench op") => {
            Some("Time only kernels of this data type [default: kernels of all data types]".into())
        }
        _ => None,
    }
}

/// Returns true if the common option `option` changes what the subcommand `path` does.
fn has_effect(option: &str, path: &str) -> bool {
    // Commands that run a model on the device of `--device`.
    const MODEL: [&str; 16] = [
        "generate",
        "serve",
        "eval",
        "score",
        "sft",
        "grpo",
        "reward",
        "demo",
        "bench prefill",
        "bench decode",
        "bench rollout",
        "bench train",
        "plan sft",
        "plan grpo",
        "plan generate",
        "plan serve",
    ];
    let one_of = |paths: &[&str]| paths.contains(&path);
    // `curate` runs models from local folders on the device.
    let on_device = one_of(&MODEL) || one_of(&["bench op", "replay", "kernels check", "curate", "quantize"]);
    let plans = path.starts_with("plan");
    match option {
        "device" => on_device || path == "kernels bench",
        "dtype" => one_of(&MODEL) || one_of(&["bench op", "init", "curate", "dequantize", "quantize"]),
        "threads" => {
            let others = [
                "frames",
                "preprocess",
                "merge",
                "eval merge",
                "doctor",
                "kernels pack",
                "kernels report",
                "data check",
                "data show",
                "data stats",
            ];
            on_device || one_of(&others) || path.starts_with("sim ")
        }
        "seed" => {
            one_of(&MODEL)
                || one_of(&["init", "demo-clips", "kernels check", "bench serve"])
                || path.starts_with("sim ")
        }
        "products" => one_of(&MODEL) && !plans,
        "interleavings" => (one_of(&MODEL) && !plans) || path == "kernels check",
        "json" => !one_of(&["completions", "help", "man", "tokenize"]),
        "quiet" => {
            let others = [
                "frames",
                "preprocess",
                "eval compare",
                "eval merge",
                "curate",
                "report",
                "dequantize",
                "merge",
                "quantize",
                "replay",
                "kernels check",
                "sim run",
                "bench op",
                "bench serve",
                "data convert",
                "data show",
                "data stats",
            ];
            (one_of(&MODEL) && !plans) || one_of(&others)
        }
        "trace" => {
            let others = ["frames", "preprocess", "bench op"];
            (one_of(&MODEL) && !plans) || one_of(&others)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use reel_train::runs::number_kind::number_kind;

    use super::*;
    use crate::cli::{self, Cli};

    fn parse(line: &str) -> Result<clap::ArgMatches, clap::Error> {
        cli::command().try_get_matches_from(join_negative_numbers(line.split(' ').map(OsString::from)))
    }

    /// Every option of every command is also accepted with underscores instead of hyphens.
    #[test]
    fn underscores_are_accepted_in_every_option() {
        fn check(command: &Command, path: &str) -> usize {
            let options = command.get_arguments().filter_map(|a| a.get_long().map(|long| (a, long)));
            let mut checked = 0;
            for (argument, long) in options.filter(|(_, long)| long.contains('-')) {
                let aliases = argument.get_all_aliases().unwrap_or_default();
                assert!(aliases.contains(&long.replace('-', "_").as_str()), "{path} --{long}: {aliases:?}");
                checked += 1;
            }
            let inner = |c: &Command| check(c, &format!("{path} {}", c.get_name()));
            checked + command.get_subcommands().map(inner).sum::<usize>()
        }
        assert!(check(&cli::command(), "reel") > 150);
        let m = parse("reel sft --learning_rate 0.5 --per_device_train_batch_size=3").unwrap();
        let sft = m.subcommand_matches("sft").unwrap();
        assert_eq!(sft.get_one::<f64>("learning_rate"), Some(&0.5));
        assert_eq!(sft.get_one::<usize>("per_device_train_batch_size"), Some(&3));
    }

    #[test]
    fn names_of_other_programs_are_accepted() {
        let m =
            parse("reel grpo --model_name_or_path m --output_dir o --dataset-name d --torch_dtype bfloat16").unwrap();
        let grpo = m.subcommand_matches("grpo").unwrap();
        assert_eq!(grpo.get_one::<String>("model").map(String::as_str), Some("m"));
        assert_eq!(grpo.get_one::<std::path::PathBuf>("out").and_then(|p| p.to_str()), Some("o"));
        assert_eq!(grpo.get_one::<std::path::PathBuf>("data").and_then(|p| p.to_str()), Some("d"));
        for (value, wanted) in [("--temporal", true), ("--temporal true", true), ("--temporal false", false)] {
            let m =
                parse(&format!("reel grpo {value} --packing_not_given").replace(" --packing_not_given", "")).unwrap();
            assert_eq!(m.subcommand_matches("grpo").unwrap().get_flag("temporal"), wanted, "{value}");
        }
    }

    /// Every option that takes one value is refused if it is given twice, and the error message names the option.
    /// Switches may be repeated.
    #[test]
    fn options_given_twice_are_refused() {
        use clap::error::{ContextKind, ContextValue, ErrorKind};
        fn check(command: &Command, checked: &mut usize) {
            for argument in command.get_arguments().filter(|a| a.get_long().is_some()) {
                let (long, action) = (argument.get_long().unwrap(), argument.get_action());
                let value = match argument.get_possible_values().first() {
                    Some(value) => value.get_name().to_string(),
                    None => "1".into(),
                };
                let word = if action.takes_values() { format!("--{long}={value}") } else { format!("--{long}") };
                let parsed = command.clone().try_get_matches_from(["reel", &word, &word]);
                let name = |e: &clap::Error| match e.get(ContextKind::InvalidArg) {
                    Some(ContextValue::String(name)) => name.starts_with(&format!("--{long}")),
                    _ => false,
                };
                let is_twice = parsed.is_err_and(|e| e.kind() == ErrorKind::ArgumentConflict && name(&e));
                // Some options' value parsers already refuse the first value; such options are not checked.
                let fits = !matches!(command.clone().try_get_matches_from(["reel", &word]),
                    Err(e) if matches!(e.kind(), ErrorKind::ValueValidation | ErrorKind::WrongNumberOfValues));
                if fits {
                    assert_eq!(is_twice, matches!(action, ArgAction::Set), "{} --{long}", command.get_name());
                    *checked += usize::from(is_twice);
                }
            }
            command.get_subcommands().for_each(|inner| check(inner, checked));
        }
        let mut checked = 0;
        check(&cli::command(), &mut checked);
        assert!(checked > 150, "{checked}");
        let refused = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            refuse_repeated_common_options(&words, &cli::command()).err().map(|e| e.to_string())
        };
        for line in
            ["reel --seed 1 sft --out o --seed 2", "reel --json --seed=1 sft --seed=1", "reel sft --seed 1 --seed 2"]
        {
            assert_eq!(refused(line).as_deref(), Some("--seed: is given more than once; give it once"), "{line}");
        }
        for line in
            ["reel --seed 1 sft --out o", "reel --json sft --json", "reel sft --seed 1", "reel --seed 1 sft -- --seed"]
        {
            assert_eq!(refused(line), None, "{line}");
        }
    }

    /// A negative number after an option for numbers is parsed as its value, and is accepted or refused by an error
    /// that names the option.
    #[test]
    fn negative_numbers_are_values() {
        use clap::error::ErrorKind;
        fn check(command: &Command, checked: &mut usize) {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long().filter(|_| number_kind(argument.get_value_parser()).is_some())
                else {
                    continue;
                };
                for value in ["-1", "-1e-6", "-inf"] {
                    // Other required arguments are missing, so the parser may report a missing argument before it reads
                    // the value.
                    let words = ["reel".to_string(), format!("--{long}"), value.to_string()];
                    let words = join_negative_numbers(words.into_iter().map(OsString::from));
                    let parsed = command.clone().try_get_matches_from(words);
                    let kinds = [ErrorKind::MissingRequiredArgument, ErrorKind::MissingSubcommand];
                    let Err(e) = parsed.map_err(|e| (e.kind(), e.to_string())) else { continue };
                    let named = e.0 == ErrorKind::ValueValidation && e.1.contains(&format!("--{long}"));
                    assert!(named || kinds.contains(&e.0), "{} --{long} {value}: {e:?}", command.get_name());
                }
                *checked += 1;
            }
            command.get_subcommands().for_each(|inner| check(inner, checked));
        }
        let mut checked = 0;
        check(&cli::command(), &mut checked);
        assert!(checked > 100, "{checked}");
    }

    #[test]
    fn only_a_negative_number_after_an_option_is_joined() {
        let joined = |line: &str| {
            let words = join_negative_numbers(line.split(' ').map(OsString::from));
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        for (line, wanted) in [
            ("--fps -1 --json", "--fps=-1 --json"),
            ("--x -1e-6 --y -.5 --z -inf", "--x=-1e-6 --y=-.5 --z=-inf"),
            ("--fps=2 -1", "--fps=2 -1"),
            ("run -1 -v -2", "run -1 -v -2"),
            ("--max-steps --out x", "--max-steps --out x"),
            ("-- --fps -1", "-- --fps -1"),
        ] {
            assert_eq!(joined(line), wanted);
        }
    }

    #[test]
    fn a_word_that_is_not_utf8_is_refused_by_the_name_of_its_option() {
        use std::os::unix::ffi::OsStringExt;
        let refused = |words: &[&[u8]]| {
            let words: Vec<OsString> = words.iter().map(|word| OsString::from_vec(word.to_vec())).collect();
            refuse_non_utf8_words(&words, &cli::command()).map_err(|e| e.to_string())
        };
        let what = "is k\\xff, which is not UTF-8";
        let path = "rename the file or folder";
        assert_eq!(refused(&[b"reel", b"init", b"--out", b"k\xff"]), Err(format!("--out: {what}; {path}")));
        assert_eq!(refused(&[b"reel", b"init", b"--out=k\xff"]), Err(format!("--out: {what}; {path}")));
        assert_eq!(refused(&[b"reel", b"sft", b"--model", b"k\xff"]), Err(format!("--model: {what}; {path}")));
        for option in ["--prompt", "--stop", "--entry"] {
            let words: [&[u8]; 4] = [b"reel", b"generate", option.as_bytes(), b"k\xff"];
            assert_eq!(refused(&words), Err(format!("{option}: {what}; give the text in UTF-8")));
        }
        let any = "give it in UTF-8; rename a file or folder";
        assert_eq!(refused(&[b"reel", b"report", b"k\xff"]), Err(format!("argument 2: {what}; {any}")));
        assert_eq!(refused(&[b"reel", "ü".as_bytes()]), Ok(()));
    }

    #[test]
    fn help_lists_common_options_where_they_have_an_effect() {
        let help = |path: &str| {
            let line = format!("reel {path} --help");
            parse(&line).unwrap_err().to_string()
        };
        for (path, shown, hidden) in [
            ("resize", &["--json"][..], &["--device", "--seed", "--trace", "--threads", "--interleavings"][..]),
            ("sft", &["--device", "--seed", "--trace", "--interleavings"], &[]),
            ("init", &["--seed", "--dtype"], &["--device ", "--trace"]),
            ("serve", &["--device", "--dtype", "--threads", "--trace"], &[]),
            ("eval", &["--device", "--dtype", "--threads", "--quiet"], &[]),
            ("eval compare", &["--quiet"], &["--device", "--threads"]),
            ("eval merge", &["--quiet", "--threads"], &["--device"]),
            ("curate", &["--quiet", "--device", "--dtype"], &["--trace"]),
            ("plan sft", &["--device", "--dtype"], &["--trace", "--interleavings"]),
            ("kernels list", &["--json"], &["--device", "--seed"]),
            ("sim run", &["--interleavings", "--seed", "--threads"], &["--device", "--dtype"]),
        ] {
            let text = help(path);
            assert!(shown.iter().all(|option| text.contains(option)), "{path}: {text}");
            assert!(hidden.iter().all(|option| !text.contains(&format!("  {option}"))), "{path}: {text}");
        }
        // Hidden common options are accepted before and after the name of the subcommand.
        for line in ["reel --device cpu resize --height 1 --width 1", "reel resize --height 1 --width 1 --device cpu"] {
            assert_eq!(parse(line).unwrap().get_one::<String>("device").map(String::as_str), Some("cpu"), "{line}");
        }
        Cli::command().debug_assert();
    }
}
