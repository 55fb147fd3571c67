//! Parsing of function bodies: scopes, declarations, labels, instructions.

use super::ast::{Instruction, Operand, Param, ParseError, RegisterIndex, StateSpace, Type, is_branch, is_call};
use super::lexer::Result;
use super::operand::UndeclaredName;
use super::parser::{MAX_REGISTERS_PER_FUNCTION, Parser};
use super::scope::{FunctionSymbol, Label, PendingLabel, Scope};

/// Maximum nesting depth of scopes.
const MAX_DEPTH: usize = 256;

type Formal<'a> = (&'a str, Param, Type);

impl<'a> Parser<'a> {
    pub(super) fn parse_function_body(&mut self, returns: Vec<Formal<'a>>, params: Vec<Formal<'a>>) -> Result<()> {
        self.cursor.expect(b'{')?;
        // Formal parameters get a scope of their own outside the body's scope, so the body may declare the same names
        // again.
        self.scopes.stack.push(Scope::default());
        self.function.returns = self.formals(returns)?;
        self.function.params = self.formals(params)?;
        self.scopes.stack.push(Scope::default());
        self.line_info.start_function();
        while self.scopes.stack.len() > 1 {
            self.statement()?;
        }
        let outermost = self.scopes.stack.pop().unwrap_or_default();
        self.settle_symbols(&outermost.pending)
    }

