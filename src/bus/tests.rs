mod checked;
mod several;
mod together;

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::*;
use crate::cache::{Cache, MemoryStore};
use crate::config::BusesConfig;
use crate::events::Listeners;
use crate::handler::{HandlerError, HandlerOptions, Handlers, Places, Verdict, from_fn};
use crate::message::{
    DelayStamp, Encoded, HandledNowStamp, HandledStamp, ReceivedStamp, SentStamp, TransportNamesStamp,
};
use crate::transport::{
    Counting, InMemory, Receiver, Sender, Sent, SyncTransport, Transport, TransportError, Transports,
};

#[derive(Serialize, Deserialize)]
struct Mail {
    to: String,
}

impl Message for Mail {
    const TYPE: &'static str = r"App\Mail";
    const INTERFACES: &'static [&'static str] = &[r"App\Async"];
}

fn mail() -> Mail {
    Mail { to: "ada@example.com".into() }
}

/// What was called, in order.
type Calls = Arc<Mutex<Vec<String>>>;

/// A store that is down.
struct Down;

#[async_trait]
impl Sender for Down {
    async fn send(&self, _message: &Encoded, _delay: Duration) -> Result<Sent, TransportError> {
        let source = "connection refused".into();
        Err(TransportError::Store { transport: "down".into(), action: "sending", source })
    }
}

/// A bus with the transports `one`, `two` (queues), `now`, `soon` (synchronous) and `down`.
struct Scene {
    calls: Calls,
    handlers: Handlers,
    middleware: Vec<Arc<dyn Middleware>>,
    buses: BusesConfig,
    one: InMemory,
    two: InMemory,
}

impl Scene {
    fn new() -> Self {
        Self {
            calls: Calls::default(),
            handlers: Handlers::default(),
            middleware: Vec::new(),
            buses: BusesConfig::default(),
            one: InMemory::new("one"),
            two: InMemory::new("two"),
        }
    }

