//! Writes and reads the part of the protobuf wire format that TensorBoard and W&B logs need (protobuf.dev, "Encoding").
//! A message is a list of fields. Each field is a varint of field number and wire type (0 varint, 1 eight bytes, 2
//! length and bytes, 5 four bytes), followed by the value.

/// A protobuf message that is built field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtoMessage(Vec<u8>);

impl ProtoMessage {
    /// Adds an unsigned integer, a bool or an enum value.
    pub fn varint(mut self, field: u32, n: u64) -> Self {
        self.tag(field, 0);
        varint(&mut self.0, n);
        self
    }

    /// Adds a field of type double.
    pub fn double(mut self, field: u32, x: f64) -> Self {
        self.tag(field, 1);
        self.0.extend(x.to_le_bytes());
        self
    }

    /// Adds a field of type float.
    pub fn float(mut self, field: u32, x: f32) -> Self {
        self.tag(field, 5);
        self.0.extend(x.to_le_bytes());
        self
    }

    /// Adds bytes, a string, a message, or packed numbers.
    pub fn bytes(mut self, field: u32, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.tag(field, 2);
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn tag(&mut self, field: u32, wire: u32) {
        varint(&mut self.0, u64::from(field << 3 | wire));
    }
}

impl AsRef<[u8]> for ProtoMessage {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn varint(to: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

/// Reads the length-delimited fields of a message (strings, bytes, messages) in order, as pairs (field number,
/// bytes). Skips fields of other wire types and stops at the first damaged field.
pub fn length_delimited_fields(message: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = message;
    std::iter::from_fn(move || {
        loop {
            let tag = take_varint(&mut rest)?;
            let length = match tag & 7 {
                0 => {
                    take_varint(&mut rest)?;
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut rest)?,
                5 => 4,
                _ => return None,
            };
            let (value, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            rest = after;
            if tag & 7 == 2 {
                return Some(((tag >> 3) as u32, value));
            }
        }
    })
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_match_the_documentation() {
        // Examples of protobuf.dev, "Encoding": field 1 with the number 150 is 08 96 01; field 2 with "testing" is 12
        // 07 and the text. A field number above 15 takes two bytes.
        assert_eq!(ProtoMessage::default().varint(1, 150).as_ref(), [0x08, 0x96, 0x01]);
        assert_eq!(ProtoMessage::default().bytes(2, "testing").as_ref(), [&[0x12, 0x07][..], b"testing"].concat());
        assert_eq!(ProtoMessage::default().bytes(16, [9]).as_ref(), [0x82, 0x01, 0x01, 9]);
    }

    proptest! {
        /// Length-delimited fields are read back correctly, regardless of other fields between them.
        #[test]
        fn length_delimited_fields_round_trip(all in prop::collection::vec((1u32..300, any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)), 0..9)) {
            let message = all.iter().fold(ProtoMessage::default(), |m, (field, n, bytes)| {
                m.varint(*field, *n).bytes(*field, bytes).double(7, 0.5).float(8, 0.5)
            });
            let want: Vec<(u32, &[u8])> = all.iter().map(|(field, _, bytes)| (*field, &bytes[..])).collect();
            prop_assert_eq!(length_delimited_fields(message.as_ref()).collect::<Vec<_>>(), want);
        }

        /// Checks that no input makes the reader panic.
        #[test]
        fn damaged_message_ends_the_iteration(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(length_delimited_fields(&bytes).map(|(_, value)| value.len()).sum::<usize>() <= bytes.len());
        }
    }
}
