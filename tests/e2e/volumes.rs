//! Directories and files of the host in a container: `run -v`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tests::Running;

use crate::lab;

/// What a guest does with its volumes is done on the host, and what it may not is not. A guest that goes on from a template
/// has its own.
#[test]
fn group_13_a_container_has_the_hosts_directories() {
    let lab = lab!("group_13_a_container_has_the_hosts_directories", on hardware);
    let patience = lab.patience(2);
    let data: Vec<u8> = (0..1_000_000u32).flat_map(|n| [(n >> 3) as u8]).collect();
    let run = |name: &str, script: &str| {
        let dir = lab.path(name);
        fs::create_dir_all(dir.join("rw/sub")).unwrap();
        fs::create_dir_all(dir.join("ro")).unwrap();
        fs::write(dir.join("rw/big"), &data).unwrap();
        fs::write(dir.join("ro/name"), format!("{name}\n")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("rw/link")).unwrap();
        let volume = |from: &str, to: &str| format!("{}/{from}:{to}", dir.display());
        let (rw, ro, one) = (volume("rw", "/data"), volume("ro", "/ro:ro"), volume("ro/name", "/one:ro"));
        let image = lab.debian();
        let arguments =
            ["run", "--verbose", "--hostname", name, "-v", &ro, "-v", &rw, "-v", &one, &image, "sh", "-c", script];
        let ended = Running::start(lab.bulkhead(arguments)).end(patience);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        (dir, ended)
    };
    let script = r#"
        cd /data; cat /ro/name /one; cp big sub/copy && rm big
        mkdir -m 750 made && mv sub/copy made/moved && chmod 600 made/moved
        ln made/moved made/hard; ln -s moved made/soft; cat link; ls made
        for n in 1 2 3; do echo $n >>made/log; done
        truncate -s 5 /data/sub/short; sync made/log
        echo no >/ro/new || echo refused; rm /ro/name || echo refused; echo no >/one || echo refused
    "#;
    let (dir, ended) = run("first", script);
    let said = format!("first\nfirst\nfirst\nhard\nmoved\nsoft\n{}", "refused\n".repeat(3));
    assert_eq!(ended.text(), said, "{ended:?}");
    let made = dir.join("rw/made");
    assert!(fs::read(made.join("moved")).unwrap() == data, "the copy is another");
    let moved = fs::metadata(made.join("moved")).unwrap();
    assert_eq!((moved.permissions().mode() & 0o777, moved.nlink()), (0o600, 2));
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(fs::read_to_string(made.join("log")).unwrap(), "1\n2\n3\n");
    assert_eq!(fs::metadata(dir.join("rw/sub/short")).unwrap().len(), 5);
    assert!(!dir.join("rw/big").exists() && fs::read_dir(dir.join("ro")).unwrap().count() == 1);
    assert_eq!(fs::read_to_string(dir.join("ro/name")).unwrap(), "first\n");

    let (dir, ended) =
        run("second", "cat /ro/name /one /data/link; echo mine >/data/sub/file; echo no >/ro/new || echo refused");
    assert_eq!(ended.text(), "second\nsecond\nsecond\nrefused\n", "{ended:?}");
    assert!(ended.stderr.lines().any(|line| line.trim_start().starts_with("wake ")), "{ended:?}");
    assert_eq!(fs::read_to_string(dir.join("rw/sub/file")).unwrap(), "mine\n");
    assert!(fs::read(dir.join("rw/big")).unwrap() == data && fs::read_dir(dir.join("ro")).unwrap().count() == 1);
    lab.assert_clean();
}

/// A guest that has directories of the host is not saved, is told why, and goes on.
#[test]
fn a_container_with_volumes_says_why_it_cannot_be_saved() {
    let lab = lab!("a_container_with_volumes_says_why_it_cannot_be_saved");
    if std::env::var_os("BULKHEAD_TEST_EMULATOR").is_some() {
        let reason =
            "on the emulated host a container with volumes did not come to a standstill, twice in some fifty runs";
        return tests::lab::skip("a_container_with_volumes_says_why_it_cannot_be_saved", reason);
    }
    let patience = lab.patience(2);
    let dir = lab.path("shared");
    fs::create_dir(&dir).unwrap();
    let volume = format!("{}:/data", dir.display());
    let script = "echo up; until [ -e /data/go ]; do sleep 1; done; echo on";
    let image = lab.debian();
    let mut running =
        Running::start(lab.bulkhead(["run", "--name", "shares", "-v", &volume, &image, "sh", "-c", script]));
    running.wait_for("up", patience);
    let refused = lab.run(["snapshot", "shares"]);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("cannot be saved") && refused.stderr.lines().count() == 1, "{refused:?}");
    fs::write(dir.join("go"), "").unwrap();
    let ended = running.end(patience);
    assert_eq!((ended.code, ended.text()), (Some(0), "up\non\n"), "{ended:?}");
    lab.assert_clean();
}
