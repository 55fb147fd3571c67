//! Parsing of PTX at module level: function heads, variables, `.file`, `.section`, `.alias` (PTX ISA, chapters 5, 7 and
//! 11).

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{Function, Module, Operand, ParseError, StateSpace, Type, Variable, is_call};
use super::lexer::{Cursor, Result};
use super::line_info::LineInfo;
use super::scope::Scopes;

/// Maximum number of registers of a function.
pub(super) const MAX_REGISTERS_PER_FUNCTION: usize = 1 << 20;

/// Parses a PTX module, as written by nvcc, NVRTC or by hand.
///
/// # Errors
/// Returns the first syntax error or undeclared name, with its line. Opcodes are not checked, so an unknown opcode is
/// not an error here.
pub fn parse(text: &str) -> std::result::Result<Module, ParseError> {
    let mut parser = Parser {
        // NVRTC includes the terminating NUL in its text.
        cursor: Cursor::new(text.trim_end_matches('\0')),
        ..Parser::default()
    };
    parser.module()?;
    Ok(parser.module)
}

/// The meaning of a name at module scope.
#[derive(Clone, Copy)]
pub(super) enum Symbol {
    /// Index into the module's functions.
    Function(usize),
    /// Index into the module's variables.
    Variable(usize),
}

/// The parser: the text, the position in it, and the part of the tree that is already parsed.
#[derive(Default)]
pub(super) struct Parser<'a> {
    pub cursor: Cursor<'a>,
    pub module: Module,
    /// The names at module scope that are declared so far.
    pub symbols: HashMap<&'a str, Symbol>,
    /// Names that were used before the module declared them, each with the line of its use.
    pub uses: Vec<(&'a str, u32)>,
    aliases: Vec<(&'a str, &'a str, u32)>,
    pub line_info: LineInfo<'a>,
    /// The function that is being parsed.
    pub function: Function,
    /// The mask of the pragma `used_bytes_mask` that stands before the next instruction.
    pub used_bytes: Option<u32>,
    pub scopes: Scopes<'a>,
}

impl<'a> Parser<'a> {
    fn module(&mut self) -> Result<()> {
        while self.cursor.peek() != 0 || !self.cursor.is_at_end() {
            self.module_statement()?;
        }
        if let Some(line) = self.cursor.open_comment {
            return Err(ParseError { line, what: "a comment is not closed; add `*/`".to_owned() });
        }
        if self.module.version == (0, 0) {
            return Err(ParseError { line: 1, what: "`.version` is missing".to_owned() });
        }
        self.resolve_aliases()?;
        self.check_uses()?;
        self.line_info.name_inlined_functions(&mut self.module.source_locations);
        self.mark_noreturn_calls();
        Ok(())
    }

    fn module_statement(&mut self) -> Result<()> {
        if self.cursor.eat(b';') {
            return Ok(());
        }
        let mut external = false;
        loop {
            let Some(word) = self.cursor.parse_directive() else {
                return Err(self.cursor.expected_error("a directive"));
            };
            match word {
                "visible" | "weak" | "common" => continue,
                "extern" => external = true,
                "entry" | "func" => return self.function(word == "entry"),
                "global" => return self.module_variables(StateSpace::Global, external),
                "const" => return self.constant_variables(external),
                "shared" => return self.module_variables(StateSpace::Shared, external),
                "version" => {
                    self.module.version = self.cursor.parse_version()?;
                    return Ok(());
                }
                "target" => return self.target(),
                "address_size" => return self.address_size(),
                "file" => return self.parse_file_directive(),
                "section" => return self.parse_section_directive(),
                "loc" => return self.parse_location_directive(),
                "pragma" => return self.parse_pragma_directive(),
                "alias" => return self.alias(),
                _ => return Err(self.cursor.error(format!("unknown directive `.{word}` at module scope"))),
            }
        }
    }

    fn target(&mut self) -> Result<()> {
        let name = self.cursor.parse_identifier()?;
        self.module.target = name.to_owned();
        // Options such as `debug` and `texmode_independent` have no effect on the simulation.
        while self.cursor.eat(b',') {
            self.cursor.parse_identifier()?;
        }
        Ok(())
    }

