//! Names of options as users write them: spellings, aliases from other programs (`foreign_options`), typing errors.

use crate::runs::foreign_options;

/// Converts an option's name from a user's spelling to its field name: `--learning-rate` to `learning_rate`.
pub fn field_name(written: &str) -> String {
    written.trim_start_matches('-').replace('-', "_").to_ascii_lowercase()
}

/// Returns the option for which `name` is an alias in the command `command`, if the command has this option
/// (`is_option`), else `name` itself. Names and result are field names.
pub fn option_of_alias<'a>(name: &'a str, command: &str, is_option: impl Fn(&str) -> bool) -> &'a str {
    if is_option(name) {
        return name;
    }
    let is_alias = |row: &foreign_options::OptionRow, value: Option<&str>| {
        value.is_none()
            && matches!(row.becomes[..], [becomes] if becomes.ends_with("=$"))
            && row.target_option_names().all(&is_option)
    };
    let row = foreign_options::find_row(name, None, command, is_alias);
    row.and_then(|row| row.target_option_names().next()).filter(|target| !target.ends_with('?')).unwrap_or(name)
}

/// Maximum number of edits between a name and a suggested name: 1, plus 1 for each six characters. An edit inserts,
/// removes or changes a character, or swaps two neighbours.
fn max_edits(name: &str) -> usize {
    1 + name.len() / 6
}

/// Returns the option in `options` that is most similar to the field name `name`; `None` if each differs by too many
/// typing errors.
pub fn most_similar_option<'a>(name: &str, options: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = options.map(|option| (strsim::damerau_levenshtein(name, option), option));
    scored.filter(|(edits, _)| *edits <= max_edits(name)).min().map(|(_, option)| option)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_stand_for_options_of_the_command_only() {
        let options = |name: &str| ["out", "model", "max_length"].contains(&name);
        assert_eq!(option_of_alias("output_dir", "sft", options), "out");
        assert_eq!(option_of_alias("max_seq_len", "sft", options), "max_length");
        assert_eq!(option_of_alias("out", "sft", options), "out");
        assert_eq!(option_of_alias("lora_rank", "sft", options), "lora_rank");
        assert_eq!(field_name("--Learning-Rate"), "learning_rate");
    }

    #[test]
    fn only_near_names_are_suggested() {
        let similar = |name: &str, options: &[&'static str]| most_similar_option(name, options.iter().copied());
        assert_eq!(similar("learning_rat", &["model", "learning_rate"]), Some("learning_rate"));
        assert_eq!(similar("gird", &["grid"]), Some("grid"));
        for (name, other) in [
            ("zzz", "model"),
            ("allowed_local_media_path", "allow_remote_media"),
            ("gpu_memory_utilization", "port"),
            ("freeze_llm", "freeze_vision"),
            ("rlhf_type", "torch_dtype"),
        ] {
            assert_eq!(similar(name, &[other]), None, "{name}");
        }
    }
}
