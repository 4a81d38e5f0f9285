//! From method, path and body to what is asked for. Pure: nothing is done, and nothing but the text decides.
//!
//! A route is a line in a table: [`ROUTES`] here, one for each device in the device table, and those of Firecracker's API
//! that have nothing behind them yet in [`ABSENT`], so that a client learns what is missing.

use devices::virtio::table::Told;
use devices::virtio::{DEVICES, DeviceKind};
use serde_json::{Map, Value};

use super::bodies::{self, BodyError, LoadRequest, MachineBody, MetricsBody};
use super::http::{self, Response};
use super::{DeviceUpdate, SnapshotRequest, VmState, json};
use crate::config::{BootSource, SerialConfig};

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// `GET /`: which machine this is.
    Describe,
    /// `GET /version`.
    Version,
    /// `GET /vm/config`.
    Config,
    /// `GET /machine-config`.
    MachineConfig,
    /// `PUT /machine-config` replaces it, `PATCH` changes what it names.
    SetMachineConfig {
        /// What is set.
        body: MachineBody,
        /// What it does not name stays.
        partial: bool,
    },
    /// `PUT /boot-source`.
    SetBootSource(BootSource),
    /// `PUT /serial`.
    SetSerial(SerialConfig),
    /// `PUT` of a device.
    SetDevice(DeviceUpdate),
    /// `PATCH` of a device.
    UpdateDevice(DeviceUpdate),
    /// `GET` of the section of a device that has something to tell.
    Section(&'static str),
    /// `GET` of what the device of a section tells.
    Statistics(&'static str),
    /// `PUT /actions`, `InstanceStart`.
    Start,
    /// `PUT /actions`, `FlushMetrics`.
    FlushMetrics,
    /// `PUT /metrics`.
    SetMetrics(MetricsBody),
    /// `PATCH /vm`.
    SetState(VmState),
    /// `PUT /snapshot/create`.
    CreateSnapshot(SnapshotRequest),
    /// `PUT /snapshot/load`.
    LoadSnapshot(LoadRequest),
    /// `GET /bulkhead/v1/sandbox`.
    Sandbox,
    /// `GET /bulkhead/v1/metrics`.
    Metrics,
    /// `GET /bulkhead/v1/metrics/prometheus`.
    Prometheus,
    /// `PUT /bulkhead/v1/stop`.
    Stop,
}

/// Why a request is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such path.
    #[error("{0}: there is no such path")]
    Path(String),
    /// The path does not take the method.
    #[error("{path} does not take {method}, but {allow}")]
    Method {
        /// The path.
        path: String,
        /// The method.
        method: String,
        /// What it takes.
        allow: String,
    },
    /// Part of Firecracker's API, and not of this monitor.
    #[error("{path}: {what} not supported yet")]
    Absent {
        /// The path.
        path: String,
        /// What there is none of, and a verb.
        what: &'static str,
    },
    /// The body is not what the path takes.
    #[error("{path}: {reason}")]
    Body {
        /// The path.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl From<RouteError> for Response {
    fn from(error: RouteError) -> Self {
        let status = match &error {
            RouteError::Path(_) => 404,
            RouteError::Method { .. } => 405,
            RouteError::Absent { .. } | RouteError::Body { .. } => 400,
        };
        let mut response = Response::fault(status, &error.to_string());
        if let RouteError::Method { allow, .. } = error {
            response.allow = allow.into();
        }
        response
    }
}

type Parse = fn(Value) -> Result<Request, BodyError>;

/// What a route does with the body.
#[derive(Clone, Copy)]
enum Body {
    /// There must be none.
    None(fn() -> Request),
    /// JSON.
    Json(Parse),
}

/// One line of the table.
struct Route {
    method: &'static str,
    path: &'static str,
    body: Body,
}

const fn get(path: &'static str, request: fn() -> Request) -> Route {
    Route { method: "GET", path, body: Body::None(request) }
}

const fn put(path: &'static str, parse: Parse) -> Route {
    Route { method: "PUT", path, body: Body::Json(parse) }
}

const fn patch(path: &'static str, parse: Parse) -> Route {
    Route { method: "PATCH", path, body: Body::Json(parse) }
}

/// What there is, besides devices.
const ROUTES: &[Route] = &[
    get("/", || Request::Describe),
    get("/version", || Request::Version),
    get("/vm/config", || Request::Config),
    patch("/vm", |body| bodies::state(body).map(Request::SetState)),
    get("/machine-config", || Request::MachineConfig),
    put("/machine-config", |body| {
        Ok(Request::SetMachineConfig { body: MachineBody::parse(body)?.complete()?, partial: false })
    }),
    patch("/machine-config", |body| Ok(Request::SetMachineConfig { body: MachineBody::parse(body)?, partial: true })),
    put("/boot-source", |body| Ok(Request::SetBootSource(serde_json::from_value(body)?))),
    put("/serial", |body| bodies::serial(body).map(Request::SetSerial)),
    put("/actions", bodies::action),
    put("/metrics", |body| Ok(Request::SetMetrics(serde_json::from_value(body)?))),
    put("/snapshot/create", |body| bodies::create_snapshot(body).map(Request::CreateSnapshot)),
    put("/snapshot/load", |body| bodies::load_snapshot(body).map(Request::LoadSnapshot)),
    get("/bulkhead/v1/sandbox", || Request::Sandbox),
    get("/bulkhead/v1/metrics", || Request::Metrics),
    get("/bulkhead/v1/metrics/prometheus", || Request::Prometheus),
    Route { method: "PUT", path: "/bulkhead/v1/stop", body: Body::None(|| Request::Stop) },
];

/// Parts of Firecracker's API that nothing is behind: what their paths begin with, key of their section in its
/// configuration file, what there is none of. One that gets a device has a line in the device table, which comes first.
const ABSENT: &[(&str, &str, &str)] = &[
    ("balloon/hinting", "balloon", "free page hints are"),
    ("cpu-config", "cpu-config", "CPU templates are"),
    ("hotplug", "memory-hotplug", "hot-plugging is"),
    ("logger", "logger", "a log per machine is (set BULKHEAD_LOG in the environment instead)"),
    ("mmds", "mmds-config", "a metadata service is"),
];

/// What a section of Firecracker's configuration file would be for, if there were such a thing here.
pub fn absent(section: &str) -> Option<&'static str> {
    ABSENT.iter().find(|(_, key, _)| *key == section).map(|(_, _, what)| *what)
}

