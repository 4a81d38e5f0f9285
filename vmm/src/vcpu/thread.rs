//! One vCPU and the thread that runs it.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use devices::legacy::Ioapic;
use devices::{Bus, GuestRam, Written};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::control::{Control, Order, Target};
use super::exits::{Ended, VcpuError};
use super::kick;
use super::state::{SavedVcpu, StateError};
use crate::chores::Chores;
use crate::complete::{self, KvmVcpu, XsaveScratch};
use crate::events::{Counts, ExitReason};
use crate::sandbox::{Door, Thread};
use crate::slots::Late;

/// Stack of a vCPU thread. Small, so that no host backs it with a 2 MiB page.
const STACK: usize = 256 << 10;

/// What all vCPUs of a machine share.
#[derive(Clone)]
pub struct Shared {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// What of that is work for another thread.
    pub chores: Arc<Chores>,
    /// Guest RAM, for instructions completed in user space.
    pub ram: GuestRam,
    /// Gets the EOI of level-triggered interrupts.
    pub ioapic: Arc<Mutex<Ioapic>>,
    /// The machine has ended: no vCPU enters the guest again.
    pub over: Arc<AtomicBool>,
    /// Some of RAM has no memory slot yet.
    pub late: Option<Late>,
}

/// A vCPU that is not running yet.
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    shared: Shared,
    scratch: XsaveScratch,
    counts: Counts,
}

/// What to do after an exit has been handled.
enum Next {
    Enter,
    CheckControl,
    End(Ended),
}

impl Vcpu {
    /// Wraps a vCPU whose CPUID and registers are set.
    pub fn new(index: u8, fd: VcpuFd, shared: Shared, scratch: XsaveScratch) -> Self {
        Vcpu { index, fd, shared, scratch, counts: Counts::default() }
    }

