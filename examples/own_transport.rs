//! A transport of your own: a folder, in which each message is a file.
//!
//! ```text
//! transports:
//!   mail: {dsn: "folder:var/mail", options: {redeliver_timeout: 600}}
//! ```
//!
//! A file waits in `waiting/` under a name that begins with the time at which it is due, and is in `in_flight/` while a
//! consumer has it. A rename is one step for all processes of a host, so each message goes to one consumer.
//!
//! `cargo test --example own_transport` holds it to the contract of all transports.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use minutely::App;
use minutely::config::{Definition, Problem, Setting};
use minutely::message::{Encoded, Headers};
use minutely::transport::{
    Counting, Counts, Factory, FactoryContext, MessageId, Receipt, Received, Receiver, Sender, Sent, Transport,
    TransportError, TransportSpec,
};

fn main() -> std::process::ExitCode {
    minutely::cli::main(App::builder().transport(Arc::new(FolderFactory)))
}

/// An option of its transports: checked, listed by `config schema`, and read by this definition.
const REDELIVER_TIMEOUT: Setting<Duration> =
    Setting::seconds("redeliver_timeout", "3600", "seconds after which a message in flight is pending again");

/// Delays are cut off here, so that the names of files sort by time.
const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Makes the transports of `folder:PATH`.
struct FolderFactory;

impl Factory for FolderFactory {
    fn schemes(&self) -> &'static [&'static str] {
        &["folder"]
    }

    fn options(&self) -> Vec<Definition> {
        vec![REDELIVER_TIMEOUT.definition]
    }

    fn create(&self, spec: &TransportSpec, _context: &FactoryContext) -> Result<Transport, Vec<Problem>> {
        let mut options = spec.options();
        let redeliver_timeout = options.get(&REDELIVER_TIMEOUT);
        let path = spec.path().map_err(|problem| options.push(problem)).unwrap_or_default();
        options.finish()?;
        let folder = Arc::new(Folder { name: spec.name.clone(), path, redeliver_timeout });
        let mut transport = Transport::queue(&spec.name, Arc::clone(&folder));
        // Counting is optional; autoscaling and `status` need it.
        transport.counting = Some(folder);
        Ok(transport)
    }
}

struct Folder {
    name: String,
    path: PathBuf,
    redeliver_timeout: Duration,
}

