//! Each request in each state, against a machine that only remembers what it was told.

use std::sync::{Arc, Mutex};

use devices::virtio::DeviceName;
use devices::virtio::metrics::DeviceReading;

use super::*;
use crate::api::http::Content;
use crate::api::{DeviceReport, DeviceUpdate, SnapshotReport, SnapshotRequest};
use crate::sandbox::Missing;

#[derive(Default)]
struct Told {
    calls: Vec<String>,
    fail: bool,
}

struct Fake {
    told: Arc<Mutex<Told>>,
    state: VmState,
    config: VmConfig,
}

impl Fake {
    fn told(&self, call: impl Into<String>) -> Result<(), VmmError> {
        let mut told = self.told.lock().unwrap();
        told.calls.push(call.into());
        if told.fail { Err(VmmError::TooManyDevices { asked: 2, most: 1 }) } else { Ok(()) }
    }
}

impl Vm for Fake {
    fn state(&self) -> VmState {
        self.state
    }
    fn config(&self) -> VmConfig {
        self.config.clone()
    }
    fn devices(&self) -> Vec<DeviceReport> {
        let name = DeviceName { kind: "blk", id: Some("a".into()) };
        vec![DeviceReport { name, reading: DeviceReading { interrupts: 7, ..DeviceReading::default() } }]
    }
    fn confined(&self) -> Option<Missing> {
        Some(vec!["a part".into()])
    }
    fn pause(&mut self) -> Result<(), VmmError> {
        self.told("pause")?;
        self.state = VmState::Paused;
        Ok(())
    }
    fn resume(&mut self) -> Result<(), VmmError> {
        self.told("resume")?;
        self.state = VmState::Running;
        Ok(())
    }
    fn snapshot(&mut self, request: &SnapshotRequest) -> Result<SnapshotReport, VmmError> {
        self.told(format!("snapshot {} {:?}", request.path.display(), request.kind))?;
        Ok(SnapshotReport { bytes: 1, pause_ns: 2 })
    }
    fn device_state(&self, section: &'static str) -> Result<Value, VmmError> {
        self.told(format!("state {section}"))?;
        Ok(json!({ "actual": 300, "statistics": { "free_memory": 5 } }))
    }
    fn update_device(&mut self, update: &DeviceUpdate, _: Vec<OwnedFd>) -> Result<(), VmmError> {
        self.told(format!("update {} {}", update.section, update.id))
    }
    fn stop(&mut self) {
        let _ = self.told("stop");
    }
}

struct Rig {
    controller: Controller,
    told: Arc<Mutex<Told>>,
}

impl Rig {
    fn new() -> Self {
        let controller = Controller::new("vm-1".into(), Draft::default(), 1024).unwrap();
        Rig { controller, told: Arc::default() }
    }

