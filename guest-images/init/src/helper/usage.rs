//! What the guest has of memory, and how many processes the container has, as /proc tells; of a container that shares its guest, what its
//! cgroup tells.

use super::pack::names;
use super::processes::own;
use super::{Broken, Output, broken};
use crate::root::read_file;
use alloc::format;
use alloc::string::String;
use guest_protocol::files::{FileMessage, Usage};

/// Sends it.
///
/// # Errors
/// There is no /proc, or it tells something else than proc_meminfo(5) says.
pub fn all(output: &mut Output<'_>) -> Result<(), Broken> {
    let text = read_file("/proc/meminfo", 64 << 10).map_err(broken("/proc/meminfo"))?;
    let names = names(b"/proc").map_err(broken("/proc"))?;
    // But for this one.
    let shown = names.iter().filter(|name| name.iter().all(u8::is_ascii_digit)).count();
    let processes = shown.saturating_sub(usize::from(own().is_some()));
    let usage = parse(&String::from_utf8_lossy(&text), u32::try_from(processes).unwrap_or(u32::MAX));
    let usage = usage.map(|usage| of_cgroup(usage).unwrap_or(usage));
    output.say(&FileMessage::Usage(usage.ok_or_else(|| Broken("/proc/meminfo: not understood".into()))?))
}

/// The same of the cgroup that is the container's root of all, if there is such a one (Documentation/admin-guide/cgroup-v2.rst).
fn of_cgroup(guest: Usage) -> Option<Usage> {
    let read = |name: &str| {
        let text =
            read_file(&format!("/sys/fs/cgroup/memory.{name}"), 64 << 10).ok().filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    share(guest, &read("current")?, &read("max")?, &read("stat")?)
}

fn share(guest: Usage, current: &str, max: &str, stat: &str) -> Option<Usage> {
    let field = |name: &str| {
        stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
    };
    let used: u64 = current.trim().parse().ok()?;
    let in_use = used.saturating_sub(field("inactive_file")?);
    // `max`: as much as there is.
    let total = max.trim().parse().unwrap_or(guest.total).min(guest.total);
    Some(Usage {
        total,
        free: total.saturating_sub(used),
        available: total.saturating_sub(in_use),
        cached: field("file")?,
        workload: in_use,
        ..guest
    })
}

fn parse(text: &str, processes: u32) -> Option<Usage> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Usage {
        total: field("MemTotal")?,
        free: field("MemFree")?,
        available: field("MemAvailable")?,
        cached: field("Cached")?,
        workload: field("AnonPages")?.checked_add(field("Shmem")?)?.checked_add(field("PageTables")?)?,
        processes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_guest_is_what_its_cgroup_says() {
        let guest = Usage { total: 1000, free: 900, available: 950, cached: 10, workload: 60, processes: 2 };
        let stat = "anon 50\nfile 40\ninactive_file 30\n";
        let own = Usage { total: 500, free: 400, available: 430, cached: 40, workload: 70, processes: 2 };
        assert_eq!(share(guest, "100\n", "500\n", stat), Some(own));
        let unlimited = Usage { total: 1000, free: 900, available: 930, cached: 40, workload: 70, processes: 2 };
        assert_eq!(share(guest, "100\n", "max\n", stat), Some(unlimited));
        assert_eq!(share(guest, "x", "max", stat), None);
    }

    #[test]
    fn memory_is_told_in_bytes() {
        let text = "MemTotal:         229000 kB\nMemFree:          200000 kB\nMemAvailable:     210000 kB\nBuffers:  0 kB\nCached:  9000 kB\nSwapCached:  1 kB\n\
            AnonPages:  700 kB\nMapped: 50 kB\nShmem:  60 kB\nPageTables:  8 kB\n";
        let usage = parse(text, 3).unwrap();
        assert_eq!((usage.total, usage.free, usage.available), (229_000 << 10, 200_000 << 10, 210_000 << 10));
        assert_eq!((usage.cached, usage.workload, usage.processes), (9000 << 10, 768 << 10, 3));
        for broken in [
            "",
            "MemTotal: 1 kB",
            &text.replace("200000 kB", "x kB"),
            &text.replace("Cached", "C"),
            &text.replace("Shmem", "S"),
        ] {
            assert_eq!(parse(broken, 3), None, "{broken}");
        }
    }
}