    /// Starts a thread for it, paused. `on_end` is called once, on that thread, when the vCPU is out of the guest for good.
    /// It goes through `door` before it does anything.
    pub fn spawn(self, on_end: OnEnd, door: Option<Door>) -> io::Result<VcpuThread> {
        kick::install()?;
        let name = format!("vcpu{}", self.index);
        let mut driver = Driver::new(self, on_end);
        let control = driver.control.clone();
        let id = Arc::new(AtomicI32::new(0));
        let its = id.clone();
        let join = thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            // It looks at what it is to do after this: who does not know it yet need not kick it.
            its.store(kick::this_thread(), Ordering::SeqCst);
            match door {
                Some(door) => driver.drive_in(door),
                None => driver.drive(),
            }
        })?;
        Ok(VcpuThread { control, id, join: Some(join) })
    }

    /// As [`Vcpu::spawn`], but for the thread that calls: it is to [`Driver::drive`] the vCPU, and no other thread is.
    pub fn on_this_thread(self, on_end: OnEnd) -> io::Result<(Driver, VcpuThread)> {
        kick::install()?;
        let driver = Driver::new(self, on_end);
        let control = driver.control.clone();
        Ok((driver, VcpuThread { control, id: Arc::new(kick::this_thread().into()), join: None }))
    }

    fn live(&mut self, control: &Arc<Control>) -> Ended {
        let _armed = kick::Armed::new(self.fd.get_kvm_run());
        loop {
            match control.wait_for_order() {
                Order::Run => {}
                Order::Do(task) => {
                    task(self);
                    continue;
                }
                Order::End => return Ended::Stopped,
            }
            // Cleared before the look at the control block that follows a kick, so that no kick is lost.
            self.fd.set_kvm_immediate_exit(0);
            if control.target() != Target::Running {
                continue;
            }
            loop {
                // What ends a machine is often this vCPU's last exit: it need not enter the guest only to be kicked out.
                if self.shared.over.load(Ordering::Acquire) {
                    return Ended::Stopped;
                }
                match self.enter(control) {
                    Next::Enter => {}
                    Next::CheckControl => break,
                    Next::End(ended) => return ended,
                }
            }
            // So that the guest's watchdogs do not count the pause; refused where the guest has no kvm-clock.
            let _ = self.fd.kvmclock_ctrl();
        }
    }

    fn save(&mut self, msrs: &[u32]) -> Result<SavedVcpu, StateError> {
        SavedVcpu::save(&mut self.fd, &mut self.scratch, msrs)
    }

    /// Runs the guest up to its next exit, and handles that.
    fn enter(&mut self, control: &Arc<Control>) -> Next {
        let index = self.index;
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                self.counts.pio += 1;
                self.shared.pio.write(u64::from(port), data);
                Next::Enter
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.counts.pio += 1;
                self.shared.pio.read(u64::from(port), data);
                Next::Enter
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.counts.mmio += 1;
                let Shared { late, mmio, chores, .. } = &self.shared;
                let is_ram = late.as_ref().is_some_and(|late| late.write(address, data));
                if !is_ram && mmio.write_or_leave(address, data) == Written::Left {
                    chores.leave(address, data, control);
                    return Next::CheckControl;
                }
                Next::Enter
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.counts.mmio += 1;
                if !self.shared.late.as_ref().is_some_and(|late| late.read(address, data)) {
                    self.shared.mmio.read(address, data);
                }
                Next::Enter
            }
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::IoapicEoi(vector)) => {
                self.counts.other += 1;
                let mut ioapic = self.shared.ioapic.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                ioapic.end_of_interrupt(vector);
                Next::Enter
            }
            Ok(VcpuExit::Intr) => Next::CheckControl,
            Ok(VcpuExit::Shutdown) => Next::End(Ended::Guest(ExitReason::TripleFault)),
            Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
                KVM_SYSTEM_EVENT_SHUTDOWN => Next::End(Ended::Guest(ExitReason::PowerOff)),
                KVM_SYSTEM_EVENT_RESET => Next::End(Ended::Guest(ExitReason::Reset)),
                KVM_SYSTEM_EVENT_CRASH => Next::End(Ended::Guest(ExitReason::Panic)),
                other => {
                    Next::End(Ended::Failed(VcpuError::Unexpected { index, exit: format!("system event {other}") }))
                }
            },
            Ok(VcpuExit::FailEntry(reason, _)) => Next::End(Ended::Failed(VcpuError::FailEntry { index, reason })),
            Ok(other) => {
                let exit = format!("{other:?}");
                Next::End(Ended::Failed(VcpuError::Unexpected { index, exit }))
            }
            Err(e) if e.errno() == libc::EINTR => Next::CheckControl,
            // An AP that has not had its INIT yet, or a host that is short for a moment: KVM waits in the kernel.
            Err(e) if e.errno() == libc::EAGAIN => Next::CheckControl,
            Err(source) => Next::End(Ended::Failed(VcpuError::Run { index, source })),
        }
    }

    fn internal_error(&mut self) -> Next {
        if self.shared.late.as_mut().is_some_and(Late::may_be_why) {
            return Next::Enter;
        }
        let (suberror, data) = internal_error(self.fd.get_kvm_run());
        let bytes = complete::instruction_bytes(self.fd.get_kvm_run());
        let mut state = KvmVcpu::new(&mut self.fd, &mut self.scratch);
        let failed = if suberror == KVM_INTERNAL_ERROR_EMULATION {
            match complete::complete(&mut state, &self.shared.ram, bytes.as_deref()) {
                Ok(_) => {
                    self.counts.completed += 1;
                    return Next::Enter;
                }
                Err(source) => {
                    let state = complete::describe_failure(&mut state, &self.shared.ram, bytes.as_deref());
                    VcpuError::Instruction { index: self.index, source, state }
                }
            }
        } else {
            let state = complete::describe_failure(&mut state, &self.shared.ram, bytes.as_deref());
            VcpuError::Internal { index: self.index, suberror, data, state }
        };
        Next::End(Ended::Failed(failed))
    }
}

