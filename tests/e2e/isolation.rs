//! `run --isolation container`: the same flags without a microVM.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::lab::skip;
use tests::{Lab, Running};

use crate::lab;

/// Whether there is a runtime, and who may use it for more than one user.
pub fn has_runc() -> bool {
    let runc = Command::new("runc").arg("--version").output().is_ok_and(|told| told.status.success());
    runc && fs::metadata("/proc/self").unwrap().uid() == 0
}

fn keep(lab: &Lab, arguments: &[&str]) -> Running {
    Running::start(lab.keeping(arguments))
}

/// What a process finds and how it ends is the same with and without a microVM; what can be done with it is said; nothing is left.
#[test]
fn a_container_without_a_microvm_is_the_same_to_its_process() {
    const NAME: &str = "a_container_without_a_microvm_is_the_same_to_its_process";
    let lab = lab!(NAME, on the machine);
    if !has_runc() {
        return skip(NAME, "there is no runc here, or no root to run it");
    }
    let (image, patience) = (lab.debian(), lab.patience(1));
    let script = "id; pwd; echo $X $HOME $HOSTNAME; hostname; ulimit -n; cat /srv/x 2>/dev/null; echo $$ >/srv/x 2>/dev/null; \
                  grep -c ' /mem ' /proc/mounts; touch /no 2>/dev/null || echo refused; cat; echo err >&2; exit 7";
    let told = ["vm", "container"].map(|kind| {
        let volume = format!("{}:/srv:ro", lab.path("shared").display());
        fs::create_dir_all(lab.path("shared")).unwrap();
        fs::write(lab.path("shared").join("x"), "of the host\n").unwrap();
        let flags = [
            "--isolation",
            kind,
            "--runtime",
            "runc",
            "-i",
            "-e",
            "X=1",
            "-w",
            "/tmp",
            "-u",
            "daemon",
            "--hostname",
            "box",
        ];
        let more =
            ["--ulimit", "nofile=77", "--tmpfs", "/mem", "--read-only", "-v", &volume, &image, "sh", "-c", script];
        let mut command = lab.bulkhead([&["run"][..], &flags, &more].concat());
        command.stdin(Stdio::piped());
        let mut running = Running::start(command);
        running.feed(b"fed\n".to_vec());
        let ended = running.end(patience);
        (ended.code, ended.text().to_owned(), ended.stderr)
    });
    assert!(
        told[0].0 == Some(7) && told[0].1.ends_with("refused\nfed\n") && told[0].1.contains("of the host"),
        "{told:?}"
    );
    assert_eq!(told[0], told[1]);

    // An image of one program is unpacked at once. What follows boots nothing.
    let lab = lab.own_store();
    let probe = lab.probe_image();
    let container = |flags: &[&'static str], words: &[&str]| {
        keep(&lab, &[&["run", "--isolation", "container", "--runtime", "runc"][..], flags, &[&probe], words].concat())
    };
    for (word, code) in [("/no/such/program", 127), ("/proc", 126)] {
        let ended = container(&["--rm"], &[word]).end(patience);
        assert!(ended.code == Some(code) && ended.stderr.lines().count() == 1, "{ended:?}");
    }
    let mut counts = container(&["--name", "c"], &["/probe", "count"]);
    counts.line(patience);
    assert_eq!(lab.run(["stop", "c"]).code, Some(0));
    assert_eq!(counts.end(patience).code, Some(0), "it has heard SIGTERM");
    assert_eq!(lab.run(["rm", "c"]).code, Some(0));

    // With its first process it ends, whoever is killed; what is left the next command clears away.
    for by_us in [true, false] {
        let mut lost = container(&["--rm", "--name", "lost"], &["/probe", "count"]);
        lost.line(patience);
        if by_us {
            assert_eq!(lab.run(["rm", "-f", "lost"]).code, Some(0));
        } else {
            lost.signal(Signal::KILL);
        }
        // It had the streams: their end is its own.
        lost.end(patience);
        assert_eq!(lab.run(["ps", "-aq"]).text(), "");
    }
    lab.assert_clean();
}

