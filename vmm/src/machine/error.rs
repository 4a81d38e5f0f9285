//! What can go wrong with a machine.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::host::HostError;
use crate::memory::MemoryError;
use crate::sandbox::SandboxError;
use crate::snapshot::SnapshotError;
use crate::vcpu::VcpuError;

/// A machine that could not be built, or broke.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The configuration cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This host cannot run machines.
    #[error(transparent)]
    Host(#[from] HostError),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The tables for kernels with ACPI.
    #[error(transparent)]
    Acpi(#[from] boot::acpi::AcpiError),
    /// A device section, or a device's host resources.
    #[error(transparent)]
    Device(#[from] devices::virtio::DeviceError),
    /// More devices than interrupt pins.
    #[error("{asked} devices are more than the {most} that have an interrupt line")]
    TooManyDevices {
        /// Devices asked for.
        asked: usize,
        /// Most there can be.
        most: usize,
    },
    /// Two devices at one address: a mistake in this file.
    #[error("device addresses: {0}")]
    Bus(#[from] devices::BusError),
    /// A snapshot that cannot be taken or gone on from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A KVM call failed.
    #[error("{call}: {source}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What for.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The console's log file.
    #[error("console log {path}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The event loop broke.
    #[error("event loop: {0}")]
    Loop(#[from] event_manager::Error),
    /// A mistake in this monitor.
    #[error("event loop: a mistake in the monitor stopped it (see the lines before)")]
    LoopPanicked,
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A vCPU broke.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

pub(super) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmmError {
    move |source| VmmError::Kvm { call, source }
}

pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Io { what, source }
}
