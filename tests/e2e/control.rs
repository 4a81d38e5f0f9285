//! `bulkhead vmm` as Firecracker's users start it: a configuration file, a control socket, or both.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::control::Control;
use tests::terminal::Terminal;
use tests::{Lab, Running, elf};

use crate::lab;

/// Says "up" on the serial port, then halts for ever. 32-bit forms that mean the same in 64-bit mode.
const SAYS_UP: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xb0, b'u', 0xee, // mov $'u', %al; out %al, (%dx)
    0xb0, b'p', 0xee, 0xb0, b'\n', 0xee, // "p\n"
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
];

/// Tells the exit port of a panic.
pub const PANICS: &[u8] = &[
    0x66, 0xba, 0x00, 0x06, // mov $0x600, %dx
    0xb0, 0x03, 0xee, // mov $3, %al; out %al, (%dx)
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
];

/// A kernel that says "up" and halts.
pub fn tiny_kernel(lab: &Lab) -> PathBuf {
    kernel(lab, SAYS_UP)
}

/// A kernel of these instructions.
pub fn kernel(lab: &Lab, code: &[u8]) -> PathBuf {
    let path = lab.path("kernel");
    std::fs::write(&path, elf::executable(0x10_0000, code, 4096)).unwrap();
    path
}

fn vmm(lab: &Lab, arguments: &[&str]) -> Running {
    Running::start(lab.bulkhead(["vmm"].iter().chain(arguments)))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn start() -> Value {
    json!({ "action_type": "InstanceStart" })
}

/// A machine without a file: configured, started, paused, resumed and snapshotted by a client; SIGTERM leaves nothing.
#[test]
fn a_client_makes_a_machine() {
    let lab = lab!("a_client_makes_a_machine");
    let (socket, patience) = (lab.path("api.sock"), lab.patience(1));
    let mut running = vmm(&lab, &["--api-sock", text(&socket), "--id", "vm-7"]);
    let control = Control::of(&running, socket.clone(), patience);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((&control.get("/")["id"], &control.get("/")["state"]), (&json!("vm-7"), &json!("Not started")));
    assert!(control.fault("PUT", "/actions", start()).contains("no kernel"));
    control.done("PUT", "/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 64 }));
    control.done("PUT", "/boot-source", json!({ "kernel_image_path": tiny_kernel(&lab) }));
    control.done("PUT", "/entropy", json!({}));
    control.done("PUT", "/actions", start());
    running.wait_for("up\n", patience);
    assert_eq!(control.get("/")["state"], "Running");
    control.done("PATCH", "/vm", json!({ "state": "Paused" }));
    assert_eq!(control.get("/")["state"], "Paused");
    let snapshot = lab.path("snapshot");
    control.done("PUT", "/snapshot/create", json!({ "snapshot_path": snapshot, "snapshot_type": "Full" }));
    control.done("PATCH", "/vm", json!({ "state": "Resumed" }));
    assert_eq!(control.get("/")["state"], "Running");
    assert!(control.fault("PUT", "/boot-source", json!({ "kernel_image_path": "/k" })).contains("only before"));
    running.signal(Signal::TERM);
    let ended = running.end(patience);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(143), ""), "{ended:?}");
    assert!(!socket.exists());

    for backend in ["File", "Userfault"] {
        let running = vmm(&lab, &["--api-sock", text(&socket)]);
        let control = Control::of(&running, socket.clone(), patience);
        let memory = json!({ "backend_type": backend, "backend_path": snapshot.join("memory") });
        control.done(
            "PUT",
            "/snapshot/load",
            json!({ "snapshot_path": snapshot, "resume_vm": true, "mem_backend": memory }),
        );
        assert_eq!(control.get("/")["state"], "Running");
        assert_eq!(control.get("/machine-config")["mem_size_mib"], 64);
        control.done("PUT", "/bulkhead/v1/stop", Value::Null);
        assert_eq!(running.end(patience).code, Some(0));
        assert!(!socket.exists());
    }
    lab.assert_clean();
}

