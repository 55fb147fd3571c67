//! The worker's side of the worker protocol: decodes files.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use reel_support::diagnostic::note;
use reel_support::worker::ReplySender;

use super::{Job, Reply, Task};
use crate::error::{Error, Result};
use crate::rows::columnar::{Decoder, FilePart, RowSink, RowTexts};

/// The maximum number of decoders that a worker keeps, one per file.
const MAX_DECODERS: usize = 64;

/// The maximum number of rows per reply. The header of a reply contains the end of each row as a number in JSON.
const MAX_ROWS: usize = 1 << 16;

/// The stack size of the thread that decodes files, in bytes. The Parquet reader needs about 1 KiB for each level of a
/// schema, and a damaged or hostile schema can have any number of levels.
const STACK_BYTES: usize = 64 << 20;

/// The `main` function of a worker: decodes files until the caller closes the socket at standard input.
pub(super) fn worker_main() -> ExitCode {
    let thread = std::thread::Builder::new().name("decoder".to_string()).stack_size(STACK_BYTES);
    match thread.spawn(decode_files) {
        Ok(decoder) => decoder.join().unwrap_or(ExitCode::FAILURE),
        Err(e) => {
            note!("no thread can be started: {e}");
            ExitCode::FAILURE
        }
    }
}

fn decode_files() -> ExitCode {
    let mut decoders = VecDeque::new();
    reel_support::worker::serve(|job: Job, file, replies| {
        reel_support::worker::limit_memory(job.memory_bytes)?;
        let file = file.ok_or_else(|| io::Error::other("a decoding job came without its file"))?;
        let mut sink = Sender { replies, failed: None };
        let answer = answer(&job, file, &mut decoders, &mut sink);
        if let Some(e) = sink.failed {
            return Err(e);
        }
        let (reply, body) = answer.unwrap_or_else(|e| (Reply::Failed(e), Vec::new()));
        replies.send(&reply, &body)
    })
}

/// Returns the last reply to a job, and its body.
fn answer(
    job: &Job,
    file: File,
    decoders: &mut VecDeque<(u64, Decoder)>,
    sink: &mut Sender<'_>,
) -> Result<(Reply, Vec<u8>)> {
    if !decoders.iter().any(|(number, _)| *number == job.file) {
        let decoder = Decoder::open(job.format, Path::new(&job.path), file)?;
        if decoders.len() == MAX_DECODERS {
            decoders.pop_front();
        }
        decoders.push_back((job.file, decoder));
    }
    let Some((_, decoder)) = decoders.iter().find(|(number, _)| *number == job.file) else {
        return Err(Error::data("", "has no decoder", ""));
    };
    let reply = match job.task {
        Task::Columns => Reply::Columns(decoder.columns()),
        Task::Rows => Reply::End(decoder.decode_rows(sink)?),
        Task::TryColumns(group) => decoder.decode_columns_one_by_one(group, sink).map(|()| Reply::End(0))?,
        Task::Row(index) => return Ok((Reply::Row, decoder.row(index)?)),
    };
    Ok((reply, Vec::new()))
}

/// Sends parts and rows to the caller.
struct Sender<'a> {
    replies: &'a mut ReplySender,
    /// The reason why sending failed: the caller has ended.
    failed: Option<io::Error>,
}

impl Sender<'_> {
    fn send(&mut self, reply: &Reply, body: &[u8]) -> Result<()> {
        self.replies.send(reply, body).map_err(|e| {
            let error = Error::cannot_read("", &e);
            self.failed = Some(e);
            error
        })
    }
}

impl RowSink for Sender<'_> {
    fn begin(&mut self, part: FilePart) -> Result<()> {
        // The caller learns of the part before it is decoded. So the caller can name the part if decoding ends this
        // process.
        self.send(&Reply::Part(part), &[])
    }

    fn append(&mut self, rows: &RowTexts) -> Result<()> {
        let mut start = 0;
        for ends in rows.ends.chunks(MAX_ROWS) {
            let end = ends[ends.len() - 1];
            let reply = Reply::Rows(ends.iter().map(|end| end - start).collect());
            self.send(&reply, &rows.text[start..end])?;
            start = end;
        }
        Ok(())
    }
}
