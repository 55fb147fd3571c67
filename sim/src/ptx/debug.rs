//! Parsing of `.loc`, `.file` and `.section` into [`LineInfo`](super::line_info::LineInfo).

use super::lexer::Result;
use super::line_info::{DebugStringReference, FileLineColumn};
use super::parser::Parser;

impl<'a> Parser<'a> {
    /// Parses `.file 1 "name"`, optionally with a time and a size.
    pub(super) fn parse_file_directive(&mut self) -> Result<()> {
        let number = self.cursor.parse_count_u32()?;
        let name = self.cursor.parse_string()?.to_owned();
        while self.cursor.eat(b',') {
            self.cursor.parse_count()?;
        }
        self.module.files.push((number, name));
        Ok(())
    }

    /// Parses `.loc 1 20 3`, optionally with `, function_name symbol, inlined_at 1 33 5`. Of the locations in one inline
    /// assembly only the first counts: LLVM adds 1 to the source line for each further line of assembly.
    pub(super) fn parse_location_directive(&mut self) -> Result<()> {
        let asm = self.cursor.inline_asm;
        let repeats = asm.is_some() && asm == self.line_info.latest_inline_asm;
        self.line_info.latest_inline_asm = asm;
        let triple = self.triple()?;
        let (mut name, mut at) = (None, None);
        while self.cursor.eat(b',') {
            match self.cursor.parse_identifier()? {
                "function_name" => name = Some(self.string_symbol()?),
                "inlined_at" => at = Some(self.triple()?),
                other => return Err(self.cursor.error(format!("`.loc` has no attribute `{other}`"))),
            }
        }
        if repeats {
            return Ok(());
        }
        let inlined = at.map(|at| (name.unwrap_or(("", 0)), at));
        self.line_info.enter_location(&mut self.module.source_locations, triple, inlined);
        Ok(())
    }

    fn triple(&mut self) -> Result<FileLineColumn> {
        Ok((self.cursor.parse_count_u32()?, self.cursor.parse_count_u32()?, self.cursor.parse_count_u32()?))
    }

    /// Parses a reference to a string in `.debug_str`: `$L__info_string0`, `$L__info_string0+12` or `.debug_str+12`.
    fn string_symbol(&mut self) -> Result<DebugStringReference<'a>> {
        let symbol = match self.cursor.parse_directive() {
            Some(section) => section,
            None => self.cursor.parse_identifier()?,
        };
        Ok((symbol, self.parse_address_offset()?))
    }

    /// Skips `.section .debug_… { … }`, but keeps the strings of `.debug_str`.
    pub(super) fn parse_section_directive(&mut self) -> Result<()> {
        let Some(name) = self.cursor.parse_directive() else {
            return Err(self.cursor.expected_error("a section's name"));
        };
        self.cursor.expect(b'{')?;
        if name != "debug_str" {
            return self.cursor.skip_past(b'}').map(|_| ());
        }
        self.line_info.labels.insert(name, self.line_info.strings.len());
        while !self.cursor.eat(b'}') {
            if self.cursor.parse_directive().is_some() {
                self.string_bytes()?;
            } else {
                let label = self.cursor.parse_identifier()?;
                self.cursor.expect(b':')?;
                self.line_info.labels.insert(label, self.line_info.strings.len());
            }
        }
        Ok(())
    }

    fn string_bytes(&mut self) -> Result<()> {
        loop {
            let byte = self.cursor.parse_integer_expression()?;
            self.line_info.strings.push(byte as u8);
            if !self.cursor.eat(b',') {
                return Ok(());
            }
        }
    }
}
