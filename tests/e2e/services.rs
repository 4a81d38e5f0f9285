//! Services of Debian's, from their packages to another engine: built, run in the background behind a port, used by clients on this host,
//! looked into, stopped and started again with what they had, and committed; the images that are saved run under podman.
//!
//! By hand, since that takes minutes: `tests/run images services`, docs/test-hosts.md.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::{Ended, Lab, Running};

use crate::lab;
use crate::net::{ip, make_tap, own_network};

/// One of them.
struct Service {
    /// Of its build context and its image.
    name: &'static str,
    /// Its own port.
    port: u16,
    /// What its log says once it takes clients.
    ready: &'static str,
    /// Where clients put what is to be kept: a shell line, with `$PORT`.
    fill: &'static str,
    /// What of it a client finds, also later.
    ask: &'static str,
    kept: &'static str,
    /// The same, asked inside of a container, and what is to be waited for before it is.
    awake: &'static str,
    ask_inside: &'static str,
    /// A word of its log when it has ended.
    farewell: &'static str,
}

const NGINX: Service = Service {
    name: "nginx",
    port: 80,
    ready: "",
    fill: "curl -sSf http://127.0.0.1:$PORT/ | grep 'Welcome to nginx'; \
        for i in 1 2 3 4 5 6 7 8 9 10; do curl -sSf -o /dev/null http://127.0.0.1:$PORT/; done",
    ask: "curl -sSf http://127.0.0.1:$PORT/kept",
    kept: "kept by nginx",
    awake: "exec 3<>/dev/tcp/127.0.0.1/80",
    ask_inside: "exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET /kept HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3",
    farewell: "GET /kept HTTP/1.1\" 200",
};

const REDIS: Service = Service {
    name: "redis",
    port: 6379,
    ready: "Ready to accept connections",
    fill: "redis-benchmark -h 127.0.0.1 -p $PORT -t set,get -n 500 -c 10 -q; redis-cli -h 127.0.0.1 -p $PORT set kept 'kept by redis'",
    ask: "redis-cli -h 127.0.0.1 -p $PORT get kept",
    kept: "kept by redis",
    awake: "redis-cli ping",
    ask_inside: "redis-cli get kept",
    farewell: "bye bye",
};

const POSTGRESQL: Service = Service {
    name: "postgresql",
    port: 5432,
    ready: "database system is ready to accept connections",
    fill: "export PGHOST=127.0.0.1 PGPORT=$PORT PGUSER=postgres; pgbench -i -s 1 postgres; pgbench -n -c 2 -t 20 postgres; \
        psql -c \"create table kept as select 'kept by ' || 'postgresql' as word\" postgres",
    ask: "psql -h 127.0.0.1 -p $PORT -U postgres -Atc 'select word from kept, pgbench_accounts where aid = 100000' postgres",
    kept: "kept by postgresql",
    awake: "psql -d postgres -c 'select 1'",
    ask_inside: "psql -d postgres -Atc 'select word from kept, pgbench_accounts where aid = 100000'",
    farewell: "database system is shut down",
};

/// Where tests/images/services.sh has put what is built, and its clients. `None`, and a line that says why, if nobody says where.
fn services(test: &str) -> Option<PathBuf> {
    let place = std::env::var_os("BULKHEAD_TEST_SERVICES").map(PathBuf::from);
    if place.is_none() {
        tests::lab::skip(test, "BULKHEAD_TEST_SERVICES is not set; `tests/run images services` sets it");
    }
    place
}

/// One service's session with Bulkhead.
struct Session<'a> {
    service: &'a Service,
    lab: &'a Lab,
    place: &'a Path,
    /// The host's port.
    port: u16,
    patience: Duration,
}

impl Session<'_> {
    /// What a verb prints, which succeeds. How long it took is what the notes say.
    fn done(&self, words: &[&str]) -> String {
        let began = Instant::now();
        let ended = Running::start(self.lab.keeping(words)).end(self.patience);
        assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}");
        self.took(&words.join(" "), began);
        ended.text().trim().to_owned()
    }

    fn took(&self, what: &str, began: Instant) {
        eprintln!("{:>7.1} s  {}: {what}", began.elapsed().as_secs_f64(), self.service.name);
    }

    /// What clients on this host say.
    fn clients(&self, line: &str) -> Ended {
        let began = Instant::now();
        let mut command = Command::new("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-ec", line]).env("PORT", self.port.to_string());
        command.env("PATH", format!("{}:{path}", self.place.join("clients").display()));
        let ended = Running::start(command).end(self.patience);
        assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
        self.took(line, began);
        ended
    }

    /// Follows its log, stderr as well, up to where it takes clients for the time `life`.
    fn follow(&self, life: usize) -> Running {
        let logs = self.lab.keeping(["logs", "-f", self.service.name]);
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(logs.get_program()).args(logs.get_args());
        command.envs(logs.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(std::process::Stdio::null());
        let mut running = Running::start(command);
        let ready = |line: &String| line.contains(self.service.ready);
        if !self.service.ready.is_empty() {
            let mut seen = 0;
            while seen < life {
                seen += usize::from(ready(&running.line(self.patience)));
            }
        }
        running
    }

    /// Waits, inside, until it takes clients.
    fn awake(&self) {
        let line = format!("until {}; do sleep 0.1; done >/dev/null 2>&1", self.service.awake);
        self.done(&["exec", self.service.name, "bash", "-c", &line]);
    }
}

