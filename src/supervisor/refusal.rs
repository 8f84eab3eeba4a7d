//! Definitions that get no worker for a while, because their last worker could do nothing.
//!
//! A worker that can handle none of the pending messages ends at once, and the next one would do the same. It writes its
//! reason to a file beside its slot. No other worker is started until that file is old, or the configuration has changed.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::state_files::{self, Mode, StateError};

/// No slot has this name: slots are numbers.
const FILE: &str = "refused";

/// How long a reason is valid. Then another worker is started, which shows whether it still is.
const VALID_FOR: Duration = Duration::from_secs(300);

/// A longer reason (in bytes) is cut off.
const MAX_BYTES: u64 = 64 << 10;

/// Writes to the folder of a definition's slots why its workers can do nothing.
pub(super) fn write(dir: &Path, why: &str) -> Result<(), StateError> {
    let mut file = state_files::open(&dir.join(FILE), Mode::ReadWrite)?;
    file.set_len(0).and_then(|()| file.write_all(why.as_bytes())).map_err(StateError::io(dir, "written"))
}

/// Why no worker of this definition is to be started now, if so. `config` is the configuration's file.
pub(super) fn read(dir: &Path, config: &Path) -> Option<String> {
    let file = state_files::open(&dir.join(FILE), Mode::Read).ok()?;
    let written = file.metadata().ok()?.modified().ok()?;
    // A file from the future was written before the clock was set back, and says nothing about now.
    let old = SystemTime::now().duration_since(written).map_or(true, |age| age >= VALID_FOR);
    let changed =
        fs::metadata(config).and_then(|config| config.modified()).is_ok_and(|changed_at| changed_at > written);
    if old || changed {
        return None;
    }
    let mut why = String::new();
    file.take(MAX_BYTES).read_to_string(&mut why).ok()?;
    (!why.is_empty()).then_some(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_valid_until_it_is_old_or_the_configuration_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        fs::write(&config, "").unwrap();
        assert_eq!(read(dir.path(), &config), None);

        write(dir.path(), "no handler").unwrap();
        let set = |name: &Path, time| fs::File::options().write(true).open(name).unwrap().set_modified(time).unwrap();
        let (reason, now) = (dir.path().join(FILE), SystemTime::now());
        set(&config, now - Duration::from_secs(60));
        assert_eq!(read(dir.path(), &config).as_deref(), Some("no handler"));
        set(&reason, now - Duration::from_secs(61));
        assert_eq!(read(dir.path(), &config), None, "the configuration is newer");
        set(&config, now - Duration::from_secs(3600));
        set(&reason, now - VALID_FOR);
        assert_eq!(read(dir.path(), &config), None, "it is old");
        set(&reason, now + Duration::from_secs(3600));
        assert_eq!(read(dir.path(), &config), None, "it is from the future");
    }
}
