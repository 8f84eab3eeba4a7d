//! The servers of those tests that need one: they are ignored unless they are asked for, as cargo's own harness cannot be
//! told by a test that there was none.

use sqlx::Connection;

/// A connection to the server that this environment variable names, or to the usual one.
pub(crate) async fn connect<C: Connection>(variable: &str, usual: &str) -> C {
    let url = std::env::var(variable).unwrap_or_else(|_| usual.to_owned());
    C::connect(&url).await.unwrap_or_else(|error| panic!("no server ({error}); {variable} says where one is"))
}
