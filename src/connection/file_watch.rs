//! Watches files that other processes write, by inotify on Linux: without a thread, and without polling. On other
//! systems, and if inotify's limits are used up, watching is an error, and the caller has to poll.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[cfg(target_os = "linux")]
use self::inotify::Watching;
#[cfg(not(target_os = "linux"))]
use self::nowhere::Watching;

/// Watches some files, from the first [`look`](FileWatch::look) on. Any of them may be missing, or be replaced at any
/// time.
pub(crate) struct FileWatch {
    /// Returns their current paths: the target of a symbolic link may change.
    files: Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
    watching: Mutex<Option<Arc<Watching>>>,
}

/// The changes of the files that have been seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changes {
    /// How many changes. Several in a row may count as one.
    pub(crate) count: u64,
    /// When the last change was seen, or watching began.
    pub(crate) last: Instant,
}

impl FileWatch {
    /// A watch that has not begun.
    pub(crate) fn new(files: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static) -> Self {
        Self { files: Box::new(files), watching: Mutex::new(None) }
    }

    /// The changes seen so far. Later ones are seen by the next call, and by [`FileWatch::changed`].
    pub(crate) fn look(&self) -> io::Result<Changes> {
        let mut slot = self.slot();
        let watching = match &*slot {
            Some(watching) => Arc::clone(watching),
            None => Arc::new(Watching::new()?),
        };
        let changes = watching.look(&self.files);
        *slot = changes.is_ok().then_some(watching);
        changes
    }

