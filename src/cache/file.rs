//! Keeps entries in small files: one folder per group, one file per entry, replaced by renaming.
//!
//! Files are read and written on the caller's thread: they are small, and threads count where processes are limited.
//! Only the lock of a claim may have to be waited for, which is done by trying again.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::file_name::{self, FileName};
use super::{CLOCK_TOLERANCE, CacheEntry, CacheError, CacheStore};
use crate::clock;

/// Begins the names of files that are still being written.
const UNFINISHED: &str = ".new-";

/// A file that has not been modified for this long is checked when its folder is written to, and removed if it has
/// expired.
const SWEEP_AFTER: Duration = Duration::from_secs(3600);
/// A process checks its first write's folder, and then that of every so-many-th write: a folder may have very many files.
const SWEEP_EVERY: u32 = 256;

/// The pause between two attempts to lock a group's claims. The lock is held only for an instant.
const LOCK_RETRY_PAUSE: Duration = Duration::from_millis(2);

/// Keeps entries in a folder, which is created (for its owner only) when the first one is written.
#[derive(Debug, Clone)]
pub(crate) struct FileStore {
    dir: PathBuf,
    /// How many entries were written.
    writes: Arc<AtomicU32>,
}

/// A file's content. Times are milliseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// The key, if the file's name cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    value: String,
    written_at: u64,
    expires_at: u64,
}

impl FileStore {
    /// A store in this folder.
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), writes: Arc::default() }
    }

    /// Writes an entry, and now and then removes expired ones.
    fn write(&self, dir: &Path, name: &FileName, value: &str, ttl: Duration) -> io::Result<()> {
        let now = clock::now();
        if self.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP_EVERY) {
            sweep(dir, now);
        }
        let (key, value) = (name.unreadable.clone(), value.to_owned());
        replace(dir, &name.text, &Stored { key, value, written_at: millis(now), expires_at: millis(now + ttl) })
    }

    fn group_dir(&self, group: &str) -> PathBuf {
        self.dir.join(FileName::of(group).text)
    }

    /// An entry's folder, and its file's name there.
    fn path_of(&self, group: &str, key: &str) -> (PathBuf, FileName) {
        (self.group_dir(group), FileName::of(key))
    }

    fn error(&self, action: &'static str) -> impl FnOnce(io::Error) -> CacheError {
        move |error| CacheError { location: self.location(), action, known: false, source: Box::new(error) }
    }
}

#[async_trait]
impl CacheStore for FileStore {
    async fn put(&self, group: &str, key: &str, value: &str, ttl: Duration) -> Result<(), CacheError> {
        let (dir, name) = self.path_of(group, key);
        let put = || {
            create_dir(&dir)?;
            self.write(&dir, &name, value, ttl)
        };
        put().map_err(self.error("written"))
    }

    async fn remove(&self, group: &str, key: &str) -> Result<(), CacheError> {
        let (dir, name) = self.path_of(group, key);
        remove(&dir.join(name.text)).map_err(self.error("written"))
    }

    async fn list(&self, group: &str) -> Result<Vec<CacheEntry>, CacheError> {
        let mut entries = read_entries(&self.group_dir(group), clock::now()).map_err(self.error("read"))?;
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    async fn claim(&self, group: &str, key: &str, owner: &str, ttl: Duration) -> Result<bool, CacheError> {
        let (dir, name) = self.path_of(group, key);
        create_dir(&dir).map_err(self.error("written"))?;
        let _lock = lock(&dir).await.map_err(self.error("written"))?;
        let claim = || {
            if holder(&dir.join(&name.text))?.is_some_and(|holder| holder != owner) {
                return Ok(false);
            }
            self.write(&dir, &name, owner, ttl)?;
            Ok(true)
        };
        claim().map_err(self.error("written"))
    }

    fn location(&self) -> String {
        self.dir.display().to_string()
    }

    async fn unclaim(&self, group: &str, key: &str, owner: &str) -> Result<(), CacheError> {
        let (dir, name) = self.path_of(group, key);
        if !dir.exists() {
            return Ok(());
        }
        let _lock = lock(&dir).await.map_err(self.error("written"))?;
        let path = dir.join(name.text);
        let unclaim = || if holder(&path)?.is_some_and(|holder| holder == owner) { remove(&path) } else { Ok(()) };
        unclaim().map_err(self.error("written"))
    }
}

/// The owner of a claim that has not expired. A damaged claim has no owner.
fn holder(path: &Path) -> io::Result<Option<String>> {
    match read(path)? {
        Content::Entry(entry) if is_current(&entry, clock::now()) => Ok(Some(entry.value)),
        _ => Ok(None),
    }
}

/// Locks the claims of a group, to check and change one. The lock file is beside the group's folder, in which every
/// file is an entry. It is held only for an instant, and the kernel releases it if its holder dies.
async fn lock(dir: &Path) -> io::Result<File> {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let path = dir.with_file_name(file_name::lock_of(name));
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_RETRY_PAUSE).await,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a temporary file and renames it, so that a reader sees the old content or the new. Not synced to disk: after
/// a power failure there are no workers whose heartbeat could matter.
fn replace(dir: &Path, name: &str, stored: &Stored) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir)?;
    file.write_all(&serde_json::to_vec(stored)?)?;
    file.persist(dir.join(name))?;
    Ok(())
}

