//! Interrupt lines (irqfd) and the message routing behind the userspace IOAPIC.
//!
//! The machine has a split irqchip: LAPICs in the kernel, the IOAPIC in `devices`. Each unmasked pin is one MSI route;
//! an irqfd on the pin's GSI then delivers without leaving the kernel (Linux `virt/kvm/api.rst`, 4.52 and 7.5).

use std::io;
use std::sync::Arc;

use devices::InterruptLine;
use devices::legacy::{IOAPIC_PINS, MsiMessage, RouteSink};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge on one GSI, through an irqfd.
pub struct IrqFdLine(EventFd);

impl IrqFdLine {
    /// Binds a new event descriptor to `gsi` of `vm`.
    pub fn new(vm: &VmFd, gsi: u32) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&event, gsi).map_err(io::Error::from)?;
        Ok(IrqFdLine(event))
    }
}

impl InterruptLine for IrqFdLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Turns the IOAPIC's unmasked pins into KVM's GSI routing table.
pub struct KvmRoutes(pub Arc<VmFd>);

impl RouteSink for KvmRoutes {
    fn set_routes(&mut self, pins: &[Option<MsiMessage>; IOAPIC_PINS]) -> io::Result<()> {
        let entries: Vec<_> =
            pins.iter().enumerate().filter_map(|(gsi, pin)| Some(entry(gsi as u32, pin.as_ref()?))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.0.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

fn entry(gsi: u32, message: &MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}
