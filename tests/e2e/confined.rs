//! What the threads of a microVM's process may still do while its guest runs, as the kernel has it: a guest that has broken out
//! would be one of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libc::c_long;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tests::Running;
use tests::control::Control;

use crate::control::tiny_kernel;
use crate::lab;
use crate::tracer::have_call;

/// Capabilities to act on files for their owners: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, MKNOD,
/// SETFCAP (linux/capability.h).
const FOR_FILES: u64 = 0b1_1111 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;

/// The lines of a `status` file of /proc.
fn status(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path.join("status")).unwrap();
    let line = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(line).collect()
}

/// Threads of a process: their ids by their names, of which the first may be any.
fn threads(pid: u32) -> BTreeMap<String, u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let id = |entry: fs::DirEntry| entry.file_name().into_string().unwrap().parse().unwrap();
    let name = |id: u32| match id {
        id if id == pid => "main".to_owned(),
        id => fs::read_to_string(format!("/proc/{pid}/task/{id}/comm")).unwrap().trim().to_owned(),
    };
    entries.map(|entry| id(entry.unwrap())).map(|id| (name(id), id)).collect()
}

/// The microVM's process that a CLI has started.
fn monitor(cli: &Running) -> u32 {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", cli.pid())).unwrap();
    children.split_whitespace().next().expect("a process").parse().unwrap()
}

/// The files at and below `path` that users other than root and the owner can read, by the modes on the way there from `path`. What goes
/// meanwhile is no file.
fn readable_by_others(path: &Path) -> Vec<PathBuf> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Vec::new() };
    let (search, read) = (0o011, 0o044);
    let mode = meta.permissions().mode();
    if meta.is_dir() && mode & search != 0 {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        return entries.flat_map(|entry| readable_by_others(&entry.path())).collect();
    }
    if meta.is_file() && mode & read != 0 { vec![path.to_owned()] } else { Vec::new() }
}

/// That a microVM's process, which was given half of a CPU, is in groups that hold it to that and to bounds of its memory and tasks.
fn assert_grouped(pid: u32, groups: &[PathBuf]) {
    let limits = [
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.max", "50000 100000"),
        ("memory.limit_in_bytes", "436207616"),
        ("memory.max", "436207616"),
        ("pids.max", "512"),
    ];
    let read = |path: PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let mut found: Vec<&(&str, &str)> = Vec::new();
    for group in groups {
        // KVM has a thread of the kernel's for a machine in it.
        let processes = read(group.join("cgroup.procs")).unwrap_or_default();
        assert!(processes.lines().any(|line| line == pid.to_string()), "{}: {processes}", group.display());
        found.extend(limits.iter().filter(|(file, value)| read(group.join(file)).as_deref() == Some(value)));
    }
    // Of each there are two names, and one interface.
    assert_eq!(found.len(), 3, "{found:?} in {groups:?}");
}

