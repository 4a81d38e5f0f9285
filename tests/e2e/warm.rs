//! Warm starts: templates are made, used, replaced when they are damaged, and make no two guests alike.

use std::time::{SystemTime, UNIX_EPOCH};

use tests::{Lab, Running};

use crate::lab;
use crate::net::{make_tap, own_network};

/// Number of templates in the lab's store.
fn templates(lab: &Lab) -> u64 {
    let df = lab.run(["system", "df", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&df.stdout).unwrap_or_default();
    report["templates"]["count"].as_u64().unwrap_or_else(|| panic!("{df:?}"))
}

/// Whether a run went on from a template, by its phases.
pub(crate) fn was_warm(ended: &tests::process::Ended) -> bool {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stderr.lines().any(|line| line.trim_start().starts_with("wake "))
}

/// Clones of a template have nothing in common that others know them by, their network included, and have the time. Whoever has left the
/// template had no network.
#[test]
fn group_8_clones_of_a_template_are_not_alike() {
    const TEST: &str = "group_8_clones_of_a_template_are_not_alike";
    let lab = lab!(TEST);
    // Leaves the template, if nobody has yet.
    let patience = lab.patience(2);
    let networked = own_network(TEST);
    let image = lab.probe_image();
    let run = |number: u8| {
        let (tap, network) = (format!("bh{number}"), format!("tap=bh{number}"));
        if networked {
            make_tap(&tap, &format!("198.51.{number}.1/24"));
        }
        let flags = if networked { vec!["--network", &network] } else { vec![] };
        let line = [&["run", "--verbose"], &flags[..], &[&image, "/probe", "facts"]].concat();
        Running::start(lab.bulkhead(line)).end(patience)
    };
    let clones = [run(1), run(2), run(3)];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut seen = std::collections::HashSet::new();
    for ended in &clones {
        let facts: Vec<(&str, &str)> = ended.text().lines().filter_map(|line| line.split_once(' ')).collect();
        let names: Vec<&str> = facts.iter().map(|(name, _)| *name).collect();
        let network: &[&str] = if networked { &["mac", "ip"] } else { &[] };
        assert_eq!(names, [&["boot", "host", "file", "machine", "uuid", "random"], network, &["clock"]].concat());
        for (name, value) in &facts[..facts.len() - 1] {
            assert!(!value.is_empty() && seen.insert((*name, *value)), "{name} '{value}' twice in {clones:?}");
        }
        let clock: u64 = facts.last().unwrap().1.parse().unwrap();
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
    let lab = lab!("templates_are_made_replaced_when_damaged_and_pruned", on hardware);
    let patience = lab.patience(2);
    // Those that other tests go on from, so that nothing boots for this one alone.
    let lab = lab.own_store_with(&["templates"]);
    let image = lab.probe_image();
    let run = |flags: &[&str]| {
        let line = [&["run", "--verbose"], flags, &[&image, "/probe", "memory"]].concat();
        Running::start(lab.bulkhead(line)).end(patience)
    };
    assert!(was_warm(&run(&[])));
    assert_disk_untouched(&lab);
    let count = templates(&lab);
    // A container that keeps its files on a disk goes on from the same one, and so does one with a volume.
    let line = ["run", "--verbose", "--name", "keeps", &image, "/probe", "memory"];
    assert!(was_warm(&Running::start(lab.keeping(line)).end(patience)));
    let volume = format!("{}:/data", lab.path("root").display());
    assert!(was_warm(&run(&["-v", &volume])));
    assert_eq!((templates(&lab), lab.run(["rm", "keeps"]).code), (count, Some(0)));
    let entries = std::fs::read_dir(lab.store().join("templates")).unwrap().flatten();
    for state in entries.map(|entry| entry.path().join("state")).filter(|state| state.exists()) {
        let mut bytes = std::fs::read(&state).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // Another file: the one that was there is a link.
        std::fs::remove_file(&state).unwrap();
        std::fs::write(&state, &bytes).unwrap();
    }
    let damaged = run(&[]);
    assert!(!was_warm(&damaged) && damaged.stderr.contains("damaged"), "{damaged:?}");
    assert!(was_warm(&run(&[])));
    assert_eq!(templates(&lab), count);
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
    let lab = lab!("the_run_benchmark_measures", on hardware);
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
