//! The values of Arrow arrays as JSON text.
//!
//! | Arrow | JSON |
//! |---|---|
//! | null | `null` |
//! | bool, integers, text, dictionaries of them | the value |
//! | floats | the number, widened to f64; `null` for NaN and infinities, which JSON does not have |
//! | decimals | text with all digits |
//! | date, time, timestamp, duration | text in ISO 8601; a timestamp with a time zone is written in UTC, with `Z` |
//! | list, fixed-size list | list |
//! | struct | object |
//! | map | object; a key that is not text is written as text |
//! | binary | text in base64; a `data:` URI in a column or field `image`, `images`, `video` or `videos`, or a list there |
//! | image or video | the bytes as a `data:` URI, else the path, else `null` |
//! | image or video with further fields | object; `bytes` is a `data:` URI, or `null` if it is empty |
//! | JSON (text of the extension type `arrow.json`), at any depth | the value that the text is |
//!
//! An image or a video is a struct with a field `bytes` (binary); Hugging Face stores it beside a field `path`
//! (text). Columns of unsupported types are rejected by name when the file is opened ([`check_type`]).

use std::fmt::Write;

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, downcast_integer_array, downcast_temporal_array};
use arrow_buffer::ArrowNativeType;
use arrow_schema::{DataType, Field, Fields, TimeUnit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::media_type::media_type;
use crate::rows::text::whole_number_beyond_64_bits;

/// The extension type of a text that is a JSON value. The Parquet reader gives this type to text of the logical type
/// JSON.
const JSON: &str = "arrow.json";

/// The maximum nesting depth of values.
const MAX_DEPTH: usize = 64;

/// Checks that values of this type can be written as JSON.
///
/// # Errors
/// This type, or a type nested in it, is not supported. The error is Arrow's name of the unsupported type.
pub(crate) fn check_type(data_type: &DataType) -> Result<(), String> {
    check_nested(data_type, 0)
}

fn check_nested(data_type: &DataType, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("with more than {MAX_DEPTH} nested levels"));
    }
    match data_type {
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            check_nested(f.data_type(), depth + 1)
        }
        DataType::Struct(fields) => fields.iter().try_for_each(|f| check_nested(f.data_type(), depth + 1)),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                fields.iter().try_for_each(|f| check_nested(f.data_type(), depth + 1))
            }
            other => Err(other.to_string()),
        },
        DataType::Dictionary(_, values) => check_nested(values, depth + 1),
        DataType::Interval(_)
        | DataType::Union(..)
        | DataType::RunEndEncoded(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_) => Err(data_type.to_string()),
        _ => Ok(()),
    }
}

/// Whether values of this type contain bytes, such as images.
pub(crate) fn has_binary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) | DataType::Map(f, _) => {
            has_binary(f.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|f| has_binary(f.data_type())),
        DataType::Dictionary(_, values) => has_binary(values),
        _ => false,
    }
}

/// The names of columns and fields in which bytes are images and videos.
const MEDIA_NAMES: [&str; 4] = ["image", "images", "video", "videos"];

fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Tells whether values of this type are bytes or lists of bytes.
fn is_bytes_or_list(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => is_bytes_or_list(f.data_type()),
        other => is_bytes(other),
    }
}

/// Returns the index of the field `bytes` if a struct is an image or a video. A field `path` beside it must be text.
/// Both fields may have the type null if all values are null.
fn media_bytes(fields: &Fields) -> Option<usize> {
    let position = |name: &str| fields.iter().position(|f| f.name() == name);
    let (bytes, path) = (position("bytes")?, position("path"));
    let is_text = |index: usize| {
        let text = fields[index].data_type();
        matches!(text, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
    };
    let is_empty_media = *fields[bytes].data_type() == DataType::Null && path.is_some();
    ((is_bytes(fields[bytes].data_type()) || is_empty_media) && path.is_none_or(is_text)).then_some(bytes)
}

/// Appends bytes as a `data:` URI, or null if there are no bytes.
fn write_data_uri(out: &mut Vec<u8>, array: &dyn Array, row: usize) {
    let content = if array.is_valid(row) { bytes_at(array, row) } else { &[] };
    if content.is_empty() {
        out.extend(b"null");
        return;
    }
    out.extend(format!("\"data:{};base64,", media_type(content)).as_bytes());
    out.extend(STANDARD.encode(content).as_bytes());
    out.push(b'"');
}

/// Appends bytes, or a list of bytes, as `data:` URIs.
fn write_media(out: &mut Vec<u8>, array: &dyn Array, row: usize) {
    let items = match array.data_type() {
        _ if array.is_null(row) => return out.extend(b"null"),
        DataType::List(_) => array.as_list::<i32>().value(row),
        DataType::LargeList(_) => array.as_list::<i64>().value(row),
        DataType::FixedSizeList(..) => array.as_fixed_size_list().value(row),
        _ => return write_data_uri(out, array, row),
    };
    out.push(b'[');
    for i in 0..items.len() {
        if i > 0 {
            out.push(b',');
        }
        write_media(out, &items, i);
    }
    out.push(b']');
}

/// Appends `text` as a JSON string.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    // Writing to a vector cannot fail, and any text can be written as a JSON string.
    let _ = serde_json::to_writer(out, text);
}

