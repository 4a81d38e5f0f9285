//! Clients at a container's own process, which come and go.

use rustix::process::Signal;
use tests::terminal::Terminal;
use tests::{Ended, Lab, Running};

use crate::ending::wait_for_the_orphan;
use crate::lab;
use crate::lifecycle::{done, inspect, unique};

/// A shell that says what it is told, and how large its terminal is then.
const ECHO: &str =
    "echo ready; while read line; do echo \"got <$line> $(stty size 2>&1)\"; [ \"$line\" != end ] || exit 7; done";

fn status(lab: &Lab, name: &str) -> String {
    inspect(lab, name, "{{.State.Status}}")
}

/// `logs -f` until the container's process is ready.
fn wait_until_ready(lab: &Lab, name: &str) {
    Running::start(lab.bulkhead(["logs", "-f", name])).wait_for("ready", lab.patience(1));
}

fn exited(ended: &Ended, code: i32) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
}

/// Two at the terminal of a container that was started without one: both see all of it; one leaves by keys, the other has the end.
#[test]
fn several_are_at_a_terminal_and_one_leaves() {
    let lab = lab!("several_are_at_a_terminal_and_one_leaves", on the machine);
    let (patience, name) = (lab.patience(1), unique("attach-t"));
    done(lab.run(["run", "-dit", "--name", &name, &lab.debian(), "bash", "-c", ECHO]));
    wait_until_ready(&lab, &name);
    lab.run(["attach", &name]).assert_failed(1, &["not a TTY"]);
    let (mut one, mut other) = (Terminal::new(), Terminal::new());
    one.resize(31, 91);
    other.resize(42, 102);
    let first = one.start(&lab.bulkhead(["attach", &name]));
    one.type_in(b"a\r");
    one.wait_for("got <a> 31 91\r\n", patience);
    let second = other.start(&lab.bulkhead(["start", "-ai", "--detach-keys", "ctrl-x,d", &name]));
    other.type_in(b"b\r");
    other.wait_for("got <b> 42 102\r\n", patience);
    one.wait_for("got <b> 42 102\r\n", patience);
    one.type_in(b"\x10\x11");
    exited(&first.end(patience), 0);
    one.wait_for(&format!("bulkhead attach {name}"), patience);
    assert!(one.is_usual());
    // Those are no keys of this one's: the guest's terminal has them.
    other.type_in(b"\x18x\x15end\r");
    other.wait_for("got <end>", patience);
    exited(&second.end(patience), 7);
    wait_for_the_orphan(&lab);
    assert!(other.is_usual());
    lab.run(["attach", &name]).assert_failed(1, &["no such container"]);
    lab.assert_clean();
}

/// Without a terminal: input from several, signals to the process or not, and whoever is killed is not the container's end.
#[test]
fn pipes_are_attached_and_signals_passed_on() {
    let lab = lab!("pipes_are_attached_and_signals_passed_on", on hardware);
    let (patience, name) = (lab.patience(1), unique("attach-p"));
    let script = format!("trap 'echo term >&2; exit 9' TERM; {ECHO}");
    done(lab.run(["run", "-di", "--name", &name, &lab.debian(), "bash", "-c", &script]));
    wait_until_ready(&lab, &name);
    let attach = |flags: &[&str]| {
        let mut command = lab.bulkhead([&["attach"], flags, &[&name]].concat());
        command.stdin(std::process::Stdio::piped());
        Running::start(command)
    };
    let mut one = attach(&[]);
    one.say("a\n");
    one.wait_for("got <a>", patience);
    // Its input ends, and the process's does not.
    one.say_no_more();
    let mut other = attach(&[]);
    other.say("b\n");
    other.wait_for("got <b>", patience);
    one.wait_for("got <b>", patience);
    other.signal(Signal::KILL);
    let mut third = attach(&["--sig-proxy=false"]);
    third.say("c\n");
    third.wait_for("got <c>", patience);
    third.signal(Signal::TERM);
    exited(&third.end(patience), 128 + 15);
    assert_eq!(status(&lab, &name), "running");
    done(lab.run(["pause", &name]));
    lab.run(["attach", &name]).assert_failed(1, &["paused"]);
    done(lab.run(["unpause", &name]));
    one.signal(Signal::TERM);
    let ended = one.end(patience);
    exited(&ended, 9);
    assert_eq!(ended.stderr, "term\n");
    wait_for_the_orphan(&lab);
    lab.assert_clean();
}

/// `run -it` can be left, and then outlives its CLI; one that is killed instead takes the container along.
#[test]
fn a_run_is_left_or_taken_along() {
    let lab = lab!("a_run_is_left_or_taken_along", on the machine);
    let (patience, name) = (lab.patience(1), unique("left"));
    let mut terminal = Terminal::new();
    terminal.resize(33, 77);
    let run = |terminal: &Terminal| {
        let flags = ["run", "-it", "--name", &name, "--detach-keys", "ctrl-x,d"];
        terminal.start(&lab.bulkhead(flags.iter().copied().chain([&*lab.debian(), "bash", "-c", ECHO])))
    };
    let running = run(&terminal);
    terminal.wait_for("ready", patience);
    terminal.type_in(b"a\r");
    terminal.wait_for("got <a> 33 77\r\n", patience);
    terminal.type_in(b"\x18d");
    exited(&running.end(patience), 0);
    assert!(terminal.is_usual());
    assert_eq!(status(&lab, &name), "running");
    let back = terminal.start(&lab.bulkhead(["attach", &name]));
    terminal.type_in(b"end\r");
    terminal.wait_for("got <end> 33 77\r\n", patience);
    exited(&back.end(patience), 7);
    wait_for_the_orphan(&lab);
    lab.assert_clean();

    let running = run(&terminal);
    terminal.wait_for("ready", patience);
    running.signal(Signal::KILL);
    assert_eq!(running.end(patience).code, None);
    wait_for_the_orphan(&lab);
    lab.run(["inspect", "-f", "{{.Id}}", &name]).assert_failed(1, &["no such container"]);
    lab.assert_clean();
}
