//! Reads a data file at given positions (`pread`). No read may move the file offset, because several threads read
//! rows at the same time, and a worker process shares the offset with the process that opened the file.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

/// An open file that is read at given positions only.
#[derive(Clone, Debug)]
pub(super) struct PositionedFile {
    file: Arc<File>,
    bytes: u64,
    /// The number of bytes read so far.
    #[cfg(test)]
    pub(super) bytes_read: Arc<AtomicU64>,
}

impl PositionedFile {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            bytes,
            #[cfg(test)]
            bytes_read: Arc::default(),
        })
    }

    /// The length of the file in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn read_exact(&self, start: u64, length: u64) -> io::Result<Vec<u8>> {
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

    /// Reads from `position` to the end of the file.
    pub(super) fn read_from(&self, position: u64) -> PositionedReader {
        PositionedReader { file: self.clone(), position }
    }
}

impl Length for PositionedFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for PositionedFile {
    type T = BufReader<PositionedReader>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        // The Parquet reader makes a new buffered reader for each page header, so a large buffer would read most of the
        // file.
        Ok(BufReader::with_capacity(1 << 10, self.read_from(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let read = self.read_exact(start, length as u64);
        read.map(Bytes::from).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

/// Reads a file from a position on.
#[derive(Debug)]
pub(super) struct PositionedReader {
    file: PositionedFile,
    position: u64,
}

impl Read for PositionedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        #[cfg(test)]
        self.file.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Seek for PositionedReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.file.bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
