//! Many messages that are dispatched at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::super::*;
use super::*;
use crate::message::DeduplicateStamp;
use crate::transport::ToSend;

fn mail_to(n: usize) -> Mail {
    Mail { to: n.to_string() }
}

async fn received_by(queue: &InMemory) -> Vec<String> {
    let received = queue.receive(usize::MAX).await.unwrap();
    let envelopes = received.iter().map(|one| Envelope::decode(one.message.as_ref().unwrap()).unwrap());
    envelopes.map(|envelope| envelope.message::<Mail>().unwrap().to).collect()
}

/// Refuses every third message, and waits before the others, the first ones longer.
struct Uneven;

#[async_trait]
impl Middleware for Uneven {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        if envelope.last::<ReceivedStamp>().is_some() {
            return next.run(envelope).await;
        }
        let n: usize = envelope.message::<Mail>().map_err(DispatchError::Unwritable)?.to.parse().unwrap_or(0);
        if n.is_multiple_of(3) {
            return Err(DispatchError::Refused(format!("not {n}")));
        }
        tokio::time::sleep(Duration::from_secs(100_u64.saturating_sub(n as u64))).await;
        next.run(envelope).await
    }
}

#[tokio::test(start_paused = true)]
async fn each_message_has_a_result_of_its_own_and_they_are_sent_in_their_order() {
    let mut scene = Scene::new();
    scene.middleware = vec![Arc::new(Uneven)];
    let bus = scene.bus(&[("*", &["one"])]);
    let mails: Vec<Mail> = (0..30).map(mail_to).collect();
    let results = bus.dispatch_all(&mails).await;
    assert_eq!(results.len(), 30);
    for (n, result) in results.iter().enumerate() {
        match result {
            Err(error) => assert_eq!((n % 3, error.to_string()), (0, format!("not {n}"))),
            Ok(dispatched) => assert_eq!((dispatched.queued().len(), dispatched.is_handled()), (1, false), "{n}"),
        }
    }
    let expected: Vec<String> = (0..30).filter(|n| n % 3 != 0).map(|n| n.to_string()).collect();
    assert_eq!(received_by(&scene.one).await, expected);
}

#[tokio::test]
async fn an_error_of_a_transport_is_that_of_the_messages_for_it() {
    let scene = Scene::new().handler(Mail::TYPE, "send", || Ok(()));
    let bus = scene.bus(&[("*", &["one"])]);
    let to = |names: &[&str]| bus.dispatch(&mail()).to(names.iter().copied());
    let all = [to(&["one"]), to(&["one", "down", "two"]), to(&["nope"]), to(&["now"]), to(&["two", "one"])];
    let results = all.into_iter().collect::<DispatchAll>().await;
    let queued = |n: usize| -> Vec<String> {
        let queued = results[n].as_ref().unwrap().queued();
        queued.into_iter().map(|queued| queued.queued_on).collect()
    };
    assert_eq!((queued(0), queued(4)), (vec!["one".to_owned()], vec!["two".to_owned(), "one".to_owned()]));
    let Err(DispatchError::Sending { sent, .. }) = &results[1] else { panic!("{:?}", results[1]) };
    assert_eq!(sent.len(), 1, "one has it nevertheless");
    assert_eq!(results[2].as_ref().unwrap_err().to_string(), r#"there is no transport "nope""#);
    assert!(results[3].as_ref().unwrap().is_handled());
    assert_eq!(scene.calls(), ["send"]);
    assert_eq!((pending(&scene.one).await, pending(&scene.two).await), (3, 1));
}

/// Counts how often and with how many messages it is called.
struct Counted(InMemory, Arc<Mutex<Vec<usize>>>);

#[async_trait]
impl Sender for Counted {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        self.1.lock().unwrap().push(1);
        self.0.send(message, delay).await
    }

    async fn send_all(&self, messages: &[ToSend]) -> Vec<Result<Sent, TransportError>> {
        self.1.lock().unwrap().push(messages.len());
        self.0.send_all(messages).await
    }
}

#[tokio::test]
async fn messages_are_stored_in_few_steps_of_a_bounded_size() {
    let scene = Scene::new();
    let steps = Arc::default();
    let counted = Transport::sender("one", Arc::new(Counted(scene.one.clone(), Arc::clone(&steps))));
    let bus = scene.bus_with(&[("*", &["one"])], counted);
    let mails: Vec<Mail> = (0..5000).map(mail_to).collect();
    assert!(bus.dispatch_all(&mails).await.iter().all(Result::is_ok));
    let steps = steps.lock().unwrap().clone();
    assert_eq!(steps.iter().sum::<usize>(), 5000);
    assert!(steps.len() <= 10 && steps.iter().all(|step| *step <= 1024), "{steps:?}");
    assert!(received_by(&scene.one).await.into_iter().eq((0..5000).map(|n| n.to_string())));
}

