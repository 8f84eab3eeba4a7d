//! Files and folders under `state_dir`: how they are created, opened, locked and replaced.
//!
//! All of them are private to their owner (modes 0700 and 0600).
//!
//! # Locks never wait
//!
//! Every lock here is one attempt of `flock(2)` with `LOCK_NB`: a single system call that changes memory of the kernel
//! and returns at once, taken or not (within microseconds on a local file system; see
//! `an_attempt_at_a_lock_is_instant`). So it is made on the runtime's own thread. The blocking pool would need a
//! thread, and hosts that limit processes count each one (see [`crate::threads`]). If a lock is taken, try again after
//! a pause of `tokio::time`. Never call [`File::lock`] here: it waits for as long as another process holds the lock.
//!
//! On a network file system (NFS) an attempt asks the server, as opening and reading a file does: it takes a round
//! trip.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use thiserror::Error;

/// A file or folder under `state_dir` could not be used.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    /// A system call failed.
    #[error("{} could not be {action}: {source}{}", path.display(), advice(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What failed: `created`, `locked`, ….
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A folder, a link, a named pipe or the like is where a file should be.
    #[error("{} is not a regular file; move it away", .0.display())]
    NotAFile(PathBuf),
    /// The file is deleted again and again while it is being opened.
    #[error("{} was deleted while it was being opened; leave state_dir alone while a supervisor is at work", .0.display())]
    Vanishing(PathBuf),
}

impl StateError {
    /// For `map_err`: the error of doing `action` with `path`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action, source }
    }
}

/// What to do about an error.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; state_dir must be a folder that this user may write to"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room on the disk that holds state_dir",
        _ => "",
    }
}

/// Creates a folder and its parents with mode 0700. An existing folder is left as it is.
pub(crate) fn create_dir(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StateError::io(path, "created"))
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The file must exist.
    Read,
    /// The file is created (mode 0600) if it does not exist.
    ReadWrite,
    /// Like `ReadWrite`, but writes go to the end of the file.
    Append,
}

/// Opens a regular file. Does not follow a symbolic link, and does not block on a named pipe.
pub(crate) fn open(path: &Path, mode: Mode) -> Result<File, StateError> {
    let mut options = OpenOptions::new();
    match mode {
        Mode::Read => options.read(true),
        Mode::ReadWrite => options.read(true).write(true).create(true),
        Mode::Append => options.append(true).create(true),
    };
    // `std` adds O_CLOEXEC, so child processes do not inherit these files by accident.
    let file = options.mode(0o600).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path);
    match file {
        Ok(file) if file.metadata().map_err(StateError::io(path, "read"))?.is_file() => Ok(file),
        Ok(_) => Err(StateError::NotAFile(path.to_owned())),
        Err(error) => match path.symlink_metadata() {
            Ok(metadata) if !metadata.is_file() => Err(StateError::NotAFile(path.to_owned())),
            _ => Err(StateError::io(path, "opened")(error)),
        },
    }
}

/// Tries to take the exclusive lock of a file. `false` if another process holds a lock on it. Returns at once: see the
/// [module](self).
pub(crate) fn try_lock(file: &File, path: &Path) -> Result<bool, StateError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(StateError::io(path, "locked")(error)),
    }
}

/// Whether another process holds the exclusive lock of this file. Returns at once: see the [module](self).
pub(crate) fn is_locked(file: &File, path: &Path) -> Result<bool, StateError> {
    // The test takes a shared lock for an instant. Shared, so that two processes that test at once do not see each
    // other. A supervisor that tries to take the lock in this instant finds it taken, and tries again at its next tick.
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false).map_err(StateError::io(path, "locked")),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(StateError::io(path, "locked")(error)),
    }
}

/// Replaces a file as a whole: readers see the old content or the new. The content is written to a temporary file
/// first, whose name begins with `prefix`. Not synced: it survives a killed process, but not a power cut.
pub(crate) fn replace(path: &Path, prefix: &str, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(prefix).tempfile_in(dir)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

/// Whether this open file is still the one at this path.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Free or taken, 10,000 attempts take milliseconds. A lock that waited for its holder would never return here.
    #[test]
    fn an_attempt_at_a_lock_is_instant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let open = || super::open(&path, Mode::ReadWrite).unwrap();
        let (holder, other) = (open(), open());
        let begun = Instant::now();
        for _ in 0..5_000 {
            assert!(try_lock(&holder, &path).unwrap());
            assert!(!try_lock(&other, &path).unwrap());
            assert!(is_locked(&other, &path).unwrap());
            holder.unlock().unwrap();
            assert!(!is_locked(&other, &path).unwrap());
        }
        // A thousand times what it takes on an idle machine.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
