//! Random changes of text: lines, words, numbers and characters.

use crate::random::Random;

/// Numbers that parsers often handle incorrectly: limits of types, and unusual spellings.
pub const EDGE_CASE_NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "64",
    "127",
    "255",
    "256",
    "65535",
    "65536",
    "1000000",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "0.5",
    "-0.0",
    "1e-45",
    "1e-400",
    "1e19",
    "1e38",
    "3.5e38",
    "1e308",
    "1e400",
    "-1e400",
    "1e99999999",
    "0x7fffffff",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "1_000",
    "1,5",
    "٣",
    "+4",
];

/// Characters and bytes that parsers may not expect.
const STRANGE: &[&[u8]] = &[
    b"\0",
    b"\x1b[2J",
    b"\x07",
    b"\x7f",
    b"\xc2\x9b",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    "\u{feff}".as_bytes(),
    "\u{202e}".as_bytes(),
    "\u{2028}".as_bytes(),
    "é".as_bytes(),
    "e\u{301}".as_bytes(),
    "😀".as_bytes(),
    "İ".as_bytes(),
    "ß".as_bytes(),
    "\u{3000}".as_bytes(),
    b"\r",
    b"\r\n",
    b"\t",
    b"\n",
    b"\\",
    b"\"",
    b"'",
    b"`",
    b"%",
    b"\\u0000",
    b"\\ud800",
    b"<",
    b">",
    b"{",
    b"}",
    b"[",
    b"]",
    b"(",
    b")",
    b",",
    b":",
    b";",
    b"#",
];

/// Makes one random change to text. `words` are texts that the tested parser knows; `other` is the text of another
/// seed.
pub fn mutate_text(text: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut Random) {
    match random.below(12) {
        0 | 1 if replace_number(text, random) => {}
        2 | 3 => change_line(text, other, random),
        4 | 5 => change_word(text, words, random),
        6 | 7 if !words.is_empty() => {
            let word = random.pick(words).as_bytes();
            let replaced = random.length_up_to(text.len().min(12));
            let start = random.below(text.len() + 1 - replaced);
            text.splice(start..start + replaced, word.iter().copied());
        }
        8 => {
            let piece = text[random.range_within(text.len())].to_vec();
            let longest = if random.one_in(4) { 200_000 } else { 2_000 };
            let times = 2 + random.length_up_to(longest / piece.len().max(1));
            let at = random.below(text.len() + 1);
            text.splice(at..at, piece.repeat(times));
        }
        9 => text.truncate(random.below(text.len() + 1)),
        10 => {
            let piece = other[random.range_within(other.len())].to_vec();
            let at = random.range_within(text.len());
            text.splice(at, piece);
        }
        _ => {
            let piece = STRANGE[random.below(STRANGE.len())];
            let times = if random.one_in(6) { random.length_up_to(50_000) } else { 1 };
            let at = random.below(text.len() + 1);
            text.splice(at..at, piece.repeat(times));
        }
    }
}

/// Replaces one of the numbers in a text. Returns false if the text has no number.
fn replace_number(text: &mut Vec<u8>, random: &mut Random) -> bool {
    let is_part = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    let starts: Vec<usize> =
        (0..text.len()).filter(|&i| text[i].is_ascii_digit() && (i == 0 || !is_part(text[i - 1]))).collect();
    if starts.is_empty() {
        return false;
    }
    let start = starts[random.below(starts.len())];
    let end = start + text[start..].iter().take_while(|&&byte| is_part(byte)).count();
    text.splice(start..end, EDGE_CASE_NUMBERS[random.below(EDGE_CASE_NUMBERS.len())].bytes());
    true
}

/// Removes, repeats, swaps, replaces or inserts lines; an inserted line comes from `other`.
fn change_line(text: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let mut lines: Vec<Vec<u8>> = text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let (a, b) = (random.below(lines.len()), random.below(lines.len()));
    match random.below(5) {
        0 => drop(lines.remove(a)),
        1 => {
            let line = lines[a].clone();
            let times = 1 + random.length_up_to(500_000 / (line.len() + 1)).min(3_000);
            lines.splice(b..b, std::iter::repeat_n(line, times));
        }
        2 => lines.swap(a, b),
        3 => lines[a] = lines[b].clone(),
        _ => {
            let others: Vec<&[u8]> = other.split(|&byte| byte == b'\n').collect();
            let line = others[random.below(others.len())].to_vec();
            lines.insert(a, line);
        }
    }
    *text = lines.join(&b'\n');
}

/// Removes, repeats or replaces a word, which is a run of letters, digits and `_`.
fn change_word(text: &mut Vec<u8>, words: &[&str], random: &mut Random) {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts: Vec<usize> =
        (0..text.len()).filter(|&i| is_part(text[i]) && (i == 0 || !is_part(text[i - 1]))).collect();
    if starts.is_empty() {
        return;
    }
    let word_at = |start: usize| start..start + text[start..].iter().take_while(|&&byte| is_part(byte)).count();
    let at = word_at(starts[random.below(starts.len())]);
    let new = match random.below(4) {
        0 => Vec::new(),
        1 => text[at.clone()].repeat(2),
        2 if !words.is_empty() => random.pick(words).as_bytes().to_vec(),
        _ => text[word_at(starts[random.below(starts.len())])].to_vec(),
    };
    text.splice(at, new);
}
