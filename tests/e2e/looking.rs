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
    let lab = lab!("stats_tell_whose_memory_is_whose");
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
