//! Looking at containers: what they use, what has become of them, and why.

use serde_json::Value;
use tests::{Lab, Running};

use crate::lab;
use crate::lifecycle::{done, unique};

fn stats(lab: &Lab, names: &[&str]) -> Vec<Value> {
    let told = done(lab.run([&["stats", "--no-stream", "--format", "json"], names].concat()));
    told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Whose memory is whose, and that what a guest does is seen.
#[test]
fn stats_tell_whose_memory_is_whose() {
    let lab = lab!("stats_tell_whose_memory_is_whose", on hardware);
    let patience = lab.patience(1);
    let (idle, busy) = (unique("stats-idle"), unique("stats-busy"));
    let script =
        "echo ready; read line; head -c 16000000 /dev/zero > /dev/shm/x; echo full; while :; do sleep 1000; done";
    for name in [&idle, &busy] {
        done(lab.run(["run", "-di", "--name", name, &lab.debian(), "sh", "-c", script]));
    }
    let number = |row: &Value, key: &str| row["Bytes"][key].as_u64().unwrap_or_else(|| panic!("no {key} in {row}"));
    let rows = stats(&lab, &[&idle, &busy]);
    let names: Vec<_> = rows.iter().map(|row| row["Name"].as_str().unwrap()).collect();
    assert_eq!(names, [&idle, &busy]);
    let before = &rows[1];
    for key in ["GuestUsed", "GuestCached", "HostGuest", "HostMonitor", "BlockRead"] {
        assert!(number(before, key) > 0, "{key}: {before}");
    }
    assert_eq!((number(before, "Limit"), number(before, "NetIn")), (256 << 20, 0), "{before}");
    // A shell, without the guest's kernel.
    assert!((100_000..4_000_000).contains(&number(before, "AsContainer")), "{before}");
    // The program that both run, if nothing else.
    assert!(number(before, "HostShared") >= number(before, "HostShare"), "{before}");
    assert!(before["CPUPerc"].as_str().unwrap().ends_with('%') && before["PIDs"] != "--", "{before}");
    let mut attach = lab.bulkhead(["attach", &busy]);
    attach.stdin(std::process::Stdio::piped());
    let mut attach = Running::start(attach);
    attach.say("go\n");
    attach.wait_for("full", patience);
    let after = &stats(&lab, &[&busy])[0];
    for key in ["GuestUsed", "HostGuest"] {
        assert!(number(after, key) > number(before, key) + 12_000_000, "{key}: {before} {after}");
    }
    let more = number(after, "AsContainer") - number(before, "AsContainer");
    assert!((16_000_000..17_000_000).contains(&more), "{before} {after}");
    done(lab.run(["pause", &busy]));
    let shown = done(lab.run(["stats", "--no-stream", &busy]));
    assert!(shown.starts_with("CONTAINER ID") && shown.contains("-- / 268.4MB"), "{shown}");
    lab.run(["stats", "--no-stream", "no-such-container"]).assert_failed(1, &["no such container"]);
    // One that has ended ends the looking on.
    let mut watcher = Running::start(lab.bulkhead(["stats", "--format", "{{.Name}} seen", &idle]));
    watcher.wait_for(&format!("{idle} seen"), patience);
    done(lab.run(["rm", "-f", &idle, &busy]));
    let ended = watcher.end(patience);
    assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
    lab.assert_clean();
}

fn why(lab: &Lab, name: &str) -> Value {
    serde_json::from_str(&done(lab.run(["why", "--format", "json", name]))).expect("JSON")
}

/// What happens to a container is told as it happens and afterwards, and why it has ended.
#[test]
fn what_happens_is_told_and_why() {
    let lab = lab!("what_happens_is_told_and_why", on the machine);
    let patience = lab.patience(1);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let (name, other) = (unique("told"), unique("told-after"));
    let filter = format!("container={name}");
    let mut follower = Running::start(lab.bulkhead([
        "events",
        "--filter",
        "type=container",
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ]));
    // Its process ignores what asks it to stop.
    let flags = ["run", "-d", "--label", "tier=web", "--name", &name, &lab.debian()];
    let command =
        ["bash", "-c", "trap 'echo no' TERM; trap 'exit 6' USR1; echo ready; while :; do sleep 1000 & wait; done"];
    done(Running::start(lab.keeping(flags.iter().copied().chain(command))).end(patience));
    follower.wait_for(&format!("start {name}\n"), patience);
    done(lab.run(["pause", &name]));
    assert_eq!(why(&lab, &name)["Cause"], "paused");
    done(lab.run(["unpause", &name]));
    assert_eq!(why(&lab, &name)["Cause"], "running");
    Running::start(lab.bulkhead(["logs", "-f", &name])).wait_for("ready", patience);
    done(lab.run(["stop", "-t", "1", &name]));
    let told = why(&lab, &name);
    assert_eq!((told["Cause"].as_str(), told["ExitCode"].as_u64()), (Some("stop-timeout"), Some(137)), "{told}");
    let text = done(lab.run(["why", &name]));
    assert!(
        text.starts_with(&format!("Container {name} ended ")) && text.contains("SIGTERM") && text.contains("stop -t"),
        "{text}"
    );

    done(lab.run(["start", &name]));
    // The second life's, whose traps are there by then.
    let mut lines = Running::start(lab.bulkhead(["logs", "-f", &name]));
    (0..2).for_each(|_| while lines.line(patience) != "ready" {});
    done(lab.run(["kill", "-s", "USR1", &name]));
    assert_eq!(done(lab.run(["wait", &name])), "6\n");
    assert_eq!(why(&lab, &name)["Cause"], "exit");
    done(lab.run(["rename", &name, &other]));
    done(lab.run(["rm", &other]));
    follower.wait_for(&format!("destroy {other}\n"), patience);
    let wanted = "create start pause unpause kill kill die stop start kill die";
    let list = |flags: &[&str]| {
        let format = ["--until", &now(), "--format", "{{.Action}}"].map(str::to_owned);
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).chain(format).collect();
        done(lab.run(std::iter::once("events".to_owned()).chain(flags)))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(list(&["--since", "1h", "--filter", &filter]), wanted);
    assert_eq!(
        list(&["--filter", "event=rename", "--filter", "event=destroy", "--filter", "label=tier=web"]),
        "rename destroy"
    );
    let json = done(lab.run(["events", "--until", &now(), "--filter", "event=die", "--format", "json"]));
    let first: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["Actor"]["Attributes"]["exitCode"], &first["Type"]),
        (&"137".into(), &"container".into()),
        "{first}"
    );
    lab.run(["events", "--filter", "color=red"]).assert_failed(125, &["color=red", "container"]);

    let image = lab.debian();
    let line = ["run", "--name", &name, &image, "/no/such/program"];
    assert_eq!(Running::start(lab.keeping(line)).end(patience).code, Some(127));
    assert_eq!(why(&lab, &name)["Cause"], "command-not-found");
    done(lab.run(["rm", &name]));
    lab.run(["why", &name]).assert_failed(1, &["no such container"]);
    drop(follower);
    lab.assert_clean();
}

