//! Named snapshots: taken of running microVMs, listed as a tree, gone on from, gone back to, removed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tests::{Ended, Lab, Running, elf};

use crate::lab;

/// Says "r", then for each byte on the serial port how many have come, and powers off at "q". It looks for bytes now and then,
/// since each look is an exit. 32-bit forms that mean the same in 64-bit mode.
pub(crate) const COUNTER: &[u8] = &[
    0x31, 0xdb, // xor %ebx, %ebx
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, // mov $0x3f8, %dx; mov $'r', %al; out %al, (%dx)
    0xb9, 0x50, 0xc3, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xfc, // 1: mov $50000, %ecx; 0: dec %ecx; jnz 0b
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xee, // mov $0x3fd, %dx; in (%dx), %al; test $1, %al; jz 1b
    0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, b'q', 0x74, 0x09, // mov $0x3f8, %dx; in (%dx), %al; cmp $'q', %al; je 2f
    0xfe, 0xc3, 0x88, 0xd8, 0x04, b'0', 0xee, 0xeb,
    0xdc, // inc %bl; mov %bl, %al; add $'0', %al; out %al, (%dx); jmp 1b
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x01, 0xee, 0xf4, // 2: mov $0x600, %dx; mov $1, %al; out %al, (%dx); hlt
];

/// Whether that guest can run here. On an emulated AMD-V host the first fetch after an exit now and then ends in a page fault that the
/// guest's page tables do not have. A kernel tries again and goes on; this guest has no handlers and crashes (docs/test-hosts.md).
pub(crate) fn can_poll(test: &str) -> bool {
    let emulated = std::env::var_os("BULKHEAD_TEST_EMULATOR").is_some();
    if emulated {
        tests::lab::skip(
            test,
            "QEMU's emulation of AMD-V gives page faults to a guest that polls, which has no handler",
        );
    }
    !emulated
}

/// Whether the host keeps its interrupts: QEMU before version 10 loses some when it emulates AMD-V.
pub(crate) fn keeps_interrupts(test: &str) -> bool {
    let emulator = std::env::var("BULKHEAD_TEST_EMULATOR").ok();
    let old = emulator.filter(|version| version.parse().is_ok_and(|major: u32| major < 10));
    if let Some(version) = &old {
        tests::lab::skip(test, &format!("QEMU {version} loses interrupts when it emulates AMD-V"));
    }
    old.is_none()
}

pub(crate) fn interactive(lab: &Lab, line: &[&str]) -> Running {
    let mut command = lab.bulkhead(line);
    command.stdin(Stdio::piped());
    Running::start(command)
}

/// What a command prints, which succeeds.
pub(crate) fn done(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.text().to_owned()
}

