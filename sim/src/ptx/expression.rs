//! Constant expressions (PTX ISA, section 4.6): literals folded to 64 bits as the text is read.

use super::lexer::{Cursor, Result};

/// A constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    /// 64 bits, and whether they are unsigned.
    Integer(i64, bool),
    /// The bits of `0f…`.
    Float32(u32),
    /// `0d…` or a decimal literal.
    Float64(f64),
}

/// Parentheses and signs may nest this deep.
const DEPTH: u32 = 64;

/// Binary operators by precedence, the loosest first; of those with a common beginning the longer first.
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
    /// A whole constant expression, with `? :`.
    pub fn expression(&mut self) -> Result<Value> {
        self.conditional(DEPTH)
    }

    /// A literal with its signs, or an expression in parentheses: all that may follow `+` in an address.
    pub fn term(&mut self) -> Result<Value> {
        self.unary(DEPTH)
    }

    /// [`Self::expression`], which has to be an integer.
    pub fn integer_expression(&mut self) -> Result<i64> {
        let value = self.expression()?;
        self.as_integer(value)
    }

    pub fn as_integer(&self, value: Value) -> Result<i64> {
        match value {
            Value::Integer(bits, _) => Ok(bits),
            _ => Err(self.error("a floating-point constant where an integer is needed")),
        }
    }

    fn conditional(&mut self, depth: u32) -> Result<Value> {
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
        depth.checked_sub(1).ok_or_else(|| self.error("a constant expression nests too deeply"))
    }

    fn binary(&mut self, level: usize, depth: u32) -> Result<Value> {
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
        let (first, second) = (self.byte(0), self.byte(1));
        let found = operators.iter().find(|operator| {
            let bytes = operator.as_bytes();
            let longer = bytes.len() == 1 && (second == first && matches!(first, b'|' | b'&' | b'<' | b'>'));
            bytes[0] == first && bytes.get(1).is_none_or(|&b| b == second) && !longer
        })?;
        self.eat_text(found);
        Some(found)
    }

    fn unary(&mut self, depth: u32) -> Result<Value> {
        let depth = self.deeper(depth)?;
        match self.peek() {
            b'+' if self.eat(b'+') => self.unary(depth),
            b'-' if self.eat(b'-') => Ok(match self.unary(depth)? {
                Value::Integer(value, unsigned) => Value::Integer(value.wrapping_neg(), unsigned),
                Value::Float32(bits) => Value::Float32(bits ^ 1 << 31),
                Value::Float64(value) => Value::Float64(-value),
            }),
            b'!' if self.eat(b'!') => {
                let value = self.unary(depth)?;
                Ok(Value::Integer(i64::from(self.as_integer(value)? == 0), false))
            }
            b'~' if self.eat(b'~') => {
                let value = self.unary(depth)?;
                Ok(Value::Integer(!self.as_integer(value)?, matches!(value, Value::Integer(_, true))))
            }
            b'(' if self.eat(b'(') => self.parenthesised(depth),
            b'0'..=b'9' => self.number(),
            b'.' if self.byte(1).is_ascii_digit() => self.number(),
            _ => self.named(),
        }
    }

    /// After `(`: a cast `(.s64)`, `(.u64)` and its operand, or an expression and `)`.
    fn parenthesised(&mut self, depth: u32) -> Result<Value> {
        let value = match self.directive() {
            Some(cast @ ("s64" | "u64")) => {
                self.expect(b')')?;
                let value = self.unary(depth)?;
                return Ok(Value::Integer(self.as_integer(value)?, cast == "u64"));
            }
            Some(_) => return Err(self.error("only (.s64) and (.u64) are casts")),
            None => self.conditional(depth)?,
        };
        self.expect(b')')?;
        Ok(value)
    }

    fn named(&mut self) -> Result<Value> {
        let start = *self;
        if self.at_identifier() && self.identifier()? == "WARP_SZ" {
            return Ok(Value::Integer(32, false));
        }
        *self = start;
        Err(self.expected("a constant"))
    }

    fn apply(&self, operator: &str, left: Value, right: Value) -> Result<Value> {
        match (left, right) {
            (Value::Integer(a, a_unsigned), Value::Integer(b, b_unsigned)) => {
                self.apply_integers(operator, a, b, a_unsigned, b_unsigned)
            }
            (Value::Float64(a), Value::Float64(b)) => Ok(Value::Float64(match operator {
                "+" => a + b,
                "-" => a - b,
                "*" => a * b,
                "/" => a / b,
                _ => return Err(self.error(format!("`{operator}` does not take floating-point constants"))),
            })),
            _ => Err(self.error(format!("`{operator}` between constants of different kinds"))),
        }
    }

    fn apply_integers(&self, operator: &str, a: i64, b: i64, a_unsigned: bool, b_unsigned: bool) -> Result<Value> {
        // As in C: unsigned if either is; a shift has its left operand's type.
        let unsigned = a_unsigned || b_unsigned;
        let (ua, ub) = (a as u64, b as u64);
        let less = if unsigned { ua < ub } else { a < b };
        let truth = |value: bool| Ok(Value::Integer(i64::from(value), false));
        let bits = match operator {
            "||" => return truth(a != 0 || b != 0),
            "&&" => return truth(a != 0 && b != 0),
            "==" => return truth(a == b),
            "!=" => return truth(a != b),
            "<" => return truth(less),
            ">=" => return truth(!less),
            ">" => return truth(!less && a != b),
            "<=" => return truth(less || a == b),
            "<<" => return Ok(Value::Integer(if ub < 64 { a << b } else { 0 }, a_unsigned)),
            ">>" if a_unsigned => return Ok(Value::Integer(if ub < 64 { (ua >> ub) as i64 } else { 0 }, true)),
            ">>" => return Ok(Value::Integer(a >> ub.min(63), false)),
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
        Ok(Value::Integer(bits, unsigned))
    }
}
