//! SIGKILL at each call by which a snapshot is saved or removed: what is there afterwards is the old one or the new one, whole.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;
use tests::control::Control;
use tests::{Lab, Running, elf};

use crate::ending::wait_for_the_orphan;
use crate::lab;
use crate::snapshots::{COUNTER, can_poll, done, interactive, names};
use crate::tracer::Tracer;

/// More calls than any of these programs makes.
const MOST_CALLS: usize = 200;

/// A guest whose state is a number, in a file.
fn counter(lab: &Lab) -> String {
    let kernel = lab.path("kernel");
    fs::write(&kernel, elf::executable(0x10_0000, COUNTER, 4096)).unwrap();
    kernel.display().to_string()
}

/// A copy of a directory of files that nobody writes to.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-al").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "{}", from.display());
}

/// Whether that is such a copy, all of it.
fn is_same(copy: &Path, from: &Path) -> bool {
    let files = |dir: &Path| {
        let file =
            |entry: io::Result<DirEntry>| entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?.ino())));
        fs::read_dir(dir).unwrap().map(|entry| file(entry).unwrap()).collect::<BTreeSet<_>>()
    };
    files(copy) == files(from)
}

/// The thread of the process whose children take snapshots.
fn nursery(running: &Running) -> u32 {
    let threads = fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap();
    let is = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "nursery\n");
    let path = threads.map(|entry| entry.unwrap().path()).find(|path| is(path)).expect("the thread");
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// A machine that goes on from a snapshot, its keyboard in our hands.
fn go_on(lab: &Lab, snapshot: &Path) -> (Running, Control) {
    let socket = lab.path("api.sock");
    let running = interactive(lab, &["vmm", "--api-sock", &socket.display().to_string()]);
    let control = Control::of(&running, socket, lab.patience(1));
    control.done("PUT", "/snapshot/load", json!({ "snapshot_path": snapshot, "resume_vm": true }));
    (running, control)
}

/// What the machine in a snapshot has come to, seen by going on from it.
fn number_in(lab: &Lab, snapshot: &Path) -> u8 {
    let (mut running, _) = go_on(lab, snapshot);
    running.say("xq");
    let ended = running.end(lab.patience(1));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.text().parse::<u8>().unwrap() - 1
}

/// A full snapshot and a change, both with a disk, each in place of an older one.
#[test]
fn group_8_a_killed_monitor_leaves_the_old_snapshot_or_the_new_one() {
    const TEST: &str = "group_8_a_killed_monitor_leaves_the_old_snapshot_or_the_new_one";
    let lab = lab!(TEST);
    if !can_poll(TEST) {
        return;
    }
    let patience = lab.patience(1);
    let place = lab.path("snapshots");
    fs::create_dir(&place).unwrap();
    let (old, target, disk) = (place.join("old"), place.join("target"), lab.path("disk"));
    fs::write(&disk, [0; 8192]).unwrap();
    let (socket, file) = (lab.path("api.sock").display().to_string(), lab.path("vm.json"));
    let config = json!({
        "boot-source": { "kernel_image_path": counter(&lab) }, "machine-config": { "vcpu_count": 1, "mem_size_mib": 16 },
        "drives": [{ "drive_id": "d", "path_on_host": disk, "is_root_device": false }],
    });
    fs::write(&file, config.to_string()).unwrap();
    let mut first = interactive(&lab, &["vmm", "--config-file", file.to_str().unwrap(), "--api-sock", &socket]);
    first.wait_for("r", patience);
    let control = Control::of(&first, socket.into(), patience);
    control.done("PUT", "/snapshot/create", json!({ "snapshot_path": old }));
    first.say("q");
    assert_eq!(first.end(patience).code, Some(0));
    fs::write(&disk, [1; 8192]).unwrap();

    for kind in ["Full", "Diff"] {
        let (mut calls, mut before) = (Vec::new(), 0);
        for nth in 1..MOST_CALLS {
            copy(&old, &target);
            let (mut running, control) = go_on(&lab, &old);
            control.done("PATCH", "/drives/d", json!({ "drive_id": "d", "path_on_host": disk }));
            running.say("x");
            running.wait_for("1", patience);
            let tracer = Tracer::kill_at(running.pid(), nursery(&running), nth).expect("ptrace");
            let order = json!({ "snapshot_path": target, "snapshot_type": kind });
            let answer = control.attempt("PUT", "/snapshot/create", &order);
            running.signal(Signal::KILL);
            let call = tracer.end();
            assert_eq!(running.end(patience).code, None);

            // The very files of the old one need no proof.
            let number = if is_same(&target, &old) { 0 } else { number_in(&lab, &target) };
            let disk = fs::read(target.join("disk-0")).unwrap();
            assert!(number >= before && number <= 1, "{kind}, killed at {nth}, {call:?}: {number} after {before}");
            assert!(disk == [number; 8192], "{kind}, killed at {nth}, {call:?}: the disk is not of {number}");
            before = number;
            if let Ok(answer) = answer {
                assert_eq!((answer.0, number), (204, 1), "{answer:?}");
                // What it wrote afterwards was the answer.
            }
            match call {
                Some(call) => calls.push(call),
                None => break,
            }
        }
        assert_eq!(before, 1, "{calls:?}");
        for call in ["mkdir", "open", "pwrite", "fsync", "renameat2", "unlinkat"] {
            assert!(calls.contains(&call), "{call} is not among {calls:?}");
        }
        // The last one was not killed, and has removed what the others left.
        let left: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
    lab.assert_clean();
}

/// The directory of a named snapshot.
fn at(store: &Path, name: &str) -> PathBuf {
    store.join(fs::read_link(store.join(".names").join(name)).unwrap())
}

/// `bulkhead` with this line, killed at its `nth` call; the call.
fn run_killed(lab: &Lab, line: &[&str], nth: usize) -> Option<&'static str> {
    let bulkhead = lab.bulkhead(line);
    let mut command = Command::new("sh");
    command.args(["-c", "read go; exec \"$@\"", "sh"]).arg(bulkhead.get_program()).args(bulkhead.get_args());
    for (key, value) in bulkhead.get_envs() {
        value.map(|value| command.env(key, value));
    }
    let mut running = Running::start({
        command.stdin(Stdio::piped());
        command
    });
    let tracer = Tracer::kill_at(running.pid(), running.pid(), nth).expect("ptrace");
    running.say("go\n");
    let call = tracer.end();
    let ended = running.end(lab.patience(1));
    assert_eq!(ended.code.is_none(), call.is_some(), "{ended:?}");
    call
}

