//! Bringing a thread out of KVM_RUN.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;

use kvm_bindings::kvm_run;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The `kvm_run` page of the vCPU that this thread runs; null in every other thread.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks: the first real-time signal that the C library leaves free.
pub fn signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RUN_PAGE.with(|page| {
        let page = page.get();
        if !page.is_null() {
            // SAFETY: set by `Armed` in this very thread, to a mapping that lives as long as `Armed`. The kernel reads
            // this byte concurrently by design.
            unsafe { (&raw mut (*page).immediate_exit).write_volatile(1) };
        }
    });
}

/// Installs the handler, once a process.
pub fn install() -> std::io::Result<()> {
    static DONE: OnceLock<i32> = OnceLock::new();
    let result = *DONE.get_or_init(|| match register_signal_handler(signal(), on_signal) {
        Ok(()) => 0,
        Err(e) => e.errno(),
    });
    if result == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(result)) }
}

/// What [`kick`] knows this thread by.
pub fn this_thread() -> libc::pid_t {
    // SAFETY: it returns a number.
    unsafe { libc::gettid() }
}

/// Sends the signal to a thread of this process. One that has ended meanwhile does not get it, and a thread that runs no
/// vCPU does nothing about it.
pub fn kick(thread: libc::pid_t) {
    // SAFETY: the call takes three numbers. That the id may be another thread's by now does no harm.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
}

/// While this lives, the signal makes this thread's vCPU leave (or not enter) the guest.
pub struct Armed(());

impl Armed {
    /// Arms this thread with the vCPU's `kvm_run` page, which must stay mapped while the result lives.
    pub fn new(page: &mut kvm_run) -> Self {
        RUN_PAGE.with(|cell| cell.set(page));
        Armed(())
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        RUN_PAGE.with(|cell| cell.set(ptr::null_mut()));
    }
}
