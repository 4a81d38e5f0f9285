use std::io;

use devices::virtio::DEVICES;
use libc::c_long;
use serde_json::{Map, Value};

use super::*;
use crate::config::MachineConfig;

/// A machine with one device of each kind, or with none.
pub fn config(devices: bool) -> VmConfig {
    let kinds = DEVICES.iter().filter(|_| devices);
    VmConfig {
        snapshot: None,
        boot_source: None,
        machine: MachineConfig::default(),
        serial: SerialConfig::Stdio,
        cpuid_cache: None,
        devices: kinds.map(|kind| (kind.config_key.to_owned(), Value::Null)).collect::<Map<_, _>>(),
    }
}

/// What becomes of a process that makes a system call behind a filter: its exit code or, negative, the signal that ended it. 0 is a
/// call that was carried out, whatever came of it; 2 one that the kernel seemed not to have.
fn result(calls: &Calls, call: [c_long; 5]) -> i32 {
    let program = filter::compile(calls, Mode::Enforce).unwrap();
    // SAFETY: the child makes system calls alone, on what was there before: nothing that another thread may hold.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        let applied = seccompiler::apply_filter(&program).is_ok();
        // SAFETY: calls with arguments that are numbers; none of them succeeds where memory is asked for.
        unsafe {
            let [number, a, b, c, d] = call;
            let gone = applied && libc::syscall(number, a, b, c, d) < 0 && *libc::__errno_location() == libc::ENOSYS;
            libc::syscall(
                libc::SYS_exit_group,
                if !applied {
                    3
                } else if gone {
                    2
                } else {
                    0
                },
            );
        }
    }
    let mut status = 0;
    // SAFETY: it fills `status`.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid, "{}", io::Error::last_os_error());
    if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

const DIES: i32 = -libc::SIGSYS;

#[test]
fn group_11_no_thread_reaches_beyond_its_process() {
    let sandbox = Sandbox::new(Wanted { requests: true, ..Wanted::default() }, config(true));
    let this = c_long::from(std::process::id() as i32);
    let inet = libc::AF_INET.into();
    let exec = libc::PROT_EXEC.into();
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into();
    for (what, call) in [
        ("start a program", [libc::SYS_execve, 0, 0, 0, 0]),
        ("start one otherwise", [libc::SYS_execveat, 0, 0, 0, 0]),
        ("start a process", [libc::SYS_clone, libc::SIGCHLD.into(), 0, 0, 0]),
        ("start one as before", [libc::SYS_fork, 0, 0, 0, 0]),
        ("talk to a network", [libc::SYS_socket, inet, libc::SOCK_STREAM.into(), 0, 0]),
        ("send a signal", [libc::SYS_kill, this, 0, 0, 0]),
        ("send one to another's thread", [libc::SYS_tgkill, 1, 1, 0, 0]),
        ("trace", [libc::SYS_ptrace, 0, 0, 0, 0]),
        ("read another's memory", [libc::SYS_process_vm_readv, this, 0, 0, 0]),
        ("write to another's memory", [libc::SYS_process_vm_writev, this, 0, 0, 0]),
        ("take another's descriptor", [libc::SYS_pidfd_getfd, 0, 0, 0, 0]),
        ("make memory that can be run", [libc::SYS_mmap, 0, 4096, exec, anonymous]),
        ("have memory be run", [libc::SYS_mprotect, 0, 4096, exec, 0]),
        ("mount", [libc::SYS_mount, 0, 0, 0, 0]),
        ("leave its namespaces", [libc::SYS_setns, 0, 0, 0, 0]),
        ("load a program into the kernel", [libc::SYS_bpf, 0, 0, 0, 0]),
        ("make another VM", [libc::SYS_ioctl, 0, 0xae01, 0, 0]),
        ("type for its terminal", [libc::SYS_ioctl, 0, libc::TIOCSTI as c_long, 0, 0]),
        ("debug the process", [libc::SYS_prctl, libc::PR_SET_DUMPABLE.into(), 1, 0, 0]),
    ] {
        for thread in [Thread::First, Thread::Vcpu, Thread::Events, Thread::Nursery] {
            assert_eq!(result(&sandbox.calls(thread), call), DIES, "{thread:?} can {what}");
        }
        for work in &sandbox.workers {
            assert_eq!(result(&calls::worker(work), call), DIES, "{} can {what}", work.name);
        }
    }
}

