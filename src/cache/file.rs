//! Facts as small files: one folder per group, one file per fact, replaced by renaming.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::{CLOCK_TOLERANCE, CacheError, Fact, Store};

/// What stays readable in a file name. A dot does not: no fact is hidden, and no name is `..`.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Begins the names of files that are still being written.
const UNFINISHED: &str = ".new-";

/// A file untouched for this long is looked at when its folder is next written to, and removed if it has expired.
const SWEEP_AFTER: Duration = Duration::from_secs(3600);

/// Keeps facts under a folder, which is created (for its owner only) when the first one is put.
#[derive(Debug, Clone)]
pub struct FileStore {
    dir: PathBuf,
}

/// A file's content. Times are milliseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Stored {
    value: String,
    written_at: u64,
    expires_at: u64,
}

impl FileStore {
    /// A store in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, CacheError> {
        let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        result.map_err(|error| CacheError { place: self.place(), action, known: false, source: Box::new(error) })
    }

    fn group_dir(&self, group: &str) -> PathBuf {
        self.dir.join(utf8_percent_encode(group, NAME).to_string())
    }

    /// A fact's folder, and its name there.
    fn place_of(&self, group: &str, key: &str) -> (PathBuf, String) {
        (self.group_dir(group), utf8_percent_encode(key, NAME).to_string())
    }
}

#[async_trait]
impl Store for FileStore {
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        let (dir, name) = self.place_of(group, key);
        let value = value.to_owned();
        self.blocking("written", move || {
            create_dir(&dir)?;
            write(&dir, &name, value, ttl)
        })
        .await
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        let (dir, name) = self.place_of(group, key);
        self.blocking("written", move || remove(&dir.join(name))).await
    }

    async fn list(&self, group: &str) -> Result<Vec<Fact>, CacheError> {
        let dir = self.group_dir(group);
        self.blocking("read", move || {
            let mut facts = facts(&dir, SystemTime::now())?;
            facts.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(facts)
        })
        .await
    }

    async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        let (dir, name) = self.place_of(group, key);
        let owner = owner.to_owned();
        self.blocking("written", move || {
            create_dir(&dir)?;
            let _lock = lock(&dir)?;
            if holder(&dir.join(&name))?.is_some_and(|holder| holder != owner) {
                return Ok(false);
            }
            write(&dir, &name, owner, ttl)?;
            Ok(true)
        })
        .await
    }

    fn place(&self) -> String {
        self.dir.display().to_string()
    }

    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        let (dir, name) = self.place_of(group, key);
        let owner = owner.to_owned();
        self.blocking("written", move || {
            if !dir.exists() {
                return Ok(());
            }
            let _lock = lock(&dir)?;
            let path = dir.join(&name);
            if holder(&path)?.is_some_and(|holder| holder == owner) { remove(&path) } else { Ok(()) }
        })
        .await
    }
}

/// The owner of a claim that has not expired.
fn holder(path: &Path) -> io::Result<Option<String>> {
    Ok(read(path)?.filter(|fact| is_true(fact, SystemTime::now())).map(|fact| fact.value))
}

/// Held by whoever looks at a claim and changes it. Beside the group's folder, in which every file is a fact, and for an
/// instant only; the kernel lets go of it when its holder dies.
fn lock(dir: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(dir.with_added_extension("lock"))?;
    file.lock()?;
    Ok(file)
}

fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// States a fact from now on, and removes old ones.
fn write(dir: &Path, name: &str, value: String, ttl: Duration) -> io::Result<()> {
    let now = SystemTime::now();
    sweep(dir, now);
    replace(dir, name, &Stored { value, written_at: millis(now), expires_at: millis(now + ttl) })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file beside its place and renames it there, so that a reader sees the old content or the new. Not synced to
/// the disk: after a power cut there are no workers whose heartbeat could matter.
fn replace(dir: &Path, name: &str, stored: &Stored) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir)?;
    file.write_all(&serde_json::to_vec(stored)?)?;
    file.persist(dir.join(name))?;
    Ok(())
}

fn facts(dir: &Path, now: SystemTime) -> io::Result<Vec<Fact>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut facts = Vec::new();
    for entry in entries {
        let path = entry?.path();
        match read(&path) {
            Ok(Some(fact)) if is_true(&fact, now) => facts.push(fact),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a cache file cannot be read; removed where possible");
                let _ = fs::remove_file(&path);
            }
        }
    }
    Ok(facts)
}

/// The fact in a file; `None` where there is none: still being written, or gone in the meantime.
fn read(path: &Path) -> io::Result<Option<Fact>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.starts_with(UNFINISHED) {
        return Ok(None);
    }
    let content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        content => content?,
    };
    let stored: Stored = serde_json::from_slice(&content)?;
    Ok(Some(Fact {
        key: percent_decode_str(name).decode_utf8_lossy().into_owned(),
        value: stored.value,
        written_at: UNIX_EPOCH + Duration::from_millis(stored.written_at),
        expires_at: UNIX_EPOCH + Duration::from_millis(stored.expires_at),
    }))
}

fn is_true(fact: &Fact, now: SystemTime) -> bool {
    fact.expires_at > now && fact.written_at <= now + CLOCK_TOLERANCE
}

