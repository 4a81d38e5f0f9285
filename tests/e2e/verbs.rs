//! Images in the store, the doctor, the benchmark.

use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;
use tests::Running;

use crate::adversary::ADVERSARY;
use crate::lab;
use crate::snapshots::can_poll;

/// load, images, run by name, rmi.
#[test]
fn images_are_loaded_listed_run_and_removed() {
    let lab = lab!("images_are_loaded_listed_run_and_removed", on the machine);
    let lab = lab.own_store_with(&["templates"]);
    let archive = lab.images("debian-docker.tar").display().to_string();
    let loaded = lab.run(["load", &archive]);
    assert_eq!((loaded.code, loaded.text()), (Some(0), "Loaded image: debian:latest\n"), "{loaded:?}");
    let again = lab.run(["load", "--name", "mine:1", &archive]);
    assert_eq!((again.code, again.text()), (Some(0), "Loaded image: mine:1\n"), "{again:?}");

    let table = lab.run(["images"]);
    let lines: Vec<&str> = table.text().lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("REPOSITORY") && lines[1].starts_with("debian "), "{table:?}");
    let list: serde_json::Value = serde_json::from_slice(&lab.run(["images", "--format", "json"]).stdout).unwrap();
    assert_eq!((&list[1]["name"], &list[1]["tag"]), (&"mine".into(), &"1".into()), "{list}");
    let ids = lab.run(["images", "-q"]);
    assert!(ids.text().lines().count() == 2 && ids.text().lines().all(|id| id.len() == 12), "{ids:?}");

    let ran = lab.run(["run", "debian", "sh", "-c", "echo $BULKHEAD_IMAGE"]);
    assert_eq!((ran.code, ran.text()), (Some(0), "debian\n"), "{ran:?}");

    assert_eq!(lab.run(["rmi", "debian", "mine:1"]).text(), "Untagged: debian:latest\nUntagged: mine:1\n");
    lab.run(["run", "debian", "true"]).assert_failed(125, &["debian", "bulkhead load"]);
    assert_eq!(std::fs::read_dir(lab.store().join("layers")).unwrap().count(), 0);
    lab.assert_clean();
}

/// A result whose reader is gone is no error to talk about.
#[test]
fn a_closed_pipe_is_quiet() {
    let lab = lab!("a_closed_pipe_is_quiet");
    let bulkhead = lab.bulkhead(["doctor"]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "{ \"$0\" doctor; echo $? >&2; } | true"]).arg(bulkhead.get_program());
    let ended = Running::start(command).end(lab.patience(1));
    // Whether the reader went away before the first byte is a race; a complaint would be a bug either way.
    assert!(["0\n", "141\n"].contains(&ended.stderr.as_str()), "{ended:?}");
}

/// The doctor names what there is, for people and for programs.
#[test]
fn the_doctor_reports() {
    let lab = lab!("the_doctor_reports");
    let table = lab.run(["doctor"]);
    assert_eq!((table.code, table.stderr.as_str()), (Some(0), ""), "{table:?}");
    for word in ["KVM", "guest kernel", "image store", "Containers can run here."] {
        assert!(table.text().contains(word), "no '{word}' in {}", table.text());
    }
    let report: serde_json::Value = serde_json::from_slice(&lab.run(["doctor", "--format", "json"]).stdout).unwrap();
    assert_eq!(report["can_run"], true);
    let names: Vec<_> = report["checks"].as_array().unwrap().iter().map(|check| &check["name"]).collect();
    assert!(names.contains(&&"io_uring".into()) && names.contains(&&"user namespaces".into()), "{names:?}");
    lab.assert_clean();
}

/// The programs are linked statically, and still loaded at an address of the host's choice (.cargo/config.toml). One does
/// without the other.
#[test]
fn the_programs_need_no_dynamic_linker() {
    let lab = lab!("the_programs_need_no_dynamic_linker");
    let program = PathBuf::from(lab.bulkhead(["doctor"]).get_program());
    for path in [program.clone(), program.with_file_name("bulkhead-vmm")] {
        let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let number = |at: usize, len: usize| file[at..at + len].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
        // ELF-64: e_type, and p_type of each program header.
        const POSITION_INDEPENDENT: usize = 3;
        const INTERPRETER: usize = 3;
        assert_eq!(number(16, 2), POSITION_INDEPENDENT);
        let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        let types: Vec<usize> = (0..count).map(|i| number(table + i * size, 4)).collect();
        assert!(types.contains(&1) && !types.contains(&INTERPRETER), "{}: {types:?}", path.display());
    }
    let alone = lab.path("bulkhead");
    std::fs::copy(&program, &alone).unwrap();
    let ended = std::process::Command::new(&alone)
        .args(["bench", "null", "-n", "1"])
        .env("BULKHEAD_RUN", lab.path("r"))
        .output();
    assert!(ended.unwrap().status.success());
}

