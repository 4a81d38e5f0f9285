//! What this host's KVM is and can do: for the choice of a guest kernel, and for `bulkhead doctor`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

/// The device every KVM user opens.
pub const DEV_KVM: &str = "/dev/kvm";
/// The only KVM API version there has been since 2007 (api.rst, 4.1).
const API_VERSION: i32 = 12;

/// How KVM runs a guest here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmKind {
    /// Intel VT-x.
    VtX,
    /// AMD-V.
    AmdV,
    /// No virtualisation extensions: guest user mode runs natively, guest kernel mode is emulated.
    SoftwareNested,
}

impl std::fmt::Display for KvmKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvmKind::VtX => "VT-x",
            KvmKind::AmdV => "AMD-V",
            KvmKind::SoftwareNested => "software-nested",
        })
    }
}

/// KVM cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no /dev/kvm.
    #[error(
        "{DEV_KVM} does not exist: this host has no KVM; load the kvm_intel or kvm_amd module, or turn on virtualisation \
         in the firmware (or nested virtualisation, if this host is a VM itself)"
    )]
    Missing,
    /// It may not be opened.
    #[error(
        "{DEV_KVM}: permission denied; add yourself to its group (usually: sudo usermod -aG kvm $USER) and log in again"
    )]
    Permission,
    /// It cannot be opened for another reason.
    #[error("{DEV_KVM}: {0}")]
    Open(io::Error),
    /// Something else answers there.
    #[error("{DEV_KVM}: API version {0}, but {API_VERSION} is needed")]
    Version(i32),
    /// KVM lacks something that a machine needs.
    #[error("{DEV_KVM}: this KVM lacks {0}; a Linux kernel from 4.20 on has it")]
    Capability(&'static str),
}

/// The capabilities without which no machine can be built, with their names in the KVM API.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens /dev/kvm and checks that it is one that machines can be built on.
pub fn open() -> Result<Kvm, HostError> {
    let kvm = Kvm::new().map_err(|e| match io::Error::from(e) {
        e if e.kind() == io::ErrorKind::NotFound => HostError::Missing,
        e if e.kind() == io::ErrorKind::PermissionDenied => HostError::Permission,
        // A device node without a driver behind it.
        e if e.raw_os_error() == Some(libc::ENODEV) || e.raw_os_error() == Some(libc::ENXIO) => HostError::Missing,
        e => HostError::Open(e),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(HostError::Version(version));
    }
    match NEEDED.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(HostError::Capability(name)),
        None => Ok(kvm),
    }
}

/// How KVM runs a guest here, told by the host's own CPU flags and the loaded back end. Asked of the host once.
pub fn kind() -> KvmKind {
    static KIND: OnceLock<KvmKind> = OnceLock::new();
    *KIND.get_or_init(find_kind)
}

fn find_kind() -> KvmKind {
    // The software back end announces itself; a CPU may keep its vmx or svm flag beside it.
    if Path::new("/sys/module/kvm_pvm").exists() {
        return KvmKind::SoftwareNested;
    }
    if Path::new("/sys/module/kvm_intel").exists() {
        return KvmKind::VtX;
    }
    if Path::new("/sys/module/kvm_amd").exists() {
        return KvmKind::AmdV;
    }
    kind_from_flags(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn kind_from_flags(cpuinfo: &str) -> KvmKind {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    let has = |flag| flags.split_ascii_whitespace().any(|word| word == flag);
    match (has("vmx"), has("svm")) {
        (true, _) => KvmKind::VtX,
        (_, true) => KvmKind::AmdV,
        _ => KvmKind::SoftwareNested,
    }
}

/// RAM of the host, MiB.
pub fn memory_mib() -> u64 {
    // SAFETY: both calls only return numbers; a negative one means "unknown" and becomes 0 pages.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    (pages.max(0) as u64).saturating_mul(size.max(0) as u64) >> 20
}

/// What `bulkhead doctor` shows of KVM.
#[derive(Debug, Serialize)]
pub struct HostReport {
    /// How guests run.
    pub kind: KvmKind,
    /// The loaded back end, if it shows itself in /sys/module.
    pub backend: Option<&'static str>,
    /// What keeps machines from running, if anything does.
    pub problem: Option<String>,
    /// Most vCPUs KVM recommends for one VM; 0 if unknown.
    pub max_vcpus: usize,
    /// Capabilities by name: needed ones and those that only help.
    pub capabilities: Vec<Capability>,
    /// RAM of the host, MiB.
    pub memory_mib: u64,
}

/// One capability of KVM.
#[derive(Debug, Serialize)]
pub struct Capability {
    /// Its name in the KVM API.
    pub name: &'static str,
    /// No machine can be built without it.
    pub needed: bool,
    /// It is there.
    pub present: bool,
}

/// Looks at the host; never fails, because what is missing is the answer.
pub fn probe() -> HostReport {
    let helpful = [
        (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
        (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
        (Cap::KvmclockCtrl, "KVM_CAP_KVMCLOCK_CTRL"),
    ];
    let kvm = Kvm::new().ok();
    let list = |caps: &[(Cap, &'static str)], needed| -> Vec<Capability> {
        let present = |cap| kvm.as_ref().is_some_and(|kvm| kvm.check_extension(cap));
        caps.iter().map(|&(cap, name)| Capability { name, needed, present: present(cap) }).collect()
    };
    let mut capabilities = list(&NEEDED, true);
    capabilities.extend(list(&helpful, false));
    let backend = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    HostReport {
        kind: kind(),
        backend: backend.into_iter().find(|name| Path::new("/sys/module").join(name).exists()),
        problem: open().err().map(|e| e.to_string()),
        max_vcpus: kvm.as_ref().map_or(0, Kvm::get_nr_vcpus),
        capabilities,
        memory_mib: memory_mib(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_flags_tell_the_kind() {
        assert_eq!(kind_from_flags("flags\t\t: fpu vmx sse"), KvmKind::VtX);
        assert_eq!(kind_from_flags("model\nflags : fpu svm"), KvmKind::AmdV);
        assert_eq!(kind_from_flags("flags : fpu vmxx hypervisor"), KvmKind::SoftwareNested);
        assert_eq!(kind_from_flags(""), KvmKind::SoftwareNested);
    }

    #[test]
    fn the_report_agrees_with_open() {
        let report = probe();
        assert_eq!(report.problem.is_none(), open().is_ok());
        assert!(report.memory_mib > 0);
    }
}