/// Suberror and data of KVM_EXIT_INTERNAL_ERROR (api.rst, 5, `internal`).
fn internal_error(run: &kvm_bindings::kvm_run) -> (u32, Vec<u64>) {
    // SAFETY: the exit reason said that this member of the union is the one KVM filled; all its bit patterns are valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    (internal.suberror, internal.data[..count].to_vec())
}

/// Told how a vCPU's life ended, and what it did.
pub type OnEnd = Box<dyn FnOnce(Ended, Counts) + Send>;

/// A vCPU with what it obeys, for the thread that runs it.
pub struct Driver {
    vcpu: Vcpu,
    control: Arc<Control>,
    on_end: Option<OnEnd>,
}

impl Driver {
    fn new(vcpu: Vcpu, on_end: OnEnd) -> Self {
        Driver { vcpu, control: Arc::default(), on_end: Some(on_end) }
    }

    /// As [`Driver::drive`], confined before anything else; a vCPU that cannot be has failed.
    fn drive_in(&mut self, door: Door) {
        match door.enter(Thread::Vcpu) {
            Ok(()) => self.drive(),
            Err(error) => self.end(Ended::Failed(VcpuError::Sandbox(error))),
        }
    }

    /// Does what it is told until the vCPU is out of the guest for good.
    pub fn drive(&mut self) {
        let (vcpu, control) = (&mut self.vcpu, &self.control);
        // Nobody looks at the vCPU's state afterwards, and the panic hook has told of the panic.
        let ended = panic::catch_unwind(AssertUnwindSafe(|| vcpu.live(control)));
        self.end(ended.unwrap_or(Ended::Failed(VcpuError::Panicked { index: self.vcpu.index })));
    }

    fn end(&mut self, ended: Ended) {
        self.control.ended();
        if let Some(on_end) = self.on_end.take() {
            on_end(ended, self.vcpu.counts);
        }
    }
}

impl Drop for Driver {
    /// Nobody has to wait for one that never ran.
    fn drop(&mut self) {
        self.control.ended();
    }
}

/// A running vCPU's steering wheel. Dropping it ends the thread, if that is the vCPU's own.
pub struct VcpuThread {
    control: Arc<Control>,
    /// Of the thread that it runs on; 0 before that has begun.
    id: Arc<AtomicI32>,
    /// That thread, if it is the vCPU's own.
    join: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Lets the vCPU run.
    pub fn resume(&self) {
        self.control.set(Target::Running);
    }

    /// Asks the vCPU to leave the guest; [`Self::wait_paused`] waits for it.
    pub fn pause(&self) {
        self.control.set(Target::Paused);
        self.kick();
    }

    /// Waits until the vCPU is out of the guest.
    pub fn wait_paused(&self) {
        self.control.wait_out_of_guest();
    }

    /// The state of the vCPU, which must be paused; `msrs` are those to save. `None` if it has ended.
    pub fn save(&self, msrs: &Arc<Vec<u32>>) -> Option<Result<SavedVcpu, StateError>> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let msrs = msrs.clone();
        // The receiver waits for nothing else, so there is always room.
        self.control.give(Box::new(move |vcpu| drop(sender.send(vcpu.save(&msrs)))));
        receiver.recv().ok()
    }

    /// Asks the thread to end; dropping `self` waits for it.
    pub fn stop(&self) {
        self.control.set(Target::Stopped);
        if !self.control.has_ended() {
            self.kick();
        }
    }

    fn kick(&self) {
        let id = self.id.load(Ordering::SeqCst);
        if id != 0 && self.join.as_ref().is_none_or(|join| !join.is_finished()) {
            kick::kick(id);
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        if self.control.target() != Target::Stopped {
            self.stop();
        }
        if let Some(join) = self.join.take() {
            // It does not panic: `Driver::drive` sees to that.
            let _ = join.join();
        }
    }
}

impl std::fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vcpu({}, fd {})", self.index, self.fd.as_raw_fd())
    }
}
