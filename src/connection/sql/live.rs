//! The servers for tests that need one. These tests are ignored by default, because a test cannot tell cargo's own
//! harness that it was skipped.

use sqlx::Connection;

/// A connection to the server that this environment variable names, or to the default one.
pub(crate) async fn connect<C: Connection>(variable: &str, usual: &str) -> C {
    let url = std::env::var(variable).unwrap_or_else(|_| usual.to_owned());
    C::connect(&url).await.unwrap_or_else(|error| panic!("no server ({error}); {variable} says where one is"))
}