#[test]
fn only_workers_open_files_and_only_the_nursery_starts_threads() {
    let sandbox = Sandbox::new(Wanted { requests: true, ..Wanted::default() }, config(true));
    let opens = [libc::SYS_openat, libc::AT_FDCWD.into(), 0, 0, 0];
    for thread in [Thread::First, Thread::Vcpu, Thread::Events] {
        for call in [opens, [libc::SYS_open, 0, 0, 0, 0], [libc::SYS_clone, 0, 0, 0, 0], [libc::SYS_mkdir, 0, 0, 0, 0]]
        {
            assert_eq!(result(&sandbox.calls(thread), call), DIES, "{thread:?}");
        }
    }
    assert_eq!(result(&calls::worker(&REQUESTS), opens), 0);
}

#[test]
fn what_threads_do_is_let_through() {
    let sandbox = Sandbox::new(Wanted::default(), config(false));
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into();
    for call in [
        [libc::SYS_getpid, 0, 0, 0, 0],
        [libc::SYS_mmap, 0, 4096, libc::PROT_READ.into(), anonymous],
        [libc::SYS_ioctl, -1, 0xae80, 0, 0],
        [libc::SYS_prctl, libc::PR_SET_NAME.into(), c"x".as_ptr() as c_long, 0, 0],
    ] {
        assert_eq!(result(&sandbox.calls(Thread::Vcpu), call), 0, "{call:?}");
    }
    // What the C library can do without is not there, and no mistake.
    let missing = [[libc::SYS_clone3, 0, 0, 0, 0], [libc::SYS_io_uring_setup, 0, 0, 0, 0]];
    for call in missing {
        assert_eq!(result(&calls::worker(&REQUESTS), call), 2, "{call:?}");
    }
}

/// The way to the part for a number leads to the right one: each call that there is, with arguments that no rule is about, is carried out
/// if and only if it is on the list.
#[test]
fn what_is_on_a_list_is_what_is_let_through() {
    let all = Sandbox::new(Wanted { requests: true, ..Wanted::default() }, config(true)).calls(Thread::Nursery);
    let looked_at =
        [libc::SYS_ioctl, libc::SYS_clone, libc::SYS_socket, libc::SYS_tgkill, libc::SYS_prctl, libc::SYS_fcntl];
    // Those that end or stop the process that makes them, or whoever looks on.
    let others =
        [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn, libc::SYS_clone3, libc::SYS_io_uring_setup];
    let waits = [libc::SYS_poll, libc::SYS_ppoll, libc::SYS_futex, libc::SYS_read, libc::SYS_restart_syscall];
    let known: std::collections::BTreeSet<_> = all.numbers().collect();
    let untold = [looked_at.as_slice(), &others, &waits].concat();
    // Nor 335 and 336, which are for the kernel's own probes.
    for number in (0..470).filter(|number| !untold.contains(number) && ![335, 336].contains(number)) {
        let expected = if known.contains(&number) { 0 } else { DIES };
        // An address that nothing is at, and a descriptor that is not open.
        let got = result(&all, [number, -1, 1, 1, 0]);
        assert!(got == expected || (expected == 0 && got == 2), "call {number}: {got}");
    }
}

#[test]
fn who_may_connect_is_known() {
    assert!(!Sandbox::new(Wanted::default(), config(false)).connects());
    assert!(
        Sandbox::new(Wanted { requests: true, ..Wanted::default() }, config(false)).connects(),
        "a worker for requests"
    );
    assert!(Sandbox::new(Wanted::default(), config(true)).connects(), "a device");
}

