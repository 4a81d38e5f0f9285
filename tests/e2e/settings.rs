//! What a container has beside its files: memory mounted as file systems, limits, kernel parameters, capabilities, name resolution.

use tests::Running;

use crate::lab;

/// The bounding set of a process that may only bind low ports.
const NET_BIND_SERVICE: &str = "CapBnd:\t0000000000000400";

/// All of it at once, for the first process and for one that joins it.
#[test]
fn a_container_has_what_it_asks_for() {
    let lab = lab!("a_container_has_what_it_asks_for", on hardware);
    let (image, patience) = (lab.debian(), lab.patience(2));
    let script = r#"
        mount | grep -E ' /(scratch|data|data/inner|dev/shm) ' | sort
        cp /bin/true /scratch/ && /scratch/true && echo runs
        cp /bin/true /data/ && ! /data/true 2>/dev/null && echo does not
        ulimit -n; ulimit -Hn; ulimit -c
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/core/rmem_max
        grep CapBnd /proc/self/status
        cat /etc/resolv.conf; grep '\.example' /etc/hosts
        echo up; read line
    "#;
    let flags = [
        "run",
        "-i",
        "--name",
        "asks",
        "--tmpfs",
        "/data/inner:ro",
        "--tmpfs",
        "/scratch:size=1m,mode=700,exec",
        "--tmpfs",
        "/data",
        "--shm-size",
        "32m",
        "--ulimit",
        "nofile=100:200",
        "--ulimit",
        "core=0:0",
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--sysctl",
        "kernel.msgmax=9000",
        // Not its network namespace's, which has no interface, but all networks'.
        "--sysctl",
        "net.core.rmem_max=1234567",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "net_bind_service",
        "--dns",
        "9.9.9.9",
        "--dns-search",
        "a.example",
        "--add-host",
        "db.example:10.0.0.1",
        "--init",
        &image,
        "sh",
        "-c",
        script,
    ];
    let mut command = lab.bulkhead(flags);
    command.stdin(std::process::Stdio::piped());
    let mut running = Running::start(command);
    running.wait_for("up\n", patience);
    let joined = lab.run(["exec", "asks", "sh", "-c", "ulimit -n; grep CapBnd /proc/self/status"]);
    assert_eq!((joined.code, joined.text()), (Some(0), format!("100\n{NET_BIND_SERVICE}\n").as_str()), "{joined:?}");
    running.say("\n");
    let ended = running.end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut lines = ended.text().lines();
    let mounts: Vec<_> = lines.by_ref().take(4).collect();
    for (line, words) in mounts.iter().zip([
        ["on /data type tmpfs", "rw,nosuid,nodev,noexec", ""],
        ["on /data/inner type tmpfs", "ro,nosuid,nodev,noexec", ""],
        ["on /dev/shm type tmpfs", "noexec", "size=32768k"],
        ["on /scratch type tmpfs", "rw,nosuid,nodev,", "size=1024k,mode=700"],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)), "{line}: {words:?}");
    }
    assert!(!mounts[3].contains("noexec"), "{mounts:?}");
    let rest = [
        "runs",
        "does not",
        "100",
        "200",
        "0",
        "1",
        "9000",
        "1234567",
        NET_BIND_SERVICE,
        "nameserver 9.9.9.9",
        "search a.example",
        "10.0.0.1\tdb.example",
        "up",
    ];
    assert_eq!(lines.collect::<Vec<_>>(), rest, "{ended:?}");
    lab.assert_clean();
}

/// A capability that no container has usually is one over its own kernel; what that does not know is an error.
#[test]
fn a_container_gets_capabilities_over_its_own_kernel() {
    let lab = lab!("a_container_gets_capabilities_over_its_own_kernel");
    let image = lab.debian();
    let mounts = "mount -t tmpfs none /mnt && echo mounted";
    let ended = lab.shell(&["--cap-add", "SYS_ADMIN"], &image, mounts);
    assert_eq!((ended.code, ended.text()), (Some(0), "mounted\n"), "{ended:?}");
    let sys = "grep CapEff /proc/self/status; grep -c ' /sys sysfs rw' /proc/mounts";
    let ended = lab.shell(&["--privileged"], &image, sys);
    assert_eq!((ended.code, ended.text()), (Some(0), "CapEff:\t000001ffffffffff\n1\n"), "{ended:?}");
    let ended = lab.shell(&["--sysctl", "kernel.no_such=1"], &image, "true");
    ended.assert_failed(125, &["sysctl kernel/no_such=1", "no such file"]);
    for (flag, value, word) in [
        ("--sysctl", "kernel..x=1", "not the name of a kernel parameter"),
        ("--tmpfs", "relative", "not an absolute path"),
        ("--ulimit", "files=1", "not one of core"),
        ("--cap-add", "EVERYTHING", "not a capability"),
        ("--shm-size", "much", "not a memory size"),
        ("--add-host", "db:here", "neither an IP address"),
        ("--dns", "resolver", "--dns"),
    ] {
        lab.shell(&[flag, value], &image, "true").assert_failed(125, &[word]);
    }
    lab.shell(&["--add-host", "me:host-gateway"], &image, "true").assert_failed(125, &["--network tap"]);
    lab.assert_clean();
}