    /// One that has been started.
    fn started() -> Self {
        let mut rig = Rig::new();
        rig.done("PUT", "/boot-source", r#"{"kernel_image_path": "/k"}"#);
        rig.done("PUT", "/drives/a", r#"{"drive_id": "a", "path_on_host": "/d", "is_root_device": true}"#);
        rig.start();
        rig
    }

    fn start(&mut self) {
        assert_eq!(self.ask("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#), Reply::Later);
        let launch = self.controller.take_launch().unwrap();
        let fake = Fake { told: self.told.clone(), state: VmState::Running, config: launch.config };
        self.controller.started(Box::new(fake));
    }

    fn ask(&mut self, method: &str, target: &str, body: &str) -> Reply {
        self.controller.handle(&http::Request { method, target, body: body.as_bytes(), keep_alive: true })
    }

    fn now(&mut self, method: &str, target: &str, body: &str) -> Response {
        match self.ask(method, target, body) {
            Reply::Now(response) => response,
            Reply::Later => panic!("{method} {target}: later"),
        }
    }

    fn done(&mut self, method: &str, target: &str, body: &str) {
        assert_eq!(self.now(method, target, body), Response::done(), "{method} {target} {body}");
    }

    fn get(&mut self, target: &str) -> Value {
        let response = self.now("GET", target, "");
        assert_eq!(response.status, 200);
        json_of(response)
    }

    fn fault(&mut self, method: &str, target: &str, body: &str) -> String {
        let response = self.now(method, target, body);
        assert_eq!(response.status, 400, "{method} {target} {body}");
        json_of(response)["fault_message"].as_str().unwrap().to_owned()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap().calls)
    }
}

fn json_of(response: Response) -> Value {
    match response.body {
        Some(Content::Json(value)) => value,
        other => panic!("{other:?}"),
    }
}

const START: (&str, &str, &str) = ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
const CONFIGURE: &[(&str, &str, &str)] = &[
    ("PUT", "/boot-source", r#"{"kernel_image_path": "/k"}"#),
    ("PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 256}"#),
    ("PATCH", "/machine-config", r#"{"vcpu_count": 3}"#),
    ("PUT", "/drives/a", r#"{"drive_id": "a", "path_on_host": "/d", "is_root_device": false}"#),
    ("PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "/s"}"#),
    ("PUT", "/entropy", "{}"),
    ("PUT", "/balloon", r#"{"amount_mib": 2, "deflate_on_oom": true, "stats_polling_interval_s": 1}"#),
    ("PUT", "/serial", "{}"),
];
const STEER: &[(&str, &str, &str, &str)] = &[
    ("PATCH", "/vm", r#"{"state": "Paused"}"#, "pause"),
    ("PATCH", "/vm", r#"{"state": "Resumed"}"#, "resume"),
    ("PUT", "/snapshot/create", r#"{"snapshot_path": "/s", "snapshot_type": "Diff"}"#, "snapshot /s Diff"),
    ("PATCH", "/drives/a", r#"{"drive_id": "a", "path_on_host": "/e"}"#, "update drives a"),
    ("PATCH", "/balloon", r#"{"amount_mib": 3}"#, "update balloon "),
    ("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 2}"#, "update balloon "),
];

#[test]
fn a_machine_is_configured_started_and_steered() {
    let mut rig = Rig::new();
    assert_eq!(rig.get("/")["state"], "Not started");
    assert_eq!(rig.get("/")["id"], "vm-1");
    assert_eq!(rig.get("/machine-config")["mem_size_mib"], 128);
    for (method, path, body) in CONFIGURE {
        rig.done(method, path, body);
    }
    let config = rig.get("/vm/config");
    assert_eq!((&config["machine-config"]["vcpu_count"], &config["vsock"]["guest_cid"]), (&json!(3), &json!(3)));
    assert_eq!((&config["machine-config"]["mem_size_mib"], &config["serial"]["mode"]), (&json!(256), &json!("stdio")));
    rig.start();
    assert_eq!(rig.get("/")["state"], "Running");
    for (method, path, body, call) in STEER {
        rig.done(method, path, body);
        assert_eq!(rig.calls(), [*call]);
    }
    rig.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    assert_eq!(rig.get("/")["state"], "Paused");
    assert_eq!(rig.get("/vm/config"), config, "as it was set");
    let sandbox = rig.get("/bulkhead/v1/sandbox");
    assert_eq!((&sandbox["confined"], &sandbox["missing"]), (&json!(true), &json!(["a part"])));
    // Threads have lists that differ: what starts others may do what they may.
    let threads = sandbox["threads"].as_array().unwrap();
    let calls = |name: &str| threads.iter().find(|list| list["thread"] == name).unwrap()["syscalls"].as_u64().unwrap();
    assert!(calls("main") > 20 && calls("requests") > calls("events") && calls("nursery") > calls("requests"));
    rig.calls();
    rig.done("PUT", "/bulkhead/v1/stop", "");
    assert_eq!(rig.calls(), ["stop"]);
}

#[test]
fn a_balloon_tells_what_it_is_and_has() {
    let mut rig = Rig::new();
    assert!(rig.fault("GET", "/balloon", "").contains("balloon: the machine has none"));
    assert!(rig.fault("GET", "/balloon/statistics", "").contains("balloon: the machine has none"));
    rig.done("PUT", "/balloon", r#"{"amount_mib": 2, "deflate_on_oom": true, "stats_polling_interval_s": 1}"#);
    assert_eq!(rig.get("/balloon")["amount_mib"], 2);
    assert!(rig.fault("GET", "/balloon/statistics", "").contains("only after"));
    rig.done("PUT", "/boot-source", r#"{"kernel_image_path": "/k"}"#);
    rig.start();
    assert_eq!(rig.get("/balloon")["deflate_on_oom"], true);
    let told = json!({ "target_pages": 512, "target_mib": 2, "actual_pages": 300, "actual_mib": 1, "free_memory": 5 });
    assert_eq!(rig.get("/balloon/statistics"), told);
    assert_eq!(rig.calls(), ["state balloon"]);
    // One that was not asked for them before the start has none.
    let mut rig = Rig::new();
    rig.done("PUT", "/balloon", r#"{"amount_mib": 2, "deflate_on_oom": true}"#);
    rig.done("PUT", "/boot-source", r#"{"kernel_image_path": "/k"}"#);
    rig.start();
    assert!(rig.fault("GET", "/balloon/statistics", "").contains("stats_polling_interval_s"));
}

#[test]
fn group_10_what_is_for_before_is_refused_after() {
    let mut rig = Rig::started();
    for (method, path, body) in CONFIGURE.iter().chain([&START]) {
        assert!(rig.fault(method, path, body).contains("only before"), "{path}");
    }
    assert!(rig.fault("PUT", "/snapshot/load", r#"{"snapshot_path": "/s"}"#).contains("only before"));
    assert!(rig.calls().is_empty());
}

#[test]
fn group_10_what_is_for_after_is_refused_before() {
    let mut rig = Rig::new();
    for (method, path, body, _) in STEER {
        assert!(rig.fault(method, path, body).contains("only after"), "{path}");
    }
    assert!(rig.fault(START.0, START.1, START.2).contains("no kernel"));
    assert!(!rig.controller.wants_stop());
    rig.done("PUT", "/bulkhead/v1/stop", "");
    assert!(rig.controller.wants_stop());
}

#[test]
fn a_machine_that_could_not_be_built_can_be_mended() {
    let mut rig = Rig::new();
    rig.done("PUT", "/boot-source", r#"{"kernel_image_path": "/k"}"#);
    assert_eq!(rig.ask(START.0, START.1, START.2), Reply::Later);
    assert!(rig.controller.take_launch().is_some() && rig.controller.take_launch().is_none());
    assert_eq!(rig.get("/")["state"], "Not started");
    assert!(rig.fault(START.0, START.1, START.2).contains("only before"), "it is being started");
    assert!(rig.fault("PUT", "/entropy", "{}").contains("only before"));
    rig.controller.failed();
    rig.done("PUT", "/boot-source", r#"{"kernel_image_path": "/other"}"#);
    assert_eq!(rig.ask(START.0, START.1, START.2), Reply::Later);
}

#[test]
fn sizes_are_checked_when_they_are_set() {
    let mut rig = Rig::new();
    for body in [
        r#"{"vcpu_count": 0, "mem_size_mib": 128}"#,
        r#"{"vcpu_count": 33, "mem_size_mib": 128}"#,
        r#"{"vcpu_count": 1, "mem_size_mib": 2048}"#,
        r#"{"vcpu_count": 1, "mem_size_mib": 1}"#,
    ] {
        assert!(rig.fault("PUT", "/machine-config", body).contains("machine-config"), "{body}");
    }
    assert_eq!(rig.get("/machine-config")["vcpu_count"], 1, "nothing of it was set");
    rig.done("PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 256, "track_dirty_pages": true}"#);
    rig.done("PATCH", "/machine-config", r#"{"vcpu_count": 4}"#);
    let machine = rig.get("/machine-config");
    assert_eq!((&machine["mem_size_mib"], &machine["track_dirty_pages"]), (&json!(256), &json!(true)));
    rig.done("PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 256}"#);
    assert_eq!(rig.get("/machine-config")["track_dirty_pages"], false, "a PUT sets all of it");
}

#[test]
fn what_the_machine_refuses_is_told() {
    let mut rig = Rig::started();
    rig.told.lock().unwrap().fail = true;
    for (method, path, body, _) in STEER {
        assert!(rig.fault(method, path, body).contains("2 devices"), "{path}");
    }
    assert_eq!(rig.get("/")["state"], "Running");
}

#[test]
fn a_snapshot_is_loaded_into_nothing_else() {
    let load = ("PUT", "/snapshot/load", r#"{"snapshot_path": "/s"}"#);
    let mut rig = Rig::new();
    rig.done("PUT", "/entropy", "{}");
    assert!(rig.fault(load.0, load.1, load.2).contains("instead of a configuration"));
    let mut rig = Rig::new();
    // Where the console and metrics go belongs to this process, not to the machine.
    rig.done("PUT", "/serial", r#"{"mode": "off"}"#);
    assert_eq!(rig.ask(load.0, load.1, load.2), Reply::Later);
    let launch = rig.controller.take_launch().unwrap();
    let source = launch.config.snapshot.unwrap();
    assert_eq!((source.path.to_str(), source.resume), (Some("/s"), false), "paused until it is resumed");
    rig.controller.failed();
    let resumed = r#"{"snapshot_path": "/s", "resume_vm": true}"#;
    assert_eq!(rig.ask("PUT", "/snapshot/load", resumed), Reply::Later);
    assert!(rig.controller.take_launch().unwrap().config.snapshot.unwrap().resume);
}

#[test]
fn metrics_are_counted_told_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let mut rig = Rig::started();
    let flush = ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#);
    assert!(rig.fault(flush.0, flush.1, flush.2).contains("set /metrics"));
    let mut rig = Rig::new();
    rig.done("PUT", "/metrics", &json!({ "metrics_path": path, "emit_id": true }).to_string());
    assert!(rig.fault("PUT", "/metrics", &json!({ "metrics_path": path }).to_string()).contains("already"));
    rig.done("PUT", "/boot-source", r#"{"kernel_image_path": "/k"}"#);
    rig.start();
    rig.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    rig.done(flush.0, flush.1, flush.2);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&line["id"], &line["api_requests"]["failed"]), (&json!("vm-1"), &json!(1)));
    assert_eq!((&line["devices"][0]["id"], &line["devices"][0]["interrupts"]), (&json!("a"), &json!(7)));
    let told = rig.get("/bulkhead/v1/metrics");
    assert_eq!((&told["api_requests"]["patch"], &told["devices"][0]["kind"]), (&json!(1), &json!("blk")));
    let text = rig.now("GET", "/bulkhead/v1/metrics/prometheus", "");
    let Some(Content::Text { kind, text }) = text.body else { panic!("{text:?}") };
    assert!(kind.starts_with("text/plain; version=0.0.4") && text.contains("vm=\"vm-1\""), "{kind}");
    assert!(text.contains("bulkhead_device_interrupts_total{vm=\"vm-1\",kind=\"blk\",id=\"a\"} 7\n"), "{text}");
    assert_eq!(Rig::new().get("/bulkhead/v1/metrics")["devices"], json!([]), "there is no machine yet");
    assert_eq!(rig.get("/vm/config")["metrics"]["metrics_path"], json!(path));
}

#[test]
fn the_version_is_that_of_the_api_and_ours() {
    let version = Rig::new().get("/version");
    assert_eq!(version["firecracker_version"], API_VERSION);
    assert_eq!(version["bulkhead_version"], env!("CARGO_PKG_VERSION"));
}
