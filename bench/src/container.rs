//! `runc run` of a container that does nothing, where runc is installed: what a microVM's start stands beside.
//!
//! The container's program is a static executable of three instructions, so that what is timed is runc. Its bundle is what
//! `runc spec` writes, without a terminal.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guest;
use crate::process::{BenchError, io_error};

/// exit(0): Linux's system call 60.
const TRUE: &[u8] = &[
    0xb8, 0x3c, 0, 0, 0, // mov $60, %eax
    0x31, 0xff, // xor %edi, %edi
    0x0f, 0x05, // syscall
];
const TRUE_ADDRESS: u64 = 0x40_0000;

/// A bundle that runc has run once.
pub struct Bundle {
    dir: PathBuf,
    runs: u64,
}

fn failed(what: &str, output: &std::process::Output) -> BenchError {
    let said = String::from_utf8_lossy(&output.stderr);
    BenchError::Container(format!("{what}: {}: {}", output.status, said.trim()))
}

impl Bundle {
    /// Makes a bundle in `dir` and runs it. `None` if there is no runc.
    pub fn prepare(dir: &Path) -> Result<Option<Self>, BenchError> {
        let root = dir.join("rootfs");
        fs::create_dir_all(&root).map_err(io_error("bundle"))?;
        let mut options = fs::OpenOptions::new();
        let mut program =
            options.write(true).create_new(true).mode(0o755).open(root.join("true")).map_err(io_error("bundle"))?;
        std::io::Write::write_all(&mut program, &guest::elf_at(TRUE_ADDRESS, TRUE)).map_err(io_error("bundle"))?;
        drop(program);
        let mut spec = Command::new("runc");
        spec.args(["spec", "--bundle"]).arg(dir);
        if !rustix::process::geteuid().is_root() {
            spec.arg("--rootless");
        }
        let output = match spec.stdin(Stdio::null()).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("start of 'runc'"))?,
        };
        if !output.status.success() {
            return Err(failed("runc spec", &output));
        }
        let path = dir.join("config.json");
        let broken = |error: serde_json::Error| BenchError::Container(format!("runc spec: {error}"));
        let mut config: Value =
            serde_json::from_slice(&fs::read(&path).map_err(io_error("bundle"))?).map_err(broken)?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["/true"]);
        fs::write(&path, config.to_string()).map_err(io_error("bundle"))?;
        let mut bundle = Bundle { dir: dir.to_owned(), runs: 0 };
        // The first pays for cold caches, once.
        bundle.sample()?;
        Ok(Some(bundle))
    }

    /// Process start to process exit of `runc run`.
    pub fn sample(&mut self) -> Result<Duration, BenchError> {
        self.runs += 1;
        let began = Instant::now();
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.dir.join("state")).args(["run", "--bundle"]).arg(&self.dir);
        command.arg(format!("bulkhead-bench-{}-{}", std::process::id(), self.runs));
        let output = command.stdin(Stdio::null()).output().map_err(io_error("start of 'runc'"))?;
        let took = began.elapsed();
        if output.status.success() { Ok(took) } else { Err(failed("runc run", &output)) }
    }
}
