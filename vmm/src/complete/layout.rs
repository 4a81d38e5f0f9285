//! Where the processor puts state components in an XSAVE area (SDM vol. 1, 13.4).
//!
//! The host's own CPUID tells: offsets and sizes in an area are the processor's, and the guest runs on that.

use std::arch::x86_64::{__cpuid_count, _fxsave};
use std::sync::OnceLock;

/// Bytes of the legacy region and the header, which every XSAVE area has.
pub(super) const FIXED_SIZE: usize = 576;
/// CPUID leaf of the extended state.
const LEAF_XSTATE: u32 = 0xd;
/// MXCSR bits that exist where the processor does not say (SDM vol. 1, 11.6.6).
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;

/// One state component's place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Component {
    /// Byte offset in the standard form; supervisor components have none.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// Whether the compacted form aligns it to 64 bytes.
    pub aligned: bool,
}

/// The layout of XSAVE areas.
#[derive(Debug, Clone)]
pub struct XsaveLayout {
    /// By component number; those below 2 live in the legacy region and are not here.
    pub components: [Component; 63],
    /// Components that XCR0 may name.
    pub user: u64,
    /// Components that IA32_XSS may name.
    pub supervisor: u64,
    /// MXCSR bits that exist.
    pub mxcsr_mask: u32,
}

impl XsaveLayout {
    /// This processor's layout, read once.
    pub fn host() -> &'static XsaveLayout {
        static HOST: OnceLock<XsaveLayout> = OnceLock::new();
        HOST.get_or_init(|| {
            let user = __cpuid_count(LEAF_XSTATE, 0);
            let system = __cpuid_count(LEAF_XSTATE, 1);
            let mut layout = XsaveLayout {
                components: [Component::default(); 63],
                user: u64::from(user.edx) << 32 | u64::from(user.eax),
                supervisor: u64::from(system.edx) << 32 | u64::from(system.ecx),
                mxcsr_mask: host_mxcsr_mask(),
            };
            for (number, component) in layout.components.iter_mut().enumerate().skip(2) {
                if (layout.user | layout.supervisor) & 1 << number != 0 {
                    let leaf = __cpuid_count(LEAF_XSTATE, number as u32);
                    *component = Component { offset: leaf.ebx, size: leaf.eax, aligned: leaf.ecx & 2 != 0 };
                }
            }
            layout
        })
    }

    /// Offset of each extended component of `wanted` in the standard form, or in the compacted one whose XCOMP_BV is
    /// `compacted` (SDM vol. 1, 13.4.3).
    pub(super) fn places(&self, wanted: u64, compacted: Option<u64>) -> impl Iterator<Item = Place> + '_ {
        let mut next = FIXED_SIZE;
        (2..self.components.len()).filter_map(move |number| {
            let component = self.components[number];
            let (standard, size) = (component.offset as usize, component.size as usize);
            let mut area = standard;
            if let Some(present) = compacted {
                if present & 1 << number == 0 {
                    return None;
                }
                if component.aligned {
                    next = next.next_multiple_of(64);
                }
                area = next;
                next += size;
            }
            (wanted & 1 << number != 0 && size != 0).then_some(Place { area, standard, size })
        })
    }
}

/// A component in the guest's area and in the hypervisor's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Byte offset in the guest's area.
    pub area: usize,
    /// Byte offset in the standard form.
    pub standard: usize,
    /// Bytes.
    pub size: usize,
}

fn host_mxcsr_mask() -> u32 {
    #[repr(C, align(16))]
    struct Area([u8; 512]);
    let mut area = Area([0; 512]);
    // SAFETY: FXSAVE is part of x86-64; it writes 512 bytes to the 16-byte aligned buffer that is exactly that long.
    unsafe { _fxsave(area.0.as_mut_ptr()) };
    match u32::from_le_bytes([area.0[28], area.0[29], area.0[30], area.0[31]]) {
        0 => DEFAULT_MXCSR_MASK,
        mask => mask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compacted_form_packs_and_aligns() {
        let mut layout =
            XsaveLayout { components: [Component::default(); 63], user: 0xe7, supervisor: 0, mxcsr_mask: 0xffff };
        layout.components[2] = Component { offset: 576, size: 256, aligned: false };
        layout.components[5] = Component { offset: 1088, size: 8, aligned: false };
        layout.components[6] = Component { offset: 1152, size: 512, aligned: true };
        let places = |wanted, compacted| layout.places(wanted, compacted).collect::<Vec<_>>();
        assert_eq!(places(0x67, None).iter().map(|p| p.area).collect::<Vec<_>>(), [576, 1088, 1152]);
        // Without component 2 its room is gone; 6 starts at the next multiple of 64 after 5.
        assert_eq!(places(0x40, Some(1 << 63 | 0x60)), [Place { area: 640, standard: 1152, size: 512 }]);
    }

    #[test]
    fn the_host_has_a_plausible_layout() {
        let host = XsaveLayout::host();
        assert_ne!(host.mxcsr_mask & 0x1f80, 0);
        for place in host.places(host.user, None) {
            assert!(place.standard >= FIXED_SIZE, "{place:?}");
        }
    }
}