fn read_entries(dir: &Path, now: SystemTime) -> io::Result<Vec<CacheEntry>> {
    let files = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let mut entries = Vec::new();
    for file in files {
        let path = file?.path();
        match read(&path)? {
            Content::Entry(entry) if is_current(&entry, now) => entries.push(entry),
            Content::Entry(_) | Content::None => {}
            Content::Damaged(inode) => {
                tracing::warn!(path = %path.display(), "a cache file is damaged; removed");
                remove_damaged(&path, inode);
            }
        }
    }
    Ok(entries)
}

/// What a file holds.
enum Content {
    Entry(CacheEntry),
    /// There is no entry: it is still being written, was removed meanwhile, or is not a regular file.
    None,
    /// Not the content of an entry. The file's device and inode.
    Damaged((u64, u64)),
}

/// Reads an entry. A file that cannot be read is an error, because its content is not known.
fn read(path: &Path) -> io::Result<Content> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if is_unfinished(path) {
        return Ok(Content::None);
    }
    let with_path =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}{}", path.display(), advice(&error)));
    let mut text = Vec::new();
    // Does not block on a named pipe.
    let file = match File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::None),
        file => file.map_err(with_path)?,
    };
    let metadata = file.metadata().map_err(with_path)?;
    if !metadata.is_file() {
        return Ok(Content::None);
    }
    (&file).read_to_end(&mut text).map_err(with_path)?;
    let Ok(stored) = serde_json::from_slice::<Stored>(&text) else {
        return Ok(Content::Damaged((metadata.dev(), metadata.ino())));
    };
    Ok(Content::Entry(CacheEntry {
        key: stored.key.unwrap_or_else(|| file_name::text_of(name)),
        value: stored.value,
        written_at: UNIX_EPOCH + Duration::from_millis(stored.written_at),
        expires_at: UNIX_EPOCH + Duration::from_millis(stored.expires_at),
    }))
}

/// What to do about a file that cannot be read.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; it belongs to another user: remove it",
        _ => "",
    }
}

/// Removes a damaged file, unless it was replaced meanwhile.
fn remove_damaged(path: &Path, damaged: (u64, u64)) {
    if path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == damaged) {
        let _ = fs::remove_file(path);
    }
}

fn is_current(entry: &CacheEntry, now: SystemTime) -> bool {
    entry.expires_at > now && entry.written_at <= now + CLOCK_TOLERANCE
}

/// Removes what killed processes left behind: entries that expired long ago, and unfinished files.
fn sweep(dir: &Path, now: SystemTime) {
    let Ok(files) = fs::read_dir(dir) else { return };
    for file in files.flatten() {
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        let old = modified.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > SWEEP_AFTER));
        if !old {
            continue;
        }
        let path = file.path();
        let over = match read(&path) {
            Ok(Content::Entry(entry)) => !is_current(&entry, now),
            Ok(Content::Damaged(_)) => true,
            Ok(Content::None) => is_unfinished(&path),
            // Its content is not known.
            Err(_) => false,
        };
        if over {
            // If another process sweeps too, the second one finds nothing.
            let _ = fs::remove_file(path);
        }
    }
}