/// What init has of its own is no way out of the root, and read-only is what the host has mounted below a volume, too.
#[test]
fn a_container_without_a_microvm_stays_in_its_root() {
    const NAME: &str = "a_container_without_a_microvm_stays_in_its_root";
    let lab = lab!(NAME, on the machine);
    if !has_runc() {
        return skip(NAME, "there is no runc here, or no root to run it");
    }
    let lab = lab.own_store();
    let (image, patience) = (lab.probe_image(), lab.patience(1));
    let run = ["run", "-d", "--rm", "--name", "c", "--isolation", "container", &image, "/probe", "count"];
    assert_eq!(keep(&lab, &run).end(patience).code, Some(0));
    for fd in 3..24 {
        let there = format!("/proc/self/fd/{fd}");
        let ended = lab.run(["exec", "-w", &there, "c", "/probe", "memory"]);
        assert_eq!(ended.code, Some(126), "{there} is a way: {ended:?}");
    }
    assert_eq!(lab.run(["rm", "-f", "c"]).code, Some(0));

    let shared = lab.path("shared");
    fs::create_dir_all(shared.join("sub")).unwrap();
    let (dir, debian) = (shared.display().to_string(), lab.debian());
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs below \"$1/sub\" && echo of it >\"$1/sub/file\" && shift && exec \"$@\"";
    let volume = format!("{dir}:/data:ro");
    let inside = "cat /data/sub/file; touch /data/sub/more || echo refused";
    let bulkhead = lab.keeping(["run", "--rm", "--isolation", "container", "-v", &volume, &debian, "sh", "-c", inside]);
    command.args(["--mount", "sh", "-c", script, "sh", &dir]).arg(bulkhead.get_program()).args(bulkhead.get_args());
    command.envs(bulkhead.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(Stdio::null());
    let ended = Running::start(command).end(patience);
    assert_eq!(ended.text(), "of it\nrefused\n", "{ended:?}");
    lab.assert_clean();
}

/// In the background, every verb does with it what it does with one in a microVM.
#[test]
fn a_container_without_a_microvm_has_all_verbs() {
    const NAME: &str = "a_container_without_a_microvm_has_all_verbs";
    let lab = lab!(NAME, on the machine);
    if !has_runc() {
        return skip(NAME, "there is no runc here, or no root to run it");
    }
    let lab = lab.own_store();
    let done = |words: &[&str]| {
        let ended = keep(&lab, words).end(lab.patience(1));
        assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}");
        ended.text().to_owned()
    };
    let loaded = done(&["load", "-i", &lab.images("debian.tar").display().to_string()]);
    let image = loaded.trim().trim_start_matches("Loaded image: ");
    let inspect = |what: &str| done(&["inspect", "-f", what, "c"]);
    let script = "trap 'echo heard; exit 3' TERM; echo lived >>/data/lives; echo ready; sleep 1000 & wait";
    let start = ["-d", "--name", "c", "--isolation", "container", "-v", "kept:/data", "-m", "64m"];
    done(&[&["run"][..], &start, &[image, "sh", "-c", script]].concat());
    keep(&lab, &["logs", "-f", "c"]).wait_for("ready", lab.patience(1));
    assert_eq!(
        done(&["exec", "-e", "A=1", "-w", "/tmp", "-u", "daemon", "c", "sh", "-c", "echo $A; pwd; id -un"]),
        "1\n/tmp\ndaemon\n"
    );
    assert_eq!(lab.run(["exec", "c", "sh", "-c", "exit 9"]).code, Some(9));
    assert!(done(&["top", "c"]).contains("sh -c"));
    assert_eq!(
        inspect("{{.HostConfig.Isolation}} {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}"),
        "container 67108864 0\n"
    );
    let stats: Value = serde_json::from_str(&done(&["stats", "--no-stream", "--format", "json", "c"])).unwrap();
    let stats = stats.get(0).unwrap_or(&stats);
    assert!(stats["Bytes"]["Limit"] == 64 << 20 && stats["Bytes"]["GuestUsed"].as_u64() > Some(0), "{stats}");
    done(&["pause", "c"]);
    assert_eq!(inspect("{{.State.Status}}"), "paused\n");
    lab.run(["exec", "c", "true"]).assert_failed(1, &["paused"]);
    done(&["unpause", "c"]);
    done(&["update", "-m", "48m", "c"]);
    // There is no limit where there is no disk (tmpfs), and then that is said.
    let on_disk = fs::metadata(lab.path("")).is_ok_and(|metadata| rustix::fs::major(metadata.dev()) != 0);
    if on_disk {
        done(&["update", "--device-write-bps", "1m", "c"]);
        assert_eq!(inspect("{{json .HostConfig.BlkioDeviceWriteBps}}"), "[{\"Path\":\"\",\"Rate\":1048576}]\n");
    }
    lab.run(["update", "--network-send-bps", "1m", "c"]).assert_failed(1, &["no network"]);
    lab.run(["snapshot", "c"]).assert_failed(1, &["c", "--isolation container"]);

    fs::write(lab.path("file"), "brought\n").unwrap();
    let (file, to) = (lab.path("file").display().to_string(), "c:/root/file");
    done(&["cp", &file, to]);
    done(&["exec", "c", "rm", "/etc/debian_version"]);
    done(&["stop", "c"]);
    assert_eq!(inspect("{{.State.ExitCode}}"), "3\n");
    assert!(done(&["logs", "c"]).ends_with("heard\n"));
    let changes = done(&["diff", "c"]);
    assert!(["A /root/file\n", "D /etc/debian_version\n"].iter().all(|line| changes.contains(line)), "{changes}");
    // It does not run, and can be looked into all the same.
    done(&["cp", to, &lab.path("back").display().to_string()]);
    assert_eq!(fs::read_to_string(lab.path("back")).unwrap(), "brought\n");
    done(&["start", "c"]);
    assert_eq!(done(&["exec", "c", "cat", "/root/file", "/data/lives"]), "brought\nlived\nlived\n");
    let began = Instant::now();
    done(&["exec", "c", "dd", "if=/dev/zero", "of=/root/zeros", "bs=64k", "count=32", "oflag=direct"]);
    assert!(!on_disk || began.elapsed() > Duration::from_secs(1), "2 MiB at 1 MiB/s: {:?}", began.elapsed());
    done(&["exec", "c", "rm", "/root/zeros"]);
    done(&["commit", "c", "changed"]);
    done(&["rm", "-f", "c"]);
    let words = ["run", "--rm", "--isolation", "container", "changed", "cat", "/root/file"];
    assert_eq!(done(&words), "brought\n");

    // A policy, and the end of whoever sees to that.
    done(&["run", "-d", "--restart", "on-failure:1", "--name", "c", "--isolation", "container", "changed", "false"]);
    assert_eq!(done(&["wait", "c"]), "1\n");
    assert_eq!(inspect("{{.RestartCount}}"), "1\n");
    done(&["rm", "c"]);
    done(&["run", "-d", "--name", "c", "--isolation", "container", "-m", "32m", "changed", "sleep", "1000"]);
    let pid: i32 = inspect("{{.State.Pid}}").trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert_eq!(done(&["wait", "c"]), "137\n");
    assert!(done(&["why", "c"]).contains("looked after it was killed"));
    // Memory is what it was given.
    done(&["start", "c"]);
    let ended = lab.run(["exec", "c", "perl", "-e", "$x = 'a' x 200000000"]);
    assert_eq!(ended.code, Some(137), "{ended:?}");
    done(&["kill", "c"]);
    done(&["wait", "c"]);
    assert_ne!(inspect("{{.State.OOMKilled}}"), "false\n");
    done(&["rm", "c"]);
    done(&["volume", "rm", "kept"]);
    lab.assert_clean();
}
