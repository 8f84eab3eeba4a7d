//! Keeps a panic in the application's code from ending the process that runs it.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

/// The future's result, or the text of its panic. What the future was working on is not used afterwards.
pub(crate) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| {
        let literal = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = literal.or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "it does not say why".to_owned())
    })
}
