//! `router_context`: the address that links in a message's mails and pages begin with goes on to the messages that its
//! handlers dispatch.

use std::sync::Arc;

use async_trait::async_trait;

use super::{DispatchError, Middleware, Next};
use crate::message::{Envelope, ReceivedStamp, RouterContextStamp};

pub(super) struct RouterContext;

#[async_trait]
impl Middleware for RouterContext {
    async fn handle(&self, mut envelope: Envelope, mut next: Next) -> Result<Envelope, DispatchError> {
        match envelope.last::<RouterContextStamp>() {
            Some(own) => next.scope_mut().router = Some(Arc::new(own)),
            None if envelope.last::<ReceivedStamp>().is_none() => {
                if let Some(context) = &next.scope().router {
                    envelope.add(&**context);
                }
            }
            // Not that of another message.
            None => next.scope_mut().router = None,
        }
        next.run(envelope).await
    }
}
