//! The system calls that a container may not make whose kernel is others' as well (seccomp(2)): those that reach what no namespace
//! divides, or that give a process ways into the kernel which containers have no use for. In the manner of container engines' usual
//! lists: a capability that is asked for by name brings the calls along that it is about.
//!
//! The kernel works out once for each call whether it is let through whatever its arguments are, and asks the program no more about
//! those. That takes it as many steps as the program has for each of them, which is why the list is searched by halves.

use alloc::vec;
use alloc::vec::Vec;

/// What the program is built for: `AUDIT_ARCH_X86_64` (linux/audit.h).
const ARCHITECTURE: u32 = 0xc000_003e;
/// The last call there is in the kernels that guests have (mseal, Linux 6.10). What comes behind is not known to do no harm; and so are calls
/// by the numbers of x32.
const LAST: u32 = 462;
/// `AF_VSOCK`: the way to the host is init's, and others' init's.
const VSOCK: u32 = 40;
/// All `CLONE_NEW…` that clone(2) takes.
const NAMESPACES: u32 = 0x7e02_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_MODULE: u64 = 1 << 16;
const SYS_RAWIO: u64 = 1 << 17;
const SYS_PACCT: u64 = 1 << 20;
const SYS_ADMIN: u64 = 1 << 21;
const SYS_BOOT: u64 = 1 << 22;
const SYS_TIME: u64 = 1 << 25;
const SYS_TTY_CONFIG: u64 = 1 << 26;
const SYSLOG: u64 = 1 << 34;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;
/// Nothing but being privileged brings it.
const NOTHING: u64 = 0;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// It fails with this.
    Fails(u32),
    /// It fails if its first argument is this.
    FailsFor(u32),
    /// It fails if its first argument has one of these bits.
    FailsWith(u32),
}

use Rule::{Fails, FailsFor, FailsWith};

/// The calls by their numbers, in order; what becomes of each; the capabilities of which each brings it.
const RULES: [(u32, Rule, u64); 46] = [
    // socket: of the family that leads to the host.
    (41, FailsFor(VSOCK), NOTHING),
    // clone: into new namespaces, in which a process without privileges has some of them.
    (56, FailsWith(NAMESPACES), SYS_ADMIN),
    // syslog: the kernel's log is everybody's.
    (103, Fails(EPERM), SYS_ADMIN | SYSLOG),
    // vhangup.
    (153, Fails(EPERM), SYS_TTY_CONFIG),
    // pivot_root, mount, umount2: what is hidden and read-only is so by mounts.
    (155, Fails(EPERM), SYS_ADMIN),
    // acct.
    (163, Fails(EPERM), SYS_PACCT),
    // settimeofday: the clock is everybody's.
    (164, Fails(EPERM), SYS_TIME),
    (165, Fails(EPERM), SYS_ADMIN),
    (166, Fails(EPERM), SYS_ADMIN),
    // swapon, swapoff.
    (167, Fails(EPERM), SYS_ADMIN),
    (168, Fails(EPERM), SYS_ADMIN),
    // reboot: of the whole guest.
    (169, Fails(EPERM), SYS_BOOT),
    // sethostname, setdomainname.
    (170, Fails(EPERM), SYS_ADMIN),
    (171, Fails(EPERM), SYS_ADMIN),
    // iopl, ioperm: devices, past the kernel.
    (172, Fails(EPERM), SYS_RAWIO),
    (173, Fails(EPERM), SYS_RAWIO),
    // init_module, delete_module.
    (175, Fails(EPERM), SYS_MODULE),
    (176, Fails(EPERM), SYS_MODULE),
    // quotactl.
    (179, Fails(EPERM), SYS_ADMIN),
    // lookup_dcookie.
    (212, Fails(EPERM), SYS_ADMIN),
    // clock_settime.
    (227, Fails(EPERM), SYS_TIME),
    // kexec_load.
    (246, Fails(EPERM), SYS_BOOT),
    // add_key, request_key, keyctl: no namespace divides keyrings.
    (248, Fails(EPERM), NOTHING),
    (249, Fails(EPERM), NOTHING),
    (250, Fails(EPERM), NOTHING),
    // unshare: as clone.
    (272, Fails(EPERM), SYS_ADMIN),
    // perf_event_open.
    (298, Fails(EPERM), SYS_ADMIN | PERFMON),
    // fanotify_init.
    (300, Fails(EPERM), SYS_ADMIN),
    // open_by_handle_at: around directories.
    (304, Fails(EPERM), DAC_READ_SEARCH),
    // setns.
    (308, Fails(EPERM), SYS_ADMIN),
    // finit_module.
    (313, Fails(EPERM), SYS_MODULE),
    // kexec_file_load.
    (320, Fails(EPERM), SYS_BOOT),
    // bpf.
    (321, Fails(EPERM), SYS_ADMIN | BPF),
    // userfaultfd: the kernel waits for whoever uses it.
    (323, Fails(EPERM), NOTHING),
    // io_uring_setup, _enter, _register: it makes calls of which this program hears nothing, socket among them.
    (425, Fails(ENOSYS), NOTHING),
    (426, Fails(ENOSYS), NOTHING),
    (427, Fails(ENOSYS), NOTHING),
    // open_tree, move_mount, fsopen, fsconfig, fsmount, fspick: as mount.
    (428, Fails(EPERM), SYS_ADMIN),
    (429, Fails(EPERM), SYS_ADMIN),
    (430, Fails(EPERM), SYS_ADMIN),
    (431, Fails(EPERM), SYS_ADMIN),
    (432, Fails(EPERM), SYS_ADMIN),
    (433, Fails(EPERM), SYS_ADMIN),
    // clone3: its flags are in memory, where this program does not see them. Who finds that there is none uses clone.
    (435, Fails(ENOSYS), SYS_ADMIN),
    // mount_setattr.
    (442, Fails(EPERM), SYS_ADMIN),
    // quotactl_fd.
    (443, Fails(EPERM), SYS_ADMIN),
];

