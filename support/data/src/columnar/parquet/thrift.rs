//! A reader for Thrift's compact protocol, in which Parquet stores metadata and page headers.

/// Type codes of the protocol: a list, a struct and a 32-bit integer.
pub(super) const TYPE_LIST: u8 = 9;
pub(super) const TYPE_STRUCT: u8 = 12;
pub(super) const TYPE_I32: u8 = 5;

/// The maximum nesting depth of skipped values.
const MAX_DEPTH: usize = 64;

/// A reader of Thrift's compact protocol that supports only what skipping values needs.
pub(super) struct ThriftReader<'a> {
    rest: &'a [u8],
}

impl<'a> ThriftReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The number of bytes that are not read yet.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn advance(&mut self, count: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn read_zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Reads the number and type of the next field of a struct. Returns `Some(None)` at the end of the struct.
    pub(super) fn read_field_header(&mut self, last: &mut i64) -> Option<Option<(i64, u8)>> {
        let header = self.byte()?;
        if header == 0 {
            return Some(None);
        }
        *last = match header >> 4 {
            0 => self.read_zigzag()?,
            step => last.checked_add(i64::from(step))?,
        };
        Some(Some((*last, header & 0xf)))
    }

    /// Reads the length and element type of a list or a set.
    pub(super) fn read_list_header(&mut self) -> Option<(u64, u8)> {
        let header = self.byte()?;
        let count = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
        Some((count, header & 0xf))
    }

    /// Skips the value of a struct's field.
    pub(super) fn skip_value(&mut self, kind: u8) -> Option<()> {
        self.skip_nested(kind, 0)
    }

    fn skip_nested(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        match kind {
            // A bool field has no bytes after its type code: the code (1 or 2) is the value.
            1 | 2 => Some(()),
            3 => self.advance(1),
            4..=6 => self.varint().map(drop),
            7 => self.advance(8),
            8 => self.varint().and_then(|count| self.advance(count)),
            9 | 10 => {
                let (count, element) = self.read_list_header()?;
                (0..count).try_for_each(|_| self.skip_element(element, depth))
            }
            11 => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 0xf, depth)
                })
            }
            TYPE_STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.read_field_header(&mut last)? {
                    self.skip_nested(kind, depth + 1)?;
                }
                Some(())
            }
            13 => self.advance(16),
            _ => None,
        }
    }

    /// Skips an element of a list, a set or a map. A bool is one byte there.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => self.advance(1),
            _ => self.skip_nested(kind, depth + 1),
        }
    }
}