/// Removes what the killed left behind: facts long expired, and files never finished.
fn sweep(dir: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let old = modified.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > SWEEP_AFTER));
        if old && !matches!(read(&entry.path()), Ok(Some(fact)) if is_true(&fact, now)) {
            // Another process may be sweeping too; whoever is second finds nothing.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn store() -> (tempfile::TempDir, FileStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(dir.path().join("cache"));
        (dir, store)
    }

    async fn keys(store: &FileStore, group: &str) -> Vec<String> {
        store.list(group).await.unwrap().into_iter().map(|fact| fact.key).collect()
    }

    #[tokio::test]
    async fn facts_are_kept_per_group_and_any_name_will_do() {
        let (_dir, store) = store();
        for key in ["a", "../../escape", "b/c", ".hidden", "ümlaut", ""] {
            if key.is_empty() {
                assert!(store.put("heartbeat/x", key, "v", MINUTE).await.is_err());
            } else {
                store.put("heartbeat/x", key, "v", MINUTE).await.unwrap();
            }
        }
        assert_eq!(keys(&store, "heartbeat/x").await, ["../../escape", ".hidden", "a", "b/c", "ümlaut"]);
        assert!(keys(&store, "heartbeat/y").await.is_empty());
        store.remove("heartbeat/x", "b/c").await.unwrap();
        store.remove("heartbeat/x", "b/c").await.unwrap();
        assert!(!keys(&store, "heartbeat/x").await.contains(&"b/c".to_owned()));
    }

    #[tokio::test]
    async fn a_fact_ends_with_its_time() {
        let (_dir, store) = store();
        store.put("g", "over", "v", Duration::ZERO).await.unwrap();
        store.put("g", "still", "v", MINUTE).await.unwrap();
        assert_eq!(keys(&store, "g").await, ["still"]);
    }

    #[tokio::test]
    async fn a_fact_from_before_the_clock_was_set_back_is_not_believed() {
        let (_dir, store) = store();
        store.put("g", "a", "v", MINUTE).await.unwrap();
        let tomorrow = millis(SystemTime::now() + 1440 * MINUTE);
        let future = Stored { value: String::new(), written_at: tomorrow, expires_at: tomorrow + 60_000 };
        replace(&store.group_dir("g"), "b", &future).unwrap();
        assert_eq!(keys(&store, "g").await, ["a"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_who_claim_a_place_one_gets_it() {
        let (_dir, store) = store();
        let claims = (0..16).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.claim("places", "0", &format!("host {n}"), MINUTE).await.unwrap() })
        });
        let got: Vec<bool> = join_all(claims).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(got.iter().filter(|got| **got).count(), 1);
        let winner = format!("host {}", got.iter().position(|got| *got).unwrap());
        assert_eq!(store.list("places").await.unwrap()[0].value, winner);

        assert!(store.claim("places", "0", &winner, MINUTE).await.unwrap());
        store.unclaim("places", "0", "somebody else").await.unwrap();
        assert!(!store.claim("places", "0", "somebody else", MINUTE).await.unwrap());
        store.unclaim("places", "0", &winner).await.unwrap();
        assert!(store.claim("places", "0", "somebody else", Duration::ZERO).await.unwrap());
        assert!(store.claim("places", "0", "the next one", MINUTE).await.unwrap());
        store.unclaim("no such places", "0", "nobody").await.unwrap();
    }

    #[tokio::test]
    async fn damaged_files_are_passed_over() {
        let (_dir, store) = store();
        store.put("g", "good", "v", MINUTE).await.unwrap();
        for (name, content) in [("empty", &b""[..]), ("text", b"hello"), ("bytes", b"\xff\0"), ("half", b"{\"value\":")]
        {
            fs::write(store.group_dir("g").join(name), content).unwrap();
        }
        fs::create_dir(store.group_dir("g").join("folder")).unwrap();
        assert_eq!(keys(&store, "g").await, ["good"]);
        store.put("g", "empty", "v", MINUTE).await.unwrap();
        assert_eq!(keys(&store, "g").await, ["empty", "good"]);
    }

    #[tokio::test]
    async fn what_the_killed_left_is_swept_away() {
        let (_dir, store) = store();
        store.put("g", "dead", "v", Duration::ZERO).await.unwrap();
        store.put("g", "alive", "v", 100 * MINUTE).await.unwrap();
        let dir = store.group_dir("g");
        fs::write(dir.join(".new-123"), "{").unwrap();
        let long_ago = SystemTime::now() - 2 * SWEEP_AFTER;
        for entry in fs::read_dir(&dir).unwrap() {
            fs::File::options().write(true).open(entry.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
        }
        store.put("g", "new", "v", MINUTE).await.unwrap();
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["alive", "new"]);
    }

    #[tokio::test]
    async fn a_reader_never_sees_half_a_fact() {
        let (_dir, store) = store();
        store.put("g", "a", &"x".repeat(10_000), MINUTE).await.unwrap();
        let writer = tokio::spawn({
            let store = store.clone();
            async move {
                for n in 0..200 {
                    store.put("g", "a", &"x".repeat(10_000 + n), MINUTE).await.unwrap();
                }
            }
        });
        while !writer.is_finished() {
            assert_eq!(keys(&store, "g").await, ["a"]);
        }
        writer.await.unwrap();
    }
}
