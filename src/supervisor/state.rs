//! Files and folders under `state_dir`: private to their owner, and opened with care.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use thiserror::Error;

/// Something under `state_dir` could not be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The system refused.
    #[error("{} could not be {action}: {source}{}", path.display(), advice(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done: `created`, `locked`, ….
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has the place of a file.
    #[error("{} is not a regular file; move it away", .0.display())]
    NotAFile(PathBuf),
    /// Someone deletes what is created here as fast as it is created.
    #[error("{} was deleted while it was being opened; leave state_dir alone while a supervisor is at work", .0.display())]
    Vanishing(PathBuf),
}

impl StateError {
    /// For `map_err`.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action, source }
    }
}

/// What a person can do about it.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; state_dir must be a folder that this user may write to"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room on the disk that holds state_dir",
        _ => "",
    }
}

/// Creates a folder, and those above it, with mode 0700. One that is there is left as it is.
pub(super) fn create_dir(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StateError::io(path, "created"))
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It must be there.
    Read,
    /// It is created (mode 0600) when it is not there.
    ReadWrite,
    /// The same; whatever is written goes to the end.
    Append,
}

/// Opens a regular file. Never follows a symbolic link out of the state directory, never waits at a named pipe.
pub(super) fn open(path: &Path, mode: Mode) -> Result<File, StateError> {
    let mut options = OpenOptions::new();
    match mode {
        Mode::Read => options.read(true),
        Mode::ReadWrite => options.read(true).write(true).create(true),
        Mode::Append => options.append(true).create(true),
    };
    // `std` adds O_CLOEXEC: no process inherits any of these by accident.
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

/// Is this open file still the one at this path?
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}
