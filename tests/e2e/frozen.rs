//! A container that is busy is snapshotted and goes on; its clones go on as containers of their own.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tests::{Ended, Running};

use crate::lab;

/// Counts until it is told to stop, without a pause and without another process, then says who it is.
const COUNT: &str = "trap stop=1 TERM; while [ -z \"$stop\" ]; do n=$((n+1)); echo $n; done; read -r file < /etc/hostname; \
    echo host $(hostname); echo file $file; read -r uuid < /proc/sys/kernel/random/uuid; echo uuid $uuid; \
    echo random $(head -c16 /dev/urandom | od -An -tx1); echo clock $(date +%s)";

/// The numbers that a counter said, and then what it is.
fn said(ended: &Ended) -> (Vec<u64>, Vec<&str>) {
    assert_eq!(ended.code, Some(0), "{:?}", ended.stderr);
    let (numbers, facts): (Vec<_>, Vec<_>) = ended.text().lines().partition(|line| line.parse::<u64>().is_ok());
    (numbers.iter().map(|line| line.parse().unwrap()).collect(), facts)
}

#[test]
fn clones_of_a_busy_container_go_on_as_themselves_and_it_notices_nothing() {
    let lab = lab!("clones_of_a_busy_container_go_on_as_themselves_and_it_notices_nothing");
    let patience = lab.patience(2);
    let stop = |running: Running| {
        running.signal(Signal::TERM);
        running.end(patience)
    };
    let mut original =
        Running::start(lab.bulkhead(["run", "--name", "busy", "--read-only", &lab.debian(), "sh", "-c", COUNT]));
    original.wait_for("\n50\n", patience);
    // The store is everybody's, and may still have what a run that was killed left there.
    let moment = format!("moment-{}", std::process::id());
    let taken = lab.run(["snapshot", "busy", &moment]);
    assert_eq!(taken.code, Some(0), "{taken:?}");
    let clone = || Running::start(lab.bulkhead(["restore", &moment]));
    let mut clones = [clone(), clone()];
    for clone in &mut clones {
        clone.wait_for("\n", patience);
    }
    let [first, second] = clones.map(stop);
    let original = stop(original);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();

    let (numbers, facts) = said(&original);
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "a line is missing, or there twice");
    let mut seen: HashSet<&str> = facts.into_iter().collect();
    let mut begins = Vec::new();
    for clone in [&first, &second] {
        let (on, facts) = said(clone);
        assert!(on[0] > 50 && on[0] <= numbers.len() as u64, "goes on with {}", on[0]);
        assert!(on.iter().copied().eq(on[0]..on[0] + on.len() as u64), "a line is missing, or there twice");
        begins.push(on[0]);
        let (clock, own) = facts.split_last().unwrap();
        assert_eq!(own.len(), 4, "{facts:?}");
        assert_eq!(own[0].replace("host", "file"), own[1]);
        for fact in own {
            assert!(seen.insert(fact), "'{fact}' is not its own");
        }
        let clock: u64 = clock.strip_prefix("clock ").unwrap().parse().unwrap();
        assert!(clock <= now && now - clock < patience.as_secs(), "{clock} is not the time, which is {now}");
    }
    assert_eq!(begins[0], begins[1]);
    assert_eq!(lab.run(["snapshots", "rm", &moment]).code, Some(0));
    lab.assert_clean();
}