/// A file in Firecracker's format, with all that such files hold, boots this host's guest kernel on the process's own
/// stdin and stdout; its socket answers meanwhile.
#[test]
fn a_file_for_firecracker_boots() {
    let lab = lab!("a_file_for_firecracker_boots");
    let (socket, patience) = (lab.path("api.sock"), lab.patience(1));
    let disk = lab.path("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    // How Linux boots by such a file, and uses its disks: `crate::booted`.
    let mut file = json!({
        "boot-source": { "kernel_image_path": tiny_kernel(&lab), "initrd_path": null,
                         "boot_args": "console=ttyS0 reboot=k panic=-1 loglevel=6 bulkhead.exit=0x600" },
        "drives": [{ "drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe",
                     "is_read_only": true, "path_on_host": disk, "io_engine": "Sync", "rate_limiter": null,
                     "socket": null }],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false,
                            "huge_pages": "None" },
        "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null, "logger": null, "metrics": null,
        "mmds-config": null, "entropy": null,
    });
    let path = lab.path("vm.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let mut running = vmm(&lab, &["--config-file", text(&path), "--api-sock", text(&socket)]);
    running.wait_for("up", patience);
    let control = Control::of(&running, socket.clone(), patience);
    assert_eq!(control.get("/vm/config")["drives"][0]["drive_id"], "rootfs");
    running.signal(Signal::TERM);
    let ended = running.end(patience);
    assert_eq!((ended.code, ended.text(), socket.exists()), (Some(143), "up\n", false), "{ended:?}");

    file["machine-config"]["smt"] = json!(true);
    std::fs::write(&path, file.to_string()).unwrap();
    let ended = lab.run(["vmm", "--no-api", "--config-file", text(&path)]);
    ended.assert_failed(125, &["vm.json", "machine-config", "smt"]);
    lab.assert_clean();
}

/// A socket that SIGKILL left is replaced; one that somebody serves, or a file, is not.
#[test]
fn group_10_a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let lab = lab!("group_10_a_stale_socket_is_replaced_and_a_live_one_is_not");
    let (socket, patience) = (lab.path("api.sock"), lab.patience(1));
    let running = vmm(&lab, &["--api-sock", text(&socket)]);
    Control::of(&running, socket.clone(), patience);
    lab.run(["vmm", "--api-sock", text(&socket)]).assert_failed(125, &["api.sock", "another process listens"]);
    running.signal(Signal::KILL);
    assert_eq!(running.end(patience).code, None);
    assert!(socket.exists());
    let running = vmm(&lab, &["--api-sock", text(&socket)]);
    let control = Control::of(&running, socket.clone(), patience);
    assert_eq!(control.get("/")["state"], "Not started");
    running.signal(Signal::INT);
    assert_eq!(running.end(patience).code, Some(130));
    assert!(!socket.exists());
    std::fs::write(&socket, "precious").unwrap();
    lab.run(["vmm", "--api-sock", text(&socket)]).assert_failed(125, &["api.sock", "not a socket"]);
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
    lab.assert_clean();
}

/// A terminal is raw while the guest has it, and as it was afterwards.
#[test]
fn a_terminal_is_the_guests_and_is_given_back() {
    let lab = lab!("a_terminal_is_the_guests_and_is_given_back");
    let patience = lab.patience(1);
    let file = lab.path("vm.json");
    let config = json!({ "boot-source": { "kernel_image_path": tiny_kernel(&lab) } });
    std::fs::write(&file, config.to_string()).unwrap();
    let mut terminal = Terminal::new();
    let running = terminal.start(&lab.bulkhead(["vmm", "--config-file", text(&file)]));
    terminal.wait_for("up\n", patience);
    assert!(!terminal.is_usual());
    // ^C is the guest's, SIGTERM is not.
    terminal.type_in(b"\x03");
    running.signal(Signal::TERM);
    assert_eq!(running.end(patience).code, Some(143));
    assert!(terminal.is_usual());
    lab.assert_clean();
}

