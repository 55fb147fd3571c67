//! Writes JSON and floats as Python does.

use serde::Serialize;
use serde_json::ser::Formatter;

/// Returns the text of Python's `json.dumps(value, ensure_ascii=False)`.
pub(crate) fn python_json(value: &serde_json::Value) -> String {
    let style = PythonJsonFormatter::new(None, false);
    let mut bytes = Vec::new();
    // Writing a JSON value to memory never fails.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, style));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes JSON as Python's `json.dumps`.
pub(crate) struct PythonJsonFormatter {
    /// The indentation of one level; `None`: everything is on one line.
    indent: Option<String>,
    /// Whether characters outside of ASCII are written as `\uXXXX`.
    ensure_ascii: bool,
    /// The number of open lists and objects.
    level: usize,
    /// Whether the innermost open list or object has an item.
    has_items: bool,
}

type Written = std::io::Result<()>;

impl PythonJsonFormatter {
    pub(crate) fn new(indent: Option<String>, ensure_ascii: bool) -> Self {
        Self { indent, ensure_ascii, level: 0, has_items: false }
    }

    fn open<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> Written {
        self.level += 1;
        self.has_items = false;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> Written {
        self.level -= 1;
        if self.has_items {
            self.new_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn begin_item<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> Written {
        if !first {
            writer.write_all(if self.indent.is_some() { b"," } else { b", " })?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> Written {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.level).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonJsonFormatter {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> Written {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> Written {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> Written {
        self.begin_item(writer, first)
    }

    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, _writer: &mut W) -> Written {
        self.has_items = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> Written {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> Written {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> Written {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> Written {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, _writer: &mut W) -> Written {
        self.has_items = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, value: f64) -> Written {
        writer.write_all(python_float_repr(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, fragment: &str) -> Written {
        if !self.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for c in fragment.chars() {
            match c {
                ' '..='~' => writer.write_all(&[c as u8])?,
                _ => c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }
}

/// Python's `repr` of a float: the shortest digits that parse to the same number. Values below 1e-4, and values from
/// 1e16 on, are written with an exponent of at least two digits.
pub(crate) fn python_float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_string();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{value:?}"),
    }
}
