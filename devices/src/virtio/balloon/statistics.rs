//! What a guest tells of its memory (virtio 1.3, 5.5.6.3).

use serde_json::{Map, Value};

use crate::virtio::chain::Buffers;

/// Names of the statistics by their tags: those of the specification and, from 10 on, of Linux. As Firecracker calls them.
const NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];
/// Bytes of a tag and its value.
const ENTRY: usize = 10;
/// Most entries that are looked at.
const MOST: usize = 64;

/// The last ones that the guest gave; those it did not give are not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics([Option<u64>; NAMES.len()]);

impl Statistics {
    /// Reads the driver's buffer. Tags that are unknown are left out, and of one that comes twice the last counts.
    pub fn read(buffers: Buffers) -> Self {
        let mut bytes = [0; MOST * ENTRY];
        let len = buffers.read(&mut bytes);
        let mut statistics = Statistics::default();
        for entry in bytes[..len].chunks_exact(ENTRY) {
            let (tag, value) = entry.split_at(2);
            let tag = tag.try_into().map_or(u16::MAX, u16::from_le_bytes);
            if let Some(place) = statistics.0.get_mut(usize::from(tag)) {
                *place = value.try_into().ok().map(u64::from_le_bytes);
            }
        }
        statistics
    }

    /// By their names.
    pub fn to_json(self) -> Map<String, Value> {
        let named = NAMES.iter().zip(self.0);
        named.filter_map(|(name, value)| Some(((*name).to_owned(), value?.into()))).collect()
    }

    /// What [`Self::to_json`] gave; `None` if it did not.
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut statistics = Statistics::default();
        for (name, value) in value.as_object()? {
            let tag = NAMES.iter().position(|known| known == name)?;
            statistics.0[tag] = Some(value.as_u64()?);
        }
        Some(statistics)
    }
}
