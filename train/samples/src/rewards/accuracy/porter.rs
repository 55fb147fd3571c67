//! The Porter stemmer with NLTK's extensions (`PorterStemmer` in its default mode, NLTK_EXTENSIONS), which
//! rouge_score uses.
//!
//! Eight steps each remove or replace at most one suffix, for example `hopefully`: step 1c gives `hopefulli`, step 2
//! `hopeful`, step 3 `hope`. Source: M. F. Porter, "An algorithm for suffix stripping", Program 14 no. 3 (1980), pp.
//! 130-137. NLTK's extensions are marked below: a table of irregular words, short words that end in -ies, -ied, -y or
//! vowel and consonant, and four rules of step 2.
//!
//! A word is a sequence of lower-case ASCII letters and digits. A digit counts as a consonant.

/// Irregular words with their stems (NLTK).
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

/// Returns the stem of a word of lower-case ASCII letters and digits.
pub(super) fn porter_stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_string();
    }
    if word.len() <= 2 {
        return word.to_string();
    }
    let steps = [step1a, step1b, step1c, step2, step3, step4, step5a, step5b];
    steps.iter().fold(word.to_string(), |word, step| step(&word))
}

/// Whether letter `i` is a consonant by Porter's definition.
fn is_consonant(word: &[u8], i: usize) -> bool {
    match word[i] {
        b'a' | b'e' | b'i' | b'o' | b'u' => false,
        // A y after a consonant is a vowel. In a run of y, consonants and vowels alternate. The run is counted in a
        // loop, not by recursion, because a word can be as long as a whole text.
        b'y' => {
            let run = word[..i].iter().rev().take_while(|&&c| c == b'y').count();
            let first = i - run;
            let consonant = first == 0 || !is_consonant(word, first - 1);
            consonant == (run % 2 == 0)
        }
        _ => true,
    }
}

/// Porter's measure m of a word: the number of vowel runs that are followed by a consonant run.
fn measure(stem: &str) -> usize {
    consonants(stem).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

/// Whether each letter is a consonant, computed in one pass.
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

/// Porter's condition *d: the word ends with a doubled consonant.
fn ends_double_consonant(word: &str) -> bool {
    let w = word.as_bytes();
    w.len() >= 2 && w[w.len() - 1] == w[w.len() - 2] && is_consonant(w, w.len() - 1)
}

/// Porter's condition *o: the word ends with consonant, vowel, consonant, and the final consonant is not w, x or y.
/// NLTK also accepts words of one vowel and one consonant.
fn ends_cvc(word: &str) -> bool {
    let w = word.as_bytes();
    let n = w.len();
    let consonant = |i: usize| is_consonant(w, i);
    n >= 3 && consonant(n - 3) && !consonant(n - 2) && consonant(n - 1) && !b"wxy".contains(&w[n - 1])
        || n == 2 && !consonant(0) && consonant(1)
}

/// Applies the first rule whose suffix the word has. Replaces this suffix if the part before it meets the condition.
/// Later rules are not tried, even if the condition fails.
fn first_rule(word: &str, rules: &[(&str, &str)], condition: impl Fn(&str) -> bool) -> String {
    let found = rules.iter().find_map(|(suffix, new)| word.strip_suffix(suffix).map(|stem| (stem, new)));
    match found {
        Some((stem, new)) if condition(stem) => format!("{stem}{new}"),
        _ => word.to_string(),
    }
}

/// Removes plural suffixes.
fn step1a(word: &str) -> String {
    // NLTK: "dies" becomes "die", while "flies" becomes "fli".
    if word.len() == 4 && word.ends_with("ies") {
        return word[..3].to_string();
    }
    first_rule(word, &[("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")], |_| true)
}

/// Removes -eed, -ed and -ing.
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

/// Replaces a final y after a consonant by i, unless the word has two letters. (NLTK; Porter requires a vowel in the
/// stem.)
fn step1c(word: &str) -> String {
    first_rule(word, &[("y", "i")], |stem| stem.len() > 1 && is_consonant(stem.as_bytes(), stem.len() - 1))
}

/// Shortens double suffixes such as -ational to -ate.
fn step2(word: &str) -> String {
    // NLTK: -alli is replaced first, and the step is repeated.
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| measure(stem) > 0) {
        return step2(&format!("{stem}al"));
    }
    const RULES: [(&str, &str); 21] = [
        ("ational", "ate"),
        ("tional", "tion"),
        ("enci", "ence"),
        ("anci", "ance"),
        ("izer", "ize"),
        // This suffix is NLTK's; Porter's rule has -abli.
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
        // This rule is an addition of NLTK.
        ("fulli", "ful"),
    ];
    // In NLTK the l counts as part of the stem when the measure is computed, so "geologi" becomes "geolog".
    if word.ends_with("logi") {
        return first_rule(word, &[("logi", "log")], |stem| measure(&format!("{stem}l")) > 0);
    }
    first_rule(word, &RULES, |stem| measure(stem) > 0)
}

/// Removes or shortens -icate, -ative, -ful, -ness and similar suffixes.
fn step3(word: &str) -> String {
    const RULES: [(&str, &str); 7] =
        [("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];
    first_rule(word, &RULES, |stem| measure(stem) > 0)
}

/// Removes suffixes such as -ance and -ment if Porter's measure of the stem before them is above 1.
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

/// Removes a final e.
fn step5a(word: &str) -> String {
    match word.strip_suffix('e') {
        Some(stem) if measure(stem) > 1 || measure(stem) == 1 && !ends_cvc(stem) => stem.to_string(),
        _ => word.to_string(),
    }
}

/// Replaces a final ll by l if Porter's measure of the stem is above 1.
fn step5b(word: &str) -> String {
    let shorter = &word[..word.len() - usize::from(word.ends_with("ll"))];
    if measure(shorter) > 1 { shorter.to_string() } else { word.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stems_equal_nltk() {
        let file = include_str!("../../../../../tests/golden/rewards/stems.json");
        let golden: serde_json::Value = serde_json::from_str(file).unwrap();
        let stems = golden["stems"].as_object().unwrap();
        assert!(stems.len() > 300);
        for (word, want) in stems {
            assert_eq!(porter_stem(word), want.as_str().unwrap(), "{word}");
        }
    }

    #[test]
    fn applies_extensions_of_nltk() {
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
            assert_eq!(porter_stem(word), want, "{word}");
        }
    }

    proptest! {
        #[test]
        fn both_consonant_functions_agree(word in "[aybs2]{1,12}") {
            let at: Vec<bool> = (0..word.len()).map(|i| is_consonant(word.as_bytes(), i)).collect();
            prop_assert_eq!(at, consonants(&word));
        }

        #[test]
        fn stem_is_not_longer_than_its_word_and_has_the_same_first_letter(word in "[a-z0-9]{1,20}") {
            let stem = porter_stem(&word);
            prop_assert!(!stem.is_empty() && stem.len() <= word.len());
            prop_assert_eq!(&stem[..1], &word[..1]);
        }
    }
}