/// From the packages to the archive.
fn serve(test: &str, service: &Service, memory: &str) {
    let lab = lab!(test);
    let Some(place) = services(test) else { return };
    if Command::new("passt").arg("--version").output().is_err() {
        return tests::lab::skip(test, "passt is not installed");
    }
    let patience = lab.patience(60);
    if !own_network(test) {
        return;
    }
    // What the host has of the outside: an address, and a default route.
    make_tap("bh0", "192.0.2.1/24");
    ip(&["route", "add", "default", "via", "192.0.2.254"]);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    // Nobody else is in this network.
    let session = Session { service, lab: &lab, place: &place, port: 8000 + service.port, patience };
    let (name, kept) = (service.name, format!("{}:kept", service.name));
    let archive = lab.images("debian.tar").display().to_string();
    session.done(&["load", "-q", "-i", &archive, "--name", "debian"]);
    let context = place.join(name).display().to_string();
    session.done(&["build", "-q", "--network", "none", "-m", "2g", "-t", name, &context]);

    let port = format!("{}:{}", session.port, service.port);
    session.done(&["run", "-d", "--network", "user", "-m", memory, "-p", &port, "--name", name, name]);
    assert_eq!(session.done(&["port", name]), format!("{}/tcp -> 127.0.0.1:{}", service.port, session.port));
    let follower = session.follow(1);
    session.awake();
    let said = session.clients(service.fill);
    // A terminal's progress is overwritten there.
    eprintln!(
        "{}",
        said.text()
            .split(['\r', '\n'])
            .filter(|line| line.contains("per second") || line.contains("tps"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    if name == "nginx" {
        session.done(&["exec", name, "sh", "-c", "echo kept by nginx >/var/www/html/kept"]);
    }
    assert_eq!(session.clients(service.ask).text().trim(), service.kept);
    assert_eq!(session.done(&["exec", name, "bash", "-c", service.ask_inside]), service.kept);
    session.done(&["stop", "-t", "-1", name]);
    let followed = follower.end(patience);
    assert!(followed.code == Some(0) && followed.text().contains(service.farewell), "{followed:?}");
    assert_eq!(session.done(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name]), "exited 0");

    session.done(&["start", name]);
    drop(session.follow(2));
    session.awake();
    assert_eq!(session.clients(service.ask).text().trim(), service.kept);
    session.done(&["stop", "-t", "-1", name]);
    session.done(&["commit", name, &kept]);
    let saved = place.join("saved").join(format!("{name}.tar")).display().to_string();
    session.done(&["save", "-o", &saved, &kept]);
    session.done(&["rm", name]);
    assert_eq!(session.done(&["ps", "-aq"]), "");
    lab.assert_clean();
}

#[test]
#[ignore = "minutes: to be run by hand, `tests/run images services`"]
fn nginx_is_built_and_serves() {
    serve("nginx_is_built_and_serves", &NGINX, "256m");
}

#[test]
#[ignore = "minutes: to be run by hand, `tests/run images services`"]
fn redis_is_built_and_serves() {
    serve("redis_is_built_and_serves", &REDIS, "256m");
}

#[test]
#[ignore = "minutes: to be run by hand, `tests/run images services`"]
fn postgresql_is_built_and_serves() {
    serve("postgresql_is_built_and_serves", &POSTGRESQL, "512m");
}

/// What the others have saved, with what their clients left in it.
#[test]
#[ignore = "wants what the others of this file have saved, and podman: `tests/run images services`"]
fn saved_images_run_under_podman() {
    const TEST: &str = "saved_images_run_under_podman";
    let lab = lab!(TEST);
    let Some(place) = services(TEST) else { return };
    let podman = |words: &[&str]| {
        let mut command = Command::new("podman");
        command.args(words).stdin(std::process::Stdio::null());
        let ended = Running::start(command).end(lab.patience(4));
        assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}");
        ended.text().trim().to_owned()
    };
    let mut found = 0;
    for service in [&NGINX, &REDIS, &POSTGRESQL] {
        let archive = place.join("saved").join(format!("{}.tar", service.name));
        if !archive.exists() {
            tests::lab::skip(TEST, &format!("{} is not there", archive.display()));
            continue;
        }
        found += 1;
        podman(&["load", "-q", "-i", &archive.display().to_string()]);
        let (image, name) = (format!("{}:kept", service.name), format!("bulkhead-{}", service.name));
        podman(&["run", "-d", "--network", "none", "--name", &name, &image]);
        let line = format!("until {}; do sleep 0.1; done >/dev/null 2>&1; {}", service.awake, service.ask_inside);
        assert_eq!(podman(&["exec", &name, "bash", "-c", &line]), service.kept);
        podman(&["rm", "-f", &name]);
        podman(&["rmi", "-f", &image]);
        eprintln!("{} runs under podman, with what was kept", service.name);
    }
    assert_ne!(found, 0, "nothing was saved");
}
