//! Parsing of operands (PTX ISA, chapter 6).

use super::ast::{AddressBase, Operand};
use super::lexer::{Literal, Result};
use super::parser::Parser;
use super::scope::FunctionSymbol;

/// Maximum nesting depth of vectors and lists.
const MAX_DEPTH: u32 = 4;

/// The operand's name, if it is neither declared so far nor a special register; `None` for any other operand.
pub(super) type UndeclaredName<'a> = Option<&'a str>;

impl<'a> Parser<'a> {
    /// Parses an operand. If it is a single undeclared name, also returns the name: it may be a label or a function
    /// that is declared later.
    pub(super) fn parse_operand(&mut self) -> Result<(Operand, UndeclaredName<'a>)> {
        let (first, unknown) = self.single(MAX_DEPTH)?;
        if matches!(first, Operand::Register(_) | Operand::Sink) && self.cursor.eat(b'|') {
            let (second, _) = self.single(MAX_DEPTH)?;
            return match second {
                Operand::Register(_) | Operand::Sink => Ok((Operand::Pair(first.into(), second.into()), None)),
                _ => Err(self.cursor.error("both parts of a pair `p|q` must be registers")),
            };
        }
        Ok((first, unknown))
    }

    /// Parses an operand inside a vector or list. An undeclared name there can only be a symbol of the module, not a
    /// label.
    fn inner(&mut self, depth: u32) -> Result<Operand> {
        let line = self.cursor.line;
        let (operand, unknown) = self.single(depth)?;
        self.uses.extend(unknown.map(|name| (name, line)));
        Ok(operand)
    }

    fn single(&mut self, depth: u32) -> Result<(Operand, UndeclaredName<'a>)> {
        let depth = depth.checked_sub(1).ok_or_else(|| self.cursor.error("operands nest too deeply"))?;
        let operand = match self.cursor.peek() {
            b'{' => {
                let elements = self.parse_operand_sequence(b'{', b'}', depth)?;
                if elements.iter().any(|element| matches!(element, Operand::Vector(_))) {
                    return Err(self
                        .cursor
                        .error("an element of `{…}` must be a register or a constant, not a vector"));
                }
                Operand::Vector(elements)
            }
            b'[' => self.address(depth)?,
            b'!' if self.negates_register() => {
                self.cursor.expect(b'!')?;
                match self.single(depth)?.0 {
                    Operand::Register(register) => Operand::Not(register),
                    _ => return Err(self.cursor.error("the operand of `!` must be a predicate register")),
                }
            }
            _ if self.cursor.is_at_identifier() => return self.named(),
            _ => constant(self.cursor.parse_expression()?),
        };
        Ok((operand, None))
    }

    fn negates_register(&self) -> bool {
        let mut ahead = self.cursor;
        ahead.eat(b'!') && ahead.is_at_identifier()
    }

    /// Parses comma-separated operands between brackets.
    pub(super) fn parse_operand_sequence(&mut self, open: u8, close: u8, depth: u32) -> Result<Vec<Operand>> {
        self.cursor.expect(open)?;
        let mut operands = Vec::new();
        if self.cursor.eat(close) {
            return Ok(operands);
        }
        loop {
            operands.push(self.inner(depth)?);
            if !self.cursor.eat(b',') {
                break;
            }
        }
        self.cursor.expect(close)?;
        Ok(operands)
    }

    /// Parses an argument or return list of a call.
    pub(super) fn parse_call_list(&mut self) -> Result<Operand> {
        Ok(Operand::List(self.parse_operand_sequence(b'(', b')', MAX_DEPTH)?))
    }

    fn named(&mut self) -> Result<(Operand, UndeclaredName<'a>)> {
        let before = self.cursor;
        let name = self.cursor.parse_identifier()?;
        let operand = match self.scopes.lookup(name) {
            Some(FunctionSymbol::Register(register)) => Operand::Register(register),
            Some(FunctionSymbol::VectorRegister(first, count)) => self.vector_register(name, first, count)?,
            Some(FunctionSymbol::Variable(index)) => {
                let name = self.function.variables[index].name.clone();
                Operand::Symbol(name, self.parse_address_offset()?)
            }
            Some(FunctionSymbol::Param) => Operand::Symbol(name.to_owned(), self.parse_address_offset()?),
            None if name == "_" => Operand::Sink,
            None if name == "true" => Operand::Integer(1),
            None if name == "false" => Operand::Integer(0),
            None if name == "WARP_SZ" => {
                self.cursor = before;
                constant(self.cursor.parse_expression()?)
            }
            None if name.starts_with('%') => self.special(&name[1..])?,
            None => {
                let operand = Operand::Symbol(name.to_owned(), self.parse_address_offset()?);
                let known = self.symbols.contains_key(name);
                return Ok((operand, (!known).then_some(name)));
            }
        };
        Ok((operand, None))
    }

