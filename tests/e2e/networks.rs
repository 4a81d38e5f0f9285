//! Networks that were made: containers that find each other by name, and who would be another.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::{Lab, Running};

use crate::lab;

/// What a verb prints, which succeeds.
fn done(lab: &Lab, arguments: &[&str]) -> String {
    let ended = lab.run(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.text().trim().to_owned()
}

/// Answers each that comes with a word, and the address that it comes from.
const SERVER: &str = r#"
    use IO::Socket::INET;
    $listener = IO::Socket::INET->new(LocalPort => 7000, Listen => 8, ReuseAddr => 1) or die;
    while ($client = $listener->accept) { print $client "hello ", $client->peerhost, "\n"; close $client }
"#;

/// Sends a frame with the address of another (struct sockaddr_ll, packet(7)): a datagram, and an answer to nobody's question.
const LIAR: &str = r#"
    socket($s, 17, 3, 0) or die "socket: $!";
    open($f, "<", "/sys/class/net/eth0/address") or die; ($own = <$f>) =~ s/[:\n]//g;
    sub lie { send($s, $_[0], 0, pack("S n i S C C a8", 17, 3, 2, 0, 0, 6, "")) or die "send: $!" }
    ($web) = map { pack("C4", split /\./) } $ARGV[0];
    $ip = pack("C C n n n C C n a4 a4", 0x45, 0, 28, 1, 0, 64, 17, 0, $web, pack("C4", 172, 28, 0, 1));
    lie(pack("H12 H12 n", "ffffffffffff", $own, 0x0800) . $ip . pack("n4", 1, 2, 8, 0));
    lie(pack("H12 H12 n n n C C n H12 a4 H12 a4", "ffffffffffff", $own, 0x0806, 1, 0x0800, 6, 4, 2, $own, $web, "ffffffffffff", $web));
    print "lied\n";
"#;

/// Two containers find each other by name, and are not who they are not; what is left when the network's switch is killed, the next
/// command clears away.
#[test]
fn containers_of_a_network_find_each_other_and_nobody_is_another() {
    let lab = lab!("containers_of_a_network_find_each_other_and_nobody_is_another", on hardware);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let (image, patience) = (lab.debian(), lab.patience(2));
    // By which its switch is found as well.
    let net = &format!("net{}", std::process::id());
    let missing = lab.run(["run", "--rm", "--network", net, &image, "true"]);
    missing.assert_failed(125, &[&format!("network {net} not found")]);
    let id = done(&lab, &["network", "create", "--internal", "--label", "tier=db", net]);
    assert_eq!(lab.run(["network", "create", net]).code, Some(1));
    assert_eq!(done(&lab, &["network", "ls", "--no-trunc", "-q", "--filter", "label=tier=db"]), id);

    let web = ["run", "-d", "--name", "web", "--network", net, "--network-alias", "www", &image, "perl", "-e", SERVER];
    done(&lab, &web);
    let address = done(&lab, &["inspect", "-f", &format!("{{{{.NetworkSettings.Networks.{net}.IPAddress}}}}"), "web"]);
    assert_eq!(address, "172.28.0.2");
    lab.run(["network", "rm", net]).assert_failed(1, &["has active endpoints", "web"]);

    // It waits for the server, whose container may not have come so far.
    let client = format!(
        "ask() {{ until exec 3<>/dev/tcp/$1/7000; do sleep 0.1; done 2>/dev/null; cat <&3; }}
         getent ahostsv4 www | head -n 1; ask web; ask web.{net}; getent hosts example.org || echo unknown
         perl -e '{LIAR}' {address}; ask web; read line; echo $line"
    );
    let words = [
        "run",
        "--rm",
        "-i",
        "--name",
        "client",
        "--network",
        net,
        "--ip",
        "172.28.0.9",
        &image,
        "bash",
        "-c",
        &client,
    ];
    let mut command = lab.bulkhead(words);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.wait_for("lied\nhello 172.28.0.9\n", patience);
    let network = lab.run(["network", "inspect", net]);
    let network: serde_json::Value = serde_json::from_slice(&network.stdout).unwrap();
    let members = network[0]["Containers"].as_object().unwrap();
    let member = |name: &str| members.values().find(|member| member["Name"] == name).unwrap();
    let denied = ["web", "client"].map(|name| member(name)["FramesDenied"].as_u64().unwrap());
    assert!(denied[1] >= 2 && denied[0] == 0, "{network}");
    assert_eq!((member("client")["IPv4Address"].as_str(), members.len()), (Some("172.28.0.9/24"), 2));
    let missing = network[0]["Sandbox"]["Missing"].as_array().unwrap();
    // Kernels of Debian's know less of it.
    assert!(missing.iter().all(|one| one.to_string().contains("parts of Landlock")), "{missing:?}");

    // Without its switch a network has no members; the containers go on.
    kill_process(Pid::from_raw(the_switch(net)).unwrap(), Signal::KILL).unwrap();
    running.say("still here\n");
    let ended = running.end(patience);
    let said = ended.text();
    assert!(
        said.starts_with("172.28.0.2 ") && said.contains("hello 172.28.0.9\nhello 172.28.0.9\nunknown\n"),
        "{ended:?}"
    );
    assert!(said.ends_with("still here\n"), "{ended:?}");
    done(&lab, &["network", "rm", net]);
    assert_eq!(done(&lab, &["network", "ls", "-q"]), "");
    done(&lab, &["rm", "-f", "web"]);
    lab.assert_clean();
}

/// The process of a network's switch. It has no environment to be found by.
fn the_switch(net: &str) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if command.starts_with(b"bulkhead\0switch\0") && String::from_utf8_lossy(&command).contains(net) {
                return entry.file_name().to_string_lossy().parse().unwrap();
            }
        }
        assert!(Instant::now() < deadline, "there is no switch");
    }
}
