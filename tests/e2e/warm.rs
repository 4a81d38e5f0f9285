//! Warm starts: templates are made, used, replaced when they are damaged, and make no two guests alike.

use std::time::{SystemTime, UNIX_EPOCH};

use tests::{Lab, Running};

use crate::lab;

/// What a clone must not share with its siblings, and the time.
const FACTS: &str = "cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; hostname; head -c16 /dev/urandom | od -An -tx1; date +%s";

/// Number of templates in the lab's store.
fn templates(lab: &Lab) -> u64 {
    let df = lab.run(["system", "df", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&df.stdout).unwrap_or_default();
    report["templates"]["count"].as_u64().unwrap_or_else(|| panic!("{df:?}"))
}

/// Whether a run went on from a template, by its phases.
fn was_warm(ended: &tests::process::Ended) -> bool {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stderr.lines().any(|line| line.trim_start().starts_with("wake "))
}

#[test]
fn clones_of_a_template_are_not_alike() {
    let lab = lab!("clones_of_a_template_are_not_alike");
    // Leaves the template, if nobody has yet.
    let patience = lab.patience(2);
    let run = || Running::start(lab.bulkhead(["run", "--verbose", &lab.debian(), "sh", "-c", FACTS]));
    let clones: Vec<_> = [run(), run()].into_iter().map(|running| running.end(patience)).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut seen = std::collections::HashSet::new();
    for ended in &clones {
        let lines: Vec<&str> = ended.text().lines().collect();
        assert_eq!(lines.len(), 5, "{ended:?}");
        for line in &lines[..4] {
            assert!(seen.insert(line.to_string()), "'{line}' twice in {clones:?}");
        }
        let clock: u64 = lines[4].parse().unwrap();
        assert!(clock <= now && now - clock < patience.as_secs(), "{clock} is not the time, which is {now}");
    }
    assert!(clones.iter().all(was_warm), "{clones:?}");
    lab.assert_clean();
}

/// A template's kernel has not asked its disk for anything: what it had read would be another image's.
fn assert_disk_untouched(lab: &Lab) {
    const BLOCK_DEVICE: &str = "\"device_id\":2,";
    let entries = std::fs::read_dir(lab.store().join("templates")).unwrap().flatten();
    let states: Vec<_> = entries.filter_map(|entry| std::fs::read(entry.path().join("state")).ok()).collect();
    assert!(!states.is_empty());
    for state in states {
        let state = String::from_utf8_lossy(&state);
        let (_, disk) = state.split_once(BLOCK_DEVICE).expect("the layers' disk");
        let (disk, _) = disk.split_once("\"interrupt_status\"").expect("the end of its queues");
        assert!(disk.contains("\"ready\":[0,0]"), "requests were made: {disk}");
    }
}

#[test]
fn templates_are_made_replaced_when_damaged_and_pruned() {
    let lab = lab!("templates_are_made_replaced_when_damaged_and_pruned");
    let patience = lab.patience(2);
    let lab = lab.own_store();
    let image = lab.probe_image();
    let run = |flags: &[&str]| {
        let line = [&["run", "--verbose"], flags, &[&image, "/probe", "memory"]].concat();
        Running::start(lab.bulkhead(line)).end(patience)
    };
    assert!(!was_warm(&run(&[])));
    assert!(was_warm(&run(&[])));
    assert_eq!(templates(&lab), 1);
    assert_disk_untouched(&lab);
    let mut entries = std::fs::read_dir(lab.store().join("templates")).unwrap().flatten().map(|entry| entry.path());
    let template = entries.find(|path| path.join("state").exists()).expect("a template");
    let state = template.join("state");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, &bytes).unwrap();
    let damaged = run(&[]);
    assert!(!was_warm(&damaged) && damaged.stderr.contains("damaged"), "{damaged:?}");
    assert!(was_warm(&run(&[])));
    let pruned = lab.run(["system", "prune", "-f"]);
    assert!(pruned.code == Some(0) && pruned.text().starts_with("Total reclaimed space: "), "{pruned:?}");
    assert_eq!(templates(&lab), 0);
    assert!(!was_warm(&run(&["--cold"])));
    assert_eq!(templates(&lab), 0);
    lab.assert_clean();
}

/// The benchmark runs a command both ways; its times are for an idle machine to judge.
#[test]
fn the_run_benchmark_measures() {
    let lab = lab!("the_run_benchmark_measures");
    let patience = lab.patience(3);
    let line = ["bench", "run", "-n", "1", "--format", "json", &lab.probe_image(), "/probe", "memory"];
    let ended = Running::start(lab.bulkhead(line)).end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    for (kind, begin) in [("cold", "kernel"), ("warm", "wake")] {
        let phases = report[kind]["phases"].as_array().unwrap();
        assert!(phases.len() == 6 && phases[2][0] == begin, "{report}");
    }
    lab.assert_clean();
}