/// An instruction of the program (linux/filter.h, `struct sock_filter`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP` with `BPF_JEQ`, `BPF_JGT`, `BPF_JGE`, `BPF_JSET`, each with `BPF_K`.
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_NOT_LESS: u16 = 0x35;
const IF_BITS: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_ALLOW`, and `SECCOMP_RET_ERRNO` beside its number (linux/seccomp.h).
const ALLOW: u32 = 0x7fff_0000;
const ERROR: u32 = 0x0005_0000;
/// Where things are in `struct seccomp_data`: the call's number, the architecture, the low half of the first argument.
const NUMBER: u32 = 0;
const KIND: u32 = 4;
const FIRST: u32 = 16;

/// A program for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Vec<Instruction>);

impl Filter {
    /// That of a container whose processes may have these capabilities, a bit each.
    #[must_use]
    pub fn of(capabilities: u64) -> Self {
        let rules = RULES.iter().filter(|(_, _, lift)| capabilities & lift == 0);
        let rules: Vec<(u32, Rule)> = rules.map(|&(call, rule, _)| (call, rule)).collect();
        let mut program = vec![
            load(KIND),
            jump(IF_EQUAL, ARCHITECTURE, 1, 0),
            end(ERROR | ENOSYS),
            load(NUMBER),
            jump(IF_GREATER, LAST, 0, 1),
            end(ERROR | ENOSYS),
        ];
        search(&rules, &mut program);
        Self(program)
    }

    /// Its instructions.
    #[must_use]
    pub fn program(&self) -> &[Instruction] {
        &self.0
    }
}

fn load(at: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, value: at }
}

fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

fn end(value: u32) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, value }
}

/// Adds what finds the rule for a call by its number, and ends with what that says.
fn search(rules: &[(u32, Rule)], program: &mut Vec<Instruction>) {
    match rules {
        [] => program.push(end(ALLOW)),
        &[(call, rule)] => decide(call, rule, program),
        _ => {
            let (lower, upper) = rules.split_at(rules.len() / 2);
            let at = program.len();
            let first = upper.first().map_or(0, |(call, _)| *call);
            program.push(jump(IF_NOT_LESS, first, 0, 0));
            search(lower, program);
            // No half of the list has as many instructions as would not fit.
            let lower = u8::try_from(program.len() - at - 1).unwrap_or(u8::MAX);
            if let Some(fork) = program.get_mut(at) {
                fork.if_true = lower;
            }
            search(upper, program);
        }
    }
}

fn decide(call: u32, rule: Rule, program: &mut Vec<Instruction>) {
    let argument = match rule {
        Fails(error) => {
            program.extend([jump(IF_EQUAL, call, 0, 1), end(ERROR | error), end(ALLOW)]);
            return;
        }
        FailsFor(value) => jump(IF_EQUAL, value, 0, 1),
        FailsWith(bits) => jump(IF_BITS, bits, 0, 1),
    };
    program.extend([jump(IF_EQUAL, call, 0, 3), load(FIRST), argument, end(ERROR | EPERM), end(ALLOW)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_protocol::USUAL_CAPABILITIES;

    /// What the kernel does with it; `Err` has the error that the call fails with.
    fn run(filter: &Filter, kind: u32, call: u32, first: u32) -> Result<(), u32> {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, if_true, if_false, value } = filter.program()[at];
            let jump = |is: bool| usize::from(if is { if_true } else { if_false });
            at += 1;
            match code {
                LOAD => {
                    accumulator =
                        [(NUMBER, call), (KIND, kind), (FIRST, first)].iter().find(|(o, _)| *o == value).unwrap().1
                }
                IF_EQUAL => at += jump(accumulator == value),
                IF_GREATER => at += jump(accumulator > value),
                IF_NOT_LESS => at += jump(accumulator >= value),
                IF_BITS => at += jump(accumulator & value != 0),
                RETURN if value == ALLOW => return Ok(()),
                RETURN => return Err(value & 0xffff),
                _ => panic!("{code}"),
            }
        }
    }

    #[test]
    fn each_call_comes_to_its_rule_and_no_other() {
        assert!(RULES.is_sorted_by_key(|(call, ..)| *call) && RULES.last().unwrap().0 <= LAST);
        let usual = Filter::of(USUAL_CAPABILITIES);
        assert!(usual.program().len() < 255, "jumps have a byte");
        for call in 0..=LAST + 1 {
            let rule = RULES.iter().find(|(ruled, ..)| *ruled == call).map(|(_, rule, _)| *rule);
            let got = [0, VSOCK, 0x1000_0000].map(|first| run(&usual, ARCHITECTURE, call, first));
            let wanted = match rule {
                None if call <= LAST => [Ok(()); 3],
                None => [Err(ENOSYS); 3],
                Some(Fails(error)) => [Err(error); 3],
                Some(FailsFor(_)) => [Ok(()), Err(EPERM), Ok(())],
                Some(FailsWith(_)) => [Ok(()), Ok(()), Err(EPERM)],
            };
            assert_eq!(got, wanted, "{call}");
        }
        // Of another architecture, and x32.
        assert_eq!(run(&usual, 0x4000_0003, 0, 0), Err(ENOSYS));
        assert_eq!(run(&usual, ARCHITECTURE, 0x4000_0000, 0), Err(ENOSYS));
    }

    #[test]
    fn a_capability_brings_the_calls_that_it_is_about() {
        let with = |capabilities: u64, call| {
            run(&Filter::of(USUAL_CAPABILITIES | capabilities), ARCHITECTURE, call, 0x1000_0000)
        };
        for (capability, call) in [(SYS_ADMIN, 165), (SYS_ADMIN, 56), (SYS_MODULE, 175), (SYS_TIME, 227), (BPF, 321)] {
            assert_eq!((with(0, call), with(capability, call)), (Err(EPERM), Ok(())), "{call}");
        }
        assert_eq!(run(&Filter::of(u64::MAX), ARCHITECTURE, 41, VSOCK), Err(EPERM));
        assert_eq!(run(&Filter::of(u64::MAX), ARCHITECTURE, 425, 0), Err(ENOSYS));
    }

    /// The kernel takes it, and does what the test above thinks it does.
    #[test]
    fn the_kernel_takes_it() {
        const CHILD: &str = "BULKHEAD_TEST_FILTER";
        if std::env::var_os(CHILD).is_none() {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let test = "filter::tests::the_kernel_takes_it";
            let ended = again.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
            assert!(ended.status.success(), "{ended:?}");
            return;
        }
        rustix::thread::set_no_new_privs(true).unwrap();
        crate::sys::set_filter(&Filter::of(USUAL_CAPABILITIES)).unwrap();
        let socket = |family| rustix::net::socket(family, rustix::net::SocketType::STREAM, None).map(drop);
        use rustix::net::AddressFamily;
        assert_eq!(socket(AddressFamily::UNIX), Ok(()));
        assert_eq!(socket(AddressFamily::VSOCK), Err(rustix::io::Errno::PERM));
        assert_eq!(crate::sys::own_cgroup_namespace(), Err(rustix::io::Errno::PERM));
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    }
}
