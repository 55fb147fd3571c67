//! Constant expressions (PTX ISA, section 4.6), evaluated to 64 bits while they are parsed.

use super::lexer::{Cursor, Literal, Result};

/// Maximum nesting depth of parentheses and signs.
const MAX_DEPTH: u32 = 64;

/// Binary operators by precedence, lowest first. If one operator is a prefix of another, the longer one comes first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

impl Cursor<'_> {
    /// Parses a whole constant expression, including `? :`.
    pub fn parse_expression(&mut self) -> Result<Literal> {
        self.conditional(MAX_DEPTH)
    }

    /// Parses a term of a sum: literals, names and parentheses, with `*`, `/` and `%` between them.
    pub fn parse_term(&mut self) -> Result<Literal> {
        self.binary(LEVELS.len() - 1, MAX_DEPTH)
    }

    /// Parses a constant expression that must be an integer.
    pub fn parse_integer_expression(&mut self) -> Result<i64> {
        let value = self.parse_expression()?;
        self.as_integer(value)
    }

    pub fn as_integer(&self, value: Literal) -> Result<i64> {
        match value {
            Literal::Integer(bits, _) => Ok(bits),
            _ => Err(self.error("expected an integer constant, found a floating-point constant")),
        }
    }

    fn conditional(&mut self, depth: u32) -> Result<Literal> {
        let depth = self.deeper(depth)?;
        let condition = self.binary(0, depth)?;
        if !self.eat(b'?') {
            return Ok(condition);
        }
        let yes = self.conditional(depth)?;
        self.expect(b':')?;
        let no = self.conditional(depth)?;
        Ok(if self.as_integer(condition)? != 0 { yes } else { no })
    }

    fn deeper(&self, depth: u32) -> Result<u32> {
        depth.checked_sub(1).ok_or_else(|| self.error("a constant expression is nested too deeply"))
    }

    fn binary(&mut self, level: usize, depth: u32) -> Result<Literal> {
        let Some(operators) = LEVELS.get(level) else { return self.unary(depth) };
        let mut left = self.binary(level + 1, depth)?;
        while let Some(operator) = self.binary_operator(operators) {
            let right = self.binary(level + 1, depth)?;
            left = self.apply(operator, left, right)?;
        }
        Ok(left)
    }

    fn binary_operator(&mut self, operators: &'static [&'static str]) -> Option<&'static str> {
        self.skip_space();
        let (first, second) = (self.byte_at(0), self.byte_at(1));
        let found = operators.iter().find(|operator| {
            let bytes = operator.as_bytes();
            let longer = bytes.len() == 1 && (second == first && matches!(first, b'|' | b'&' | b'<' | b'>'));
            bytes[0] == first && bytes.get(1).is_none_or(|&b| b == second) && !longer
        })?;
        self.eat_text(found);
        Some(found)
    }

    fn unary(&mut self, depth: u32) -> Result<Literal> {
        let depth = self.deeper(depth)?;
        match self.peek() {
            b'+' if self.eat(b'+') => self.unary(depth),
            b'-' if self.eat(b'-') => Ok(match self.unary(depth)? {
                Literal::Integer(value, unsigned) => Literal::Integer(value.wrapping_neg(), unsigned),
                Literal::Float32(bits) => Literal::Float32(bits ^ 1 << 31),
                Literal::Float64(value) => Literal::Float64(-value),
            }),
            b'!' if self.eat(b'!') => {
                let value = self.unary(depth)?;
                Ok(Literal::Integer(i64::from(self.as_integer(value)? == 0), false))
            }
            b'~' if self.eat(b'~') => {
                let value = self.unary(depth)?;
                Ok(Literal::Integer(!self.as_integer(value)?, matches!(value, Literal::Integer(_, true))))
            }
            b'(' if self.eat(b'(') => self.parenthesised(depth),
            b'0'..=b'9' => self.parse_literal(),
            b'.' if self.byte_at(1).is_ascii_digit() => self.parse_literal(),
            _ => self.named(),
        }
    }

    /// Parses what follows a `(`: either a cast (`.s64)` or `.u64)`) and its operand, or an expression and the
    /// closing `)`.
    fn parenthesised(&mut self, depth: u32) -> Result<Literal> {
        let value = match self.parse_directive() {
            Some(cast @ ("s64" | "u64")) => {
                self.expect(b')')?;
                let value = self.unary(depth)?;
                return Ok(Literal::Integer(self.as_integer(value)?, cast == "u64"));
            }
            Some(_) => return Err(self.error("unknown cast: PTX has only (.s64) and (.u64)")),
            None => self.conditional(depth)?,
        };
        self.expect(b')')?;
        Ok(value)
    }

    fn named(&mut self) -> Result<Literal> {
        let start = *self;
        if self.is_at_identifier() && self.parse_identifier()? == "WARP_SZ" {
            return Ok(Literal::Integer(32, false));
        }
        *self = start;
        Err(self.expected_error("a constant"))
    }

    fn apply(&self, operator: &str, left: Literal, right: Literal) -> Result<Literal> {
        match (left, right) {
            (Literal::Integer(a, a_unsigned), Literal::Integer(b, b_unsigned)) => {
                self.apply_integers(operator, a, b, a_unsigned, b_unsigned)
            }
            (Literal::Float64(a), Literal::Float64(b)) => Ok(Literal::Float64(match operator {
                "+" => a + b,
                "-" => a - b,
                "*" => a * b,
                "/" => a / b,
                _ => return Err(self.error(format!("`{operator}` cannot be applied to floating-point constants"))),
            })),
            _ => Err(self.error(format!("`{operator}` needs two integers or two f64 constants"))),
        }
    }

    fn apply_integers(&self, operator: &str, a: i64, b: i64, a_unsigned: bool, b_unsigned: bool) -> Result<Literal> {
        // As in C, the result is unsigned if either operand is; a shift has the type of its left operand.
        let unsigned = a_unsigned || b_unsigned;
        let (ua, ub) = (a as u64, b as u64);
        let less = if unsigned { ua < ub } else { a < b };
        let truth = |value: bool| Ok(Literal::Integer(i64::from(value), false));
        let bits = match operator {
            "||" => return truth(a != 0 || b != 0),
            "&&" => return truth(a != 0 && b != 0),
            "==" => return truth(a == b),
            "!=" => return truth(a != b),
            "<" => return truth(less),
            ">=" => return truth(!less),
            ">" => return truth(!less && a != b),
            "<=" => return truth(less || a == b),
            "<<" => return Ok(Literal::Integer(if ub < 64 { a << b } else { 0 }, a_unsigned)),
            ">>" if a_unsigned => return Ok(Literal::Integer(if ub < 64 { (ua >> ub) as i64 } else { 0 }, true)),
            ">>" => return Ok(Literal::Integer(a >> ub.min(63), false)),
            "|" => a | b,
            "^" => a ^ b,
            "&" => a & b,
            "+" => a.wrapping_add(b),
            "-" => a.wrapping_sub(b),
            "*" => a.wrapping_mul(b),
            "/" | "%" if b == 0 => return Err(self.error("division by zero in a constant expression")),
            "/" if unsigned => (ua / ub) as i64,
            "/" => a.wrapping_div(b),
            "%" if unsigned => (ua % ub) as i64,
            _ => a.wrapping_rem(b),
        };
        Ok(Literal::Integer(bits, unsigned))
    }
}
