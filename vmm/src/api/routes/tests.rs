//! The table against Firecracker's API: every path and method there either asks for something here or says that it is
//! missing.

use proptest::prelude::*;

use super::*;
use crate::api::SnapshotKind;
use crate::config::Paging;

fn ask(method: &str, target: &str, body: &str) -> Result<Request, RouteError> {
    route(&http::Request { method, target, body: body.as_bytes(), keep_alive: true })
}

fn reason(method: &str, target: &str, body: &str) -> String {
    ask(method, target, body).expect_err(body).to_string()
}

/// All operations of Firecracker's API 1.17 that have something behind them here, each with a body it takes.
const THERE: &[(&str, &str, &str)] = &[
    ("GET", "/", ""),
    ("GET", "/version", ""),
    ("GET", "/vm/config", ""),
    ("GET", "/machine-config", ""),
    ("PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 256, "smt": false}"#),
    ("PATCH", "/machine-config", r#"{"mem_size_mib": 256}"#),
    ("PUT", "/boot-source", r#"{"kernel_image_path": "/k", "boot_args": null}"#),
    ("PUT", "/drives/root_1", r#"{"drive_id": "root_1", "path_on_host": "/d", "is_root_device": true}"#),
    ("PUT", "/network-interfaces/eth0", r#"{"iface_id": "eth0", "host_dev_name": "tap0", "rx_rate_limiter": null}"#),
    ("PATCH", "/network-interfaces/eth0", r#"{"iface_id": "eth0", "host_dev_name": "tap1"}"#),
    ("PATCH", "/network-interfaces/eth0", r#"{"iface_id": "eth0", "egress": ["10.0.0.0/8:80"]}"#),
    ("PATCH", "/drives/root_1", r#"{"drive_id": "root_1", "path_on_host": "/e", "rate_limiter": null}"#),
    ("PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "/s", "vsock_id": "x"}"#),
    ("PUT", "/entropy", "{}"),
    ("PATCH", "/entropy", r#"{"rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}"#),
    ("GET", "/balloon", ""),
    (
        "PUT",
        "/balloon",
        r#"{"amount_mib": 1, "deflate_on_oom": false, "stats_polling_interval_s": 1, "free_page_hinting": false,
            "free_page_reporting": true}"#,
    ),
    ("PATCH", "/balloon", r#"{"amount_mib": 2}"#),
    ("PUT", "/pmem/p0", r#"{"id": "p0", "path_on_host": "/p", "root_device": false, "read_only": true}"#),
    ("GET", "/balloon/statistics", ""),
    ("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 2}"#),
    ("PUT", "/serial", r#"{"serial_out_path": "/log"}"#),
    ("PUT", "/metrics", r#"{"metrics_path": "/m"}"#),
    ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
    ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
    ("PATCH", "/vm", r#"{"state": "Paused"}"#),
    ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
    ("PUT", "/snapshot/create", r#"{"snapshot_path": "/s"}"#),
    ("PUT", "/snapshot/load", r#"{"snapshot_path": "/s"}"#),
    ("GET", "/bulkhead/v1/metrics", ""),
    ("GET", "/bulkhead/v1/sandbox", ""),
    ("PUT", "/bulkhead/v1/stop", ""),
    ("PUT", "/bulkhead/v1/stop", "null"),
];

/// And all others.
const MISSING: &[(&str, &str)] = &[
    ("PATCH", "/balloon/hinting/start"),
    ("GET", "/balloon/hinting/status"),
    ("PATCH", "/balloon/hinting/stop"),
    ("PUT", "/cpu-config"),
    ("PUT", "/logger"),
    ("GET", "/mmds"),
    ("PUT", "/mmds"),
    ("PATCH", "/mmds"),
    ("PUT", "/mmds/config"),
    ("GET", "/hotplug/memory"),
    ("PUT", "/hotplug/memory"),
    ("PATCH", "/hotplug/memory"),
];

#[test]
fn what_is_there_is_asked_for() {
    for (method, path, body) in THERE {
        ask(method, path, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
    }
}

#[test]
fn what_is_missing_says_so() {
    for (method, path) in MISSING {
        let error = ask(method, path, "{}").unwrap_err();
        assert!(matches!(error, RouteError::Absent { .. }), "{method} {path}: {error}");
        assert!(error.to_string().contains("not supported yet"), "{error}");
        assert_eq!(Response::from(error).status, 400);
    }
}

#[test]
fn another_path_is_404_and_another_method_405() {
    for path in [
        "/boot-source/",
        "/drives",
        "/drives/",
        "/drives/a/b",
        "/drives/a%20b",
        "/vsock/a",
        "/vsock/statistics",
        "/balloon/",
        "/balloon/x",
        "/balloon/statistics/x",
        "/balloon/hintings",
        "//",
        "x",
        "",
        "/?a=b",
    ] {
        let error = ask("PUT", path, "{}").unwrap_err();
        assert_eq!(Response::from(error).status, 404, "{path}");
    }
    for (method, path, allow) in [
        ("DELETE", "/", "GET"),
        ("GET", "/drives/a", "PUT, PATCH"),
        ("get", "/version", "GET"),
        ("POST", "/machine-config", "GET, PUT, PATCH"),
        ("PATCH", "/vsock", "PUT"),
        ("GET", "/vsock", "PUT"),
        ("POST", "/balloon", "GET, PUT, PATCH"),
        ("PUT", "/balloon/statistics", "GET, PATCH"),
        ("HEAD", "/", "GET"),
    ] {
        let response = Response::from(ask(method, path, "").unwrap_err());
        assert_eq!((response.status, response.allow.as_ref()), (405, allow), "{method} {path}");
    }
}

#[test]
fn a_message_quotes_only_so_much_of_a_client() {
    let long = format!("/{}", "x".repeat(10_000));
    assert!(reason("GET", &long, "").len() < 200);
    assert!(reason(&"X".repeat(10_000), "/", "").len() < 200);
}

#[test]
fn bodies_that_are_wrong_name_what_is() {
    let id = "is not the id in the path";
    for (method, path, body, words) in [
        ("GET", "/", "{}", "no body"),
        ("PUT", "/boot-source", "", "body is missing"),
        ("PUT", "/boot-source", "{", "EOF"),
        ("PUT", "/boot-source", "{}", "kernel_image_path"),
        ("PUT", "/boot-source", r#"{"kernel_image_path": "/k", "kernel_image_path": "/j"}"#, "comes twice"),
        ("PUT", "/boot-source", r#"{"kernel_image_path": "/k", "bootargs": ""}"#, "bootargs"),
        ("PUT", "/boot-source", "[]", "expected struct"),
        ("PUT", "/drives/a", r#"{"path_on_host": "/d"}"#, "'drive_id' is missing"),
        ("PUT", "/drives/a", r#"{"drive_id": "b", "path_on_host": "/d"}"#, id),
        ("PUT", "/drives/a", r#"{"drive_id": "a"}"#, "either path_on_host or extents"),
        ("PUT", "/drives/a", r#"{"drive_id": "a", "path_on_host": "/d", "rate_limiter": {"bps": 1}}"#, "bps"),
        ("PUT", "/drives/a", "7", "an object"),
        ("PATCH", "/drives/a", r#"{"drive_id": "b", "path_on_host": "/d"}"#, id),
        ("PATCH", "/drives/a", r#"{"drive_id": "a", "is_read_only": false}"#, "'is_read_only' cannot change"),
        ("PUT", "/vsock", r#"{"guest_cid": 2, "uds_path": "/s"}"#, "guest_cid"),
        ("PUT", "/entropy", r#"{"rate_limiter": {"ops": {"size": 1}}}"#, "refill_time"),
        ("GET", "/balloon", "{}", "no body"),
        ("GET", "/balloon/statistics", "{}", "no body"),
        ("PUT", "/balloon", r#"{"amount_mib": 1}"#, "deflate_on_oom"),
        (
            "PUT",
            "/balloon",
            r#"{"amount_mib": 1, "deflate_on_oom": true, "free_page_hinting": true}"#,
            "free_page_hinting",
        ),
        ("PATCH", "/balloon", r#"{"amount_mib": 1, "deflate_on_oom": true}"#, "'deflate_on_oom' cannot change"),
        ("PATCH", "/balloon/statistics", r#"{"amount_mib": 1}"#, "'amount_mib' cannot change"),
        ("PUT", "/machine-config", r#"{"vcpu_count": 1}"#, "'mem_size_mib' is missing"),
        ("PUT", "/machine-config", r#"{"mem_size_mib": 128}"#, "'vcpu_count' is missing"),
        ("PUT", "/machine-config", r#"{"vcpu_count": 1000, "mem_size_mib": 1}"#, "u8"),
        ("PATCH", "/machine-config", "{}", "sets nothing"),
        ("PATCH", "/machine-config", r#"{"smt": true}"#, "smt"),
        ("PATCH", "/machine-config", r#"{"cpu_template": "T2"}"#, "cpu_template"),
        ("PATCH", "/machine-config", r#"{"huge_pages": "2M"}"#, "huge_pages"),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#, "no keyboard"),
        ("PUT", "/actions", r#"{"action_type": "Dance"}"#, "Dance"),
        ("PATCH", "/vm", r#"{"state": "Running"}"#, "Running"),
        ("PUT", "/metrics", r#"{"metrics_path": "/m", "properties": {"a": 1}}"#, "string"),
        ("PUT", "/snapshot/create", r#"{"snapshot_path": "/s", "snapshot_type": "Half"}"#, "Half"),
        ("PUT", "/snapshot/create", r#"{"snapshot_path": "/s/v", "mem_file_path": "/s/m"}"#, "one directory"),
        ("PUT", "/snapshot/create", r#"{"snapshot_path": ""}"#, "empty"),
        ("PUT", "/snapshot/load", r#"{"snapshot_path": "/s", "clock_realtime": true}"#, "clock_realtime"),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "Uffd", "backend_path": "/s/u"}}"#,
            "Uffd",
        ),
        ("PUT", "/snapshot/load", r#"{"snapshot_path": "/s", "network_overrides": [{}]}"#, "network_overrides"),
    ] {
        let said = reason(method, path, body);
        assert!(said.contains(words) && said.starts_with(path), "{method} {path} {body}: {said}");
        assert_eq!(Response::from(ask(method, path, body).unwrap_err()).status, 400);
    }
}

#[test]
fn a_snapshot_is_one_directory() {
    let body = r#"{"snapshot_path": "/s", "mem_file_path": "/s/memory", "snapshot_type": "Diff"}"#;
    let wanted = SnapshotRequest { path: "/s".into(), kind: SnapshotKind::Diff, base_of_next: false };
    assert_eq!(ask("PUT", "/snapshot/create", body), Ok(Request::CreateSnapshot(wanted)));
    let body = r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "File", "backend_path": "/s/memory"},
                   "enable_diff_snapshots": true, "resume_vm": true, "network_overrides": [], "huge_pages": "None"}"#;
    let wanted = LoadRequest { path: "/s".into(), resume: true, track_dirty_pages: true, paging: Paging::Map };
    assert_eq!(ask("PUT", "/snapshot/load", body), Ok(Request::LoadSnapshot(wanted.clone())));
    let body = body.replace("File", "Userfault");
    let wanted = LoadRequest { paging: Paging::Userfault, ..wanted };
    assert_eq!(ask("PUT", "/snapshot/load", &body), Ok(Request::LoadSnapshot(wanted)));
}

#[test]
fn a_change_of_a_drive_names_what_changes() {
    let body = r#"{"drive_id": "a", "path_on_host": null, "extents": ["/x"], "rate_limiter": null}"#;
    let Ok(Request::UpdateDevice(update)) = ask("PATCH", "/drives/a", body) else { panic!() };
    assert_eq!((update.section, update.id.as_str()), ("drives", "a"));
    assert_eq!(Value::Object(update.changes), serde_json::json!({ "path_on_host": null, "extents": ["/x"] }));
    // Clients that say nothing of a limit do not mean to lift it.
    let body = r#"{"drive_id": "a", "rate_limiter": {"ops": {"size": 1, "refill_time": 2, "one_time_burst": null}, "bandwidth": null}}"#;
    let Ok(Request::UpdateDevice(update)) = ask("PATCH", "/drives/a", body) else { panic!() };
    let limiter = serde_json::json!({ "rate_limiter": { "ops": { "size": 1, "refill_time": 2 } } });
    assert_eq!(Value::Object(update.changes), limiter);
    // Nor do those that say nothing of where packets may go.
    let body = r#"{"iface_id": "eth0", "egress": null}"#;
    let Ok(Request::UpdateDevice(update)) = ask("PATCH", "/network-interfaces/eth0", body) else { panic!() };
    assert!(update.changes.is_empty());
}

#[test]
fn serial_is_theirs_or_ours() {
    let serial = |body| match ask("PUT", "/serial", body) {
        Ok(Request::SetSerial(serial)) => serial,
        other => panic!("{body}: {other:?}"),
    };
    assert_eq!(serial("{}"), SerialConfig::Stdio);
    assert_eq!(serial(r#"{"serial_out_path": "/l"}"#), SerialConfig::Log { path: "/l".into() });
    assert_eq!(serial(r#"{"mode": "log", "path": "/l"}"#), SerialConfig::Log { path: "/l".into() });
    assert_eq!(serial(r#"{"mode": "off"}"#), SerialConfig::Off);
}

proptest! {
    /// Text of any kind is a request or an error.
    #[test]
    fn any_text_is_an_answer(line in 0..THERE.len(), body in ".*", cut in 0usize..60, tail in ".{0,4}") {
        let (method, path, good) = THERE[line];
        let _ = ask(method, path, &body);
        let _ = ask(method, &format!("{path}{tail}"), good);
        let start: String = good.chars().take(cut).collect();
        let _ = ask(method, path, &format!("{start}{tail}"));
    }
}
