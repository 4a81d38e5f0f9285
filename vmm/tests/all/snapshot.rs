//! Snapshots of machines of a few instructions, on this host's own KVM.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::{Kernel, no_kvm};
use vmm::api::{SnapshotKind, SnapshotReport, SnapshotRequest};
use vmm::host::KvmKind;
use vmm::snapshot::format::{self, Writer};
use vmm::{Console, ExitReason, Handle, Machine, VmConfig, VmmError};

/// Long enough for anything here, on any machine: only a hang takes it.
const HANG: Duration = Duration::from_secs(60);

/// Keeps a value in a register and in memory, says "r" on the serial port, waits there for a byte, and powers off if
/// that is "g" and both values are still there; otherwise it panics.
const WAITER: &[u8] = &[
    0x48, 0xc7, 0xc3, 0x34, 0x12, 0x00, 0x00, // mov $0x1234, %rbx
    0x48, 0x89, 0x1c, 0x25, 0x00, 0x00, 0x20, 0x00, // mov %rbx, 0x200000
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xb0, 0x72, // mov $'r', %al
    0xee, // out %al, (%dx)
    0x66, 0xba, 0xfd, 0x03, // 1: mov $0x3fd, %dx
    0xec, // in (%dx), %al
    0xa8, 0x01, // test $1, %al
    0x74, 0xf7, // jz 1b
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xec, // in (%dx), %al
    0x3c, 0x67, // cmp $'g', %al
    0x75, 0x17, // jne 2f
    0x48, 0x81, 0xfb, 0x34, 0x12, 0x00, 0x00, // cmp $0x1234, %rbx
    0x75, 0x0e, // jne 2f
    0x48, 0x39, 0x1c, 0x25, 0x00, 0x00, 0x20, 0x00, // cmp %rbx, 0x200000
    0x75, 0x04, // jne 2f
    0xb0, 0x01, // mov $1, %al
    0xeb, 0x02, // jmp 3f
    0xb0, 0x03, // 2: mov $3, %al
    0x66, 0xba, 0x00, 0x06, // 3: mov $0x600, %dx
    0xee, // out %al, (%dx)
    0xf4, // hlt
];

struct Tell(Sender<u8>);

impl Write for Tell {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.0.send(byte).map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine that runs, with its serial port in our hands.
struct Running {
    handle: Handle,
    thread: JoinHandle<Result<ExitReason, VmmError>>,
    keyboard: File,
    output: Receiver<u8>,
}

impl Running {
    fn start(config: &VmConfig) -> Result<Self, VmmError> {
        let (reader, writer) = UnixStream::pair().unwrap();
        let (sender, output) = mpsc::channel();
        let console = Console { input: Some(reader.into()), output: Box::new(Tell(sender)) };
        let machine = Machine::build(config, Some(console), &mut |_| {})?;
        let handle = machine.handle();
        let thread = thread::spawn(move || machine.run(&mut |_| {}));
        Ok(Running { handle, thread, keyboard: File::from(OwnedFd::from(writer)), output })
    }

    /// One that has booted and waits for its byte.
    fn waiting(vcpus: u8) -> Self {
        let running = Running::start(&Kernel::new(WAITER).config(vcpus)).unwrap();
        assert_eq!(running.output.recv_timeout(HANG), Ok(b'r'));
        running
    }

    fn snapshot(&self, path: &Path) -> Result<SnapshotReport, VmmError> {
        self.snapshot_of(SnapshotKind::Full, path)
    }

    fn snapshot_of(&self, kind: SnapshotKind, path: &Path) -> Result<SnapshotReport, VmmError> {
        Ok(self.handle.snapshot(&SnapshotRequest { path: path.to_owned(), kind, base_of_next: false })?)
    }

    /// One that the next change is a change to.
    fn base(&self, kind: SnapshotKind, path: &Path) -> Result<SnapshotReport, VmmError> {
        Ok(self.handle.snapshot(&SnapshotRequest { path: path.to_owned(), kind, base_of_next: true })?)
    }