/// Signals that the process was started to ignore are ignored: nohup works.
#[test]
fn an_ignored_signal_stays_ignored() {
    let lab = lab!("an_ignored_signal_stays_ignored");
    let (socket, patience) = (lab.path("api.sock"), lab.patience(1));
    let vmm = lab.bulkhead(["vmm", "--api-sock", text(&socket)]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(vmm.get_program()).args(vmm.get_args());
    for (key, value) in vmm.get_envs() {
        value.map(|value| command.env(key, value));
    }
    let running = Running::start(command);
    let control = Control::of(&running, socket, patience);
    running.signal(Signal::HUP);
    assert_eq!(control.get("/")["state"], "Not started");
    running.signal(Signal::TERM);
    assert_eq!(running.end(patience).code, Some(143));
    lab.assert_clean();
}

/// A process that was given no standard streams does not take other files for them, nor write to them what is not theirs.
#[test]
fn standard_streams_that_are_closed_are_nothing_else() {
    let lab = lab!("standard_streams_that_are_closed_are_nothing_else");
    let (socket, patience) = (lab.path("api.sock"), lab.patience(1));
    let config = lab.path("config");
    let kernel = json!({ "kernel_image_path": tiny_kernel(&lab) });
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": 64 });
    std::fs::write(&config, json!({ "boot-source": kernel, "machine-config": machine }).to_string()).unwrap();
    let vmm = lab.bulkhead(["vmm", "--config-fd", "3", "--events-fd", "4", "--api-sock", text(&socket)]);
    let mut command = Command::new("sh");
    command.args(["-c", "config=$1; shift; exec \"$@\" 3<\"$config\" 4>/dev/null <&- >&- 2>&-", "sh", text(&config)]);
    command.arg(Path::new(vmm.get_program()).with_file_name("bulkhead-vmm")).args(vmm.get_args());
    let running = Running::start(command);
    let control = Control::of(&running, socket, patience);
    assert_eq!(control.get("/")["state"], "Running");
    for descriptor in 0..3 {
        let link = format!("/proc/{}/fd/{descriptor}", running.pid());
        assert_eq!(std::fs::read_link(link).unwrap(), Path::new("/dev/null"), "descriptor {descriptor}");
    }
    running.signal(Signal::TERM);
    assert_eq!(running.end(patience).code, Some(143));
    lab.assert_clean();
}

/// A process without a descriptor for one client more turns it away, and goes on with those it has.
#[test]
fn a_client_too_many_for_the_process_is_turned_away() {
    let lab = lab!("a_client_too_many_for_the_process_is_turned_away");
    let (socket, patience) = (lab.path("api.sock"), lab.patience(1));
    let vmm = lab.bulkhead(["vmm", "--api-sock", text(&socket)]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 16; exec \"$@\"", "sh"]).arg(vmm.get_program()).args(vmm.get_args());
    let running = Running::start(command);
    let control = Control::of(&running, socket.clone(), patience);
    let mut clients: Vec<_> = (0..16).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    // The last one is let in and shown out.
    let mut last = clients.pop().unwrap();
    last.set_read_timeout(Some(patience)).unwrap();
    assert_eq!(last.read(&mut [0; 1]).unwrap(), 0);
    let first = &mut clients[0];
    first.set_read_timeout(Some(patience)).unwrap();
    first.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = [0; 15];
    first.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    drop(clients);
    control.done("PUT", "/bulkhead/v1/stop", Value::Null);
    assert_eq!(running.end(patience).code, Some(0));
}

/// A process that nobody configures says so, and bad configurations are one line.
#[test]
fn bad_configurations_are_one_line() {
    let lab = lab!("bad_configurations_are_one_line");
    let file = |name: &str, text: &str| {
        let path = lab.path(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    for (path, words) in [
        (lab.path("missing.json"), "missing.json"),
        (file("garbage.json", "{"), "garbage.json"),
        (file("twice.json", r#"{"entropy": {}, "entropy": {}}"#), "comes twice"),
        (file("unknown.json", r#"{"boot-sauce": {}}"#), "boot-sauce"),
        (file("none.json", "{}"), "no kernel"),
        (file("net.json", r#"{"network-interfaces": [{"iface_id": "eth0"}]}"#), "network-interfaces"),
    ] {
        lab.run(["vmm", "--config-file", text(&path)]).assert_failed(125, &[words]);
    }
    lab.run(["vmm"]).assert_failed(125, &["--config-file"]);
    lab.run(["vmm", "--api-sock", "/nowhere/api.sock"]).assert_failed(125, &["/nowhere/api.sock"]);
    let long = lab.path(&"x".repeat(120));
    lab.run(["vmm", "--api-sock", text(&long)]).assert_failed(125, &["control socket"]);
    // Whoever listens there has a socket, not a configuration.
    let socket = lab.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    lab.run(["vmm", "--config-file", text(&socket)]).assert_failed(125, &["socket"]);
    lab.assert_clean();
}
