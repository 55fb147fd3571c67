//! Arrow arrays of JSON values.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, StringArray, StructArray, UInt64Array};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field, Fields};
use serde_json::Value;

use super::shape::Shape;

/// The Arrow type of a shape.
pub(super) fn arrow_type(shape: &Shape) -> DataType {
    match shape {
        Shape::Bool => DataType::Boolean,
        Shape::Integer { beyond_i64: false, .. } => DataType::Int64,
        Shape::Integer { beyond_i64: true, .. } => DataType::UInt64,
        Shape::Float => DataType::Float64,
        // A column with only nulls has no type. It is written as text.
        Shape::Null | Shape::Text | Shape::Mixed => DataType::Utf8,
        Shape::List(items) => DataType::List(item_field(items)),
        Shape::Object(fields) => DataType::Struct(struct_fields(fields)),
    }
}

fn item_field(items: &Shape) -> Arc<Field> {
    // The Parquet specification calls the items of a list "element".
    Arc::new(Field::new("element", arrow_type(items), true))
}

fn struct_fields(fields: &[(String, Shape)]) -> Fields {
    fields.iter().map(|(key, shape)| Field::new(key, arrow_type(shape), true)).collect()
}

/// Makes the array of a column's values. A missing value becomes null. All values have the shape `shape`.
pub(super) fn arrow_array(shape: &Shape, values: &[Option<&Value>]) -> ArrayRef {
    let present = || values.iter().map(|value| value.filter(|value| !value.is_null()));
    let is_valid = || NullBuffer::from(present().map(|value| value.is_some()).collect::<Vec<bool>>());
    match shape {
        Shape::Bool => Arc::new(present().map(|v| v.and_then(Value::as_bool)).collect::<BooleanArray>()),
        Shape::Integer { beyond_i64: false, .. } => {
            Arc::new(present().map(|v| v.and_then(Value::as_i64)).collect::<Int64Array>())
        }
        Shape::Integer { beyond_i64: true, .. } => {
            Arc::new(present().map(|v| v.and_then(Value::as_u64)).collect::<UInt64Array>())
        }
        Shape::Float => Arc::new(present().map(|v| v.and_then(Value::as_f64)).collect::<Float64Array>()),
        Shape::Null | Shape::Text => Arc::new(present().map(|v| v.and_then(Value::as_str)).collect::<StringArray>()),
        Shape::Mixed => Arc::new(values.iter().map(|v| v.map(Value::to_string)).collect::<StringArray>()),
        Shape::List(items) => {
            let lists: Vec<&[Value]> =
                present().map(|v| v.and_then(Value::as_array).map_or(&[][..], Vec::as_slice)).collect();
            let all: Vec<Option<&Value>> = lists.iter().flat_map(|list| list.iter().map(Some)).collect();
            let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.len()));
            Arc::new(ListArray::new(item_field(items), offsets, arrow_array(items, &all), Some(is_valid())))
        }
        Shape::Object(fields) => {
            let column = |(key, shape): &(String, Shape)| {
                let values: Vec<Option<&Value>> = present().map(|value| value.and_then(|v| v.get(key))).collect();
                arrow_array(shape, &values)
            };
            let columns = fields.iter().map(column).collect();
            Arc::new(StructArray::new(struct_fields(fields), columns, Some(is_valid())))
        }
    }
}