fn is_unfinished(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(UNFINISHED))
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
        store.list(group).await.unwrap().into_iter().map(|entry| entry.key).collect()
    }

    #[tokio::test]
    async fn entries_are_kept_per_group_and_keys_may_be_any_text() {
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
    async fn an_entry_expires() {
        let (_dir, store) = store();
        store.put("g", "over", "v", Duration::ZERO).await.unwrap();
        store.put("g", "still", "v", MINUTE).await.unwrap();
        assert_eq!(keys(&store, "g").await, ["still"]);
    }

    #[tokio::test]
    async fn an_entry_from_before_the_clock_was_set_back_is_ignored() {
        let (_dir, store) = store();
        store.put("g", "a", "v", MINUTE).await.unwrap();
        let tomorrow = millis(SystemTime::now() + 1440 * MINUTE);
        let future = Stored { key: None, value: String::new(), written_at: tomorrow, expires_at: tomorrow + 60_000 };
        replace(&store.group_dir("g"), "b", &future).unwrap();
        assert_eq!(keys(&store, "g").await, ["a"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_of_many_concurrent_claims_succeeds() {
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
    async fn damaged_files_are_skipped() {
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
    async fn a_file_that_cannot_be_read_is_an_error_and_stays() {
        let (_dir, store) = store();
        store.put("g", "alive", "v", 100 * MINUTE).await.unwrap();
        let path = store.group_dir("g").join("alive");
        // A link to itself cannot be opened by anybody, as a file cannot when descriptors are used up.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let error = store.list("g").await.unwrap_err();
        assert!(format!("{error}").contains("/alive: "), "{error}");
        assert!(store.claim("g", "alive", "somebody", MINUTE).await.is_err());
        assert!(path.symlink_metadata().is_ok(), "it is still there");
    }

    #[tokio::test]
    async fn a_named_pipe_does_not_block() {
        let (_dir, store) = store();
        store.put("g", "alive", "v", 100 * MINUTE).await.unwrap();
        nix::unistd::mkfifo(&store.group_dir("g").join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(keys(&store, "g").await, ["alive"]);
    }

    #[tokio::test]
    async fn keys_of_any_length_are_kept() {
        let (_dir, store) = store();
        let long = |end: &str| format!("supervisor@host:{}/{end}", "/folder".repeat(80));
        let group = format!("heartbeat/{}", "é".repeat(200));
        for key in [long("a"), long("b")] {
            store.put(&group, &key, &key, MINUTE).await.unwrap();
        }
        let entries = store.list(&group).await.unwrap();
        let read: Vec<_> = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        assert_eq!(read, [(long("a"), long("a")), (long("b"), long("b"))]);
        store.remove(&group, &long("a")).await.unwrap();
        assert_eq!(keys(&store, &group).await, [long("b")]);
        assert!(store.claim(&group, &long("c"), "me", MINUTE).await.unwrap());
        assert!(!store.claim(&group, &long("c"), "you", MINUTE).await.unwrap());
        store.unclaim(&group, &long("c"), "me").await.unwrap();
        assert_eq!(keys(&store, &group).await, [long("b")]);
    }

    #[tokio::test]
    async fn a_claim_waits_for_the_lock_without_blocking_its_thread() {
        let (_dir, store) = store();
        store.put("g", "a", "v", MINUTE).await.unwrap();
        let held = lock(&store.group_dir("g")).await.unwrap();
        let (claimed, ()) = tokio::join!(store.claim("g", "b", "me", MINUTE), async move {
            tokio::task::yield_now().await;
            drop(held);
        });
        assert!(claimed.unwrap());
    }

    #[tokio::test]
    async fn what_killed_processes_left_is_removed() {
        let (_dir, store) = store();
        store.put("g", "dead", "v", Duration::ZERO).await.unwrap();
        store.put("g", "alive", "v", 100 * MINUTE).await.unwrap();
        let dir = store.group_dir("g");
        fs::write(dir.join(".new-123"), "{").unwrap();
        let long_ago = SystemTime::now() - 2 * SWEEP_AFTER;
        for entry in fs::read_dir(&dir).unwrap() {
            fs::File::options().write(true).open(entry.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
        }
        FileStore::new(store.dir).put("g", "new", "v", MINUTE).await.unwrap();
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["alive", "new"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_never_sees_half_an_entry() {
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