/// Each thread has its filter, nothing to gain from programs, and no capabilities but those for the files of volumes. What the caller
/// has open and in its environment is not the microVM's.
#[test]
fn group_11_each_thread_of_a_container_is_confined() {
    let lab = lab!("group_11_each_thread_of_a_container_is_confined");
    let patience = lab.patience(2);
    let shared = lab.path("shared");
    fs::create_dir(&shared).unwrap();
    let (volume, image) = (format!("{}:/data", shared.display()), lab.debian());
    let script = "ls /data; echo \"<$A_SECRET>\"; echo up; read line; echo went on";
    let no_group = lab.no_control_group();
    let half: &[&str] = if no_group.is_none() { &["--cpus", "0.5"] } else { &[] };
    let arguments = ["run", "-i", "--name", "confined", "-v", &volume];
    let inner = lab.bulkhead([&arguments, half, &[&image, "sh", "-c", script]].concat());
    let mut command = Command::new("sh");
    command.args(["-c", "exec 9<\"$0\"; exec \"$@\"", "/etc/passwd"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?)))).env("A_SECRET", "of the caller's");
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.wait_for("up", patience);
    let pid = monitor(&running);
    // Layers, templates, disks and memory: another user reads none of it, while it is there and when it has gone.
    assert!(fs::read_dir(lab.store().join("layers")).unwrap().next().is_some(), "the image has some");
    assert_eq!([lab.store(), &lab.run_dir()].map(readable_by_others), [const { Vec::<PathBuf>::new() }; 2]);
    let descriptors = |pid: u32| {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        all.filter_map(|fd| fs::read_link(fd.path()).ok()).collect::<Vec<_>>()
    };
    let passwd = Path::new("/etc/passwd");
    assert!(descriptors(running.pid()).iter().any(|open| open == passwd), "the caller has it open");
    assert!(!descriptors(pid).iter().any(|open| open == passwd), "{:?}", descriptors(pid));
    let environment = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/environ")).unwrap()).into_owned();
    assert!(!environment.contains("A_SECRET") && !environment.contains("HOME="), "{environment}");
    let threads = threads(pid);
    for name in ["main", "events", "nursery", "fs"] {
        assert!(threads.contains_key(name), "no {name} among {threads:?}");
    }
    let of_caller = status(Path::new("/proc/thread-self"));
    for (name, id) in &threads {
        let status = status(Path::new(&format!("/proc/{pid}/task/{id}")));
        let set = |key: &str| u64::from_str_radix(&status[key], 16).unwrap();
        let may = if ["fs", "nursery"].contains(&name.as_str()) { FOR_FILES } else { 0 };
        assert_eq!((status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()), ("2", "1"), "{name}");
        for key in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(set(key) & !may, 0, "{name} has {key} {}", status[key]);
        }
        assert_eq!(set("CapBnd"), 0, "{name}");
        let processors = "Cpus_allowed_list";
        assert_eq!(status[processors], of_caller[processors], "{name} may be on");
    }
    // Of the host there is nothing but its own: not this test's program, nor what is shared, which is open.
    let root = format!("/proc/{pid}/root");
    let is_there = |path: &Path| Path::new(&format!("{root}{}", path.display())).exists();
    assert!(is_there(&lab.run_dir()) && !is_there(&shared) && !is_there(Path::new("/etc")));
    assert!(!is_there(&std::env::current_exe().unwrap()) && !is_there(Path::new(&format!("/proc/{pid}"))));
    let is_its_own = |name: &str| {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        of(pid) != of(running.pid())
    };
    for name in ["mnt", "ipc", "uts", "pid"] {
        assert!(is_its_own(name), "{name}");
    }
    // Sockets without a path are the network namespace's, if Landlock does not keep it from those of others (Linux 6.12).
    // SAFETY: asked for the version, the call takes nothing, and returns a number.
    let landlock = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    assert!(landlock >= 6 || is_its_own("net"), "Landlock {landlock}");
    let told: serde_json::Value = serde_json::from_str(lab.run(["inspect", "confined"]).text()).unwrap();
    let told = &told[0]["Sandbox"];
    assert!(told["Confined"] == true && !told["Missing"].to_string().contains("root"), "{told}");
    let groups = lab.control_groups();
    assert_eq!(told["Missing"].to_string().contains("control group"), no_group.is_some(), "{told}");
    match no_group {
        None => assert_grouped(pid, &groups),
        Some(reason) => {
            let quota = lab.run(["run", "--cpus", "0.5", &image, "true"]);
            // It may be that only others are not there.
            assert!(
                !reason.contains("cpu") || (quota.code == Some(125) && quota.stderr.contains("doctor")),
                "{quota:?}"
            );
        }
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // "dd": not to be dumped (proc(5), smaps). Of what is as large as the guest's memory there is nothing else.
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let sizes =
        maps.lines().filter_map(|line| line.strip_prefix("Size:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let flags = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    let large: Vec<_> = sizes.zip(flags).filter(|(kib, _)| *kib >= 64 << 10).collect();
    assert!(!large.is_empty() && large.iter().all(|(_, flags)| flags.contains(" dd")), "{large:?}");
    // Who stops a service sends this to all its processes: it is for the one that can tell the guest.
    rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::TERM).unwrap();
    running.say("\n");
    let ended = running.end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.text().contains("<>") && ended.text().contains("went on"), "{ended:?}");
    lab.assert_clean();
    assert!(!groups.iter().any(|group| group.exists()), "{groups:?}");
}

