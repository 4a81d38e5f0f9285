//! runc and crun: OCI runtimes, which run a bundle, that is, a directory with a root file system and a configuration.
//!
//! The configuration is what `RUNTIME spec` writes, with the image's process in it and without a terminal. All instances have one root
//! directory: what podman or docker would put an overlay over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};

use super::arm::{Arm, Made, Making, first_line, missing, program};
use super::bundle::{Runtime, configure};
use super::moving::{self, Errand, VOLUME, overlay};
use super::running::{Input, Patience, Running, answer};
use super::tree;
use super::wire::Wire;
use super::{Process, milliseconds};
use crate::process::{BenchError, io_error};

/// Where the overlay of an errand is in its container.
const OWN: &str = "/bulkhead-bench-own";

struct Oci {
    name: String,
    runtime: Runtime,
    /// Where bundles are.
    dir: PathBuf,
    root: PathBuf,
    process: Process,
    /// What `spec` has written.
    spec: Value,
    /// The words that there are bundles for, in the order of their directories' numbers.
    bundles: Mutex<Vec<Vec<String>>>,
    /// The network of errands, once one has wanted it, or why there is none.
    wire: OnceLock<Result<Wire, String>>,
}

/// The arm of the runtime `name`, or why there is none.
pub(super) fn make(name: &str, making: &Making<'_>) -> Result<Made, String> {
    let program = program(name).ok_or_else(|| missing(name))?;
    let said = |error: BenchError| error.to_string();
    let mut version = Command::new(&program);
    version.arg("--version");
    let version = first_line(&answer(version, making.patience).map_err(said)?);
    let dir = making.place.path().join(name);
    let state = dir.join("state");
    fs::create_dir_all(&state).map_err(|error| error.to_string())?;
    let runtime = Runtime { program, state };
    let spec = runtime.usual(&dir).map_err(said)?;
    let (root, process) = (making.root.to_owned(), making.what.process.clone());
    let (name, bundles, wire) = (name.to_owned(), Mutex::default(), OnceLock::new());
    let arm = Oci { name, runtime, dir, root, process, spec, bundles, wire };
    Ok(Made { version, arm: Box::new(arm) })
}

impl Oci {
    /// The bundle that runs `words`, which is made at the first time.
    fn bundle(&self, words: &[String]) -> Result<PathBuf, BenchError> {
        let mut bundles = self.bundles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = bundles.iter().position(|known| known == words);
        let dir = |number: usize| self.dir.join(format!("bundle{number}"));
        if let Some(number) = number {
            return Ok(dir(number));
        }
        let bundle = dir(bundles.len());
        fs::create_dir_all(&bundle).map_err(io_error("bundle"))?;
        let config = configure(self.spec.clone(), &self.root, &self.process, words);
        fs::write(bundle.join("config.json"), config.to_string()).map_err(io_error("bundle"))?;
        bundles.push(words.to_vec());
        Ok(bundle)
    }
}

/// Puts an errand's volume, disk and network into a container's configuration.
fn equip(config: &mut Value, volume: &Path, overlay: &[String], namespace: Option<String>) {
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.push(json!({ "destination": VOLUME, "type": "bind", "source": volume, "options": ["bind", "rw"] }));
        mounts.push(json!({ "destination": OWN, "type": "overlay", "source": "overlay", "options": overlay }));
    }
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    let mut network = namespaces.into_iter().flatten().filter(|one| one["type"] == "network");
    if let (Some(path), Some(network)) = (namespace, network.next()) {
        network["path"] = path.into();
    }
}

impl Arm for Oci {
    fn command(&self, id: &str, words: &[String]) -> Result<Command, BenchError> {
        let mut command = self.runtime.verb("run");
        command.arg("--bundle").arg(self.bundle(words)?).arg(id);
        Ok(command)
    }

    fn clear(&self, id: &str) {
        self.runtime.delete(id);
    }

    fn errand(&self, id: &str, errand: &Errand<'_>) -> Result<Option<Command>, BenchError> {
        let number = u8::from(self.name == "crun");
        let wire = || self.wire.get_or_init(|| Wire::new(number, errand.patience));
        let namespace = match errand.network.then(wire) {
            Some(Ok(wire)) => Some(wire.path()),
            Some(Err(why)) => return Err(BenchError::Container(why.clone())),
            None => None,
        };
        let words = errand.words(Path::new(VOLUME), Path::new(OWN));
        let mut config = configure(self.spec.clone(), &self.root, &moving::process(), &words);
        equip(&mut config, errand.volume, &overlay(errand.own)?, namespace);
        let bundle = errand.own.join("bundle");
        fs::create_dir(&bundle).map_err(io_error("bundle"))?;
        fs::write(bundle.join("config.json"), config.to_string()).map_err(io_error("bundle"))?;
        let mut command = self.runtime.verb("run");
        command.arg("--bundle").arg(bundle).arg(id);
        Ok(Some(command))
    }

    fn image_disk(&self) -> Option<u64> {
        Some(tree::disk_kib(&self.root))
    }

    fn instance_disk(&self, id: &str) -> Option<u64> {
        Some(tree::disk_kib(&self.dir.join("bundle0")) + tree::disk_kib(&self.runtime.state.join(id)))
    }

    fn steps(&self, id: &str, words: &[String], patience: Patience<'_>) -> Result<Vec<(String, f64)>, BenchError> {
        let mut create = self.runtime.verb("create");
        create.arg("--bundle").arg(self.bundle(words)?).arg(id);
        // The container has its streams.
        let mut container = Running::start(create, Input::Nothing)?;
        let steps = (|| {
            let created = container.exit(patience)?;
            let mut start = self.runtime.verb("start");
            start.arg(id);
            Running::start(start, Input::Nothing)?.end(patience)?.good("start")?;
            let first = container.line(1, patience)?;
            let ended = container.closed(patience)?;
            let mut delete = self.runtime.verb("delete");
            delete.args(["--force", id]);
            let deleted = Running::start(delete, Input::Nothing)?.end(patience)?.good("delete")?.took;
            let lengths = [
                ("create", created),
                ("start", first.saturating_sub(created)),
                ("command", ended.saturating_sub(first)),
                ("delete", deleted),
            ];
            Ok(lengths.map(|(name, length): (&str, Duration)| (name.to_owned(), milliseconds(length))).to_vec())
        })();
        if steps.is_err() {
            self.clear(id);
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errands_volume_disk_and_network_are_in_the_configuration() {
        let mut config = json!({ "mounts": [{ "destination": "/proc" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }] } });
        equip(&mut config, Path::new("/v"), &["lowerdir=/l".into()], Some("/run/netns/x".into()));
        assert_eq!(config["mounts"][1]["source"], "/v");
        assert_eq!(config["mounts"][2]["options"], json!(["lowerdir=/l"]));
        assert_eq!(config["linux"]["namespaces"][1], json!({ "type": "network", "path": "/run/netns/x" }));
        let mut without = json!({ "mounts": [], "linux": { "namespaces": [{ "type": "network" }] } });
        equip(&mut without, Path::new("/v"), &[], None);
        assert_eq!(without["linux"]["namespaces"], json!([{ "type": "network" }]));
    }
}
