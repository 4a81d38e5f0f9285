//! SIGKILL at random moments, of any process of a mixed workload: nothing is lost, nothing leaks, and the next command works.
//!
//! BULKHEAD_TEST_ROUNDS says how often, BULKHEAD_TEST_SEED which moments: a failure names both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use tests::{Lab, Running};

use crate::lab;

/// How often, where BULKHEAD_TEST_ROUNDS does not say: some two seconds each.
const ROUNDS: u64 = 100;

/// Knuth's MMIX generator; its upper bits are the better ones.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: not a number")))
}

/// What may be interrupted: each leaves something in the store, or takes something away.
fn verb(lab: &Lab, which: u64) -> Vec<String> {
    let archive = lab.images("debian.tar").display().to_string();
    let line: &[&str] = match which {
        0 => &["run", "--rm", "debian", "true"],
        1 => &["run", "-d", "--name", "lives", "debian", "sleep", "1000"],
        2 => &["run", "-v", "filled:/etc", "debian", "true"],
        3 => &["create", "debian", "true"],
        4 => &["load", "-q", "-i", &archive, "--name", "other"],
        5 => &["rmi", "-f", "other"],
        6 => &["commit", "base", "committed"],
        7 => &["start", "base"],
        8 => &["cp", "base:/etc/passwd", "-"],
        _ => &["system", "prune", "-f"],
    };
    line.iter().map(|word| (*word).to_owned()).collect()
}
const VERBS: u64 = 10;

/// Names of all files of a store, but for what is only there to be quicker, and may go at any time.
fn census(store: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![store.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !path.ends_with("templates") => left.push(path),
                Ok(kind) if kind.is_file() => drop(found.insert(path)),
                _ => {}
            }
        }
    }
    found
}

fn done(lab: &Lab, words: &[&str], at: &str) -> String {
    let ended = Running::start(lab.keeping(words)).end(lab.patience(2));
    assert_eq!(ended.code, Some(0), "{at}: {words:?}: {ended:?}");
    ended.text().to_owned()
}

/// Removes a container, also one that somebody is still starting, as long as that takes: until then it is refused.
fn remove(lab: &Lab, id: &str, patience: Duration, at: &str) {
    let deadline = Instant::now() + patience;
    loop {
        let somebody = !lab.processes().is_empty();
        let ended = Running::start(lab.keeping(["rm", "-f", id])).end(patience);
        if ended.code == Some(0) {
            return;
        }
        assert!(ended.stderr.contains("being started"), "{at}: {ended:?}");
        assert!(somebody && Instant::now() < deadline, "{at}: nobody has it: {ended:?}");
    }
}

/// One is killed: of the processes that there are, the first one half of the time.
fn kill_one(lab: &Lab, first: &Running, random: &mut Random) {
    let all = lab.processes();
    let which = if random.below(2) == 0 { 0 } else { random.below(all.len().max(1) as u64) as usize };
    match all.get(which).copied().filter(|_| which > 0).and_then(Pid::from_raw) {
        // It may have ended by now.
        Some(pid) => drop(kill_process(pid, Signal::KILL)),
        None => first.signal(Signal::KILL),
    }
}

#[test]
#[ignore = "random: to be run by hand, with BULKHEAD_TEST_ROUNDS=1000 and --ignored"]
fn group_11_whatever_is_killed_nothing_is_lost() {
    let lab = lab!("group_11_whatever_is_killed_nothing_is_lost", on the machine);
    let patience = lab.patience(2);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let seed = number("BULKHEAD_TEST_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64));
    let mut random = Random(seed);
    let archive = lab.images("debian.tar").display().to_string();
    done(&lab, &["load", "-q", "-i", &archive, "--name", "debian"], "before");
    done(&lab, &["run", "--name", "base", "debian", "sh", "-c", "echo kept >/kept"], "before");
    // What is made with the first of its kind, and stays.
    done(&lab, &["volume", "create", "first"], "before");
    done(&lab, &["volume", "rm", "first"], "before");
    done(&lab, &["system", "prune", "-f"], "before");
    let before = census(lab.store());
    // As long as the longest of them takes.
    let longest = patience / 40;
    for round in 0..number("BULKHEAD_TEST_ROUNDS").unwrap_or(ROUNDS) {
        let words = verb(&lab, random.below(VERBS));
        let delay = Duration::from_micros(random.below(longest.as_micros() as u64));
        let at = format!("BULKHEAD_TEST_SEED={seed}, round {round}, {words:?} after {delay:?}");
        let running = Running::start(lab.keeping(&words));
        std::thread::sleep(delay);
        kill_one(&lab, &running, &mut random);
        running.end(patience);
        // The next command works, and sees what there is; what lives on is ended by it.
        let containers = done(&lab, &["ps", "-a", "-q", "--no-trunc"], &at);
        let base = done(&lab, &["inspect", "-f", "{{.Id}}", "base"], &at);
        for id in containers.lines().filter(|id| *id != base.trim()) {
            remove(&lab, id, patience, &at);
        }
        if done(&lab, &["inspect", "-f", "{{.State.Status}}", "base"], &at).trim() == "running" {
            done(&lab, &["stop", "base"], &at);
        }
        lab.wait_for_processes(patience);
        done(&lab, &["images", "-q"], &at);
        assert_eq!((lab.left_behind(), lab.control_groups()), (Vec::new(), Vec::new()), "{at}");
    }
    let at = format!("BULKHEAD_TEST_SEED={seed}, afterwards");
    let images = done(&lab, &["images"], &at);
    for image in ["other", "committed"] {
        if images.lines().any(|line| line.starts_with(image)) {
            assert_eq!(done(&lab, &["run", "--rm", image, "echo", image], &at).trim(), image, "{at}");
            done(&lab, &["rmi", "-f", image], &at);
        }
    }
    done(&lab, &["volume", "prune", "-f", "-a"], &at);
    done(&lab, &["start", "base"], &at);
    done(&lab, &["wait", "base"], &at);
    assert_eq!(done(&lab, &["run", "--rm", "debian", "echo", "whole"], &at).trim(), "whole", "{at}");
    done(&lab, &["system", "prune", "-f"], &at);
    let after = census(lab.store());
    // Layers that no image has, of other tests' images, go when it is tidied up; those of this one's have just been used.
    let is_lost = |path: &&PathBuf| !path.starts_with(lab.store().join("layers"));
    let lost: Vec<_> = before.difference(&after).filter(is_lost).collect();
    let leaked: Vec<_> = after.difference(&before).collect();
    assert!(lost.is_empty() && leaked.is_empty(), "{at}: lost {lost:?}, leaked {leaked:?}");
    assert_eq!(done(&lab, &["rm", "base"], &at).trim(), "base");
    lab.assert_clean();
}