    fn formals(&mut self, formals: Vec<Formal<'a>>) -> Result<Vec<Param>> {
        let declare = |(name, mut param, ty): Formal<'a>| {
            let entry = match param.register {
                None => FunctionSymbol::Param,
                Some(_) => {
                    let register = self.new_register(name.to_owned(), ty)?;
                    param.register = Some(register);
                    FunctionSymbol::Register(register)
                }
            };
            self.declare(name, entry)?;
            Ok(param)
        };
        formals.into_iter().map(declare).collect()
    }

    fn declare(&mut self, name: &'a str, entry: FunctionSymbol) -> Result<()> {
        match self.scopes.declare(name, entry) {
            true => Ok(()),
            false => Err(self.cursor.error(format!("{name} is declared twice"))),
        }
    }

    fn statement(&mut self) -> Result<()> {
        match self.cursor.peek() {
            b'{' => self.open_scope(),
            b'}' => self.close_scope(),
            b'.' => self.body_directive(),
            b'@' => self.guarded(),
            b';' => self.cursor.expect(b';'),
            _ => self.labelled_or_instruction(),
        }
    }

    fn open_scope(&mut self) -> Result<()> {
        self.cursor.expect(b'{')?;
        if self.scopes.stack.len() >= MAX_DEPTH {
            return Err(self.cursor.error("scopes nest too deeply"));
        }
        self.scopes.stack.push(Scope::default());
        Ok(())
    }

    /// Closes a scope: resolves the operands that name a label of this scope, and passes the operands with other
    /// undeclared names on to the outer scope.
    fn close_scope(&mut self) -> Result<()> {
        self.cursor.expect(b'}')?;
        let Some(mut scope) = self.scopes.stack.pop() else { return Ok(()) };
        let mut open = std::mem::take(&mut scope.pending);
        while let Some(pending) = open.pop() {
            match scope.labels.get(pending.name) {
                Some(label) => self.tie(&pending, label, &mut open)?,
                None => self.scopes.postpone_label(pending),
            }
        }
        Ok(())
    }

    /// Resolves an operand that names `label`. For a `.branchtargets` list, appends the list's labels to `open`,
    /// which the caller resolves one by one.
    fn tie(&mut self, pending: &PendingLabel<'a>, label: &Label<'a>, open: &mut Vec<PendingLabel<'a>>) -> Result<()> {
        let operand = &mut self.function.body[pending.instruction].operands[pending.operand];
        match (label, pending.slot, operand) {
            (Label::Position(position), Some(slot), Operand::Labels(positions)) => positions[slot] = *position,
            (Label::Position(position), None, operand) => *operand = Operand::Label(*position),
            (Label::Branches(names), None, operand) => {
                *operand = Operand::Labels(vec![0; names.len()]);
                let each = names.iter().enumerate();
                open.extend(each.map(|(slot, &name)| PendingLabel { name, slot: Some(slot), ..*pending }));
            }
            (Label::Calls(names), None, operand) => {
                *operand = Operand::List(names.iter().map(|name| Operand::Symbol((*name).to_owned(), 0)).collect());
                self.uses.extend(names.iter().map(|&name| (name, pending.line)));
            }
            (Label::Prototype(noreturn), None, _) => {
                self.function.noreturn_calls.extend(noreturn.then_some(pending.instruction as u32));
            }
            _ => return Err(ParseError { line: pending.line, what: format!("{} is not a label", pending.name) }),
        }
        Ok(())
    }

    /// Handles names that turned out not to be labels. Such a name is an error in a branch or call; elsewhere the
    /// module must declare it as a symbol.
    fn settle_symbols(&mut self, pending: &[PendingLabel<'a>]) -> Result<()> {
        for &PendingLabel { name, instruction, line, .. } in pending {
            let opcode = &self.function.body[instruction].opcode;
            if is_branch(opcode) || is_call(opcode) {
                return Err(ParseError { line, what: format!("{name} is not declared in {}", self.function.name) });
            }
            self.uses.push((name, line));
        }
        Ok(())
    }

    fn body_directive(&mut self) -> Result<()> {
        match self.cursor.parse_directive() {
            Some("reg") => self.registers(),
            Some("local") => self.local_variables(StateSpace::Local, false),
            Some("shared") => self.local_variables(StateSpace::Shared, false),
            Some("param") => self.local_variables(StateSpace::Param, false),
            Some("global") => self.local_variables(StateSpace::Global, false),
            Some("const") => self.local_variables(StateSpace::Const, false),
            Some("extern") => match self.cursor.parse_directive() {
                Some("shared") => self.local_variables(StateSpace::Shared, true),
                _ => Err(self.cursor.error("`.extern` inside a function must be `.extern .shared`")),
            },
            Some("loc") => self.parse_location_directive(),
            Some("file") => self.parse_file_directive(),
            Some("section") => self.parse_section_directive(),
            Some("pragma") => self.parse_pragma_directive(),
            Some(word) => Err(self.cursor.error(format!("unknown directive `.{word}` inside a function"))),
            None => Err(self.cursor.expected_error("a directive")),
        }
    }

    /// Parses `.reg .b32 %r<20>, %x;` or `.reg .v4 .f32 %v;`.
    fn registers(&mut self) -> Result<()> {
        let declarator = self.parse_declarator()?;
        loop {
            let name = self.cursor.parse_identifier()?;
            if self.cursor.eat(b'<') {
                self.register_range(name, declarator.ty, declarator.vector)?;
            } else {
                let entry = self.register(name, declarator.ty, declarator.vector)?;
                self.declare(name, entry)?;
            }
            if !self.cursor.eat(b',') {
                return self.cursor.expect(b';');
            }
        }
    }

    fn register(&mut self, name: &str, ty: Type, vector: u8) -> Result<FunctionSymbol> {
        if vector == 1 {
            return Ok(FunctionSymbol::Register(self.new_register(name.to_owned(), ty)?));
        }
        let first = self.function.registers.len() as RegisterIndex;
        for component in 0..usize::from(vector) {
            let suffix = ["x", "y", "z", "w"].get(component).copied();
            let suffix = suffix.ok_or_else(|| self.cursor.error("a vector register has at most 4 components"))?;
            self.new_register(format!("{name}.{suffix}"), ty)?;
        }
        Ok(FunctionSymbol::VectorRegister(first, vector))
    }

    /// Parses the rest of `%r<count>`, which declares `%r0` to `%r(count-1)`.
    fn register_range(&mut self, prefix: &'a str, ty: Type, vector: u8) -> Result<()> {
        let count = self.cursor.parse_count()?;
        self.cursor.expect(b'>')?;
        if count > MAX_REGISTERS_PER_FUNCTION as u64 {
            return Err(self
                .cursor
                .error(format!("{prefix}<{count}> declares more than {MAX_REGISTERS_PER_FUNCTION} registers")));
        }
        let first = self.function.registers.len() as RegisterIndex;
        for number in 0..count {
            self.register(&format!("{prefix}{number}"), ty, vector)?;
        }
        match self.scopes.declare_register_range(prefix, first, count as u32, vector) {
            true => Ok(()),
            false => Err(self.cursor.error(format!("{prefix}<{count}> is declared twice"))),
        }
    }

    fn local_variables(&mut self, space: StateSpace, external: bool) -> Result<()> {
        for (name, mut variable) in self.parse_variable_declarations(space, external)? {
            let index = self.function.variables.len();
            let repeats = self.scopes.lookup(name).is_some() || self.symbols.contains_key(name);
            if repeats || !self.scopes.insert_variable_name(name) {
                // Identifiers contain no dot, so the new name is unique.
                variable.name = format!("{name}.{index}");
            }
            self.function.variables.push(variable);
            self.declare(name, FunctionSymbol::Variable(index))?;
        }
        Ok(())
    }

    fn guarded(&mut self) -> Result<()> {
        let line = self.cursor.line;
        self.cursor.expect(b'@')?;
        let negated = self.cursor.eat(b'!');
        let name = self.cursor.parse_identifier()?;
        let Some(FunctionSymbol::Register(register)) = self.scopes.lookup(name) else {
            return Err(self.cursor.error(format!("register {name} is not declared")));
        };
        let head = self.cursor.parse_identifier()?;
        self.instruction(Some((register, negated)), head, line)
    }

    fn labelled_or_instruction(&mut self) -> Result<()> {
        let line = self.cursor.line;
        if !self.cursor.is_at_identifier() {
            return Err(self.cursor.expected_error("an instruction"));
        }
        let head = self.cursor.parse_identifier()?;
        if self.cursor.peek() != b':' {
            return self.instruction(None, head, line);
        }
        self.cursor.expect(b':')?;
        let label = self.label()?;
        match self.scopes.declare_label(head, label) {
            true => Ok(()),
            false => Err(ParseError { line, what: format!("label {head} is defined twice in one scope") }),
        }
    }

    /// Parses what follows a label's name and colon: a directive such as `.branchtargets`, or nothing.
    fn label(&mut self) -> Result<Label<'a>> {
        let before = self.cursor;
        match self.cursor.parse_directive() {
            Some("branchtargets") => Ok(Label::Branches(self.names()?)),
            Some("calltargets") => Ok(Label::Calls(self.names()?)),
            Some("callprototype") => Ok(Label::Prototype(self.cursor.skip_past(b';')?.contains(".noreturn"))),
            _ => {
                self.cursor = before;
                Ok(Label::Position(self.function.body.len() as u32))
            }
        }
    }

    fn names(&mut self) -> Result<Vec<&'a str>> {
        let mut names = vec![self.cursor.parse_identifier()?];
        while self.cursor.eat(b',') {
            names.push(self.cursor.parse_identifier()?);
        }
        self.cursor.expect(b';')?;
        Ok(names)
    }

    /// Parses an instruction. Its guard and `head`, the opcode up to the first dot, are already parsed.
    fn instruction(&mut self, guard: Option<(RegisterIndex, bool)>, head: &str, line: u32) -> Result<()> {
        let opcode = self.cursor.parse_rest_of_opcode(head);
        let operands = match is_call(&opcode) {
            true => self.call_operands(line)?,
            false => self.operands(&opcode, line)?,
        };
        let location = self.line_info.current_location_index();
        let used_bytes = self.used_bytes.take();
        self.function.body.push(Instruction { guard, opcode, operands, location, line, used_bytes });
        Ok(())
    }

    fn operands(&mut self, opcode: &str, line: u32) -> Result<Vec<Operand>> {
        let branch = is_branch(opcode);
        let mut operands = Vec::new();
        if !branch && self.cursor.eat(b';') {
            return Ok(operands);
        }
        loop {
            let (operand, unknown) = match branch && self.cursor.is_at_identifier() {
                true => self.branch_operand()?,
                false => self.parse_operand()?,
            };
            self.wait_for(unknown, operands.len(), line);
            operands.push(operand);
            if !self.cursor.eat(b',') {
                break;
            }
        }
        match self.cursor.peek() {
            b';' => self.cursor.expect(b';')?,
            b'[' => {
                return Err(self
                    .cursor
                    .error("an array element `a[i]` as an operand is not supported: write [a+bytes]"));
            }
            b'.' => {
                return Err(self.cursor.error("a selector such as `.b0` or `.h1` behind an operand is not supported"));
            }
            _ => return Err(self.cursor.expected_error("`,` or `;`")),
        }
        self.unwrap_single_elements(opcode, &mut operands);
        match operands.last() {
            Some(Operand::Symbol(..)) => Ok(operands),
            _ if branch => Err(ParseError { line, what: "the branch has no label".to_owned() }),
            _ => Ok(operands),
        }
    }

    /// Parses the operand of a branch: a register (the index of `brx.idx`) or a label, never a symbol of the module.
    fn branch_operand(&mut self) -> Result<(Operand, UndeclaredName<'a>)> {
        let before = self.cursor;
        let name = self.cursor.parse_identifier()?;
        if self.scopes.lookup(name).is_some() || name.starts_with('%') {
            self.cursor = before;
            return self.parse_operand();
        }
        Ok((Operand::Symbol(name.to_owned(), 0), Some(name)))
    }

    fn wait_for(&mut self, unknown: UndeclaredName<'a>, operand: usize, line: u32) {
        if let Some(name) = unknown {
            self.scopes.postpone_label(PendingLabel {
                name,
                instruction: self.function.body.len(),
                operand,
                slot: None,
                line,
            });
        }
    }

    /// Parses `(returns), function, (arguments), prototype;`. Only the function is mandatory.
    fn call_operands(&mut self, line: u32) -> Result<Vec<Operand>> {
        let mut returns = Operand::List(Vec::new());
        if self.cursor.peek() == b'(' {
            returns = self.parse_call_list()?;
            self.cursor.expect(b',')?;
        }
        let (function, unknown) = self.parse_operand()?;
        self.uses.extend(unknown.map(|name| (name, line)));
        let mut operands = vec![returns, function, Operand::List(Vec::new())];
        let mut more = self.cursor.eat(b',');
        if more && self.cursor.peek() == b'(' {
            operands[2] = self.parse_call_list()?;
            more = self.cursor.eat(b',');
        }
        if more {
            let name = self.cursor.parse_identifier()?;
            self.wait_for(Some(name), operands.len(), line);
            operands.push(Operand::Symbol(name.to_owned(), 0));
        }
        self.cursor.expect(b';')?;
        Ok(operands)
    }

    /// Replaces `{%r1}`, a vector of one element, by the element where ptxas accepts both forms: as the data of a load
    /// or store without `.v2`, `.v4` or `.v8`, and on one side of a `mov` of an untyped size. Triton writes all its
    /// scalar loads and stores with braces. Elsewhere the vector stays a vector, and the instruction is refused.
    fn unwrap_single_elements(&self, opcode: &str, operands: &mut [Operand]) {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or_default();
        let untyped_bits = match opcode.rsplit('.').next() {
            Some("b16") => 16,
            Some("b32") => 32,
            Some("b64") => 64,
            Some("b128") => 128,
            _ => 0,
        };
        let data = match (base, &operands[..]) {
            ("ld" | "ldu", [Operand::Vector(_), ..]) => 0,
            ("st", [_, Operand::Vector(_), ..]) => 1,
            ("mov", [Operand::Vector(_), Operand::Vector(_)]) => return,
            ("mov", [Operand::Vector(_), _]) if untyped_bits > 0 => 0,
            ("mov", [_, Operand::Vector(_)]) if untyped_bits > 0 => 1,
            _ => return,
        };
        let Operand::Vector(elements) = &operands[data] else { return };
        let fits = match &elements[..] {
            [Operand::Register(r)] => base != "mov" || self.function.registers[*r as usize].ty.bits() == untyped_bits,
            [element] => *element != Operand::Sink,
            _ => false,
        };
        if fits && !parts.any(|part| matches!(part, "v2" | "v4" | "v8")) {
            operands[data] = elements[0].clone();
        }
    }
}
