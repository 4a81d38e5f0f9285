//! A container that is busy is snapshotted and goes on; its clones go on as containers of their own.

use std::collections::HashSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tests::{Ended, Running};

use crate::lab;
use crate::net::{make_tap, own_network};

/// The numbers that a counter said, and then what it is.
fn said(ended: &Ended) -> (Vec<u64>, Vec<&str>) {
    assert_eq!(ended.code, Some(0), "{:?}", ended.stderr);
    let (numbers, facts): (Vec<_>, Vec<_>) = ended.text().lines().partition(|line| line.parse::<u64>().is_ok());
    (numbers.iter().map(|line| line.parse().unwrap()).collect(), facts)
}

/// A server that keeps its first connection, which comes from the original, for the test, and welcomes all others.
fn server() -> (SocketAddr, Receiver<TcpStream>) {
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (first, kept) = channel();
    thread::spawn(move || {
        first.send(listener.accept().unwrap().0).unwrap();
        while let Ok((mut other, _)) = listener.accept() {
            other.write_all(b"welcome").unwrap();
        }
    });
    (address, kept)
}

#[test]
fn group_8_clones_of_a_busy_container_go_on_as_themselves_and_it_notices_nothing() {
    const TEST: &str = "group_8_clones_of_a_busy_container_go_on_as_themselves_and_it_notices_nothing";
    let lab = lab!(TEST);
    let patience = lab.patience(2);
    let networked = own_network(TEST);
    let stop = |running: Running| {
        running.signal(Signal::TERM);
        running.end(patience)
    };
    let network = |number: u8| {
        let network = format!("tap=bh{number}");
        if networked {
            // The first is the server's own.
            let address = if number == 0 { "192.0.2.1/24".into() } else { format!("198.51.{number}.1/24") };
            make_tap(&format!("bh{number}"), &address);
        }
        if networked { vec!["--network".into(), network] } else { vec![] }
    };
    let mut line: Vec<String> = ["run", "--name", "busy", "--read-only"].map(str::to_owned).into();
    line.extend(network(0));
    line.extend([lab.probe_image(), "/probe".into(), "count".into()]);
    let server = networked.then(server);
    line.extend(server.as_ref().map(|(address, _)| address.to_string()));
    let mut original = Running::start(lab.bulkhead(line));
    original.wait_for("\n50\n", patience);
    // The store is everybody's, and may still have what a run that was killed left there.
    let moment = format!("moment-{}", std::process::id());
    let taken = lab.run(["snapshot", "busy", &moment]);
    assert_eq!(taken.code, Some(0), "{taken:?}");
    if networked {
        // What the original has is not to be had twice.
        lab.run(["restore", &moment]).assert_failed(125, &["tap 'bh0'", "busy"]);
    }
    let clone = |number| {
        let line = ["restore".into(), moment.clone()].into_iter().chain(network(number));
        Running::start(lab.bulkhead(line))
    };
    let mut clones = [clone(1), clone(2)];
    for clone in &mut clones {
        clone.wait_for("\n", patience);
    }
    let [first, second] = clones.map(stop);
    if let Some((_, kept)) = &server {
        kept.recv().unwrap().write_all(b"still here").unwrap();
    }
    let original = stop(original);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();

    let (numbers, facts) = said(&original);
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "a line is missing, or there twice");
    let (connections, facts) = facts.split_at(if networked { 2 } else { 0 });
    assert!(!networked || connections == ["peer still here", "again welcome"], "{connections:?}");
    let mut seen: HashSet<&str> = facts.iter().copied().collect();
    let mut begins = Vec::new();
    for clone in [&first, &second] {
        let (on, facts) = said(clone);
        assert!(on[0] > 50 && on[0] <= numbers.len() as u64, "goes on with {}", on[0]);
        assert!(on.iter().copied().eq(on[0]..on[0] + on.len() as u64), "a line is missing, or there twice");
        begins.push(on[0]);
        let (connections, facts) = facts.split_at(if networked { 2 } else { 0 });
        assert!(!networked || connections == ["peer ConnectionReset", "again welcome"], "{connections:?}");
        let (clock, own) = facts.split_last().unwrap();
        assert_eq!(own.len(), if networked { 7 } else { 5 }, "{facts:?}");
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
