//! Containers that stand still, and what else is asked of one that runs.

use std::fs;

use tests::{Lab, Running};

use crate::lab;

/// Nanoseconds that the first vCPU of a container's microVM has had of a processor. It is the main thread of the process that the one
/// looking after the container has started.
fn vcpu_time(lab: &Lab, name: &str) -> u64 {
    let owner = lab.run(["inspect", "-f", "{{.State.Pid}}", name]).text().trim().to_owned();
    let children = fs::read_to_string(format!("/proc/{owner}/task/{owner}/children")).unwrap();
    let monitor = children.split_whitespace().next().unwrap_or_else(|| panic!("{owner} has no child"));
    let times = fs::read_to_string(format!("/proc/{monitor}/schedstat")).unwrap();
    times.split(' ').next().unwrap().parse().unwrap()
}

/// A busy container stands still, is shown so, keeps signals for later, and goes on; `stop` ends one that stands still.
#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let lab = lab!("a_paused_container_stands_still_and_goes_on");
    let patience = lab.patience(1);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let script = "trap 'echo got' USR1; trap 'exit 5' TERM; echo up; while :; do :; done";
    let start = lab.keeping(["run", "-d", "--name", "still", &lab.debian(), "sh", "-c", script]);
    let started = Running::start(start).end(patience);
    assert_eq!(started.code, Some(0), "{started:?}");
    let mut log = Running::start(lab.keeping(["logs", "-f", "still"]));
    log.wait_for("up", patience);

    assert_eq!(lab.run(["pause", "still"]).text(), "still\n");
    let first = vcpu_time(&lab, "still");
    let shown = lab.run(["ps", "--format", "{{.Status}}/{{.State}}", "--filter", "status=paused"]);
    assert!(shown.text().ends_with(" (Paused)/paused\n"), "{shown:?}");
    let state = lab.run(["inspect", "-f", "{{.State.Status}} {{.State.Running}} {{.State.Paused}}", "still"]);
    assert_eq!(state.text(), "paused true true\n");
    lab.run(["pause", "still"]).assert_failed(1, &["already paused"]);
    lab.run(["exec", "still", "true"]).assert_failed(1, &["still is paused", "unpause"]);
    lab.run(["start", "still"]).assert_failed(1, &["paused"]);
    lab.run(["snapshot", "still"]).assert_failed(1, &["paused"]);
    assert_eq!(lab.run(["kill", "-s", "USR1", "still"]).code, Some(0));
    assert_eq!(lab.run(["logs", "still"]).text(), "up\n");
    assert_eq!(vcpu_time(&lab, "still"), first, "it had time of a processor");

    assert_eq!(lab.run(["unpause", "still"]).text(), "still\n");
    log.wait_for("got", patience);
    assert!(vcpu_time(&lab, "still") > first);
    lab.run(["unpause", "still"]).assert_failed(1, &["not paused"]);
    assert_eq!(lab.run(["exec", "still", "echo", "hi"]).text(), "hi\n");

    assert_eq!(lab.run(["pause", "still"]).code, Some(0));
    let stopped = lab.run(["stop", "-t", "-1", "still"]);
    assert_eq!((stopped.code, stopped.text()), (Some(0), "still\n"), "{stopped:?}");
    assert_eq!(lab.run(["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "still"]).text(), "exited 5\n");
    assert_eq!(log.end(patience).text(), "up\ngot\n");
    lab.run(["pause", "still"]).assert_failed(1, &["not running"]);
    assert_eq!(lab.run(["rm", "still"]).code, Some(0));
    lab.assert_clean();
}
