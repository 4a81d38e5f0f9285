//! `bulkhead exec`: other commands in a container that runs.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tests::terminal::Terminal;
use tests::{Lab, Running};

use crate::lab;

/// One container, and all that can be asked of it.
struct Web {
    lab: Lab,
    main: Running,
    patience: Duration,
}

impl Web {
    fn start(lab: Lab) -> Self {
        let patience = lab.patience(1);
        let script = "echo ready; exec sleep 100000";
        let line = ["run", "--name", "joinable", "-e", "A=1", "-w", "/srv", &lab.debian(), "sh", "-c", script];
        let mut main = Running::start(lab.bulkhead(line));
        main.wait_for("ready", patience);
        Self { lab, main, patience }
    }

    fn exec(&self, line: &[&str]) -> tests::Ended {
        self.lab.run([&["exec"], line].concat())
    }

    fn begin(&self, line: &[&str]) -> Running {
        let mut command = self.lab.bulkhead([&["exec"], line].concat());
        command.stdin(Stdio::piped());
        Running::start(command)
    }
}

#[test]
fn commands_join_a_running_container() {
    let web = Web::start(lab!("commands_join_a_running_container", on hardware));
    // Streams apart, the exit code, and what the first command was given.
    let ended = web.exec(&["-e", "B=2", "joinable", "sh", "-c", "echo out; echo err >&2; pwd; echo $A$B; exit 7"]);
    assert_eq!((ended.code, ended.text(), ended.stderr.as_str()), (Some(7), "out\n/srv\n12\n", "err\n"));
    let ended = web.exec(&["-u", "1:2", "-w", "/tmp", "joinable", "sh", "-c", "id -u; pwd; kill -KILL $$"]);
    assert_eq!((ended.code, ended.text()), (Some(137), "1\n/tmp\n"), "{ended:?}");
    // What cannot be.
    web.exec(&["joinable", "no-such-command"]).assert_failed(127, &["\"no-such-command\"", "not found in $PATH"]);
    web.exec(&["joinable", "/etc"]).assert_failed(126, &["\"/etc\"", "is a directory"]);
    web.exec(&["-u", "nobody-here", "joinable", "true"]).assert_failed(126, &["nobody-here"]);
    web.exec(&["-w", "/not/there", "joinable", "true"]).assert_failed(126, &["/not/there", "no such file"]);
    web.exec(&["-w", "rel", "joinable", "true"]).assert_failed(125, &["'rel'", "absolute"]);
    web.exec(&["other", "true"]).assert_failed(1, &["'other'", "joinable"]);
    web.exec(&["-it", "joinable", "true"]).assert_failed(1, &["not a TTY"]);
    on_a_terminal(&web);
    one_whose_client_is_gone(&web);
    through_a_snapshot(&web);

    // Five at once, and one that is told to end.
    let told =
        web.begin(&["joinable", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 1000 & wait; done"]);
    let all: Vec<_> = (0..5).map(|at| (at, web.begin(&["-i", "joinable", "cat"]))).collect();
    for (at, mut running) in all {
        running.feed(format!("{at}").repeat(100_000).into_bytes());
        let ended = running.end(web.patience);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.text() == format!("{at}").repeat(100_000), "{at}: {} bytes", ended.stdout.len());
    }
    let mut told = told;
    told.wait_for("ready", web.patience);
    told.signal(Signal::TERM);
    assert_eq!(told.end(web.patience).code, Some(9));

    // The end of the first command is the end of all.
    let mut last = web.begin(&["joinable", "sh", "-c", "echo here; exec sleep 100000"]);
    last.wait_for("here", web.patience);
    web.main.signal(Signal::TERM);
    assert_eq!(last.end(web.patience).code, Some(137));
    assert_eq!(web.main.end(web.patience).code, Some(143));
    web.lab.run(["exec", "joinable", "true"]).assert_failed(1, &["'joinable'", "none"]);
    web.lab.assert_clean();
}

/// `-it`: a terminal of the user's size that sees it change; keys, ^C; and it is as it was afterwards.
fn on_a_terminal(web: &Web) {
    let mut terminal = Terminal::new();
    terminal.resize(33, 101);
    let script = "trap 'echo winch=$(stty size)' WINCH; trap 'echo interrupted; exit 42' INT; \
                  echo size=$(stty size) term=$TERM; read line; echo \"line=$line\"; while :; do sleep 1000 & wait; done";
    let running = terminal.start(&web.lab.bulkhead(["exec", "-it", "joinable", "sh", "-c", script]));
    terminal.wait_for("size=33 101 term=xterm", web.patience);
    terminal.type_in(b"hellp\x7fo\r");
    terminal.wait_for("line=hello\r\n", web.patience);
    terminal.resize(50, 120);
    terminal.wait_for("winch=50 120", web.patience);
    terminal.type_in(b"\x03");
    terminal.wait_for("interrupted", web.patience);
    assert_eq!(running.end(web.patience).code, Some(42));
    assert!(terminal.is_usual());
}

/// SIGKILL of a client: its command finds the end of its input and goes on; a terminal is hung up.
fn one_whose_client_is_gone(web: &Web) {
    let script = "echo here; cat; echo $$ >/tmp/end-of-input; exec sleep 100000";
    let mut killed = web.begin(&["-i", "joinable", "sh", "-c", script]);
    killed.wait_for("here", web.patience);
    killed.signal(Signal::KILL);
    killed.end(web.patience);
    let mut terminal = Terminal::new();
    let script = "trap ': >/tmp/hung-up; exit' HUP; echo there; while :; do sleep 1000 & wait; done";
    let on_terminal = terminal.start(&web.lab.bulkhead(["exec", "-t", "joinable", "sh", "-c", script]));
    terminal.wait_for("there", web.patience);
    on_terminal.signal(Signal::KILL);
    on_terminal.end(web.patience);
    assert_eq!(web.exec(&["-d", "joinable", "touch", "/tmp/detached"]).code, Some(0));
    let script = "until [ -s /tmp/end-of-input ] && [ -e /tmp/hung-up ] && [ -e /tmp/detached ]; do sleep 0.5; done; \
                  kill -0 $(cat /tmp/end-of-input) && echo alive";
    let ended = web.exec(&["joinable", "sh", "-c", script]);
    assert_eq!(ended.text(), "alive\n", "{ended:?}");
}

/// A snapshot has them, and they go on.
fn through_a_snapshot(web: &Web) {
    let mut running = web.begin(&["-i", "joinable", "cat"]);
    running.say("before\n");
    running.wait_for("before\n", web.patience);
    let ended = web.lab.run(["snapshot", "joinable", "exec-joined"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    running.say("after\n");
    running.wait_for("after\n", web.patience);
    running.say_no_more();
    assert_eq!(running.end(web.patience).code, Some(0));
    assert_eq!(web.lab.run(["snapshots", "rm", "exec-joined"]).code, Some(0));
}
