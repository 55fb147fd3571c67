//! Line information: the CUDA source locations of `.loc`, and the function names in `.debug_str` (PTX ISA, section
//! 11.5).

use std::collections::HashMap;

use super::ast::SourceLocation;

/// Maximum inlining depth. For a deeper location, the outer locations beyond this depth are dropped.
const MAX_DEPTH: u32 = 128;

/// File number, line and column of a location.
pub(super) type FileLineColumn = (u32, u32, u32);

/// A location that `.loc` gives: file, line and column; for inlined code also the name of the inlined function and
/// the index of the location of its call.
type Key<'a> = (FileLineColumn, Option<(DebugStringReference<'a>, u32)>);

/// The position of an inlined function's name in `.debug_str`: a symbol and a byte offset from it.
pub(super) type DebugStringReference<'a> = (&'a str, i64);

/// The line information read so far.
#[derive(Default)]
pub(super) struct LineInfo<'a> {
    location: Option<u32>,
    /// For each location read so far, its index in the module's list of locations.
    known: HashMap<Key<'a>, u32>,
    /// The inlining depth of each location in the module's list.
    depths: Vec<u32>,
    /// For each location in the module's list, the name of the function that was inlined there; `None` if the code is
    /// not inlined.
    names: Vec<Option<DebugStringReference<'a>>>,
    /// For each file, line and column: the index of the latest location of the current function at this place.
    /// `inlined_at` refers to it.
    latest: HashMap<FileLineColumn, u32>,
    /// The PTX line on which the inline assembly of the latest `.loc` begins; `None` if it is in no inline assembly.
    pub latest_inline_asm: Option<u32>,
    pub strings: Vec<u8>,
    pub labels: HashMap<&'a str, usize>,
}

impl<'a> LineInfo<'a> {
    pub fn start_function(&mut self) {
        self.location = None;
        self.latest.clear();
    }

    /// Returns the index of the current location in the module's list.
    pub fn current_location_index(&self) -> Option<u32> {
        self.location
    }

    pub fn enter_location(
        &mut self,
        locations: &mut Vec<SourceLocation>,
        triple: FileLineColumn,
        inlined: Option<(DebugStringReference<'a>, FileLineColumn)>,
    ) {
        let link = inlined.map(|(name, at)| {
            let latest = self.latest.get(&at).copied();
            // If a location is inlined at itself, or too deeply, cut the chain: its outer location counts as not
            // inlined.
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

    /// Replaces the placeholders in the locations by the function names in `.debug_str`. Call it last, because
    /// `.debug_str` is at the end of the PTX text.
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

    fn string(&self, &name: &DebugStringReference<'a>) -> Option<(String, String)> {
        let (symbol, offset) = name;
        let start = self.labels.get(symbol)?.checked_add_signed(offset as isize)?;
        let bytes = self.strings.get(start..)?.split(|&b| b == 0).next()?;
        Some((written(name), String::from_utf8_lossy(bytes).into_owned()))
    }
}

/// Returns the placeholder for an inlined function's name, such as `$L__info_string0+12`. The placeholder stays in the
/// location if the PTX text has no `.debug_str`.
fn written((symbol, offset): DebugStringReference) -> String {
    if offset == 0 { symbol.to_owned() } else { format!("{symbol}{offset:+}") }
}
