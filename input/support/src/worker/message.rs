//! The messages between caller and worker: the lengths of header and body (`u64`, little-endian), the header as JSON,
//! and the body as raw bytes.

use std::io::{self, ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The byte before each job, which may have an open file attached.
pub(crate) const JOB_BYTE: u8 = 1;

/// A byte that cancels the running job of a worker whose forks can be cancelled.
pub(crate) const CANCEL_BYTE: u8 = 0;

pub(crate) fn write_message(out: &mut impl Write, header: &impl Serialize, body: &[u8]) -> io::Result<()> {
    let header = serde_json::to_vec(header)?;
    let lengths = [header.len(), body.len()].map(|bytes| (bytes as u64).to_le_bytes());
    out.write_all(&[lengths.as_flattened(), &header].concat())?;
    out.write_all(body)
}

/// Whether these bytes are one whole message.
pub(crate) fn is_message(bytes: &[u8]) -> bool {
    let lengths = bytes.as_chunks::<8>().0.iter().take(2).map(|length| u64::from_le_bytes(*length));
    bytes.len() >= 16 && bytes.len() as u64 - 16 == lengths.fold(0, u64::saturating_add)
}

/// Reads a message. Appends its body to `body`, and returns its header.
///
/// # Errors
/// The kind is `InvalidData` if the header has another form, or if a part is longer than its limit in bytes.
pub(crate) fn read_message<H: DeserializeOwned>(
    input: &mut impl Read,
    max_header: u64,
    max_body: u64,
    body: &mut Vec<u8>,
) -> io::Result<H> {
    let mut lengths = [[0; 8]; 2];
    input.read_exact(lengths.as_flattened_mut())?;
    let [header_bytes, body_bytes] = lengths.map(u64::from_le_bytes);
    if header_bytes > max_header || body_bytes > max_body {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut header = Vec::new();
    for (bytes, to) in [(header_bytes, &mut header), (body_bytes, body)] {
        if input.take(bytes).read_to_end(to)? as u64 != bytes {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    serde_json::from_slice(&header).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_round_trip_and_damaged_ones_are_refused(
            header: Vec<u32>, body: Vec<u8>, at in any::<prop::sample::Index>(), value: u8,
        ) {
            let mut sent = Vec::new();
            write_message(&mut sent, &header, &body).unwrap();
            let read = |message: &[u8], max_body: u64| {
                let mut body = b"earlier".to_vec();
                let header = read_message::<Vec<u32>>(&mut &message[..], 1 << 20, max_body, &mut body)?;
                assert!(body.starts_with(b"earlier"));
                Ok::<_, io::Error>((header, body.split_off(7)))
            };
            let bytes = body.len() as u64;
            prop_assert!(is_message(&sent) && !is_message(&sent[..sent.len() - 1]) && !is_message(&sent[..15]));
            prop_assert_eq!(read(&sent, bytes).unwrap(), (header, body));
            if bytes > 0 {
                prop_assert_eq!(read(&sent, bytes - 1).unwrap_err().kind(), ErrorKind::InvalidData);
                prop_assert_eq!(read(&sent[..sent.len() - 1], bytes).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            }
            *at.get_mut(&mut sent) = value;
            // If a byte is changed, reading may fail. It must not panic or allocate more memory than the input has
            // bytes.
            let _ = read(&sent, u64::MAX);
        }
    }
}