/// Appends the value of `array` at `row` as JSON. `field` is the array's column in the schema: its type has passed
/// [`check_type`], and its metadata tell which texts in it are JSON.
///
/// # Errors
/// The error says why the value has no JSON form: a date is out of range, a map repeats a key, or a text is marked as
/// JSON but is not JSON.
pub(crate) fn write_value(out: &mut Vec<u8>, field: &Field, array: &dyn Array, row: usize) -> Result<(), String> {
    if field.extension_type_name() == Some(JSON) {
        return write_json_text(out, array, row);
    }
    if MEDIA_NAMES.contains(&field.name().as_str()) && is_bytes_or_list(field.data_type()) {
        write_media(out, array, row);
        return Ok(());
    }
    write_typed(out, field.data_type(), array, row)
}

/// Appends a text of the array that is itself a JSON value.
fn write_json_text(out: &mut Vec<u8>, array: &dyn Array, row: usize) -> Result<(), String> {
    let mut text = Vec::new();
    write_typed(&mut text, array.data_type(), array, row)?;
    let text: Option<String> = serde_json::from_slice(&text)
        .map_err(|_| format!("is marked as JSON, but has the type {} instead of text", array.data_type()))?;
    let text = text.as_deref().unwrap_or("null").trim();
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| format!("is not JSON: {e}"))?;
    if let Some(number) = whole_number_beyond_64_bits(text) {
        let shown: String = number.chars().take(40).collect();
        return Err(format!("has the whole number {shown}, which does not fit in 64 bits"));
    }
    out.extend(text.as_bytes());
    Ok(())
}

fn write_typed(out: &mut Vec<u8>, data_type: &DataType, array: &dyn Array, row: usize) -> Result<(), String> {
    use DataType as T;
    if array.is_null(row) {
        out.extend(b"null");
        return Ok(());
    }
    match data_type {
        T::Null => out.extend(b"null"),
        T::Boolean => out.extend(if array.as_boolean().value(row) { &b"true"[..] } else { b"false" }),
        integer if integer.is_integer() => downcast_integer_array!(
            array => out.extend(array.value(row).to_string().as_bytes()),
            other => return Err(format!("has the type {other}, which is not supported"))
        ),
        T::Float16 => float(out, f64::from(value::<Float16Type>(array, row).to_f32())),
        T::Float32 => float(out, f64::from(value::<Float32Type>(array, row))),
        T::Float64 => float(out, value::<Float64Type>(array, row)),
        T::Utf8 => write_text(out, array.as_string::<i32>().value(row)),
        T::LargeUtf8 => write_text(out, array.as_string::<i64>().value(row)),
        T::Utf8View => write_text(out, array.as_string_view().value(row)),
        T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_) => {
            write_text(out, &STANDARD.encode(bytes_at(array, row)));
        }
        T::Decimal32(..) => write_text(out, &array.as_primitive::<Decimal32Type>().value_as_string(row)),
        T::Decimal64(..) => write_text(out, &array.as_primitive::<Decimal64Type>().value_as_string(row)),
        T::Decimal128(..) => write_text(out, &array.as_primitive::<Decimal128Type>().value_as_string(row)),
        T::Decimal256(..) => write_text(out, &array.as_primitive::<Decimal256Type>().value_as_string(row)),
        T::Date32 | T::Date64 | T::Time32(_) | T::Time64(_) | T::Timestamp(..) | T::Duration(_) => {
            let text = time_text(array, row).ok_or_else(|| format!("is a {} out of range", array.data_type()))?;
            write_text(out, &text);
        }
        T::List(items) => list(out, items, &array.as_list::<i32>().value(row))?,
        T::LargeList(items) => list(out, items, &array.as_list::<i64>().value(row))?,
        T::FixedSizeList(items, _) => list(out, items, &array.as_fixed_size_list().value(row))?,
        T::Struct(fields) => structure(out, fields, array.as_struct().columns(), row)?,
        T::Map(entries, _) => map(out, entries, array.as_map().value(row).columns())?,
        T::Dictionary(_, values) => {
            let dictionary = array.as_any_dictionary();
            let keys = dictionary.keys();
            // A negative key becomes a large number.
            let key = downcast_integer_array!(keys => keys.value(row).as_usize(), _ => usize::MAX);
            if key >= dictionary.values().len() {
                return Err("has an index beyond the end of its dictionary".into());
            }
            write_typed(out, values, dictionary.values(), key)?;
        }
        other => return Err(format!("has the type {other}, which is not supported")),
    }
    Ok(())
}

