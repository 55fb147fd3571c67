//! The value of a mathematical expression in LaTeX or plain notation.
//!
//! ```text
//! sum      = product (('+' | '-') product)*
//! product  = signed (('*' | '/')? signed)*           without a sign between them, factors are multiplied
//! signed   = ('+' | '-')* power
//! power    = atom ('^' argument)?
//! atom     = number | number fraction | letter | \pi | \infty | (sum) | {sum} | |sum| | \frac a a | \sqrt[a] a
//!          | \log_a a | \ln a | \sin a | …
//! ```

/// Number of sets of values of the variables at which expressions are compared.
pub(super) const VARIABLE_SETS: usize = 3;

/// Maximum depth of brackets and signs.
const MAX_DEPTH: usize = 64;

/// Returns the value of an expression with the variables' values of set `set`; `None` if the text is no expression, or
/// if it has no finite value there, such as 1/0. `\infty` alone, with or without a sign, is infinite.
pub(super) fn value(text: &str, set: usize) -> Option<f64> {
    let mut parser = Parser { rest: text, set, depth: 0, in_bars: false };
    let value = parser.sum()?;
    let is_infinity = text.trim_start_matches(['+', '-', ' ']).trim_end() == "\\infty";
    (parser.peek().is_none() && (value.is_finite() || is_infinity)).then_some(value)
}

/// The value of a variable. The first set has values above 1, the others also negative ones.
fn variable(letter: char, set: usize) -> f64 {
    let fraction = (f64::from(u32::from(letter)) * 0.618_033_988_749_894_9 + 0.271 * set as f64).fract();
    match set {
        0 => 1.0 + fraction,
        1 => 3.0 * fraction - 1.5,
        _ => -0.1 - fraction,
    }
}

struct Parser<'a> {
    rest: &'a str,
    set: usize,
    depth: usize,
    /// Whether the text is between the bars of an absolute value, where the next bar ends it.
    in_bars: bool,
}

impl<'a> Parser<'a> {
    /// The next character that is not a space.
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn take(&mut self, text: &str) -> bool {
        self.peek();
        self.rest.strip_prefix(text).map(|rest| self.rest = rest).is_some()
    }

