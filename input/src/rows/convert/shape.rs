//! Finds the type that can hold all values of a column, by adding one value after the other.

use serde_json::{Map, Value};

/// The maximum depth of lists and objects that become nested columns. Deeper values are written as JSON text.
const MAX_DEPTH: usize = 16;

/// The type of values. Every type also holds null.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ValueType {
    /// Only null values so far.
    Null,
    Bool,
    /// Integers in the range of i64, or in the range of u64 if `beyond_i64` is true.
    Integer {
        has_negative: bool,
        beyond_i64: bool,
    },
    Float,
    Text,
    List(Box<ValueType>),
    /// Objects that all have the same keys.
    Object(Vec<(String, ValueType)>),
    /// Values without a common type, which are written as JSON text.
    Mixed,
}

impl ValueType {
    /// Extends the type so that it holds `value` too.
    pub(super) fn add(&mut self, value: &Value) {
        self.add_nested(value, 0);
    }

    fn add_nested(&mut self, value: &Value, depth: usize) {
        if depth > MAX_DEPTH {
            *self = Self::Mixed;
        }
        match (&mut *self, value) {
            (Self::Mixed, _) | (_, Value::Null) | (Self::Bool, Value::Bool(_)) | (Self::Text, Value::String(_)) => {}
            (Self::Float, Value::Number(number)) if number.is_f64() => {}
            (Self::Integer { has_negative, beyond_i64 }, Value::Number(number)) if !number.is_f64() => {
                *has_negative |= number.as_i64().is_some_and(|n| n < 0);
                *beyond_i64 |= number.as_i64().is_none();
                if *has_negative && *beyond_i64 {
                    *self = Self::Mixed;
                }
            }
            (Self::List(items), Value::Array(values)) => {
                values.iter().for_each(|value| items.add_nested(value, depth + 1));
                if **items == Self::Mixed {
                    *self = Self::Mixed;
                }
            }
            (Self::Object(fields), Value::Object(values)) => {
                let same_keys = fields.len() == values.len() && fields.iter().all(|(key, _)| values.contains_key(key));
                if same_keys {
                    for (key, value_type) in fields.iter_mut() {
                        value_type.add_nested(&values[key], depth + 1);
                    }
                }
                if !same_keys || fields.iter().any(|(_, value_type)| *value_type == Self::Mixed) {
                    *self = Self::Mixed;
                }
            }
            (Self::Null, _) => *self = Self::of(value, depth),
            _ => *self = Self::Mixed,
        }
    }

    fn of(value: &Value, depth: usize) -> Self {
        let mut value_type = match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Number(number) if number.is_f64() => Self::Float,
            Value::Number(_) => Self::Integer { has_negative: false, beyond_i64: false },
            Value::String(_) => Self::Text,
            Value::Array(_) => Self::List(Box::new(Self::Null)),
            // Parquet does not support structs without fields.
            Value::Object(fields) if fields.is_empty() => Self::Mixed,
            Value::Object(fields) => Self::Object(fields.keys().map(|key| (key.clone(), Self::Null)).collect()),
        };
        if value_type != Self::Null {
            value_type.add_nested(value, depth);
        }
        value_type
    }
}

/// A column of a table.
#[derive(Clone, Debug)]
pub(super) struct InferredColumn {
    pub(super) name: String,
    pub(super) value_type: ValueType,
    /// Whether a row has null in this column.
    has_null: bool,
    /// The number of rows that have this column.
    rows: usize,
    /// Whether some rows do not have this column. If so, null in the Parquet file means that the field is missing.
    pub(super) is_optional: bool,
}

/// The columns of rows, in the order in which they first occur.
#[derive(Debug, Default)]
pub(super) struct ColumnTypes {
    all: Vec<InferredColumn>,
    by_name: std::collections::HashMap<String, usize>,
    rows: usize,
}

impl ColumnTypes {
    pub(super) fn add_row(&mut self, row: &Map<String, Value>) {
        self.rows += 1;
        for (name, value) in row {
            let next = self.all.len();
            let column = *self.by_name.entry(name.clone()).or_insert(next);
            if column == next {
                let (name, value_type) = (name.clone(), ValueType::Null);
                self.all.push(InferredColumn { name, value_type, has_null: false, rows: 0, is_optional: false });
            }
            let column = &mut self.all[column];
            column.rows += 1;
            column.has_null |= value.is_null();
            column.value_type.add(value);
        }
    }

    /// Returns the columns of all rows. In a column with both null and missing values, null is written as JSON text.
    pub(super) fn finish(self) -> Vec<InferredColumn> {
        let rows = self.rows;
        let finish = |mut column: InferredColumn| {
            column.is_optional = column.rows < rows;
            if column.is_optional && column.has_null {
                column.value_type = ValueType::Mixed;
            }
            column
        };
        self.all.into_iter().map(finish).collect()
    }
}
