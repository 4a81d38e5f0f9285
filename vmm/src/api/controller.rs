//! What requests do: the state machine behind the control socket.
//!
//! ```text
//!            InstanceStart, snapshot/load                    the machine runs
//!   Draft ────────────────────────────────► Starting(Launch) ────────────────► Started(Vm)
//!     ▲                                        │
//!     └──────── it could not be built ─────────┘
//! ```
//!
//! It does not build machines: [`Controller::take_launch`] hands the order to the loop around it, which answers with
//! [`Controller::started`] or [`Controller::failed`].

use std::os::fd::OwnedFd;
use std::time::Instant;

use devices::virtio::{DEVICES, DeviceError};
use serde_json::{Value, json};

use super::bodies::{self, LoadRequest};
use super::connection::{Handler, Reply};
use super::draft::{Draft, DraftError};
use super::http::{self, Response};
use super::metrics::{Metrics, MetricsError, Timed};
use super::routes::{self, Request};
use super::{DeviceReport, SnapshotKind, Vm, VmState, prometheus};
use crate::config::{SnapshotSource, VmConfig};
use crate::machine::VmmError;
use crate::sandbox;

/// The version of Firecracker's API that this one follows.
pub const API_VERSION: &str = "1.17.0";
/// What a machine is called that was given no name.
pub const DEFAULT_ID: &str = "anonymous-instance";

/// A machine to be built.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// What it is made of.
    pub config: VmConfig,
}

