//! The capability that only tables on a server have: naming the server, and the number of connections that it allows.

use async_trait::async_trait;
use sqlx::SqlSafeStr;

use super::super::{Connecting, TransportError};
use super::Table;
use super::dialect::Dialect;
use crate::connection::sql::{Session, SharedConnection, SqlConnection, Statement};

#[async_trait]
impl<S: Session, D: Dialect<Connection = SharedConnection<S>>> Connecting for Table<D> {
    fn server(&self) -> &str {
        self.connection.server()
    }

    fn connection(&self) -> &str {
        self.connection.location()
    }

    async fn limit(&self) -> Result<Option<u64>, TransportError> {
        let action = "asking for the limit of connections";
        let query = Statement::of(&S::CONNECTION_LIMIT.into_sql_str());
        let result = self.connection.perform(query.into()).await;
        let rows = result.map_err(|error| self.error(action, error))?;
        let limit = rows.first().map(|row| row.number(0)).transpose();
        Ok(limit.map_err(|error| self.unreadable(action, error))?.and_then(|limit| u64::try_from(limit).ok()))
    }

    fn close_idle(&self) {
        self.connection.close_idle();
    }
}