    /// Parses the rest of `%v` or `%v.x` after the name.
    fn vector_register(&mut self, name: &str, first: u32, count: u8) -> Result<Operand> {
        let suffix = self.cursor.parse_suffix();
        let component = match suffix {
            None => return Ok(Operand::Vector((first..first + u32::from(count)).map(Operand::Register).collect())),
            Some("x" | "r") => 0,
            Some("y" | "g") => 1,
            Some("z" | "b") => 2,
            Some("w" | "a") => 3,
            Some(_) => u8::MAX,
        };
        match component < count {
            true => Ok(Operand::Register(first + u32::from(component))),
            false => Err(self.cursor.error(format!("{name} has no component {}", suffix.unwrap_or_default()))),
        }
    }

    fn special(&mut self, name: &str) -> Result<Operand> {
        if !is_special(name) {
            return Err(self.cursor.error(format!("register %{name} is not declared")));
        }
        Ok(Operand::Special(match self.cursor.parse_suffix() {
            None => name.to_owned(),
            Some(component @ ("x" | "y" | "z" | "w")) => format!("{name}.{component}"),
            Some(component) => return Err(self.cursor.error(format!("%{name} has no component {component}"))),
        }))
    }

    /// Parses the offset after a symbol or base address: `+16`, `+-8`, `-8`. Returns 0 if there is none.
    pub(super) fn parse_address_offset(&mut self) -> Result<i64> {
        let mut offset = 0i64;
        loop {
            let negative = match self.cursor.peek() {
                b'+' => false,
                b'-' => true,
                _ => return Ok(offset),
            };
            self.cursor.consume_character();
            let term = self.cursor.parse_term()?;
            let term = self.cursor.as_integer(term)?;
            offset = offset.wrapping_add(if negative { term.wrapping_neg() } else { term });
        }
    }

    /// Parses `[base + offset]`, or `[map, {c0, c1}]`.
    fn address(&mut self, depth: u32) -> Result<Operand> {
        self.cursor.expect(b'[')?;
        let (base, offset) = self.base()?;
        let mut more = Vec::new();
        while self.cursor.eat(b',') {
            more.push(self.inner(depth)?);
        }
        self.cursor.expect(b']')?;
        if let [Operand::Vector(coordinates)] = &mut more[..] {
            more = std::mem::take(coordinates);
        } else if more.is_empty() {
            return Ok(Operand::Address(base, offset));
        }
        Ok(Operand::TensorAddress(base, offset, more))
    }

    fn base(&mut self) -> Result<(AddressBase, i64)> {
        if !self.cursor.is_at_identifier() {
            return Ok((AddressBase::Absolute, self.cursor.parse_integer_expression()?));
        }
        let line = self.cursor.line;
        let (base, unknown) = self.named()?;
        self.uses.extend(unknown.map(|name| (name, line)));
        match base {
            Operand::Register(register) => Ok((AddressBase::Register(register), self.parse_address_offset()?)),
            Operand::Symbol(name, offset) => Ok((AddressBase::Symbol(name), offset)),
            Operand::Integer(value) => Ok((AddressBase::Absolute, value)),
            _ => Err(self
                .cursor
                .error("an address must be a register, a variable or a number, with or without an offset")),
        }
    }
}

fn constant(value: Literal) -> Operand {
    match value {
        Literal::Integer(value, _) => Operand::Integer(value),
        Literal::Float32(bits) => Operand::Float32(bits),
        Literal::Float64(value) => Operand::Float64(value.to_bits()),
    }
}

/// Returns true for the name of a special register (PTX ISA, chapter 10), given without `%` and component.
fn is_special(name: &str) -> bool {
    const NAMES: [&str; 37] = [
        "tid",
        "ntid",
        "laneid",
        "warpid",
        "nwarpid",
        "ctaid",
        "nctaid",
        "smid",
        "nsmid",
        "gridid",
        "is_explicit_cluster",
        "clusterid",
        "nclusterid",
        "cluster_ctaid",
        "cluster_nctaid",
        "cluster_ctarank",
        "cluster_nctarank",
        "lanemask_eq",
        "lanemask_le",
        "lanemask_lt",
        "lanemask_ge",
        "lanemask_gt",
        "clock",
        "clock_hi",
        "clock64",
        "globaltimer",
        "globaltimer_lo",
        "globaltimer_hi",
        "reserved_smem_offset_begin",
        "reserved_smem_offset_end",
        "reserved_smem_offset_cap",
        "reserved_smem_offset_0",
        "reserved_smem_offset_1",
        "total_smem_size",
        "aggr_smem_size",
        "dynamic_smem_size",
        "current_graph_exec",
    ];
    let numbered = |prefix: &str, count: u32| {
        let number = name.strip_prefix(prefix).and_then(|rest| rest.trim_end_matches("_64").parse::<u32>().ok());
        number.is_some_and(|number| number < count)
    };
    NAMES.contains(&name) || numbered("envreg", 32) || numbered("pm", 8)
}
