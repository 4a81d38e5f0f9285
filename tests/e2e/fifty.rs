//! Fifty containers started, used and removed at once, twice in a row, while others are killed: what this host has of them before and
//! after is the same.
//!
//! By hand, since it takes minutes: `tests/run images services`, docs/test-hosts.md, which also says why not where guests' kernels are
//! emulated.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::{Lab, Running};

use crate::ending::child_of;
use crate::lab;
use crate::net::{ip, make_tap, own_network};

const CONTAINERS: usize = 50;
/// Others, one for each way to be killed.
const VICTIMS: [Victim; 8] = [
    Victim::Supervisor,
    Victim::Monitor,
    Victim::Foreground,
    Victim::Starting(Duration::from_millis(100)),
    Victim::Starting(Duration::from_millis(1500)),
    Victim::Exec,
    Victim::Removal,
    Victim::Pod,
];

/// Who gets SIGKILL.
#[derive(Debug, Clone, Copy)]
enum Victim {
    /// Whoever looks after a container in the background.
    Supervisor,
    /// A microVM's own process.
    Monitor,
    /// `run` without `-d`.
    Foreground,
    /// `run -d`, so long after its start.
    Starting(Duration),
    /// `exec`, while its command runs.
    Exec,
    /// `rm -f`.
    Removal,
    /// The owner of a pod's microVM, with its members.
    Pod,
}

/// What a host has of a lab's containers.
#[derive(Debug, PartialEq, Eq)]
struct Census {
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    interfaces: BTreeSet<String>,
    control_groups: BTreeSet<PathBuf>,
    sockets: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
    /// What those files take on the disk, but for the journal of events, which grows.
    bytes: u64,
}

impl Census {
    /// Of a lab whose thread has a network of its own.
    fn of(lab: &Lab) -> Self {
        let (mut files, mut bytes) = (BTreeSet::new(), 0);
        below(&lab.path(""), &mut |path, meta| {
            let journal = path.starts_with(lab.store().join("events"));
            // Nor does a directory that has had many entries shrink.
            bytes += if journal || meta.is_dir() { 0 } else { meta.blocks() * 512 };
            files.insert(path.to_owned());
        });
        Census {
            processes: processes(lab),
            mounts: lines("/proc/self/mounts").collect(),
            interfaces: lines("/proc/thread-self/net/dev")
                .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
                .collect(),
            control_groups: control_groups(lab),
            sockets: sockets(),
            files,
            bytes,
        }
    }
}

impl Census {
    /// What only one of the two has, `-` this one and `+` the other: easier to read than both.
    fn differences(&self, other: &Self) -> Vec<String> {
        let all = |census: &Self| -> BTreeSet<String> {
            let paths = census.control_groups.iter().chain(&census.files).map(|path| path.display().to_string());
            let names = [&census.processes, &census.mounts, &census.interfaces, &census.sockets];
            names.into_iter().flatten().cloned().chain(paths).collect()
        };
        let (ours, theirs) = (all(self), all(other));
        let gone = ours.difference(&theirs).map(|one| format!("- {one}"));
        gone.chain(theirs.difference(&ours).map(|one| format!("+ {one}"))).collect()
    }
}

fn lines(path: &str) -> impl Iterator<Item = String> + use<> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// All that is below a directory.
fn below(dir: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // One that goes meanwhile is not there.
        let Ok(meta) = entry.metadata() else { continue };
        see(&entry.path(), &meta);
        if meta.is_dir() {
            below(&entry.path(), see);
        }
    }
}

/// Those in this thread's network, and those that this lab's commands have started or that are told of its directory.
fn processes(lab: &Lab) -> BTreeSet<String> {
    let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let (started, place) = (lab.processes(), lab.path("").display().to_string());
    let found = fs::read_dir("/proc").unwrap().flatten().filter_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let is_here = || fs::read_link(process.path().join("ns/net")).is_ok_and(|network| network == ours);
        (started.contains(&pid) || command.contains(&place) || is_here()).then(|| format!("{pid} {command}"))
    });
    found.collect()
}

/// Of Bulkhead's, those that a list in the lab names, and any other that no process is in.
fn control_groups(lab: &Lab) -> BTreeSet<PathBuf> {
    let mut groups: BTreeSet<PathBuf> = lab.control_groups().into_iter().collect();
    below(Path::new("/sys/fs/cgroup"), &mut |path, meta| {
        let is_bulkheads = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"bulkhead-"));
        let is_empty = || fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
        if meta.is_dir() && is_bulkheads && is_empty() {
            groups.insert(path.to_owned());
        }
    });
    groups
}

