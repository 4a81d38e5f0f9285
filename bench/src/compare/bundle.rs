//! Bundles, which OCI runtimes run (runc, crun): a directory with a root file system and a configuration. What is in the configuration is what
//! `RUNTIME spec` writes, but for the process and where the root is.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::Process;
use super::running::{Patience, answer};
use crate::process::{BenchError, io_error};

/// How long a runtime may take to write a configuration.
const LIMIT: Duration = Duration::from_secs(60);

/// A runtime, and where it keeps what it knows of containers.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The program.
    pub program: PathBuf,
    /// The directory.
    pub state: PathBuf,
}

impl Runtime {
    /// One of its verbs.
    pub fn verb(&self, verb: &str) -> Command {
        self.command(&[verb])
    }

    /// The beginning of a command line.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).args(words);
        command
    }

    /// The configuration that it writes into `dir`.
    ///
    /// # Errors
    /// It does not, or what it has written is none.
    pub fn usual(&self, dir: &Path) -> Result<Value, BenchError> {
        let mut spec = Command::new(&self.program);
        spec.arg("spec").current_dir(dir);
        if !rustix::process::geteuid().is_root() {
            spec.arg("--rootless");
        }
        let (stop, _other) = UnixStream::pair().map_err(io_error("socket"))?;
        answer(spec, Patience { limit: LIMIT, stop: stop.as_fd() })?;
        let text = fs::read(dir.join("config.json"));
        let missing =
            |error| BenchError::Container(format!("'{} spec' wrote no config.json: {error}", self.program.display()));
        let text = text.map_err(missing)?;
        let spec = serde_json::from_slice(&text);
        spec.map_err(|error| BenchError::Container(format!("{} spec: {error}", self.program.display())))
    }

    /// Away with a container, running or not. It says so if there is none, and that is well.
    pub fn delete(&self, id: &str) {
        // Nor does a signal from a terminal keep it from that.
        let _ = self.verb("delete").args(["--force", id]).stdin(Stdio::null()).process_group(0).output();
    }
}

/// The configuration of a container that runs `words`.
pub fn configure(mut spec: Value, root: &Path, process: &Process, words: &[String]) -> Value {
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
