//! Parses and rounds numbers as Python does.

/// The code point of digit zero in each script outside ASCII: the start of a run of ten decimal digits (category Nd of
/// Unicode 14, which Python 3.11 uses).
const ZEROS: [u32; 65] = [
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20,
    0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0,
    0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0,
    0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0,
    0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Parses a number as VideoRFT and Video-R1 do: removes commas, then applies Python's `float`.
pub fn parse_number(text: &str) -> Option<f64> {
    parse_python_float(&text.replace(',', ""))
}

/// Python's `float(text)`: accepts signs, exponents, `inf`, `nan`, underscores between digits, digits of any script
/// and surrounding white space. Numbers that are too large become infinite. Returns `None` where Python raises
/// ValueError.
pub(crate) fn parse_python_float(text: &str) -> Option<f64> {
    let ascii: String =
        if text.is_ascii() { text.to_string() } else { text.chars().map(to_ascii).collect::<Option<_>>()? };
    // The characters are the white space of C's isspace. `to_ascii` has already replaced all other white space by
    // spaces.
    let number = ascii.trim_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    without_underscores(number)?.parse().ok()
}

/// Maps a character of a number to ASCII: white space to a space, and a decimal digit of any script to 0-9. Returns
/// `None` for characters that no number contains.
fn to_ascii(c: char) -> Option<char> {
    if c.is_ascii() {
        return Some(c);
    }
    if c.is_whitespace() {
        return Some(' ');
    }
    let zero = ZEROS[..ZEROS.partition_point(|&zero| zero <= c as u32)].last()?;
    char::from_digit(c as u32 - zero, 10)
}

/// Removes underscores from a number. Returns `None` if an underscore is not between two digits.
fn without_underscores(number: &str) -> Option<String> {
    let bytes = number.as_bytes();
    let is_digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let mut underscores = (0..bytes.len()).filter(|&i| bytes[i] == b'_');
    underscores.all(|i| is_digit(i.checked_sub(1)) && is_digit(Some(i + 1))).then(|| number.replace('_', ""))
}

/// Python's `round(x, 2)`: the number with two decimals that is nearest to the exact value of `x`; ties go to the
/// even one.
pub(crate) fn round_to_2_decimals(x: f64) -> f64 {
    // Formatting is exact and rounds ties to even; the result is parsed to the nearest f64, as in Python.
    if x.is_finite() { format!("{x:.2}").parse().unwrap_or(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parsing_and_rounding_equal_python() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/golden/rewards/floats.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 300);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let bits = |key: &str| case[key].as_str().map(|hex| f64::from_bits(u64::from_str_radix(hex, 16).unwrap()));
            let same = |got: Option<f64>, want: Option<f64>| match (got, want) {
                (Some(got), Some(want)) => got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                (got, want) => got == want,
            };
            let value = parse_python_float(text);
            assert!(same(value, bits("float")), "{text:?}: {value:?}, want {:?}", bits("float"));
            let rounded = value.map(round_to_2_decimals);
            assert!(same(rounded, bits("round")), "{text:?}: {rounded:?}, want {:?}", bits("round"));
        }
    }

    #[test]
    fn digit_ranges_are_sorted_and_disjoint() {
        assert!(ZEROS.windows(2).all(|pair| pair[0] + 10 <= pair[1]));
    }

    /// Returns `m / 2^k` in hundredths, rounded half to even, computed with integers only.
    fn exact_hundredths(m: i128, k: u32) -> i128 {
        let (scaled, unit) = (m * 100, 1i128 << k);
        let (below, rest) = (scaled.div_euclid(unit), scaled.rem_euclid(unit));
        match (2 * rest).cmp(&unit) {
            std::cmp::Ordering::Less => below,
            std::cmp::Ordering::Greater => below + 1,
            std::cmp::Ordering::Equal => below + below.rem_euclid(2),
        }
    }

    proptest! {
        /// The tested numbers are `m / 2^k`. Half of the cases have k = 3, because every tie in rounding to
        /// hundredths is a multiple of 1/8.
        #[test]
        fn rounding_equals_integer_arithmetic(m in -(1i64 << 52)..(1i64 << 52), k in prop_oneof![Just(3u32), 0u32..60]) {
            let x = m as f64 / (1u64 << k) as f64;
            let want = exact_hundredths(i128::from(m), k);
            prop_assert_eq!(round_to_2_decimals(x), format!("{want}e-2").parse::<f64>().unwrap());
        }

        #[test]
        fn parsing_ignores_white_space_and_refuses_letters(text in "\\PC*") {
            if let Some(value) = parse_python_float(&text).filter(|v| v.is_finite()) {
                prop_assert_eq!(parse_python_float(&format!("{text}x")), None);
                prop_assert_eq!(parse_python_float(&format!("\u{3000}{text}\n")), Some(value));
            }
        }

        #[test]
        fn digits_of_any_script_are_parsed(x in any::<f64>(), zero in prop::sample::select(ZEROS.to_vec())) {
            let digit = |c: char| c.to_digit(10).map_or(c, |d| char::from_u32(zero + d).unwrap());
            let written: String = format!("{x:e}").chars().map(digit).collect();
            let got = parse_python_float(&written).unwrap();
            prop_assert!(got.to_bits() == x.to_bits() || x.is_nan());
        }
    }
}
