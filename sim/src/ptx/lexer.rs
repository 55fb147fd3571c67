//! A cursor over PTX text: white space, comments, identifiers, directives and literals (PTX ISA, chapter 4).

use super::ast::ParseError;

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// The newest major version of PTX whose syntax is known; of CUDA 13. Its minor versions add instructions only, and an
/// instruction that the simulator lacks is named when it is executed.
const NEWEST_MAJOR_VERSION: u32 = 9;

/// The value of a literal or constant expression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Literal {
    /// An integer's 64 bits, and true if its type is unsigned.
    Integer(i64, bool),
    /// The bits of an f32 literal, `0f…`.
    Float32(u32),
    /// `0d…` or a decimal literal.
    Float64(f64),
}

/// The PTX text and a position in it. The position only moves past ASCII bytes or up to the next ASCII byte, so it is
/// always on a UTF-8 character boundary.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    position: usize,
    /// The line of `position`, from 1.
    pub line: u32,
    /// The line of a `/*` that has no `*/`, if there is one.
    pub open_comment: Option<u32>,
    /// The line of the comment `// begin inline asm` if its `// end inline asm` has not come yet.
    pub inline_asm: Option<u32>,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Cursor { text, position: 0, line: 1, open_comment: None, inline_asm: None }
    }

    /// Returns the byte that is `ahead` bytes after the position, or 0 past the end of the text.
    pub fn byte_at(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.position + ahead).copied().unwrap_or(0)
    }

    pub fn is_at_end(&self) -> bool {
        self.position >= self.text.len()
    }

    pub fn skip_space(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.position) {
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => {}
                b'/' if self.byte_at(1) == b'/' => {
                    self.skip_to_end_of_line();
                    continue;
                }
                b'/' if self.byte_at(1) == b'*' => {
                    self.skip_block_comment();
                    continue;
                }
                _ => return,
            }
            self.position += 1;
        }
    }

    fn skip_to_end_of_line(&mut self) {
        let rest = &self.text.as_bytes()[self.position..];
        if rest.starts_with(b"// begin inline asm") {
            self.inline_asm = Some(self.line);
        } else if rest.starts_with(b"// end inline asm") {
            self.inline_asm = None;
        }
        self.position += rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    }

    fn skip_block_comment(&mut self) {
        let body = self.position + 2;
        let end = match self.text[body..].find("*/") {
            Some(length) => body + length + 2,
            None => {
                self.open_comment = Some(self.line);
                self.text.len()
            }
        };
        self.advance_to(end);
    }

    /// Moves to position `end` and counts the lines on the way.
    fn advance_to(&mut self, end: usize) {
        self.line += self.text.as_bytes()[self.position..end].iter().filter(|&&b| b == b'\n').count() as u32;
        self.position = end;
    }

    /// Skips white space and comments and returns the next byte without consuming it; 0 at the end of the text.
    pub fn peek(&mut self) -> u8 {
        self.skip_space();
        self.byte_at(0)
    }

    pub fn consume_character(&mut self) {
        self.position += self.text[self.position..].chars().next().map_or(0, char::len_utf8);
    }

    pub fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == byte && !self.is_at_end();
        self.position += usize::from(found);
        found
    }

    /// Consumes `text` if it comes next; returns true if it did.
    pub fn eat_text(&mut self, text: &str) -> bool {
        self.skip_space();
        let found = self.text[self.position..].starts_with(text);
        self.position += if found { text.len() } else { 0 };
        found
    }

    pub fn expect(&mut self, byte: u8) -> Result<()> {
        match self.eat(byte) {
            true => Ok(()),
            false => Err(self.expected_error(&format!("`{}`", char::from(byte)))),
        }
    }

    pub fn error(&self, what: impl Into<String>) -> ParseError {
        ParseError { line: self.line, what: what.into() }
    }

    /// Returns an error that names what was expected and what was found.
    pub fn expected_error(&mut self, what: &str) -> ParseError {
        self.skip_space();
        let rest = &self.text[self.position..];
        let word = rest.split([' ', '\t', '\r', '\n', ',', ';']).next().unwrap_or("");
        let found = match (rest.chars().next(), word) {
            (None, _) => "the end of the text".to_owned(),
            (Some(first), "") => format!("`{first}`"),
            (Some(_), word) => format!("`{}`", word.chars().take(60).collect::<String>()),
        };
        self.error(format!("expected {what}, found {found}"))
    }

    pub fn is_at_identifier(&mut self) -> bool {
        let first = self.peek();
        first.is_ascii_alphabetic() || matches!(first, b'_' | b'$' | b'%') && !self.at_percent_operator()
    }

    /// Returns true if the next byte is a `%` without a name after it, which is the remainder operator and not a
    /// register.
    fn at_percent_operator(&self) -> bool {
        self.byte_at(0) == b'%' && !is_name_byte(self.byte_at(1))
    }

    pub fn parse_identifier(&mut self) -> Result<&'a str> {
        match self.is_at_identifier() {
            true => Ok(self.take_while_from(1, is_name_byte)),
            false => Err(self.expected_error("a name")),
        }
    }

    /// Consumes `skip` bytes and all bytes after them for which `accept` is true; returns them as text.
    fn take_while_from(&mut self, skip: usize, accept: impl Fn(u8) -> bool) -> &'a str {
        let start = self.position;
        let rest = &self.text.as_bytes()[start + skip..];
        let length = skip + rest.iter().position(|&b| !accept(b)).unwrap_or(rest.len());
        self.position = start + length;
        &self.text[start..start + length]
    }

    /// Parses a word that begins with a dot, such as `.reg`, `.v4` or `.target`, and returns it without the dot.
    /// Returns `None` if the next text is not such a word.
    pub fn parse_directive(&mut self) -> Option<&'a str> {
        if self.peek() != b'.' || !is_name_byte(self.byte_at(1)) {
            return None;
        }
        self.position += 1;
        Some(self.take_while_from(0, is_name_byte))
    }

    /// Parses a suffix such as `.x` if it follows a name directly.
    pub fn parse_suffix(&mut self) -> Option<&'a str> {
        if self.byte_at(0) != b'.' || !self.byte_at(1).is_ascii_alphabetic() {
            return None;
        }
        self.position += 1;
        Some(self.take_while_from(0, is_name_byte))
    }

    /// Parses the rest of a dotted opcode, which may contain `::`, after its first name `head`.
    pub fn parse_rest_of_opcode(&mut self, head: &str) -> String {
        let mut opcode = head.to_owned();
        loop {
            let adjacent = self.dotted_part();
            opcode.push_str(adjacent);
            if adjacent.is_empty() {
                // White space may separate the modifiers of an opcode (`ld .global .f32`). No operand begins with a
                // dot and a letter.
                self.skip_space();
                if self.byte_at(0) != b'.' || !self.byte_at(1).is_ascii_alphabetic() {
                    return opcode;
                }
            }
        }
    }

    /// Parses opcode modifiers such as `.global.L2::128B`; returns an empty text if the next byte begins none.
    fn dotted_part(&mut self) -> &'a str {
        let bytes = self.text.as_bytes();
        let (start, mut end) = (self.position, self.position);
        let name = |at: usize| bytes.get(at).is_some_and(|&b| is_name_byte(b));
        loop {
            let joint = match (bytes.get(end), bytes.get(end + 1)) {
                (Some(b'.'), _) => 1,
                (Some(b':'), Some(b':')) if end > start => 2,
                _ => 0,
            };
            if joint == 0 || !name(end + joint) {
                break;
            }
            end += joint;
            while name(end) {
                end += 1;
            }
        }
        self.position = end;
        &self.text[start..end]
    }

    /// Parses a string in double quotes; escapes stay as they are.
    pub fn parse_string(&mut self) -> Result<&'a str> {
        self.expect(b'"')?;
        let start = self.position;
        let mut end = start;
        loop {
            match self.text.as_bytes().get(end) {
                None | Some(b'\n') => return Err(self.error("a string is not closed on its line")),
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(_) => end += 1,
            }
        }
        self.position = end + 1;
        Ok(&self.text[start..end])
    }

    /// Consumes the text up to and including `byte`, and returns the text before `byte`. Comments are not recognised.
    pub fn skip_past(&mut self, byte: u8) -> Result<&'a str> {
        let start = self.position;
        let rest = &self.text.as_bytes()[start..];
        let length = rest.iter().position(|&b| b == byte);
        let length = length.ok_or_else(|| self.error(format!("`{}` is missing", char::from(byte))))?;
        self.advance_to(start + length + 1);
        Ok(&self.text[start..start + length])
    }

    /// Parses a decimal number such as an index or a count.
    pub fn parse_count(&mut self) -> Result<u64> {
        match self.peek().is_ascii_digit().then(|| self.parse_literal()).transpose()? {
            Some(Literal::Integer(value, _)) if value >= 0 => Ok(value as u64),
            _ => Err(self.expected_error("a count")),
        }
    }

    /// Parses a number like [`Self::parse_count`] that must fit 32 bits.
    pub fn parse_count_u32(&mut self) -> Result<u32> {
        let count = self.parse_count()?;
        u32::try_from(count).map_err(|_| self.error(format!("{count} does not fit 32 bits")))
    }

    /// Parses the number of `.version`, for example `9.0`.
    pub fn parse_version(&mut self) -> Result<(u32, u32)> {
        self.skip_space();
        let text = self.take_while_from(0, |b| b.is_ascii_digit() || b == b'.');
        let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let version: (u32, u32) = parsed.ok_or_else(|| self.expected_error("a version such as 9.0"))?;
        match version.0 > NEWEST_MAJOR_VERSION {
            true => Err(self.error(format!("PTX {text} is not known; the newest known is {NEWEST_MAJOR_VERSION}.x"))),
            false => Ok(version),
        }
    }

    /// Parses a literal; the cursor must be at a digit (PTX ISA, section 4.5).
    pub fn parse_literal(&mut self) -> Result<Literal> {
        self.skip_space();
        let start = *self;
        let word = self.take_while_from(0, is_name_byte);
        let literal = match word.as_bytes() {
            [b'0', b'f' | b'F', ..] if word.len() == 10 => {
                u32::from_str_radix(&word[2..], 16).ok().map(Literal::Float32)
            }
            [b'0', b'd' | b'D', ..] if word.len() == 18 => {
                u64::from_str_radix(&word[2..], 16).ok().map(|bits| Literal::Float64(f64::from_bits(bits)))
            }
            [b'0', b'x' | b'X', ..] => integer(&word[2..], 16),
            [b'0', b'b' | b'B', ..] => integer(&word[2..], 2),
            _ if self.byte_at(0) == b'.' || word.contains(['e', 'E']) => {
                *self = start;
                return self.decimal_float();
            }
            [b'0', rest, ..] if rest.is_ascii_digit() => integer(&word[1..], 8),
            _ => integer(word, 10),
        };
        literal.ok_or_else(|| start.error(format!("`{word}` is not a number")))
    }

    fn decimal_float(&mut self) -> Result<Literal> {
        let line = *self;
        let bytes = self.text.as_bytes();
        let start = self.position;
        self.take_while_from(0, |b| b.is_ascii_digit());
        if self.byte_at(0) == b'.' {
            self.take_while_from(1, |b| b.is_ascii_digit());
        }
        if matches!(self.byte_at(0), b'e' | b'E') {
            let sign = usize::from(matches!(self.byte_at(1), b'+' | b'-'));
            self.take_while_from(1 + sign, |b| b.is_ascii_digit());
        }
        let rest = bytes.get(self.position).is_some_and(|&b| is_name_byte(b));
        let text = &self.text[start..self.position];
        let value = text.parse::<f64>().ok().filter(|_| !rest);
        value.map(Literal::Float64).ok_or_else(|| line.error(format!("`{text}` is not a number")))
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
}

fn integer(digits: &str, radix: u32) -> Option<Literal> {
    let bare = digits.strip_suffix('U');
    let value = u64::from_str_radix(bare.unwrap_or(digits), radix).ok()?;
    // A literal is unsigned if it does not fit a signed number or has the suffix `U`, else signed.
    Some(Literal::Integer(value as i64, bare.is_some() || value > i64::MAX as u64))
}
