//! Parsing of variable and parameter declarations and of initialisers (PTX ISA, sections 5.4 and 5.5).

use super::ast::{AddressInitializer, Param, StateSpace, Type, Variable};
use super::lexer::{Literal, Result};
use super::parser::Parser;

/// Maximum size in bytes of a variable with an initialiser. It is lower than [`MAX_VARIABLE_BYTES`] because the
/// simulator stores these bytes.
const MAX_INITIALISED_BYTES: u64 = 1 << 28;
/// Maximum size of a variable in bytes.
const MAX_VARIABLE_BYTES: u64 = 1 << 48;
/// Maximum size in bytes of a variable in shared, local or parameter memory, far above what a GPU has.
const MAX_THREAD_VARIABLE_BYTES: u64 = 1 << 24;
/// Maximum number of an array's dimensions.
const MAX_DIMENSIONS: usize = 16;

/// The part of a declaration before the name: alignment, vector size and type.
#[derive(Clone, Copy)]
pub(super) struct Declarator {
    pub ty: Type,
    /// Elements of a vector type (`.v2`, `.v4`); 1 for scalars.
    pub vector: u8,
    align: Option<u32>,
}

impl Declarator {
    fn element_size(&self) -> u64 {
        u64::from(size_of_type(self.ty)) * u64::from(self.vector)
    }

    fn align(&self) -> u32 {
        self.align.unwrap_or(self.element_size() as u32)
    }
}

/// The name in a declaration and the array dimensions after it; an empty dimension `[]` is stored as 0.
struct Declared<'a> {
    name: &'a str,
    dimensions: Vec<u64>,
}

impl<'a> Parser<'a> {
    /// Parses the part of a declaration before the name: `.align`, `.v2` or `.v4`, attributes and the type, in any
    /// order.
    pub(super) fn parse_declarator(&mut self) -> Result<Declarator> {
        let (mut ty, mut vector, mut align) = (None, 1, None);
        while let Some(word) = self.cursor.parse_directive() {
            match word {
                "align" => align = Some(self.alignment()?),
                "v2" => vector = 2,
                "v4" => vector = 4,
                "v8" => vector = 8,
                "attribute" => self.skip_attribute()?,
                "ptr" => self.pointer_attributes()?,
                "managed" => {}
                _ => match type_named(word) {
                    Some(named) => ty = Some(named),
                    None => return Err(self.cursor.error(format!("a variable cannot have the type `.{word}`"))),
                },
            }
        }
        let ty = ty.ok_or_else(|| self.cursor.expected_error("a type"))?;
        Ok(Declarator { ty, vector, align })
    }

    fn alignment(&mut self) -> Result<u32> {
        let align = self.cursor.parse_count_u32()?;
        match align.is_power_of_two() {
            true => Ok(align),
            false => Err(self.cursor.error(format!(".align {align} is not a power of two"))),
        }
    }

    /// Skips `.attribute(.managed)`, `.attribute(.unified(1, 2))`.
    pub(super) fn skip_attribute(&mut self) -> Result<()> {
        self.cursor.expect(b'(')?;
        let mut depth = 1;
        while depth > 0 {
            match self.cursor.peek() {
                b'(' => depth += 1,
                b')' => depth -= 1,
                b';' | b'{' | b'}' | 0 => return Err(self.cursor.expected_error("`)`")),
                _ => {}
            }
            self.cursor.consume_character();
        }
        Ok(())
    }

    /// Skips what a pointer parameter points to: `.ptr .global .align 16`.
    fn pointer_attributes(&mut self) -> Result<()> {
        loop {
            let before = self.cursor;
            match self.cursor.parse_directive() {
                Some("global" | "const" | "shared" | "local") => {}
                Some("align") => {
                    self.alignment()?;
                }
                _ => {
                    self.cursor = before;
                    return Ok(());
                }
            }
        }
    }

