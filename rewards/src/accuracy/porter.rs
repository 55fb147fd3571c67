//! The Porter stemmer as NLTK extends it (`PorterStemmer` in its default mode, NLTK_EXTENSIONS), which is what ROUGE is computed
//! with. M. F. Porter, "An algorithm for suffix stripping", Program 14 no. 3 (1980), pp. 130-137; NLTK's departures, each
//! marked below: a table of irregular words, short words in -ies, -ied, -y and VC, and four rules of step 2.
//!
//! A word is a sequence of lower-case ASCII letters and digits. A digit counts as a consonant.

/// Words that the rules get wrong (NLTK), with their stems.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The stem of a word in lower-case ASCII.
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_string();
    }
    if word.len() <= 2 {
        return word.to_string();
    }
    let steps = [step1a, step1b, step1c, step2, step3, step4, step5a, step5b];
    steps.iter().fold(word.to_string(), |word, step| step(&word))
}

fn is_consonant(word: &[u8], i: usize) -> bool {
    match word[i] {
        b'a' | b'e' | b'i' | b'o' | b'u' => false,
        // After a consonant it sounds as a vowel. Runs of y are walked, not recursed into: words are as long as texts are.
        b'y' => {
            let run = word[..i].iter().rev().take_while(|&&c| c == b'y').count();
            let first = i - run;
            let consonant = first == 0 || !is_consonant(word, first - 1);
            consonant == (run % 2 == 0)
        }
        _ => true,
    }
}

/// Porter's m: how often a run of vowels is followed by a run of consonants.
fn measure(stem: &str) -> usize {
    let kinds: Vec<bool> = consonants(stem);
    kinds.windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

/// For each letter, whether it is a consonant, in one pass.
fn consonants(stem: &str) -> Vec<bool> {
    let mut kinds = Vec::with_capacity(stem.len());
    for &c in stem.as_bytes() {
        let before = kinds.last().copied();
        kinds.push(match c {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => before.is_none_or(|consonant: bool| !consonant),
            _ => true,
        });
    }
    kinds
}

fn contains_vowel(stem: &str) -> bool {
    consonants(stem).contains(&false)
}

/// *d: ends with a doubled consonant.
fn ends_double_consonant(word: &str) -> bool {
    let w = word.as_bytes();
    w.len() >= 2 && w[w.len() - 1] == w[w.len() - 2] && is_consonant(w, w.len() - 1)
}

/// *o: ends consonant, vowel, consonant, where the last is not w, x or y; and (NLTK) a word of a vowel and a consonant.
fn ends_cvc(word: &str) -> bool {
    let w = word.as_bytes();
    let n = w.len();
    let consonant = |i: usize| is_consonant(w, i);
    n >= 3 && consonant(n - 3) && !consonant(n - 2) && consonant(n - 1) && !b"wxy".contains(&w[n - 1])
        || n == 2 && !consonant(0) && consonant(1)
}

/// Takes the first rule whose suffix the word has: the suffix is replaced if the stem before it meets the condition. No later
/// rule is looked at.
fn first_rule(word: &str, rules: &[(&str, &str)], condition: impl Fn(&str) -> bool) -> String {
    let found = rules.iter().find_map(|(suffix, new)| word.strip_suffix(suffix).map(|stem| (stem, new)));
    match found {
        Some((stem, new)) if condition(stem) => format!("{stem}{new}"),
        _ => word.to_string(),
    }
}

/// Plurals.
fn step1a(word: &str) -> String {
    // NLTK: "dies" becomes "die", while "flies" becomes "fli".
    if word.len() == 4 && word.ends_with("ies") {
        return word[..3].to_string();
    }
    first_rule(word, &[("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")], |_| true)
}

/// Past tenses and participles.
fn step1b(word: &str) -> String {
    // NLTK: "died" becomes "die", while "spied" becomes "spi".
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if word.len() == 4 { "ie" } else { "i" });
    }
    if word.ends_with("eed") {
        return first_rule(word, &[("eed", "ee")], |stem| measure(stem) > 0);
    }
    let stem = ["ed", "ing"].iter().find_map(|suffix| word.strip_suffix(suffix).filter(|stem| contains_vowel(stem)));
    let Some(stem) = stem else { return word.to_string() };
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        return format!("{stem}e");
    }
    if ends_double_consonant(stem) {
        let keeps = stem.ends_with(['l', 's', 'z']);
        return stem[..stem.len() - usize::from(!keeps)].to_string();
    }
    if measure(stem) == 1 && ends_cvc(stem) { format!("{stem}e") } else { stem.to_string() }
}

