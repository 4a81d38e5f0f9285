//! Containers that are started again when they have ended.

use rustix::process::{Signal, kill_process};
use tests::{Lab, Running};

use crate::ending::{child_of, wait_for_the_orphan};
use crate::lab;
use crate::lifecycle::{done, inspect, supervisor, unique};

fn state(lab: &Lab, name: &str) -> String {
    inspect(lab, name, "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}")
}

/// `events` of a container from now on, by what happened.
fn events(lab: &Lab, name: &str) -> Running {
    let filter = format!("container={name}");
    Running::start(lab.bulkhead(["events", "--since", "1h", "--filter", &filter, "--format", "{{.Action}}"]))
}

/// It fails as often as it may; one that is told to stop does so for good, while it runs and while it waits.
#[test]
fn a_container_is_started_again_as_its_policy_says() {
    let lab = lab!("a_container_is_started_again_as_its_policy_says", on hardware);
    let patience = lab.patience(3);
    let (name, image) = (unique("again"), lab.debian());
    let run = |restart: &str, script: &str| {
        let line = ["run", "-d", "--name", &name, "--restart", restart, &image, "bash", "-c", script];
        Running::start(lab.keeping(line)).end(patience)
    };
    lab.run(["run", "-d", "--restart", "always", &image, "true"]).assert_failed(125, &["--rm", "exclude"]);
    Running::start(lab.keeping(["run", "--restart", "always", &image, "true"]))
        .end(patience)
        .assert_failed(125, &["-d"]);
    run("sometimes", "true").assert_failed(125, &["sometimes", "unless-stopped"]);

    done(run("on-failure:2", "echo life; exit 3"));
    let mut waiter = Running::start(lab.bulkhead(["wait", &name]));
    waiter.wait_for("3\n", patience);
    assert_eq!(state(&lab, &name), "exited 3 2");
    assert_eq!(
        inspect(&lab, &name, "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}"),
        "on-failure 2"
    );
    assert_eq!(done(lab.run(["logs", &name])), "life\nlife\nlife\n");
    done(lab.run(["update", "--restart", "no", &name]));
    done(lab.run(["start", &name]));
    assert_eq!(done(lab.run(["wait", &name])), "3\n");
    assert_eq!(state(&lab, &name), "exited 3 0");
    done(lab.run(["rm", &name]));

    // It waits longer each time; from then on it is told while it waits.
    done(run("always", "exit 0"));
    let mut happened = events(&lab, &name);
    (0..4).for_each(|_| while happened.line(patience) != "die" {});
    assert_eq!(done(lab.run(["stop", &name])), format!("{name}\n"));
    assert!(state(&lab, &name).starts_with("exited "), "{}", state(&lab, &name));
    drop(happened);
    wait_for_the_orphan(&lab);
    done(lab.run(["rm", &name]));
    lab.assert_clean();
}

/// A microVM that is killed is one that has failed; a supervisor that is killed is the end, since nobody is there to start anything.
#[test]
fn what_is_killed_is_started_again_if_there_is_somebody_to_do_it() {
    let lab = lab!("what_is_killed_is_started_again_if_there_is_somebody_to_do_it", on hardware);
    let (patience, name, image) = (lab.patience(3), unique("again-killed"), lab.debian());
    let script = "echo ready; while :; do sleep 1000 & wait; done";
    let line = ["run", "-d", "--name", &name, "--restart", "unless-stopped", &image, "bash", "-c", script];
    done(Running::start(lab.keeping(line)).end(patience));
    let mut happened = events(&lab, &name);
    while happened.line(patience) != "start" {}
    let monitor = child_of(supervisor(&lab, &name).as_raw_nonzero().get().unsigned_abs()).expect("the monitor");
    kill_process(monitor, Signal::KILL).unwrap();
    while happened.line(patience) != "start" {}
    assert_eq!(state(&lab, &name), "running 0 1");
    // A policy that is changed while it runs is the one at its end.
    done(lab.run(["update", "--restart", "no", &name]));
    let monitor = child_of(supervisor(&lab, &name).as_raw_nonzero().get().unsigned_abs()).expect("the monitor");
    kill_process(monitor, Signal::KILL).unwrap();
    assert_eq!(done(lab.run(["wait", &name])), "137\n");
    assert_eq!(state(&lab, &name), "exited 137 1");

    done(lab.run(["update", "--restart", "always", &name]));
    done(lab.run(["start", &name]));
    kill_process(supervisor(&lab, &name), Signal::KILL).unwrap();
    drop(happened);
    wait_for_the_orphan(&lab);
    assert_eq!(state(&lab, &name), "exited 137 0");
    let why = done(lab.run(["why", &name]));
    assert!(why.contains("looked after it was killed") && why.contains(&format!("bulkhead start {name}")), "{why}");
    done(lab.run(["rm", &name]));
    lab.assert_clean();
}