    fn declared(&mut self) -> Result<Declared<'a>> {
        let name = self.cursor.parse_identifier()?;
        let mut dimensions = Vec::new();
        while self.cursor.eat(b'[') {
            let open = self.cursor.peek() == b']';
            if open && !dimensions.is_empty() {
                return Err(self.cursor.error("only the first dimension of an array may be empty"));
            }
            let length = if open { 0 } else { self.cursor.parse_integer_expression()? };
            self.cursor.expect(b']')?;
            dimensions.push(
                u64::try_from(length)
                    .map_err(|_| self.cursor.error(format!("{name} has a negative array dimension: {length}")))?,
            );
            if dimensions.len() > MAX_DIMENSIONS {
                return Err(self.cursor.error(format!("{name} has more than {MAX_DIMENSIONS} dimensions")));
            }
        }
        Ok(Declared { name, dimensions })
    }

    fn size(&self, declarator: &Declarator, declared: &Declared) -> Result<u64> {
        let count = declared.dimensions.iter().try_fold(1, |count: u64, &dimension| count.checked_mul(dimension));
        let size = count
            .and_then(|count| count.checked_mul(declarator.element_size()))
            .filter(|&size| size <= MAX_VARIABLE_BYTES);
        size.ok_or_else(|| self.cursor.error(format!("{} is too large", declared.name)))
    }

    fn size_in(&self, space: StateSpace, declarator: &Declarator, declared: &Declared) -> Result<u64> {
        let size = self.size(declarator, declared)?;
        let in_device_memory = matches!(space, StateSpace::Global | StateSpace::Const);
        match in_device_memory || size <= MAX_THREAD_VARIABLE_BYTES {
            true => Ok(size),
            false => Err(self.cursor.error(format!("{} is too large: {size} bytes", declared.name))),
        }
    }

    /// Parses the rest of a declaration after its state space, including the `;`.
    pub(super) fn parse_variable_declarations(
        &mut self,
        space: StateSpace,
        external: bool,
    ) -> Result<Vec<(&'a str, Variable)>> {
        let declarator = self.parse_declarator()?;
        let mut variables = Vec::new();
        loop {
            let declared = self.declared()?;
            let mut variable = Variable {
                name: declared.name.to_owned(),
                space,
                align: declarator.align(),
                size: self.size_in(space, &declarator, &declared)?,
                init: Vec::new(),
                relocations: Vec::new(),
                external,
            };
            if self.cursor.eat(b'=') {
                self.initialise(&declarator, &declared, &mut variable)?;
            }
            variables.push((declared.name, variable));
            if !self.cursor.eat(b',') {
                break;
            }
        }
        self.cursor.expect(b';')?;
        Ok(variables)
    }

    /// Parses a parenthesised list of formal parameters; without a parenthesis the list is empty.
    pub(super) fn parse_parameter_list(&mut self) -> Result<Vec<(&'a str, Param, Type)>> {
        let mut params = Vec::new();
        if !self.cursor.eat(b'(') || self.cursor.eat(b')') {
            return Ok(params);
        }
        loop {
            params.push(self.param()?);
            if !self.cursor.eat(b',') {
                break;
            }
        }
        self.cursor.expect(b')')?;
        Ok(params)
    }

    fn param(&mut self) -> Result<(&'a str, Param, Type)> {
        let in_register = match self.cursor.parse_directive() {
            Some("param") => false,
            Some("reg") => true,
            _ => return Err(self.cursor.expected_error("`.param` or `.reg`")),
        };
        let declarator = self.parse_declarator()?;
        let declared = self.declared()?;
        let size = self.size(&declarator, &declared)?;
        let size = u32::try_from(size).map_err(|_| self.cursor.error(format!("{} is too large", declared.name)))?;
        let param = Param {
            name: declared.name.to_owned(),
            size,
            align: declarator.align(),
            ty: (declared.dimensions.is_empty() && declarator.vector <= 1).then_some(declarator.ty),
            // 0 is a placeholder for the register's index, which is assigned when the function's registers are
            // declared.
            register: in_register.then_some(0),
        };
        Ok((declared.name, param, declarator.ty))
    }

    fn initialise(&mut self, declarator: &Declarator, declared: &Declared, variable: &mut Variable) -> Result<()> {
        let mut dimensions = declared.dimensions.clone();
        if declarator.vector > 1 {
            dimensions.push(u64::from(declarator.vector));
        }
        let open = dimensions.first() == Some(&0);
        if !open && variable.size > MAX_INITIALISED_BYTES {
            return Err(self.cursor.error(format!(
                "{} is larger than the {MAX_INITIALISED_BYTES} bytes that an initialiser can set",
                declared.name
            )));
        }
        if dimensions.is_empty() {
            // The initialiser of a scalar may be in braces.
            let braces = self.cursor.eat(b'{');
            self.element(declarator.ty, 0, variable)?;
            return if braces { self.cursor.expect(b'}') } else { Ok(()) };
        }
        let count = self.braces(declarator.ty, &dimensions, 0, variable)?;
        if open {
            let rest: u64 = dimensions[1..].iter().product();
            variable.size = count.saturating_mul(rest).saturating_mul(u64::from(size_of_type(declarator.ty)));
        }
        Ok(())
    }

    /// Parses the initialiser `{a, b, …}` of an array that begins at byte `base` of the variable. Returns the number
    /// of elements of the first dimension.
    fn braces(&mut self, ty: Type, dimensions: &[u64], base: u64, variable: &mut Variable) -> Result<u64> {
        self.cursor.expect(b'{')?;
        let stride = dimensions[1..].iter().product::<u64>() * u64::from(size_of_type(ty));
        let mut count = 0;
        while self.cursor.peek() != b'}' {
            if count == dimensions[0] && dimensions[0] != 0 {
                return Err(self.cursor.error(format!(
                    "the initialiser of {} has more than {count} elements in one dimension",
                    variable.name
                )));
            }
            let at = base + count * stride;
            if at + stride > MAX_INITIALISED_BYTES {
                return Err(self.cursor.error(format!(
                    "{} is larger than the {MAX_INITIALISED_BYTES} bytes that an initialiser can set",
                    variable.name
                )));
            }
            match dimensions.len() {
                1 => self.element(ty, at, variable)?,
                _ => {
                    self.braces(ty, &dimensions[1..], at, variable)?;
                }
            }
            count += 1;
            if !self.cursor.eat(b',') {
                break;
            }
        }
        self.cursor.expect(b'}')?;
        Ok(count)
    }

    /// Parses one scalar of an initialiser: a constant or an address.
    fn element(&mut self, ty: Type, at: u64, variable: &mut Variable) -> Result<()> {
        let width = size_of_type(ty) as usize;
        let end = at as usize + width;
        if variable.init.len() < end {
            variable.init.resize(end, 0);
        }
        if self.cursor.is_at_identifier() {
            return self.relocation(at, width, 0, variable);
        }
        let value = self.cursor.parse_expression()?;
        if let (Literal::Integer(mask, _), true) = (value, self.cursor.eat(b'(')) {
            let shift = (mask as u64).trailing_zeros();
            if mask == 0 || !shift.is_multiple_of(8) || (mask as u64) >> shift != 0xff {
                return Err(self
                    .cursor
                    .error(format!("the mask {mask:#x} must select one byte of the address, such as 0xFF00")));
            }
            self.relocation(at, width, shift as u8, variable)?;
            return self.cursor.expect(b')');
        }
        let bytes = self.constant_bytes(ty, value)?;
        variable.init[at as usize..end].copy_from_slice(&bytes[..width]);
        Ok(())
    }

    /// Parses an address in an initialiser: `symbol`, `symbol+8` or `generic(symbol)+8`.
    fn relocation(&mut self, at: u64, width: usize, shift: u8, variable: &mut Variable) -> Result<()> {
        let line = self.cursor.line;
        let mut symbol = self.cursor.parse_identifier()?;
        let generic = symbol == "generic" && self.cursor.eat(b'(');
        let mut addend = 0;
        if generic {
            symbol = self.cursor.parse_identifier()?;
            addend += self.parse_address_offset()?;
            self.cursor.expect(b')')?;
        }
        addend = i64::wrapping_add(addend, self.parse_address_offset()?);
        self.uses.push((symbol, line));
        let width = width.min(8) as u8;
        variable.relocations.push(AddressInitializer { at, symbol: symbol.to_owned(), width, shift, addend, generic });
        Ok(())
    }

    fn constant_bytes(&self, ty: Type, value: Literal) -> Result<[u8; 16]> {
        let bits = match (ty, value) {
            (Type::F32, Literal::Integer(value, _)) => u64::from((value as f32).to_bits()),
            (Type::F64, Literal::Integer(value, _)) => (value as f64).to_bits(),
            (_, Literal::Integer(value, _)) => value as u64,
            (Type::F32 | Type::B32 | Type::U32 | Type::S32, Literal::Float32(bits)) => u64::from(bits),
            (Type::F64, Literal::Float32(bits)) => f64::from(f32::from_bits(bits)).to_bits(),
            (Type::F32 | Type::B32, Literal::Float64(value)) => u64::from((value as f32).to_bits()),
            (Type::F64 | Type::B64 | Type::U64 | Type::S64, Literal::Float64(value)) => value.to_bits(),
            _ => return Err(self.cursor.error("a floating-point constant cannot initialise a variable of this type")),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&bits.to_le_bytes());
        Ok(bytes)
    }
}

/// Returns the bytes that a value of the type takes in memory; a predicate takes one.
pub(super) fn size_of_type(ty: Type) -> u32 {
    ty.bits().div_ceil(8)
}

fn type_named(name: &str) -> Option<Type> {
    Type::from_name(name)
}
