//! The image configuration: what the process in the image wants by default, and the digests of its layers.

use super::{OciError, Resolved};
use crate::digest::Digest;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How an image wants to be run (OCI image-spec, config.md, "config"). Plain data, as the image says it: untrusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessDefaults {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the whole command if there is none.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory; empty: `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid`…; empty: root.
    pub user: String,
    /// `80/tcp`, …
    pub exposed_ports: Vec<String>,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    /// The signal that asks the process to stop.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// What a configuration says.
#[derive(Debug)]
struct Parsed {
    defaults: ProcessDefaults,
    diff_ids: Vec<Digest>,
    created: Option<String>,
    /// `os/architecture`.
    platform: String,
}

/// Parses a configuration whose digest was verified.
fn parse(bytes: &[u8]) -> Result<Parsed, OciError> {
    let json = |source| OciError::Json { what: "image configuration".into(), source };
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(json)?;
    let diff_id = |text: &String| {
        text.parse().map_err(|source| OciError::BadDigest { what: "image configuration".into(), source })
    };
    let diff_ids = config.rootfs().diff_ids().iter().map(diff_id).collect::<Result<_, _>>()?;
    let defaults = config.config().as_ref().map(defaults).unwrap_or_default();
    let platform = format!("{}/{}", config.os(), config.architecture());
    Ok(Parsed { defaults, diff_ids, created: config.created().clone(), platform })
}

fn defaults(config: &oci_spec::image::Config) -> ProcessDefaults {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let labels = config.labels().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    ProcessDefaults {
        entrypoint: list(config.entrypoint()),
        cmd: list(config.cmd()),
        env: list(config.env()),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        exposed_ports: list(config.exposed_ports()),
        volumes: list(config.volumes()),
        stop_signal: config.stop_signal().clone(),
        labels,
    }
}

/// Puts a configuration, whose digest was verified, and its layers together.
pub(crate) fn resolved(
    id: Digest,
    names: Vec<String>,
    document: Vec<u8>,
    blobs: Vec<(String, Option<(Digest, u64)>)>,
) -> Result<Resolved, OciError> {
    let parsed = parse(&document)?;
    if parsed.platform != "linux/amd64" {
        return Err(OciError::Platform(super::printable(&parsed.platform)));
    }
    if blobs.len() != parsed.diff_ids.len() {
        return Err(OciError::LayerCount { layers: blobs.len(), diff_ids: parsed.diff_ids.len() });
    }
    if blobs.is_empty() || blobs.len() > super::MAX_LAYERS {
        return Err(OciError::Layers(blobs.len()));
    }
    let layer = |((path, stored), diff_id)| super::LayerBlob { diff_id, stored, path };
    let layers = blobs.into_iter().zip(parsed.diff_ids).map(layer).collect();
    Ok(Resolved { id, names, created: parsed.created, config: parsed.defaults, layers, document, manifest: None })
}