fn value<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> T::Native {
    array.as_primitive::<T>().value(row)
}

fn float(out: &mut Vec<u8>, value: f64) {
    // JSON has no NaN and no infinity; serde_json writes them as null.
    let _ = serde_json::to_writer(out, &value);
}

fn bytes_at(array: &dyn Array, row: usize) -> &[u8] {
    match array.data_type() {
        DataType::Binary => array.as_binary::<i32>().value(row),
        DataType::LargeBinary => array.as_binary::<i64>().value(row),
        DataType::BinaryView => array.as_binary_view().value(row),
        DataType::FixedSizeBinary(_) => array.as_fixed_size_binary().value(row),
        _ => &[],
    }
}

fn list(out: &mut Vec<u8>, items: &Field, values: &ArrayRef) -> Result<(), String> {
    out.push(b'[');
    for i in 0..values.len() {
        if i > 0 {
            out.push(b',');
        }
        write_value(out, items, values, i)?;
    }
    out.push(b']');
    Ok(())
}

fn structure(out: &mut Vec<u8>, fields: &Fields, columns: &[ArrayRef], row: usize) -> Result<(), String> {
    let bytes = media_bytes(fields);
    // An image or a video without further fields is written as its URI or its path.
    if let Some(bytes) = bytes
        && fields.iter().zip(columns).all(|(field, column)| {
            let is_null = column.is_null(row) || *column.data_type() == DataType::Null;
            ["bytes", "path"].contains(&field.name().as_str()) || is_null
        })
    {
        let path = fields.iter().position(|f| f.name() == "path");
        return match path.filter(|_| columns[bytes].is_null(row) || bytes_at(&columns[bytes], row).is_empty()) {
            Some(path) => write_value(out, &fields[path], &columns[path], row),
            None => {
                write_data_uri(out, &columns[bytes], row);
                Ok(())
            }
        };
    }
    out.push(b'{');
    for (i, (field, column)) in fields.iter().zip(columns).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_text(out, field.name());
        out.push(b':');
        match Some(i) == bytes {
            true => write_data_uri(out, column, row),
            false => write_value(out, field, column, row)?,
        }
    }
    out.push(b'}');
    Ok(())
}

fn map(out: &mut Vec<u8>, entries: &Field, columns: &[ArrayRef]) -> Result<(), String> {
    let (DataType::Struct(fields), [keys, values]) = (entries.data_type(), columns) else {
        return Err("is a map without keys and values".into());
    };
    let mut seen = std::collections::BTreeSet::new();
    out.push(b'{');
    for i in 0..keys.len() {
        let mut key = Vec::new();
        write_typed(&mut key, keys.data_type(), keys, i)?;
        // A JSON text begins with a quote if and only if it is a string.
        if !key.starts_with(b"\"") {
            let text = String::from_utf8_lossy(&key).into_owned();
            key.clear();
            write_text(&mut key, &text);
        }
        if i > 0 {
            out.push(b',');
        }
        out.extend(&key);
        out.push(b':');
        write_value(out, &fields[1], values, i)?;
        if !seen.insert(key) {
            return Err("is a map in which a key occurs twice".into());
        }
    }
    out.push(b'}');
    Ok(())
}

/// Formats a date, time, timestamp or duration in ISO 8601. `None` if it is out of range.
fn time_text(array: &dyn Array, row: usize) -> Option<String> {
    use TimeUnit as U;
    downcast_temporal_array!(
        array => match array.data_type() {
            DataType::Date32 | DataType::Date64 => Some(array.value_as_date(row)?.to_string()),
            DataType::Timestamp(_, zone) => {
                let zone = if zone.is_some() { "Z" } else { "" };
                Some(format!("{}{zone}", array.value_as_datetime(row)?.format("%Y-%m-%dT%H:%M:%S%.f")))
            }
            // `value_as_time` computes the seconds modulo 2³².
            DataType::Time64(unit) if !(0..86_400 * per_second(*unit)).contains(&array.value(row).to_i64()?) => None,
            _ => Some(array.value_as_time(row)?.format("%H:%M:%S%.f").to_string()),
        },
        DataType::Duration(unit) => {
            let count = match unit {
                U::Second => value::<DurationSecondType>(array, row),
                U::Millisecond => value::<DurationMillisecondType>(array, row),
                U::Microsecond => value::<DurationMicrosecondType>(array, row),
                U::Nanosecond => value::<DurationNanosecondType>(array, row),
            };
            let (per_second, magnitude) = (per_second(*unit).unsigned_abs(), count.unsigned_abs());
            let mut text = format!("{}PT{}", if count < 0 { "-" } else { "" }, magnitude / per_second);
            let part = magnitude % per_second;
            if part > 0 {
                let digits = per_second.ilog10() as usize;
                write!(text, ".{part:0digits$}").ok()?;
                text.truncate(text.trim_end_matches('0').len());
            }
            Some(text + "S")
        }
        _ => None,
    )
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}
