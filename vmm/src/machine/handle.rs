//! Steering a machine from another thread, or from its own event loop.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use devices::virtio::DeviceName;
use devices::virtio::metrics::DeviceMetrics;

use super::Parts;
use super::ending::Ending;
use crate::api::DeviceReport;
use crate::config::VmConfig;
use crate::events::ExitReason;
use crate::sandbox::Missing;
use crate::snapshot::SnapshotError;
use crate::vcpu::VcpuThread;

/// What a machine's vCPUs are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// They run, or wait for an interrupt.
    Running,
    /// They are out of the guest until [`Handle::resume`].
    Paused,
    /// There are none any more.
    Ended,
}

/// A machine's vCPU threads. One lock, taken before any transport's.
pub(super) struct Threads {
    pub list: Vec<VcpuThread>,
    pub state: RunState,
    /// The list is there, or will never be.
    started: bool,
}

impl Threads {
    pub(super) fn pause(&mut self) {
        self.list.iter().for_each(VcpuThread::pause);
        self.list.iter().for_each(VcpuThread::wait_paused);
    }

    pub(super) fn resume(&mut self) {
        self.list.iter().for_each(VcpuThread::resume);
    }
}

/// Steers a machine. May outlive it; then nothing has an effect any more.
#[derive(Clone)]
pub struct Handle {
    pub(super) ending: Arc<Ending>,
    threads: Arc<(Mutex<Threads>, Condvar)>,
    parts: Weak<Parts>,
}

impl Handle {
    pub(super) fn new(ending: Arc<Ending>, parts: Weak<Parts>) -> Self {
        let threads = Threads { list: Vec::new(), state: RunState::Paused, started: false };
        Handle { ending, threads: Arc::new((Mutex::new(threads), Condvar::new())), parts }
    }

    /// Ends the machine with [`ExitReason::Stopped`].
    pub fn stop(&self) {
        self.ending.report(Ok(ExitReason::Stopped));
    }

    /// Brings all vCPUs out of the guest, and returns when they are.
    pub fn pause(&self) {
        let mut threads = self.threads();
        if threads.state == RunState::Running {
            threads.pause();
            threads.state = RunState::Paused;
        }
    }

    /// Lets all vCPUs run (again).
    pub fn resume(&self) {
        let mut threads = self.threads();
        if threads.state == RunState::Paused {
            threads.resume();
            threads.state = RunState::Running;
        }
    }

    /// What its vCPUs are doing.
    pub fn state(&self) -> RunState {
        self.threads().state
    }

    /// What it is made of.
    ///
    /// # Errors
    /// [`SnapshotError::Ended`].
    pub fn config(&self) -> Result<VmConfig, SnapshotError> {
        Ok(self.parts()?.config())
    }

    /// What its devices have done so far, in order of their windows; nothing once it has ended. Waits for nobody.
    pub fn devices(&self) -> Vec<DeviceReport> {
        let Ok(parts) = self.parts() else { return Vec::new() };
        let report = |(name, metrics): &(DeviceName, Arc<DeviceMetrics>)| DeviceReport {
            name: name.clone(),
            reading: metrics.read(),
        };
        parts.metrics.iter().map(report).collect()
    }

    /// What the host did not give for the sandbox of its process; `None` if it has no sandbox, or not yet.
    pub fn confined(&self) -> Option<Missing> {
        self.parts().ok()?.confined.get().cloned()
    }

    pub(super) fn parts(&self) -> Result<Arc<Parts>, SnapshotError> {
        self.parts.upgrade().ok_or(SnapshotError::Ended)
    }

    pub(super) fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, once there are threads or there is nothing to wait for any more.
    pub(super) fn started_threads(&self) -> MutexGuard<'_, Threads> {
        let (_, started) = &*self.threads;
        let waited = started.wait_while(self.threads(), |threads| !threads.started);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the vCPUs' threads, for what becomes of them.
    pub(super) fn give_threads(&self, list: Vec<VcpuThread>) {
        self.threads().list = list;
    }

    /// From now on there is something to steer: at once, if `resume` says so or somebody was earlier to resume it.
    pub(super) fn start(&self, resume: bool) {
        let mut threads = self.threads();
        threads.started = true;
        if resume || threads.state == RunState::Running {
            threads.resume();
            threads.state = RunState::Running;
        }
        self.threads.1.notify_all();
    }

    /// Ends and joins the vCPU threads, all told before the first is waited for.
    pub(super) fn end_threads(&self) {
        let list = {
            let mut threads = self.threads();
            threads.state = RunState::Ended;
            threads.started = true;
            self.threads.1.notify_all();
            std::mem::take(&mut threads.list)
        };
        list.iter().for_each(VcpuThread::stop);
    }
}
