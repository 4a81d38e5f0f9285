//! What a command finds inside a container, and what comes out of it.

use std::process::{Command, Stdio};

use tests::Running;

use crate::lab;

/// `run` of an OCI archive: two streams, the exit code, and nothing else.
#[test]
fn streams_and_exit_code() {
    let lab = lab!("streams_and_exit_code");
    let ended = lab.shell(&[], &lab.debian(), "echo out; echo err >&2; exit 7");
    assert_eq!((ended.code, ended.text(), ended.stderr.as_str()), (Some(7), "out\n", "err\n"));
    lab.assert_clean();
}

/// Lines `key=value` of a script's output.
fn facts(text: &str) -> std::collections::BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// The process is as the image and the flags say.
#[test]
fn the_process_is_as_image_and_flags_say() {
    let lab = lab!("the_process_is_as_image_and_flags_say", on hardware);
    std::fs::write(lab.path("env"), "# comment\nFROM_FILE=file value\nBOTH=file\nHOSTVAR\n").unwrap();
    let env_file = lab.path("env").display().to_string();
    let script = r#"
        echo "cwd=$(pwd)"; echo "uid=$(id -u)"; echo "groups=$(id -G)"; echo "home=$HOME"; echo "path=$PATH"
        echo "hostname=$(hostname)"; echo "hostvar=$HOSTNAME"; echo "image=$BULKHEAD_IMAGE"
        echo "file=$FROM_FILE"; echo "both=$BOTH"; echo "host=$HOSTVAR"; echo "unset=${UNSET-no}"
        echo "pid=$$"; echo "term=${TERM-none}"; echo "umask=$(umask)"
        echo "args=$#:$1:$2"
        echo "stdin=$(cat | wc -c)"
        grep -q guest.test /etc/hosts && echo hosts=yes
        echo reopened >/dev/stdout && echo "stdout=yes"
    "#;
    let mut command = lab.bulkhead([
        "run",
        "-e",
        "BOTH=flag",
        "-e",
        "HOSTVAR",
        "-e",
        "UNSET",
        "--env-file",
        &env_file,
        "-w",
        "/tmp/new/dir",
        "-u",
        "app",
        "--hostname",
        "guest.test",
        "--entrypoint",
        "sh",
        &lab.debian(),
        "-c",
        script,
        "argv0",
        "a b",
        "--rm",
    ]);
    command.env("HOSTVAR", "from the host");
    let ended = Running::start(command).end(lab.patience(1));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let facts = facts(ended.text());
    for (key, want) in [
        ("cwd", "/tmp/new/dir"),
        ("uid", "1000"),
        ("groups", "1000 2000"),
        ("home", "/home/app"),
        ("path", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("hostname", "guest.test"),
        ("image", "debian"),
        ("file", "file value"),
        ("both", "flag"),
        ("host", "from the host"),
        ("unset", "no"),
        ("term", "none"),
        ("umask", "0022"),
        ("args", "2:a b:--rm"),
        ("stdin", "0"),
        ("hosts", "yes"),
        ("stdout", "yes"),
    ] {
        assert_eq!(facts.get(key), Some(&want), "{key} in {}", ended.text());
    }
    assert!(ended.text().contains("\nreopened\n"), "{}", ended.text());
    lab.assert_clean();
}

/// Layers lie over one another as the OCI image specification says; the image has its own working directory; the upper
/// layer can be written to. From an OCI layout directory.
#[test]
fn layers_make_one_root() {
    let lab = lab!("layers_make_one_root", on hardware);
    // Nearly all by the shell itself: a program costs half a second where the guest's kernel is emulated.
    let script = r#"
        line() { IFS= read -r it <"$2"; echo "$1=$it"; }
        found() { key=$1; shift; all=; for it; do [ -e "$it" ] && all="$all$it "; done; echo "$key=$all"; }
        echo "cwd=$PWD"; cd /opt/layers
        line kept kept; line replaced replaced; found gone removed removed-dir; found opaque opaque/* opaque/.[!.]*
        line file-to-dir file-to-dir/f; line dir-to-file dir-to-file; [ link-a -ef link-b ] && echo same-inode=yes
        line umlaut ümläut; line long long/*/*/*/f; echo "end-of-sparse=$(tail -c 1 sparse)"
        set -- $(readlink symlink dangling); echo "symlink=$1"; echo "dangling=$2"
        echo new >kept && line written kept; rm replaced; [ -e replaced ] || echo removable=yes
        dd if=/dev/zero of=/big bs=1M count=1 2>/dev/null; head -c 8 /dev/urandom >/dev/shm/random
        stat -L -c '%n=%F, %a, %h, %u:%g, %t:%T, %s' link-a setuid sticky owned null fifo sparse /big /dev/shm/random /dev/ptmx
        echo x >/dev/null && echo 1 >/dev/shm/x && line shm /dev/shm/x; line proc /proc/self/comm
        line lo /sys/class/net/lo/carrier; found interfaces /sys/class/net/*; echo "known=$(grep -c : /proc/net/dev)"
        date +date=%s
    "#;
    let image = format!("oci:{}", lab.images("debian-oci").display());
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let ended = lab.shell(&[], &image, script);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let facts = facts(ended.text());
    for (key, want) in [
        ("cwd", "/srv"),
        ("kept", "layer 1"),
        ("replaced", "layer 2"),
        ("gone", ""),
        ("opaque", "opaque/new "),
        ("file-to-dir", "layer 2"),
        ("dir-to-file", "layer 2"),
        ("same-inode", "yes"),
        ("symlink", "kept"),
        ("dangling", "/nowhere"),
        ("umlaut", "layer 2"),
        ("long", "layer 2"),
        ("end-of-sparse", "x"),
        ("written", "new"),
        ("removable", "yes"),
        ("shm", "1"),
        ("proc", "sh"),
        // It is on no network, and its guest's interface is none of its.
        ("lo", "1"),
        ("interfaces", "/sys/class/net/lo "),
        ("known", "1"),
    ] {
        assert_eq!(facts.get(key), Some(&want), "{key} in {}", ended.text());
    }
    // Type, mode, links, owner, device, size.
    for (key, field, want) in [
        ("link-a", 2, "2"),
        ("setuid", 1, "4755"),
        ("sticky", 1, "1777"),
        ("owned", 3, "1000:2000"),
        ("null", 0, "character special file"),
        ("null", 4, "1:3"),
        ("fifo", 0, "fifo"),
        ("sparse", 5, "1048576"),
        ("/big", 5, "1048576"),
        ("/dev/shm/random", 5, "8"),
        ("/dev/ptmx", 0, "character special file"),
    ] {
        let got = facts.get(key).and_then(|fields| fields.split(", ").nth(field));
        assert_eq!(got, Some(want), "{key} in {}", ended.text());
    }
    let date: u64 = facts["date"].parse().unwrap();
    let patience = lab.patience(1).as_secs();
    assert!((before..before + patience).contains(&date), "the guest's clock says {date}, ours said {before}");
    lab.assert_clean();
}

/// `--read-only`; from a docker archive. What one container wrote, the next does not see.
#[test]
fn a_read_only_root_cannot_be_written_to() {
    let lab = lab!("a_read_only_root_cannot_be_written_to", on hardware);
    let image = format!("docker-archive:{}", lab.images("debian-docker.tar").display());
    let script = "touch /x 2>/dev/null && echo written; touch /dev/shm/x && echo shm; mount -o remount,rw / 2>/dev/null && touch /x && echo remounted; ls /big 2>/dev/null; true";
    let ended = lab.shell(&["--read-only"], &image, script);
    assert_eq!((ended.code, ended.text()), (Some(0), "shm\n"), "{ended:?}");
    lab.assert_clean();
}

/// Twenty megabytes through stdin, of which two come back, byte for byte; the command sees their end.
#[test]
fn a_pipe_arrives_byte_for_byte() {
    let lab = lab!("a_pipe_arrives_byte_for_byte", on hardware);
    // Bytes that no repetition hides the loss of: a linear congruential generator (Knuth's MMIX constants).
    let mut state = 1u64;
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 56) as u8
    };
    let bytes: Vec<u8> = (0..20_000_000).map(|_| next(&mut state)).collect();
    let (back, summed) = bytes.split_at(2_000_000);
    let script = "head -c 2000000 && sha256sum";
    let mut command = lab.bulkhead(["run", "-i", &lab.debian(), "sh", "-c", script]);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.feed(bytes.clone());
    let ended = running.end(lab.patience(8));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let (came, sum) = ended.stdout.split_at_checked(back.len()).expect("what was asked for");
    assert_eq!(came.iter().zip(back).position(|(a, b)| a != b), None);
    let mut here = Command::new("sha256sum");
    here.stdin(Stdio::piped());
    let mut here = Running::start(here);
    here.feed(summed.to_vec());
    assert_eq!(String::from_utf8_lossy(sum), here.end(lab.patience(1)).text());
    lab.assert_clean();
}

/// A reader that goes away is felt inside, as by any program in a pipe: SIGPIPE.
#[test]
fn a_closed_stdout_ends_the_command() {
    let lab = lab!("a_closed_stdout_ends_the_command");
    let mut running =
        Running::start(lab.bulkhead(["run", &lab.debian(), "sh", "-c", "echo first; cat /dev/zero; exit $?"]));
    running.wait_for("first", lab.patience(1));
    running.close_stdout();
    let ended = running.end(lab.patience(1));
    assert_eq!(ended.code, Some(141), "{}", ended.stderr);
    lab.assert_clean();
}

/// A process that a signal ends inside is told as shells tell it. (The command itself is PID 1 of its container, as in
/// docker: signals from inside do not end it.)
#[test]
fn a_signal_inside_is_128_and_its_number() {
    let lab = lab!("a_signal_inside_is_128_and_its_number", on hardware);
    let ended = lab.shell(&[], &lab.debian(), "sh -c 'kill -SEGV $$'; echo $?; sh -c 'kill -KILL $$'; exit $?");
    assert_eq!((ended.code, ended.text()), (Some(137), "139\n"), "{ended:?}");
    lab.assert_clean();
}