/// Seconds since the epoch.
fn now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

/// A guest whose memory runs out says so, which no exit code does.
#[test]
fn a_guest_that_runs_out_of_memory_is_told() {
    let lab = lab!("a_guest_that_runs_out_of_memory_is_told", on hardware);
    // An image with little in it: a kernel that is emulated takes long to read programs again and again before it gives up.
    let (patience, name, image) = (lab.patience(4), unique("scarce"), lab.probe_image());
    let words = ["run", "--name", &name, "-m", "64m", "--sysctl", "vm.overcommit_memory=1", &image, "/probe", "hog"];
    let ended = Running::start(lab.keeping(words)).end(patience);
    assert_eq!(ended.code, Some(137), "{ended:?}");
    let told = why(&lab, &name);
    assert_eq!(told["Cause"], "guest-out-of-memory", "{told}");
    assert!(
        told["OutOfMemory"].as_str().unwrap().contains("(probe)") && told["Next"].as_str().unwrap().contains("-m 128m"),
        "{told}"
    );
    let filter = format!("container={name}");
    let events = done(lab.run(["events", "--until", &now(), "--filter", &filter, "--format", "{{.Action}}"]));
    assert!(events.ends_with("oom\ndie\n"), "{events}");
    done(lab.run(["rm", &name]));
    lab.assert_clean();
}
