//! `.loc`, `.file` and the names in `.debug_str` (PTX ISA, section 11.5).

use std::collections::HashMap;

use super::ast::SourceLocation;
use super::lexer::Result;
use super::parser::Parser;

/// Inlining may nest this deep; a location further inside keeps its outermost links.
const DEPTH: u32 = 128;

type Triple = (u32, u32, u32);

/// A location as `.loc` writes it: itself, the inlined function's name, and the index of the location it is inlined at.
type Key<'a> = (Triple, Option<(Name<'a>, u32)>);

/// A symbol of `.debug_str`, and an offset from it.
type Name<'a> = (&'a str, i64);

/// Line information as far as it is read.
#[derive(Default)]
pub(super) struct Debug<'a> {
    location: Option<u32>,
    /// Index of each location in the module's list.
    known: HashMap<Key<'a>, u32>,
    /// How deep each location of the module's list is inlined.
    depths: Vec<u32>,
    /// The names of inlined functions, of each location in the module's list.
    names: Vec<Option<Name<'a>>>,
    /// The latest location of the present function with this file, line and column: what `inlined_at` refers to.
    latest: HashMap<Triple, u32>,
    strings: Vec<u8>,
    labels: HashMap<&'a str, usize>,
}

impl<'a> Debug<'a> {
    pub fn start_function(&mut self) {
        self.location = None;
        self.latest.clear();
    }

    /// The index of the location that holds now.
    pub fn location(&self) -> Option<u32> {
        self.location
    }

    fn enter(&mut self, locations: &mut Vec<SourceLocation>, triple: Triple, inlined: Option<(Name<'a>, Triple)>) {
        let link = inlined.map(|(name, at)| {
            let latest = self.latest.get(&at).copied();
            // A location inlined at itself, or too deep, ends the chain there.
            let outer = latest.filter(|&outer| at != triple && self.depths[outer as usize] < DEPTH);
            (name, outer.unwrap_or_else(|| self.intern(locations, (at, None))))
        });
        let index = self.intern(locations, (triple, link));
        self.latest.insert(triple, index);
        self.location = Some(index);
    }

    fn intern(&mut self, locations: &mut Vec<SourceLocation>, key: Key<'a>) -> u32 {
        let next = locations.len() as u32;
        let index = *self.known.entry(key).or_insert(next);
        if index == next {
            let ((file, line, column), link) = key;
            let inlined_at = link.map(|(name, outer)| (Box::new(locations[outer as usize].clone()), written(name)));
            locations.push(SourceLocation { file, line, column, inlined_at });
            self.depths.push(link.map_or(0, |(_, outer)| self.depths[outer as usize] + 1));
            self.names.push(link.map(|(name, _)| name));
        }
        index
    }

    /// Puts functions' names where `.loc` gave symbols of `.debug_str`, which comes last in the text.
    pub fn name_inlined(&self, locations: &mut [SourceLocation]) {
        let names: HashMap<String, String> = self.names.iter().flatten().filter_map(|name| self.string(name)).collect();
        for location in locations {
            let mut next = location.inlined_at.as_mut();
            while let Some((outer, name)) = next {
                if let Some(function) = names.get(name) {
                    name.clone_from(function);
                }
                next = outer.inlined_at.as_mut();
            }
        }
    }

    fn string(&self, &name: &Name<'a>) -> Option<(String, String)> {
        let (symbol, offset) = name;
        let start = self.labels.get(symbol)?.checked_add_signed(offset as isize)?;
        let bytes = self.strings.get(start..)?.split(|&b| b == 0).next()?;
        Some((written(name), String::from_utf8_lossy(bytes).into_owned()))
    }
}

/// What stands for a function's name until the strings are read, and for good where there are none.
fn written((symbol, offset): Name) -> String {
    if offset == 0 { symbol.to_owned() } else { format!("{symbol}{offset:+}") }
}

impl<'a> Parser<'a> {
    /// `.file 1 "name"`, perhaps with a time and a size behind.
    pub(super) fn file(&mut self) -> Result<()> {
        let number = self.cursor.count32()?;
        let name = self.cursor.string()?.to_owned();
        while self.cursor.eat(b',') {
            self.cursor.count()?;
        }
        self.module.files.push((number, name));
        Ok(())
    }

    /// `.loc 1 20 3`, perhaps with `, function_name symbol, inlined_at 1 33 5`.
    pub(super) fn location(&mut self) -> Result<()> {
        let triple = self.triple()?;
        let (mut name, mut at) = (None, None);
        while self.cursor.eat(b',') {
            match self.cursor.identifier()? {
                "function_name" => name = Some(self.string_symbol()?),
                "inlined_at" => at = Some(self.triple()?),
                other => return Err(self.cursor.error(format!("`{other}` is not known in `.loc`"))),
            }
        }
        let inlined = at.map(|at| (name.unwrap_or(("", 0)), at));
        self.debug.enter(&mut self.module.source_locations, triple, inlined);
        Ok(())
    }

    fn triple(&mut self) -> Result<Triple> {
        Ok((self.cursor.count32()?, self.cursor.count32()?, self.cursor.count32()?))
    }

    /// `$L__info_string0`, `$L__info_string0+12`, `.debug_str+12`.
    fn string_symbol(&mut self) -> Result<Name<'a>> {
        let symbol = match self.cursor.directive() {
            Some(section) => section,
            None => self.cursor.identifier()?,
        };
        Ok((symbol, self.offset()?))
    }

    /// `.section .debug_… { … }`: skipped, but for the strings.
    pub(super) fn section(&mut self) -> Result<()> {
        let Some(name) = self.cursor.directive() else { return Err(self.cursor.expected("a section's name")) };
        self.cursor.expect(b'{')?;
        if name != "debug_str" {
            return self.cursor.skip_past(b'}').map(|_| ());
        }
        self.debug.labels.insert(name, self.debug.strings.len());
        while !self.cursor.eat(b'}') {
            if self.cursor.directive().is_some() {
                self.string_bytes()?;
            } else {
                let label = self.cursor.identifier()?;
                self.cursor.expect(b':')?;
                self.debug.labels.insert(label, self.debug.strings.len());
            }
        }
        Ok(())
    }

    fn string_bytes(&mut self) -> Result<()> {
        loop {
            let byte = self.cursor.integer_expression()?;
            self.debug.strings.push(byte as u8);
            if !self.cursor.eat(b',') {
                return Ok(());
            }
        }
    }
}
