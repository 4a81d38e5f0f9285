//! `bulkhead doctor`: what this host offers to microVMs, and what to do about each thing that is missing.
//!
//! It looks and changes nothing; files and directories are judged by what the kernel says of them, not by trying.

use std::fs;
use std::path::{Path, PathBuf};

use guest_images::kernel;
use rustix::fs::{Access, CWD, accessat};
use serde::Serialize;
use vmm::host::{self, HostReport};

use crate::args::{Doctor, Format, Network};
use crate::cgroup::{self, Cgroups, Plan};
use crate::failure::{FAILED, Failure, Outcome};
use crate::life::kernel_kind;
use crate::net;
use crate::output;
use crate::paths;

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    /// It is there.
    Ok,
    /// No container can run without it.
    Missing,
    /// Everything that Bulkhead does now works without it.
    Absent,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    /// What to do, if there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// `bulkhead run` can work here.
    can_run: bool,
    kvm: HostReport,
    checks: Vec<Check>,
}

/// Prints the report. Exit code 0 if containers can run here.
pub fn doctor(args: &Doctor) -> Outcome {
    let report = report(&Host::real(), host::probe());
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Table => print(&report)?,
    }
    if report.can_run { Ok(0) } else { Err(Failure::silent(FAILED)) }
}

fn print(report: &Report) -> std::io::Result<()> {
    let rows = report.checks.iter().map(|check| {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Missing => "MISSING",
            Status::Absent => "absent",
        };
        [check.name.to_owned(), status.to_owned(), check.detail.clone()]
    });
    output::table(["WHAT", "STATUS", "DETAIL"], rows)?;
    let mut text = String::new();
    for check in &report.checks {
        if let Some(fix) = &check.fix {
            text += &format!("{}: {fix}\n", check.name);
        }
    }
    if !text.is_empty() {
        output::print(&format!("\nWhat to do:\n{text}"))?;
    }
    output::print(if report.can_run { "\nContainers can run here.\n" } else { "\nContainers cannot run here yet.\n" })
}

/// The files of a host.
struct Host {
    root: PathBuf,
}

