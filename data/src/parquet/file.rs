//! Positional reads of a Parquet file: several threads read rows at the same time, so none of them may move a shared
//! file position. Also checks what the reader of Parquet files does not check itself: that the schema is not so deeply
//! nested that its recursion needs more stack than a thread has.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

/// The most levels of nested columns.
pub(super) const MAX_SCHEMA_DEPTH: usize = 64;

/// The size limit of the metadata at the end of a Parquet file, in bytes.
const MAX_FOOTER_BYTES: u64 = 256 << 20;

/// An open file that is read at given positions only.
#[derive(Clone, Debug)]
pub(super) struct SharedFile {
    file: Arc<File>,
    bytes: u64,
    /// The number of bytes that were read.
    #[cfg(test)]
    pub(super) bytes_read: Arc<AtomicU64>,
}

impl SharedFile {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            bytes,
            #[cfg(test)]
            bytes_read: Arc::default(),
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn read_exact(&self, start: u64, length: u64) -> io::Result<Vec<u8>> {
        if start.checked_add(length).is_none_or(|end| end > self.bytes) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is cut short, or its metadata is wrong",
            ));
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, start)?;
        #[cfg(test)]
        self.bytes_read.fetch_add(length, Ordering::Relaxed);
        Ok(bytes)
    }
}

impl Length for SharedFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for SharedFile {
    type T = BufReader<ReadFrom>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        // The reader of page headers starts again at each page, so a large buffer would read most of the file.
        Ok(BufReader::with_capacity(1 << 10, ReadFrom { file: self.clone(), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let read = self.read_exact(start, length as u64);
        read.map(Bytes::from).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

/// Reads a file from a position on.
#[derive(Debug)]
pub(super) struct ReadFrom {
    file: SharedFile,
    position: u64,
}

impl Read for ReadFrom {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        #[cfg(test)]
        self.file.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Why a file is not a Parquet file that can be read: what is wrong, and what to do.
pub(super) type Fault = (String, &'static str);

const AGAIN: &str = "copy or download it again";

/// Checks the magic bytes, the length of the metadata and the depth of its schema, before the metadata is parsed.
pub(super) fn check_footer(file: &SharedFile) -> io::Result<Result<(), Fault>> {
    let cut = || ("is not a whole Parquet file: it has no Parquet metadata at its end".to_string(), AGAIN);
    if file.bytes < 12 {
        return Ok(Err(cut()));
    }
    let end = file.read_exact(file.bytes - 8, 8)?;
    match &end[4..] {
        b"PAR1" => {}
        b"PARE" => return Ok(Err(("is encrypted".to_string(), "decrypt it before"))),
        _ => return Ok(Err(cut())),
    }
    let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    if length > file.bytes - 12 || length > MAX_FOOTER_BYTES {
        let what = format!("is damaged: its metadata claims to have {length} bytes");
        return Ok(Err((what, AGAIN)));
    }
    let metadata = file.read_exact(file.bytes - 8 - length, length)?;
    Ok(match schema_depth(&metadata) {
        None => Err(("is damaged: its metadata cannot be parsed".to_string(), AGAIN)),
        Some(depth) if depth > MAX_SCHEMA_DEPTH => {
            let what = format!("has columns with more than {MAX_SCHEMA_DEPTH} levels of nested values");
            Err((what, "write the nested values as JSON text"))
        }
        Some(_) => Ok(()),
    })
}

/// The number of levels of the schema in the metadata of a Parquet file, the root included; counting stops above
/// [`MAX_SCHEMA_DEPTH`]. The metadata is a struct in Thrift's compact protocol. Its field 2 is the list of the schema's
/// elements, parents before children, and field 5 of an element is the number of its children.
fn schema_depth(metadata: &[u8]) -> Option<usize> {
    let mut thrift = Thrift { rest: metadata };
    let mut last = 0;
    loop {
        let (id, kind) = thrift.field(&mut last)??;
        if (id, kind) != (2, LIST) {
            thrift.skip(kind, 0)?;
            continue;
        }
        let (count, element) = thrift.list()?;
        if element != STRUCT {
            return None;
        }
        // The number of children that each open group still has.
        let (mut open, mut deepest): (Vec<u64>, usize) = (Vec::new(), 0);
        for _ in 0..count {
            let children = thrift.schema_element()?;
            deepest = deepest.max(open.len() + 1);
            if deepest > MAX_SCHEMA_DEPTH {
                break;
            }
            if let Some(parent) = open.last_mut() {
                *parent = parent.checked_sub(1)?;
            }
            if children > 0 {
                open.push(children);
            }
            while open.last() == Some(&0) {
                open.pop();
            }
        }
        return Some(deepest);
    }
}

const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// A reader of Thrift's compact protocol that knows just enough to skip values.
struct Thrift<'a> {
    rest: &'a [u8],
}

impl Thrift<'_> {
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

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The number and type of the next field of a struct; `Some(None)` at its end.
    fn field(&mut self, last: &mut i64) -> Option<Option<(i64, u8)>> {
        let header = self.byte()?;
        if header == 0 {
            return Some(None);
        }
        *last = match header >> 4 {
            0 => self.zigzag()?,
            step => last.checked_add(i64::from(step))?,
        };
        Some(Some((*last, header & 0xf)))
    }

    /// The length and element type of a list or a set.
    fn list(&mut self) -> Option<(u64, u8)> {
        let header = self.byte()?;
        let count = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
        Some((count, header & 0xf))
    }

    /// Reads a schema element; returns its number of children.
    fn schema_element(&mut self) -> Option<u64> {
        let (mut last, mut children) = (0, 0);
        while let Some((id, kind)) = self.field(&mut last)? {
            match (id, kind) {
                (5, 5) => children = u64::try_from(self.zigzag()?).ok()?,
                _ => self.skip(kind, 0)?,
            }
        }
        Some(children)
    }

    /// Skips the value of a struct's field.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MAX_SCHEMA_DEPTH {
            return None;
        }
        match kind {
            // The type of a bool field is its value.
            1 | 2 => Some(()),
            3 => self.advance(1),
            4..=6 => self.varint().map(drop),
            7 => self.advance(8),
            8 => self.varint().and_then(|count| self.advance(count)),
            9 | 10 => {
                let (count, element) = self.list()?;
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
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
                Some(())
            }
            13 => self.advance(16),
            _ => None,
        }
    }

    /// Skips an element of a list, a set or a map, where a bool is a byte.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => self.advance(1),
            _ => self.skip(kind, depth + 1),
        }
    }
}
