//! A snapshot into a machine that has devices and memory, but no state.
//!
//! The order matters (see also `vcpu::state`): vCPUs with their LAPICs before the clock, routes before the transports,
//! which may raise interrupts.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Kvm, VcpuFd};

use super::ahead::FirstVcpu;
use super::ending::Ending;
use super::error::VmmError;
use super::{Parts, generation, vcpus};
use crate::complete::XsaveScratch;
use crate::config::SnapshotSource;
use crate::cpuid::{self, Model};
use crate::host::{self, KvmKind};
use crate::memory::{MemoryError, Ram};
use crate::pager::Pager;
use crate::pager::working_set::Place;
use crate::snapshot::memory::Source;
use crate::snapshot::{Meta, Parent, Snapshot, SnapshotError};
use crate::vcpu::{Shared, Vcpu, VcpuError};

/// Whether the snapshot can go on here: on the same kind of KVM, and the same processor or, where guests see only what
/// KVM lets them see, one that has all the guest has been told of.
pub(super) fn check_host(saved: &Snapshot, host_kvm: &Kvm) -> Result<(), SnapshotError> {
    let (then, now) = (&saved.meta, host::kind());
    if then.kvm != now {
        return Err(SnapshotError::Host(format!("it was taken on {} KVM, and this is {now}", then.kvm)));
    }
    let model = Model::host();
    if then.cpu == model {
        return Ok(());
    }
    let other =
        |why: &str| SnapshotError::Host(format!("it was taken on processor {}, this is {model}{why}", then.cpu));
    if now == KvmKind::SoftwareNested || then.cpu.vendor != model.vendor {
        return Err(other(""));
    }
    let supported = host_kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| SnapshotError::Kvm { call: "KVM_GET_SUPPORTED_CPUID", source })?;
    let guest = saved.vcpus.first().map_or(&[][..], |vcpu| vcpu.cpuid());
    match cpuid::missing_feature(guest, supported.as_slice()) {
        None => Ok(()),
        Some(feature) => Err(other(&format!(", which lacks {feature}"))),
    }
}

/// The snapshot in `dir` as one that others can be changes to; `None` if there is no saying where that is.
pub(super) fn parent(dir: &Path, meta: &Meta) -> Option<Parent> {
    Some(Parent { path: std::fs::canonicalize(dir).ok()?, memory_id: meta.memory_id })
}

/// What gives RAM its pages, from now on.
pub(super) fn pager(
    ram: &Ram,
    sources: &[Source],
    from: &SnapshotSource,
    saved: &Snapshot,
    ending: &Arc<Ending>,
) -> Result<Pager, VmmError> {
    let ending = ending.clone();
    let on_error = Box::new(move |problem| ending.report(Err(VcpuError::Memory(problem).into())));
    let place = Place::of(&from.path, saved.meta.memory_id);
    Ok(Pager::start(ram, sources, place, on_error).map_err(MemoryError::from)?)
}

/// Puts everything but memory where it was, and returns the vCPUs.
pub(super) fn restore(
    parts: &Parts,
    saved: &Snapshot,
    shared: &Shared,
    mut first: Option<FirstVcpu>,
) -> Result<Vec<Vcpu>, VmmError> {
    let expected = parts.transports.len();
    if saved.transports.len() != expected {
        return Err(SnapshotError::Count { what: "devices", found: saved.transports.len(), expected }.into());
    }
    let restore = |(index, vcpu): (usize, &crate::vcpu::SavedVcpu)| {
        let failed = |source| SnapshotError::Vcpu { index, source };
        let set = |fd: &mut VcpuFd, scratch: &mut XsaveScratch| Ok(vcpu.restore(fd, scratch).map_err(failed)?);
        vcpus::create(parts, index as u8, first.take(), shared, set)
    };
    let vcpus = saved.vcpus.iter().enumerate().map(restore).collect::<Result<Vec<_>, VmmError>>()?;
    let clock = |source| SnapshotError::Kvm { call: "KVM_SET_CLOCK", source };
    parts.vm.set_clock(&saved.clock).map_err(clock)?;
    parts.ioapic.lock().unwrap_or_else(PoisonError::into_inner).load(saved.ioapic.clone());
    for (transport, state) in parts.transports.iter().zip(&saved.transports) {
        let mut transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
        transport.load(state).map_err(SnapshotError::Device)?;
    }
    generation::announce(parts, &saved.ioapic)?;
    Ok(vcpus)
}
