//! A transaction of a database around the handlers of a message: `transaction(pool)`, and the argument [`Tx`].

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Database, Pool, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{DispatchError, HandlingFailed, Middleware, Next};
use crate::handler::{Argument, HandlerContext, HandlerError};
use crate::message::{Envelope, HandledStamp};

/// The name under which an error of the transaction itself is told, beside the names of handlers.
const NAME: &str = "transaction";

/// Middleware that gives the handlers of a message one transaction, as the argument [`Tx`]. It begins when the first handler
/// asks for it, is committed when all handlers have succeeded, and is rolled back when one fails. Then, or if the commit
/// fails, the retry runs all of them again, because what they have written is gone.
///
/// ```
/// use minutely::App;
/// use minutely::bus::{Tx, transaction};
/// use minutely::handler::HandlerError;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct PlaceOrder { id: i64 }
/// # impl minutely::message::Message for PlaceOrder { const TYPE: &'static str = r"App\Message\PlaceOrder"; }
///
/// async fn place_order(order: PlaceOrder, mut tx: Tx<sqlx::Sqlite>) -> Result<(), HandlerError> {
///     sqlx::query("INSERT INTO orders VALUES (?)").bind(order.id).execute(&mut *tx).await?;
///     Ok(())
/// }
///
/// # fn builder(pool: sqlx::SqlitePool) -> minutely::AppBuilder {
/// App::builder().middleware(transaction(pool)).handle(place_order)
/// # }
/// ```
///
/// A message that the handler dispatches meanwhile is not part of the transaction: dispatch it with
/// [`after_current`](super::Dispatch::after_current), so that it waits for the commit.
pub fn transaction<DB: Database>(pool: Pool<DB>) -> impl Middleware + 'static {
    Transactions { pool }
}

struct Transactions<DB: Database> {
    pool: Pool<DB>,
}

/// The transaction of one message.
struct OfMessage<DB: Database> {
    pool: Pool<DB>,
    state: Arc<Mutex<State<DB>>>,
}

enum State<DB: Database> {
    NotBegun,
    Open(Transaction<'static, DB>),
    /// The message was handled.
    Ended,
}

impl<DB: Database> Clone for OfMessage<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), state: Arc::clone(&self.state) }
    }
}

/// The connection of the transaction that the middleware [`transaction`] has for the message. `&mut *tx` executes queries.
pub struct Tx<DB: Database> {
    // Always `Open`.
    guard: OwnedMutexGuard<State<DB>>,
}

impl<DB: Database> fmt::Debug for Tx<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tx")
    }
}

impl<DB: Database> Deref for Tx<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &*self.guard {
            State::Open(transaction) => transaction,
            State::NotBegun | State::Ended => unreachable!("it is made of an open one, and holds the lock on it"),
        }
    }
}

impl<DB: Database> DerefMut for Tx<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut *self.guard {
            State::Open(transaction) => transaction,
            State::NotBegun | State::Ended => unreachable!("it is made of an open one, and holds the lock on it"),
        }
    }
}

impl<DB: Database> Argument for Tx<DB> {
    const OF_MESSAGE: bool = true;

    async fn extract(context: &HandlerContext<'_>) -> Result<Self, HandlerError> {
        let add = "add the middleware `bus::transaction(pool)` with a pool of this database";
        let of_message = context.extension::<OfMessage<DB>>();
        let of_message = of_message.ok_or_else(|| HandlerError::failed(format!("there is no transaction: {add}")))?;
        // Handlers run one after the other.
        let guard = Arc::clone(&of_message.state).try_lock_owned();
        let mut guard = guard.map_err(|_| HandlerError::failed("another handler still holds the transaction"))?;
        match &*guard {
            State::NotBegun => *guard = State::Open(of_message.pool.begin().await?),
            State::Open(_) => {}
            State::Ended => return Err(HandlerError::failed("the transaction has ended")),
        }
        Ok(Self { guard })
    }
}

#[async_trait]
impl<DB: Database> Middleware for Transactions<DB> {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let state = Arc::new(Mutex::new(State::NotBegun));
        let of_message = OfMessage { pool: self.pool.clone(), state: Arc::clone(&state) };
        let before = envelope.all::<HandledStamp>();
        let result = next.with_extension(of_message).run(envelope).await;
        let ended = state.try_lock().map(|mut state| std::mem::replace(&mut *state, State::Ended));
        let transaction = match ended {
            Ok(State::NotBegun | State::Ended) => return result,
            Ok(State::Open(transaction)) => Ok(transaction),
            // It is rolled back as soon as that task drops it.
            Err(_) => Err("a task that a handler has started still holds it".to_owned()),
        };
        match (result, transaction) {
            (Ok(envelope), Ok(transaction)) => match transaction.commit().await {
                Ok(()) => Ok(envelope),
                Err(error) => Err(not_committed(envelope, &before, &error.to_string())),
            },
            (Ok(envelope), Err(why)) => Err(not_committed(envelope, &before, &why)),
            (Err(error), transaction) => {
                if let Ok(transaction) = transaction
                    && let Err(error) = transaction.rollback().await
                {
                    tracing::warn!(%error, "a transaction could not be rolled back; the database does it when it notices");
                }
                Err(match error {
                    DispatchError::Handling(mut failed) => {
                        failed.envelope = undone(failed.envelope, &before);
                        DispatchError::Handling(failed)
                    }
                    other => other,
                })
            }
        }
    }
}

fn not_committed(envelope: Envelope, before: &[HandledStamp], why: &str) -> DispatchError {
    let error = HandlerError::failed(format!("the transaction could not be committed: {why}"));
    let failures = vec![(NAME.to_owned(), error)];
    DispatchError::Handling(Box::new(HandlingFailed { envelope: undone(envelope, before), failures }))
}

/// The message as if no handler had succeeded this time.
fn undone(envelope: Envelope, before: &[HandledStamp]) -> Envelope {
    before.iter().fold(envelope.without::<HandledStamp>(), |envelope, stamp| envelope.with(stamp))
}
