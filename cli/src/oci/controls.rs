//! What a container that has no microVM is told by its runtime, while it runs: to stand still, and what it may take.

use std::cell::OnceCell;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;

use anyhow::{Context, anyhow};
use bench::compare::bundle::Runtime;

use serde_json::Value;
use vmm::NetworkRates;

use super::Group;
use super::config::quota;
use super::disks::Disk;
use crate::failure::sanitize;
use crate::rates::Rates;
use crate::size::{Cpus, MIB};

/// The way there.
#[derive(Debug, Clone)]
pub struct Controls {
    /// Who has it.
    pub runtime: Runtime,
    /// What it is called there.
    pub id: String,
    /// What its rates are kept by.
    pub rates: Keeper,
}

/// What keeps a container to its rates.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    /// Its control group, once it has one.
    pub group: Rc<OnceCell<Group>>,
    /// What its files are on.
    pub disks: Vec<Disk>,
    /// Its interface as configured, and the way to what that leads through.
    pub interface: Option<(Value, NetworkRates)>,
}

impl Keeper {
    /// Changes those of which something is said.
    ///
    /// # Errors
    /// It has no such thing, or it cannot be limited.
    pub fn limit(&mut self, rates: Rates) -> anyhow::Result<()> {
        rates.check(self.interface.is_some())?;
        self.limit_disks(rates)?;
        if let Some((interface, link)) = &mut self.interface {
            rates.limit_interface(interface);
            link.set(interface)?;
        }
        Ok(())
    }

    /// The same of its disks alone.
    ///
    /// # Errors
    /// As [`Self::limit`].
    pub fn limit_disks(&self, rates: Rates) -> anyhow::Result<()> {
        self.group.get().unwrap_or(&Group::default()).throttle(rates, &self.disks)
    }
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

    /// Changes what it may take of processors and memory.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn resize(&self, cpus: Option<Cpus>, memory_mib: Option<u64>) -> anyhow::Result<()> {
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