    /// Returns when there were other changes than `seen`. Cancel safe. May be called from several tasks.
    pub(crate) async fn changed(&self, seen: Changes) -> io::Result<()> {
        let watching = self.slot().as_ref().map(Arc::clone);
        let Some(watching) = watching else { return Ok(()) };
        let changed = watching.changed(seen.count).await;
        if changed.is_err() {
            *self.slot() = None;
        }
        changed
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Watching>>> {
        // A panic while the lock is held leaves the slot as it was.
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(target_os = "linux")]
mod inotify {
    use std::ffi::{OsStr, OsString};
    use std::io;
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::Instant;

    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
    use tokio::sync::watch;

    use super::Changes;
    use crate::descriptors::Readable;

    /// Events of a file: written, closed by a writer, replaced or deleted (which changes its attributes), moved.
    const OF_A_FILE: AddWatchFlags = AddWatchFlags::IN_MODIFY
        .union(AddWatchFlags::IN_CLOSE_WRITE)
        .union(AddWatchFlags::IN_ATTRIB)
        .union(AddWatchFlags::IN_MOVE_SELF)
        .union(AddWatchFlags::IN_DELETE_SELF);
    /// Events of a folder with a missing file: a file was created, or the folder removed.
    const OF_A_FOLDER: AddWatchFlags = AddWatchFlags::IN_CREATE
        .union(AddWatchFlags::IN_MOVED_TO)
        .union(AddWatchFlags::IN_MOVE_SELF)
        .union(AddWatchFlags::IN_DELETE_SELF)
        .union(AddWatchFlags::IN_ONLYDIR);
    /// Events that do not change the files or their paths.
    const WRITTEN: AddWatchFlags = AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_CLOSE_WRITE);

    pub(super) struct Watching {
        inotify: Inotify,
        /// The same, for waiting.
        readable: Readable,
        state: Mutex<State>,
        count: watch::Sender<u64>,
    }

    struct State {
        last: Instant,
        /// Whether it must be checked which files exist.
        stale: bool,
        /// The names of missing files, by folder.
        missing: Vec<OsString>,
        folders: Vec<WatchDescriptor>,
    }

    impl Watching {
        pub(super) fn new() -> io::Result<Self> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let state = State { last: Instant::now(), stale: true, missing: vec![], folders: vec![] };
            let readable = Readable::new(inotify.as_fd().try_clone_to_owned()?)?;
            Ok(Self { inotify, readable, state: Mutex::new(state), count: watch::Sender::new(0) })
        }

        pub(super) fn look(&self, files: impl Fn() -> Vec<PathBuf>) -> io::Result<Changes> {
            self.read()?;
            let mut state = self.state();
            if state.stale {
                self.find(&mut state, &files())?;
            }
            let count = *self.count.borrow();
            Ok(Changes { count, last: state.last })
        }

        pub(super) async fn changed(&self, seen: u64) -> io::Result<()> {
            let mut count = self.count.subscribe();
            while *count.borrow_and_update() == seen {
                tokio::select! {
                    // Another task has read the event.
                    _ = count.changed() => {}
                    ready = self.readable.readable() => {
                        let all_read = |_: &_| {
                            self.read()?;
                            Err::<(), _>(io::ErrorKind::WouldBlock.into())
                        };
                        // The error may mean that everything has been read.
                        if let Ok(Err(error)) = ready?.try_io(all_read) {
                            return Err(error);
                        }
                    }
                }
            }
            Ok(())
        }

        /// Watches the files that exist, and the folders of those that do not.
        fn find(&self, state: &mut State, files: &[PathBuf]) -> io::Result<()> {
            for folder in state.folders.drain(..) {
                // The file may be gone, and its watch with it.
                let _ = self.inotify.rm_watch(folder);
            }
            state.missing.clear();
            for file in files {
                if self.watch(file)? {
                    continue;
                }
                let folder = file.parent().unwrap_or(Path::new("/"));
                state.folders.push(self.inotify.add_watch(folder, OF_A_FOLDER)?);
                state.missing.extend(file.file_name().map(OsStr::to_owned));
                // The file may have been created before its folder was watched.
                self.watch(file)?;
            }
            (state.stale, state.last) = (false, Instant::now());
            Ok(())
        }

        /// Whether the file could be watched.
        fn watch(&self, file: &Path) -> io::Result<bool> {
            match self.inotify.add_watch(file, OF_A_FILE) {
                Ok(_) => Ok(true),
                Err(Errno::ENOENT) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }

        /// Reads all events.
        fn read(&self) -> io::Result<()> {
            // One reader at a time: its events are counted before another reader finds none left.
            let mut state = self.state();
            let mut changed = false;
            loop {
                match self.inotify.read_events() {
                    Ok(events) => events.iter().for_each(|event| changed |= state.apply(event)),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            if changed {
                state.last = Instant::now();
                self.count.send_modify(|count| *count += 1);
            }
            Ok(())
        }

        fn state(&self) -> MutexGuard<'_, State> {
            // At worst, a panic while the lock is held loses a change.
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl State {
        /// Whether an event means that a file has changed.
        fn apply(&mut self, event: &InotifyEvent) -> bool {
            let relevant = match &event.name {
                Some(name) => self.missing.contains(name),
                // The watch on a folder was removed.
                None => !event.mask.contains(AddWatchFlags::IN_IGNORED),
            };
            self.stale |= relevant && !WRITTEN.contains(event.mask);
            relevant
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod nowhere {
    use std::io;
    use std::path::PathBuf;

    use super::Changes;

    pub(super) struct Watching;

    impl Watching {
        pub(super) fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn look(&self, _files: impl Fn() -> Vec<PathBuf>) -> io::Result<Changes> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) async fn changed(&self, _seen: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn watch(files: &[&Path]) -> FileWatch {
        let files: Vec<PathBuf> = files.iter().map(|file| (*file).to_owned()).collect();
        FileWatch::new(move || files.clone())
    }

    async fn sees(watch: &FileWatch, change: impl FnOnce()) {
        let seen = watch.look().unwrap();
        change();
        tokio::time::timeout(DEADLINE, watch.changed(seen)).await.unwrap().unwrap();
        assert_ne!(watch.look().unwrap().count, seen.count);
    }

    #[tokio::test]
    async fn a_file_is_watched_when_it_is_created_replaced_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("file"), dir.path().join("other"));
        let watch = watch(&[&file]);
        for _ in 0..3 {
            sees(&watch, || fs::write(&file, "1").unwrap()).await;
            let mut open = fs::OpenOptions::new().append(true).open(&file).unwrap();
            sees(&watch, || open.write_all(b"2").unwrap()).await;
            fs::write(&other, "3").unwrap();
            sees(&watch, || fs::rename(&other, &file).unwrap()).await;
            let mut open = fs::OpenOptions::new().append(true).open(&file).unwrap();
            sees(&watch, || open.write_all(b"4").unwrap()).await;
            sees(&watch, || fs::remove_file(&file).unwrap()).await;
        }
    }

    #[tokio::test]
    async fn other_files_and_readers_are_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (file, missing) = (dir.path().join("file"), dir.path().join("missing"));
        fs::write(&file, "1").unwrap();
        let watch = watch(&[&file, &missing]);
        let seen = watch.look().unwrap();
        fs::write(dir.path().join("other"), "2").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"1");
        assert_eq!(watch.look().unwrap().count, seen.count);
    }

    #[tokio::test]
    async fn all_waiting_tasks_are_woken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "1").unwrap();
        let watch = watch(&[&file]);
        let seen = watch.look().unwrap();
        let wait = || tokio::time::timeout(DEADLINE, watch.changed(seen));
        let (a, b, c, ()) = tokio::join!(wait(), wait(), wait(), async { fs::write(&file, "2").unwrap() });
        assert!([a, b, c].into_iter().all(|changed| matches!(changed, Ok(Ok(())))));
    }

    #[tokio::test]
    async fn without_a_folder_there_is_nothing_to_watch() {
        let dir = tempfile::tempdir().unwrap();
        let watch = watch(&[&dir.path().join("folder/file")]);
        assert_eq!(watch.look().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(dir.path().join("folder")).unwrap();
        sees(&watch, || fs::write(dir.path().join("folder/file"), "1").unwrap()).await;
    }
}