/// What listens and is connected in this thread's network, with a name or a port.
fn sockets() -> BTreeSet<String> {
    let unix = lines("/proc/thread-self/net/unix")
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(7).map(str::to_owned));
    let inet = ["tcp", "udp"].into_iter().flat_map(|kind| {
        let lines = lines(&format!("/proc/thread-self/net/{kind}")).skip(1);
        // 06: a connection that was, which the kernel remembers for a minute.
        let fields = lines.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        fields
            .filter(|fields| fields[3] != "06")
            .map(move |fields| format!("{kind} {} {}", fields[1], fields[2]))
            .collect::<Vec<_>>()
    });
    unix.chain(inet).collect()
}

/// What makes one of the fifty another than its neighbours.
fn flags(number: usize) -> Vec<String> {
    let words: &[&str] = match number % 5 {
        0 => &["--network", "tap"],
        1 => &["-v", "shared:/shared"],
        2 => &["--network", "user", "-p"],
        3 => &["--network", "fifty"],
        _ => &["--rm"],
    };
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    if number % 5 == 2 {
        words.push(format!("{}:80", 9000 + number));
    }
    words
}

/// What it leaves in the directory of temporary files, the census sees as well.
fn command(lab: &Lab, line: &[impl AsRef<std::ffi::OsStr>]) -> Command {
    let mut command = lab.keeping(line);
    command.env("TMPDIR", lab.path("tmp"));
    command
}

/// Runs all of these at once; what each prints, which succeeds.
fn at_once(lab: &Lab, patience: Duration, lines: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    let running: Vec<_> = lines.map(|line| (Running::start(command(lab, &line)), line)).collect();
    let end = |(running, line): (Running, Vec<String>)| {
        let ended = running.end(patience);
        assert_eq!(ended.code, Some(0), "{line:?}: {ended:?}");
        ended.text().trim().to_owned()
    };
    running.into_iter().map(end).collect()
}

/// What a container has written, as soon as it has.
const READ: &str = "until read own </own; do sleep 0.1; done 2>/dev/null; echo $own";

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| (*word).to_owned()).collect()
}

fn done(lab: &Lab, patience: Duration, line: &[&str]) -> String {
    at_once(lab, patience, std::iter::once(words(line))).remove(0)
}

/// Starts one more, and kills what is to be killed of it. What is left of it is for the next commands.
fn kill(lab: &Lab, patience: Duration, victim: Victim, name: &str) {
    let run = ["run", "-d", "-m", "64m", "--name", name, "debian", "sleep", "1000"];
    match victim {
        Victim::Supervisor | Victim::Monitor => {
            done(lab, patience, &run);
            let owner: u32 = done(lab, patience, &["inspect", "-f", "{{.State.Pid}}", name]).parse().unwrap();
            let pid = match victim {
                Victim::Monitor => child_of(owner),
                _ => Pid::from_raw(owner as i32),
            };
            kill_process(pid.expect("it runs"), Signal::KILL).unwrap();
        }
        Victim::Foreground => {
            let line = [
                "run",
                "-m",
                "64m",
                "--name",
                name,
                "--network",
                "tap",
                "debian",
                "sh",
                "-c",
                "echo ready; exec sleep 1000",
            ];
            let mut running = Running::start(command(lab, &line));
            running.wait_for("ready", patience);
            running.signal(Signal::KILL);
            running.end(patience);
        }
        Victim::Starting(after) => {
            let running = Running::start(command(lab, &run));
            // Wherever it is by then.
            std::thread::sleep(after);
            running.signal(Signal::KILL);
            running.end(patience);
        }
        Victim::Exec => {
            done(lab, patience, &run);
            let mut running = Running::start(command(lab, &["exec", name, "sh", "-c", "echo ready; exec sleep 1000"]));
            running.wait_for("ready", patience);
            running.signal(Signal::KILL);
            running.end(patience);
        }
        Victim::Removal => {
            done(lab, patience, &run);
            let running = Running::start(command(lab, &["rm", "-f", name]));
            std::thread::sleep(Duration::from_millis(5));
            running.signal(Signal::KILL);
            running.end(patience);
        }
        Victim::Pod => {
            done(lab, patience, &["pod", "create", "--network", "none", "-m", "128m", name]);
            done(lab, patience, &["run", "-d", "--pod", name, "debian", "sleep", "1000"]);
            let id = done(lab, patience, &["pod", "inspect", "-f", "{{.Id}}", name]);
            let record = lab.store().join("pods/containers").join(id).join("record.json");
            let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
            let owner = record["state"]["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32)).expect("it runs");
            kill_process(owner, Signal::KILL).unwrap();
        }
    }
}

/// Away with what is left of those that were killed, also of one that somebody is still starting.
fn remove_victims(lab: &Lab, patience: Duration) {
    let deadline = Instant::now() + patience;
    loop {
        let pods = done(lab, patience, &["pod", "ls", "-q", "--filter", "name=victim"]);
        let left = done(lab, patience, &["ps", "-aq", "--filter", "name=victim"]);
        if pods.is_empty() && left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "they stay: {pods} {left}");
        for (verb, id) in
            pods.lines().map(|id| (&["pod", "rm", "-f"][..], id)).chain(left.lines().map(|id| (&["rm", "-f"][..], id)))
        {
            Running::start(command(lab, &[verb, &[id]].concat())).end(patience);
        }
    }
}

