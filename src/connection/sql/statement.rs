//! SQL with its arguments, and the rows that it returns, in a form that does not depend on the server.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// SQL made only of constants and quoted names.
pub(crate) fn sql(text: impl Into<Arc<str>>) -> SqlStr {
    // Shared, because it is copied for every request.
    AssertSqlSafe(text.into()).into_sql_str()
}

/// SQL with its arguments.
#[derive(Clone)]
pub(crate) struct Statement {
    pub(crate) sql: SqlStr,
    pub(crate) arguments: Vec<Value>,
}

/// A value: an argument, or a field of a row.
#[derive(Clone)]
pub(crate) enum Value {
    Null,
    Number(i64),
    /// An array, for PostgreSQL. SQLite takes it as JSON.
    Numbers(Vec<i64>),
    Text(String),
    /// An array, for PostgreSQL.
    Texts(Vec<String>),
    /// Text as received. May not be UTF-8.
    Bytes(Vec<u8>),
}

/// A row of fields, in the statement's order.
pub(crate) struct Row(Vec<Value>);

impl Statement {
    /// A statement without arguments yet.
    pub(crate) fn of(sql: &SqlStr) -> Self {
        Self { sql: sql.clone(), arguments: Vec::new() }
    }

    /// Adds the next argument.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.arguments.push(value.into());
        self
    }
}

impl Value {
    /// What was made of a text.
    #[cfg(feature = "postgres")]
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            _ => unreachable!("asked only of a value that was made of a text"),
        }
    }

    /// The length of a text in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Texts(texts) => texts.iter().map(String::len).sum(),
            Self::Null | Self::Number(_) | Self::Numbers(_) => 0,
        }
    }
}

impl Row {
    /// A row of these fields.
    pub(crate) fn of(fields: Vec<Value>) -> Self {
        Self(fields)
    }

    /// Reads a field as a number, or a boolean as 0 or 1.
    pub(crate) fn number(&self, field: usize) -> Result<i64, sqlx::Error> {
        match self.field(field)? {
            Value::Number(number) => Ok(*number),
            _ => Err(unexpected(field, "a whole number")),
        }
    }

    /// Takes the text of a field. NULL is empty.
    pub(crate) fn take_text(&mut self, field: usize) -> Result<Vec<u8>, sqlx::Error> {
        self.field(field)?;
        match std::mem::replace(&mut self.0[field], Value::Null) {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Text(text) => Ok(text.into_bytes()),
            Value::Null => Ok(Vec::new()),
            Value::Number(_) | Value::Numbers(_) | Value::Texts(_) => Err(unexpected(field, "text")),
        }
    }

    fn field(&self, field: usize) -> Result<&Value, sqlx::Error> {
        self.0.get(field).ok_or(sqlx::Error::ColumnIndexOutOfBounds { index: field, len: self.0.len() })
    }
}

fn unexpected(field: usize, wanted: &str) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: field.to_string(), source: format!("it is not {wanted}").into() }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&[i64]> for Value {
    fn from(numbers: &[i64]) -> Self {
        Self::Numbers(numbers.to_vec())
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Self::Texts(texts)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
