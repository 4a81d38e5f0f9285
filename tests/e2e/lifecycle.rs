//! Containers that have a record: they live without their CLI, and the verbs look after them.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tests::{Ended, Lab, Running};

use crate::ending::{child_of, wait_for_the_orphan};
use crate::lab;

/// A name that no other test has, nor a run before this one.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// What it printed, which worked.
pub fn done(ended: Ended) -> String {
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    ended.text().to_owned()
}

/// `run -d FLAGS debian sh -c SCRIPT`, as a user types it; returns the id.
fn detached(lab: &Lab, flags: &[&str], script: &str) -> String {
    let image = lab.debian();
    let line = [&["run", "-d"], flags, &[&image, "sh", "-c", script]].concat();
    done(Running::start(lab.keeping(line)).end(lab.patience(1))).trim().to_owned()
}

pub fn inspect(lab: &Lab, word: &str, template: &str) -> String {
    done(lab.run(["inspect", "-f", template, word])).trim().to_owned()
}

fn status(lab: &Lab, name: &str) -> String {
    let filter = format!("name={name}");
    done(lab.run(["ps", "-a", "--filter", &filter, "--format", "{{.Status}}"]))
}

pub fn supervisor(lab: &Lab, name: &str) -> Pid {
    Pid::from_raw(inspect(lab, name, "{{.State.Pid}}").parse().unwrap()).expect("it runs")
}

/// From `run -d` to `rm`, with all that is asked of it in between.
#[test]
fn a_container_lives_without_its_cli() {
    let lab = lab!("a_container_lives_without_its_cli", on the machine);
    let patience = lab.patience(2);
    let (name, id_file) = (unique("lives"), lab.path("cid"));
    let script =
        "echo out; echo err >&2; trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let flags = ["--name", &name, "--label", "tier=web", "--cidfile", id_file.to_str().unwrap()];
    let id = detached(&lab, &flags, script);
    assert!(id.len() == 64 && std::fs::read_to_string(&id_file).unwrap() == id, "{id}");

    let mut follower = Running::start(lab.bulkhead(["logs", "-f", &name]));
    follower.wait_for("ready\n", patience);
    let listed = done(lab.run(["ps", "--filter", &format!("name={name}"), "--filter", "label=tier=web"]));
    let line = listed.lines().nth(1).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.starts_with(&id[..12]) && line.contains(" Up ") && line.ends_with(&name), "{listed}");
    // Nobody's child, on no terminal, with nothing of whoever started it.
    let pid = supervisor(&lab, &name).as_raw_nonzero();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!((fields[3], fields[4]), (pid.to_string().as_str(), "0"), "{stat}");
    for stream in 0..3 {
        let leads_to = std::fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap();
        assert_eq!(leads_to.to_str(), Some("/dev/null"), "descriptor {stream}");
    }

    lab.run(["rm", &name]).assert_failed(1, &[&name, "running"]);
    let waiter = Running::start(lab.bulkhead(["wait", &id[..12]]));
    // As long as it takes: the default of 10 s is not made for hosts that are emulated.
    assert_eq!(done(lab.run(["stop", "-t", "-1", &name])), format!("{name}\n"));
    assert_eq!(done(waiter.end(patience)), "3\n");
    let followed = follower.end(patience);
    assert_eq!((followed.text(), followed.stderr.as_str()), ("out\nready\nbye\n", "err\n"));
    assert!(status(&lab, &name).starts_with("Exited (3) "), "{}", status(&lab, &name));
    let last = done(lab.run(["logs", "-t", "--tail", "1", &name]));
    assert!(last.ends_with("Z bye\n") && last.lines().count() == 1, "{last}");

    assert_eq!(done(lab.run(["start", &name])), format!("{name}\n"));
    assert_eq!(inspect(&lab, &name, "{{.State.Status}} {{.Id}}"), format!("running {id}"));
    assert_eq!(done(lab.run(["kill", &name])), format!("{name}\n"));
    assert_eq!(done(lab.run(["wait", &name])), "137\n");
    let other = unique("renamed");
    assert_eq!(done(lab.run(["rename", &name, &other])), "");
    assert_eq!(done(lab.run(["rm", &other])), format!("{other}\n"));
    lab.run(["inspect", "-f", "{{.Id}}", &id]).assert_failed(1, &["no such container"]);
    lab.assert_clean();
}

/// What a container has written is there when it is started again, however it ended; a rollback takes it back.
#[test]
fn a_container_keeps_its_files() {
    let lab = lab!("a_container_keeps_its_files", on hardware);
    let patience = lab.patience(2);
    let name = unique("keeps");
    // Each life adds a line, and takes care of it as a database does.
    let script = "echo life >> /file; sync; trap 'echo end >> /file; exit 0' TERM; echo lives $(wc -l < /file); \
        while :; do sleep 1000 & wait; done";
    let lives = |count: usize| {
        let mut follower = Running::start(lab.bulkhead(["logs", "-f", &name]));
        follower.wait_for(&format!("lives {count}\n"), patience);
        follower
    };
    detached(&lab, &["--name", &name], script);
    let follower = lives(1);
    done(lab.run(["stop", &name]));
    drop(follower);
    // An end in order has written everything to the disk: nothing is left to be repaired (the superblock's s_state and
    // EXT4_FEATURE_INCOMPAT_RECOVER).
    let disk = std::path::PathBuf::from(inspect(&lab, &name, "{{.LogPath}}")).with_file_name("upper.ext4");
    let superblock = |at: usize| {
        use std::os::unix::fs::FileExt as _;
        let mut byte = [0];
        std::fs::File::open(&disk).unwrap().read_exact_at(&mut byte, 1024 + at as u64).unwrap();
        byte[0]
    };
    assert_eq!((superblock(0x3A) & 1, superblock(0x60) & 4), (1, 0), "clean");

    done(lab.run(["start", &name]));
    drop(lives(3));
    let moment = format!("{name}-moment");
    done(lab.run(["snapshot", &name, &moment]));
    kill_process(supervisor(&lab, &name), Signal::KILL).unwrap();
    wait_for_the_orphan(&lab);
    // The journal has what was synced.
    done(lab.run(["start", &name]));
    drop(lives(4));
    done(lab.run(["rm", "-f", &name]));
    assert!(!disk.exists());
    done(lab.run(["snapshots", "rm", &moment]));
    lab.assert_clean();
}

