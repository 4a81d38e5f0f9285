//! runc and crun: OCI runtimes, which run a bundle, that is, a directory with a root file system and a configuration.
//!
//! The configuration is what `RUNTIME spec` writes, with the image's process in it and without a terminal. All instances have one root
//! directory: what podman or docker would put an overlay over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::arm::{Arm, Made, Making, first_line, missing, program};
use super::running::{Input, Patience, Running, answer};
use super::tree;
use super::{Process, milliseconds};
use crate::process::{BenchError, io_error};

struct Runtime {
    program: PathBuf,
    /// Where it keeps what it knows of containers.
    state: PathBuf,
    /// Where bundles are.
    dir: PathBuf,
    root: PathBuf,
    process: Process,
    /// What `spec` has written.
    spec: Value,
    /// The words that there are bundles for, in the order of their directories' numbers.
    bundles: Mutex<Vec<Vec<String>>>,
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
    let mut spec = Command::new(&program);
    spec.arg("spec").current_dir(&dir);
    if !rustix::process::geteuid().is_root() {
        spec.arg("--rootless");
    }
    answer(spec, making.patience).map_err(said)?;
    let text = fs::read(dir.join("config.json")).map_err(|error| error.to_string())?;
    let spec = serde_json::from_slice(&text).map_err(|error| format!("{name} spec: {error}"))?;
    let (root, process) = (making.root.to_owned(), making.what.process.clone());
    let arm = Runtime { program, state, dir, root, process, spec, bundles: Mutex::default() };
    Ok(Made { version, arm: Box::new(arm) })
}

impl Runtime {
    fn verb(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).arg(verb);
        command
    }

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

/// The configuration of a container that runs `words`.
fn configure(mut spec: Value, root: &Path, process: &Process, words: &[String]) -> Value {
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(words);
    spec["process"]["env"] = json!(process.env);
    spec["process"]["cwd"] = json!(process.cwd);
    // Without root, the only user that there is in the container is its root.
    if rustix::process::geteuid().is_root() {
        spec["process"]["user"] = json!({ "uid": process.uid, "gid": process.gid, "additionalGids": process.groups });
    }
    spec["root"] = json!({ "path": root, "readonly": false });
    spec
}

impl Arm for Runtime {
    fn command(&self, id: &str, words: &[String]) -> Result<Command, BenchError> {
        let mut command = self.verb("run");
        command.arg("--bundle").arg(self.bundle(words)?).arg(id);
        Ok(command)
    }

    fn clear(&self, id: &str) {
        // It says so if there is none, and that is well.
        let _ = self.verb("delete").args(["--force", id]).stdin(std::process::Stdio::null()).output();
    }

    fn image_disk(&self) -> Option<u64> {
        Some(tree::disk_kib(&self.root))
    }

    fn instance_disk(&self, id: &str) -> Option<u64> {
        Some(tree::disk_kib(&self.dir.join("bundle0")) + tree::disk_kib(&self.state.join(id)))
    }

    fn steps(&self, id: &str, words: &[String], patience: Patience<'_>) -> Result<Vec<(String, f64)>, BenchError> {
        let mut create = self.verb("create");
        create.arg("--bundle").arg(self.bundle(words)?).arg(id);
        // The container has its streams.
        let mut container = Running::start(create, Input::Nothing)?;
        let steps = (|| {
            let created = container.exit(patience)?;
            let mut start = self.verb("start");
            start.arg(id);
            Running::start(start, Input::Nothing)?.end(patience)?.good("start")?;
            let first = container.line(1, patience)?;
            let ended = container.closed(patience)?;
            let mut delete = self.verb("delete");
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
    fn the_images_process_is_in_the_configuration() {
        let spec = json!({ "process": { "terminal": true, "capabilities": {} }, "root": {}, "linux": { "x": 1 } });
        let process = Process { env: vec!["A=b".into()], cwd: "/srv".into(), uid: 5, gid: 6, groups: vec![6, 7] };
        let config = configure(spec, Path::new("/r"), &process, &["sh".into(), "-c".into()]);
        assert_eq!(config["process"]["args"], json!(["sh", "-c"]));
        assert_eq!((&config["process"]["cwd"], &config["root"]["path"]), (&json!("/srv"), &json!("/r")));
        assert_eq!((&config["process"]["terminal"], &config["linux"]["x"]), (&json!(false), &json!(1)));
        if rustix::process::geteuid().is_root() {
            assert_eq!(config["process"]["user"], json!({ "uid": 5, "gid": 6, "additionalGids": [6, 7] }));
        }
    }
}
