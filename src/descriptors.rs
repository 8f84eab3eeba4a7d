//! Open files by their descriptors: which ones a child process inherits, and which of them this process has inherited. The only
//! file with `unsafe` in it.

#![allow(unsafe_code, reason = "descriptors are numbers; each block says why its number is what it should be")]

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::setsid;
use tokio::process::Command;

/// Descriptors from this one on are not looked for: inherited ones have low numbers.
const MAX_INHERITED: RawFd = 1024;

/// Hides all descriptors that this process has inherited, except `kept`, from the programs that it starts. To be called when
/// the process starts, before it opens files.
pub(crate) fn keep_from_children(kept: Option<RawFd>) {
    for descriptor in (3..MAX_INHERITED).filter(|descriptor| Some(*descriptor) != kept) {
        // SAFETY: only a flag is set, and the borrow ends with the call. A number that is no open descriptor gives an error.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let _ = fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// Makes the child lead a session of its own, and inherit this one file.
pub(crate) fn detach_with(command: &mut Command, file: Arc<File>) {
    let detach = move || {
        setsid()?;
        // All descriptors of this process are closed on exec. For this one that is undone in the child, and not before the
        // fork: a child that another thread starts at the same time must not inherit it.
        fcntl(&*file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed, and no allocation or lock, because another
    // thread may have held one when the process forked. The closure makes two system calls, setsid(2) and fcntl(2); an
    // error becomes an `io::Error` that holds only its number.
    unsafe { command.pre_exec(detach) };
}

/// Takes over a descriptor that this process was started with. `None`, and the descriptor is left alone, unless it is open, is
/// `file`, was inherited and has not been taken yet. The error is that programs which this process starts inherit it too.
pub(crate) fn take_inherited(descriptor: RawFd, file: &Metadata) -> Option<(File, io::Result<()>)> {
    // By its name in /dev/fd, which may also be a number that is no open descriptor.
    let open_file = Path::new("/dev/fd").join(descriptor.to_string()).metadata().ok()?;
    if (open_file.dev(), open_file.ino()) != (file.dev(), file.ino()) {
        return None;
    }
    // SAFETY: the descriptor was open a moment ago, and only its flags are read. Had it been closed meanwhile, that would
    // give an error (EBADF).
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let flags = FdFlag::from_bits_retain(fcntl(borrowed, FcntlArg::F_GETFD).ok()?);
    if flags.contains(FdFlag::FD_CLOEXEC) {
        return None;
    }
    // SAFETY: the descriptor is open, and nothing in this process owns it. Everything that this process opens is closed on
    // exec (`std` and tokio see to that), and this descriptor is not, so it was inherited. Once it is owned it is closed on
    // exec too, so that it is taken only once.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let hidden = fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop).map_err(io::Error::from);
    Some((owned.into(), hidden))
}

#[cfg(target_os = "linux")]
pub(crate) use readable::Readable;

#[cfg(target_os = "linux")]
mod readable {
    use std::io;
    use std::os::fd::OwnedFd;

    use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

    /// A descriptor that can be waited for until there is something to read.
    pub(crate) struct Readable(AsyncFd<OwnedFd>);

    impl Readable {
        /// To be called within a tokio runtime.
        pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
            // SAFETY: the descriptor is owned, and nothing exchanges or closes it before `AsyncFd` drops it: nobody gets at it
            // but by shared reference.
            Ok(Self(unsafe { AsyncFd::register(descriptor) }?))
        }

        /// Returns when there may be something to read. The guard is to be told when all has been read.
        pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
            self.0.readable().await
        }
    }
}
