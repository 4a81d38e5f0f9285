//! KVM's part of a machine that needs no configuration: its VM, and its first vCPU.
//!
//! To make them takes KVM a third of a millisecond, as long as to read what the machine is to be, so both are done at the same time
//! where there is a machine to come and the process may have a second thread by then: the one that will make its sandbox.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use kvm_bindings::{KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::assembly::IOAPIC_PINS;
use super::error::{VmmError, kvm};
use crate::elsewhere::{Elsewhere, Here, Places};
use crate::sandbox::{self, EVENTS_STACK};
use crate::{host, process};

/// Three pages KVM needs on VT-x, and the identity map's one below them, out of the guest's sight (api.rst, 4.35, 4.41).
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// KVM, and a VM of it.
type Made = Result<(Kvm, Arc<VmFd>), VmmError>;

/// The first vCPU in the making.
pub(super) type FirstVcpu = Receiver<Result<VcpuFd, VmmError>>;

/// A VM in the making, on the thread that will be the event loop's. Dropped, there is none.
pub struct Ahead {
    thread: Elsewhere,
    made: Receiver<Made>,
    first: FirstVcpu,
    /// Who makes it and who has begun that have a processor each.
    here: Option<Here>,
}

/// The VM.
pub(super) struct Soon {
    made: Receiver<Made>,
    first: FirstVcpu,
    here: Option<Here>,
}

impl Ahead {
    /// Begins; none if this process may not have a second thread yet, or cannot. Signals that are to be waited for are blocked by now.
    pub fn start() -> Option<Self> {
        if !sandbox::may_begin_early() {
            return None;
        }
        process::before_threads();
        let ((tell, made), (tell_first, first)) = (channel(), channel());
        let work = move || {
            let made = make();
            let vm = made.as_ref().ok().map(|(_, vm)| vm.clone());
            if let (Ok(()), Some(vm)) = (tell.send(made), vm) {
                let _ = tell_first.send(create_vcpu(&vm, 0));
            }
        };
        let thread = Elsewhere::start("events", EVENTS_STACK, work).ok()?;
        let here = thread.places().map(Places::stay);
        Some(Self { thread, made, first, here })
    }

    /// The calling thread has something to do that takes longer, or starts others.
    pub(super) fn leave(&mut self) {
        self.here = None;
    }

    /// The thread, which comes to what it is told when VM and vCPU are made.
    pub(super) fn thread(self) -> (Elsewhere, Soon) {
        let here = self.here.or_else(|| self.thread.places().map(Places::stay));
        (self.thread, Soon { made: self.made, first: self.first, here })
    }
}

impl Soon {
    /// Waits for it; makes it, if the thread has failed to.
    pub(super) fn wait(self) -> Result<(Kvm, Arc<VmFd>, Option<FirstVcpu>), VmmError> {
        let made = self.made.recv();
        drop(self.here);
        let (host_kvm, vm) = made.unwrap_or_else(|_| make())?;
        Ok((host_kvm, vm, Some(self.first)))
    }
}

/// A VM, now.
pub(super) fn now() -> Result<(Kvm, Arc<VmFd>, Option<FirstVcpu>), VmmError> {
    make().map(|(host_kvm, vm)| (host_kvm, vm, None))
}

/// Waits for the first vCPU; makes it, if the thread has failed to.
pub(super) fn first_vcpu(first: FirstVcpu, vm: &VmFd) -> Result<VcpuFd, VmmError> {
    first.recv().unwrap_or_else(|_| create_vcpu(vm, 0))
}

/// Makes a VM that is ready for vCPUs.
fn make() -> Made {
    let host_kvm = host::open()?;
    let vm = create_vm(&host_kvm)?;
    split_irqchip(&vm)?;
    Ok((host_kvm, Arc::new(vm)))
}

pub(super) fn create_vcpu(vm: &VmFd, index: u8) -> Result<VcpuFd, VmmError> {
    vm.create_vcpu(index.into()).map_err(kvm("KVM_CREATE_VCPU"))
}

fn create_vm(host_kvm: &Kvm) -> Result<VmFd, VmmError> {
    let vm = loop {
        match host_kvm.create_vm() {
            // A signal came while KVM waited; nothing was made.
            Err(e) if e.errno() == libc::EINTR => continue,
            result => break result.map_err(kvm("KVM_CREATE_VM"))?,
        }
    };
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
    Ok(vm)
}

/// LAPICs in the kernel; the IOAPIC's pins are ours (api.rst, 7.5).
fn split_irqchip(vm: &VmFd) -> Result<(), VmmError> {
    let mut cap = kvm_enable_cap { cap: Cap::SplitIrqchip as u32, ..Default::default() };
    cap.args[0] = u64::from(IOAPIC_PINS);
    vm.enable_cap(&cap).map_err(kvm("KVM_CAP_SPLIT_IRQCHIP"))?;
    if vm.check_extension_raw(KVM_CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0 {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, ..Default::default() };
        cap.args[0] = 1;
        vm.enable_cap(&cap).map_err(kvm("KVM_CAP_EXIT_ON_EMULATION_FAILURE"))?;
    }
    Ok(())
}