/// SIGKILL of whoever looks after a container, or of its microVM: it is said, and nothing stays.
#[test]
fn a_container_that_is_lost_has_ended() {
    let lab = lab!("a_container_that_is_lost_has_ended", on the machine);
    let patience = lab.patience(2);
    let (stays, goes) = (unique("stays"), unique("goes"));
    detached(&lab, &["--name", &stays], "exec sleep 1000");
    detached(&lab, &["--name", &goes, "--rm"], "exec sleep 1000");
    let waiter = Running::start(lab.bulkhead(["wait", &stays]));
    for name in [&stays, &goes] {
        let pid = supervisor(&lab, name);
        let end = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        // Until then it has the container, though it looks as if it were gone: a process gives up its files after its memory.
        poll(&mut [PollFd::new(&end, PollFlags::IN)], None).unwrap();
    }
    assert_eq!(done(waiter.end(patience)), "137\n");
    wait_for_the_orphan(&lab);
    assert!(status(&lab, &stays).starts_with("Exited (137) "), "{}", status(&lab, &stays));
    assert!(inspect(&lab, &stays, "{{.State.Error}}").contains("killed"));
    assert_eq!(status(&lab, &goes), "");
    lab.assert_clean();

    // It can be started again.
    done(lab.run(["start", &stays]));
    let monitor = child_of(supervisor(&lab, &stays).as_raw_nonzero().get().unsigned_abs()).expect("the monitor");
    kill_process(monitor, Signal::KILL).unwrap();
    assert_eq!(done(lab.run(["wait", &stays])), "137\n");
    assert!(inspect(&lab, &stays, "{{.State.Error}}").contains("microVM"));
    assert_eq!(done(lab.run(["rm", "-f", &stays])), format!("{stays}\n"));
    lab.assert_clean();
}

/// What cannot be done is said in one line, with docker's exit codes.
#[test]
fn containers_that_do_not_start_or_are_not_there() {
    let lab = lab!("containers_that_do_not_start_or_are_not_there", on the machine);
    let (name, image) = (unique("created"), lab.debian());
    let run = |flags: &[&str], command: &str| {
        let line = [&["run", "-d"], flags, &[&image, command]].concat();
        Running::start(lab.keeping(line)).end(lab.patience(1))
    };
    run(&["--name", &name], "/no/such/program").assert_failed(127, &["/no/such/program"]);
    assert_eq!(inspect(&lab, &name, "{{.State.Status}} {{.State.ExitCode}}"), "created 127");
    run(&["--name", &name], "true").assert_failed(125, &[&name, "in use"]);
    run(&["--rm", "--name", &unique("none")], "/etc/hostname").assert_failed(126, &["/etc/hostname"]);
    assert_eq!(status(&lab, &unique("none")), "");
    done(lab.run(["rm", &name]));

    assert_eq!(done(lab.run(["create", "--name", &name, &image, "sh", "-c", "echo here; exit 4"])).len(), 65);
    assert_eq!(status(&lab, &name), "Created\n");
    let here = lab.run(["start", "-a", &name]);
    assert_eq!((here.code, here.text()), (Some(4), "here\n"), "{here:?}");
    assert_eq!(done(lab.run(["logs", &name])), "here\n");
    lab.run(["kill", &name]).assert_failed(1, &[&name, "not running"]);
    assert_eq!(done(lab.run(["stop", &name])), format!("{name}\n"));
    done(lab.run(["rm", &name]));
    for verb in ["start", "stop", "kill", "wait", "logs", "rm", "restart", "port"] {
        lab.run([verb, &name]).assert_failed(1, &["no such container", &name]);
    }
    lab.assert_clean();
}

/// A guest that boots takes its time: `rm -f` does not wait for it, and leaves nothing of it.
#[test]
fn one_that_is_being_started_can_be_removed() {
    let lab = lab!("one_that_is_being_started_can_be_removed", on the machine);
    let (patience, image) = (lab.patience(1), lab.debian());
    for flags in [&["-d"][..], &[]] {
        let name = unique("starting");
        let starting =
            Running::start(lab.keeping([&["run", "--cold", "--name", &name], flags, &[&image, "true"]].concat()));
        let deadline = Instant::now() + patience;
        while status(&lab, &name) != "Created\n" {
            assert!(Instant::now() < deadline, "{name} is not there");
        }
        lab.run(["rm", &name]).assert_failed(1, &[&name, "being started"]);
        done(lab.run(["rm", "-f", &name]));
        assert_ne!(starting.end(patience).code, Some(0));
        assert_eq!(status(&lab, &name), "");
    }
    // Whoever has ended lets go of it when this is under way already.
    let made = done(Running::start(lab.keeping(["create", &image, "true"])).end(patience));
    let held = std::fs::File::open(lab.store().join("containers").join(made.trim())).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let removing = Running::start(lab.keeping(["rm", "-f", made.trim()]));
    std::thread::sleep(std::time::Duration::from_millis(500));
    drop(held);
    done(removing.end(patience));
    lab.assert_clean();
}
