//! What a container's VM may take of its host, changed while it runs: processor time by its control group, memory by its balloon.

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};

use super::Owner;
use crate::attend::Update;
use crate::attend::server::Waiting;
use crate::cgroup;
use crate::control::Control;
use crate::failure::one_line;
use crate::net;
use crate::rates::Rates;
use crate::size::Cpus;
use crate::snapshots::What;
use crate::usage;

/// The section of a balloon in a machine's configuration, and of what it is to take from the guest in that.
pub const BALLOON: &str = "balloon";
const AMOUNT: &str = "amount_mib";

/// The balloon of a container: it takes nothing before it is told to, and keeps what it has taken, as a limit does.
pub fn balloon() -> Value {
    json!({ AMOUNT: 0, "deflate_on_oom": false })
}

impl Owner {
    /// Changes it at once, and its record for the next start.
    pub(super) fn update(&mut self, to: Update, client: Waiting) {
        match self.try_update(to) {
            Ok(()) => client.done(Value::Null),
            Err(error) => client.refuse(&one_line(&error)),
        }
    }

    fn try_update(&mut self, to: Update) -> anyhow::Result<()> {
        let name = &self.facts.name;
        let is_container = matches!(self.facts.what, What::Container { .. });
        let container = self.container.clone().filter(|_| is_container);
        let container = container.ok_or_else(|| anyhow!("microVM '{name}' is no container that is kept"))?;
        if to != (Update { restart: to.restart, ..Update::default() }) {
            if !self.runs {
                bail!("container {name} does not run yet");
            }
            if self.job.is_some() {
                bail!("the microVM is being snapshotted or rolled back; try again when that is done");
            }
            if let Some(runtime) = self.runtime() {
                runtime.resize(to.cpus, to.memory_mib)?;
                container.borrow_mut().update(Update { cpus: to.cpus, memory_mib: to.memory_mib, ..Update::default() });
                runtime.rates.limit(to.rates)?;
                container.borrow_mut().update(to);
                return Ok(());
            }
            fits(to, self.facts.vcpus, self.facts.memory_mib)?;
            to.rates.check(net::is_networked(&self.succession.devices))?;
        }
        // What has been done is in the record, also if the next is not.
        if let Some(cpus) = to.cpus {
            self.hold_to(cpus)?;
            container.borrow_mut().update(Update { cpus: Some(cpus), ..Update::default() });
        }
        if let Some(memory_mib) = to.memory_mib {
            self.inflate(self.facts.memory_mib.saturating_sub(memory_mib))?;
            container.borrow_mut().update(Update { memory_mib: Some(memory_mib), ..Update::default() });
        }
        self.limit(to.rates)?;
        container.borrow_mut().update(to);
        Ok(())
    }

    fn limit(&mut self, rates: Rates) -> anyhow::Result<()> {
        let control = Control::at(&self.control());
        for (path, body) in rates.changes(&self.succession.devices) {
            control.call("PATCH", &path, &body)?;
        }
        rates.limit(&mut self.succession.devices);
        Ok(())
    }

    fn hold_to(&mut self, cpus: Cpus) -> anyhow::Result<()> {
        let quota = cpus.as_quota(self.facts.vcpus);
        let pid = usage::monitor(std::process::id()).ok_or_else(|| anyhow!("its microVM has ended"))?;
        cgroup::change_quota(pid, quota).with_context(|| format!("--cpus {cpus}"))?;
        self.succession.quota = quota;
        Ok(())
    }

    fn inflate(&mut self, amount_mib: u64) -> anyhow::Result<()> {
        Control::at(&self.control()).call("PATCH", "/balloon", &json!({ AMOUNT: amount_mib }))?;
        if let Some(balloon) = self.succession.devices.get_mut(BALLOON) {
            balloon[AMOUNT] = amount_mib.into();
        }
        Ok(())
    }
}

/// That a machine of this size can be held to it.
fn fits(to: Update, vcpus: u8, memory_mib: u64) -> anyhow::Result<()> {
    if let Some(cpus) = to.cpus.filter(|cpus| *cpus > Cpus::whole(vcpus)) {
        bail!(
            "--cpus {cpus}: its microVM has {vcpus} vCPUs until it ends; stop the container first, or say no more than that"
        );
    }
    if let Some(wanted) = to.memory_mib.filter(|wanted| *wanted > memory_mib) {
        bail!(
            "-m {wanted}m: its microVM has {memory_mib} MiB until it ends; stop the container first, or say no more than that"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_has_not_cannot_be_given() {
        let to = |cpus: f64, memory_mib| Update {
            cpus: Cpus::try_from(cpus).ok(),
            memory_mib: Some(memory_mib),
            ..Update::default()
        };
        for sound in [to(2.0, 256), to(0.01, 1)] {
            assert!(fits(sound, 2, 256).is_ok(), "{sound:?}");
        }
        for (wrong, words) in
            [(to(2.01, 256), "--cpus 2.01: its microVM has 2"), (to(2.0, 257), "-m 257m: its microVM has 256")]
        {
            let error = fits(wrong, 2, 256).unwrap_err().to_string();
            assert!(error.starts_with(words) && error.contains("stop"), "{error}");
        }
    }
}
