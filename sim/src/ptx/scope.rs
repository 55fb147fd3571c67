//! Names inside a function: registers and variables of nested scopes, and labels, which may be used before they are
//! defined.

use std::collections::{HashMap, HashSet};

use super::ast::RegisterIndex;

/// The meaning of a name inside a function.
#[derive(Clone, Copy)]
pub(super) enum FunctionSymbol {
    Register(RegisterIndex),
    /// A vector register such as `.v4`: the index of its first component's register, and the number of components.
    VectorRegister(RegisterIndex, u8),
    /// Index into the variables of the function.
    Variable(usize),
    /// A formal parameter in `.param` space.
    Param,
}

/// What a label names.
#[derive(Clone)]
pub(super) enum Label<'a> {
    /// The instruction with this index.
    Position(u32),
    /// A `.branchtargets` list: names of labels.
    Branches(Vec<&'a str>),
    /// A `.calltargets` list: names of functions.
    Calls(Vec<&'a str>),
    /// A `.callprototype`, and whether it is `.noreturn`.
    Prototype(bool),
}

/// An operand with an undeclared name, which may be a label that is defined later.
#[derive(Clone, Copy)]
pub(super) struct PendingLabel<'a> {
    pub name: &'a str,
    pub instruction: usize,
    pub operand: usize,
    /// If the operand is a `.branchtargets` list, the index in the list of the label that is still to be resolved.
    pub slot: Option<usize>,
    pub line: u32,
}

/// The names that one block `{ }` declares.
#[derive(Default)]
pub(super) struct Scope<'a> {
    pub names: HashMap<&'a str, FunctionSymbol>,
    /// Register ranges such as `%r<20>`. Key: the prefix `%r`; value: the first register's index, the number of
    /// registers, and the components of each.
    ranges: HashMap<&'a str, (RegisterIndex, u32, u8)>,
    /// Range prefixes that end in a digit, such as `%r1` of `%r1<20>`: [`numbered`] cannot tell where the register's
    /// number begins after them.
    odd_prefixes: Vec<&'a str>,
    pub labels: HashMap<&'a str, Label<'a>>,
    pub pending: Vec<PendingLabel<'a>>,
}

impl Scope<'_> {
    fn lookup(&self, name: &str, numbered: Option<(&str, u32)>) -> Option<FunctionSymbol> {
        if let Some(&entry) = self.names.get(name) {
            return Some(entry);
        }
        numbered.and_then(|(prefix, number)| self.in_range(prefix, number)).or_else(|| {
            self.odd_prefixes.iter().find_map(|prefix| self.in_range(prefix, number(name.strip_prefix(prefix)?)?))
        })
    }

    fn in_range(&self, prefix: &str, number: u32) -> Option<FunctionSymbol> {
        let &(first, count, vector) = self.ranges.get(prefix)?;
        let register = first + number.checked_mul(u32::from(vector))?;
        (number < count).then_some(match vector {
            1 => FunctionSymbol::Register(register),
            _ => FunctionSymbol::VectorRegister(register, vector),
        })
    }
}

/// Splits `%r17` into `%r` and 17; `%r017` is the same register.
fn numbered(name: &str) -> Option<(&str, u32)> {
    let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
    Some((prefix, number(&name[prefix.len()..])?))
}

fn number(digits: &str) -> Option<u32> {
    // Check the digits, because `parse` alone would also accept a sign.
    digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The scopes around the current position, outermost first.
#[derive(Default)]
pub(super) struct Scopes<'a> {
    pub stack: Vec<Scope<'a>>,
    /// The names of the function's variables that are declared so far.
    variables: HashSet<&'a str>,
}

impl<'a> Scopes<'a> {
    pub fn lookup(&self, name: &str) -> Option<FunctionSymbol> {
        let numbered = numbered(name);
        self.stack.iter().rev().find_map(|scope| scope.lookup(name, numbered))
    }

    /// Declares a name in the innermost scope; returns false if it is already declared there.
    pub fn declare(&mut self, name: &'a str, entry: FunctionSymbol) -> bool {
        let numbered = numbered(name);
        let Some(scope) = self.stack.last_mut() else { return false };
        scope.lookup(name, numbered).is_none() && scope.names.insert(name, entry).is_none()
    }

    /// Declares `prefix<count>` in the innermost scope; returns false if the range is already declared there.
    pub fn declare_register_range(&mut self, prefix: &'a str, first: RegisterIndex, count: u32, vector: u8) -> bool {
        let Some(scope) = self.stack.last_mut() else { return false };
        if prefix.ends_with(|c: char| c.is_ascii_digit()) {
            scope.odd_prefixes.push(prefix);
        }
        scope.ranges.insert(prefix, (first, count, vector)).is_none()
    }

    /// Declares a label in the innermost scope; returns false if it is already declared there.
    pub fn declare_label(&mut self, name: &'a str, label: Label<'a>) -> bool {
        self.stack.last_mut().is_some_and(|scope| scope.labels.insert(name, label).is_none())
    }

    /// Postpones an operand that may name a label: it is resolved when the innermost scope is closed.
    pub fn postpone_label(&mut self, pending: PendingLabel<'a>) {
        if let Some(scope) = self.stack.last_mut() {
            scope.pending.push(pending);
        }
    }

    /// Records a variable's name; returns false if another variable of the function has it.
    pub fn insert_variable_name(&mut self, name: &'a str) -> bool {
        self.variables.insert(name)
    }
}
