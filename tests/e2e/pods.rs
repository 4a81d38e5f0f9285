//! Pods: several containers in one guest, which see what they share and nothing else.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tests::{Lab, Running};

use crate::lab;

/// What a verb prints, which succeeds.
fn done(lab: &Lab, arguments: &[&str]) -> String {
    let ended = lab.run(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.text().trim().to_owned()
}

/// Waits for one to connect, and answers.
const SERVER: &str = r#"
    use IO::Socket::INET;
    $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 7000, Listen => 8, ReuseAddr => 1) or die;
    open($f, ">", "/secret") or die; print $f "mine\n"; close $f;
    while ($client = $listener->accept) { print $client "hello\n"; close $client }
"#;

/// What one container tries to have of the other, and of the kernel: a word for each that must not succeed, and what it came to. 54:0 and what
/// follows are the numbers of the guest's disks, which /proc/partitions tells.
const PROBES: &str = r#"
    sub tried { printf "%s: %s\n", $_[0], $_[1] ? "done" : "no" }
    tried("file", -e "/secret");
    tried("process", scalar(grep { open($f, "<", "$_/cmdline") && <$f> =~ /[L]ocalPort/ && $_ !~ m{/$$$} } glob("/proc/[0-9]*")));
    open($p, "<", "/proc/partitions") or die; @disks = grep { /vd[a-z]/ } <$p>;
    printf "disks: %d\n", scalar @disks;
    for $where ("/", "/dev/") {
        $opened = 0;
        for (@disks) {
            ($major, $minor, undef, $name) = split;
            system("mknod", "$where$name", "b", $major, $minor) == 0 or print "mknod failed\n";
            $opened++ if open($d, "<", "$where$name");
            unlink "$where$name";
        }
        tried("disk in $where", $opened);
    }
    tried("vsock", socket($s, 40, 1, 0));
    tried("mount", system("mount -t tmpfs none /mnt 2>/dev/null") == 0);
    tried("user namespace", system("unshare -U true 2>/dev/null") == 0);
    tried("sysctl", open($f, ">", "/proc/sys/kernel/core_pattern"));
    tried("sysrq", open($f, ">", "/proc/sysrq-trigger"));
    open($g, "<", "/proc/self/cgroup"); print "cgroup: ", <$g>;
    open($m, "<", "/sys/fs/cgroup/memory.max"); print "limit: ", <$m>;
    open($h, "<", "/etc/hostname"); print "host name: ", <$h>;
"#;

/// Two containers share a network and a host name and nothing else; one is killed, and the other goes on; the pod ends with the last, and
/// with its own owner.
#[test]
fn containers_of_a_pod_share_a_network_and_nothing_else() {
    let lab = lab!("containers_of_a_pod_share_a_network_and_nothing_else", on hardware);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let (image, patience) = (lab.debian(), lab.patience(2));
    lab.run(["run", "--rm", "--pod", "web", &image, "true"]).assert_failed(125, &["no such pod: web"]);
    let pod = done(
        &lab,
        &["pod", "create", "--network", "none", "--hostname", "shared", "--places", "2", "--label", "a=b", "web"],
    );
    lab.run(["pod", "create", "web"]).assert_failed(125, &["the pod name \"web\" is already in use by pod"]);
    lab.run(["run", "--pod", "web", "-p", "80:80", &image, "true"]).assert_failed(125, &["-p", "pod create"]);
    assert_eq!(
        done(&lab, &["pod", "ls", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}"]),
        "web Created 0"
    );

    done(&lab, &["run", "-d", "--pod", "web", "--name", "server", &image, "perl", "-e", SERVER]);
    assert_eq!(done(&lab, &["ps", "--pod", "--format", "{{.Names}} {{.PodName}}"]), "server web");
    let client = format!(
        "until exec 3<>/dev/tcp/127.0.0.1/7000; do sleep 0.1; done 2>/dev/null; cat <&3; perl -e '{PROBES}'; echo $$; echo ready; read line; \
         exec 3<>/dev/tcp/127.0.0.1/7000 && cat <&3; exit 7"
    );
    let mut command = lab.bulkhead([
        "run", "--rm", "-i", "--pod", "web", "-m", "64m", "--name", "client", &image, "bash", "-c", &client,
    ]);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.wait_for("ready\n", patience);
    // As any container: other commands in it, files out of it.
    assert_eq!(done(&lab, &["exec", "server", "cat", "/secret", "/etc/hostname"]), "mine\nshared");
    assert!(done(&lab, &["top", "client"]).contains("read line"));
    lab.run(["pause", "client"]).assert_failed(1, &["in pod web"]);
    lab.run(["run", "--rm", "--pod", "web", &image, "true"]).assert_failed(125, &["all of its 2 places are taken"]);
    running.say("go on\n");
    let ended = running.end(patience);
    let said = ended.text();
    for wanted in [
        "file: no\nprocess: no\ndisks: 4\ndisk in /: no\ndisk in /dev/: no\nvsock: no\nmount: no\nuser namespace: no\nsysctl: no\nsysrq: no\n",
        "cgroup: 0::/\nlimit: 67108864\nhost name: shared\n1\nready\nhello\n",
    ] {
        assert!(said.contains(wanted), "{ended:?}");
    }
    assert_eq!(ended.code, Some(7), "{ended:?}");

    // Its owner is killed, and only it is gone; its files are there when it is started again, as soon as its guest lets go of them.
    done(&lab, &["create", "--pod", "web", "--name", "second", &image, "sh", "-c", "echo x >>/kept; exec sleep 1000"]);
    done(&lab, &["start", "second"]);
    let lines = |count: usize| {
        let wait = format!("until [ $(wc -l </kept) = {count} ]; do sleep 0.1; done 2>/dev/null");
        done(&lab, &["exec", "second", "sh", "-c", &wait])
    };
    lines(1);
    let owner: i32 = done(&lab, &["inspect", "-f", "{{.State.Pid}}", "second"]).parse().unwrap();
    kill_process(Pid::from_raw(owner).unwrap(), Signal::KILL).unwrap();
    assert_eq!(done(&lab, &["wait", "second"]), "137");
    assert_eq!(done(&lab, &["ps", "--format", "{{.Names}}"]), "server");
    done(&lab, &["start", "second"]);
    lines(2);
    done(&lab, &["kill", "second"]);
    assert_eq!(done(&lab, &["exec", "server", "cat", "/secret"]), "mine");
    assert!(done(&lab, &["diff", "second"]).contains("A /kept"));

    assert_eq!(done(&lab, &["pod", "inspect", "-f", "{{.Id}}", "web"]), pod);
    done(&lab, &["pod", "stop", "-t", "0", "web"]);
    assert_eq!(done(&lab, &["pod", "ls", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}"]), "web Exited 1");
    done(&lab, &["pod", "rm", "web"]);
    assert_eq!(done(&lab, &["ps", "-aq"]), "");
    lab.assert_clean();
}
