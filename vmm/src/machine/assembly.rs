//! Devices onto their buses, their interrupts and events wired, and where they are for the guest to know.

use std::io;
use std::sync::{Arc, Mutex};

use boot::acpi::{AcpiPlatform, MmioWindow, PowerPorts, SerialPort};
use devices::legacy::{ACPI_PM_LEN, AcpiPm, ExitPort, I8042, Serial, SerialState};
use devices::virtio::{MmioTransport, VirtioDevice};
use devices::{Bus, BusDevice, ExitSink, GuestExit, GuestRam, InterruptLine};
use event_manager::{EventManager, SubscriberOps};
use kvm_ioctls::{IoEventAddress, VmFd};

use super::ending::Ending;
use super::error::{VmmError, io_error, kvm};
use super::{Console, Subscriber};
use crate::config::{BootSource, SerialConfig, VmConfig};
use crate::events::ExitReason;
use crate::irq::IrqLines;
use crate::snapshot::SnapshotError;

/// First guest-physical address of the virtio-mmio windows.
const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Length of one virtio-mmio window.
const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Offset of QueueNotify in a window (virtio 1.3, 4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;
pub(super) const IOAPIC_BASE: u64 = 0xfec0_0000;
pub(super) const LAPIC_BASE: u64 = 0xfee0_0000;
pub(super) const IOAPIC_PINS: u8 = devices::legacy::IOAPIC_PINS as u8;
/// Tells of another generation ID.
pub(super) const GENERATION_GSI: u32 = 3;
const SERIAL_GSI: u32 = 4;
const SERIAL_PORT: u64 = 0x3f8;
const FIRST_VIRTIO_GSI: u32 = 5;
const I8042_PORT: u64 = 0x60;
const EXIT_PORT: u64 = 0x600;
/// What the exit port takes as a reset.
const EXIT_PORT_RESET: u8 = 2;
const ACPI_PM_PORT: u64 = 0x604;
/// How much of the console a log keeps.
const LOG_LIMIT: u64 = 1 << 20;

/// Transports in order of their windows.
pub(super) type Transports = Vec<Arc<Mutex<MmioTransport>>>;

/// Puts devices on their buses, wires their interrupts and events.
pub(super) struct Assembly<'a> {
    pub vm: &'a VmFd,
    pub lines: &'a IrqLines,
    pub pio: &'a Bus,
    pub mmio: &'a Bus,
    pub manager: &'a mut EventManager<Subscriber>,
    /// The guest's kernel is emulated: to wait for an interrupt and take it costs it ten times what a device takes to answer.
    pub slow_interrupts: bool,
}