/// A running thread that is made to do what no thread of a microVM does ends it, before anything is done.
#[test]
fn group_11_a_thread_that_reaches_beyond_its_microvm_ends_it() {
    let lab = lab!("group_11_a_thread_that_reaches_beyond_its_microvm_ends_it");
    let patience = lab.patience(1);
    let (file, socket) = (lab.path("vm.json"), lab.path("api.sock"));
    let machine = json!({ "boot-source": { "kernel_image_path": tiny_kernel(&lab) }, "entropy": {},
                          "machine-config": { "vcpu_count": 2, "mem_size_mib": 64 } });
    fs::write(&file, machine.to_string()).unwrap();
    let this = c_long::from(std::process::id() as i32);
    // What else threads cannot do is tested without a machine (`vmm::sandbox`): these tell that each has its filter.
    let calls: [(&str, [c_long; 5]); 3] = [
        ("execve", [libc::SYS_execve, 0, 0, 0, 0]),
        ("process_vm_readv", [libc::SYS_process_vm_readv, this, 0, 0, 0]),
        ("openat", [libc::SYS_openat, libc::AT_FDCWD.into(), 0, 0, 0]),
    ];
    for thread in ["main", "vcpu1", "events", "nursery", "serial"] {
        // The nursery has a worker for requests open what they name.
        for (what, call) in &calls[..if thread == "nursery" { 2 } else { 3 }] {
            let arguments = ["vmm", "--config-file", file.to_str().unwrap(), "--api-sock", socket.to_str().unwrap()];
            let mut running = Running::start(lab.bulkhead(arguments));
            running.wait_for("up\n", patience);
            // Each gives itself its name.
            let id = loop {
                match threads(running.pid()).get(thread) {
                    Some(id) => break *id,
                    None => std::thread::yield_now(),
                }
            };
            have_call(id, *call).unwrap_or_else(|error| panic!("{thread}: {what}: {error}"));
            let ended = running.end(patience);
            assert_eq!(ended.signal, Some(libc::SIGSYS), "{thread}: {what}: {ended:?}");
        }
    }
    // Without, for whoever looks for a mistake; and nothing of what is wanted is guessed.
    let arguments = ["vmm", "--config-file", file.to_str().unwrap()];
    let mut command = lab.bulkhead(arguments.into_iter().chain(["--sandbox", "off"]));
    command.env("BULKHEAD_SANDBOX", "enforce");
    let mut running = Running::start(command);
    running.wait_for("up\n", patience);
    for id in threads(running.pid()).into_values() {
        assert_eq!(status(Path::new(&format!("/proc/{}/task/{id}", running.pid())))["Seccomp"], "0");
    }
    running.signal(Signal::TERM);
    assert_eq!(running.end(patience).code, Some(143));
    let mut command = lab.bulkhead(arguments);
    command.env("BULKHEAD_SANDBOX", "maybe");
    Running::start(command)
        .end(patience)
        .assert_failed(125, &["BULKHEAD_SANDBOX", "maybe", "enforce, require, log, off"]);
    // The next one takes the dead one's socket away.
    let running = Running::start(lab.bulkhead(["vmm", "--api-sock", socket.to_str().unwrap()]));
    Control::of(&running, socket.clone(), patience);
    running.signal(Signal::TERM);
    assert_eq!(running.end(patience).code, Some(143));
    lab.assert_clean();
}

