//! `run --isolation container`: the same flags without a microVM.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;
use tests::lab::skip;
use tests::{Lab, Running};

use crate::lab;

/// Whether there is a runtime, and who may use it for more than one user.
fn has_runc() -> bool {
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
    lab.run(["run", "--isolation", "container", "-d", &probe, "/probe"])
        .assert_failed(125, &["-d", "--isolation container"]);

    let mut counts = container(&["--name", "c"], &["/probe", "count"]);
    counts.line(patience);
    lab.run(["exec", "c", "true"]).assert_failed(1, &["c", "--isolation container"]);
    assert_eq!(lab.run(["stop", "c"]).code, Some(0));
    assert_eq!(counts.end(patience).code, Some(0), "it has heard SIGTERM");
    assert_eq!(lab.run(["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "c"]).text(), "exited 0\n");
    for verb in ["start", "logs", "diff"] {
        lab.run([verb, "c"]).assert_failed(1, &["c", "--isolation container"]);
    }
    assert_eq!(lab.run(["rm", "c"]).code, Some(0));

    // Whoever is killed, the next command clears away after it.
    for by_us in [true, false] {
        let mut lost = container(&["--rm", "--name", "lost"], &["/probe", "count"]);
        lost.line(patience);
        if by_us {
            assert_eq!(lab.run(["rm", "-f", "lost"]).code, Some(0));
        } else {
            lost.signal(Signal::KILL);
        }
        // The container's process goes on until a command finds that nobody has it any more.
        let since = Instant::now();
        while lab.run(["ps", "-aq"]).text() != "" {
            assert!(since.elapsed() < patience, "it stays");
        }
        // It had the streams: their end is its own.
        lost.end(patience);
    }
    lab.assert_clean();
}
