//! The bodies of requests, with Firecracker's names. What a field asks for either happens or is refused with the field's
//! name; accepted without effect are only values that ask for what is so anyway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::routes::Request;
use super::{SnapshotKind, SnapshotRequest, VmState};
use crate::config::{MachineConfig, Paging, SerialConfig};

/// A body that asks for nothing this monitor does.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Not JSON, or not the JSON that belongs here.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A value that cannot be.
    #[error("{0}")]
    Invalid(String),
}

fn invalid(reason: impl Into<String>) -> BodyError {
    BodyError::Invalid(reason.into())
}

/// `machine-config`. A member that is absent is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineBody {
    /// vCPUs.
    pub vcpu_count: Option<u8>,
    /// Guest RAM, MiB.
    pub mem_size_mib: Option<u64>,
    /// Remembered and told; incremental snapshots do not need it.
    pub track_dirty_pages: Option<bool>,
    smt: Option<bool>,
    cpu_template: Option<String>,
    huge_pages: Option<String>,
}

impl MachineBody {
    /// Reads it, and refuses what would change something.
    pub fn parse(value: Value) -> Result<Self, BodyError> {
        let body: MachineBody = serde_json::from_value(value)?;
        if body.smt == Some(true) {
            return Err(invalid("smt: vCPUs cannot be made hyper-threads of each other; use false"));
        }
        for (key, value) in [("cpu_template", &body.cpu_template), ("huge_pages", &body.huge_pages)] {
            if let Some(other) = value.as_deref().filter(|value| *value != "None") {
                return Err(invalid(format!("{key}: '{other}' is not supported; use \"None\"")));
            }
        }
        if body == MachineBody::default() {
            return Err(invalid("it sets nothing"));
        }
        Ok(body)
    }

    /// As a whole configuration, which names CPUs and memory.
    pub fn complete(self) -> Result<Self, BodyError> {
        match (self.vcpu_count, self.mem_size_mib) {
            (None, _) => Err(invalid("'vcpu_count' is missing")),
            (_, None) => Err(invalid("'mem_size_mib' is missing")),
            _ => Ok(self),
        }
    }
}

/// `machine-config` as it is told: Firecracker's members, those included that have one value here.
pub fn machine_config(machine: &MachineConfig, track_dirty_pages: bool) -> Value {
    serde_json::json!({
        "vcpu_count": machine.vcpu_count, "mem_size_mib": machine.mem_size_mib, "smt": false,
        "track_dirty_pages": track_dirty_pages, "huge_pages": "None",
    })
}

/// `serial`: Firecracker's (`serial_out_path`, or nothing for the process's own stdin and stdout), or ours (`mode`).
pub fn serial(value: Value) -> Result<SerialConfig, BodyError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Theirs {
        serial_out_path: Option<PathBuf>,
    }
    if value.get("mode").is_some() {
        return Ok(serde_json::from_value(value)?);
    }
    let Theirs { serial_out_path } = serde_json::from_value(value)?;
    Ok(serial_out_path.map_or(SerialConfig::Stdio, |path| SerialConfig::Log { path }))
}

/// `actions`.
pub fn action(value: Value) -> Result<Request, BodyError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Action {
        action_type: String,
    }
    let Action { action_type } = serde_json::from_value(value)?;
    match action_type.as_str() {
        "InstanceStart" => Ok(Request::Start),
        "FlushMetrics" => Ok(Request::FlushMetrics),
        "SendCtrlAltDel" => Err(invalid("SendCtrlAltDel: the machine has no keyboard to press it on")),
        other => Err(invalid(format!("action_type '{other}' is unknown; there are InstanceStart and FlushMetrics"))),
    }
}

/// `vm`.
pub fn state(value: Value) -> Result<VmState, BodyError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct State {
        state: String,
    }
    let State { state } = serde_json::from_value(value)?;
    match state.as_str() {
        "Paused" => Ok(VmState::Paused),
        "Resumed" => Ok(VmState::Running),
        other => Err(invalid(format!("state '{other}' is unknown; there are Paused and Resumed"))),
    }
}

