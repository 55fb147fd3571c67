//! Makes checks that the Parquet reader lacks: that the metadata lies in the file, and that the schema is not nested
//! so deeply that the reader's recursion overflows the stack.

use std::io;

use super::super::file::PositionedFile;
use super::thrift::{TYPE_I32, TYPE_LIST, TYPE_STRUCT, ThriftReader};

/// The maximum nesting depth of columns.
pub(super) const MAX_SCHEMA_DEPTH: usize = 64;

/// The size limit of the metadata at the end of a Parquet file, in bytes.
const MAX_FOOTER_BYTES: u64 = 256 << 20;

/// The reason why a file cannot be read as a Parquet file: what is wrong, and what to do.
pub(super) type ProblemAndHelp = (String, &'static str);

const DAMAGED_FILE_HELP: &str = "copy or download it again";

/// Checks the magic bytes, the length of the metadata and the depth of its schema, before the metadata is parsed.
pub(super) fn check_footer(file: &PositionedFile) -> io::Result<Result<(), ProblemAndHelp>> {
    let cut = || ("is not a whole Parquet file: it has no Parquet metadata at its end".to_string(), DAMAGED_FILE_HELP);
    if file.bytes() < 12 {
        return Ok(Err(cut()));
    }
    let end = file.read_exact(file.bytes() - 8, 8)?;
    match &end[4..] {
        b"PAR1" => {}
        b"PARE" => return Ok(Err(("is encrypted".to_string(), "decrypt it before"))),
        _ => return Ok(Err(cut())),
    }
    let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    if length > file.bytes() - 12 || length > MAX_FOOTER_BYTES {
        let what = format!("is damaged: its metadata claims to have {length} bytes");
        return Ok(Err((what, DAMAGED_FILE_HELP)));
    }
    let metadata = file.read_exact(file.bytes() - 8 - length, length)?;
    Ok(match schema_depth(&metadata) {
        None => Err(("is damaged: its metadata cannot be parsed".to_string(), DAMAGED_FILE_HELP)),
        Some(depth) if depth > MAX_SCHEMA_DEPTH => {
            let what = format!("has columns with more than {MAX_SCHEMA_DEPTH} levels of nested values");
            Err((what, "write the nested values as JSON text"))
        }
        Some(_) => Ok(()),
    })
}

/// Returns the number of levels of the schema in the metadata of a Parquet file, the root included. Counting stops
/// above [`MAX_SCHEMA_DEPTH`]. The metadata is a struct in Thrift's compact protocol. Its field 2 is the list of the
/// schema's elements, parents before children, and field 5 of an element is the number of its children.
fn schema_depth(metadata: &[u8]) -> Option<usize> {
    let mut thrift = ThriftReader::new(metadata);
    let mut last = 0;
    loop {
        let (id, kind) = thrift.read_field_header(&mut last)??;
        if (id, kind) != (2, TYPE_LIST) {
            thrift.skip_value(kind)?;
            continue;
        }
        let (count, element) = thrift.read_list_header()?;
        if element != TYPE_STRUCT {
            return None;
        }
        // For each open schema element: the number of its children that were not read yet.
        let (mut open, mut deepest): (Vec<u64>, usize) = (Vec::new(), 0);
        for _ in 0..count {
            let children = schema_element(&mut thrift)?;
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

/// Reads a schema element; returns its number of children.
fn schema_element(thrift: &mut ThriftReader<'_>) -> Option<u64> {
    let (mut last, mut children) = (0, 0);
    while let Some((id, kind)) = thrift.read_field_header(&mut last)? {
        match (id, kind) {
            (5, TYPE_I32) => children = u64::try_from(thrift.read_zigzag()?).ok()?,
            _ => thrift.skip_value(kind)?,
        }
    }
    Some(children)
}
