//! Which system calls each thread of a machine makes. Those of devices and workers are in their own files.

use devices::virtio::{DEVICES, DeviceKind};
use devices::worker::Work;
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_irq_routing, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msr_list,
    kvm_msrs, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use libc::c_long;

use super::filter::{STARTING_PRCTLS, USUAL_PRCTLS};
use crate::config::VmConfig;

/// What any thread does: memory, locks, its descriptors, its end.
const ANY: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_prctl,
    libc::SYS_getpid,
    libc::SYS_getrandom,
];

/// A vCPU: KVM, and other vCPUs out of the guest.
const VCPU: &[c_long] = &[libc::SYS_ioctl, libc::SYS_tgkill];

/// KVM's requests to a vCPU and its VM while a guest runs, is paused, or is told of (`vcpu::state`, `complete`, `irq`).
const VCPU_IOCTLS: &[u32] = &[
    request(NONE, 0x80, 0),                             // KVM_RUN
    request(NONE, 0xa3, 0),                             // KVM_GET_TSC_KHZ
    request(NONE, 0xad, 0),                             // KVM_KVMCLOCK_CTRL
    request(READ, 0x81, size_of::<kvm_regs>()),         // KVM_GET_REGS
    request(WRITE, 0x82, size_of::<kvm_regs>()),        // KVM_SET_REGS
    request(READ, 0x83, size_of::<kvm_sregs>()),        // KVM_GET_SREGS
    request(WRITE, 0x84, size_of::<kvm_sregs>()),       // KVM_SET_SREGS
    request(BOTH, 0x88, size_of::<kvm_msrs>()),         // KVM_GET_MSRS
    request(WRITE, 0x89, size_of::<kvm_msrs>()),        // KVM_SET_MSRS
    request(READ, 0x8e, size_of::<kvm_lapic_state>()),  // KVM_GET_LAPIC
    request(BOTH, 0x91, size_of::<kvm_cpuid2>()),       // KVM_GET_CPUID2
    request(READ, 0x98, size_of::<kvm_mp_state>()),     // KVM_GET_MP_STATE
    request(READ, 0x9f, size_of::<kvm_vcpu_events>()),  // KVM_GET_VCPU_EVENTS
    request(WRITE, 0xa0, size_of::<kvm_vcpu_events>()), // KVM_SET_VCPU_EVENTS
    request(READ, 0xa1, size_of::<kvm_debugregs>()),    // KVM_GET_DEBUGREGS
    request(READ, 0xa4, size_of::<kvm_xsave>()),        // KVM_GET_XSAVE
    request(WRITE, 0xa5, size_of::<kvm_xsave>()),       // KVM_SET_XSAVE
    request(READ, 0xcf, size_of::<kvm_xsave>()),        // KVM_GET_XSAVE2
    request(READ, 0xa6, size_of::<kvm_xcrs>()),         // KVM_GET_XCRS
    SET_GSI_ROUTING,
    IRQFD,
];
/// KVM_IRQFD: it has unmasked the pin for the first time.
const IRQFD: u32 = request(WRITE, 0x76, size_of::<kvm_irqfd>());
/// KVM_SET_GSI_ROUTING: the guest has set up a pin of the IOAPIC.
const SET_GSI_ROUTING: u32 = request(WRITE, 0x6a, size_of::<kvm_irq_routing>());
/// KVM_GET_MSR_INDEX_LIST.
const GET_MSR_INDEX_LIST: u32 = request(BOTH, 0x02, size_of::<kvm_msr_list>());
/// KVM_GET_CLOCK.
const GET_CLOCK: u32 = request(READ, 0x7c, size_of::<kvm_clock_data>());

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;
const BOTH: u32 = READ | WRITE;

/// A request of KVM's as ioctl(2) takes it: direction, size, its letter, number.
const fn request(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0xae << 8 | number
}

/// The first thread also gives the terminal its mode back.
const FIRST_IOCTLS: &[u32] =
    &[libc::TCGETS2 as u32, libc::TCSETS2 as u32, libc::TCSETSW2 as u32, libc::TCSETSF2 as u32, libc::TCSETS as u32];

/// The event loop: what it waits for, clients of its sockets, timers, and all vCPUs. At the end it takes away what the machine had on
/// the host.
const EVENTS: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_fcntl,
    libc::SYS_tgkill,
    libc::SYS_timerfd_settime,
    libc::SYS_ioctl,
    libc::SYS_statx,
    libc::SYS_unlink,
];
/// Clients that do not wait, and routes of interrupts.
const EVENTS_IOCTLS: &[u32] = &[libc::FIONBIO as u32, SET_GSI_ROUTING, IRQFD];

/// Starting a thread.
const STARTING: &[c_long] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
];
/// And confining it.
const CONFINING: &[c_long] =
    &[libc::SYS_seccomp, libc::SYS_capget, libc::SYS_capset, libc::SYS_unshare, libc::SYS_umask];