/// A request that cannot be carried out. The client's doing: 400.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}: only before the machine has been started")]
    AlreadyStarted(&'static str),
    #[error("{0}: only after the machine has been started")]
    NotStarted(&'static str),
    #[error("snapshot/load: only instead of a configuration; this machine has one")]
    NotBlank,
    #[error(transparent)]
    Draft(#[from] DraftError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Vm(#[from] VmmError),
}

enum Phase {
    Draft,
    Starting(Option<Launch>),
    Started(Box<dyn Vm>),
}

/// The state behind a control socket.
pub struct Controller {
    id: String,
    host_mib: u64,
    phase: Phase,
    draft: Draft,
    metrics: Metrics,
    load_began: Option<Instant>,
    /// Descriptors that came with the request.
    given: Vec<OwnedFd>,
    stop: bool,
}

impl Controller {
    /// A machine called `id` that is not there yet, with `draft` as its configuration so far; `host_mib` is the host's RAM,
    /// MiB.
    pub fn new(id: String, draft: Draft, host_mib: u64) -> Result<Self, MetricsError> {
        let mut metrics = Metrics::default();
        if let Some(body) = draft.metrics.clone() {
            metrics.set(body)?;
        }
        Ok(Controller {
            id,
            host_mib,
            phase: Phase::Draft,
            draft,
            metrics,
            load_began: None,
            given: Vec::new(),
            stop: false,
        })
    }

    /// Orders the machine of the configuration so far, as `InstanceStart` does.
    pub fn start(&mut self) -> Result<(), DraftError> {
        let config = self.draft.to_config()?;
        config.validate(self.host_mib)?;
        self.phase = Phase::Starting(Some(Launch { config }));
        Ok(())
    }

    /// A machine that is to be built, once.
    pub fn take_launch(&mut self) -> Option<Launch> {
        match &mut self.phase {
            Phase::Starting(launch) => launch.take(),
            _ => None,
        }
    }

    /// It has been built, and this is how to steer it.
    pub fn started(&mut self, vm: Box<dyn Vm>) {
        if let Some(began) = self.load_began.take() {
            self.metrics.time(Timed::Load, began);
        }
        self.phase = Phase::Started(vm);
    }

    /// It could not be built: the configuration can be mended.
    pub fn failed(&mut self) {
        self.load_began = None;
        self.phase = Phase::Draft;
    }

    /// Whether a client wanted an end before there was a machine.
    pub fn wants_stop(&self) -> bool {
        self.stop
    }

    fn apply(&mut self, request: Request) -> Result<Reply, Refused> {
        let body = match request {
            Request::Describe => self.describe(),
            Request::Version => {
                json!({ "firecracker_version": API_VERSION, "bulkhead_version": env!("CARGO_PKG_VERSION") })
            }
            Request::Config => self.describe_config(),
            Request::MachineConfig => {
                let machine = self.vm().map_or_else(|| self.draft.machine.clone(), |vm| vm.config().machine);
                bodies::machine_config(&machine, self.draft.track_dirty_pages)
            }
            Request::Section(key) => self.section(key)?,
            Request::Statistics(key) => self.statistics(key)?,
            Request::Sandbox => {
                let missing = self.vm().and_then(Vm::confined);
                let config = self.vm().filter(|_| missing.is_some()).map(Vm::config);
                let threads = config.map(|config| sandbox::lists(&config)).unwrap_or_default();
                json!({ "confined": missing.is_some(), "missing": missing.unwrap_or_default(), "threads": threads })
            }
            Request::Metrics => self.metrics.tell(&self.devices()),
            Request::Prometheus => {
                let text = prometheus::text(&self.id, &self.metrics, &self.devices());
                return Ok(Reply::Now(Response::text(prometheus::CONTENT_TYPE, text)));
            }
            other => return self.change(other),
        };
        Ok(Reply::Now(Response::ok(body)))
    }

    fn change(&mut self, request: Request) -> Result<Reply, Refused> {
        match request {
            Request::FlushMetrics => {
                let devices = self.devices();
                self.metrics.flush(&self.id, &devices)?;
            }
            Request::Stop => match &mut self.phase {
                Phase::Started(vm) => vm.stop(),
                _ => self.stop = true,
            },
            Request::SetState(_) | Request::CreateSnapshot(_) | Request::UpdateDevice(_) => self.steer(request)?,
            Request::Start => {
                self.before_start("InstanceStart")?;
                self.start()?;
                return Ok(Reply::Later);
            }
            Request::LoadSnapshot(load) => {
                self.load(load)?;
                return Ok(Reply::Later);
            }
            other => self.configure(other)?,
        }
        Ok(Reply::Now(Response::done()))
    }

    /// Requests for a machine that is not there yet.
    fn configure(&mut self, request: Request) -> Result<(), Refused> {
        self.before_start("configuration")?;
        match request {
            Request::SetMachineConfig { body, partial } => self.draft.set_machine(&body, partial, self.host_mib)?,
            Request::SetBootSource(source) => self.draft.boot_source = Some(source),
            Request::SetSerial(serial) => self.draft.serial = serial,
            Request::SetDevice(device) => self.draft.set_device(device)?,
            Request::SetMetrics(body) => {
                self.metrics.set(body.clone())?;
                self.draft.metrics = Some(body);
            }
            // The others have been dealt with by the callers.
            _ => {}
        }
        Ok(())
    }

    /// Requests for a machine that is there.
    fn steer(&mut self, request: Request) -> Result<(), Refused> {
        let what = match &request {
            Request::SetState(_) => "vm",
            Request::CreateSnapshot(_) => "snapshot/create",
            _ => "PATCH of a device",
        };
        let Phase::Started(vm) = &mut self.phase else {
            return Err(Refused::NotStarted(what));
        };
        let began = Instant::now();
        match request {
            Request::SetState(VmState::Paused) => {
                vm.pause()?;
                self.metrics.time(Timed::Pause, began);
            }
            Request::SetState(VmState::Running) => {
                vm.resume()?;
                self.metrics.time(Timed::Resume, began);
            }
            Request::CreateSnapshot(request) => {
                let report = vm.snapshot(&request)?;
                tracing::info!(path = %request.path.display(), ?report, "snapshot");
                let timed = match request.kind {
                    SnapshotKind::Full => Timed::FullSnapshot,
                    SnapshotKind::Diff => Timed::DiffSnapshot,
                };
                self.metrics.time(timed, began);
                self.metrics.snapshot(report);
            }
            Request::UpdateDevice(update) => vm.update_device(&update, std::mem::take(&mut self.given))?,
            _ => {}
        }
        Ok(())
    }

    fn load(&mut self, load: LoadRequest) -> Result<(), Refused> {
        self.before_start("snapshot/load")?;
        if !self.draft.is_blank() {
            return Err(Refused::NotBlank);
        }
        let source = SnapshotSource { path: load.path, resume: load.resume, paging: load.paging };
        self.draft.track_dirty_pages = load.track_dirty_pages;
        let config = Draft { snapshot: Some(source), ..self.draft.clone() }.to_config()?;
        self.phase = Phase::Starting(Some(Launch { config }));
        self.load_began = Some(Instant::now());
        Ok(())
    }

    fn before_start(&self, what: &'static str) -> Result<(), Refused> {
        if matches!(self.phase, Phase::Draft) { Ok(()) } else { Err(Refused::AlreadyStarted(what)) }
    }

    fn vm(&self) -> Option<&dyn Vm> {
        match &self.phase {
            Phase::Started(vm) => Some(vm.as_ref()),
            _ => None,
        }
    }

    fn devices(&self) -> Vec<DeviceReport> {
        self.vm().map(Vm::devices).unwrap_or_default()
    }

    /// A device's section.
    fn section(&self, key: &'static str) -> Result<Value, Refused> {
        let devices = self.vm().map_or_else(|| self.draft.devices.clone(), |vm| vm.config().devices);
        let missing = || DeviceError::Invalid { section: key, reason: "the machine has none".into() };
        Ok(devices.get(key).cloned().ok_or_else(missing)?)
    }

    /// What a device tells.
    fn statistics(&self, key: &'static str) -> Result<Value, Refused> {
        let section = self.section(key)?;
        let vm = self.vm().ok_or(Refused::NotStarted("statistics"))?;
        let silent = || DeviceError::Invalid { section: key, reason: "it has nothing to tell".into() };
        let told = DEVICES.iter().find(|kind| kind.config_key == key).and_then(|kind| kind.told.as_ref());
        Ok((told.ok_or_else(silent)?.tell)(&section, &vm.device_state(key)?)?)
    }

    fn describe(&self) -> Value {
        let state = match self.vm().map(Vm::state) {
            None => "Not started",
            Some(VmState::Running) => "Running",
            Some(VmState::Paused) => "Paused",
        };
        let version = env!("CARGO_PKG_VERSION");
        json!({ "app_name": "Bulkhead", "id": self.id, "state": state, "vmm_version": version })
    }

    fn describe_config(&self) -> Value {
        match self.vm() {
            None => self.draft.describe(),
            Some(vm) => {
                let mut draft = Draft::of(&vm.config());
                draft.track_dirty_pages = self.draft.track_dirty_pages;
                draft.metrics = self.metrics.target().cloned();
                draft.describe()
            }
        }
    }
}

impl Handler for Controller {
    fn give(&mut self, descriptors: Vec<OwnedFd>) {
        self.given = descriptors;
    }

    fn handle(&mut self, request: &http::Request) -> Reply {
        let reply = match routes::route(request) {
            Err(error) => Reply::Now(error.into()),
            Ok(asked) => {
                self.apply(asked).unwrap_or_else(|refused| Reply::Now(Response::fault(400, &refused.to_string())))
            }
        };
        let status = match &reply {
            Reply::Now(response) => response.status,
            Reply::Later => 204,
        };
        self.metrics.count(request.method, status);
        self.given.clear();
        reply
    }
}

#[cfg(test)]
mod tests;
