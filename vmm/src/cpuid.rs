//! What each vCPU says it is: KVM's supported leaves, with topology and identity filled in per vCPU.
//!
//! Leaf numbers and fields: SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const X2APIC: u32 = 1 << 21;
const HTT: u32 = 1 << 28;

/// What the leaves of one vCPU are made from.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Index of the vCPU; also its APIC id.
    pub index: u8,
    /// vCPUs of the machine.
    pub count: u8,
    /// KVM offers TSC-deadline mode of the LAPIC timer (KVM_CAP_TSC_DEADLINE_TIMER).
    pub tsc_deadline: bool,
}

/// Makes `supported` (KVM_GET_SUPPORTED_CPUID) say that it is vCPU `id.index` of `id.count`, all cores of one package.
///
/// KVM leaves the hypervisor bit clear on real hardware; without it a Linux guest finds no kvm-clock.
pub fn specialise(supported: &mut CpuId, id: Identity) {
    for entry in supported.as_mut_slice() {
        match entry.function {
            0x1 => {
                let clflush_and_brand = entry.ebx & 0xffff;
                entry.ebx = clflush_and_brand | u32::from(id.index) << 24 | u32::from(id.count) << 16;
                entry.ecx |= HYPERVISOR | X2APIC;
                set(&mut entry.ecx, TSC_DEADLINE, id.tsc_deadline);
                set(&mut entry.edx, HTT, id.count > 1);
            }
            // Deterministic cache parameters: L1 and L2 are private, L3 is shared by the package; one core a vCPU.
            0x4 if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { u32::from(id.count) - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | sharing << 14 | (u32::from(id.count) - 1) << 26;
            }
            0xb | 0x1f => topology(entry, id),
            // AMD: number of threads in the package, and the width of a core id within it.
            0x8000_0008 => entry.ecx = (u32::from(id.count) - 1) | (core_bits(id.count) << 12),
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { u32::from(id.count) - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | sharing << 14;
            }
            // AMD: extended APIC id, one thread a core, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (u32::from(id.index), u32::from(id.index), 0),
            _ => {}
        }
    }
}

/// Extended topology (SDM leaf 0BH): level 0 is one thread a core, level 1 all cores of the package.
fn topology(entry: &mut kvm_cpuid_entry2, id: Identity) {
    let (shift, logical, kind) = match entry.index {
        0 => (0, 1, 1),
        1 => (core_bits(id.count), u32::from(id.count), 2),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = logical;
    entry.ecx = entry.index & 0xff | kind << 8;
    entry.edx = u32::from(id.index);
}

/// Bits an APIC id needs for `count` cores.
fn core_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

fn set(word: &mut u32, bit: u32, on: bool) {
    if on { *word |= bit } else { *word &= !bit }
}

/// A processor model, as leaves 0 and 1 tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Twelve characters.
    pub vendor: String,
    /// Family, model and stepping, as in EAX of leaf 1.
    pub signature: u32,
}

impl Model {
    /// The model of whoever has these leaves.
    pub fn of(leaves: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |function| leaves.iter().find(|entry| entry.function == function).copied().unwrap_or_default();
        let vendor = leaf(0);
        let bytes = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
        Model { vendor: String::from_utf8_lossy(&bytes).into_owned(), signature: leaf(1).eax }
    }

    /// The model of this host's processor.
    pub fn host() -> Self {
        let leaf = |function| {
            let result = std::arch::x86_64::__cpuid(function);
            kvm_cpuid_entry2 {
                function,
                eax: result.eax,
                ebx: result.ebx,
                ecx: result.ecx,
                edx: result.edx,
                ..Default::default()
            }
        };
        Model::of(&[leaf(0), leaf(1)])
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:#x}", self.vendor, self.signature)
    }
}

/// Words of CPUID that are nothing but feature bits: leaf, subleaf, and which of EAX, EBX, ECX, EDX.
const FEATURES: [(u32, u32, usize); 10] = [
    (0x1, 0, 2),
    (0x1, 0, 3),
    (0x7, 0, 1),
    (0x7, 0, 2),
    (0x7, 0, 3),
    (0xd, 0, 0),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0x8000_0008, 0, 1),
];

