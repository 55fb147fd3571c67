//! Names of options as users write them: spellings and typing errors. Names of other programs are in `paste/table.rs`.

/// Converts an option's name from a user's spelling to its field name: `--learning-rate` to `learning_rate`.
pub fn field_name(written: &str) -> String {
    written.trim_start_matches('-').replace('-', "_").to_ascii_lowercase()
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
    fn spellings_of_a_name_are_one_field_name() {
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
