//! Worker definitions that are held back, because their last worker has said that somebody must mend something first.
//!
//! A worker that can handle nothing of what waits ends at once, and the next one would do the same. It leaves its reason
//! beside its slot; until that is old, or the configuration has changed, no other one is started.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::state::{self, Mode, StateError};

/// The name of the file. No slot has it: those are numbers.
const NAME: &str = "refused";

/// How long a reason holds. Then one more try shows whether it still does.
const HOLDS: Duration = Duration::from_secs(300);

/// A longer reason was not written by [`write`].
const LONGEST: u64 = 64 << 10;

/// Writes down, in the folder of a definition's slots, why its workers can do nothing.
pub(super) fn write(dir: &Path, why: &str) -> Result<(), StateError> {
    let mut file = state::open(&dir.join(NAME), Mode::ReadWrite)?;
    file.set_len(0).and_then(|()| file.write_all(why.as_bytes())).map_err(StateError::io(dir, "written"))
}

/// Why no worker of a definition is to be started now. `config` is the configuration's file.
pub(super) fn read(dir: &Path, config: &Path) -> Option<String> {
    let file = state::open(&dir.join(NAME), Mode::Read).ok()?;
    let written = file.metadata().ok()?.modified().ok()?;
    // A file from the future says nothing about now.
    let old = SystemTime::now().duration_since(written).map_or(true, |age| age >= HOLDS);
    let mended = fs::metadata(config).and_then(|config| config.modified()).is_ok_and(|changed| changed > written);
    if old || mended {
        return None;
    }
    let mut why = String::new();
    file.take(LONGEST).read_to_string(&mut why).ok()?;
    (!why.is_empty()).then_some(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_holds_until_it_is_old_or_the_configuration_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        fs::write(&config, "").unwrap();
        assert_eq!(read(dir.path(), &config), None);

        write(dir.path(), "no handler").unwrap();
        let set = |name: &Path, time| fs::File::options().write(true).open(name).unwrap().set_modified(time).unwrap();
        let (reason, now) = (dir.path().join(NAME), SystemTime::now());
        set(&config, now - Duration::from_secs(60));
        assert_eq!(read(dir.path(), &config).as_deref(), Some("no handler"));
        set(&reason, now - Duration::from_secs(61));
        assert_eq!(read(dir.path(), &config), None, "the configuration is newer");
        set(&config, now - Duration::from_secs(3600));
        set(&reason, now - HOLDS);
        assert_eq!(read(dir.path(), &config), None, "it is old");
        set(&reason, now + Duration::from_secs(3600));
        assert_eq!(read(dir.path(), &config), None, "it is from the future");
    }
}
