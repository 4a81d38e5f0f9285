//! A machine's state and memory, into files and back. The format is in `docs/snapshot-format.md`.
//!
//! - [`format`]: the container: header, digest, records;
//! - this file: what the records hold;
//! - [`memory`]: RAM into a sparse file;
//! - [`disks`]: copies of the disks that the machine can write to;
//! - [`files`]: a directory that appears whole or not at all.
//!
//! A snapshot is as untrusted as the network: [`Snapshot::decode`] bounds everything, devices check their own state, and
//! KVM checks that of the vCPUs.

mod behind;
pub mod disks;
pub mod files;
pub mod format;
pub mod memory;

use std::io;
use std::path::PathBuf;

use devices::legacy::{IoapicState, SerialState};
use devices::virtio::mmio::TransportState;
use kvm_bindings::kvm_clock_data;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, VmConfig};
use crate::cpuid::Model;
use crate::host::KvmKind;
use crate::vcpu::state::{self, SavedVcpu};
pub use format::FormatError;
use format::{Record, Writer};

/// What a record is about.
mod kind {
    pub const META: u32 = 1;
    pub const CONFIG: u32 = 2;
    pub const VCPU: u32 = 3;
    pub const CLOCK: u32 = 4;
    pub const IOAPIC: u32 = 5;
    pub const SERIAL: u32 = 6;
    pub const TRANSPORT: u32 = 7;
    pub const EXTENTS: u32 = 8;
}

/// Version of the records that have no version of their own.
const RECORD_VERSION: u32 = 1;

/// Where and when a snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The kind of KVM.
    pub kvm: KvmKind,
    /// The processor.
    pub cpu: Model,
    /// CLOCK_REALTIME of the host, in nanoseconds.
    pub taken_at_ns: u64,
    /// Identity of the memory file.
    pub memory_id: [u8; memory::ID_LEN],
    /// The snapshot whose memory has what this one's does not, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// The snapshot that another one is a change to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its directory: absolute, or as seen from the child's directory.
    pub path: PathBuf,
    /// Identity of its memory file.
    pub memory_id: [u8; memory::ID_LEN],
}

/// Everything of a machine but its memory.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Where and when.
    pub meta: Meta,
    /// What the machine was built from.
    pub config: VmConfig,
    /// Its vCPUs, in order.
    pub vcpus: Vec<SavedVcpu>,
    /// kvm-clock.
    pub clock: kvm_clock_data,
    /// The interrupt controller.
    pub ioapic: IoapicState,
    /// The serial port.
    pub serial: SerialState,
    /// Transports with their devices, in order of their windows.
    pub transports: Vec<TransportState>,
    /// The pages that the memory file has, if it does not have all.
    pub extents: Option<Vec<memory::Extent>>,
}