/// `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsBody {
    /// A file that lines are added to, or a named pipe.
    pub metrics_path: PathBuf,
    /// Each line says which machine it is of.
    #[serde(default)]
    pub emit_id: bool,
    /// Text that is added to each line.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// A snapshot is one directory, in which the memory has its place: another one cannot be chosen.
fn inside(directory: &Path, file: Option<&Path>, key: &str) -> Result<(), BodyError> {
    if directory.as_os_str().is_empty() {
        return Err(invalid("'snapshot_path' is empty"));
    }
    match file {
        Some(file) if file.parent() != Some(directory) => Err(invalid(format!(
            "{key} {}: a snapshot is one directory here, {}; leave {key} out, or name a file in it",
            file.display(),
            directory.display()
        ))),
        _ => Ok(()),
    }
}

/// `snapshot/create`.
pub fn create_snapshot(value: Value) -> Result<SnapshotRequest, BodyError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Create {
        snapshot_path: PathBuf,
        mem_file_path: Option<PathBuf>,
        #[serde(default)]
        snapshot_type: Kind,
        #[serde(default)]
        base_of_next: bool,
    }
    #[derive(Default, Deserialize)]
    enum Kind {
        #[default]
        Full,
        Diff,
    }
    let body: Create = serde_json::from_value(value)?;
    inside(&body.snapshot_path, body.mem_file_path.as_deref(), "mem_file_path")?;
    let kind = match body.snapshot_type {
        Kind::Full => SnapshotKind::Full,
        Kind::Diff => SnapshotKind::Diff,
    };
    Ok(SnapshotRequest { path: body.snapshot_path, kind, base_of_next: body.base_of_next })
}

/// `snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    /// The snapshot's directory.
    pub path: PathBuf,
    /// Run it at once.
    pub resume: bool,
    /// As in `machine-config`.
    pub track_dirty_pages: bool,
    /// Firecracker's `mem_backend`, as far as it is ours.
    pub paging: Paging,
}

/// `snapshot/load`.
pub fn load_snapshot(value: Value) -> Result<LoadRequest, BodyError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Backend {
        backend_type: String,
        backend_path: PathBuf,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Load {
        snapshot_path: PathBuf,
        mem_file_path: Option<PathBuf>,
        mem_backend: Option<Backend>,
        #[serde(default)]
        resume_vm: bool,
        #[serde(default)]
        track_dirty_pages: bool,
        #[serde(default)]
        enable_diff_snapshots: bool,
        #[serde(default)]
        network_overrides: Vec<Value>,
        vsock_override: Option<Value>,
        #[serde(default)]
        clock_realtime: bool,
        huge_pages: Option<String>,
    }
    let body: Load = serde_json::from_value(value)?;
    inside(&body.snapshot_path, body.mem_file_path.as_deref(), "mem_file_path")?;
    let mut paging = Paging::Map;
    if let Some(backend) = &body.mem_backend {
        paging = match backend.backend_type.as_str() {
            "File" => Paging::Map,
            "Userfault" => Paging::Userfault,
            other => {
                return Err(invalid(format!("mem_backend: '{other}' is not supported; use File or Userfault")));
            }
        };
        inside(&body.snapshot_path, Some(&backend.backend_path), "mem_backend")?;
    }
    let refused = [
        (!body.network_overrides.is_empty(), "network_overrides"),
        (body.vsock_override.is_some(), "vsock_override"),
        (body.clock_realtime, "clock_realtime"),
        (body.huge_pages.is_some_and(|pages| pages != "None" && pages != "Snapshot"), "huge_pages"),
    ];
    if let Some((_, key)) = refused.iter().find(|(asked, _)| *asked) {
        return Err(invalid(format!("{key} is not supported")));
    }
    let track_dirty_pages = body.track_dirty_pages || body.enable_diff_snapshots;
    Ok(LoadRequest { path: body.snapshot_path, resume: body.resume_vm, track_dirty_pages, paging })
}
