//! A hostile guest against the whole monitor (`tests/adversary`): the checklist's groups of attacks on every virtio device that
//! there is, and on the ports.
//!
//! After each attack the monitor lives, its threads come to rest, its memory is what it was, another device serves, and a
//! reset brings back the devices that were attacked. The last two the guest sees to itself.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tests::control::Control;
use tests::{Lab, Running};

use crate::lab;
use crate::net::{ip, make_tap, own_network};

/// The guest.
pub(crate) const ADVERSARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/adversary"));
/// Most of a processor that a thread at rest uses, and how long it is looked at.
const REST: f64 = 0.05;
const WINDOW: Duration = Duration::from_millis(10);
/// Most memory that an attack may leave behind, bytes.
const LEFT: u64 = 1 << 20;
/// Bytes of a disk, and of the file system that is too small for one.
const DISK: u64 = 1 << 20;
const SMALL: &str = "256k";
const TAP: &str = "bh6";
/// The disk that is not attacked is the first.
const DISKS: [(&str, bool); 4] = [("witness", false), ("victim", false), ("fixed", true), ("full", false)];

/// Descriptors, rings and indices.
#[test]
fn group_1_rings() {
    attack(1);
}

/// Where RAM ends, and where none is.
#[test]
fn group_2_addresses() {
    attack(2);
}

/// What is read is rewritten meanwhile.
#[test]
fn group_3_races() {
    attack(3);
}

/// Registers and ports.
#[test]
fn group_4_transport() {
    attack(4);
}

/// Disks: requests that are none, files that are not what they were.
#[test]
fn group_5_block() {
    attack(5);
}

/// Networks and sockets.
#[test]
fn group_6_packets() {
    attack(6);
}

/// Storms.
#[test]
fn group_7_rates() {
    attack(7);
}

fn attack(group: u32) {
    let name = format!("adversary group {group}");
    let lab = lab!(&name);
    if std::env::var_os("BULKHEAD_TEST_EMULATOR").is_some_and(|emulator| !emulator.is_empty()) {
        tests::lab::skip(&name, "the emulated processor crashes guests that poll, docs/test-hosts.md");
        return;
    }
    let site = Site::new(lab, &name);
    let mut machine = site.start();
    machine.meet(&site);
    machine.survive(&site, group);
    machine.end(&site);
}

/// What the machine is made of.
struct Site {
    lab: Lab,
    patience: Duration,
    /// There is a tap interface, which can go.
    tap: bool,
    /// There is a file system that is too small.
    small: bool,
}

impl Site {
    fn new(lab: Lab, name: &str) -> Self {
        let patience = lab.patience(1);
        let tap = own_network(name);
        if tap {
            make_tap(TAP, "192.0.2.1/24");
        }
        let unshare = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
        let small = unshare.is_ok_and(|status| status.success());
        if !small {
            tests::lab::skip(name, "no mount namespace of its own: no disk on a full file system");
        }
        for (disk, _) in DISKS {
            fs::create_dir_all(lab.path(disk)).unwrap();
            let file = fs::File::create(lab.path(disk).join("file")).unwrap();
            file.set_len(DISK).unwrap();
        }
        fs::create_dir_all(lab.path("shared")).unwrap();
        fs::write(lab.path("memory"), vec![0; DISK as usize]).unwrap();
        Site { lab, patience, tap, small }
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.lab.path(name).join("file")
    }

