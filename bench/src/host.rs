//! What a host is, as far as it bears on what is measured on it.

use std::fs;

use serde::{Deserialize, Serialize};

/// A host. What it does not tell is "-".
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// How KVM runs guests.
    pub kvm: String,
    /// The host's kernel.
    pub kernel: String,
    /// What the kernel does about flaws of the processor: those that it says are mitigated.
    pub mitigations: String,
    /// Transparent huge pages.
    pub thp: String,
    /// Of the first processor's frequency.
    pub governor: String,
    /// The file system of temporary files, where containers' files are put.
    pub file_system: String,
    /// Load of the last minute before, and after.
    pub load: [f64; 2],
}

impl Host {
    /// This host, before anything is measured.
    #[must_use]
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let huge = read("/sys/kernel/mm/transparent_hugepage/enabled");
        let chosen =
            huge.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen.to_owned());
        let load = load();
        Host {
            cpu: model.map_or_else(|| "-".into(), |(_, name)| name.trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: vmm::host::memory_mib(),
            kvm: vmm::host::kind().to_string(),
            kernel: read("/proc/sys/kernel/osrelease"),
            mitigations: mitigations(),
            thp: chosen.unwrap_or(huge),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            file_system: file_system(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()),
            load: [load, load],
        }
    }

    /// Everything has been measured.
    pub fn done(&mut self) {
        self.load[1] = load();
    }

    /// What two results should have in common to be compared.
    #[must_use]
    pub fn fixed(&self) -> [(&'static str, String); 9] {
        [
            ("CPU", self.cpu.clone()),
            ("CPUs", self.cpus.to_string()),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("KVM", self.kvm.clone()),
            ("kernel", self.kernel.clone()),
            ("mitigations", self.mitigations.clone()),
            ("huge pages", self.thp.clone()),
            ("governor", self.governor.clone()),
            ("temporary files on", self.file_system.clone()),
        ]
    }

    /// Guest kernels are emulated here, which distorts whatever they take part in.
    #[must_use]
    pub fn emulates_guest_kernels(&self) -> bool {
        self.kvm == vmm::host::KvmKind::SoftwareNested.to_string()
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "-".into(), |text| text.trim().to_owned())
}

/// How many processes wanted a processor, on average of the last minute.
pub(crate) fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

fn mitigations() -> String {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let mitigated =
        |entry: &fs::DirEntry| fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Mitigation"));
    let mut names: Vec<_> =
        entries.filter(mitigated).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    if names.is_empty() { "-".into() } else { names.join(" ") }
}

/// The file system that temporary files are on: of the mounts above them, the longest path.
fn file_system(mounts: &str) -> String {
    let place = std::env::temp_dir();
    let fields = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let above = fields.filter(|(path, _)| place.starts_with(path));
    // Of several at one place, the last one mounted is what is seen.
    above.max_by_key(|(path, _)| path.len()).map_or_else(|| "-".into(), |(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_described() {
        let host = Host::here();
        assert!(host.cpus > 0 && host.memory_mib > 0 && host.kernel.contains('.') && !host.kvm.is_empty(), "{host:?}");
        assert!(host.fixed().iter().all(|(_, value)| !value.is_empty()), "{host:?}");
    }

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        assert_eq!(file_system("a / ext4 rw 0 0\nb /home xfs rw 0 0\n"), "ext4");
        assert_eq!(file_system(""), "-");
        let place = std::env::temp_dir();
        let mounts = format!("a / ext4 rw 0 0\nb {0} tmpfs rw 0 0\nc {0} xfs rw 0 0\n", place.display());
        assert_eq!(file_system(&mounts), "xfs");
    }
}