/// Fifty at once, from `run` to `rm`, with others beside them that are killed.
fn round(lab: &Lab, patience: Duration) {
    let name = |number: usize| format!("one-{number}");
    let began = Instant::now();
    let told = |what: &str| eprintln!("{:>7.1} s  {what}", began.elapsed().as_secs_f64());
    let killers = |at: &[usize]| at.iter().map(|&at| (VICTIMS[at], format!("victim-{at}"))).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for (victim, name) in killers(&[0, 1, 2, 3, 4]) {
            scope.spawn(move || kill(lab, patience, victim, &name));
        }
        let all = (0..CONTAINERS).map(|number| {
            let own = words(&["run", "-d", "-m", "64m", "--name", &name(number)]);
            [
                own,
                flags(number),
                words(&["debian", "sh", "-c", "read own </etc/hostname; echo $own >/own; exec sleep 1000"]),
            ]
            .concat()
        });
        at_once(lab, patience, all);
    });
    told("fifty run");
    std::thread::scope(|scope| {
        for (victim, name) in killers(&[5, 6, 7]) {
            scope.spawn(move || kill(lab, patience, victim, &name));
        }
        let said =
            at_once(lab, patience, (0..CONTAINERS).map(|number| words(&["exec", &name(number), "sh", "-c", READ])));
        let ids = at_once(
            lab,
            patience,
            (0..CONTAINERS).map(|number| words(&["inspect", "-f", "{{.Config.Hostname}}", &name(number)])),
        );
        assert_eq!(said, ids);
    });
    told("fifty were used");
    at_once(lab, patience, (0..CONTAINERS).map(|number| words(&["rm", "-f", &name(number)])));
    told("fifty are removed");
    remove_victims(lab, patience);
}

#[test]
#[ignore = "minutes: to be run by hand, `tests/run images services`"]
fn group_11_fifty_at_once_leave_nothing_whoever_is_killed_beside_them() {
    const TEST: &str = "group_11_fifty_at_once_leave_nothing_whoever_is_killed_beside_them";
    let lab = lab!(TEST, on hardware);
    let patience = lab.patience(60);
    if !own_network(TEST) {
        return;
    }
    // What passt wants of the outside: an address, and a default route.
    make_tap("bh0", "192.0.2.1/24");
    ip(&["route", "add", "default", "via", "192.0.2.254"]);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    fs::create_dir(lab.path("tmp")).unwrap();
    let archive = lab.images("debian.tar").display().to_string();
    done(&lab, patience, &["load", "-q", "-i", &archive, "--name", "debian"]);
    done(&lab, patience, &["network", "create", "fifty"]);
    // What is made with the first of its kind, and stays: templates, the empty file system, the volume.
    for number in 0..5 {
        let line =
            [words(&["run", "-d", "--name", "first", "-m", "64m"]), flags(number), words(&["debian", "sleep", "1000"])]
                .concat();
        at_once(&lab, patience, std::iter::once(line));
        done(&lab, patience, &["rm", "-f", "first"]);
    }
    kill(&lab, patience, Victim::Pod, "victim-first");
    remove_victims(&lab, patience);
    lab.wait_for_processes(patience);
    let before = Census::of(&lab);
    assert_eq!(before.processes, BTreeSet::new());
    for turn in 1..=2 {
        round(&lab, patience);
        // A monitor whose owner is gone gets SIGKILL at once, but the kernel takes a moment, and so does the last process of a network.
        let deadline = Instant::now() + patience;
        while !processes(&lab).is_empty() {
            assert!(Instant::now() < deadline, "turn {turn}: {:?}", processes(&lab));
            std::thread::sleep(Duration::from_millis(10));
        }
        done(&lab, patience, &["ps", "-aq"]);
        let after = Census::of(&lab);
        assert_eq!(before.differences(&after), Vec::<String>::new(), "turn {turn}");
        assert_eq!(before, after, "turn {turn}");
        eprintln!(
            "turn {turn}: the same {} files, {} KiB, {} interfaces, no processes",
            after.files.len(),
            after.bytes >> 10,
            after.interfaces.len()
        );
    }
    lab.assert_clean();
}