    /// A handler that fails if it is given an error.
    fn handler(
        mut self,
        pattern: &str,
        name: &str,
        outcome: impl Fn() -> Result<(), HandlerError> + Send + Sync + 'static,
    ) -> Self {
        let (calls, called) = (Arc::clone(&self.calls), name.to_owned());
        let handler = from_fn(move |message: serde_json::Value| {
            calls.lock().unwrap().push(called.clone());
            let outcome = outcome();
            async move {
                drop(message);
                outcome
            }
        });
        self.handlers.register(pattern, HandlerOptions::new(), Arc::new(handler.named(name)));
        self
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn bus(&self, routing: &[(&str, &[&str])]) -> Bus {
        self.bus_with(routing, self.one.clone())
    }

    /// With another transport in the place of `one`.
    fn bus_with(&self, routing: &[(&str, &[&str])], one: impl Into<Transport>) -> Bus {
        let mut transports = Transports::default();
        transports.insert(one);
        transports.insert(self.two.clone());
        transports.insert(SyncTransport::new("now"));
        transports.insert(SyncTransport::new("soon"));
        transports.insert(Transport::sender("down", Arc::new(Down)));
        let routing: IndexMap<String, Vec<String>> = routing
            .iter()
            .map(|(pattern, names)| ((*pattern).to_owned(), names.iter().map(|name| (*name).to_owned()).collect()))
            .collect();
        let parts = Parts {
            routing: Arc::new(Routing::new(routing)),
            transports: Arc::new(transports),
            handlers: Arc::new(self.handlers.clone()),
            listeners: Listeners::default(),
            cache: Arc::new(Cache::new(Arc::new(MemoryStore::default()))),
            checks: Arc::default(),
            own: self.middleware.clone(),
            named: IndexMap::new(),
        };
        let mut problems = Vec::new();
        let bus = Bus::of(&self.buses, &parts, &mut problems);
        assert_eq!(problems, []);
        bus
    }
}

impl Message for serde_json::Value {
    const TYPE: &'static str = "anything";
}

async fn pending(transport: &InMemory) -> u64 {
    transport.pending(100).await.unwrap()
}

fn received(message: &impl Message) -> Envelope {
    Envelope::new(message).unwrap().with(&ReceivedStamp { transport_name: "one".into() })
}

fn failed(error: DispatchError) -> HandlingFailed {
    match error {
        DispatchError::Handling(failed) => *failed,
        other => panic!("{other}"),
    }
}

fn handled_by(envelope: &Envelope) -> Vec<String> {
    envelope.all::<HandledStamp>().into_iter().map(|stamp| stamp.handler_name).collect()
}

#[tokio::test]
async fn a_routed_message_is_queued_and_not_handled() {
    let scene = Scene::new().handler(Mail::TYPE, "send", || Ok(()));
    let envelope = scene.bus(&[(r"App\Async", &["one", "two"])]).dispatch(&mail()).await.unwrap().into_envelope();
    let sent = envelope.all::<SentStamp>();
    assert_eq!(sent.iter().map(|stamp| stamp.queued_on.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert!(scene.calls().is_empty());
    for queue in [&scene.one, &scene.two] {
        let messages = queue.receive(10).await.unwrap();
        let [message] = messages.as_slice() else { panic!("{messages:?}") };
        let envelope = Envelope::decode(message.message.as_ref().unwrap()).unwrap();
        assert_eq!(envelope.last::<BusNameStamp>().unwrap().bus_name, "messenger.bus.default");
        assert!(envelope.last::<SentStamp>().is_none());
    }
}

#[tokio::test]
async fn a_message_that_is_not_routed_is_handled_at_once() {
    let scene = Scene::new().handler(Mail::TYPE, "send", || Ok(())).handler("*", "log", || Ok(()));
    let envelope = scene.bus(&[("Other", &["one"])]).dispatch(&mail()).await.unwrap().into_envelope();
    assert_eq!(scene.calls(), ["send", "log"]);
    assert_eq!(handled_by(&envelope), ["send", "log"]);
    let stamp = envelope.last::<HandledNowStamp>().unwrap();
    assert_eq!((stamp.transport_name, stamp.reason.as_str()), (None, r#""App\Mail" is not routed to any transport"#));
}

#[tokio::test]
async fn a_stamp_overrides_the_routing() {
    let scene = Scene::new();
    let names = TransportNamesStamp { transport_names: vec!["two".into(), "two".into()] };
    let envelope = Envelope::new(&mail()).unwrap().with(&names).with(&DelayStamp { delay: 60_000 });
    scene.bus(&[("*", &["one"])]).dispatch_envelope(envelope).await.unwrap();
    let counts = scene.two.counts(10).await.unwrap();
    assert_eq!((pending(&scene.one).await, counts.pending, counts.delayed), (0, 0, 1));
}

#[tokio::test]
async fn the_stamp_that_names_transports_is_not_sent() {
    let scene = Scene::new();
    let names = TransportNamesStamp { transport_names: vec!["two".into()] };
    let envelope = Envelope::new(&mail()).unwrap().with(&names);
    let sent = scene.bus(&[]).dispatch_envelope(envelope).await.unwrap().into_envelope();
    assert_eq!(sent.last::<TransportNamesStamp>(), Some(names), "whoever dispatched it still sees it");
    let received = scene.two.receive(1).await.unwrap();
    let headers = &received[0].message.as_ref().unwrap().headers;
    assert!(!headers.names().any(|name| name.contains("TransportNames")), "{headers:?}");
}

#[tokio::test]
async fn a_message_for_several_synchronous_transports_is_handled_once() {
    let scene = Scene::new().handler(Mail::TYPE, "send", || Err(HandlerError::failed("no")));
    let bus = scene.bus(&[(Mail::TYPE, &["now", "one", "soon"])]);
    let envelope = Envelope::new(&mail()).unwrap().with(&DelayStamp { delay: 60_000 });
    let failed = failed(bus.dispatch_envelope(envelope).await.unwrap_err());
    assert_eq!(scene.calls(), ["send"]);
    assert_eq!(scene.one.counts(10).await.unwrap().delayed, 1, "it is queued in spite of the failure");
    assert_eq!(failed.envelope.all::<HandledNowStamp>().len(), 2);
}

#[tokio::test]
async fn an_error_of_one_transport_names_those_that_have_queued_the_message() {
    let scene = Scene::new().handler(Mail::TYPE, "send", || Ok(()));
    let bus = scene.bus(&[(Mail::TYPE, &["one", "now", "down", "two"])]);
    let error = bus.dispatch(&mail()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"transport "down": sending failed: connection refused; the message is queued on one as 1 all the same"#
    );
    assert_eq!((pending(&scene.one).await, pending(&scene.two).await), (1, 0));
    assert!(scene.calls().is_empty());
}

#[tokio::test]
async fn an_unknown_transport_is_an_error_before_anything_is_sent() {
    let scene = Scene::new();
    let error = scene.bus(&[(Mail::TYPE, &["one", "nope"])]).dispatch(&mail()).await.unwrap_err();
    assert_eq!(error.to_string(), r#"there is no transport "nope""#);
    assert_eq!(pending(&scene.one).await, 0);
}

#[tokio::test]
async fn a_received_message_is_handled_and_not_sent() {
    let scene = Scene::new().handler(Mail::TYPE, "send", || Ok(()));
    let envelope = scene
        .bus(&[(Mail::TYPE, &["one"])])
        .handle_received(received(&mail()), CancellationToken::default(), Places::new(1).take())
        .await
        .unwrap();
    assert_eq!((scene.calls(), pending(&scene.one).await), (vec!["send".to_owned()], 0));
    assert!(envelope.last::<HandledNowStamp>().is_none());
}

#[tokio::test]
async fn a_retry_runs_only_the_handlers_that_have_not_succeeded() {
    let scene = Scene::new()
        .handler(Mail::TYPE, "first", || Err(HandlerError::failed("no")))
        .handler(Mail::TYPE, "second", || Ok(()))
        .handler("*", "third", || panic!("at {}", "the disco"))
        .handler("*", "fourth", || Ok(()));
    let bus = scene.bus(&[]);
    let failed_once = failed(
        bus.handle_received(received(&mail()), CancellationToken::default(), Places::new(1).take()).await.unwrap_err(),
    );
    assert_eq!(scene.calls(), ["first", "second", "third", "fourth"]);
    assert_eq!(handled_by(&failed_once.envelope), ["second", "fourth"]);
    assert_eq!(failed_once.message(), "first: no\nthird: the handler panicked: at the disco");
    assert_eq!(failed_once.verdict(), Verdict::Retry);

    let wire = failed_once.envelope.encode();
    let again = Envelope::decode(&wire).unwrap().with(&ReceivedStamp { transport_name: "one".into() });
    bus.handle_received(again, CancellationToken::default(), Places::new(1).take()).await.unwrap_err();
    assert_eq!(scene.calls(), ["first", "third"]);
}

#[tokio::test]
async fn every_success_is_remembered_among_many_handlers() {
    let mut scene = Scene::new().handler(Mail::TYPE, "bad", || Err(HandlerError::failed("no")));
    for number in 0..25 {
        scene = scene.handler(Mail::TYPE, &format!("good {number}"), || Ok(()));
    }
    let bus = scene.bus(&[]);
    let failed_once = failed(
        bus.handle_received(received(&mail()), CancellationToken::default(), Places::new(1).take()).await.unwrap_err(),
    );
    scene.calls();
    bus.handle_received(failed_once.envelope, CancellationToken::default(), Places::new(1).take()).await.unwrap_err();
    assert_eq!(scene.calls(), ["bad"]);
}

#[tokio::test]
async fn a_message_whose_handlers_have_all_succeeded_is_done() {
    let scene = Scene::new().handler(Mail::TYPE, "send", || Ok(()));
    let stamp = HandledStamp { result: serde_json::Value::Null, handler_name: "send".into() };
    scene
        .bus(&[])
        .handle_received(received(&mail()).with(&stamp), CancellationToken::default(), Places::new(1).take())
        .await
        .unwrap();
    assert!(scene.calls().is_empty());
}

#[tokio::test]
async fn the_error_for_a_missing_handler_suggests_a_similar_type() {
    let scene = Scene::new().handler(r"App\Mial", "send", || Ok(())).handler(r"Other\*", "other", || Ok(()));
    let error = scene.bus(&[]).dispatch(&mail()).await.unwrap_err();
    assert_eq!(error.to_string(), r#"there is no handler for messages of type "App\Mail", did you mean "App\Mial"?"#);
}

/// Records the messages that pass.
struct Watch(&'static str, Calls);

#[async_trait]
impl Middleware for Watch {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        self.1.lock().unwrap().push(format!("{} before", self.0));
        let result = next.run(envelope).await;
        self.1.lock().unwrap().push(format!("{} after", self.0));
        result
    }
}

/// Refuses every message.
struct Refuse(fn() -> DispatchError);

#[async_trait]
impl Middleware for Refuse {
    async fn handle(&self, _envelope: Envelope, _next: Next) -> Result<Envelope, DispatchError> {
        Err((self.0)())
    }
}

#[tokio::test]
async fn middleware_runs_around_sending_and_handling_in_its_order() {
    let mut scene = Scene::new().handler(Mail::TYPE, "send", || Ok(()));
    scene.middleware =
        vec![Arc::new(Watch("outer", Arc::clone(&scene.calls))), Arc::new(Watch("inner", Arc::clone(&scene.calls)))];
    scene.bus(&[]).dispatch(&mail()).await.unwrap();
    assert_eq!(scene.calls(), ["outer before", "inner before", "send", "inner after", "outer after"]);
    scene.bus(&[("*", &["one"])]).dispatch(&mail()).await.unwrap();
    assert_eq!(scene.calls(), ["outer before", "inner before", "inner after", "outer after"]);
}

#[tokio::test]
async fn a_message_that_middleware_refuses_or_panics_on_is_not_handled() {
    let mut scene = Scene::new().handler(Mail::TYPE, "send", || Ok(()));
    scene.middleware = vec![Arc::new(Refuse(|| DispatchError::Refused("not on Sundays".into())))];
    let error = scene.bus(&[]).dispatch(&mail()).await.unwrap_err();
    assert_eq!(error.to_string(), "not on Sundays");
    scene.middleware = vec![Arc::new(Refuse(|| panic!("oh")))];
    let error = scene
        .bus(&[])
        .handle_received(received(&mail()), CancellationToken::default(), Places::new(1).take())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "a middleware panicked: oh");
    assert!(scene.calls().is_empty());
}
