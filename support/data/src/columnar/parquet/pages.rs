//! Checks the sizes in a column's page headers against the metadata and the length of the file, before the Parquet
//! reader allocates memory of these sizes. Only the headers of the pages are read.

use std::io;

use parquet::file::metadata::ColumnChunkMetaData;

use super::super::file::PositionedFile;
use super::thrift::{TYPE_I32, TYPE_STRUCT, ThriftReader};

/// The numbers of bytes to read for parsing a page header, tried in this order until the header fits. A header is
/// short unless it has statistics with long texts.
const HEADER_BYTES: [u64; 3] = [1 << 10, 1 << 16, 16 << 20];

/// The contents of a page header.
#[derive(Debug, Default, PartialEq)]
struct PageHeader {
    /// The length of the header itself in bytes.
    bytes: u64,
    /// The compressed length of the page in bytes.
    compressed: i64,
    /// The decompressed length of the page in bytes.
    uncompressed: i64,
    /// The number of values of a data page, nulls included.
    values: Option<i64>,
    /// The number of values of a dictionary page.
    dictionary_values: Option<i64>,
}

/// Checks a column of a row group. The inner error is a text about what is wrong.
pub(super) fn check_column(file: &PositionedFile, column: &ColumnChunkMetaData) -> io::Result<Result<(), String>> {
    let (start, length) = (column.dictionary_page_offset(), column.compressed_size());
    let start = start.unwrap_or(column.data_page_offset());
    let (Ok(start), Ok(length)) = (u64::try_from(start), u64::try_from(length)) else {
        return Ok(Err("is damaged: its metadata has a negative size".to_string()));
    };
    if start.checked_add(length).is_none_or(|end| end > file.bytes()) {
        return Ok(Err("is damaged: according to its metadata it ends beyond the end of the file".to_string()));
    }
    let mut position = start;
    let mut left = column.num_values();
    while left > 0 && position < start + length {
        let Some(header) = read_header(file, position)? else {
            return Ok(Err("is damaged or encrypted: the header of a page cannot be parsed".to_string()));
        };
        position += header.bytes;
        let in_file = u64::try_from(header.compressed).is_ok_and(|bytes| bytes <= file.bytes() - position);
        if !in_file || header.uncompressed < 0 {
            let bytes = header.compressed.max(header.uncompressed);
            return Ok(Err(format!("is damaged: a page claims to have {bytes} bytes")));
        }
        position += header.compressed as u64;
        let values = header.values.unwrap_or(0);
        if !(0..=left).contains(&values) {
            return Ok(Err(format!("is damaged: a page claims to have {values} values, where {left} are left")));
        }
        left -= values;
        // An encoded value takes at least one bit.
        let dictionary = header.dictionary_values.unwrap_or(0);
        if dictionary < 0 || dictionary / 8 > header.uncompressed {
            return Ok(Err(format!("is damaged: its dictionary claims to have {dictionary} values")));
        }
    }
    Ok(Ok(()))
}

/// Reads the header of the page at `position`; `None` if it cannot be parsed.
fn read_header(file: &PositionedFile, position: u64) -> io::Result<Option<PageHeader>> {
    let rest = file.bytes().saturating_sub(position);
    for length in HEADER_BYTES {
        let bytes = file.read_exact(position, length.min(rest))?;
        let header = parse_header(&bytes);
        if header.is_some() || length >= rest {
            return Ok(header);
        }
    }
    Ok(None)
}

/// Parses a page header, a Thrift struct. Fields 2 and 3 are the page's length in bytes, decompressed and compressed.
/// A data page also has field 5, a dictionary page field 7, and a data page of version 2 field 8. Each of these three
/// fields is a struct whose field 1 is the number of values.
fn parse_header(bytes: &[u8]) -> Option<PageHeader> {
    let mut thrift = ThriftReader::new(bytes);
    let mut header = PageHeader::default();
    let mut last = 0;
    while let Some((id, kind)) = thrift.read_field_header(&mut last)? {
        match (id, kind) {
            (2, TYPE_I32) => header.uncompressed = thrift.read_zigzag()?,
            (3, TYPE_I32) => header.compressed = thrift.read_zigzag()?,
            (5 | 8, TYPE_STRUCT) => header.values = Some(number_of_values(&mut thrift)?),
            (7, TYPE_STRUCT) => header.dictionary_values = Some(number_of_values(&mut thrift)?),
            _ => thrift.skip_value(kind)?,
        }
    }
    header.bytes = (bytes.len() - thrift.remaining()) as u64;
    Some(header)
}

fn number_of_values(thrift: &mut ThriftReader<'_>) -> Option<i64> {
    let (mut last, mut values) = (0, None);
    while let Some((id, kind)) = thrift.read_field_header(&mut last)? {
        match (id, kind) {
            (1, TYPE_I32) => values = Some(thrift.read_zigzag()?),
            _ => thrift.skip_value(kind)?,
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_pages_are_parsed() {
        // A header of page type 0: 20 bytes decompressed, 12 compressed, then a data page with 5 values and encoding 0.
        let data = [0x15, 0, 0x15, 40, 0x15, 24, 0x2c, 0x15, 10, 0x15, 0, 0, 0, 99];
        let header =
            PageHeader { bytes: 13, compressed: 12, uncompressed: 20, values: Some(5), dictionary_values: None };
        assert_eq!(parse_header(&data), Some(header));
        assert_eq!(parse_header(&data[..12]), None);
        // A header of page type 2 (dictionary), with 3 values.
        let dictionary = [0x15, 4, 0x15, 40, 0x15, 24, 0x4c, 0x15, 6, 0, 0];
        let header =
            PageHeader { bytes: 11, compressed: 12, uncompressed: 20, values: None, dictionary_values: Some(3) };
        assert_eq!(parse_header(&dictionary), Some(header));
    }
}