fn list(lab: &Lab) -> Vec<Value> {
    let text = done(lab.run(["snapshots", "--format", "json"]));
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

pub(crate) fn names(lab: &Lab) -> Vec<String> {
    list(lab).iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

/// A bare machine, whose state is a number: snapshots of it, a clone, the way back, and what is refused.
#[test]
fn a_bare_machine_goes_on_and_back() {
    let lab = lab!("a_bare_machine_goes_on_and_back");
    if !can_poll("a_bare_machine_goes_on_and_back") {
        return;
    }
    let patience = lab.patience(1);
    let lab = lab.own_store();
    let (kernel, disk) = (lab.path("kernel"), lab.path("disk"));
    std::fs::write(&kernel, elf::executable(0x10_0000, COUNTER, 4096)).unwrap();
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let (kernel, disk) = (kernel.display().to_string(), disk.display().to_string());
    let mut machine = interactive(&lab, &["boot", "--name", "m", "--kernel", &kernel, "--disk", &disk, "-m", "32m"]);
    let mut other = interactive(&lab, &["boot", "--name", "other", "--kernel", &kernel, "-m", "32m"]);
    machine.wait_for("r", patience);
    other.wait_for("r", patience);
    lab.run(["snapshot", "x"]).assert_failed(1, &["'x'", "m, other"]);
    lab.run(["snapshot", "m", "../x"]).assert_failed(125, &["../x", "not a name"]);
    lab.run(["commit", "--memory", "m", "x"]).assert_failed(1, &["'m'", "booted"]);
    machine.say("x");
    machine.wait_for("r1", patience);
    let taken = done(lab.run(["snapshot", "m", "first", "--format", "json"]));
    let first: Value = serde_json::from_str(&taken).unwrap();
    assert!(first["name"] == "first" && first["kind"] == "full" && first["pause_us"].as_u64() > Some(0), "{first}");
    lab.run(["snapshot", "m", "first"]).assert_failed(1, &["'first'", "in use"]);
    machine.say("x");
    machine.wait_for("r12", patience);
    assert_eq!(done(lab.run(["snapshot", "m"])), "m-1\n");
    let entries = list(&lab);
    let (one, two) = (&entries[0], &entries[1]);
    assert_eq!((&one["name"], &two["name"], &two["parent"]), (&"first".into(), &"m-1".into(), &"first".into()));
    assert_eq!((&one["incremental"], &two["incremental"]), (&false.into(), &true.into()));

    // Back, on, and back again; the clone does not mind.
    lab.run(["rollback", "m", "nothing"]).assert_failed(1, &["'nothing'", "first, m-1"]);
    lab.run(["rollback", "other", "first"]).assert_failed(1, &["'first'", "'other'"]);
    // One that turns out not to work is refused in the end, and has cost nothing.
    let copy = lab.store().join("snapshots").join(first["id"].as_str().unwrap()).join("disk-0");
    std::fs::rename(&copy, lab.path("kept")).unwrap();
    lab.run(["rollback", "m", "first"]).assert_failed(1, &["disk-0"]);
    assert!(!lab.run_dir().join("m/next-api").exists());
    std::fs::rename(lab.path("kept"), &copy).unwrap();
    let mut clone = interactive(&lab, &["restore", "first", "--name", "clone"]);
    clone.say("x");
    clone.wait_for("2", patience);
    assert_eq!(done(lab.run(["rollback", "m", "first"])), "");
    machine.say("x");
    machine.wait_for("r122", patience);
    assert_eq!(done(lab.run(["snapshot", "m", "branch"])), "branch\n");
    let tree = done(lab.run(["snapshots"]));
    let column: Vec<&str> = tree.lines().map(|line| line.split("   ").next().unwrap().trim_end()).collect();
    assert_eq!(column, ["NAME", "first", "├─ m-1", "└─ branch"], "{tree}");
    assert_eq!(done(lab.run(["rollback", "m", "m-1"])), "");
    machine.say("x");
    machine.wait_for("r1223", patience);

    // What goes has nothing to do with who came from there, or is there.
    assert_eq!(done(lab.run(["snapshots", "rm", "first", "m-1"])), "first\nm-1\n");
    assert_eq!(names(&lab), ["branch"]);
    machine.say("x");
    machine.wait_for("r12234", patience);
    assert_eq!(done(lab.run(["snapshot", "clone"])), "clone-1\n");
    a_client_that_speaks_nonsense(&lab);
    for (mut running, key) in [(machine, "q"), (other, "q"), (clone, "q")] {
        running.say(key);
        assert_eq!(running.end(patience).code, Some(0));
    }
    let mut last = interactive(&lab, &["restore", "clone-1"]);
    last.say("x");
    last.wait_for("3", patience);
    last.say("q");
    assert_eq!(last.end(patience).code, Some(0));
    assert!(std::fs::read(&disk).unwrap().iter().all(|byte| *byte == 7));
    lab.run(["snapshots", "rm", "branch", "clone-1", "nothing"]);
    assert!(names(&lab).is_empty());
    let left: Vec<_> =
        std::fs::read_dir(lab.store().join("snapshots")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".lock" || name == ".names"), "{left:?}");
    lab.assert_clean();
}

fn a_client_that_speaks_nonsense(lab: &Lab) {
    let mut stream = UnixStream::connect(lab.run_dir().join("m/attend")).unwrap();
    let silent = UnixStream::connect(lab.run_dir().join("m/attend")).unwrap();
    stream.write_all(b"{\"version\":1,\"order\":\"snapshot\",\"path\":\"/etc\"}\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("{\"error\":") && answer.contains("path"), "{answer}");
    drop(silent);
}

/// A container whose state is a shell's: what it knew, it knows after a restore, with a host name of its own.
#[test]
fn a_container_goes_on_and_back() {
    let lab = lab!("a_container_goes_on_and_back", on the machine);
    let patience = lab.patience(2);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    done(lab.run(["load", &lab.images("debian-docker.tar").display().to_string()]));
    let script = "n=0; echo ready; while read -r line; do n=$((n+1)); eval \"$line\"; done; echo end $n; exit 5";
    let mut web = interactive(&lab, &["run", "-i", "--name", "web", "debian", "sh", "-c", script]);
    web.wait_for("ready\n", patience);
    web.say("echo a$n\n");
    web.wait_for("a1\n", patience);
    assert_eq!(done(lab.run(["snapshot", "web", "one"])), "one\n");
    web.say("echo b$n > /file; echo b$n\n");
    web.wait_for("b2\n", patience);
    assert_eq!(done(lab.run(["snapshot", "web"])), "web-1\n");
    let entries = list(&lab);
    assert_eq!((&entries[1]["parent"], &entries[1]["incremental"]), (&"one".into(), &true.into()));
    assert!(entries[1]["bytes"].as_u64() < entries[0]["bytes"].as_u64(), "{entries:?}");

    // Neither the parent's name nor the image's is needed.
    done(lab.run(["snapshots", "rm", "one"]));
    lab.run(["rmi", "debian"]).assert_failed(1, &["conflict", "debian", "must force"]);
    done(lab.run(["rmi", "-f", "debian"]));
    let pruned = lab.run(["system", "prune", "-f"]);
    assert!(pruned.stderr.contains("1 snapshots"), "{pruned:?}");
    lab.run(["restore", "-t", "web-1"]).assert_failed(125, &["-t", "no terminal"]);
    let mut clone = interactive(&lab, &["restore", "-i", "web-1", "--name", "clone"]);
    clone.say("echo c$n $(cat /file) $(hostname)\n");
    clone.wait_for("c3 b2 clone\n", patience);
    clone.say_no_more();
    let ended = clone.end(patience);
    assert_eq!((ended.code, ended.text()), (Some(5), "c3 b2 clone\nend 3\n"), "{ended:?}");

    web.say("rm /file; echo d$n\n");
    web.wait_for("d3\n", patience);
    assert_eq!(done(lab.run(["rollback", "web", "web-1"])), "");
    web.say("echo e$n $(cat /file)\n");
    web.wait_for("e3 b2\n", patience);
    // Of the one that it was there is none left.
    let groups: std::collections::HashSet<_> =
        lab.control_groups().iter().filter_map(|group| Some(group.file_name()?.to_owned())).collect();
    assert!(groups.len() < 2, "{groups:?}");
    assert_eq!(done(lab.run(["commit", "--memory", "web", "app"])), "app@warm\n");
    assert!(done(lab.run(["images"])).contains("app@warm"));

    // A warm image, twice at once.
    lab.run(["run", "app@warm", "ls"]).assert_failed(125, &["app@warm", "a command"]);
    lab.run(["run", "-m", "1g", "app@warm"]).assert_failed(125, &["app@warm", "--memory"]);
    let line = ["run", "-i", "app@warm"];
    let mut clones = [interactive(&lab, &line), interactive(&lab, &line)];
    let mut hosts = std::collections::HashSet::new();
    for clone in &mut clones {
        clone.say("hostname\n");
        clone.say_no_more();
    }
    for clone in clones {
        let ended = clone.end(patience);
        assert!(ended.code == Some(5) && ended.text().ends_with("end 4\n"), "{ended:?}");
        assert!(hosts.insert(ended.text().to_owned()), "{hosts:?}");
    }
    assert_eq!(done(lab.run(["rmi", "app@warm"])), "Untagged: app@warm\n");

    // One whose guest does not come to life: web has lost nothing by it.
    let memory = lab.store().join("snapshots").join(entries[0]["id"].as_str().unwrap()).join("memory");
    empty_memory(&memory);
    lab.run(["rollback", "web", "web-1"]).assert_failed(1, &["bulkhead: "]);
    web.say("echo f$n\n");
    web.wait_for("f4\n", patience);
    let id = done(lab.run(["ps", "-q"]));
    let files = std::fs::read_dir(lab.run_dir().join(id.trim())).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = files.filter(|name| name.to_string_lossy().starts_with("next-")).collect();
    assert!(left.is_empty(), "{left:?}");
    web.say_no_more();
    assert_eq!(web.end(patience).code, Some(5));
    lab.assert_clean();
}

/// Puts a memory file without memory in the place of one, which who has it keeps.
fn empty_memory(path: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let old = std::fs::File::open(path).unwrap();
    let length = old.metadata().unwrap().len();
    let mut last = [0; 4096];
    old.read_exact_at(&mut last, length - 4096).unwrap();
    let empty = path.with_extension("empty");
    std::fs::File::create(&empty).unwrap().write_all_at(&last, length - 4096).unwrap();
    std::fs::rename(&empty, path).unwrap();
}

/// SIGKILL of who asks leaves a microVM that goes on; SIGKILL of who has it leaves whole snapshots and nothing else.
#[test]
fn after_sigkill_snapshots_are_whole() {
    let lab = lab!("after_sigkill_snapshots_are_whole");
    if !can_poll("after_sigkill_snapshots_are_whole") {
        return;
    }
    let patience = lab.patience(1);
    let lab = lab.own_store();
    let kernel: PathBuf = lab.path("kernel");
    std::fs::write(&kernel, elf::executable(0x10_0000, COUNTER, 4096)).unwrap();
    let kernel = kernel.display().to_string();
    let boot = || {
        let mut machine = interactive(&lab, &["boot", "--name", "m", "--kernel", &kernel, "-m", "32m"]);
        machine.wait_for("r", patience);
        machine
    };
    for millis in [0, 1, 3, 10, 30] {
        let mut machine = boot();
        let client = Running::start(lab.bulkhead(["snapshot", "m"]));
        std::thread::sleep(Duration::from_millis(millis));
        client.signal(Signal::KILL);
        client.end(patience);
        machine.say("x");
        machine.wait_for("r1", patience);
        let client = Running::start(lab.bulkhead(["snapshot", "m"]));
        std::thread::sleep(Duration::from_millis(millis));
        machine.signal(Signal::KILL);
        assert_eq!(machine.end(patience).code, None);
        let asked = client.end(patience);
        assert!(asked.code == Some(0) || asked.stderr.contains("'m'"), "{asked:?}");
        crate::ending::wait_for_the_orphan(&lab);
        names(&lab);
        lab.assert_clean();
    }
    // One that nobody kills, and it can be gone on from.
    let mut machine = boot();
    let last = done(lab.run(["snapshot", "m"]));
    let last = last.trim_end().to_owned();
    machine.say("q");
    assert_eq!(machine.end(patience).code, Some(0));
    assert!(names(&lab).contains(&last));
    let mut machine = interactive(&lab, &["restore", &last]);
    machine.say("q");
    assert_eq!(machine.end(patience).code, Some(0));
    lab.assert_clean();
}

/// A disk that is full: the microVM goes on, nothing is left, and the next one, with room, works.
#[test]
fn a_full_disk_leaves_nothing() {
    const TEST: &str = "a_full_disk_leaves_nothing";
    let lab = lab!(TEST);
    if !can_poll(TEST) {
        return;
    }
    let patience = lab.patience(1);
    let lab = lab.own_store();
    let (kernel, store) = (lab.path("kernel"), lab.store().join("snapshots"));
    std::fs::write(&kernel, elf::executable(0x10_0000, COUNTER, 4096)).unwrap();
    std::fs::create_dir_all(&store).unwrap();
    if !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success()) {
        tests::lab::skip(TEST, "no mount namespace can be had here (unshare -m)");
        return;
    }
    // Only the owner, and what it starts, sees the small disk; who asks has no business with it.
    let boot = lab.bulkhead(["boot", "--name", "m", "-m", "32m", "--kernel", &kernel.display().to_string()]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t tmpfs -o size=4k,mode=700 tmpfs \"$1\" && shift && exec \"$@\"", "sh"]);
    command.arg(&store).arg(boot.get_program()).args(boot.get_args()).stdin(Stdio::piped());
    for (key, value) in boot.get_envs() {
        value.map(|value| command.env(key, value));
    }
    let mut machine = Running::start(command);
    machine.wait_for("r", patience);
    let seen = PathBuf::from(format!("/proc/{}/root", machine.pid())).join(store.strip_prefix("/").unwrap());
    for _ in 0..2 {
        lab.run(["snapshot", "m"]).assert_failed(1, &["snapshot", "No space left"]);
        let left: Vec<_> = std::fs::read_dir(&seen).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == ".lock" || name == ".names"), "{left:?}");
    }
    machine.say("xx");
    machine.wait_for("r12", patience);
    let mut bigger = Command::new("nsenter");
    bigger.args(["-m", "-t", &machine.pid().to_string(), "mount", "-o", "remount,size=16m"]).arg(&store);
    assert!(bigger.status().expect("nsenter").success());
    assert_eq!(done(lab.run(["snapshot", "m"])), "m-1\n");
    machine.say("q");
    assert_eq!(machine.end(patience).code, Some(0));
    lab.assert_clean();
}