impl Assembly<'_> {
    fn line(&self, gsi: u32) -> Result<Arc<dyn InterruptLine>, VmmError> {
        self.lines.line(gsi).map_err(io_error("interrupt line"))
    }

    pub(super) fn legacy(
        &mut self,
        config: &VmConfig,
        console: Option<Console>,
        saved: Option<&SerialState>,
        ending: &Arc<Ending>,
    ) -> Result<Arc<Mutex<Serial>>, VmmError> {
        let for_sink = ending.clone();
        let sink: ExitSink = Arc::new(move |exit| {
            for_sink.report(Ok(match exit {
                GuestExit::PowerOff => ExitReason::PowerOff,
                GuestExit::Reset => ExitReason::Reset,
                GuestExit::Panic => ExitReason::Panic,
            }));
        });
        let console = match console {
            Some(console) => console,
            None => console_of(&config.serial)?,
        };
        let line = self.line(SERIAL_GSI)?;
        let serial = match saved {
            None => Serial::new(line, console.output),
            Some(state) => Serial::restore(state.clone(), line, console.output).ok_or(SnapshotError::Record {
                record: "serial",
                problem: "not a state that a port can be in".into(),
            })?,
        };
        let serial = Arc::new(Mutex::new(serial));
        self.pio.insert(SERIAL_PORT, 8, serial.clone())?;
        self.pio.insert(I8042_PORT, 5, Arc::new(Mutex::new(I8042::new(sink.clone()))))?;
        self.pio.insert(EXIT_PORT, 1, Arc::new(Mutex::new(ExitPort::new(sink.clone()))))?;
        self.pio.insert(ACPI_PM_PORT, ACPI_PM_LEN, Arc::new(Mutex::new(AcpiPm::new(sink))))?;
        if let Some(input) = console.input {
            let input = crate::console::Input::new(input, serial.clone()).map_err(io_error("console input"))?;
            self.manager.add_subscriber(Arc::new(Mutex::new(input)));
        }
        Ok(serial)
    }

    /// Puts the configuration's virtio devices, in the order of the device table, behind transports; returns them and where they
    /// are. `mem` is what they see.
    pub(super) fn virtio(
        &mut self,
        config: &VmConfig,
        built: Vec<Box<dyn VirtioDevice>>,
        mem: &GuestRam,
    ) -> Result<(Transports, Vec<MmioWindow>), VmmError> {
        let limits = devices::virtio::limits(&config.devices)?;
        let most = (u32::from(IOAPIC_PINS) - FIRST_VIRTIO_GSI) as usize;
        if built.len() > most {
            return Err(VmmError::TooManyDevices { asked: built.len(), most });
        }
        let mut windows = Vec::new();
        let mut transports = Vec::new();
        for (slot, (device, limits)) in built.into_iter().zip(&limits).enumerate() {
            let base = VIRTIO_MMIO_BASE + slot as u64 * VIRTIO_MMIO_SIZE;
            let gsi = FIRST_VIRTIO_GSI + slot as u32;
            let mut transport =
                MmioTransport::new(mem.clone(), device, self.line(gsi)?).map_err(io_error("queue events"))?;
            transport.set_limits(limits).map_err(io_error("timer"))?;
            if self.slow_interrupts {
                transport.answer_at_once();
            }
            let events = if transport.answers_at_once() { Vec::new() } else { transport.queue_events() };
            for (queue, event) in events.into_iter().enumerate() {
                let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
                self.vm.register_ioevent(&event, &address, queue as u32).map_err(kvm("KVM_IOEVENTFD"))?;
            }
            let transport = Arc::new(Mutex::new(transport));
            self.mmio.insert(base, VIRTIO_MMIO_SIZE, transport.clone() as Arc<Mutex<dyn BusDevice>>)?;
            self.manager.add_subscriber(transport.clone());
            transports.push(transport);
            windows.push(MmioWindow { base, len: VIRTIO_MMIO_SIZE, gsi });
        }
        Ok((transports, windows))
    }
}

/// The kernel's words: its devices first, so that the user's come last and win.
pub(super) fn command_line(config: &VmConfig, kernel: &BootSource, windows: &[MmioWindow]) -> String {
    let mut words: Vec<String> =
        windows.iter().map(|w| format!("virtio_mmio.device=4K@{:#x}:{}", w.base, w.gsi)).collect();
    words.push(devices::virtio::table::kernel_args(&config.devices));
    words.push(kernel.boot_args.clone());
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// Pins from 0 to the last that has a device.
pub(super) fn pins_in_use(windows: &[MmioWindow]) -> u8 {
    FIRST_VIRTIO_GSI as u8 + windows.len() as u8
}

/// The machine as kernels with ACPI see it. Ours have none and read the MP table.
pub(super) fn acpi_platform(cpus: u8, windows: &[MmioWindow]) -> AcpiPlatform<'_> {
    let power = PowerPorts {
        sleep_control: ACPI_PM_PORT as u16,
        sleep_status: ACPI_PM_PORT as u16 + 1,
        reset: EXIT_PORT as u16,
        reset_value: EXIT_PORT_RESET,
    };
    let serial = Some(SerialPort { base: SERIAL_PORT as u16, gsi: SERIAL_GSI });
    AcpiPlatform {
        cpus,
        ioapic: IOAPIC_BASE,
        lapic: LAPIC_BASE,
        irq_pins: IOAPIC_PINS,
        serial,
        virtio: windows,
        power,
        generation: GENERATION_GSI,
    }
}

/// The console that a configuration's `serial` section describes.
fn console_of(config: &SerialConfig) -> Result<Console, VmmError> {
    Ok(match config {
        SerialConfig::Off => Console { input: None, output: Box::new(io::sink()) },
        SerialConfig::Stdio => {
            use std::os::fd::AsFd;
            let input = io::stdin().as_fd().try_clone_to_owned().map_err(io_error("stdin"))?;
            Console { input: Some(input), output: Box::new(io::stdout()) }
        }
        SerialConfig::Log { path } => {
            let file = crate::open::output(path).map_err(|source| VmmError::Log { path: path.clone(), source })?;
            Console { input: None, output: Box::new(crate::console::Bounded::new(file, LOG_LIMIT)) }
        }
    })
}