    /// One section for each kind of device that the program knows: it says itself which there are.
    fn devices(&self) -> Map<String, Value> {
        let drives = DISKS.map(|(name, read_only)| {
            json!({ "drive_id": name, "path_on_host": self.disk(name), "is_read_only": read_only, "num_queues": 2 })
        });
        let net = match self.tap {
            true => json!({ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "host_dev_name": TAP }),
            false => json!({ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "unplugged": true }),
        };
        let mut samples = HashMap::from([
            ("entropy", json!({})),
            ("vsock", json!({ "guest_cid": 3, "uds_path": self.lab.path("vsock") })),
            ("drives", drives.as_slice().into()),
            ("network-interfaces", json!([net])),
            (
                "fs",
                json!({ "volumes": [{ "name": "v", "path_on_host": self.lab.path("shared"), "is_read_only": false }] }),
            ),
            ("console", json!({ "mode": "off" })),
            ("pmem", json!([{ "id": "m", "path_on_host": self.lab.path("memory"), "read_only": true }])),
            (
                "balloon",
                json!({ "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 3600, "free_page_reporting": true }),
            ),
        ]);
        let file = self.lab.path("wrong");
        fs::write(&file, r#"{ "no-device": {} }"#).unwrap();
        let ended = self.lab.run(["vmm", "--no-api", "--config-file", file.to_str().unwrap()]);
        let keys = ended.stderr.trim().rsplit_once("serial, ").unwrap_or_else(|| panic!("{ended:?}")).1.split(", ");
        let devices: Map<_, _> = keys
            .map(|key| {
                (key.to_owned(), samples.remove(key).unwrap_or_else(|| panic!("no attack on '{key}': add a sample")))
            })
            .collect();
        assert!(samples.is_empty(), "no such devices: {samples:?}");
        devices
    }

    fn start(&self) -> Machine {
        let (kernel, file, socket) = (self.lab.path("adversary"), self.lab.path("vm.json"), self.lab.path("api.sock"));
        fs::write(&kernel, ADVERSARY).unwrap();
        let mut config = self.devices();
        config.insert("boot-source".into(), json!({ "kernel_image_path": kernel }));
        config.insert("machine-config".into(), json!({ "vcpu_count": 2, "mem_size_mib": 16 }));
        fs::write(&file, Value::from(config).to_string()).unwrap();
        let paths = [&file, &socket].map(|path| path.to_str().unwrap().to_owned());
        let vmm = self.lab.bulkhead(["vmm", "--config-file", &paths[0], "--api-sock", &paths[1]]);
        let mut command = if self.small { self.beside_a_full_disk(&vmm) } else { vmm };
        command.stdin(Stdio::piped());
        // Where guests' connections lead: each is closed as it comes.
        let listener = UnixListener::bind(self.lab.path("vsock_1024")).unwrap();
        std::thread::spawn(move || {
            while let Ok(stream) = listener.accept() {
                drop(stream)
            }
        });
        let process = Running::start(command);
        let control = Control::of(&process, socket, self.patience);
        Machine { process, control, memory: 0 }
    }

    /// The same program, in a mount namespace in which the last disk's file is on a file system that is too small for it.
    fn beside_a_full_disk(&self, vmm: &Command) -> Command {
        let mut command = Command::new("unshare");
        let script = r#"mount -t tmpfs -o size=$2 none "$1" && truncate -s $3 "$1/file" && shift 3 && exec "$@""#;
        let (place, disk) = (self.lab.path("full"), DISK.to_string());
        command.args(["-m", "sh", "-c", script, "sh"]).arg(place).args([SMALL, &disk]);
        command.arg(vmm.get_program()).args(vmm.get_args());
        for (key, value) in vmm.get_envs() {
            value.map(|value| command.env(key, value));
        }
        command
    }
}

/// The machine, and what its memory is compared with.
struct Machine {
    process: Running,
    control: Control,
    memory: u64,
}

impl Machine {
    /// The guest has found every device, and each works.
    fn meet(&mut self, site: &Site) {
        let line = self.process.line(site.patience);
        let found = line.strip_prefix("devices ").unwrap_or_else(|| panic!("{line}")).split(' ').count();
        let metrics = self.control.get("/bulkhead/v1/metrics");
        assert_eq!(found, metrics["devices"].as_array().unwrap().len(), "{line}");
        self.rest(site, "nothing");
        self.memory = memory(&self.process);
    }

    /// A group of attacks.
    fn survive(&mut self, site: &Site, group: u32) {
        self.process.say(&group.to_string());
        let mut attack = "nothing".to_owned();
        let mut attacks = 0;
        loop {
            let line = self.process.line(site.patience);
            match line.split_once(' ') {
                Some(("attack", name)) => (attack, attacks) = (name.to_owned(), attacks + 1),
                Some(("judge", _)) => self.judge(site, &attack),
                Some(("ask", what)) => self.grant(site, what),
                Some(("failed:", how)) => panic!("after '{attack}': {how}"),
                None if line == "over" => break,
                // What the guest shouts.
                _ => {}
            }
        }
        assert!(attacks > 0);
    }

    fn judge(&mut self, site: &Site, attack: &str) {
        self.rest(site, attack);
        let deadline = Instant::now() + site.patience;
        while memory(&self.process) > self.memory + LEFT {
            assert!(Instant::now() < deadline, "after '{attack}': {} of {} bytes", memory(&self.process), self.memory);
            std::thread::sleep(WINDOW);
        }
        self.process.say("g");
    }

    /// Waits until no thread works.
    fn rest(&self, site: &Site, attack: &str) {
        let deadline = Instant::now() + site.patience;
        loop {
            let (before, began) = (times(&self.process), Instant::now());
            std::thread::sleep(WINDOW);
            let (after, passed) = (times(&self.process), began.elapsed());
            let used = |(id, (_, time)): (&String, &(String, u64))| {
                let before = before.get(id).map_or(0, |(_, time)| *time);
                Duration::from_nanos(time - before).div_duration_f64(passed)
            };
            let Some((id, (name, _))) = after.iter().find(|thread| used(*thread) > REST) else { return };
            assert!(Instant::now() < deadline, "after '{attack}': thread {id} ({name}) does not come to rest");
        }
    }

    /// Does what the guest wants done to what is behind its devices.
    fn grant(&mut self, site: &Site, what: &str) {
        let victim = || OpenOptions::new().write(true).open(site.disk("victim")).unwrap();
        let limit = |size: u32| {
            for (disk, _) in &DISKS[1..] {
                let limiter = json!({ "ops": { "size": size, "refill_time": 1000 } });
                self.control.done(
                    "PATCH",
                    &format!("/drives/{disk}"),
                    json!({ "drive_id": disk, "rate_limiter": limiter }),
                );
            }
        };
        match what {
            "cut" => victim().set_len(0).unwrap(),
            "grow" => victim().set_len(4 * DISK).unwrap(),
            "slow" => limit(1),
            "fast" => limit(0),
            "down" if site.tap => ip(&["link", "set", TAP, "down"]),
            "gone" if site.tap => ip(&["link", "del", TAP]),
            "flood" => return self.process.say(&format!("g{}!", "x".repeat(4096))),
            // It was full from the start, or nothing can be done; an interface that was down comes up, one that is gone does not.
            "up" if site.tap => {
                drop(Command::new("ip").args(["link", "set", TAP, "up"]).stderr(Stdio::null()).status())
            }
            _ => {}
        }
        self.process.say("g");
    }

    fn end(self, site: &Site) {
        self.control.done("PUT", "/bulkhead/v1/stop", Value::Null);
        let ended = self.process.end(site.patience);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        assert!(
            fs::read(site.disk("fixed")).unwrap().iter().all(|byte| *byte == 0),
            "a disk that may only be read was written"
        );
        site.lab.assert_clean();
    }
}

/// Processor time of each thread so far, nanoseconds, by its id, with its name.
fn times(process: &Running) -> HashMap<String, (String, u64)> {
    let mut times = HashMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", process.pid())).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if let Some(time) = read("schedstat").split(' ').next().and_then(|time| time.parse().ok()) {
            times.insert(task.file_name().to_string_lossy().into_owned(), (read("comm").trim().to_owned(), time));
        }
    }
    times
}

/// Bytes of memory that a process has for itself: its guest's as well, all of which that has used.
fn memory(process: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
    };
    of("RssAnon:") + of("RssShmem:")
}
