//! What a container that has no microVM is told by its runtime, while it runs: to stand still, and what it may take.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use bench::compare::bundle::Runtime;

use super::config::quota;
use crate::failure::sanitize;
use crate::size::{Cpus, MIB};

/// The way there.
#[derive(Debug, Clone)]
pub struct Controls {
    /// Who has it.
    pub runtime: Runtime,
    /// What it is called there.
    pub id: String,
}

impl Controls {
    /// Has all of its processes stand still, or go on.
    ///
    /// # Errors
    /// The runtime cannot, and says why: without control groups of its user's, say.
    pub fn pause(&self, pause: bool) -> anyhow::Result<()> {
        let mut command = self.runtime.verb(if pause { "pause" } else { "resume" });
        command.arg(&self.id);
        self.done(command)
    }

    /// Changes what it may take.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn update(&self, cpus: Option<Cpus>, memory_mib: Option<u64>) -> anyhow::Result<()> {
        if cpus.is_none() && memory_mib.is_none() {
            return Ok(());
        }
        let mut command = self.runtime.verb("update");
        if let Some(cpus) = cpus {
            let (quota, period) = quota(cpus);
            command.args(["--cpu-quota", &quota.to_string(), "--cpu-period", &period.to_string()]);
        }
        if let Some(mib) = memory_mib {
            command.args(["--memory", &(mib * MIB).to_string()]);
        }
        command.arg(&self.id);
        self.done(command)
    }

    fn done(&self, mut command: Command) -> anyhow::Result<()> {
        let program = self.runtime.program.display();
        let output =
            command.stdin(Stdio::null()).process_group(0).output().with_context(|| format!("start of '{program}'"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last =
            said.lines().rfind(|line| !line.trim().is_empty()).map_or_else(|| output.status.to_string(), sanitize);
        Err(anyhow!("{program}: {last}"))
    }
}