/// A snapshot that cannot be taken, or is none, or does not fit here.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file of it.
    #[error("snapshot {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The state file is damaged or another program's.
    #[error("snapshot {path}: {source}")]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// A record's content.
    #[error("snapshot: record '{record}': {problem}")]
    Record {
        /// Which.
        record: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The memory file belongs to another snapshot, or has been cut short.
    #[error("snapshot {0}: the memory file is not the one that belongs to the state")]
    Memory(PathBuf),
    /// Its configuration.
    #[error("snapshot: {0}")]
    Config(#[from] ConfigError),
    /// Taken on another kind of KVM or processor.
    #[error("the snapshot does not fit this host: {0}; boot anew")]
    Host(String),
    /// There is nothing to be a change to.
    #[error(
        "no snapshot that this one could be a change to; take a full one, with base_of_next or of a machine with track_dirty_pages"
    )]
    NoParent,
    /// A parent of it.
    #[error("snapshot {path}: a snapshot that it is a change to: {problem}")]
    Parent {
        /// The child.
        path: PathBuf,
        /// What is wrong with the parent.
        problem: String,
    },
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// A vCPU's state.
    #[error("vCPU {index}: {source}")]
    Vcpu {
        /// Which.
        index: usize,
        /// What is wrong.
        source: state::StateError,
    },
    /// kvm-clock.
    #[error("{call}: {source}")]
    Kvm {
        /// Which call.
        call: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// A device's state.
    #[error(transparent)]
    Device(#[from] devices::virtio::StateError),
    /// There are too few or too many of something.
    #[error("snapshot: it has {found} {what}, its configuration {expected}")]
    Count {
        /// Of what.
        what: &'static str,
        /// Records.
        found: usize,
        /// In the configuration.
        expected: usize,
    },
}

fn wrong(record: &'static str) -> impl FnOnce(String) -> SnapshotError {
    move |problem| SnapshotError::Record { record, problem }
}

impl Snapshot {
    /// The bytes of the `state` file.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut writer = Writer::default();
        let mut json = |kind, name, value: Result<Vec<u8>, serde_json::Error>| {
            let bytes = value.map_err(|e| wrong(name)(e.to_string()))?;
            writer.push(kind, RECORD_VERSION, &bytes);
            Ok::<(), SnapshotError>(())
        };
        json(kind::META, "meta", serde_json::to_vec(&self.meta))?;
        json(kind::CONFIG, "config", serde_json::to_vec(&self.config))?;
        json(kind::IOAPIC, "ioapic", serde_json::to_vec(&self.ioapic))?;
        json(kind::SERIAL, "serial", serde_json::to_vec(&self.serial))?;
        for transport in &self.transports {
            json(kind::TRANSPORT, "transport", serde_json::to_vec(transport))?;
        }
        let clock = postcard::to_allocvec(&self.clock).map_err(|e| wrong("clock")(e.to_string()))?;
        writer.push(kind::CLOCK, RECORD_VERSION, &clock);
        if let Some(extents) = &self.extents {
            let bytes = postcard::to_allocvec(extents).map_err(|e| wrong("extents")(e.to_string()))?;
            writer.push(kind::EXTENTS, RECORD_VERSION, &bytes);
        }
        for vcpu in &self.vcpus {
            let bytes = postcard::to_allocvec(vcpu).map_err(|e| wrong("vcpu")(e.to_string()))?;
            writer.push(kind::VCPU, state::VERSION, &bytes);
        }
        Ok(writer.finish())
    }

    /// The snapshot that `records` of a verified file hold.
    ///
    /// # Errors
    /// A record is missing, there twice, unknown, of another version, or not what it should be.
    pub fn decode(records: &[Record<'_>]) -> Result<Self, SnapshotError> {
        let mut parts = Parts::default();
        for record in records {
            parts.take(record)?;
        }
        let snapshot = parts.finish()?;
        let check = |what, found: usize, expected: usize| {
            if found == expected { Ok(()) } else { Err(SnapshotError::Count { what, found, expected }) }
        };
        check("vCPUs", snapshot.vcpus.len(), usize::from(snapshot.config.machine.vcpu_count))?;
        if snapshot.extents.is_some() != snapshot.meta.parent.is_some() {
            return Err(wrong("extents")("they do not go with the parent".into()));
        }
        let pages = snapshot.config.machine.mem_size_mib.saturating_mul(1 << 20) / memory::PAGE as u64;
        if !snapshot.extents.as_ref().is_none_or(|extents| memory::are_sound(extents, pages)) {
            return Err(wrong("extents")("not pages of the machine's memory".into()));
        }
        Ok(snapshot)
    }
}

/// Records as they come.
#[derive(Default)]
struct Parts {
    meta: Option<Meta>,
    config: Option<VmConfig>,
    clock: Option<kvm_clock_data>,
    ioapic: Option<IoapicState>,
    serial: Option<SerialState>,
    extents: Option<Vec<memory::Extent>>,
    vcpus: Vec<SavedVcpu>,
    transports: Vec<TransportState>,
}

impl Parts {
    fn take(&mut self, record: &Record<'_>) -> Result<(), SnapshotError> {
        let version = if record.kind == kind::VCPU { state::VERSION } else { RECORD_VERSION };
        if record.version != version {
            let problem = format!("kind {} has version {}, this program reads {version}", record.kind, record.version);
            return Err(wrong("header")(problem));
        }
        match record.kind {
            kind::META => once(&mut self.meta, "meta", json("meta", record)?),
            kind::CONFIG => once(&mut self.config, "config", json("config", record)?),
            kind::IOAPIC => once(&mut self.ioapic, "ioapic", json("ioapic", record)?),
            kind::SERIAL => once(&mut self.serial, "serial", json("serial", record)?),
            kind::CLOCK => once(&mut self.clock, "clock", binary("clock", record)?),
            kind::EXTENTS => once(&mut self.extents, "extents", binary("extents", record)?),
            kind::VCPU => {
                self.vcpus.push(binary("vcpu", record)?);
                Ok(())
            }
            kind::TRANSPORT => {
                self.transports.push(json("transport", record)?);
                Ok(())
            }
            other => Err(wrong("header")(format!("kind {other} is unknown; a newer version of this program wrote it"))),
        }
    }

    fn finish(self) -> Result<Snapshot, SnapshotError> {
        let missing = |record| move || wrong(record)("it is missing".into());
        Ok(Snapshot {
            meta: self.meta.ok_or_else(missing("meta"))?,
            config: self.config.ok_or_else(missing("config"))?,
            clock: self.clock.ok_or_else(missing("clock"))?,
            ioapic: self.ioapic.ok_or_else(missing("ioapic"))?,
            serial: self.serial.ok_or_else(missing("serial"))?,
            vcpus: self.vcpus,
            transports: self.transports,
            extents: self.extents,
        })
    }
}

fn once<T>(slot: &mut Option<T>, record: &'static str, value: T) -> Result<(), SnapshotError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(wrong(record)("it is there twice".into())),
    }
}

fn json<T: DeserializeOwned>(name: &'static str, record: &Record<'_>) -> Result<T, SnapshotError> {
    serde_json::from_slice(record.bytes).map_err(|e| wrong(name)(e.to_string()))
}

fn binary<T: DeserializeOwned>(name: &'static str, record: &Record<'_>) -> Result<T, SnapshotError> {
    match postcard::take_from_bytes(record.bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(wrong(name)("it is longer than what it holds".into())),
        Err(e) => Err(wrong(name)(e.to_string())),
    }
}

#[cfg(test)]
mod tests;