/// What a request asks for.
pub fn route(request: &http::Request) -> Result<Request, RouteError> {
    let path = request.target;
    if let Some(asked) = device_route(request) {
        return asked;
    }
    let lines = || ROUTES.iter().filter(|route| route.path == path);
    if let Some(route) = lines().find(|route| route.method == request.method) {
        return match route.body {
            Body::None(asked) => bodiless(request).map(|()| asked()),
            Body::Json(parse) => parse_body(request.body).and_then(parse).map_err(|e| body_error(path)(e.to_string())),
        };
    }
    if lines().next().is_some() {
        return Err(wrong_method(request, lines().map(|route| route.method).collect()));
    }
    let begins = |with: &str| {
        let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(with));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match ABSENT.iter().find(|(with, _, _)| begins(with)) {
        Some((_, _, what)) => Err(RouteError::Absent { path: shown(path), what }),
        None => Err(RouteError::Path(shown(path))),
    }
}

/// `/SECTION` or `/SECTION/ID` of a device in the device table, or `/SECTION/statistics` of one that tells.
fn device_route(request: &http::Request) -> Option<Result<Request, RouteError>> {
    let mut segments = request.target.strip_prefix('/')?.split('/');
    let first = segments.next()?;
    let kind = DEVICES.iter().find(|kind| kind.config_key == first)?;
    let id = match (kind.id_key, segments.next(), segments.next()) {
        (None, None, None) => "",
        (None, Some("statistics"), None) => return kind.told.as_ref().map(|told| told_route(kind, told, request)),
        (Some(_), Some(id), None) if is_id(id) => id,
        _ => return None,
    };
    Some(match request.method {
        "GET" if kind.told.is_some() => bodiless(request).map(|()| Request::Section(kind.config_key)),
        "PUT" => device(kind, id, request, parse_body).and_then(|update| {
            let section = if kind.id_key.is_some() {
                Value::Array(vec![update.changes.clone().into()])
            } else {
                update.changes.clone().into()
            };
            (kind.check)(&section).map_err(|e| body_error(request.target)(e.to_string()))?;
            Ok(Request::SetDevice(update))
        }),
        "PATCH" if can_change(kind).next().is_some() => device(kind, id, request, parse_members)
            .and_then(|update| change(kind, update, request.target, &can_change(kind).collect::<Vec<_>>())),
        _ => {
            let changes = can_change(kind).next().is_some();
            let methods = [(kind.told.is_some(), "GET"), (true, "PUT"), (changes, "PATCH")];
            Err(wrong_method(request, methods.into_iter().filter_map(|(is, method)| is.then_some(method)).collect()))
        }
    })
}