/// How long a program takes, from its start to its end: the median of some.
fn median(mut command: impl FnMut() -> Command) -> Duration {
    const TIMES: usize = 31;
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let mut command = command();
            command.stdout(std::process::Stdio::null());
            let began = Instant::now();
            assert!(command.status().unwrap().success(), "{command:?}");
            began.elapsed()
        })
        .collect();
    times.sort();
    times[TIMES / 2]
}

/// With a hundred microVMs, and a pod's among them, verbs that start nothing answer within 10 ms.
#[test]
#[ignore = "minutes, and a machine that does nothing else: to be run by hand, with --ignored"]
fn verbs_that_start_nothing_answer_at_once_with_a_hundred_microvms() {
    let lab = lab!("verbs_that_start_nothing_answer_at_once_with_a_hundred_microvms", on the machine);
    let patience = lab.patience(60);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    fs::create_dir(lab.path("tmp")).unwrap();
    let archive = lab.images("debian.tar").display().to_string();
    done(&lab, patience, &["load", "-q", "-i", &archive, "--name", "debian"]);
    let run = ["run", "-d", "-m", "64m", "--name"];
    // By the first one's template go the others.
    done(&lab, patience, &[&run[..], &["one-0", "debian", "sleep", "10000"]].concat());
    // A few at a time, which then stand still: kernels that are emulated need more than there is of two processors' time when a hundred of
    // them only wait.
    for turn in 0..33 {
        let names: Vec<_> = (0..3).map(|number| format!("one-{}", 1 + turn * 3 + number)).collect();
        let runs = names.iter().map(|name| words(&[&run[..], &[name, "debian", "sleep", "10000"]].concat()));
        at_once(&lab, patience, runs);
        done(&lab, patience, &[&["pause"][..], &names.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    }
    done(&lab, patience, &["run", "-d", "--pod", "new:pod", "--name", "member", "debian", "sleep", "10000"]);
    assert_eq!(done(&lab, patience, &["ps", "-q"]).lines().count(), 101);
    let floor = median(|| Command::new("true"));
    eprintln!("{:>7.2} ms  true", floor.as_secs_f64() * 1e3);
    let mut slow = Vec::new();
    for line in [
        &["ps"][..],
        &["ps", "-a", "--pod"],
        &["ps", "-q", "--filter", "name=one-50"],
        &["images"],
        &["inspect", "one-50"],
        &["inspect", "member"],
        &["port", "one-50"],
        &["logs", "one-50"],
        &["why", "one-50"],
        &["history", "debian"],
        &["volume", "ls"],
        &["network", "ls"],
        &["pod", "ls"],
        &["system", "df"],
    ] {
        let took = median(|| command(&lab, line));
        eprintln!("{:>7.2} ms  {}", took.as_secs_f64() * 1e3, line.join(" "));
        slow.extend((took > Duration::from_millis(10)).then(|| line.join(" ")));
    }
    let names = done(&lab, patience, &["ps", "-aq"]);
    done(&lab, patience, &[&["rm", "-f"][..], &names.lines().collect::<Vec<_>>()].concat());
    done(&lab, patience, &["pod", "rm", "-f", "pod"]);
    lab.wait_for_processes(patience);
    lab.assert_clean();
    assert_eq!(slow, Vec::<String>::new(), "slower than 10 ms");
}