    fn address_size(&mut self) -> Result<()> {
        match self.cursor.parse_count()? {
            64 => Ok(()),
            other => Err(self.cursor.error(format!(".address_size {other}: only 64 is supported"))),
        }
    }

    pub(super) fn parse_pragma_directive(&mut self) -> Result<()> {
        loop {
            let text = self.cursor.parse_string()?;
            if let Some(mask) = text.strip_prefix("used_bytes_mask ") {
                let mask = mask.trim();
                let number = mask.strip_prefix("0x").map_or(mask.parse(), |digits| u32::from_str_radix(digits, 16));
                self.used_bytes = number.ok();
            }
            if !self.cursor.eat(b',') {
                return self.cursor.expect(b';');
            }
        }
    }

    fn alias(&mut self) -> Result<()> {
        let line = self.cursor.line;
        let alias = self.cursor.parse_identifier()?;
        self.cursor.expect(b',')?;
        let target = self.cursor.parse_identifier()?;
        self.aliases.push((alias, target, line));
        self.cursor.expect(b';')
    }

    /// Parses `.const` variables; the bank in `.const[2]` is ignored.
    fn constant_variables(&mut self, external: bool) -> Result<()> {
        if self.cursor.eat(b'[') {
            self.cursor.parse_count()?;
            self.cursor.expect(b']')?;
        }
        self.module_variables(StateSpace::Const, external)
    }

    fn module_variables(&mut self, space: StateSpace, external: bool) -> Result<()> {
        for (name, variable) in self.parse_variable_declarations(space, external)? {
            match self.symbols.get(name) {
                None => {
                    self.symbols.insert(name, Symbol::Variable(self.module.variables.len()));
                    self.module.variables.push(variable);
                }
                Some(&Symbol::Variable(index)) if external || self.module.variables[index].external => {
                    self.redeclare(index, variable);
                }
                Some(_) => return Err(self.cursor.error(format!("{name} is declared twice"))),
            }
        }
        Ok(())
    }

    /// Handles a second declaration of a variable: a definition replaces the earlier declaration, an `.extern`
    /// declaration is ignored.
    fn redeclare(&mut self, index: usize, variable: Variable) {
        if !variable.external {
            self.module.variables[index] = variable;
        }
    }

    /// Parses a function or kernel, after `.func` or `.entry`.
    fn function(&mut self, kernel: bool) -> Result<()> {
        self.function = Function { kernel, ..Function::default() };
        self.scopes = Scopes::default();
        self.skip_attributes()?;
        let returns = self.parse_parameter_list()?;
        let name = self.cursor.parse_identifier()?;
        self.function.name = name.to_owned();
        let line = self.cursor.line;
        let params = self.parse_parameter_list()?;
        self.function_directives()?;
        let defined = !self.cursor.eat(b';');
        let index = self.function_index(name, defined, line)?;
        self.function.declaration = !defined;
        if defined {
            self.parse_function_body(returns, params)?;
        } else {
            self.function.returns = returns.into_iter().map(|(_, param, _)| param).collect();
            self.function.params = params.into_iter().map(|(_, param, _)| param).collect();
        }
        let earlier = &mut self.module.functions[index];
        if earlier.declaration {
            self.function.noreturn |= earlier.noreturn;
            *earlier = Arc::new(std::mem::take(&mut self.function));
        }
        Ok(())
    }

    fn skip_attributes(&mut self) -> Result<()> {
        let before = self.cursor;
        match self.cursor.parse_directive() {
            None => return Ok(()),
            Some("attribute") => {}
            Some(_) => {
                self.cursor = before;
                return Err(self.cursor.expected_error("a function's name"));
            }
        }
        self.skip_attribute()
    }

    /// Returns the function's index in the module. Declares the name, so that the function's own body may use it.
    fn function_index(&mut self, name: &'a str, defined: bool, line: u32) -> Result<usize> {
        match self.symbols.get(name) {
            Some(&Symbol::Function(index)) if !defined || self.module.functions[index].declaration => Ok(index),
            Some(_) => Err(ParseError { line, what: format!("{name} is declared twice") }),
            None => {
                let index = self.module.functions.len();
                self.symbols.insert(name, Symbol::Function(index));
                let function = Function { name: name.to_owned(), declaration: true, ..Function::default() };
                self.module.functions.push(Arc::new(function));
                Ok(index)
            }
        }
    }

