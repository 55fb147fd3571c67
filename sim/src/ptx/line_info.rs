//! Line information: the CUDA source locations of `.loc`, and the function names in `.debug_str` (PTX ISA, section
//! 11.5).

use std::collections::HashMap;

use super::ast::SourceLocation;

/// Maximum inlining depth. For a deeper location, the outer locations beyond this depth are dropped.
const MAX_DEPTH: u32 = 128;

/// File number, line and column of a location.
pub(super) type FileLineColumn = (u32, u32, u32);

/// A location as in `.loc`: file, line and column. If it is inlined, also the inlined function's name and the index
/// of the location where it is inlined.
type Key<'a> = (FileLineColumn, Option<(InlinedName<'a>, u32)>);

/// A symbol of `.debug_str` and an offset from it, which name an inlined function.
pub(super) type InlinedName<'a> = (&'a str, i64);

/// The line information read so far.
#[derive(Default)]
pub(super) struct LineInfo<'a> {
    location: Option<u32>,
    /// The index of each location in the module's list of locations.
    known: HashMap<Key<'a>, u32>,
    /// The inlining depth of each location in the module's list.
    depths: Vec<u32>,
    /// For each location in the module's list, the name of the inlined function.
    names: Vec<Option<InlinedName<'a>>>,
    /// For each file, line and column, the latest such location in the current function: `inlined_at` refers to it.
    latest: HashMap<FileLineColumn, u32>,
    pub strings: Vec<u8>,
    pub labels: HashMap<&'a str, usize>,
}

impl<'a> LineInfo<'a> {
    pub fn start_function(&mut self) {
        self.location = None;
        self.latest.clear();
    }

    /// Returns the index of the current location in the module's list.
    pub fn current_location(&self) -> Option<u32> {
        self.location
    }

    pub fn enter_location(
        &mut self,
        locations: &mut Vec<SourceLocation>,
        triple: FileLineColumn,
        inlined: Option<(InlinedName<'a>, FileLineColumn)>,
    ) {
        let link = inlined.map(|(name, at)| {
            let latest = self.latest.get(&at).copied();
            // A location that is inlined at itself or too deep gets an outer location that is not inlined.
            let outer = latest.filter(|&outer| at != triple && self.depths[outer as usize] < MAX_DEPTH);
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

    /// Replaces symbols of `.debug_str` in the locations by function names. Called last, because `.debug_str` ends
    /// the text.
    pub fn name_inlined_functions(&self, locations: &mut [SourceLocation]) {
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

    fn string(&self, &name: &InlinedName<'a>) -> Option<(String, String)> {
        let (symbol, offset) = name;
        let start = self.labels.get(symbol)?.checked_add_signed(offset as isize)?;
        let bytes = self.strings.get(start..)?.split(|&b| b == 0).next()?;
        Some((written(name), String::from_utf8_lossy(bytes).into_owned()))
    }
}

/// Returns the placeholder for the name of an inlined function. It remains if the text has no `.debug_str`.
fn written((symbol, offset): InlinedName) -> String {
    if offset == 0 { symbol.to_owned() } else { format!("{symbol}{offset:+}") }
}
