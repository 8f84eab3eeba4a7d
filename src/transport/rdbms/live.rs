//! The servers that tests use where they find them.

use sqlx::Connection;

/// A connection to the server that this environment variable names, or to the usual one. None where there is none, and
/// the test is to be skipped.
pub(crate) async fn connect<C: Connection>(variable: &str, usual: &str) -> Option<C> {
    let url = std::env::var(variable).unwrap_or_else(|_| usual.to_owned());
    match C::connect(&url).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            let must_run = std::env::var("MINUTELY_TEST_NO_SKIP").is_ok_and(|value| value == "1");
            assert!(!must_run, "skipped: no server ({error}); {variable} says where one is");
            println!("skipped: no server ({error}); {variable} says where one is");
            None
        }
    }
}