    /// Takes the characters at the beginning for which `test` is true.
    fn take_while(&mut self, test: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !test(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn sum(&mut self) -> Option<f64> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut sum = self.product()?;
        loop {
            match self.peek() {
                Some('+') => {
                    self.take("+");
                    sum += self.product()?;
                }
                Some('-') => {
                    self.take("-");
                    sum -= self.product()?;
                }
                _ => break,
            }
        }
        self.depth -= 1;
        Some(sum)
    }

    fn product(&mut self) -> Option<f64> {
        let mut product = self.signed()?;
        loop {
            match self.peek() {
                Some('*') => {
                    self.take("*");
                    product *= self.signed()?;
                }
                Some('/') => {
                    self.take("/");
                    product = quotient(product, self.signed()?)?;
                }
                Some('|') if self.in_bars => return Some(product),
                Some(c) if c.is_alphanumeric() || "({|\\.".contains(c) => product *= self.power()?,
                _ => return Some(product),
            }
        }
    }

    fn signed(&mut self) -> Option<f64> {
        self.peek();
        let signs = self.take_while(|c| matches!(c, '+' | '-' | ' '));
        let value = self.power()?;
        Some(if signs.matches('-').count() % 2 == 1 { -value } else { value })
    }

    fn power(&mut self) -> Option<f64> {
        let base = self.atom()?;
        let value = match self.take("^") {
            true => base.powf(self.argument()?),
            false => base,
        };
        Some(value).filter(|x| !x.is_nan())
    }

    /// The argument of an exponent, with its sign: `{sum}` or an atom.
    fn argument(&mut self) -> Option<f64> {
        let sign = if self.take("-") { -1.0 } else { 1.0 };
        Some(sign * self.atom()?)
    }

    /// The argument of `\frac` or `\sqrt`: `{sum}`, or one digit or atom.
    fn command_argument(&mut self) -> Option<f64> {
        match self.peek()?.to_digit(10) {
            Some(digit) => {
                self.rest = &self.rest[1..];
                Some(f64::from(digit))
            }
            None => self.atom(),
        }
    }

    /// The argument of a function: `(sum)`, `{sum}`, or a product without signs, as in `\sin 2x`.
    fn function_argument(&mut self) -> Option<f64> {
        let mut argument = self.power()?;
        while self.peek().is_some_and(|c| c.is_alphanumeric()) {
            argument *= self.power()?;
        }
        Some(argument)
    }

    fn atom(&mut self) -> Option<f64> {
        match self.peek()? {
            '0'..='9' | '.' => self.number(),
            '(' => self.enclosed("(", ")"),
            '[' => self.enclosed("[", "]"),
            '{' => self.enclosed("{", "}"),
            '|' if !self.in_bars => self.enclosed("|", "|").map(f64::abs),
            '\\' => self.command(),
            c if c.is_alphabetic() => self.letters(),
            _ => None,
        }
    }

    fn enclosed(&mut self, open: &str, close: &str) -> Option<f64> {
        self.take(open);
        let outer = std::mem::replace(&mut self.in_bars, open == "|");
        let value = self.sum()?;
        self.in_bars = outer;
        self.take(close).then_some(value)
    }

    /// A number, with the fraction of a mixed number: `1.5`, `1e3`, `1\frac{1}{2}`, `1 1/2`.
    fn number(&mut self) -> Option<f64> {
        let before = self.rest;
        let mantissa = self.take_while(|c| c.is_ascii_digit() || c == '.').len();
        if let Some(exponent) = self.rest.strip_prefix(['e', 'E']) {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            // Without digits, this e is the number e.
            self.rest = if end > 0 { &digits[end..] } else { self.rest };
        }
        let number: f64 = before[..before.len() - self.rest.len()].parse().ok()?;
        if before[..mantissa].contains('.') {
            return Some(number);
        }
        let is_spaced = self.rest.starts_with(' ');
        if self.peek() == Some('\\') {
            let above = self.rest.strip_prefix("\\frac").unwrap_or_default().trim_start_matches([' ', '{']);
            let is_fraction = above.starts_with(|c: char| c.is_ascii_digit());
            return if is_fraction { Some(number + self.command()?) } else { Some(number) };
        }
        let mut ahead = Parser { rest: self.rest, ..*self };
        let (above, has_slash) = (ahead.take_while(|c| c.is_ascii_digit()), ahead.take("/"));
        let below = ahead.take_while(|c| c.is_ascii_digit());
        if is_spaced && has_slash && !above.is_empty() && !below.is_empty() {
            self.rest = ahead.rest;
            return Some(number + quotient(above.parse().ok()?, below.parse().ok()?)?);
        }
        Some(number)
    }

    /// A variable, or e. Two or more letters are a word, except for products of x, y and z.
    fn letters(&mut self) -> Option<f64> {
        let all = self.rest;
        let word = self.take_while(char::is_alphabetic);
        let first = word.chars().next()?;
        if word.len() > first.len_utf8() && !word.chars().all(|c| "xyz".contains(c)) {
            return None;
        }
        self.rest = &all[first.len_utf8()..];
        Some(if first == 'e' { std::f64::consts::E } else { variable(first, self.set) })
    }

    fn command(&mut self) -> Option<f64> {
        self.take("\\");
        let name = self.take_while(|c| c.is_ascii_alphabetic());
        match name {
            "pi" => Some(std::f64::consts::PI),
            "infty" => Some(f64::INFINITY),
            "frac" => {
                let above = self.command_argument()?;
                quotient(above, self.command_argument()?)
            }
            "sqrt" => {
                let degree = if self.peek() == Some('[') { self.enclosed("[", "]")? } else { 2.0 };
                root(self.command_argument()?, degree)
            }
            "log" | "ln" | "lg" | "sin" | "cos" | "tan" | "exp" => self.function(name),
            _ => None,
        }
    }

    fn function(&mut self, name: &str) -> Option<f64> {
        let base = if name == "log" && self.take("_") { Some(self.command_argument()?) } else { None };
        let exponent = if self.take("^") { self.command_argument()? } else { 1.0 };
        let x = self.function_argument()?;
        let value = match (name, base) {
            ("log", Some(base)) => x.ln() / base.ln(),
            ("log" | "lg", _) => x.log10(),
            ("ln", _) => x.ln(),
            ("sin", _) => x.sin(),
            ("cos", _) => x.cos(),
            ("tan", _) => x.tan(),
            _ => x.exp(),
        };
        Some(value.powf(exponent)).filter(|x| !x.is_nan())
    }
}

fn quotient(above: f64, below: f64) -> Option<f64> {
    (below != 0.0).then_some(above / below)
}

/// The root of degree `degree`; the odd root of a negative number is negative.
fn root(x: f64, degree: f64) -> Option<f64> {
    let value = match degree {
        2.0 => x.sqrt(),
        3.0 => x.cbrt(),
        _ if x < 0.0 && degree % 2.0 == 1.0 => -(-x).powf(1.0 / degree),
        _ => x.powf(1.0 / degree),
    };
    Some(value).filter(|x| !x.is_nan())
}