/// Lets only so many messages pass at a time.
struct Narrow(Semaphore);

#[async_trait]
impl Middleware for Narrow {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let _permit = self.0.acquire().await.map_err(|error| DispatchError::Refused(error.to_string()))?;
        next.run(envelope).await
    }
}

#[tokio::test]
async fn a_middleware_that_lets_few_messages_pass_holds_nothing_up() {
    let mut scene = Scene::new();
    scene.middleware = vec![Arc::new(Narrow(Semaphore::new(3)))];
    let bus = scene.bus(&[("*", &["one"])]);
    let mails: Vec<Mail> = (0..20).map(mail_to).collect();
    let results = tokio::time::timeout(Duration::from_secs(60), bus.dispatch_all(&mails).into_future()).await;
    assert!(results.expect("each waits for those before it, and no longer").iter().all(Result::is_ok));
    assert!(received_by(&scene.one).await.into_iter().eq((0..20).map(|n| n.to_string())));
}

#[tokio::test(start_paused = true)]
async fn messages_that_are_handled_at_once_are_handled_one_after_the_other() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut scene = Scene::new();
    let counters = (Arc::clone(&running), Arc::clone(&most));
    let handler = crate::handler::from_fn(move |_: Mail| {
        let (running, most) = counters.clone();
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            running.fetch_sub(1, Ordering::SeqCst);
        }
    });
    scene.handlers.register(Mail::TYPE, HandlerOptions::new(), Arc::new(handler.named("slow")));
    let bus = scene.bus(&[("*", &["now"])]);
    let mails: Vec<Mail> = (0..10).map(mail_to).collect();
    let results = bus.dispatch_all(&mails).each(|one| one.to(["now", "one"])).await;
    assert!(results.iter().all(|result| result.as_ref().is_ok_and(Dispatched::is_handled)));
    assert_eq!((most.load(Ordering::SeqCst), pending(&scene.one).await), (1, 10));
    let results = scene.bus(&[]).dispatch_all(&mails).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(most.load(Ordering::SeqCst), 1, "also where they are not routed");
}

#[tokio::test]
async fn a_message_with_a_key_that_is_pending_is_dropped_from_many() {
    let scene = Scene::new();
    let bus = scene.bus(&[("*", &["one"])]);
    let keyed = |key: &str| bus.dispatch(&mail()).stamp(crate::message::DeduplicateStamp::new(key));
    let results = [keyed("a"), keyed("b"), keyed("a")].into_iter().collect::<DispatchAll>().await;
    let dropped: Vec<bool> = results.iter().map(|result| result.as_ref().unwrap().is_duplicate()).collect();
    assert_eq!((dropped, pending(&scene.one).await), (vec![false, false, true], 2));
}

#[tokio::test]
async fn nothing_is_dispatched_of_nothing() {
    let scene = Scene::new();
    assert!(scene.bus(&[]).dispatch_all::<Mail>(&[]).await.is_empty());
}

/// Notes how many messages are stored when the next one comes.
struct Stored(InMemory, std::sync::Mutex<Vec<u64>>);

#[async_trait]
impl Middleware for Stored {
    async fn handle(&self, envelope: Envelope, next: Next) -> Result<Envelope, DispatchError> {
        let stored = self.0.pending(u64::MAX).await.unwrap();
        self.1.lock().unwrap().push(stored);
        next.run(envelope).await
    }
}

#[tokio::test]
async fn a_message_that_claims_a_key_is_stored_before_the_next_one_begins() {
    let mut scene = Scene::new();
    let stored = Arc::new(Stored(scene.one.clone(), std::sync::Mutex::default()));
    scene.middleware = vec![Arc::clone(&stored) as Arc<dyn Middleware>];
    let bus = scene.bus(&[("*", &["one"])]);
    let one = |n: usize| bus.dispatch(&mail_to(n));
    let keyed = |n: usize| one(n).stamp(DeduplicateStamp::new(n.to_string()));
    let results = [one(0), one(1), keyed(2), keyed(3), one(4), one(5)].into_iter().collect::<DispatchAll>().await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(*stored.1.lock().unwrap(), [0, 0, 0, 3, 4, 4]);
    assert_eq!(received_by(&scene.one).await, ["0", "1", "2", "3", "4", "5"]);
}