/// Files are small and local, so the runtime's thread waits for them.
impl Folder {
    /// A folder in this one, which is made when it is first used.
    fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The names in a folder, oldest first.
    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.folder(folder)?)?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Writes a file under another name first: whoever sees it in `waiting/` sees all of it.
    fn write(&self, message: &Encoded, delay: Duration) -> io::Result<MessageId> {
        static SENT: AtomicU64 = AtomicU64::new(0);
        let now = now();
        let due = (now + delay.min(A_CENTURY)).as_nanos();
        let number = SENT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{due:020}.{:020}.{}.{number:020}", now.as_nanos(), std::process::id());
        let unfinished = self.folder("unfinished")?.join(&name);
        let mut file = File::create(&unfinished)?;
        serde_json::to_writer(&file, &message.headers)?;
        file.write_all(b"\n")?;
        file.write_all(&message.body)?;
        file.sync_all()?;
        let waiting = self.folder("waiting")?;
        fs::rename(unfinished, waiting.join(&name))?;
        // The new name survives a crash of the host, too.
        File::open(waiting)?.sync_all()?;
        Ok(MessageId(name))
    }

    fn take(&self, up_to: usize) -> io::Result<Vec<Received>> {
        self.redeliver()?;
        let (waiting, in_flight) = (self.folder("waiting")?, self.folder("in_flight")?);
        let mut taken = Vec::new();
        for name in self.names("waiting")?.into_iter().take_while(|name| is_due(name)) {
            if taken.len() == up_to {
                break;
            }
            let here = in_flight.join(&name);
            match touch(&waiting.join(&name)).and_then(|()| fs::rename(waiting.join(&name), &here)) {
                // Another consumer was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                moved => moved?,
            }
            let message = Ok(read(&fs::read(&here)?)?);
            taken.push(Received { id: MessageId(name), receipt: Receipt::default(), message });
        }
        Ok(taken)
    }

    /// Puts back what has been in flight for too long: its consumer has died.
    fn redeliver(&self) -> io::Result<()> {
        let (waiting, in_flight) = (self.folder("waiting")?, self.folder("in_flight")?);
        for name in self.names("in_flight")? {
            let taken_at = fs::metadata(in_flight.join(&name)).and_then(|metadata| metadata.modified());
            let age = taken_at.ok().and_then(|taken_at| taken_at.elapsed().ok());
            if age.is_some_and(|age| age >= self.redeliver_timeout) {
                let _ = fs::rename(in_flight.join(&name), waiting.join(&name));
            }
        }
        Ok(())
    }

    /// What has been in flight for too long is pending, whether a consumer has asked since or not.
    fn count(&self, cap: u64) -> io::Result<Counts> {
        self.redeliver()?;
        let (due, delayed): (Vec<_>, Vec<_>) = self.names("waiting")?.into_iter().partition(|name| is_due(name));
        let capped = |names: &[String]| cap.min(names.len() as u64);
        let in_flight = self.names("in_flight")?;
        Ok(Counts { pending: capped(&due), delayed: capped(&delayed), in_flight: capped(&in_flight) })
    }

    fn remove(&self, ids: &[MessageId]) -> io::Result<()> {
        let in_flight = self.folder("in_flight")?;
        // What is no name of ours, or is gone, is passed over.
        for id in ids.iter().filter(|id| id.0.contains('.') && !id.0.contains('/')) {
            match fs::remove_file(in_flight.join(&id.0)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    fn error(&self, action: &'static str) -> impl FnOnce(io::Error) -> TransportError {
        let transport = self.name.clone();
        move |source| TransportError::Store { transport, action, source: source.into() }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn is_due(name: &str) -> bool {
    name.split('.').next().and_then(|due| due.parse().ok()).is_some_and(|due: u128| due <= now().as_nanos())
}

/// Notes when a message was taken.
fn touch(file: &Path) -> io::Result<()> {
    File::open(file)?.set_modified(SystemTime::now())
}

fn read(content: &[u8]) -> io::Result<Encoded> {
    let end = content.iter().position(|byte| *byte == b'\n').ok_or(ErrorKind::InvalidData)?;
    let headers: Headers = serde_json::from_slice(&content[..end])?;
    Ok(Encoded { body: content[end + 1..].to_vec().into(), headers })
}

#[async_trait]
impl Sender for Folder {
    async fn send(&self, message: &Encoded, delay: Duration) -> Result<Sent, TransportError> {
        let id = self.write(message, delay).map_err(self.error("sending"))?;
        Ok(Sent::Queued { transport: self.name.clone(), id, reason: None })
    }
}

#[async_trait]
impl Receiver for Folder {
    async fn receive(&self, up_to: usize) -> Result<Vec<Received>, TransportError> {
        self.take(up_to).map_err(self.error("receiving"))
    }

    async fn ack(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.remove(ids).map_err(self.error("acknowledging"))
    }

    async fn reject(&self, ids: &[MessageId]) -> Result<(), TransportError> {
        self.remove(ids).map_err(self.error("rejecting"))
    }
}

#[async_trait]
impl Counting for Folder {
    async fn pending(&self, cap: u64) -> Result<u64, TransportError> {
        Ok(self.counts(cap).await?.pending)
    }

    async fn counts(&self, cap: u64) -> Result<Counts, TransportError> {
        self.count(cap).map_err(self.error("counting"))
    }
}

#[cfg(test)]
mod tests {
    use minutely::testing::conformance;

    use super::*;

    #[test]
    fn a_dsn_without_a_folder_is_refused() {
        for (dsn, expected) in [
            ("folder:", "it has no path: write folder:relative/path or folder:///absolute/path"),
            ("folder://var/mail", "\"var\" stands where a host stands"),
        ] {
            let app = App::builder().transport(Arc::new(FolderFactory));
            let error = app
                .config_text(format!("transports: {{mail: \"{dsn}\"}}"))
                .build()
                .err()
                .map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(expected)), "{error:?}");
        }
    }

    minutely::conformance!(
        folder,
        [counting, stable_ids, full_batches, header_order, binary_bodies, any_delay, redelivery],
        |dir, queue, options| conformance::open(
            Arc::new(FolderFactory),
            dir,
            queue,
            &format!("folder:{queue}"),
            options
        )
    );
}
