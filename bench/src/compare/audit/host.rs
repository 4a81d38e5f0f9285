//! What /proc of this host says of a process and its threads (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::OnceLock;

use rustix::thread::CapabilitySet;
use serde::Serialize;

use super::{Monitor, Mount};

/// The namespaces that a process can have of its own.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// SECCOMP_MODE_FILTER, as `status` tells it.
const FILTERED: &str = "2";

/// A process, seen from its host.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Outside {
    /// What it is: `the microVM's process`, `the container's process`.
    pub what: &'static str,
    /// Its id.
    pub pid: u32,
    /// Its user, as this host counts.
    pub uid: String,
    /// What it has open.
    pub descriptors: Descriptors,
    /// Its namespaces, and which of them are not those of this program.
    pub namespaces: BTreeMap<&'static str, bool>,
    /// File systems that it sees.
    pub mounts: Vec<Mount>,
    /// Its threads.
    pub threads: Vec<Thread>,
}

/// Open descriptors.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Descriptors {
    /// All.
    pub count: usize,
    /// Sockets and pipes, which have another end somewhere.
    pub connected: usize,
    /// The kernel's objects: of KVM, event counters, timers, memory.
    pub objects: usize,
    /// Files and devices, by their paths.
    pub files: Vec<String>,
}

/// A thread.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Its name; `main` for the first.
    pub name: String,
    /// The kernel holds it to a filter of system calls (`Seccomp` of proc_pid_status(5)).
    pub filtered: bool,
    /// It is the kernel's own (PF_IO_WORKER, PF_USER_WORKER; linux/sched.h), counted as the process's, and makes no system calls.
    pub kernels: bool,
    /// The calls of the host's kernel that it may make; none if it has a filter and what that has is not known.
    pub syscalls: Option<usize>,
    /// It cannot get more privileges from programs.
    pub no_new_privs: bool,
    /// Capabilities that it has, by their names.
    pub capabilities: Vec<String>,
    /// Those that it can have at most.
    pub bounding: Vec<String>,
}

impl Outside {
    /// The process of a microVM.
    pub(super) fn monitor(monitor: &Monitor) -> io::Result<Self> {
        Self::of("the microVM's process", monitor.pid, &|name| {
            // All but the first of a machine's processors have numbers.
            let name = if name.starts_with("vcpu") { "vcpu" } else { name };
            monitor.lists.iter().find(|(of, _)| of == name).map(|(_, count)| *count)
        })
    }

    /// The process of a container.
    pub(super) fn container(pid: u32) -> io::Result<Self> {
        Self::of("the container's process", pid, &|_| None)
    }

    fn of(what: &'static str, pid: u32, list: &dyn Fn(&str) -> Option<usize>) -> io::Result<Self> {
        let all = host_syscalls();
        let mut ids: Vec<u32> = names(&format!("/proc/{pid}/task"))?.iter().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        let thread = |id: &u32| {
            let dir = format!("/proc/{pid}/task/{id}");
            let status = status(&fs::read_to_string(format!("{dir}/status")).ok()?);
            let name = if *id == pid { "main" } else { status.get("Name")? };
            let mut thread = Thread::of(name, &status, list(name), all);
            if is_kernels(&fs::read_to_string(format!("{dir}/stat")).ok()?) {
                (thread.kernels, thread.syscalls) = (true, Some(0));
            }
            Some(thread)
        };
        let uid = status(&fs::read_to_string(format!("/proc/{pid}/status"))?).remove("Uid").unwrap_or_default();
        Ok(Outside {
            what,
            pid,
            uid: uid.split_ascii_whitespace().next().unwrap_or_default().to_owned(),
            descriptors: Descriptors::of(pid)?,
            namespaces: NAMESPACES.into_iter().map(|name| (name, is_own(pid, name))).collect(),
            mounts: mounts(&fs::read_to_string(format!("/proc/{pid}/mountinfo"))?),
            // One that ends meanwhile is none.
            threads: ids.iter().filter_map(thread).collect(),
        })
    }
}

impl Thread {
    fn of(name: &str, status: &BTreeMap<String, String>, list: Option<usize>, all: Option<usize>) -> Self {
        let is = |key: &str, value: &str| status.get(key).is_some_and(|is| is == value);
        let set = |key: &str| capabilities(status.get(key).map_or("", String::as_str));
        let filtered = is("Seccomp", FILTERED);
        Thread {
            name: name.to_owned(),
            filtered,
            kernels: false,
            // A list that nobody holds the thread to counts for nothing.
            syscalls: if filtered { list } else { all },
            no_new_privs: is("NoNewPrivs", "1"),
            capabilities: set("CapEff"),
            bounding: set("CapBnd"),
        }
    }
}

