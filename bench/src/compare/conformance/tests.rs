use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::*;

/// A program in place of an engine, which is a script.
fn engine(dir: &Place, name: &str, script: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What comes of the first habit with two scripts.
fn verdict(ours: &str, theirs: &str) -> Result<Verdict, BenchError> {
    let dir = Place::new().unwrap();
    let (ours, theirs) = (engine(&dir, "ours", ours), engine(&dir, "theirs", theirs));
    let (stop, _other) = UnixStream::pair().unwrap();
    let limit = Duration::from_secs(20);
    let bout = Bout { ours: &ours, theirs: &theirs, image: "i:1", limit, stop: stop.as_fd(), say: &|_| {} };
    try_habit(habits().next().unwrap(), 0, &bout)
}

#[test]
fn what_differs_is_told_and_names_do_not() {
    let same = "echo $0 > /dev/null; echo of i:1; exit 3";
    let verdict_of_same = verdict(same, same).unwrap();
    assert!(verdict_of_same.differences.is_empty() && !verdict_of_same.is_open(), "{verdict_of_same:?}");

    let found = verdict("echo out; exit 3", "echo ou; echo e >&2; exit 4").unwrap();
    let told: Vec<_> = found.differences[..3].iter().map(|d| (d.what, d.ours.as_str(), d.theirs.as_str())).collect();
    assert_eq!(told, [("exit code", "3", "4"), ("stdout", "out\n", "ou\n"), ("stderr", "", "e\n")]);
    assert!(found.is_open() && found.differences[0].command.starts_with("run --rm {image} sh"), "{found:?}");
}

#[test]
fn one_that_hangs_or_cannot_be_started_is_an_error() {
    let error = verdict("true", "exec /no/such/program").unwrap();
    assert!(error.is_open(), "exit code 127 of a shell is an answer");
    let dir = Place::new().unwrap();
    let (stop, _other) = UnixStream::pair().unwrap();
    let hangs = engine(&dir, "hangs", "[ $1 = run ] && exec sleep 1000");
    let limit = Duration::from_millis(200);
    let bout = Bout { ours: &hangs, theirs: &hangs, image: "i", limit, stop: stop.as_fd(), say: &|_| {} };
    assert!(try_habit(habits().next().unwrap(), 0, &bout).unwrap_err().to_string().contains("--timeout"));
    let none = Bout { ours: Path::new("/no/such"), ..bout };
    assert!(try_habit(habits().next().unwrap(), 0, &none).unwrap_err().to_string().contains("/no/such"));
}

/// What a habit makes goes, also if it is broken off.
#[test]
fn what_is_broken_off_is_cleared_away() {
    let dir = Place::new().unwrap();
    let told = dir.path().join("told");
    let script = format!("echo \"$@\" >> {}", told.display());
    let program = engine(&dir, "told-engine", &script);
    let (stop, mut other) = UnixStream::pair().unwrap();
    other.write_all(b"x").unwrap();
    let bout = Bout {
        ours: &program,
        theirs: &program,
        image: "i",
        limit: Duration::from_secs(20),
        stop: stop.as_fd(),
        say: &|_| {},
    };
    assert!(matches!(try_habit(habits().next().unwrap(), 7, &bout), Err(BenchError::Interrupted)));
    let told = fs::read_to_string(told).unwrap();
    let name = format!("bulkhead-habit-{}-7", std::process::id());
    for line in [format!("rm -f {name}"), format!("volume rm {name}-2"), format!("rmi -f {name}")] {
        assert_eq!(told.lines().filter(|l| **l == line).count(), 2, "{line}: {told}");
    }
}

#[test]
fn ids_are_one() {
    let long = "0123456789abcdef".repeat(4);
    assert_eq!(ids(&format!("sha256:{long} {} x", &long[..12])), "{id} {id} x");
    assert_eq!(ids("0123456789ab0 0x0 beef\n"), "0123456789ab0 0x0 beef\n");
}

#[test]
fn only_containers_get_a_network_that_is_none() {
    let words = |text: &str| with_network(text.split(' ').map(str::to_owned).collect()).join(" ");
    assert_eq!(words("run --rm i true"), "run --network none --rm i true");
    assert_eq!(words("create --network x i"), "create --network x i");
    assert_eq!(words("exec run ls"), "exec run ls");
}

#[test]
fn titles_tell_habits_apart_and_nothing_of_theirs_is_anybody_elses() {
    let titles: std::collections::BTreeSet<_> = habits().map(|habit| habit.title).collect();
    assert_eq!(titles.len(), habits().count());
    for step in habits().flat_map(|habit| habit.steps) {
        // What makes something gives it a name that `Side` clears away.
        let makes = match step.words {
            ["run", rest @ ..] => !rest.contains(&"--rm"),
            ["create" | "commit" | "tag", ..] | ["volume", "create", ..] => true,
            _ => false,
        };
        assert!(!makes || step.words.iter().any(|word| word.starts_with("{name}")), "{:?}", step.words);
    }
}
