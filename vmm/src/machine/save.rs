//! A running or paused machine into a snapshot.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use devices::virtio::MmioTransport;
use kvm_bindings::kvm_clock_data;
use rustix::rand::GetRandomFlags;

use super::handle::{Handle, RunState, Threads};
use super::{Base, Parts, restore};
use crate::api::{SnapshotKind, SnapshotReport, SnapshotRequest};
use crate::config::VmConfig;
use crate::cpuid::Model;
use crate::events::monotonic_ns;
use crate::host;
use crate::snapshot::files::{self, Unfinished};
use crate::snapshot::memory::Source;
use crate::snapshot::{Meta, Parent, Snapshot, SnapshotError, disks, memory};
use crate::vcpu::SavedVcpu;
use crate::vcpu::state::{self, StateError};

impl Handle {
    /// Takes a snapshot into a directory, which must not exist or be a snapshot, and is replaced then. A running machine
    /// stands still meanwhile and goes on afterwards, whether it succeeded or not.
    ///
    /// One of kind [`SnapshotKind::Diff`] has the memory that changed since the snapshot that the machine came from or since the
    /// last one that was taken of it as a base: with `base_of_next`, or `track_dirty_pages` of the machine.
    pub fn snapshot(&self, request: &SnapshotRequest) -> Result<SnapshotReport, SnapshotError> {
        let parts = self.parts()?;
        let unfinished = Unfinished::create(&request.path)?;
        // Held to the end, so that nobody else asks for a change to a snapshot that is not there yet.
        let mut threads = self.started_threads();
        let mut pause_ns = 0;
        let result = match threads.state {
            RunState::Ended => return Err(SnapshotError::Ended),
            RunState::Paused => parts.save(&threads, request, &unfinished),
            RunState::Running => {
                let began = monotonic_ns();
                threads.pause();
                let result = parts.save(&threads, request, &unfinished);
                threads.resume();
                pause_ns = monotonic_ns().saturating_sub(began);
                result
            }
        };
        let written = result?;
        if !written.unsynced.is_empty() {
            unfinished.sync(&written.unsynced)?;
        }
        unfinished.finish()?;
        if parts.becomes_base(request) {
            parts.base().snapshot = restore::parent(&request.path, &written.meta);
        }
        Ok(SnapshotReport { bytes: written.bytes, pause_ns })
    }
}

/// All of a snapshot.
struct Written {
    /// Bytes of memory.
    bytes: u64,
    meta: Meta,
    /// Files that are not on the disk yet: the machine need not wait for that.
    unsynced: Vec<File>,
}

impl Parts {
    fn base(&self) -> MutexGuard<'_, Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn becomes_base(&self, request: &SnapshotRequest) -> bool {
        request.base_of_next || self.config().machine.track_dirty_pages
    }

    /// The snapshot that one at `target` would be a change to.
    fn parent_for(&self, target: &Path) -> Result<Parent, SnapshotError> {
        let base = self.base();
        let parent = base.snapshot.as_ref().ok_or(SnapshotError::NoParent)?;
        // In the place of its own parent it would be a change to itself.
        let replaces = std::fs::canonicalize(target).is_ok_and(|target| target == parent.path);
        if replaces || base.sources.len() > files::MOST_PARENTS {
            return Err(SnapshotError::NoParent);
        }
        let io = |source| SnapshotError::Io { path: parent.path.clone(), source };
        Ok(Parent { path: files::path_of_parent(&parent.path, target).map_err(io)?, ..parent.clone() })
    }

    /// Takes the state, and writes memory and disks. The vCPUs are paused.
    fn save(
        &self,
        threads: &Threads,
        request: &SnapshotRequest,
        target: &Unfinished,
    ) -> Result<Written, SnapshotError> {
        let parent = match request.kind {
            SnapshotKind::Full => None,
            SnapshotKind::Diff => Some(self.parent_for(&request.path)?),
        };
        self.chores.carry_out();
        // Held to the end, so that no device writes to RAM that has been written out already.
        let mut transports: Vec<MutexGuard<'_, MmioTransport>> =
            self.transports.iter().map(|t| t.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let transport_states = transports.iter_mut().map(|transport| transport.save()).collect::<Result<_, _>>()?;
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner).save();
        let ioapic = self.ioapic.lock().unwrap_or_else(PoisonError::into_inner).save();
        let mut memory_id = [0; memory::ID_LEN];
        let path = || target.path().join(files::MEMORY);
        let io = |source| SnapshotError::Io { path: path(), source };
        rustix::rand::getrandom(&mut memory_id, GetRandomFlags::empty()).map_err(|e| io(e.into()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut config = VmConfig { snapshot: None, ..self.config() };
        let disks = disks::capture(&mut config.devices, target)?;
        let mut snapshot = Snapshot {
            meta: Meta {
                kvm: host::kind(),
                cpu: Model::host(),
                taken_at_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                memory_id,
                parent,
            },
            config,
            vcpus: self.save_vcpus(threads)?,
            clock: self.clock()?,
            ioapic,
            serial,
            transports: transport_states,
            extents: None,
        };
        // Memory after everything else: saving the vCPUs or devices may write to it.
        let file = target.file(files::MEMORY)?;
        let mut base = self.base();
        let written = if snapshot.meta.parent.is_some() {
            let (written, extents) = memory::write_changed(&self.memory, &file, &memory_id).map_err(io)?;
            snapshot.extents = Some(extents);
            written
        } else {
            memory::write(&self.memory, &base.sources, &file, &memory_id).map_err(io)?
        };
        let state = target.write(files::STATE, &snapshot.encode()?)?;
        let own = [file, state];
        let unsynced = if self.becomes_base(request) {
            // A view of a file that could still fail to reach the disk would be RAM that could be lost.
            target.sync(&own)?;
            let [file, _] = own;
            let source = Source { file, extents: snapshot.extents };
            let rebased = self.memory.rebase(&source);
            base.came_to(source, rebased).map_err(io)?;
            disks
        } else {
            own.into_iter().chain(disks).collect()
        };
        Ok(Written { bytes: written.bytes, meta: snapshot.meta, unsynced })
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
