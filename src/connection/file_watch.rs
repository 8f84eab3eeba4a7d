//! Watches files that other processes write, without a thread and without looking at them: by inotify, on Linux. Elsewhere,
//! and where inotify's limits are used up, watching is an error, and who wants to know of changes has to look.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[cfg(target_os = "linux")]
use self::inotify::Watching;
#[cfg(not(target_os = "linux"))]
use self::nowhere::Watching;

/// Some files, of which any may be missing, or be replaced by another at any time. Watched from the first
/// [`look`](FileWatch::look) on.
pub(crate) struct FileWatch {
    /// Where they are now: a symbolic link may come to lead elsewhere.
    files: Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
    watching: Mutex<Option<Arc<Watching>>>,
}

/// What has been seen of the files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changes {
    /// How many changes, of which several in a row may count as one.
    pub(crate) count: u64,
    /// When the last one was seen, or watching began.
    pub(crate) last: Instant,
}

impl FileWatch {
    /// Watches nothing yet.
    pub(crate) fn new(files: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static) -> Self {
        Self { files: Box::new(files), watching: Mutex::new(None) }
    }

    /// What has been seen up to now. What happens from now on is seen by the next look, and by [`FileWatch::changed`].
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

    /// Returns when there were other changes than those seen in a look. Safe to cancel, and to call from several tasks.
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
    use std::os::fd::{AsFd, AsRawFd, RawFd};
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::Instant;

    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
    use tokio::io::unix::AsyncFd;
    use tokio::sync::watch;

    use super::Changes;

    /// Of a file: written, closed by a writer, replaced or deleted (which changes its attributes), moved.
    const OF_A_FILE: AddWatchFlags = AddWatchFlags::IN_MODIFY
        .union(AddWatchFlags::IN_CLOSE_WRITE)
        .union(AddWatchFlags::IN_ATTRIB)
        .union(AddWatchFlags::IN_MOVE_SELF)
        .union(AddWatchFlags::IN_DELETE_SELF);
    /// Of a folder, while a file is missing in it: a file comes, or the folder goes.
    const OF_A_FOLDER: AddWatchFlags = AddWatchFlags::IN_CREATE
        .union(AddWatchFlags::IN_MOVED_TO)
        .union(AddWatchFlags::IN_MOVE_SELF)
        .union(AddWatchFlags::IN_DELETE_SELF)
        .union(AddWatchFlags::IN_ONLYDIR);
    /// What leaves the files as they are, and where they are.
    const WRITTEN: AddWatchFlags = AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_CLOSE_WRITE);

    pub(super) struct Watching {
        inotify: AsyncFd<Descriptor>,
        state: Mutex<State>,
        count: watch::Sender<u64>,
    }

    struct State {
        last: Instant,
        /// Is it still to be found out which files there are?
        stale: bool,
        /// The names that are waited for, in these folders.
        missing: Vec<OsString>,
        folders: Vec<WatchDescriptor>,
    }

    struct Descriptor(Inotify);

    impl AsRawFd for Descriptor {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }

    impl Watching {
        pub(super) fn new() -> io::Result<Self> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let state = State { last: Instant::now(), stale: true, missing: vec![], folders: vec![] };
            // SAFETY: `Descriptor` owns an open descriptor that nothing exchanges or closes before it is dropped itself, and
            // `AsyncFd` is what drops it.
            let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) }?;
            Ok(Self { inotify, state: Mutex::new(state), count: watch::Sender::new(0) })
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
                    // Another task has read of the change.
                    _ = count.changed() => {}
                    ready = self.inotify.readable() => {
                        let all_read = |_: &AsyncFd<Descriptor>| {
                            self.read()?;
                            Err::<(), _>(io::ErrorKind::WouldBlock.into())
                        };
                        // An error is one of reading, or that all has been read.
                        if let Ok(Err(error)) = ready?.try_io(all_read) {
                            return Err(error);
                        }
                    }
                }
            }
            Ok(())
        }

        /// Watches the files that are there, and the folders of those that are not.
        fn find(&self, state: &mut State, files: &[PathBuf]) -> io::Result<()> {
            for folder in state.folders.drain(..) {
                // It may be gone, and its watch with it.
                let _ = self.inotify().rm_watch(folder);
            }
            state.missing.clear();
            for file in files {
                if self.watch(file)? {
                    continue;
                }
                let folder = file.parent().unwrap_or(Path::new("/"));
                state.folders.push(self.inotify().add_watch(folder, OF_A_FOLDER)?);
                state.missing.extend(file.file_name().map(OsStr::to_owned));
                // It may have come before its folder was watched.
                self.watch(file)?;
            }
            (state.stale, state.last) = (false, Instant::now());
            Ok(())
        }

        /// Is there such a file to watch?
        fn watch(&self, file: &Path) -> io::Result<bool> {
            match self.inotify().add_watch(file, OF_A_FILE) {
                Ok(_) => Ok(true),
                Err(Errno::ENOENT) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }

        /// Reads what there is to read.
        fn read(&self) -> io::Result<()> {
            // One reader at a time, so that what one has read is counted before another finds nothing left.
            let mut state = self.state();
            let mut changed = false;
            loop {
                match self.inotify().read_events() {
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

        fn inotify(&self) -> &Inotify {
            &self.inotify.get_ref().0
        }

        fn state(&self) -> MutexGuard<'_, State> {
            // A panic while the lock is held leaves at worst a change uncounted.
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl State {
        /// Does an event say that a file has changed?
        fn apply(&mut self, event: &InotifyEvent) -> bool {
            let relevant = match &event.name {
                Some(name) => self.missing.contains(name),
                // That the watch on a folder has been taken off.
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
    async fn a_file_is_watched_however_it_comes_and_goes() {
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
    async fn all_who_wait_are_told() {
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
