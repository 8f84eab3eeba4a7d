//! A random id that distinguishes this host from others with the same name: many are called `localhost`. Kept in the
//! state directory.

use std::io::{self, Read, Write};
use std::path::Path;

use nix::unistd::gethostname;

use crate::state_files::{self, Mode, StateError};

const FILE: &str = "host-id";
/// In hexadecimal digits.
pub(super) const ID_LENGTH: usize = 16;

/// This host's name in the cache that hosts share: its id, and its host name for people. Creates the state directory.
pub(crate) fn owner(state_dir: &Path) -> Result<String, StateError> {
    state_files::create_dir(state_dir)?;
    Ok(owner_of(&read_or_create(state_dir)?))
}

/// The same, if this host has a name there yet. Creates nothing.
pub(crate) fn known_owner(state_dir: &Path) -> Result<Option<String>, StateError> {
    Ok(read(&state_dir.join(FILE))?.as_deref().map(owner_of))
}

fn owner_of(id: &str) -> String {
    format!("{}:{id}", gethostname().unwrap_or_default().display())
}

/// This host's id. The state directory must exist.
pub(super) fn read_or_create(state_dir: &Path) -> Result<String, StateError> {
    let path = state_dir.join(FILE);
    if let Some(id) = read(&path)? {
        return Ok(id);
    }
    create(&path).map_err(StateError::io(&path, "written"))?;
    // Another supervisor may have been first, and its id counts.
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged; delete it");
    read(&path)?.ok_or_else(damaged).map_err(StateError::io(&path, "read"))
}

/// The id, if there is one. Takes no lock, so that a process that holds one cannot delay the supervisor.
fn read(path: &Path) -> Result<Option<String>, StateError> {
    let file = match state_files::open(path, Mode::Read) {
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut id = String::new();
    file.take(ID_LENGTH as u64 + 1).read_to_string(&mut id).map_err(StateError::io(path, "read"))?;
    // Earlier versions created the file before they wrote it, and left an empty one if they were killed in between.
    Ok((!id.is_empty()).then_some(id))
}

/// Writes a new id unless there is one. The file appears whole or not at all.
fn create(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".host-id-").tempfile_in(dir)?;
    write!(file, "{:0ID_LENGTH$x}", fastrand::u64(..))?;
    if path.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        return file.persist(path).map(drop).map_err(Into::into);
    }
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}