/// Where the host has no namespaces to give, a microVM runs without, unless it is told not to.
#[test]
fn a_sandbox_that_is_required_is_had_or_there_is_no_guest() {
    const NAME: &str = "a_sandbox_that_is_required_is_had_or_there_is_no_guest";
    let lab = lab!(NAME);
    let patience = lab.patience(1);
    let kernel = tiny_kernel(&lab);
    let lacking = |flags: &[&str]| {
        let inner = lab.bulkhead([&["boot", "--kernel", kernel.to_str().unwrap()], flags].concat());
        let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin \"$@\"";
        let mut outer = Command::new("unshare");
        outer.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]).arg(inner.get_program());
        outer.args(inner.get_args()).envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        outer.stdin(Stdio::null());
        Running::start(outer)
    };
    let there_are = ["unshare", "setpriv"].map(|tool| Command::new(tool).arg("--version").output());
    if there_are.iter().any(|tool| !tool.as_ref().is_ok_and(|output| output.status.success())) {
        return tests::lab::skip(NAME, "there is no unshare and setpriv to take the namespaces away with");
    }
    let no_group = lab.no_control_group().is_some();
    let first = if no_group { "control group" } else { "namespaces" };
    lacking(&["--require-jail"]).end(patience).assert_failed(125, &["sandbox lacks", first, "--require-jail"]);
    let mut running = lacking(&[]);
    running.wait_for("up\n", patience);
    running.signal(Signal::TERM);
    assert_eq!(running.end(patience).code, Some(143));
    // Without the last of these none of its threads can join another one's root directory: then one makes it, and starts the others.
    let whole = |without: &str| {
        let inner = lab.bulkhead(["boot", "--require-jail", "--kernel", kernel.to_str().unwrap()]);
        let mut outer = Command::new("setpriv");
        outer.arg(format!("--bounding-set={without}")).arg(inner.get_program()).args(inner.get_args());
        outer.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(Stdio::null());
        Running::start(outer)
    };
    let is_root = rustix::process::geteuid().is_root();
    if no_group {
        whole("+all").end(patience).assert_failed(125, &["sandbox lacks", "control group", "--require-jail"]);
        return lab.assert_clean();
    }
    let whole = |without: &str| {
        let mut running = whole(without);
        running.wait_for("up\n", patience);
        running
    };
    let two = [whole("+all"), whole(if is_root { "-sys_chroot" } else { "+all" })];
    if is_root {
        // Each is its own user, and nobody else's.
        for pid in two.iter().map(monitor) {
            let (status, user) = (status(Path::new(&format!("/proc/{pid}"))), 0x7000_0000 + pid);
            let all = [user; 4].map(|id| id.to_string()).join("\t");
            assert_eq!((&status["Uid"], &status["Gid"], status["Groups"].as_str()), (&all, &all, ""));
        }
    }
    for running in two {
        running.signal(Signal::TERM);
        assert_eq!(running.end(patience).code, Some(143));
    }
    lab.assert_clean();
}

/// That no thread of a process has capabilities or serves files, and that it is a user of its own, if root has started it: what one with
/// volumes cannot do without, one without has not, though its guest has the same devices.
fn assert_serves_no_files(pid: u32) {
    let threads = threads(pid);
    let root = rustix::process::geteuid().is_root();
    let user = if root { 0x7000_0000 + pid } else { rustix::process::geteuid().as_raw() };
    // What the host's kernel tells of the process is the process's own, or it could not take a snapshot.
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), user);
    // All of them are where the first one is, and that is not here.
    let of = |task: &str, what: &str| fs::metadata(format!("/proc/{task}/{what}")).map(|meta| (meta.dev(), meta.ino()));
    let places = ["root", "cwd", "ns/mnt", "ns/ipc", "ns/uts", "ns/net", "ns/user"];
    for (what, (name, id)) in places.iter().flat_map(|what| threads.iter().map(move |thread| (what, thread))) {
        let (its, first) = (of(&format!("{pid}/task/{id}"), what).unwrap(), of(&pid.to_string(), what).unwrap());
        assert_eq!(its, first, "{what} of {name}");
        let shared = ["ns/net", "ns/user"].contains(what);
        assert!(shared || its != of("self", what).unwrap(), "{what} of {name}");
    }
    for (name, id) in &threads {
        let status = status(Path::new(&format!("/proc/{pid}/task/{id}")));
        for key in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
            assert_eq!(u64::from_str_radix(&status[key], 16), Ok(0), "{name} has {key} {}", status[key]);
        }
        assert_eq!(status["Seccomp"], "2", "{name}");
        assert_eq!(status["Uid"], [user; 4].map(|id| id.to_string()).join("\t"), "{name}");
    }
}

/// Whoever has started the container is told what has become of it.
#[test]
fn a_container_ended_by_its_sandbox_says_so() {
    let lab = lab!("a_container_ended_by_its_sandbox_says_so");
    let patience = lab.patience(2);
    let image = lab.debian();
    let mut running =
        Running::start(lab.keeping(["run", "--name", "escaped", &image, "sh", "-c", "echo up; sleep 99"]));
    running.wait_for("up", patience);
    assert_serves_no_files(monitor(&running));
    have_call(threads(monitor(&running))["events"], [libc::SYS_execve, 0, 0, 0, 0]).unwrap();
    let ended = running.end(patience);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(ended.stderr.contains("sandbox forbids") && ended.stderr.lines().count() == 1, "{ended:?}");
    let code = lab.run(["inspect", "-f", "{{.State.ExitCode}}", "escaped"]);
    assert_eq!(code.text(), "159\n", "{code:?}");
    assert_eq!(lab.run(["rm", "escaped"]).code, Some(0));
    lab.assert_clean();
}
