//! What a column is: its name, type, unit and meaning.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};

/// One column, as defined in `columns.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Whether it may be null.
    pub nullable: bool,
    /// The unit of its values; empty for names and labels.
    pub unit: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// Types that Arrow, Delta and Parquet share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the name says it")]
pub enum Kind {
    Text,
    Int8,
    Int16,
    Int32,
    Int64,
    Float32,
    Boolean,
    /// Microseconds since 1970, UTC.
    Timestamp,
    Binary,
    TextList,
    Int32List,
    Float32List,
    Float64List,
}

impl Kind {
    /// The Arrow type. List items are named `element` and may be null, as the Delta reader returns them.
    pub fn data_type(self) -> DataType {
        let list = |item| DataType::List(Arc::new(Field::new("element", item, true)));
        match self {
            Self::Text => DataType::Utf8,
            Self::Int8 => DataType::Int8,
            Self::Int16 => DataType::Int16,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Boolean => DataType::Boolean,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Binary => DataType::Binary,
            Self::TextList => list(DataType::Utf8),
            Self::Int32List => list(DataType::Int32),
            Self::Float32List => list(DataType::Float32),
            Self::Float64List => list(DataType::Float64),
        }
    }
}
