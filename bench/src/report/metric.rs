//! The rows of the comparison: what is measured, in which unit, and which end is the good one.

use serde::{Deserialize, Serialize};

/// In what a row's samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// 1024 bytes.
    Kib,
    /// 1,048,576 bytes a second.
    MibPerSecond,
    /// How many a minute.
    PerMinute,
    /// How many.
    Count,
}

impl Unit {
    /// As it stands behind a number.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Unit::Ms => "ms",
            Unit::Kib => "KiB",
            Unit::MibPerSecond => "MiB/s",
            Unit::PerMinute => "/min",
            Unit::Count => "",
        }
    }
}

/// A row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// As `--assert` and the JSON call it.
    pub key: &'static str,
    /// As people call it.
    pub title: &'static str,
    /// The samples' unit.
    pub unit: Unit,
    /// More is better.
    pub more_is_better: bool,
    /// Calculated from other rows, not measured.
    pub computed: bool,
}

const fn row(key: &'static str, title: &'static str, unit: Unit) -> Metric {
    Metric { key, title, unit, more_is_better: false, computed: false }
}

const fn speed(key: &'static str, title: &'static str) -> Metric {
    Metric { more_is_better: true, ..row(key, title, Unit::MibPerSecond) }
}

/// All rows, in the order in which they are shown.
pub const METRICS: [Metric; 27] = [
    row("start", "start to first output", Unit::Ms),
    row("run", "start to exit", Unit::Ms),
    row("teardown", "last output to gone", Unit::Ms),
    row("compute", "a loop of arithmetic in sh", Unit::Ms),
    row("syscalls", "a loop of stat(2) in sh", Unit::Ms),
    speed("disk-write", "own files, written and synced"),
    speed("disk-read", "own files, read again"),
    row("disk-sync", "own files, 4 KiB synced", Unit::Ms),
    speed("volume-write", "volume, written and synced"),
    speed("volume-read", "volume, read again"),
    row("volume-sync", "volume, 4 KiB synced", Unit::Ms),
    speed("net-out", "network, to the host"),
    speed("net-in", "network, from the host"),
    row("net-trip", "network, there and back", Unit::Ms),
    row("image-disk", "disk of the image", Unit::Kib),
    row("instance-disk", "disk of an instance, beside", Unit::Kib),
    row("memory-first", "memory of the first (PSS)", Unit::Kib),
    row("memory-next", "memory of each more (PSS)", Unit::Kib),
    row("memory-front", "of that, the verb that waits", Unit::Kib),
    row("memory-waiting", "memory of one that waits (PSS)", Unit::Kib),
    row("memory-host", "what the host has less, each", Unit::Kib),
    Metric { more_is_better: true, ..row("rate", "started and ended", Unit::PerMinute) },
    Metric { more_is_better: true, computed: true, ..row("density", "fit into the memory (computed)", Unit::Count) },
    Metric { more_is_better: true, ..row("fleet", "idle at a time", Unit::Count) },
    row("fleet-start", "start to first output, of each", Unit::Ms),
    row("fleet-memory", "memory of each (PSS)", Unit::Kib),
    row("fleet-left", "what the host has less afterwards", Unit::Kib),
];

/// The row of that key.
#[must_use]
pub fn metric(key: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.key == key)
}

/// What can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its name, everywhere.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// It isolates nothing: what it takes is the floor for the others, and no contest.
    pub floor: bool,
    /// Its guest's kernel boots each time. Once it runs, such a guest is like any other.
    pub boots: bool,
    /// A bare microVM, without what makes it a container: it is there if it is asked for.
    pub monitor: bool,
}

const fn arm(name: &'static str, what: &'static str) -> Kind {
    Kind { name, what, floor: false, boots: false, monitor: false }
}

const fn monitor(name: &'static str, what: &'static str) -> Kind {
    Kind { boots: true, monitor: true, ..arm(name, what) }
}

/// All arms, in the order in which they are shown.
pub const ARMS: [Kind; 13] = [
    Kind { floor: true, ..arm("process", "a bare process, in the image's files by chroot(8)") },
    arm("runc", "`runc run` of a bundle"),
    arm("crun", "`crun run` of a bundle"),
    arm("podman", "`podman run --rm`"),
    arm("docker", "`docker run --rm`"),
    Kind { boots: true, ..arm("vm-cold", "`bulkhead run --rm --cold`: the guest boots") },
    arm("vm-warm", "`bulkhead run --rm`: from a template"),
    arm("vm-restored", "`bulkhead run NAME@warm`: a shell that has waited since `commit --memory`"),
    arm("vm-pool", "`bulkhead exec` into one of those that wait: `run -d` was before, `rm -f` comes after"),
    monitor("vm-boot", "`bulkhead vmm`: a bare microVM that boots"),
    monitor("firecracker", "the same by Firecracker"),
    monitor("cloud-hypervisor", "the same by Cloud Hypervisor"),
    monitor("qemu", "the same by QEMU's machine microvm"),
];

/// One thing switched at a time, beside `base`, which is what users type.
pub const VARIANTS: [Kind; 8] = [
    arm("base", "`bulkhead run --rm`: from a template, 256 MiB, one vCPU"),
    arm("cold", "--cold: without a template"),
    arm("unconfined", "BULKHEAD_SANDBOX=off: the microVM's process is not confined"),
    arm("disk", "without --rm: a writable layer on a disk, which stays"),
    arm("console", "--append console=ttyS0: the kernel talks on a serial port"),
    arm("small", "-m 128m"),
    arm("large", "-m 1g"),
    arm("two-cpus", "--cpus 2"),
];

/// Groups of rows that can be measured without the others, by names, and what is in each.
pub const GROUPS: [(&str, &str); 6] = [
    ("sizes", "disk of the image"),
    ("times", "starts and ends, and their phases"),
    ("memory", "memory, and disk of an instance"),
    ("loops", "arithmetic and system calls"),
    ("moves", "disks, volumes and networks"),
    ("rate", "instances a minute"),
];

/// The arm or variant of that name.
#[must_use]
pub fn kind(name: &str) -> Option<&'static Kind> {
    ARMS.iter().chain(&VARIANTS).find(|arm| arm.name == name)
}
