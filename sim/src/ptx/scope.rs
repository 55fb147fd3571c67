//! Names inside a function: registers and variables of nested scopes, labels that may be used before they stand.

use std::collections::{HashMap, HashSet};

use super::ast::Register;

/// What a name stands for.
#[derive(Clone, Copy)]
pub(super) enum Entry {
    Register(Register),
    /// The first of so many component registers.
    VectorRegister(Register, u8),
    /// Index into the function's variables.
    Variable(usize),
    /// A formal parameter, which keeps its name.
    Param,
}

/// What stands behind a `label:`.
#[derive(Clone)]
pub(super) enum Label<'a> {
    /// An instruction's index.
    Position(u32),
    /// `.branchtargets`: labels.
    Branches(Vec<&'a str>),
    /// `.calltargets`: functions.
    Calls(Vec<&'a str>),
    /// `.callprototype`, and whether it is `.noreturn`.
    Prototype(bool),
}

/// An operand that names something not known yet: perhaps a label further down.
#[derive(Clone, Copy)]
pub(super) struct Pending<'a> {
    pub name: &'a str,
    pub instruction: usize,
    pub operand: usize,
    /// Which of the labels of a `.branchtargets` list, if the operand is one.
    pub slot: Option<usize>,
    pub line: u32,
}

/// One `{ }`.
#[derive(Default)]
pub(super) struct Scope<'a> {
    pub names: HashMap<&'a str, Entry>,
    /// `%r<20>`: the first register, the count, and components of each.
    ranges: HashMap<&'a str, (Register, u32, u8)>,
    /// Prefixes of ranges that end in a digit themselves, the rest of [`numbered`]'s names.
    odd_prefixes: Vec<&'a str>,
    pub labels: HashMap<&'a str, Label<'a>>,
    pub pending: Vec<Pending<'a>>,
}

impl Scope<'_> {
    fn lookup(&self, name: &str, numbered: Option<(&str, u32)>) -> Option<Entry> {
        if let Some(&entry) = self.names.get(name) {
            return Some(entry);
        }
        numbered.and_then(|(prefix, number)| self.in_range(prefix, number)).or_else(|| {
            self.odd_prefixes.iter().find_map(|prefix| self.in_range(prefix, number(name.strip_prefix(prefix)?)?))
        })
    }

    fn in_range(&self, prefix: &str, number: u32) -> Option<Entry> {
        let &(first, count, vector) = self.ranges.get(prefix)?;
        let register = first + number.checked_mul(u32::from(vector))?;
        (number < count).then_some(match vector {
            1 => Entry::Register(register),
            _ => Entry::VectorRegister(register, vector),
        })
    }
}

/// `%r17` as `%r` and 17; `%r017` is the same register.
fn numbered(name: &str) -> Option<(&str, u32)> {
    let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
    Some((prefix, number(&name[prefix.len()..])?))
}

fn number(digits: &str) -> Option<u32> {
    // `parse` alone would take a sign.
    digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The scopes around the present place, the outermost first.
#[derive(Default)]
pub(super) struct Scopes<'a> {
    pub stack: Vec<Scope<'a>>,
    /// Names of the function's variables so far.
    variables: HashSet<&'a str>,
}

impl<'a> Scopes<'a> {
    pub fn lookup(&self, name: &str) -> Option<Entry> {
        let numbered = numbered(name);
        self.stack.iter().rev().find_map(|scope| scope.lookup(name, numbered))
    }

    /// Adds a name to the innermost scope; false when it is there already.
    pub fn declare(&mut self, name: &'a str, entry: Entry) -> bool {
        let numbered = numbered(name);
        let Some(scope) = self.stack.last_mut() else { return false };
        scope.lookup(name, numbered).is_none() && scope.names.insert(name, entry).is_none()
    }

    /// Adds `prefix<count>` to the innermost scope; false when there is such a range already.
    pub fn declare_range(&mut self, prefix: &'a str, first: Register, count: u32, vector: u8) -> bool {
        let Some(scope) = self.stack.last_mut() else { return false };
        if prefix.ends_with(|c: char| c.is_ascii_digit()) {
            scope.odd_prefixes.push(prefix);
        }
        scope.ranges.insert(prefix, (first, count, vector)).is_none()
    }

    /// Adds a label to the innermost scope; false when it is there already.
    pub fn label(&mut self, name: &'a str, label: Label<'a>) -> bool {
        self.stack.last_mut().is_some_and(|scope| scope.labels.insert(name, label).is_none())
    }

    /// Leaves an operand to the innermost scope's end.
    pub fn wait(&mut self, pending: Pending<'a>) {
        if let Some(scope) = self.stack.last_mut() {
            scope.pending.push(pending);
        }
    }

    /// Remembers the name of a variable; false when another of the function has it.
    pub fn note_variable(&mut self, name: &'a str) -> bool {
        self.variables.insert(name)
    }
}