    fn end(mut self, key: u8) -> ExitReason {
        self.keyboard.write_all(&[key]).unwrap();
        self.thread.join().unwrap().unwrap()
    }
}

fn from(snapshot: &Path) -> VmConfig {
    VmConfig::from_json(&serde_json::json!({ "snapshot": { "path": snapshot } }).to_string()).unwrap()
}

#[test]
fn original_and_clones_go_on_where_they_were() {
    if no_kvm("original_and_clones_go_on_where_they_were") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one");
    for vcpus in [1, 2] {
        let original = Running::waiting(vcpus);
        let report = original.snapshot(&path).unwrap();
        assert!(report.bytes > 0 && report.bytes < 8 << 20 && report.pause_ns > 0, "{report:?}");
        let clones = [b'g', b'x', b'g'].map(|key| (Running::start(&from(&path)).unwrap(), key));
        // A clone's clone, of a machine that has never run here.
        let second = dir.path().join("two");
        clones[0].0.snapshot(&second).unwrap();
        let grandchild = Running::start(&from(&second)).unwrap();
        assert_eq!(original.end(b'g'), ExitReason::PowerOff);
        for (clone, key) in clones {
            let expected = if key == b'g' { ExitReason::PowerOff } else { ExitReason::Panic };
            assert_eq!(clone.end(key), expected);
        }
        assert_eq!(grandchild.end(b'g'), ExitReason::PowerOff);
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn changes_are_laid_over_what_they_are_changes_to() {
    if no_kvm("changes_are_laid_over_what_they_are_changes_to") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let kernel = Kernel::new(WAITER);
    let mut config = kernel.config(1);
    let untracked = Running::start(&config).unwrap();
    assert_eq!(untracked.output.recv_timeout(HANG), Ok(b'r'));
    untracked.snapshot(&at("full")).unwrap();
    assert!(untracked.snapshot_of(SnapshotKind::Diff, &at("none")).unwrap_err().to_string().contains("full one"));
    // Bases one by one: what is taken between two of them is no base.
    let base = untracked.base(SnapshotKind::Full, &at("base")).unwrap().bytes;
    for name in ["between", "next"] {
        let report = untracked.snapshot_of(SnapshotKind::Diff, &at(name)).unwrap();
        assert!(report.bytes < base, "{name}: {report:?} after {base}");
    }
    untracked.base(SnapshotKind::Diff, &at("second")).unwrap();
    fs::remove_dir_all(at("between")).unwrap();
    untracked.snapshot_of(SnapshotKind::Diff, &at("next")).unwrap();
    let clone = Running::start(&from(&at("next"))).unwrap();
    assert_eq!(untracked.end(b'g'), ExitReason::PowerOff);
    assert_eq!(clone.end(b'g'), ExitReason::PowerOff);

    config.machine.track_dirty_pages = true;
    let original = Running::start(&config).unwrap();
    assert_eq!(original.output.recv_timeout(HANG), Ok(b'r'));
    assert!(original.snapshot_of(SnapshotKind::Diff, &at("none")).is_err());
    let full = original.snapshot(&at("one")).unwrap().bytes;
    for (name, parent) in [("two", "one"), ("three", "two")] {
        let report = original.snapshot_of(SnapshotKind::Diff, &at(name)).unwrap();
        assert!(report.bytes < full, "{name}: {report:?}, {full} after {parent}");
        assert!(original.snapshot_of(SnapshotKind::Diff, &at(name)).is_err(), "in the place of its parent");
    }
    // From the end of the chain, and a change to what it came from.
    let clone = Running::start(&from(&at("three"))).unwrap();
    clone.snapshot_of(SnapshotKind::Diff, &at("four")).unwrap();
    let grandchild = Running::start(&from(&at("four"))).unwrap();
    for running in [original, clone, grandchild] {
        assert_eq!(running.end(b'g'), ExitReason::PowerOff);
    }
    let error = |what: &str| {
        let error = Running::start(&from(&at("four"))).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    };
    fs::rename(at("one"), at("elsewhere")).unwrap();
    error("one");
    fs::rename(at("full"), at("one")).unwrap();
    error("replaced");
}

#[test]
fn a_paused_machine_stays_paused_and_so_does_a_clone_that_is_not_resumed() {
    if no_kvm("a_paused_machine_stays_paused_and_so_does_a_clone_that_is_not_resumed") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one");
    let original = Running::waiting(1);
    original.handle.pause();
    original.snapshot(&path).unwrap();
    assert_eq!(original.handle.state(), vmm::machine::RunState::Paused);
    original.handle.resume();
    assert_eq!(original.end(b'g'), ExitReason::PowerOff);

    let mut config = from(&path);
    config.snapshot.as_mut().unwrap().resume = false;
    let mut clone = Running::start(&config).unwrap();
    clone.keyboard.write_all(b"g").unwrap();
    assert_eq!(clone.handle.state(), vmm::machine::RunState::Paused);
    clone.handle.resume();
    assert_eq!(clone.thread.join().unwrap().unwrap(), ExitReason::PowerOff);
}

#[test]
fn a_snapshot_that_cannot_be_written_leaves_nothing_behind_and_the_machine_goes_on() {
    if no_kvm("a_snapshot_that_cannot_be_written_leaves_nothing_behind_and_the_machine_goes_on") {
        return;
    }
    let original = Running::waiting(1);
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("thesis"), "x").unwrap();
    for target in [taken.as_path(), &dir.path().join("missing/one"), Path::new("/")] {
        assert!(original.snapshot(target).is_err(), "{}", target.display());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let handle = original.handle.clone();
    assert_eq!(original.end(b'g'), ExitReason::PowerOff);
    let late = SnapshotRequest { path: dir.path().join("late"), kind: SnapshotKind::Full, base_of_next: false };
    assert!(handle.snapshot(&late).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    if no_kvm("what_does_not_belong_together_is_refused") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let original = Running::waiting(1);
    original.snapshot(&one).unwrap();
    original.snapshot(&two).unwrap();
    original.handle.stop();
    original.thread.join().unwrap().unwrap();
    let refused = |what: &str| {
        let error = Running::start(&from(&two)).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(what), "{error:?} does not tell of {what}");
    };
    fs::rename(one.join("memory"), two.join("memory")).unwrap();
    refused("memory");
    File::options().write(true).open(two.join("memory")).unwrap().set_len(1 << 20).unwrap();
    refused("memory");
    fs::remove_file(two.join("memory")).unwrap();
    refused("memory");
    fs::write(two.join("state"), &fs::read(one.join("state")).unwrap()[..100]).unwrap();
    refused("truncated");
}

/// Changes what a snapshot says of where it was taken, and signs it again.
fn taken_elsewhere(snapshot: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = snapshot.join("state");
    let file = fs::read(&path).unwrap();
    let mut change = Some(change);
    let mut writer = Writer::default();
    for record in format::parse(&file).unwrap() {
        let mut bytes = record.bytes.to_vec();
        if let Ok(mut meta) = serde_json::from_slice::<serde_json::Value>(&bytes)
            && meta.get("kvm").is_some()
        {
            change.take().expect("one record")(&mut meta);
            bytes = meta.to_string().into_bytes();
        }
        writer.push(record.kind, record.version, &bytes);
    }
    assert!(change.is_none(), "no record says where");
    fs::write(path, writer.finish()).unwrap();
}

#[test]
fn a_snapshot_of_another_kind_of_host_is_refused_with_the_reason() {
    if no_kvm("a_snapshot_of_another_kind_of_host_is_refused_with_the_reason") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one");
    let original = Running::waiting(1);
    original.snapshot(&path).unwrap();
    original.handle.stop();
    original.thread.join().unwrap().unwrap();
    let good = fs::read(path.join("state")).unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value), words: &[&str]| {
        fs::write(path.join("state"), &good).unwrap();
        taken_elsewhere(&path, change);
        let error = Running::start(&from(&path)).err().map(|e| e.to_string()).unwrap_or_default();
        for word in words.iter().chain(&["does not fit this host", "boot anew"]) {
            assert!(error.contains(word), "{error:?} does not tell of {word}");
        }
    };
    let here = vmm::host::kind();
    let (other, said) = if here == KvmKind::AmdV { ("vt-x", "VT-x") } else { ("amd-v", "AMD-V") };
    refused(&|meta| meta["kvm"] = other.into(), &[said, &here.to_string()]);
    refused(&|meta| meta["cpu"]["vendor"] = "AnotherMaker".into(), &["AnotherMaker"]);
    // Another model of the same maker's, which guests here may see.
    if here == KvmKind::SoftwareNested {
        refused(&|meta| meta["cpu"]["signature"] = 1.into(), &["processor"]);
    }
    // Of this host, it is as good as before.
    fs::write(path.join("state"), &good).unwrap();
    taken_elsewhere(&path, |_| {});
    assert_eq!(Running::start(&from(&path)).unwrap().end(b'g'), ExitReason::PowerOff);
}
