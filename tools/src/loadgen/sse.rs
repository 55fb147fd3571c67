//! Server-sent events: splits a stream of bytes into the data of its events.
//!
//! The format is that of the HTML standard: lines end with LF, CR or CR LF; an event ends with an empty line; each line
//! `data: TEXT` adds a line to the event's data; a line that begins with a colon is a comment; other fields (`event`,
//! `id`, `retry`) are ignored. The bytes may be cut anywhere, even within a character or between CR and LF.

/// Maximum bytes of an event's data, and of one line (16 MiB).
const MAX_EVENT_BYTES: usize = 16 << 20;

/// Splits bytes into events.
#[derive(Debug, Default)]
pub struct EventParser {
    /// The bytes of the current line that have arrived so far.
    line: Vec<u8>,
    /// The data lines of the current event, each followed by LF.
    data: Vec<u8>,
    has_data: bool,
    /// Whether the last byte was CR. If the next byte is LF, both bytes are one line end.
    after_cr: bool,
    /// Whether at least one line has ended. A byte order mark is removed only from the first line.
    has_begun: bool,
}

/// An event is longer than 16 MiB.
#[derive(Debug, PartialEq, Eq)]
pub struct EventTooLong;

impl EventParser {
    /// Adds bytes, and returns the data of each event that is now complete.
    ///
    /// # Errors
    /// A line or the data of an event has more than 16 MiB.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, EventTooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        if self.after_cr && !rest.is_empty() {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            self.after_cr = false;
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.extend_line(&rest[..end])?;
            events.extend(self.end_line()?);
            let is_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            match rest.first() {
                Some(b'\n') if is_cr => rest = &rest[1..],
                None => self.after_cr = is_cr,
                Some(_) => {}
            }
        }
        self.extend_line(rest)?;
        Ok(events)
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), EventTooLong> {
        if self.line.len() + bytes.len() > MAX_EVENT_BYTES {
            return Err(EventTooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Processes the current line. If the line is empty, it ends the event, and the event's data is returned.
    fn end_line(&mut self) -> Result<Option<String>, EventTooLong> {
        let mut line = std::mem::take(&mut self.line);
        if !self.has_begun && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        self.has_begun = true;
        if line.is_empty() {
            return Ok(self.end_event());
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        if &line[..colon] == b"data" {
            let value = line.get(colon + 1..).unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if self.data.len() + value.len() > MAX_EVENT_BYTES {
                return Err(EventTooLong);
            }
            self.data.extend_from_slice(value);
            self.data.push(b'\n');
            self.has_data = true;
        }
        Ok(None)
    }

    /// Returns the data of the event that ends here; `None` if the event has no data, such as one with only a comment.
    fn end_event(&mut self) -> Option<String> {
        let mut data = std::mem::take(&mut self.data);
        // Removes the LF after the last data line.
        data.pop();
        std::mem::take(&mut self.has_data).then(|| String::from_utf8_lossy(&data).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = EventParser::default();
        pieces.iter().flat_map(|piece| parser.push(piece).unwrap()).collect()
    }

    #[test]
    fn events_have_the_data_of_the_standard() {
        for (stream, wanted) in [
            ("data: a\n\ndata: b\n\n", &["a", "b"][..]),
            ("data:a\r\n\r\ndata:  b\r\rdata: c\n\n", &["a", " b", "c"]),
            ("data: a\ndata: b\n\n", &["a\nb"]),
            ("\u{feff}data: a\n\n", &["a"]),
            (": keep-alive\n\nevent: x\nid: 3\ndata: a\n\n", &["a"]),
            ("data\n\n", &[""]),
            ("datum: a\n\ndata: not ended\n", &[]),
            ("\n\n\ndata: a: b\n\n", &["a: b"]),
        ] {
            assert_eq!(parse(&[stream.as_bytes()]), wanted, "{stream:?}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let block = vec![b'x'; 1 << 20];
        let mut parser = EventParser::default();
        let refused = (0..17).find_map(|_| parser.push(&block).err());
        assert_eq!(refused, Some(EventTooLong));
        let mut parser = EventParser::default();
        let line = [b"data: ".as_slice(), &block, b"\n"].concat();
        let refused = (0..17).find_map(|_| parser.push(&line).err());
        assert_eq!(refused, Some(EventTooLong));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A stream of these pieces gives the same events, wherever its bytes are cut.
        #[test]
        fn cuts_do_not_change_events(
            parts in prop::collection::vec(prop::sample::select(vec![
                "data", ":", " ", "\n", "\r", "\r\n", "\n\n", "x", "é", "日", "\u{feff}", "data: {\"a\":1}\n\n", ": note\n",
            ]), 0..40),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = parts.concat().into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let single: Vec<&[u8]> = stream.chunks(1).collect();
            let whole = parse(&[&stream]);
            prop_assert_eq!(&parse(&pieces), &whole);
            prop_assert_eq!(&parse(&single), &whole);
        }

        /// Any bytes are accepted.
        #[test]
        fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&[&bytes]);
        }
    }
}