/// Who has a microVM is killed while it makes a named snapshot of it, and then who removes one. The monitor's part is the test above.
#[test]
fn group_8_names_are_of_whole_snapshots_whenever_their_makers_and_removers_are_killed() {
    const TEST: &str = "group_8_names_are_of_whole_snapshots_whenever_their_makers_and_removers_are_killed";
    let lab = lab!(TEST);
    if !can_poll(TEST) {
        return;
    }
    let patience = lab.patience(1);
    let lab = lab.own_store();
    let (store, kept) = (lab.store().join("snapshots"), lab.path("kept"));
    let kernel = counter(&lab);
    let mut first = interactive(&lab, &["boot", "--name", "m", "--kernel", &kernel, "-m", "16m"]);
    first.wait_for("r", patience);
    assert_eq!(done(lab.run(["snapshot", "m", "base"])), "base\n");
    first.say("q");
    assert_eq!(first.end(patience).code, Some(0));
    copy(&store, &kept);
    // Of a snapshot that is there, by its name.
    let assert_whole = |name: &str, number: &str| {
        let mut running = interactive(&lab, &["restore", name, "--name", "clone"]);
        running.say("xq");
        let ended = running.end(patience);
        assert_eq!((ended.code, ended.text()), (Some(0), number), "{name}: {ended:?}");
    };

    let (mut calls, mut was_there, mut said) = (Vec::new(), false, String::new());
    for nth in 1..MOST_CALLS {
        copy(&kept, &store);
        let mut owner = interactive(&lab, &["restore", "base", "--name", "m"]);
        owner.say("x");
        owner.wait_for("1", patience);
        let tracer = Tracer::kill_at(owner.pid(), owner.pid(), nth).expect("ptrace");
        let asked = Running::start(lab.bulkhead(["snapshot", "m", "next"])).end(patience);
        owner.signal(Signal::KILL);
        let call = tracer.end();
        assert_eq!(owner.end(patience).code, None);
        wait_for_the_orphan(&lab);
        let names = names(&lab);
        let there = names == ["base", "next"];
        assert!(there || names == ["base"] && !was_there && asked.code != Some(0), "{nth}, {call:?}: {names:?}");
        if there {
            assert_whole("next", "2");
        }
        (was_there, said) = (there, asked.stderr);
        lab.assert_clean();
        match call {
            Some(call) => calls.push(call),
            None => break,
        }
    }
    assert!(was_there && calls.contains(&"fsync") && calls.contains(&"symlink"), "{calls:?}, {said}");

    // The one that the other is a change to, and that other.
    copy(&store, &kept);
    for (gone, other) in [("base", "next"), ("next", "base")] {
        let mut calls = Vec::new();
        for nth in 1..MOST_CALLS {
            copy(&kept, &store);
            let call = run_killed(&lab, &["snapshots", "rm", gone], nth);
            let names = names(&lab);
            assert!(names.iter().any(|name| name == other), "{nth}, {call:?}: {names:?}");
            let touched =
                names.len() < 2 || ["base", "next"].iter().any(|name| !is_same(&at(&store, name), &at(&kept, name)));
            for (name, number) in [("base", "1"), ("next", "2")] {
                if touched && names.iter().any(|there| there == name) {
                    assert_whole(name, number);
                }
            }
            lab.assert_clean();
            match call {
                Some(call) => calls.push(call),
                None => break,
            }
        }
        assert!(calls.contains(&"unlink"), "{calls:?}");
    }
}
