//! A machine's process from its control socket: configured, started, steered, snapshotted and ended by a client.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::{Kernel, no_kvm};
use serde_json::{Value, json};
use vmm::ExitReason;
use vmm::session::{Ended, Options, SessionError, begin, run};

/// hlt; jmp to it.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// Long enough for anything here, on any machine: only a hang takes it.
const HANG: Duration = Duration::from_secs(60);

/// A session on a thread of its own.
struct Session {
    socket: PathBuf,
    end: mpsc::Receiver<Result<Ended, SessionError>>,
    _dir: tempfile::TempDir,
}

impl Session {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let (sender, end) = mpsc::channel();
        let path = socket.clone();
        thread::spawn(move || {
            let options = Options { id: "vm-1".into(), socket: Some(path), ..Options::default() };
            let begun = begin(false, false).unwrap();
            drop(sender.send(run(begun, options, &mut |_| {})));
        });
        let session = Session { socket, end, _dir: dir };
        while UnixStream::connect(&session.socket).is_err() {
            assert!(session.end.try_recv().is_err(), "it ended");
            thread::yield_now();
        }
        session
    }

    /// Status and content of the answer.
    fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, content) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(content).unwrap_or(Value::Null))
    }

    fn done(&self, method: &str, path: &str, body: Value) {
        assert_eq!(self.ask(method, path, body), (204, Value::Null), "{method} {path}");
    }

    fn fault(&self, method: &str, path: &str, body: Value) -> String {
        let (status, answer) = self.ask(method, path, body);
        assert_eq!(status, 400, "{method} {path}: {answer}");
        answer["fault_message"].as_str().unwrap().to_owned()
    }

    fn state(&self) -> Value {
        self.ask("GET", "/", Value::Null).1["state"].clone()
    }

    fn boot(&self, kernel: &Path) {
        self.done("PUT", "/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 32 }));
        self.done("PUT", "/boot-source", json!({ "kernel_image_path": kernel }));
    }

    /// Ends it, and finds its socket gone.
    fn stop(self) {
        self.done("PUT", "/bulkhead/v1/stop", Value::Null);
        let ended = self.end.recv_timeout(HANG).expect("it hangs").unwrap();
        assert_eq!((ended.reason, ended.signal), (ExitReason::Stopped, None));
        assert!(!self.socket.exists());
    }
}

fn start() -> Value {
    json!({ "action_type": "InstanceStart" })
}

fn drive(path: &Path) -> Value {
    json!({ "drive_id": "d", "path_on_host": path, "is_root_device": false })
}

#[test]
fn a_client_makes_a_machine_and_steers_it() {
    if no_kvm("a_client_makes_a_machine_and_steers_it") {
        return;
    }
    let kernel = Kernel::new(HALT);
    let dir = tempfile::tempdir().unwrap();
    let (small, large) = (dir.path().join("small"), dir.path().join("large"));
    std::fs::write(&small, [0; 4096]).unwrap();
    std::fs::write(&large, [0; 8192]).unwrap();
    let session = Session::start();
    assert_eq!(session.state(), "Not started");
    session.boot(&kernel.path());
    session.done("PUT", "/drives/d", drive(&small));
    session.done("PUT", "/entropy", json!({}));
    session.done("PUT", "/actions", start());
    assert_eq!(session.state(), "Running");
    session.done("PATCH", "/vm", json!({ "state": "Paused" }));
    assert_eq!(session.state(), "Paused");
    session.done("PATCH", "/vm", json!({ "state": "Resumed" }));
    assert_eq!(session.state(), "Running");

    let change = |path: &Path| json!({ "drive_id": "d", "path_on_host": path });
    assert!(session.fault("PATCH", "/drives/d", change(&dir.path().join("none"))).contains("none"));
    session.done("PATCH", "/drives/d", change(&large));
    let other = json!({ "drive_id": "e", "path_on_host": large });
    assert!(session.fault("PATCH", "/drives/e", other).contains("no device 'e'"));
    let extents = json!({ "drive_id": "d", "path_on_host": null, "extents": [large] });
    assert!(session.fault("PATCH", "/drives/d", extents).contains("another kind"), "a writable disk stays one");
    assert_eq!(session.ask("GET", "/vm/config", Value::Null).1["drives"], json!([drive(&large)]));

    let snapshot = dir.path().join("snapshot");
    session.done("PUT", "/snapshot/create", json!({ "snapshot_path": snapshot }));
    assert_eq!(session.state(), "Running");
    session.stop();

    // What goes on from the snapshot has the disk that the machine had then, in a copy of its own.
    let session = Session::start();
    session.done("PUT", "/snapshot/load", json!({ "snapshot_path": snapshot }));
    assert_eq!(session.state(), "Paused");
    let copy = session.ask("GET", "/vm/config", Value::Null).1["drives"][0].clone();
    let path = PathBuf::from(copy["path_on_host"].as_str().unwrap());
    assert!(copy["drive_id"] == "d" && path != large, "{copy}");
    assert_eq!(std::fs::metadata(path).unwrap().len(), 8192);
    assert_eq!(session.ask("GET", "/machine-config", Value::Null).1["vcpu_count"], 2);
    session.done("PATCH", "/vm", json!({ "state": "Resumed" }));
    assert_eq!(session.state(), "Running");
    session.stop();
}

#[test]
fn a_machine_that_cannot_be_built_can_be_mended() {
    if no_kvm("a_machine_that_cannot_be_built_can_be_mended") {
        return;
    }
    let kernel = Kernel::new(HALT);
    let session = Session::start();
    session.boot(Path::new("/nowhere/kernel"));
    session.done("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": session.socket.with_extension("vsock") }));
    // Twice: the first attempt has left nothing behind that the second would trip over.
    for _ in 0..2 {
        assert!(session.fault("PUT", "/actions", start()).contains("/nowhere/kernel"));
        assert_eq!(session.state(), "Not started");
    }
    session.boot(&kernel.path());
    session.done("PUT", "/actions", start());
    assert!(session.fault("PUT", "/actions", start()).contains("only before"));
    session.stop();
    let session = Session::start();
    let load = json!({ "snapshot_path": "/nowhere/snapshot", "resume_vm": true });
    assert!(session.fault("PUT", "/snapshot/load", load).contains("/nowhere/snapshot"));
    session.stop();
}

#[test]
fn a_session_ends_when_its_machine_does() {
    if no_kvm("a_session_ends_when_its_machine_does") {
        return;
    }
    // mov $1, %al; mov $0x600, %dx; out %al, (%dx)
    let kernel = Kernel::new(&[0xb0, 1, 0x66, 0xba, 0x00, 0x06, 0xee, 0xf4]);
    let session = Session::start();
    session.boot(&kernel.path());
    // The answer arrives although the process's work is over a moment later.
    session.done("PUT", "/actions", start());
    let ended = session.end.recv_timeout(HANG).expect("it hangs").unwrap();
    assert_eq!((ended.reason, ended.signal), (ExitReason::PowerOff, None));
    assert!(!session.socket.exists());
}
