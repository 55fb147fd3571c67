//! Patterns of the instruction table: `add<|.sat>.<s32|u32>` means every choice of one alternative from each pair of
//! brackets.

/// Returns all expansions of a pattern. The choice in the last brackets varies fastest.
pub fn expand_pattern(pattern: &str) -> Vec<String> {
    let Some((head, rest)) = pattern.split_once('<') else { return vec![pattern.to_string()] };
    let (choices, tail) = rest.split_once('>').expect("every `<` has a `>`");
    let tails = expand_pattern(tail);
    choices.split('|').flat_map(|choice| tails.iter().map(move |tail| format!("{head}{choice}{tail}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::expand_pattern;

    #[test]
    fn all_choices() {
        assert_eq!(expand_pattern("add<|.sat>.<s|u>32"), ["add.s32", "add.u32", "add.sat.s32", "add.sat.u32"]);
        assert_eq!(expand_pattern("popc"), ["popc"]);
    }
}
