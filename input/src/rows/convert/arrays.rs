//! Makes Arrow arrays of JSON values.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, StringArray, StructArray, UInt64Array};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field, Fields};
use serde_json::Value;

use super::shape::ValueType;

/// Returns the Arrow type that stores values of this type.
pub(super) fn arrow_type(value_type: &ValueType) -> DataType {
    match value_type {
        ValueType::Bool => DataType::Boolean,
        ValueType::Integer { beyond_i64: false, .. } => DataType::Int64,
        ValueType::Integer { beyond_i64: true, .. } => DataType::UInt64,
        ValueType::Float => DataType::Float64,
        // A column with only nulls has no type. It is written as text.
        ValueType::Null | ValueType::Text | ValueType::Mixed => DataType::Utf8,
        ValueType::List(items) => DataType::List(item_field(items)),
        ValueType::Object(fields) => DataType::Struct(struct_fields(fields)),
    }
}

fn item_field(items: &ValueType) -> Arc<Field> {
    // The Parquet specification calls the items of a list "element".
    Arc::new(Field::new("element", arrow_type(items), true))
}

fn struct_fields(fields: &[(String, ValueType)]) -> Fields {
    fields.iter().map(|(key, value_type)| Field::new(key, arrow_type(value_type), true)).collect()
}

/// Makes the array of a column's values. A missing value becomes null. All values have the type `value_type`.
pub(super) fn arrow_array(value_type: &ValueType, values: &[Option<&Value>]) -> ArrayRef {
    let present = || values.iter().map(|value| value.filter(|value| !value.is_null()));
    let is_valid = || NullBuffer::from(present().map(|value| value.is_some()).collect::<Vec<bool>>());
    match value_type {
        ValueType::Bool => Arc::new(present().map(|v| v.and_then(Value::as_bool)).collect::<BooleanArray>()),
        ValueType::Integer { beyond_i64: false, .. } => {
            Arc::new(present().map(|v| v.and_then(Value::as_i64)).collect::<Int64Array>())
        }
        ValueType::Integer { beyond_i64: true, .. } => {
            Arc::new(present().map(|v| v.and_then(Value::as_u64)).collect::<UInt64Array>())
        }
        ValueType::Float => Arc::new(present().map(|v| v.and_then(Value::as_f64)).collect::<Float64Array>()),
        ValueType::Null | ValueType::Text => {
            Arc::new(present().map(|v| v.and_then(Value::as_str)).collect::<StringArray>())
        }
        ValueType::Mixed => Arc::new(values.iter().map(|v| v.map(Value::to_string)).collect::<StringArray>()),
        ValueType::List(items) => {
            let lists: Vec<&[Value]> =
                present().map(|v| v.and_then(Value::as_array).map_or(&[][..], Vec::as_slice)).collect();
            let all: Vec<Option<&Value>> = lists.iter().flat_map(|list| list.iter().map(Some)).collect();
            let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.len()));
            Arc::new(ListArray::new(item_field(items), offsets, arrow_array(items, &all), Some(is_valid())))
        }
        ValueType::Object(fields) => {
            let column = |(key, value_type): &(String, ValueType)| {
                let values: Vec<Option<&Value>> = present().map(|value| value.and_then(|v| v.get(key))).collect();
                arrow_array(value_type, &values)
            };
            let columns = fields.iter().map(column).collect();
            Arc::new(StructArray::new(struct_fields(fields), columns, Some(is_valid())))
        }
    }
}
