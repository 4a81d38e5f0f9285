//! Instances that do nothing: what each adds to the memory of the host.

use super::PREFIX;
use super::arm::{Arm, Instance};
use super::rows::{Entry, Session, finish, shell};
use super::tree;
use crate::memory::available_kib;
use crate::process::BenchError;

/// How many instances are idle at a time is told by a line that each says.
pub(super) const IDLE: &str = "echo ready; read -r x";

impl Session<'_> {
    pub(super) fn memory(&mut self) -> Result<(), BenchError> {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        self.random.shuffle(&mut order);
        for turn in order {
            let Entry { kind, arm, .. } = &self.entries[turn];
            (self.what.say)(&format!("memory: {}", kind.name));
            match self.idle(&**arm) {
                Ok(mut rows) => {
                    // What has no verb is all command, or all monitor.
                    rows.retain(|(metric, _)| !((kind.floor || kind.monitor) && *metric == "memory-front"));
                    rows.iter().for_each(|(metric, samples)| self.document.add(kind.name, metric, samples));
                }
                Err(error) => self.judge(kind, "memory", error)?,
            }
        }
        Ok(())
    }

    /// Some instances that do nothing, and what each adds.
    fn idle(&self, arm: &dyn Arm) -> Result<Vec<(&'static str, Vec<f64>)>, BenchError> {
        let before = available_kib()?;
        let mut running: Vec<Instance<'_>> = Vec::new();
        let mut sums: Vec<f64> = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..self.what.instances {
            let mut instance = self.instance(arm, &shell(IDLE), true)?;
            if let Some(child) = &mut instance.running {
                child.line(1, self.patience)?;
            }
            running.push(instance);
            sums.push(running.iter().map(processes_kib).sum());
        }
        let host = before.saturating_sub(available_kib()?) as f64 / running.len() as f64;
        let fronts = running.iter().filter_map(|one| tree::pss_kib(one.running.as_ref()?.pid()));
        rows.push(("memory-first", vec![sums[0]]));
        rows.push(("memory-next", sums.windows(2).map(|pair| pair[1] - pair[0]).collect()));
        rows.push(("memory-front", fronts.map(|kib| kib as f64).collect()));
        // On a host that has other work, others may have given back more.
        rows.extend((host > 0.0).then(|| ("memory-host", vec![host])));
        let waiting = arm.waiting_kib(&format!("{PREFIX}{}-{}", std::process::id(), self.next()))?;
        rows.extend(waiting.map(|kib| ("memory-waiting", vec![kib as f64])));
        rows.extend(arm.instance_disk(&running[0].id).map(|kib| ("instance-disk", vec![kib as f64])));
        for mut instance in running {
            let Some(mut child) = instance.running.take() else { continue };
            child.close_input();
            // It ends with what `read` says of an empty line.
            finish(arm, child, &instance.id, self.patience)?;
        }
        rows.retain(|(_, samples)| !samples.is_empty());
        Ok(rows)
    }
}

/// Memory of all processes of an instance, KiB.
pub(super) fn processes_kib(instance: &Instance<'_>) -> f64 {
    let Some(child) = &instance.running else { return 0.0 };
    let all = instance.arm.processes(child.pid(), &instance.id);
    all.into_iter().filter_map(tree::pss_kib).sum::<u64>() as f64
}
