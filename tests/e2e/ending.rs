//! Signals, and SIGKILL, at any moment of a run: the right code, and nothing stays behind.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Lab, Running};

use crate::lab;

fn sleeper(lab: &Lab) -> Running {
    Running::start(lab.bulkhead(["run", &lab.debian(), "sh", "-c", "echo ready; exec sleep 1000"]))
}

/// `kill -TERM` of the CLI ends the command with 143.
#[test]
fn term_ends_the_command_with_143() {
    let lab = lab!("term_ends_the_command_with_143");
    let mut running = sleeper(&lab);
    running.wait_for("ready", lab.patience(1));
    running.signal(Signal::TERM);
    let ended = running.end(lab.patience(1));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(143), ""), "{ended:?}");
    lab.assert_clean();
}

/// A command that handles a signal decides itself; the third of a kind ends a run that does not.
#[test]
fn a_handled_signal_is_the_commands() {
    let lab = lab!("a_handled_signal_is_the_commands");
    let script =
        "trap 'echo term; exit 3' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 1000 & wait; done";
    let mut running = Running::start(lab.bulkhead(["run", &lab.debian(), "sh", "-c", script]));
    running.wait_for("ready", lab.patience(1));
    running.signal(Signal::USR1);
    running.wait_for("usr1", lab.patience(1));
    running.signal(Signal::TERM);
    let ended = running.end(lab.patience(1));
    assert_eq!((ended.code, ended.text()), (Some(3), "ready\nusr1\nterm\n"), "{ended:?}");
    lab.assert_clean();
}

/// SIGINT, SIGTERM and SIGHUP before the command runs end it all, at once.
#[test]
fn a_signal_while_the_guest_boots_ends_it_all() {
    let lab = lab!("a_signal_while_the_guest_boots_ends_it_all");
    let boot = lab.patience(1);
    for (millis, signal) in [(0, Signal::INT), (20, Signal::TERM), (100, Signal::HUP), (300, Signal::INT)] {
        // A boot, which takes seconds where it is emulated: once the process runs, as PID 1 of its namespace, signals that it does
        // not handle are nothing to it.
        let running = Running::start(lab.bulkhead(["run", "--cold", &lab.debian(), "sleep", "1000"]));
        wait_until_it_handles_signals(&running);
        std::thread::sleep(Duration::from_millis(millis));
        running.signal(signal);
        let began = Instant::now();
        let ended = running.end(boot);
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (Some(128 + signal.as_raw()), ""),
            "after {millis} ms: {ended:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(10), "after {millis} ms: took {:?}", began.elapsed());
        wait_for_the_orphan(&lab);
        lab.assert_clean();
    }
}

/// SIGKILL at any moment leaves nothing that the next command does not clean: of a guest that boots, and of one that goes on from
/// a template.
#[test]
fn group_11_after_sigkill_the_next_command_cleans_up() {
    let lab = lab!("group_11_after_sigkill_the_next_command_cleans_up", on the machine);
    let boot = lab.patience(1);
    let lab = lab.own_store_with(&["layers", "merged"]);
    let killed_after = |millis: u64| {
        let running = sleeper(&lab);
        std::thread::sleep(Duration::from_millis(millis));
        running.signal(Signal::KILL);
        assert_eq!(running.end(boot).code, None);
        wait_for_the_orphan(&lab);
        assert_eq!(lab.run(["images", "-q"]).code, Some(0));
        lab.assert_clean();
    };
    [0, 30, 100, 400].into_iter().for_each(killed_after);
    lab.share(&["templates"]);
    [5, 30, 100, 200, 1000, 2000].into_iter().for_each(killed_after);
    // While the command runs.
    let mut running = sleeper(&lab);
    running.wait_for("ready", boot);
    running.signal(Signal::KILL);
    assert_eq!(running.end(boot).code, None);
    wait_for_the_orphan(&lab);
    assert!(!lab.left_behind().is_empty(), "SIGKILL cannot be cleaned up by its victim");
    let groups = lab.control_groups();
    assert_eq!(lab.run(["images", "-q"]).code, Some(0));
    lab.assert_clean();
    let groups_left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(
        groups_left.is_empty() && groups.is_empty() == lab.no_control_group().is_some(),
        "{groups_left:?} of {groups:?}"
    );
    // The store still works, and what was half done in it is gone.
    assert_eq!(lab.run(["system", "df"]).code, Some(0));
    let left = std::fs::read_dir(lab.store().join("templates")).unwrap().flatten().map(|entry| entry.file_name());
    let half = |name: &std::ffi::OsString| {
        [&b".unfinished"[..], b".making"].iter().any(|end| name.as_encoded_bytes().ends_with(end))
    };
    let left: Vec<_> = left.filter(half).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(lab.run(["run", &lab.debian(), "true"]).code, Some(0));
    lab.assert_clean();
}

/// A monitor that is killed ends the run with a line that says so.
#[test]
fn a_killed_monitor_is_told() {
    let lab = lab!("a_killed_monitor_is_told");
    let mut running = sleeper(&lab);
    running.wait_for("ready", lab.patience(1));
    let monitor = child_of(running.pid()).expect("the monitor");
    rustix::process::kill_process(monitor, Signal::KILL).expect("kill");
    let ended = running.end(lab.patience(1));
    assert_eq!((ended.code, ended.stderr.lines().count()), (Some(125), 1), "{ended:?}");
    assert!(ended.stderr.contains("microVM"), "{ended:?}");
    lab.assert_clean();
}

/// The first child of a process.
pub fn child_of(parent: u32) -> Option<rustix::process::Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    rustix::process::Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

/// Returns when the program has replaced the default action of SIGTERM: before, the signal is not its to clean up after.
fn wait_until_it_handles_signals(running: &Running) {
    const TERM: u64 = 1 << 14;
    let path = format!("/proc/{}/status", running.pid());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        if caught & TERM != 0 {
            return;
        }
        assert!(Instant::now() < deadline, "no handler for SIGTERM");
        std::thread::yield_now();
    }
}

/// The monitor of a dead CLI gets SIGKILL at once, but tearing a machine down takes the kernel a moment.
pub fn wait_for_the_orphan(lab: &Lab) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while lab.left_behind().iter().any(|what| what.starts_with("process")) {
        assert!(Instant::now() < deadline, "{:?}", lab.left_behind());
        std::thread::sleep(Duration::from_millis(5));
    }
}