impl Descriptors {
    fn of(pid: u32) -> io::Result<Self> {
        let mut found = Descriptors::default();
        for fd in names(&format!("/proc/{pid}/fd"))? {
            // It may be closed by now.
            let Ok(target) = fs::read_link(format!("/proc/{pid}/fd/{fd}")) else { continue };
            found.count += 1;
            match target.to_string_lossy() {
                target if target.starts_with("socket:") || target.starts_with("pipe:") => found.connected += 1,
                target if target.starts_with('/') => found.files.push(target.into_owned()),
                _ => found.objects += 1,
            }
        }
        found.files.sort_unstable();
        Ok(found)
    }
}

/// How many system calls this kernel has for programs of its own kind, by its symbols; those that it was built without are weak ones.
#[must_use]
pub fn host_syscalls() -> Option<usize> {
    // Some hundred thousand lines, which stay what they are.
    static COUNT: OnceLock<Option<usize>> = OnceLock::new();
    let read = || Some(count(&fs::read_to_string("/proc/kallsyms").ok()?)).filter(|count| *count > 0);
    *COUNT.get_or_init(read)
}

fn count(symbols: &str) -> usize {
    let is_call = |line: &&str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, name) = (words.next(), words.next().and_then(|name| name.strip_prefix("__x64_sys_")));
        matches!(kind, Some("T" | "t")) && name.is_some_and(|name| name != "ni_syscall")
    };
    symbols.lines().filter(is_call).count()
}

/// The id of this host's boot.
pub(super) fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Whether that is the program of a process.
pub(super) fn runs(pid: u32, program: &str) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).next() == Some(program.as_bytes())
}

/// By the flags in a thread's `stat` (proc_pid_stat(5)), which come behind its name in parentheses.
fn is_kernels(stat: &str) -> bool {
    const KERNELS: u64 = 0x10 | 0x4000;
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & KERNELS != 0)
}

fn is_own(pid: u32, name: &str) -> bool {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
    of(&pid.to_string()) != of("self")
}

fn names(dir: &str) -> io::Result<Vec<String>> {
    Ok(fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn status(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(line).collect()
}

fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, behind) = line.split_once(" - ")?;
        let (path, kind) = (before.split(' ').nth(4)?, behind.split(' ').next()?);
        Some(Mount { path: path.to_owned(), kind: kind.to_owned() })
    };
    text.lines().filter_map(mount).collect()
}

/// Names of the capabilities in a set (linux/capability.h); of those that have none here, their numbers.
#[must_use]
pub fn capabilities(set: &str) -> Vec<String> {
    let mut named = CapabilitySet::from_bits_retain(u64::from_str_radix(set, 16).unwrap_or(0)).iter_names();
    let mut names: Vec<String> = named.by_ref().map(|(name, _)| name.to_owned()).collect();
    let nameless = named.remaining().bits();
    names.extend((0..u64::BITS).filter(|bit| nameless >> bit & 1 == 1).map(|bit| bit.to_string()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_filter_that_is_there_lessens_what_a_thread_may() {
        let of = |seccomp: &str| {
            let text =
                format!("Name:\tx\nCapEff:\t0000000000200001\nCapBnd:\t0\nNoNewPrivs:\t1\nSeccomp:\t{seccomp}\n");
            Thread::of("x", &status(&text), Some(30), Some(400))
        };
        let filtered = of("2");
        assert_eq!((filtered.filtered, filtered.syscalls, filtered.no_new_privs), (true, Some(30), true));
        assert_eq!(filtered.capabilities, ["CHOWN", "SYS_ADMIN"]);
        assert!(filtered.bounding.is_empty());
        assert_eq!((of("0").filtered, of("0").syscalls), (false, Some(400)));
        assert_eq!(capabilities("8000000000000000"), ["63"]);
    }

    #[test]
    fn what_a_kernel_was_built_without_is_not_counted() {
        let symbols =
            "0 T __x64_sys_ni_syscall\n0 W __x64_sys_kexec_load\n0 T __x64_sys_read\n0 t __x64_sys_bpf\n0 T sys_x\n";
        assert_eq!((count(symbols), count("")), (2, 0));
    }

    #[test]
    fn threads_of_the_kernels_own_are_told_apart() {
        assert!(is_kernels("7 (kvm-nx) x) S 1 7 7 0 -1 16384 0"));
        assert!(!is_kernels("7 (main) S 1 7 7 0 -1 4194560 0") && !is_kernels(""));
    }

    #[test]
    fn this_process_is_seen() {
        let pid = std::process::id();
        let seen = Outside::container(pid).unwrap();
        assert!(seen.threads.len() > 1 && seen.threads[0].name == "main" && !seen.threads[0].filtered, "{seen:?}");
        assert!(seen.descriptors.count >= 3 && !seen.mounts.is_empty(), "{seen:?}");
        assert!(seen.namespaces.len() == NAMESPACES.len() && seen.namespaces.values().all(|own| !own), "{seen:?}");
        assert!(Outside::container(u32::MAX).is_err());
        assert!(!runs(pid, "/no") && boot_id().is_some_and(|id| id.len() == 36));
    }
}
