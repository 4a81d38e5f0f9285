//! Bad input: one line, the right code, nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::{Lab, Running, elf};

use crate::lab;

/// Commands and users that the image does not have. Docker's codes: 127 not found, 126 not executable, 125 the rest.
#[test]
fn a_command_that_cannot_be_started() {
    let lab = lab!("a_command_that_cannot_be_started");
    let debian = lab.debian();
    for (flags, command, code, words) in [
        (&[][..], "no-such-command", 127, &["no-such-command"][..]),
        (&[], "/no/such/file", 127, &["/no/such/file"]),
        (&[], "/etc/passwd", 126, &["/etc/passwd"]),
        (&[], "/etc", 126, &["/etc"]),
        (&["-u", "nobody-knows"], "true", 125, &["nobody-knows"]),
        (&["-u", "0:nobody-knows"], "true", 125, &["nobody-knows"]),
        (&["-w", "/etc/passwd"], "true", 125, &["/etc/passwd"]),
    ] {
        let ended = lab.run([&["run"], flags, &[&debian, command]].concat());
        ended.assert_failed(code, words);
    }
    lab.assert_clean();
}

/// Kernels that are none, by `run` and by `boot`.
#[test]
fn group_9_a_kernel_that_is_none() {
    let lab = lab!("group_9_a_kernel_that_is_none");
    let file = |name: &str, bytes: &[u8]| {
        let path = lab.path(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let good = elf::executable(0x100_0000, &[0xf4; 64], 4096);
    for (path, word) in [
        ("/nonexistent/vmlinux".to_owned(), "No such file"),
        ("/etc/hostname".to_owned(), "neither"),
        ("/dev".to_owned(), "/dev"),
        (file("empty", b""), "empty"),
        (file("header", &good[..40]), "header"),
        (file("truncated", &good[..good.len() - 8]), "truncated"),
        (file("hole", &elf::executable(0xd000_0000, &[0xf4; 64], 4096)), "0xd0000000"),
        (file("wraps", &elf::executable(u64::MAX - 4095, &[0xf4; 64], 8192)), "wraps"),
        (file("huge", &elf::executable(0x100_0000, &[0xf4; 64], 1 << 40)), "huge"),
    ] {
        lab.run(["boot", "--kernel", &path]).assert_failed(125, &["kernel", word]);
        lab.assert_clean();
    }
    lab.run(["run", "--kernel", "/nonexistent/vmlinux", &lab.debian(), "true"])
        .assert_failed(125, &["/nonexistent/vmlinux"]);
    lab.assert_clean();
}

/// More memory than the host has, and sizes that are none.
#[test]
fn group_9_a_machine_that_cannot_be() {
    let lab = lab!("group_9_a_machine_that_cannot_be");
    let debian = lab.debian();
    let too_much = format!("{}m", lab.memory_mib() + 1);
    lab.run(["run", "-m", &too_much, &debian, "true"]).assert_failed(125, &["memory", "host"]);
    lab.run(["boot", "--kernel", "/k", "-m", &too_much]).assert_failed(125, &["memory", "host"]);
    for flags in [
        &["-m", "lots"][..],
        &["-m", "1k"],
        &["--cpus", "0"],
        &["--cpus", "0.001"],
        &["--cpus", "1.5.0"],
        &["--memory-swap", "1g"],
        &["--cpus", "33"],
        &["--name", "../x"],
        &["-v", "/a:/b"],
    ] {
        lab.run([&["run"], flags, &[&debian, "true"]].concat()).assert_failed(125, &[flags[0]]);
    }
    lab.run(["run", "--append", &"x".repeat(5000), &debian, "true"]).assert_failed(125, &["command line"]);
    lab.assert_clean();
}

/// Images that are not there, or damaged.
#[test]
fn an_image_that_is_damaged() {
    let lab = lab!("an_image_that_is_damaged", on the machine).own_store();
    for (image, word) in [
        ("oci-archive:/nonexistent.tar", "/nonexistent.tar"),
        ("oci:/nonexistent", "/nonexistent"),
        ("docker-archive:/etc/passwd", "/etc/passwd"),
        ("rootfs:/nonexistent", "/nonexistent"),
        ("never-loaded", "never-loaded"),
        ("UPPER", "UPPER"),
        ("oci:", "oci:"),
    ] {
        lab.run(["run", image, "true"]).assert_failed(125, &["image", word]);
    }
    let flipped = damaged(&lab, "flipped", |bytes| bytes[1000] ^= 1);
    lab.run(["run", &flipped, "true"]).assert_failed(125, &["layer"]);
    let truncated = damaged(&lab, "truncated", |bytes| bytes.truncate(bytes.len() / 2));
    lab.run(["run", &truncated, "true"]).assert_failed(125, &["layer"]);
    lab.run(["load", "/etc/passwd"]).assert_failed(1, &["/etc/passwd"]);
    lab.run(["rmi", "never-loaded"]).assert_failed(1, &["never-loaded"]);
    assert_eq!(fs::read_dir(lab.store().join("layers")).unwrap().count(), 0, "layers of damaged images were kept");
    lab.assert_clean();
}

/// A copy of the Debian layout whose first layer was changed.
fn damaged(lab: &Lab, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (from, to) = (lab.images("debian-oci"), lab.path(name));
    copy_tree(&from, &to);
    let json = |path: PathBuf| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        to.join("blobs").join(digest.replace(':', "/"))
    };
    let index = json(to.join("index.json"));
    let manifest = json(blob(&index["manifests"][0]));
    let layer = blob(&manifest["layers"][0]);
    let mut bytes = fs::read(&layer).unwrap();
    change(&mut bytes);
    fs::write(&layer, bytes).unwrap();
    format!("oci:{}", to.display())
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Runs `bulkhead` in a mount namespace that `prepare` (a shell line) has changed.
fn in_a_changed_host(lab: &Lab, prepare: &str, arguments: &[&str]) -> tests::Ended {
    let bulkhead = lab.bulkhead(arguments);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{prepare} && exec \"$0\" \"$@\"")]);
    command.arg(bulkhead.get_program()).args(arguments);
    command.envs(bulkhead.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Running::start(command).end(lab.patience(1))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The disk is full while a layer is converted.
#[test]
fn a_full_disk() {
    let lab = lab!("a_full_disk").own_store();
    if !is_root() {
        return tests::lab::skip("a_full_disk", "mounting a small disk takes root");
    }
    fs::create_dir_all(lab.store()).unwrap();
    let prepare = format!("mount -t tmpfs -o size=2m none '{}'", lab.store().display());
    let debian = lab.debian();
    in_a_changed_host(&lab, &prepare, &["run", &debian, "true"]).assert_failed(125, &["space", "BULKHEAD_STORE"]);
    lab.assert_clean();
}

/// No /dev/kvm, and one that may not be opened: said before anything else is done.
#[test]
fn a_host_without_kvm() {
    let lab = lab!("a_host_without_kvm").own_store();
    if !is_root() {
        return tests::lab::skip("a_host_without_kvm", "hiding /dev/kvm takes root");
    }
    let debian = lab.debian();
    let hidden = "mount -t tmpfs none /dev && mknod /dev/null c 1 3";
    for arguments in [&["run", &debian, "true"][..], &["boot", "--kernel", "/etc/hostname"], &["bench", "null"]] {
        in_a_changed_host(&lab, hidden, arguments).assert_failed(125, &["/dev/kvm", "does not exist"]);
    }
    let doctor = in_a_changed_host(&lab, hidden, &["doctor"]);
    assert_eq!(doctor.code, Some(125), "{doctor:?}");
    assert!(doctor.text().contains("/dev/kvm does not exist"), "{doctor:?}");

    lab.assert_clean();
}

/// A user who may not open /dev/kvm is told so, and what to do, before anything is read or written.
#[test]
fn a_user_without_access_to_kvm() {
    const NAME: &str = "a_user_without_access_to_kvm";
    const NOBODY: u32 = 65534;
    let lab = lab!(NAME);
    let mode = fs::metadata("/dev/kvm").unwrap().permissions().mode();
    if !is_root() || mode & 0o006 != 0 {
        return tests::lab::skip(NAME, "it takes root to become somebody else, and a /dev/kvm that is not everybody's");
    }
    // Copied to where that user can reach it; the lab itself is in a private directory.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("bulkhead");
    fs::copy(lab.bulkhead(["run"]).get_program(), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["run", "rootfs:/nonexistent", "true"]).uid(NOBODY).gid(NOBODY).current_dir("/");
    command.env("BULKHEAD_STORE", dir.path().join("store")).env("BULKHEAD_RUN", dir.path().join("run"));
    let ended = Running::start(command).end(lab.patience(1));
    ended.assert_failed(125, &["/dev/kvm", "permission denied", "group"]);
    assert!(!dir.path().join("store").exists(), "it touched the store first");
}

/// Wrong usage.
#[test]
fn wrong_usage() {
    let lab = lab!("wrong_usage");
    let debian = lab.debian();
    for (arguments, word) in [
        (&["run"][..], "--help"),
        (&["run", "--no-such-flag", &debian], "--no-such-flag"),
        (&["no-such-verb"], "no-such-verb"),
        (&["boot"], "--kernel"),
        (&["boot", "--kernel", "/k", "--disk", "/nonexistent/disk"], "/nonexistent/disk"),
        (&["run", "--env-file", "/nonexistent/env", &debian, "true"], "/nonexistent/env"),
        (&["run", "-e", "=x", &debian, "true"], "=x"),
        (&["run", "-w", "relative", &debian, "true"], "relative"),
        (&["run", "--entrypoint", "", &debian], "command"),
        (&["vmm", "--config-fd", "0"], "configuration"),
        (&["vmm", "--config-fd", "99"], "99"),
    ] {
        let ended = Running::start(lab.bulkhead(arguments)).end(lab.patience(1));
        assert_eq!((ended.code, ended.stderr.lines().count()), (Some(125), 1), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.starts_with("bulkhead: ") && ended.stderr.contains(word), "{arguments:?}: {ended:?}");
    }
    lab.assert_clean();
}
