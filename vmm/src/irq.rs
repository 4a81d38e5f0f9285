//! Interrupt lines (irqfd) and the message routing behind the userspace IOAPIC.
//!
//! The machine has a split irqchip: LAPICs in the kernel, the IOAPIC in `devices`. Each unmasked pin is one MSI route;
//! an irqfd on the pin's GSI then delivers without leaving the kernel (Linux `virt/kvm/api.rst`, 4.52 and 7.5).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::InterruptLine;
use devices::legacy::{IOAPIC_PINS, MsiMessage, RouteSink};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The lines of a VM's interrupts, and the IOAPIC's pins as KVM's GSI routing table.
///
/// A line is bound to its pin when the guest first unmasks that: nothing comes of it before, and for each that is bound the
/// end of the VM waits for a grace period of KVM's (`irqfd_shutdown`).
pub struct IrqLines {
    vm: Arc<VmFd>,
    pins: Mutex<Pins>,
}

#[derive(Default)]
struct Pins {
    /// Pins that are unmasked.
    routed: [bool; IOAPIC_PINS],
    /// Lines whose pins have not been so yet.
    waiting: Vec<(u32, Arc<EventFd>)>,
}

/// An edge on one GSI, through an irqfd.
struct IrqFdLine(Arc<EventFd>);

impl IrqLines {
    /// Of `vm`, with all pins masked.
    pub fn new(vm: Arc<VmFd>) -> Self {
        IrqLines { vm, pins: Mutex::default() }
    }

    /// A line of its own to the pin `gsi`.
    ///
    /// # Errors
    /// The host's answer.
    pub fn line(&self, gsi: u32) -> io::Result<Arc<dyn InterruptLine>> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let mut pins = self.pins();
        if pins.routed.get(gsi as usize).is_some_and(|&routed| routed) {
            self.bind(gsi, &event)?;
        } else {
            pins.waiting.push((gsi, event.clone()));
        }
        Ok(Arc::new(IrqFdLine(event)))
    }

    fn set_routes(&self, pins: &[Option<MsiMessage>; IOAPIC_PINS]) -> io::Result<()> {
        let entries: Vec<_> =
            pins.iter().enumerate().filter_map(|(gsi, pin)| Some(entry(gsi as u32, pin.as_ref()?))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let mut known = self.pins();
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)?;
        known.routed = pins.each_ref().map(Option::is_some);
        let Pins { routed, waiting } = &mut *known;
        let mut bound = Ok(());
        waiting.retain(|(gsi, event)| {
            if bound.is_ok() && routed[*gsi as usize] {
                // Edges on a masked pin are lost.
                let _ = event.read();
                bound = self.bind(*gsi, event);
                return bound.is_err();
            }
            true
        });
        bound
    }

    fn bind(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.vm.register_irqfd(event, gsi).map_err(io::Error::from)
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        // Nothing that panics leaves them half-changed.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InterruptLine for IrqFdLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// For the IOAPIC: its unmasked pins.
pub struct KvmRoutes(pub Arc<IrqLines>);

impl RouteSink for KvmRoutes {
    fn set_routes(&mut self, pins: &[Option<MsiMessage>; IOAPIC_PINS]) -> io::Result<()> {
        self.0.set_routes(pins)
    }
}

fn entry(gsi: u32, message: &MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_enable_cap;
    use kvm_ioctls::Cap;

    #[test]
    fn a_line_is_bound_when_its_pin_is_first_unmasked() {
        let Ok(kvm) = crate::host::open() else {
            return println!("SKIP a_line_is_bound_when_its_pin_is_first_unmasked: no /dev/kvm");
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let mut cap = kvm_enable_cap { cap: Cap::SplitIrqchip as u32, ..Default::default() };
        cap.args[0] = IOAPIC_PINS as u64;
        vm.enable_cap(&cap).unwrap();
        let lines = IrqLines::new(vm);
        let unmasked = |which: &[usize]| {
            let mut pins = [None; IOAPIC_PINS];
            which.iter().for_each(|&pin| pins[pin] = Some(MsiMessage { address: 0xfee0_0000, data: 0x30 }));
            lines.set_routes(&pins).unwrap();
        };
        let line = lines.line(5).unwrap();
        let other = lines.line(6).unwrap();
        let event = |gsi| lines.pins().waiting.iter().find(|(of, _)| *of == gsi).map(|(_, event)| event.clone());
        let five = event(5).unwrap();
        line.trigger().unwrap();
        assert_eq!(five.read().unwrap(), 1, "nobody takes it while the pin is masked");
        line.trigger().unwrap();
        unmasked(&[5]);
        assert!(five.read().is_err(), "what came before is lost");
        line.trigger().unwrap();
        assert!(five.read().is_err(), "KVM takes it");
        assert!(event(5).is_none() && event(6).is_some());
        // Masked and unmasked once more, and with others: it stays bound.
        unmasked(&[]);
        unmasked(&[5, 6]);
        other.trigger().unwrap();
        assert!(lines.pins().waiting.is_empty());
        // To a pin that is unmasked, at once.
        lines.line(6).unwrap();
        assert!(lines.pins().waiting.is_empty());
    }
}