/// What clients of the control socket ask for: snapshots are written, files and devices opened.
pub static REQUESTS: Work = Work {
    stack: 512 << 10,
    syscalls: &[
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_fstatfs,
        libc::SYS_fcntl,
        libc::SYS_flock,
        libc::SYS_lseek,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_readv,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_writev,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_fadvise64,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync_file_range,
        libc::SYS_copy_file_range,
        libc::SYS_sendfile,
        libc::SYS_mkdir,
        libc::SYS_rename,
        libc::SYS_renameat2,
        libc::SYS_link,
        libc::SYS_linkat,
        libc::SYS_unlink,
        libc::SYS_unlinkat,
        libc::SYS_rmdir,
        libc::SYS_readlink,
        libc::SYS_getcwd,
        libc::SYS_getdents64,
        libc::SYS_geteuid,
        libc::SYS_socket,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_connect,
        libc::SYS_fchmod,
        libc::SYS_eventfd2,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_settime,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_enter,
        libc::SYS_tgkill,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_ioctl,
    ],
    ioctls: &[
        libc::FICLONE as u32,
        libc::TUNGETIFF as u32,
        libc::TCGETS as u32,
        libc::FIONBIO as u32,
        GET_CLOCK,
        GET_MSR_INDEX_LIST,
        SET_GSI_ROUTING,
        IRQFD,
    ],
    ..Work::named("requests")
};

/// What calls come to in a C library that makes others of them. The lists here have them as glibc and Rust's library make them.
#[cfg(target_env = "musl")]
const AS_MADE: &[(c_long, &[c_long])] = &[
    (libc::SYS_accept4, &[libc::SYS_accept]),
    (libc::SYS_epoll_wait, &[libc::SYS_epoll_pwait]),
    (libc::SYS_statx, &[libc::SYS_stat, libc::SYS_lstat, libc::SYS_fstat]),
    (libc::SYS_openat, &[libc::SYS_open, libc::SYS_fcntl]),
];
#[cfg(not(target_env = "musl"))]
const AS_MADE: &[(c_long, &[c_long])] = &[];

/// What a thread may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls {
    /// In order, and so are the others: each once.
    numbers: Vec<c_long>,
    ioctls: Vec<u32>,
    starts: bool,
}

impl Calls {
    /// These and what any thread does.
    pub(super) fn of(numbers: &[c_long], ioctls: &[u32]) -> Self {
        Calls { numbers: ANY.to_vec(), ioctls: Vec::new(), starts: false }.and(numbers, ioctls)
    }

    fn and(mut self, numbers: &[c_long], ioctls: &[u32]) -> Self {
        self.numbers.extend(numbers);
        let as_made = AS_MADE.iter().filter(|(call, _)| numbers.contains(call));
        self.numbers.extend(as_made.flat_map(|(_, made)| *made));
        self.numbers.sort_unstable();
        self.numbers.dedup();
        self.ioctls.extend(ioctls);
        self.ioctls.sort_unstable();
        self.ioctls.dedup();
        self
    }

    /// The calls' numbers.
    pub fn numbers(&self) -> impl Iterator<Item = c_long> {
        // Without any request to be allowed, the call is none.
        self.numbers.iter().copied().filter(|&number| number != libc::SYS_ioctl || !self.ioctls.is_empty())
    }

    /// Requests of ioctl(2).
    pub fn ioctls(&self) -> impl Iterator<Item = u32> {
        self.ioctls.iter().copied()
    }

    /// Requests of prctl(2).
    pub fn prctls(&self) -> &'static [u32] {
        if self.starts { STARTING_PRCTLS } else { USUAL_PRCTLS }
    }
}

/// The kinds of the devices of a machine that have something to do.
pub fn kinds(config: &VmConfig) -> impl Iterator<Item = &'static DeviceKind> {
    DEVICES.iter().filter(|kind| config.devices.get(kind.config_key).is_some_and(kind.works))
}

/// A vCPU's thread. What it does for devices is little: what starts and stops them, and most of what they do, is the event loop's.
pub fn vcpu(config: &VmConfig) -> Calls {
    kinds(config).fold(Calls::of(VCPU, VCPU_IOCTLS), |calls, kind| calls.and(kind.prompt_syscalls, &[]))
}

/// The first thread, which is a vCPU's.
pub fn first(config: &VmConfig) -> Calls {
    vcpu(config).and(&[], FIRST_IOCTLS)
}

/// The event loop.
pub fn events(config: &VmConfig) -> Calls {
    kinds(config).fold(Calls::of(EVENTS, EVENTS_IOCTLS), |calls, kind| calls.and(kind.syscalls, kind.ioctls))
}

/// A worker.
pub fn worker(work: &Work) -> Calls {
    let calls = Calls::of(work.syscalls, work.ioctls);
    // A device that takes another's place is set up by whom that was asked of; and files are synced by several threads.
    if std::ptr::eq(work, &REQUESTS) {
        return DEVICES.iter().fold(calls.and(STARTING, &[]), |calls, kind| calls.and(kind.syscalls, kind.ioctls));
    }
    calls
}

/// The thread that starts workers: it may do what they may, since what it may not, they may not either.
pub fn nursery(workers: &[&Work]) -> Calls {
    let calls = Calls { starts: true, ..Calls::of(STARTING, &[]).and(CONFINING, &[]) };
    workers.iter().map(|work| worker(work)).fold(calls, |calls, own| calls.and(&own.numbers, &own.ioctls))
}