impl Host {
    fn real() -> Self {
        Host { root: "/".into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}

fn check(name: &'static str, present: bool, detail: impl Into<String>, fix: &str) -> Check {
    let status = if present { Status::Ok } else { Status::Absent };
    let fix = (!present && !fix.is_empty()).then(|| fix.to_owned());
    Check { name, status, detail: detail.into(), fix }
}

/// As [`check`], for what a container cannot do without.
fn needed(mut check: Check) -> Check {
    if check.status == Status::Absent {
        check.status = Status::Missing;
    }
    check
}

fn report(host: &Host, kvm: HostReport) -> Report {
    let mut checks = vec![kvm_check(&kvm), capabilities(&kvm), memory(host, &kvm), guest_kernel(&kvm)];
    checks.push(directory("image store", &paths::store(), "BULKHEAD_STORE"));
    checks.push(directory("run directory", &paths::run(), "BULKHEAD_RUN"));
    checks.extend(features(host));
    checks.push(own_user());
    checks.push(own_processes());
    checks.push(network());
    Report { can_run: checks.iter().all(|check| check.status != Status::Missing), kvm, checks }
}

fn kvm_check(kvm: &HostReport) -> Check {
    match &kvm.problem {
        None => {
            let backend = kvm.backend.unwrap_or("built in");
            let detail =
                format!("{} ({backend}), API version 12, up to {} vCPUs a VM recommended", kvm.kind, kvm.max_vcpus);
            check("KVM", true, detail, "")
        }
        // Its own words end with what to do.
        Some(problem) => needed(check("KVM", false, problem.clone(), problem)),
    }
}

fn capabilities(kvm: &HostReport) -> Check {
    let lacking: Vec<_> = kvm.capabilities.iter().filter(|cap| !cap.present).map(|cap| cap.name).collect();
    let any_needed = kvm.capabilities.iter().any(|cap| cap.needed && !cap.present);
    if lacking.is_empty() {
        return check("KVM capabilities", true, format!("all {}", kvm.capabilities.len()), "");
    }
    let fix = if kvm.problem.is_some() { "make KVM work first" } else { "a newer Linux kernel on this host has them" };
    let check = check("KVM capabilities", false, format!("lacks {}", lacking.join(", ")), fix);
    if any_needed { needed(check) } else { check }
}

fn memory(host: &Host, kvm: &HostReport) -> Check {
    let meminfo = host.read("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    let available_mib = available.unwrap_or(0) >> 10;
    let detail = format!("{} MiB, {available_mib} available", kvm.memory_mib);
    // Half the default size of a guest: it may run, and anything else is worth a warning.
    check("memory", available_mib >= 128, detail, "give guests less memory with -m, or free some")
}

fn guest_kernel(kvm: &HostReport) -> Check {
    let kind = kernel_kind(kvm.kind);
    match kernel::find(kind) {
        Ok(kernel) => check("guest kernel", true, format!("{kind}: {}", kernel.path.display()), ""),
        Err(error) => {
            let fix =
                format!("guest-images/kernel/build.sh --flavour {kind} (in the source tree), or --kernel for each run");
            needed(check("guest kernel", false, error.to_string(), &fix))
        }
    }
}

/// A directory that can be written to, or made.
fn directory(name: &'static str, path: &Path, variable: &str) -> Check {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let writable = accessat(CWD, existing, Access::WRITE_OK | Access::EXEC_OK, rustix::fs::AtFlags::EACCESS).is_ok();
    let space = rustix::fs::statvfs(existing).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    let detail = format!("{}, {} free", path.display(), crate::size::human(space));
    let fix = format!("make {} writable for you, or set {variable} to a directory that is", existing.display());
    needed(check(name, writable, detail, &fix))
}

/// Whether microVMs' processes are users of their own.
fn own_user() -> Check {
    let (present, detail) = match vmm::sandbox::own_user(&[paths::store(), paths::run()]) {
        None => (true, "yours: only root's microVMs have one each".to_owned()),
        Some(Ok(())) => (true, "for each microVM without volumes".to_owned()),
        Some(Err(error)) => (false, format!("root's instead: {error}")),
    };
    let fix = "keep the store and the run directory on ext4, xfs or btrfs, or on tmpfs with Linux 6.3 or later";
    check("own user", present, detail, fix)
}

/// Whether microVMs' processes are alone in a namespace of processes.
fn own_processes() -> Check {
    let tried = vmm::birth::can_be_apart();
    let detail = tried
        .as_ref()
        .map_or_else(|error| format!("microVMs' are in yours: {error}"), |()| "each microVM's".to_owned());
    check(
        "own process namespace",
        tried.is_ok(),
        detail,
        "as root, or let users have namespaces: sysctl user.max_user_namespaces",
    )
}

/// What containers are connected to that are told nothing of networks.
fn network() -> Check {
    let usual = net::usual(&[], &[]);
    let detail = match &usual {
        Ok(network) => format!("{network}, unless a container is told otherwise"),
        Err(error) => error.to_string(),
    };
    let fix = "apt install passt; the host needs a default route for IPv4, too";
    check("network", usual.is_ok_and(|network| network != Network::None), detail, fix)
}

/// What the host's kernel has besides KVM.
fn features(host: &Host) -> Vec<Check> {
    let file = |name, path: &'static str, fix: &str| check(name, host.exists(path), path, fix);
    let max = host.read("/proc/sys/user/max_user_namespaces").and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let forbidden =
        ["/proc/sys/kernel/unprivileged_userns_clone"].iter().any(|path| host.read(path).as_deref() == Some("0"));
    let confined = host.read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    let namespaces = max > 0 && !forbidden && !confined;
    let io_uring = match host.read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("0") => (true, "enabled"),
        Some("1") => (false, "only for members of kernel.io_uring_group"),
        Some(_) => (false, "disabled"),
        None if kernel_at_least(host, 5, 10) => (true, "part of this kernel"),
        None => (false, "this kernel is older than 5.10"),
    };
    let userfaultfd = match host.read("/proc/sys/vm/unprivileged_userfaultfd").as_deref() {
        None => (false, "not in this kernel"),
        Some("0") => (true, "for root, and for kernel faults through /dev/userfaultfd"),
        Some(_) => (true, "for everybody"),
    };
    let landlock = match host.read("/sys/kernel/security/lsm") {
        Some(list) if list.split(',').any(|name| name == "landlock") => (true, "active", ""),
        Some(_) => {
            (false, "not among the active security modules", "boot the host with lsm=landlock,… (Linux 5.13 and later)")
        }
        None => (false, "not to be told without securityfs", "sudo mount -t securityfs none /sys/kernel/security"),
    };
    let seccomp = host.read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let huge = host.read("/sys/kernel/mm/transparent_hugepage/enabled");
    let huge = huge.unwrap_or_else(|| "not in this kernel".into());
    let sysctl = |line: &str| format!("sudo sysctl -w {line}");
    let mut list = vec![
        check(
            "user namespaces",
            namespaces,
            format!("up to {max}"),
            &sysctl(if confined {
                "kernel.apparmor_restrict_unprivileged_userns=0"
            } else {
                "user.max_user_namespaces=15000"
            }),
        ),
        check("io_uring", io_uring.0, io_uring.1, &sysctl("kernel.io_uring_disabled=0")),
        check("userfaultfd", userfaultfd.0, userfaultfd.1, "a host kernel with CONFIG_USERFAULTFD"),
        file("tap", "/dev/net/tun", "sudo modprobe tun"),
        file("vhost-net", "/dev/vhost-net", "sudo modprobe vhost_net"),
        file("vhost-vsock", "/dev/vhost-vsock", "sudo modprobe vhost_vsock"),
    ];
    list.push(cgroup(host));
    let jail = jail(host, namespaces);
    let fix =
        if namespaces { "a host kernel of 5.12 or later" } else { "run as root, or allow user namespaces (above)" };
    list.push(check("jail", jail.is_ok(), jail.unwrap_or_else(|lacking| lacking), fix));
    list.push(check("Landlock", landlock.0, landlock.1, landlock.2));
    let filters = seccomp.contains("kill_process");
    let fix = "a host kernel with CONFIG_SECCOMP_FILTER (Linux 4.14 and later); BULKHEAD_SANDBOX=off runs microVMs that are not confined";
    list.push(needed(check("seccomp", filters, seccomp, fix)));
    list.push(check(
        "huge pages",
        !huge.contains("[never]") && huge.contains('['),
        huge,
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    ));
    list
}

/// Whether a microVM's process can have a control group, and what that limits.
fn cgroup(host: &Host) -> Check {
    let Plan { places, lacking } = Cgroups::of(&host.root).plan();
    let given: Vec<_> = places
        .iter()
        .map(|place| {
            let names: Vec<_> = place.controllers.iter().map(|one| one.name()).collect();
            format!("{} below {}", names.join(", "), place.dir.display())
        })
        .collect();
    let detail = match cgroup::missing(&lacking) {
        Some(missing) if given.is_empty() => format!("lacks {missing}"),
        Some(missing) => format!("{}; lacks {missing}", given.join("; ")),
        None => given.join("; "),
    };
    let fix = "run as root on a host with control groups, or, with v2, `systemd-run --user --scope bulkhead …`, in a subtree that systemd has given you \
               (Delegate=cpu memory pids)";
    check("cgroup", lacking.is_empty(), detail, fix)
}

/// Whether a microVM's process can have a root directory of its own: by which right, or for want of what not.
fn jail(host: &Host, namespaces: bool) -> Result<&'static str, &'static str> {
    /// Bit of CAP_SYS_ADMIN (linux/capability.h).
    const SYS_ADMIN: u32 = 21;
    let status = host.read("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    match effective {
        // mount_setattr(2).
        _ if !kernel_at_least(host, 5, 12) => Err("this kernel is older than 5.12"),
        Some(set) if set >> SYS_ADMIN & 1 == 1 => Ok("a root directory and namespaces of its own, by privilege"),
        _ if namespaces => Ok("a root directory and namespaces of its own, in a user namespace"),
        _ => Err("neither privileges nor user namespaces"),
    }
}

fn kernel_at_least(host: &Host, major: u32, minor: u32) -> bool {
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::host::{Capability, KvmKind};

    fn kvm(problem: Option<&str>) -> HostReport {
        HostReport {
            kind: KvmKind::AmdV,
            backend: Some("kvm_amd"),
            problem: problem.map(str::to_owned),
            max_vcpus: 2,
            capabilities: vec![Capability { name: "KVM_CAP_IRQFD", needed: true, present: problem.is_none() }],
            memory_mib: 4096,
        }
    }

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host { root: dir.path().into() };
        for (path, text) in files {
            let path = host.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (dir, host)
    }

    fn find<'a>(list: &'a [Check], name: &str) -> &'a Check {
        list.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn a_bare_host_lacks_everything_and_is_told_what_to_do() {
        let (_dir, host) = host(&[]);
        let list = features(&host);
        for check in &list {
            let without = if check.name == "seccomp" { Status::Missing } else { Status::Absent };
            assert_eq!(check.status, without, "{}", check.name);
            assert!(check.fix.is_some(), "{}", check.name);
        }
    }

    #[test]
    fn features_are_read_from_the_kernels_files() {
        let (_dir, host) = host(&[
            ("/proc/sys/user/max_user_namespaces", "100\n"),
            ("/proc/sys/kernel/io_uring_disabled", "2\n"),
            ("/proc/sys/vm/unprivileged_userfaultfd", "0\n"),
            ("/proc/sys/kernel/osrelease", "6.1.0-9\n"),
            ("/sys/kernel/security/lsm", "lockdown,landlock,yama\n"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("/proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"),
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/cgroup.controllers", "cpu io memory pids\n"),
            ("/sys/fs/cgroup/cgroup.procs", ""),
            ("/sys/fs/cgroup/cgroup.subtree_control", ""),
            ("/dev/net/tun", ""),
        ]);
        let list = features(&host);
        for name in ["user namespaces", "userfaultfd", "Landlock", "jail", "huge pages", "cgroup", "tap"] {
            assert_eq!(find(&list, name).status, Status::Ok, "{name}");
        }
        assert_eq!(find(&list, "io_uring").detail, "disabled");
        assert!(kernel_at_least(&host, 5, 10) && !kernel_at_least(&host, 6, 2));
        assert!(jail(&host, true).unwrap().contains("user namespace") && jail(&host, false).is_err());
        fs::create_dir_all(host.path("/proc/self")).unwrap();
        fs::write(host.path("/proc/self/status"), "CapEff:\t0000000000200000\n").unwrap();
        assert!(jail(&host, false).unwrap().contains("privilege"));
    }

    #[test]
    fn without_kvm_nothing_runs() {
        let (_dir, host) = host(&[("/proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  2097152 kB\n")]);
        let bad = report(&host, kvm(Some("/dev/kvm: permission denied; add yourself to its group")));
        assert!(!bad.can_run);
        assert_eq!(find(&bad.checks, "KVM").status, Status::Missing);
        assert_eq!(find(&bad.checks, "KVM capabilities").status, Status::Missing);
        let memory = find(&bad.checks, "memory");
        assert_eq!((memory.status, memory.detail.as_str()), (Status::Ok, "4096 MiB, 2048 available"));
        let good = report(&host, kvm(None));
        assert_eq!(find(&good.checks, "KVM").status, Status::Ok);
        assert!(serde_json::to_string(&good).unwrap().contains("\"kind\":\"amd-v\""));
    }
}
