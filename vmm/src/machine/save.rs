//! A running or paused machine into a snapshot.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use devices::virtio::MmioTransport;
use kvm_bindings::kvm_clock_data;
use rustix::rand::GetRandomFlags;

use super::Parts;
use super::handle::{Handle, RunState, Threads};
use crate::api::{SnapshotKind, SnapshotReport, SnapshotRequest};
use crate::config::VmConfig;
use crate::cpuid::Model;
use crate::events::monotonic_ns;
use crate::host;
use crate::snapshot::files::{self, Unfinished};
use crate::snapshot::{Meta, Snapshot, SnapshotError, disks, memory};
use crate::vcpu::SavedVcpu;
use crate::vcpu::state::{self, StateError};

impl Handle {
    /// Takes a snapshot into a directory, which must not exist or be a snapshot, and is replaced then. A running machine
    /// stands still meanwhile and goes on afterwards, whether it succeeded or not.
    pub fn snapshot(&self, request: &SnapshotRequest) -> Result<SnapshotReport, SnapshotError> {
        if request.kind != SnapshotKind::Full {
            return Err(SnapshotError::Incremental);
        }
        let parts = self.parts()?;
        let unfinished = Unfinished::create(&request.path)?;
        let mut pause_ns = 0;
        let result = {
            let mut threads = self.started_threads();
            match threads.state {
                RunState::Ended => return Err(SnapshotError::Ended),
                RunState::Paused => parts.save(&threads, &unfinished),
                RunState::Running => {
                    let began = monotonic_ns();
                    threads.pause();
                    let result = parts.save(&threads, &unfinished);
                    threads.resume();
                    pause_ns = monotonic_ns().saturating_sub(began);
                    result
                }
            }
        };
        let bytes = result?;
        unfinished.finish()?;
        Ok(SnapshotReport { bytes, pause_ns })
    }
}

impl Parts {
    /// Writes state and memory; returns the bytes of memory. The vCPUs are paused.
    fn save(&self, threads: &Threads, target: &Unfinished) -> Result<u64, SnapshotError> {
        // Held to the end, so that no device writes to RAM that has been written out already.
        let mut transports: Vec<MutexGuard<'_, MmioTransport>> =
            self.transports.iter().map(|t| t.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let transport_states = transports.iter_mut().map(|transport| transport.save()).collect();
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner).save();
        let ioapic = self.ioapic.lock().unwrap_or_else(PoisonError::into_inner).save();
        let mut memory_id = [0; memory::ID_LEN];
        let path = || target.path().join(files::MEMORY);
        let io = |source| SnapshotError::Io { path: path(), source };
        rustix::rand::getrandom(&mut memory_id, GetRandomFlags::empty()).map_err(|e| io(e.into()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut config = VmConfig { snapshot: None, ..self.config() };
        disks::capture(&mut config.devices, target)?;
        let snapshot = Snapshot {
            meta: Meta {
                kvm: host::kind(),
                cpu: Model::host(),
                taken_at_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                memory_id,
            },
            config,
            vcpus: self.save_vcpus(threads)?,
            clock: self.clock()?,
            ioapic,
            serial,
            transports: transport_states,
        };
        // Memory after everything else: saving the vCPUs or devices may write to it.
        let file = target.file(files::MEMORY)?;
        let written = memory::write(&self.memory, self.base.as_ref(), &file, &memory_id).map_err(io)?;
        target.write(files::STATE, &snapshot.encode()?)?;
        file.sync_all().map_err(io)?;
        Ok(written.bytes)
    }

    fn save_vcpus(&self, threads: &Threads) -> Result<Vec<SavedVcpu>, SnapshotError> {
        let failed = |index| move |source: StateError| SnapshotError::Vcpu { index, source };
        let msrs = Arc::new(state::msr_indices(&self.kvm).map_err(failed(0))?);
        let save = |(index, thread): (usize, &crate::vcpu::VcpuThread)| {
            thread.save(&msrs).ok_or(SnapshotError::Ended)?.map_err(failed(index))
        };
        threads.list.iter().enumerate().map(save).collect()
    }

    /// kvm-clock, to go on from where it is: without the host's clocks, which KVM would make up for.
    fn clock(&self) -> Result<kvm_clock_data, SnapshotError> {
        let clock = self.vm.get_clock().map_err(|source| SnapshotError::Kvm { call: "KVM_GET_CLOCK", source })?;
        Ok(kvm_clock_data { clock: clock.clock, ..Default::default() })
    }
}