#[test]
fn lists_are_short() {
    let count = |devices, thread| {
        Sandbox::new(Wanted { requests: true, ..Wanted::default() }, config(devices)).calls(thread).numbers().count()
    };
    // Of a machine with everything that there is; musl makes five more of three.
    let events = if cfg!(target_env = "musl") { 50 } else { 45 };
    for (thread, most) in [(Thread::First, 25), (Thread::Vcpu, 25), (Thread::Events, events)] {
        assert!(count(true, thread) <= most, "{thread:?}: {}", count(true, thread));
        println!("{thread:?}: {} without devices, {} with all", count(false, thread), count(true, thread));
    }
}

/// A guest has them since others that go on from the same snapshot have a use for them: its process is none that does.
#[test]
fn group_11_a_device_with_nothing_behind_it_takes_nothing_of_the_host() {
    let with = |more: &[(&str, Value)]| {
        let mut config = config(true);
        config.devices.retain(|section, _| !["fs", "network-interfaces"].contains(&section.as_str()));
        config.devices.extend(more.iter().map(|(section, value)| ((*section).to_owned(), value.clone())));
        Sandbox::new(Wanted { files: Some(Vec::new()), requests: true, ..Wanted::default() }, config)
    };
    let all = |sandbox: &Sandbox| {
        let threads = [Thread::First, Thread::Vcpu, Thread::Events, Thread::Nursery];
        let workers = sandbox.workers.iter().map(|work| calls::worker(work));
        threads.map(|thread| sandbox.calls(thread)).into_iter().chain(workers).collect::<Vec<_>>()
    };
    let (none, volume) = (serde_json::json!([]), serde_json::json!([{ "name": "0", "path_on_host": "/" }]));
    let fs = |volumes: &Value| ("fs", serde_json::json!({ "volumes": volumes }));
    let interface = |behind: &str| ("network-interfaces", serde_json::json!([{ "iface_id": "eth0", behind: true }]));
    let before = with(&[]);
    let nothing = with(&[fs(&none), interface("nowhere")]);
    assert_eq!((all(&nothing), nothing.keep(), nothing.user()), (all(&before), before.keep(), before.user()));
    assert_eq!(before.keep(), Keep::Nothing);
    // What is behind them, or may be, is what counts.
    let (shared, unplugged) = (with(&[fs(&volume)]), with(&[interface("unplugged")]));
    assert!(shared.keep() != Keep::Nothing && shared.user().is_none() && all(&shared) != all(&before));
    assert_ne!(all(&unplugged), all(&before));
}

#[test]
fn workers_can_be_named_and_have_a_stack() {
    for kind in DEVICES {
        for work in kind.workers {
            assert!(work.name.len() < 16 && work.stack >= 64 << 10, "{}", work.name);
        }
    }
}

/// In a process of its own: it stays confined.
#[test]
fn group_11_a_process_that_needs_nothing_reaches_nothing() {
    const CHILD: &str = "BULKHEAD_TEST_CONFINED";
    if std::env::var_os(CHILD).is_none() {
        let run = |how: &str| {
            let test = "sandbox::tests::group_11_a_process_that_needs_nothing_reaches_nothing";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", test, "--nocapture"]).env(CHILD, how).output().unwrap()
        };
        let ended = run("open");
        assert!(ended.status.success(), "{ended:?}");
        let signal = std::os::unix::process::ExitStatusExt::signal(&run("socket").status);
        assert_eq!(signal, Some(libc::SIGSYS));
        return;
    }
    let opens = std::env::var(CHILD).as_deref() == Ok("open");
    let missing = confine("test", &[libc::SYS_openat]).unwrap();
    if opens {
        // What the host does not give is told, and nothing else is left out.
        assert!(std::fs::File::open("/etc/passwd").is_err() || !missing.is_empty(), "{missing:?}");
    } else {
        let _ = std::os::unix::net::UnixStream::pair();
    }
}