    /// Parses the directives between a function's parameters and its body, such as `.maxntid` (PTX ISA, section
    /// 11.4).
    fn function_directives(&mut self) -> Result<()> {
        while let Some(word) = self.cursor.parse_directive() {
            match word {
                "noreturn" => self.function.noreturn = true,
                "maxntid" => self.function.max_threads = Some(self.extents()?),
                "reqntid" => self.function.required_threads = Some(self.extents()?),
                "reqnctapercluster" => self.function.cluster = Some(self.extents()?),
                "explicitcluster" => self.function.explicit_cluster = true,
                "minnctapersm" => self.function.min_blocks = Some(self.cursor.parse_count_u32()?),
                "maxnreg" => self.function.max_registers = Some(self.cursor.parse_count_u32()?),
                "maxnctapersm" | "maxclusterrank" | "abi_preserve" | "abi_preserve_control" => {
                    self.cursor.parse_count_u32()?;
                }
                "pragma" => self.parse_pragma_directive()?,
                "attribute" => self.skip_attribute()?,
                _ => {
                    return Err(self.cursor.error(format!("unknown directive `.{word}` before a function's body")));
                }
            }
        }
        Ok(())
    }

    fn extents(&mut self) -> Result<[u32; 3]> {
        let mut extents = [1; 3];
        extents[0] = self.cursor.parse_count_u32()?;
        for extent in &mut extents[1..] {
            if !self.cursor.eat(b',') {
                break;
            }
            *extent = self.cursor.parse_count_u32()?;
        }
        Ok(extents)
    }

    fn resolve_aliases(&mut self) -> Result<()> {
        for (alias, target, line) in std::mem::take(&mut self.aliases) {
            let (Some(&Symbol::Function(from)), Some(&Symbol::Function(to))) =
                (self.symbols.get(target), self.symbols.get(alias))
            else {
                return Err(ParseError { line, what: format!(".alias {alias}, {target}: both must be functions") });
            };
            if self.module.functions[to].declaration && !self.module.functions[from].declaration {
                let function = Function::clone(&self.module.functions[from]);
                self.module.functions[to] = Arc::new(Function { name: alias.to_owned(), ..function });
            }
        }
        Ok(())
    }

    fn check_uses(&self) -> Result<()> {
        match self.uses.iter().find(|(name, _)| !self.symbols.contains_key(name)) {
            None => Ok(()),
            Some(&(name, line)) => Err(ParseError { line, what: format!("{name} is not declared") }),
        }
    }

    fn mark_noreturn_calls(&mut self) {
        let noreturn = |functions: &[Arc<Function>], operand: Option<&Operand>| match operand {
            Some(Operand::Symbol(name, _)) => {
                matches!(self.symbols.get(name.as_str()), Some(&Symbol::Function(index)) if functions[index].noreturn)
            }
            _ => false,
        };
        for index in 0..self.module.functions.len() {
            let body = &self.module.functions[index].body;
            let calls = body.iter().enumerate().filter(|(_, instruction)| is_call(&instruction.opcode));
            let ends = calls.filter(|(_, call)| noreturn(&self.module.functions, call.operands.get(1)));
            let ends: Vec<u32> = ends.map(|(at, _)| at as u32).collect();
            let marked = &mut Arc::make_mut(&mut self.module.functions[index]).noreturn_calls;
            marked.extend(ends);
            marked.sort_unstable();
            marked.dedup();
        }
    }

    /// Adds a register to the current function; errors and listings show `name`.
    pub(super) fn new_register(&mut self, name: String, ty: Type) -> Result<u32> {
        let number = self.function.registers.len();
        if number >= MAX_REGISTERS_PER_FUNCTION {
            return Err(self
                .cursor
                .error(format!("{} has more than {MAX_REGISTERS_PER_FUNCTION} registers", self.function.name)));
        }
        self.function.registers.push(super::ast::RegisterDecl { name, ty });
        Ok(number as u32)
    }
}
