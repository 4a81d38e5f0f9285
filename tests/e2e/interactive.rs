//! Terminals: keys, ^C, window size; and the user's terminal is as it was afterwards.

use tests::cpio;
use tests::terminal::Terminal;

use crate::lab;

/// `-it`: the command has a terminal of the user's size, sees it change, gets ^C as a signal.
#[test]
fn a_terminal_is_a_terminal() {
    let lab = lab!("a_terminal_is_a_terminal", on hardware);
    let patience = lab.patience(1);
    let mut terminal = Terminal::new();
    terminal.resize(33, 101);
    let script = "trap 'echo winch=$(stty size)' WINCH; trap 'echo interrupted; exit 42' INT; \
                  tty; echo size=$(stty size) term=$TERM; read line; echo \"line=$line\"; \
                  echo ready; while :; do sleep 1000 & wait; done";
    let running = terminal.start(&lab.bulkhead(["run", "-it", &lab.debian(), "bash", "-c", script]));
    terminal.wait_for("/dev/", patience);
    terminal.wait_for("size=33 101 term=xterm", patience);
    terminal.type_in(b"hellp\x7fo\r");
    terminal.wait_for("line=hello\r\n", patience);
    terminal.wait_for("ready", patience);
    terminal.resize(50, 120);
    terminal.wait_for("winch=50 120", patience);
    terminal.type_in(b"\x03");
    terminal.wait_for("interrupted", patience);
    assert_eq!(running.end(patience).code, Some(42));
    assert!(terminal.is_usual());
    lab.assert_clean();
}

/// ^C ends a command that does nothing about it; so it does while the guest still boots.
#[test]
fn ctrl_c_reaches_the_command() {
    let lab = lab!("ctrl_c_reaches_the_command");
    let patience = lab.patience(1);
    let mut terminal = Terminal::new();
    // A program that neither handles nor blocks the signal: a shell blocks it for a moment around each fork.
    let running = terminal.start(&lab.bulkhead(["run", "-it", &lab.debian(), "tail", "-f", "/etc/os-release"]));
    terminal.wait_for("PRETTY_NAME", patience);
    terminal.type_in(b"\x03");
    assert_eq!(running.end(patience).code, Some(130));
    assert!(terminal.is_usual());
    lab.assert_clean();
}

/// `-it` without a terminal is an error, as in docker.
#[test]
fn a_terminal_must_be_one() {
    let lab = lab!("a_terminal_must_be_one");
    lab.run(["run", "-it", &lab.debian(), "true"]).assert_failed(125, &["not a TTY"]);
    lab.assert_clean();
}

/// `boot --console virtio`: the guest's console has the user's terminal's size, also when that changes; keys come in, and a flood
/// comes out to its end.
#[test]
fn a_virtio_console_has_the_terminals_size() {
    let lab = lab!("a_virtio_console_has_the_terminals_size", on hardware);
    let patience = lab.patience(1);
    let initrd = lab.path("initrd");
    std::fs::write(&initrd, cpio::initramfs(&std::fs::read(lab.guest_program()).unwrap())).unwrap();
    let mut terminal = Terminal::new();
    terminal.resize(33, 101);
    let initrd = initrd.display().to_string();
    let words = ["boot", "--console", "virtio", "--kernel", lab.kernel(), "--initrd", &initrd, "-m", "96m"];
    let running = terminal.start(&lab.bulkhead(words.iter().chain(&["--append", "-- console 128"])));
    terminal.wait_for("size 33 101", patience);
    terminal.resize(50, 120);
    terminal.wait_for("size 50 120", patience);
    terminal.type_in(b"hello\r");
    terminal.wait_for("heard hello", patience);
    terminal.wait_for(&"#".repeat(128 << 10), patience);
    terminal.wait_for("flooded", patience);
    assert_eq!(running.end(patience).code, Some(0));
    assert!(terminal.is_usual());
    lab.assert_clean();
}