/// What a device tells, and what of it can be set.
fn told_route(kind: &'static DeviceKind, told: &'static Told, request: &http::Request) -> Result<Request, RouteError> {
    match request.method {
        "GET" => bodiless(request).map(|()| Request::Statistics(kind.config_key)),
        "PATCH" => device(kind, "", request, parse_members)
            .and_then(|update| change(kind, update, request.target, told.members)),
        _ => Err(wrong_method(request, vec!["GET", "PATCH"])),
    }
}

/// Members of a device's configuration that can change while its machine runs.
fn can_change(kind: &DeviceKind) -> impl Iterator<Item = &'static str> + use<> {
    let limiters = kind.limiters.iter().map(|(key, _)| *key);
    kind.swappable.iter().chain(kind.adjustable).copied().chain(limiters)
}

/// A change of those members of a device that are in `able`: `null` takes a member away that can be swapped; of any other, and
/// in a limiter, it asks for nothing.
fn change(kind: &DeviceKind, mut update: DeviceUpdate, path: &str, able: &[&str]) -> Result<Request, RouteError> {
    let swaps = |key: &str| kind.swappable.contains(&key);
    update.changes.retain(|key, value| swaps(key) || !value.is_null() && kind.id_key != Some(key));
    for (_, value) in update.changes.iter_mut().filter(|(key, _)| !swaps(key)) {
        *value = json::without_nulls(value.take());
    }
    match update.changes.keys().find(|key| !able.contains(&key.as_str())) {
        None => Ok(Request::UpdateDevice(update)),
        Some(key) => {
            let able = able.join(", ");
            Err(body_error(path)(format!("'{key}' cannot change; what can is: {able}")))
        }
    }
}

/// JSON has a word for nothing.
fn bodiless(request: &http::Request) -> Result<(), RouteError> {
    if request.body.is_empty() || request.body == b"null" {
        return Ok(());
    }
    Err(body_error(request.target)("no body belongs here".into()))
}

/// A device's body, whose id must be that of the path.
fn device(
    kind: &DeviceKind,
    id: &str,
    request: &http::Request,
    parse: fn(&[u8]) -> Result<Value, BodyError>,
) -> Result<DeviceUpdate, RouteError> {
    let error = body_error(request.target);
    let changes: Map<String, Value> = match parse(request.body) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return Err(error("it takes an object".into())),
        Err(e) => return Err(error(e.to_string())),
    };
    if let Some(key) = kind.id_key {
        match changes.get(key).and_then(Value::as_str) {
            Some(said) if said == id => {}
            Some(_) => return Err(error(format!("'{key}' is not the id in the path"))),
            None => return Err(error(format!("'{key}' is missing"))),
        }
    }
    Ok(DeviceUpdate { section: kind.config_key, id: id.to_owned(), changes })
}

/// Ids go into paths and messages: letters, digits and a few signs.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

fn parse_members(body: &[u8]) -> Result<Value, BodyError> {
    if body.is_empty() {
        return Err(BodyError::Invalid("the body is missing".into()));
    }
    Ok(json::parse(body)?)
}

/// A member that is `null` is as good as absent.
fn parse_body(body: &[u8]) -> Result<Value, BodyError> {
    parse_members(body).map(json::without_nulls)
}

fn body_error(path: &str) -> impl Fn(String) -> RouteError {
    move |reason| RouteError::Body { path: path.to_owned(), reason }
}

fn wrong_method(request: &http::Request, allow: Vec<&'static str>) -> RouteError {
    RouteError::Method { path: shown(request.target), method: shown(request.method), allow: allow.join(", ") }
}

/// Text of a client, for a message: not longer than it is worth.
fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests;