/// The null benchmark works and its memory is within bounds; its times are for an idle machine to judge.
#[test]
fn the_null_benchmark_measures() {
    let lab = lab!("the_null_benchmark_measures");
    let ended = lab.run(["bench", "null", "-n", "5", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
    assert_eq!(report["total"]["samples"], 5);
    assert!(report["total"]["p50_us"].as_f64().unwrap() > report["floor"]["p50_us"].as_f64().unwrap());
    let private = report["private_kib"].as_u64().unwrap();
    assert!((1..=2048).contains(&private), "{private} KiB of private memory beyond the guest's");
    lab.assert_clean();
}

/// `--verbose` tells where the time went, on stderr; the phases add up.
#[test]
fn verbose_tells_the_phases() {
    let lab = lab!("verbose_tells_the_phases");
    let ended = lab.run(["run", "--verbose", &lab.debian(), "echo", "hello"]);
    assert_eq!((ended.code, ended.text()), (Some(0), "hello\n"), "{ended:?}");
    let number = |name: &str| -> f64 {
        let line = ended
            .stderr
            .lines()
            .find_map(|line| line.trim().strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name}: {ended:?}"));
        line.trim().parse().unwrap()
    };
    // It goes on from a template if another test has left one.
    let begin = if ended.stderr.contains(" wake ") { "wake" } else { "kernel" };
    let sum: f64 = ["image", "vmm", begin, "init", "command", "teardown"].into_iter().map(number).sum();
    let total = number("total");
    assert!((sum - total).abs() < 0.01 && total > 1.0, "{sum} {total}");
    assert!(number("init") > 0.0 && number("command") > 0.0, "{ended:?}");
    lab.assert_clean();
}

/// The disk benchmark works; its rates are for an idle machine to judge.
#[test]
fn the_disk_benchmark_measures() {
    let lab = lab!("the_disk_benchmark_measures");
    if !can_poll("the_disk_benchmark_measures") {
        return;
    }
    let dir = lab.path("").display().to_string();
    let ended = lab.run(["bench", "blk", "-n", "1", "--requests", "5000", "--dir", &dir, "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["depth"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 32]);
    for row in rows {
        assert!(row["guest"].as_f64().unwrap() > 0.0 && row["monitor_ns"].as_f64().unwrap() > 0.0, "{report}");
        assert_eq!(row["fio"].is_null(), row["ratio"].is_null(), "{report}");
    }
    assert!(
        !lab.path("")
            .read_dir()
            .unwrap()
            .flatten()
            .any(|file| file.file_name().as_encoded_bytes().starts_with(b"bulkhead"))
    );
    lab.assert_clean();
}

/// The vsock benchmark works: every byte gets through, both ways; its rates are for an idle machine to judge.
#[test]
fn the_vsock_benchmark_measures() {
    let lab = lab!("the_vsock_benchmark_measures");
    if !can_poll("the_vsock_benchmark_measures") {
        return;
    }
    let ended = lab.run(["bench", "vsock", "-n", "1", "--size", "16m", "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{report}");
    assert!(rows.iter().all(|row| row["gbits"].as_f64().unwrap() > 0.0), "{report}");
    assert!(report["floor"].as_f64().unwrap() > 0.0, "{report}");
    lab.assert_clean();
}

/// What a guest asks of its device is recorded, and done again without it; and so is what comes with the benchmark. The rates are for an
/// idle machine to judge. The guest speaks and listens on the serial port that the file says nothing of, and waits for a word of the
/// host's without end: a signal is its end, and what was recorded is there.
#[test]
fn what_a_guest_asks_of_its_devices_is_recorded_and_done_again() {
    let lab = lab!("what_a_guest_asks_of_its_devices_is_recorded_and_done_again", on the machine);
    std::fs::create_dir(lab.path("traces")).unwrap();
    std::fs::write(lab.path("guest"), ADVERSARY).unwrap();
    std::fs::write(lab.path("disk"), vec![0; 1 << 20]).unwrap();
    let machine = json!({
        "boot-source": { "kernel_image_path": lab.path("guest") },
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 16 },
        "entropy": {},
        "drives": [{ "drive_id": "disk", "path_on_host": lab.path("disk"), "is_read_only": false }],
    });
    std::fs::write(lab.path("machine"), machine.to_string()).unwrap();
    let path = |name: &str| lab.path(name).display().to_string();
    let record = ["bench", "record", "--config", &path("machine"), &path("traces")];
    let mut command = lab.bulkhead(record);
    command.stdin(Stdio::piped());
    let mut recording = Running::start(command);
    assert_eq!(recording.line(lab.patience(1)), "devices 4 2");
    // Its first group of attacks: it is heard as well.
    recording.say("1");
    assert!(recording.line(lab.patience(1)).starts_with("attack "));
    recording.signal(Signal::TERM);
    let ended = recording.end(lab.patience(1));
    assert_eq!(ended.code, Some(128 + 15), "{ended:?}");
    assert!(ended.stderr.contains("0-rng.trace") && ended.stderr.contains("1-blk.trace"), "{ended:?}");
    // It does not write over it.
    lab.run(record).assert_failed(125, &["0-rng.trace", "File exists"]);

    let trace = path("traces/0-rng.trace");
    let replay = |words: &[&str]| {
        let ended = lab.run([&["bench", "replay", "-n", "1", "--format", "json"], words].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_slice::<serde_json::Value>(&ended.stdout).unwrap()["rows"].as_array().unwrap().clone()
    };
    let disk = path("traces/1-blk.trace");
    let rows = replay(&[&trace, &disk]);
    assert_eq!((rows.len(), &rows[0]["trace"], &rows[0]["device"]), (2, &json!(trace), &json!("rng")));
    assert!(rows.iter().all(|row| row["operations"].as_u64().unwrap() > 0), "{rows:?}");
    let rows = replay(&[]);
    assert_eq!(rows.len(), 8, "{rows:?}");
    assert!(rows.iter().all(|row| row["operations"].as_u64().unwrap() > 0), "{rows:?}");

    std::fs::write(&trace, "bulkhead queue trace 1\ndevice rng\n").unwrap();
    lab.run(["bench", "replay", &trace]).assert_failed(125, &["0-rng.trace", "line 3"]);
    std::fs::write(&trace, [0xff; 100]).unwrap();
    lab.run(["bench", "replay", &trace]).assert_failed(125, &["0-rng.trace", "UTF-8"]);
    lab.assert_clean();
}

/// The neighbours' benchmark works: each kind is there as long as it is measured, and gone afterwards; its times are for an idle machine to
/// judge.
#[test]
fn the_neighbours_benchmark_measures() {
    let lab = lab!("the_neighbours_benchmark_measures", on the machine);
    let dir = lab.path("").display().to_string();
    let words = ["bench", "neighbours", "-n", "1", "--neighbours", "1", "--dir", &dir, "--format", "json"];
    let without = lab.no_control_group().map(|_| "--no-groups");
    let ended = lab.run(words.into_iter().chain(without));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let kinds: Vec<_> = rows.iter().map(|row| row["neighbours"].as_str().unwrap()).collect();
    let microvms = ["none", "idle", "computing", "writing to the console", "kicking a device", "writing to a disk"];
    let processes = ["processes, computing", "processes, waking a thread", "processes, writing to a file"];
    assert_eq!(kinds, [&microvms[..], &processes].concat());
    for row in rows {
        let counts = ["answer", "work", "write"].map(|what| row[what]["samples"].as_u64().unwrap());
        assert_eq!(counts, [100, 20, 20], "{report}");
        assert!(row["ratio"].as_f64().unwrap() > 0.5, "{report}");
    }
    lab.assert_clean();
}

/// The restore benchmark works, and each size has its snapshot; its times are for an idle machine to judge.
#[test]
fn the_restore_benchmark_measures() {
    let lab = lab!("the_restore_benchmark_measures");
    if !can_poll("the_restore_benchmark_measures") {
        return;
    }
    let ended = lab.run(["bench", "restore", "-n", "2", "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let sizes = report["sizes"].as_array().unwrap();
    assert!(!sizes.is_empty() && sizes[0]["memory_mib"] == 128, "{report}");
    for size in sizes {
        assert!(size["guest"]["samples"] == 2 && size["memory_bytes"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(size["phases"].as_array().unwrap().len(), 5, "{report}");
        assert_eq!(size["answer"]["samples"], 2, "{report}");
    }
    // Where runc is not installed, it says so.
    let runc = [&report["runc"]["samples"], &report["answer_by_runc"]];
    assert!(runc[0] == 2 && runc[1].is_f64() || report["runc"].is_null() && runc[1].is_null(), "{report}");
    lab.assert_clean();
}

/// A shell that runs `script`, whose arguments are a command and its.
fn in_shell(script: &str, command: &std::process::Command) -> std::process::Command {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell
}

/// Clones answer, each for itself, and cost little; what stops them is told.
#[test]
fn the_clones_benchmark_measures() {
    let lab = lab!("the_clones_benchmark_measures", on the machine);
    let ended = lab.run(["bench", "clones", "-n", "6", "--memory", "64m", "--parallel", "3", "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert!(report["clones"] == 6 && report["stopped"].is_null(), "{report}");
    assert!(report["answer"]["samples"] == 6 && report["again"]["samples"] == 6, "{report}");
    let most = |what: &str| report[what]["max"].as_u64().unwrap();
    assert!((1..=1536).contains(&most("monitor_kib")), "{report}");
    assert!((4..=1024).contains(&most("guest_kib")), "{report}");

    let clones = lab.bulkhead(["bench", "clones", "--most", "-n", "1000", "--memory", "64m", "--format", "json"]);
    let few = in_shell("ulimit -n 48; exec \"$@\"", &clones);
    let ended = Running::start(few).end(lab.patience(1));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert!((2..48).contains(&report["clones"].as_u64().unwrap()), "{report}");
    assert!(report["stopped"].as_str().unwrap().contains("(os error 24)"), "{report}");
    lab.assert_clean();
}

/// SIGKILL of the benchmark ends all of its clones.
#[test]
fn no_clone_outlives_the_benchmark() {
    let lab = lab!("no_clone_outlives_the_benchmark");
    let patience = lab.patience(1);
    let places = lab.path("places");
    std::fs::create_dir(&places).unwrap();
    let mut clones = lab.bulkhead(["bench", "clones", "-n", "1000", "--memory", "64m"]);
    clones.env("TMPDIR", &places);
    let running = Running::start(clones);
    let deadline = std::time::Instant::now() + patience;
    let tenth = |dir: &std::path::Path| {
        std::fs::read_dir(dir).unwrap().flatten().any(|place| place.path().join("c10").exists())
    };
    while !tenth(&places) {
        assert!(std::time::Instant::now() < deadline, "no ten clones within {patience:?}");
        // A socket appears without a word to us.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    running.signal(Signal::KILL);
    assert_eq!(running.end(patience).code, None);
    // Those that it had started end by themselves.
    lab.wait_for_processes(patience);
    lab.assert_clean();
}

/// Snapshots of all memory and of what has changed are measured beside plain writes of as many bytes.
#[test]
fn the_snapshot_benchmark_measures() {
    let lab = lab!("the_snapshot_benchmark_measures");
    if !can_poll("the_snapshot_benchmark_measures") {
        return;
    }
    let dir = lab.path("snapshots");
    std::fs::create_dir(&dir).unwrap();
    let place = dir.to_str().unwrap();
    let line = ["bench", "snapshot", "-n", "2", "--resident", "16m", "--dir", place, "--format", "json"];
    let ended = lab.run(line);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{report}");
    for (row, kind, least, most) in [(&rows[0], "full", 16 << 20, 17 << 20), (&rows[1], "diff", 2 << 20, 3 << 20)] {
        assert!(row["kind"] == kind && row["ratio"].as_f64().unwrap() > 0.0, "{report}");
        assert!((least..most).contains(&row["bytes"].as_u64().unwrap()), "{report}");
        for part in ["snapshot", "pause", "write", "write_unsynced"] {
            assert_eq!(row[part]["samples"], 2, "{report}");
        }
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    lab.assert_clean();
}