/// A last y after a consonant (NLTK: where Porter asks for any vowel), unless the word is one letter and y.
fn step1c(word: &str) -> String {
    first_rule(word, &[("y", "i")], |stem| stem.len() > 1 && is_consonant(stem.as_bytes(), stem.len() - 1))
}

/// Doubled suffixes.
fn step2(word: &str) -> String {
    // NLTK: this rule first, and then the step again.
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| measure(stem) > 0) {
        return step2(&format!("{stem}al"));
    }
    const RULES: [(&str, &str); 21] = [
        ("ational", "ate"),
        ("tional", "tion"),
        ("enci", "ence"),
        ("anci", "ance"),
        ("izer", "ize"),
        // NLTK: Porter has -abli.
        ("bli", "ble"),
        ("alli", "al"),
        ("entli", "ent"),
        ("eli", "e"),
        ("ousli", "ous"),
        ("ization", "ize"),
        ("ation", "ate"),
        ("ator", "ate"),
        ("alism", "al"),
        ("iveness", "ive"),
        ("fulness", "ful"),
        ("ousness", "ous"),
        ("aliti", "al"),
        ("iviti", "ive"),
        ("biliti", "ble"),
        // NLTK.
        ("fulli", "ful"),
    ];
    // NLTK: the l counts with the stem, so that "geologi" has a measure to lose its end by.
    if word.ends_with("logi") {
        return first_rule(word, &[("logi", "log")], |stem| measure(&format!("{stem}l")) > 0);
    }
    first_rule(word, &RULES, |stem| measure(stem) > 0)
}

/// -ic-, -full, -ness and the like.
fn step3(word: &str) -> String {
    const RULES: [(&str, &str); 7] =
        [("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];
    first_rule(word, &RULES, |stem| measure(stem) > 0)
}

/// Single suffixes after a long stem.
fn step4(word: &str) -> String {
    const SUFFIXES: [&str; 19] = [
        "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate",
        "iti", "ous", "ive", "ize",
    ];
    let found = SUFFIXES.iter().find_map(|suffix| word.strip_suffix(suffix).map(|stem| (stem, *suffix)));
    match found {
        Some((stem, suffix)) if measure(stem) > 1 && (suffix != "ion" || stem.ends_with(['s', 't'])) => {
            stem.to_string()
        }
        _ => word.to_string(),
    }
}

/// A last e.
fn step5a(word: &str) -> String {
    match word.strip_suffix('e') {
        Some(stem) if measure(stem) > 1 || measure(stem) == 1 && !ends_cvc(stem) => stem.to_string(),
        _ => word.to_string(),
    }
}

/// A last ll after a long stem.
fn step5b(word: &str) -> String {
    let shorter = &word[..word.len() - usize::from(word.ends_with("ll"))];
    if measure(shorter) > 1 { shorter.to_string() } else { word.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stems_are_nltks() {
        let file = include_str!("../../../tests/golden/rewards/stems.json");
        let golden: serde_json::Value = serde_json::from_str(file).unwrap();
        let stems = golden["stems"].as_object().unwrap();
        assert!(stems.len() > 300);
        for (word, want) in stems {
            assert_eq!(stem(word), want.as_str().unwrap(), "{word}");
        }
    }

    #[test]
    fn nltks_departures() {
        let pairs = [
            ("dies", "die"),
            ("flies", "fli"),
            ("died", "die"),
            ("spied", "spi"),
            ("enjoy", "enjoy"),
            ("happy", "happi"),
            ("geology", "geolog"),
            ("theologi", "theolog"),
            ("hopefully", "hope"),
            ("radically", "radic"),
            ("ising", "ise"),
        ];
        for (word, want) in pairs {
            assert_eq!(stem(word), want, "{word}");
        }
    }

    proptest! {
        /// The run-length rule for y is Porter's recursion.
        #[test]
        fn consonants_are_one_definition(word in "[aybs2]{1,12}") {
            let at: Vec<bool> = (0..word.len()).map(|i| is_consonant(word.as_bytes(), i)).collect();
            prop_assert_eq!(at, consonants(&word));
        }

        #[test]
        fn a_stem_is_no_longer_than_its_word_and_begins_alike(word in "[a-z0-9]{1,20}") {
            let stem = stem(&word);
            prop_assert!(!stem.is_empty() && stem.len() <= word.len());
            prop_assert_eq!(&stem[..1], &word[..1]);
        }
    }
}