/// The first feature that a guest has been told of and that `supported` lacks, by leaf, register and bit.
pub fn missing_feature(guest: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Option<String> {
    let word = |leaves: &[kvm_cpuid_entry2], (function, index, register): (u32, u32, usize)| {
        let leaf = leaves.iter().find(|entry| entry.function == function && entry.index == index);
        leaf.map_or(0, |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx][register])
    };
    FEATURES.iter().find_map(|&place| {
        // What `specialise` adds is there whatever KVM says; OSXSAVE and OSPKE follow the guest's own CR4.
        let ours = match place {
            (0x1, 0, 2) => HYPERVISOR | TSC_DEADLINE | X2APIC | 1 << 27,
            (0x1, 0, 3) => HTT,
            (0x7, 0, 2) => 1 << 4,
            _ => 0,
        };
        let missing = word(guest, place) & !word(supported, place) & !ours;
        let (function, index, register) = place;
        (missing != 0).then(|| {
            let register = ["EAX", "EBX", "ECX", "EDX"][register];
            format!("CPUID {function:#x}.{index} {register} bit {}", missing.trailing_zeros())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    fn specialised(entry: kvm_cpuid_entry2, index: u8, count: u8) -> kvm_cpuid_entry2 {
        let mut id = CpuId::from_entries(&[entry]).unwrap();
        specialise(&mut id, Identity { index, count, tsc_deadline: true });
        id.as_slice()[0]
    }

    #[test]
    fn leaf_1_names_the_vcpu_and_the_hypervisor() {
        let got = specialised(leaf(1, 0, 0), 3, 4);
        assert_eq!(got.ebx >> 24, 3);
        assert_eq!((got.ebx >> 16) & 0xff, 4);
        assert_eq!(got.ecx & (HYPERVISOR | TSC_DEADLINE | X2APIC), HYPERVISOR | TSC_DEADLINE | X2APIC);
        assert_ne!(got.edx & HTT, 0);
        assert_eq!(specialised(leaf(1, 0, 0), 0, 1).edx & HTT, 0);
    }

    #[test]
    fn the_topology_leaf_counts_cores() {
        let core = specialised(leaf(0xb, 1, 0), 2, 3);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
        let thread = specialised(leaf(0xb, 0, 0), 2, 3);
        assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, 2));
        let end = specialised(leaf(0xb, 2, 0), 2, 3);
        assert_eq!((end.ebx, end.ecx), (0, 2));
    }

    #[test]
    fn the_amd_leaves_agree() {
        assert_eq!(specialised(leaf(0x8000_0008, 0, 0), 1, 2).ecx, 1 | 1 << 12);
        assert_eq!(specialised(leaf(0x8000_001e, 0, 0), 1, 2).eax, 1);
        assert_eq!(specialised(leaf(0x8000_001d, 3, 0x163), 0, 4).eax >> 14 & 0xfff, 3);
        assert_eq!(specialised(leaf(0x8000_001d, 0, 0x121), 0, 4).eax >> 14 & 0xfff, 0);
    }

    #[test]
    fn group_8_a_missing_feature_is_named() {
        let guest = kvm_cpuid_entry2 { ebx: 0b1010, ..leaf(7, 0, 0) };
        let less = kvm_cpuid_entry2 { ebx: 0b0010, ..leaf(7, 0, 0) };
        assert_eq!(missing_feature(&[guest], &[guest]), None);
        assert_eq!(missing_feature(&[less], &[guest]), None);
        assert_eq!(missing_feature(&[guest], &[less]).as_deref(), Some("CPUID 0x7.0 EBX bit 3"));
        assert_eq!(missing_feature(&[guest], &[]).as_deref(), Some("CPUID 0x7.0 EBX bit 1"));
        let ours = kvm_cpuid_entry2 { ecx: HYPERVISOR | TSC_DEADLINE | X2APIC, edx: HTT, ..leaf(1, 0, 0) };
        assert_eq!(missing_feature(&[ours], &[leaf(1, 0, 0)]), None);
    }

    #[test]
    fn group_8_a_model_is_its_vendor_and_signature() {
        let vendor = kvm_cpuid_entry2 { ebx: 0x6874_7541, edx: 0x6974_6e65, ecx: 0x444d_4163, ..leaf(0, 0, 0) };
        let model = Model::of(&[vendor, leaf(1, 0, 0xa20f12)]);
        assert_eq!(model.to_string(), "AuthenticAMD 0xa20f12");
        assert_ne!(Model::host().signature, 0);
    }
}
