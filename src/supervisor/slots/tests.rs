//! Slots, with locks and files as they are on a disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::super::fixture::{eventually, soon};
use super::super::process::ProcessId;
use super::*;

fn slots() -> (TempDir, Slots) {
    let dir = tempfile::tempdir().unwrap();
    let slots = Slots::new(&dir.path().join("var"));
    (dir, slots)
}

fn this_process() -> ProcessId {
    ProcessId::of(std::process::id()).unwrap()
}

fn live_numbers(slots: &Slots) -> Vec<u32> {
    slots.live("mail").unwrap().iter().map(|slot| slot.slot).collect()
}

/// Claims a free slot. Another test's child may hold a copy of a released lock for an instant.
fn claim(slots: &Slots, slot: u32) -> SlotClaim {
    soon("the slot is free", || slots.claim("mail", slot).unwrap())
}

/// The slot file that a worker leaves which has died, or has closed its descriptor.
fn leave_record(slots: &Slots, process: ProcessId) {
    let held = claim(slots, 0);
    held.record(process, vec!["php".into()]).unwrap();
}

#[test]
fn a_slot_is_claimed_once_and_free_again_afterwards() {
    let (_dir, slots) = slots();
    let held = claim(&slots, 0);
    assert!(slots.claim("mail", 0).unwrap().is_none());
    claim(&slots, 1);
    assert_eq!(live_numbers(&slots), [0]);
    drop(held);
    eventually("no slot is live", || live_numbers(&slots).is_empty());
    claim(&slots, 0);
}

#[test]
fn looking_creates_nothing() {
    let (dir, slots) = slots();
    assert_eq!(slots.live("mail").unwrap(), []);
    assert_eq!(slots.all_live().unwrap(), []);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn concurrent_checks_do_not_see_each_other() {
    let (_dir, slots) = slots();
    drop(claim(&slots, 0));
    let looking = state_files::open(&slots.path("mail", 0), Mode::Read).unwrap();
    looking.try_lock_shared().unwrap();
    eventually("no slot is live", || live_numbers(&slots).is_empty());
}

#[test]
fn a_pid_reused_by_another_program_is_not_a_worker() {
    let (_dir, slots) = slots();
    let reused = ProcessId { started_at: this_process().started_at - 3600, ..this_process() };
    leave_record(&slots, reused);
    eventually("no slot is live", || live_numbers(&slots).is_empty());
    claim(&slots, 0);
}

#[test]
fn a_worker_that_closed_its_lock_still_occupies_its_slot() {
    let (_dir, slots) = slots();
    leave_record(&slots, this_process());
    assert_eq!(live_numbers(&slots), [0]);
    assert!(slots.claim("mail", 0).unwrap().is_none());
    assert_eq!(slots.live("mail").unwrap()[0].record.as_ref().unwrap().command, ["php"]);
}

#[test]
fn a_damaged_record_hides_no_worker_and_blocks_no_slot() {
    let (_dir, slots) = slots();
    leave_record(&slots, this_process());
    let path = slots.path("mail", 0);
    let half = fs::read(&path).unwrap();
    for damaged in [&half[..half.len() / 2], b"\0\0\0\0", b"null", b"[]", b"\xff"] {
        fs::write(&path, damaged).unwrap();
        eventually("no slot is live", || live_numbers(&slots).is_empty());
        let held = claim(&slots, 0);
        fs::write(&path, damaged).unwrap();
        assert_eq!(slots.live("mail").unwrap(), [LiveSlot { definition: "mail".into(), slot: 0, record: None }]);
        drop(held);
    }
}

#[test]
fn the_last_workers_record_is_gone_when_the_slot_is_claimed() {
    let (_dir, slots) = slots();
    leave_record(&slots, ProcessId { started_at: 0, ..this_process() });
    let _claim = claim(&slots, 0);
    assert_eq!(slots.live("mail").unwrap()[0].record, None);
}

#[test]
fn a_slot_that_is_not_a_file_is_an_error_for_that_slot_only() {
    let (dir, slots) = slots();
    drop(claim(&slots, 0));
    fs::create_dir(slots.path("mail", 1)).unwrap();
    nix::unistd::mkfifo(&slots.path("mail", 2), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(dir.path().join("elsewhere"), slots.path("mail", 3)).unwrap();
    for slot in 1..=3 {
        let error = slots.claim("mail", slot).unwrap_err().to_string();
        assert!(error.ends_with(&format!("mail/{slot} is not a regular file; move it away")), "{error}");
    }
    let _claim = claim(&slots, 0);
    assert_eq!(live_numbers(&slots), [0]);
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn other_files_among_the_slots_are_ignored() {
    let (_dir, slots) = slots();
    let _claim = claim(&slots, 7);
    for name in ["+7", ".DS_Store", "99999999999", "notes"] {
        fs::write(slots.dir.join("mail").join(name), "").unwrap();
    }
    fs::write(slots.dir.join("stray"), "").unwrap();
    assert_eq!(live_numbers(&slots), [7]);
    assert_eq!(slots.all_live().unwrap().len(), 1);
}

#[test]
fn deleting_the_state_directory_while_nothing_runs_is_harmless() {
    let (dir, slots) = slots();
    drop(claim(&slots, 0));
    fs::remove_dir_all(dir.path().join("var")).unwrap();
    eventually("no slot is live", || live_numbers(&slots).is_empty());
    claim(&slots, 0);
}

#[test]
fn only_the_owner_can_read_the_state_directory() {
    let (dir, slots) = slots();
    let _claim = claim(&slots, 0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("var")), 0o700);
    assert_eq!(mode(&dir.path().join("var/slots/mail")), 0o700);
    assert_eq!(mode(&slots.path("mail", 0)), 0o600);
}

#[test]
fn the_error_for_a_state_directory_that_cannot_be_created_names_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("var"), "").unwrap();
    let error = Slots::new(&dir.path().join("var")).claim("mail", 0).unwrap_err().to_string();
    assert!(error.contains("var/slots/mail could not be created: "), "{error}");
}
