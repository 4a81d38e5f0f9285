//! The one assembly recipe, and the event loop.
//!
//! The order is measured: memory slots before the interrupt controller (a slot change after KVM_CREATE_IRQCHIP waits
//! for an SRCU grace period), and the descriptor table grown before the first thread (growing it later waits for an
//! RCU one).

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use boot::acpi::{AcpiPlatform, MmioWindow, PowerPorts, SerialPort};
use devices::legacy::{ACPI_PM_LEN, AcpiPm, ExitPort, I8042, Ioapic, Serial};
use devices::virtio::MmioTransport;
use devices::{Bus, BusDevice, ExitSink, GuestExit, GuestRam, InterruptLine};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_bindings::{KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::complete::{self, XsaveScratch};
use crate::config::{ConfigError, SerialConfig, VmConfig};
use crate::cpuid::{self, Identity};
use crate::events::{Counts, Event, ExitReason, Phase, monotonic_ns};
use crate::host::{self, HostError};
use crate::irq::{IrqFdLine, KvmRoutes};
use crate::memory::{self, MemoryError, Ram};
use crate::vcpu::{Ended, Shared, Vcpu, VcpuError, VcpuThread, registers};

/// First guest-physical address of the virtio-mmio windows.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Length of one virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Offset of QueueNotify in a window (virtio 1.3, 4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;
const IOAPIC_BASE: u64 = 0xfec0_0000;
const LAPIC_BASE: u64 = 0xfee0_0000;
const IOAPIC_PINS: u8 = devices::legacy::IOAPIC_PINS as u8;
const SERIAL_GSI: u32 = 4;
const SERIAL_PORT: u64 = 0x3f8;
const FIRST_VIRTIO_GSI: u32 = 5;
const I8042_PORT: u64 = 0x60;
const EXIT_PORT: u64 = 0x600;
/// What the exit port takes as a reset.
const EXIT_PORT_RESET: u8 = 2;
const ACPI_PM_PORT: u64 = 0x604;
/// Three pages KVM needs on VT-x, and the identity map's one below them, out of the guest's sight (api.rst, 4.35, 4.41).
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Descriptors to have room for before the first thread starts.
const FD_ROOM: libc::c_int = 1023;
/// How much of the console a log keeps.
const LOG_LIMIT: u64 = 1 << 20;

/// A machine that could not be built, or broke.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The configuration cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This host cannot run machines.
    #[error(transparent)]
    Host(#[from] HostError),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The tables for kernels with ACPI.
    #[error(transparent)]
    Acpi(#[from] boot::acpi::AcpiError),
    /// A device section, or a device's host resources.
    #[error(transparent)]
    Device(#[from] devices::virtio::DeviceError),
    /// More devices than interrupt pins.
    #[error("{asked} devices are more than the {most} that have an interrupt line")]
    TooManyDevices {
        /// Devices asked for.
        asked: usize,
        /// Most there can be.
        most: usize,
    },
    /// Two devices at one address: a mistake in this file.
    #[error("device addresses: {0}")]
    Bus(#[from] devices::BusError),
    /// A KVM call failed.
    #[error("{call}: {source}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What for.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The console's log file.
    #[error("console log {path}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The event loop broke.
    #[error("event loop: {0}")]
    Loop(#[from] event_manager::Error),
    /// A vCPU broke.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmmError {
    move |source| VmmError::Kvm { call, source }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Io { what, source }
}

/// Where the serial console comes from and goes to, when the process around the machine wants it otherwise than
/// [`SerialConfig`] says.
pub struct Console {
    /// Input: read by the event loop when it is readable, until its end. Made non-blocking.
    pub input: Option<OwnedFd>,
    /// Output.
    pub output: Box<dyn Write + Send>,
}

/// How the machine ended, as the vCPUs and devices report it: the first report counts.
struct Ending {
    first: Mutex<Option<Result<ExitReason, VcpuError>>>,
    counts: Mutex<Counts>,
    /// Tells the event loop.
    event: EventFd,
}

impl Ending {
    fn report(&self, how: Result<ExitReason, VcpuError>) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(how);
        // Only a full counter fails, and that wakes the loop as well.
        let _ = self.event.write(1);
    }

    fn is_set(&self) -> bool {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Steers a machine from another thread.
#[derive(Clone)]
pub struct Handle {
    ending: Arc<Ending>,
    vcpus: Arc<Mutex<Vec<VcpuThread>>>,
}

impl Handle {
    /// Ends the machine with [`ExitReason::Stopped`].
    pub fn stop(&self) {
        self.ending.report(Ok(ExitReason::Stopped));
    }

    /// Brings all vCPUs out of the guest, and returns when they are.
    pub fn pause(&self) {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().for_each(VcpuThread::pause);
        vcpus.iter().for_each(VcpuThread::wait_paused);
    }

    /// Lets all vCPUs run (again).
    pub fn resume(&self) {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().for_each(VcpuThread::resume);
    }
}

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// A machine that is built and not yet running.
///
/// Fields drop in order: vCPU threads end before the devices and the RAM they use go away.
pub struct Machine {
    handle: Handle,
    vcpus: Vec<Vcpu>,
    manager: EventManager<Subscriber>,
    _vm: Arc<VmFd>,
    _memory: Ram,
}

impl Machine {
    /// Builds the machine that `config` describes; `console` replaces what its `serial` section says.
    pub fn build(
        config: &VmConfig,
        console: Option<Console>,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Self, VmmError> {
        let mut phase = |phase| on_event(Event::Phase { phase, at_ns: monotonic_ns() });
        phase(Phase::Build);
        config.validate(host::memory_mib())?;
        reserve_descriptors();
        let host_kvm = host::open()?;
        let vm = Arc::new(create_vm(&host_kvm)?);
        let memory = Ram::new(config.machine.mem_size_mib)?;
        memory::register(&vm, &memory)?;
        let ram = memory.guest();
        split_irqchip(&vm)?;
        phase(Phase::Load);

        let ending = Arc::new(Ending {
            first: Mutex::new(None),
            counts: Mutex::new(Counts::default()),
            event: EventFd::new(EFD_NONBLOCK).map_err(io_error("eventfd"))?,
        });
        let mut manager: EventManager<Subscriber> = EventManager::new()?;
        manager.add_subscriber(Arc::new(Mutex::new(EndingEvent(ending.clone()))));

        let (pio, mmio) = (Bus::default(), Bus::default());
        let ioapic = Arc::new(Mutex::new(Ioapic::new(Box::new(KvmRoutes(vm.clone())))));
        mmio.insert(IOAPIC_BASE, 0x1000, ioapic.clone())?;
        let mut builder = Assembly { vm: &vm, ram, pio: &pio, mmio: &mmio, manager: &mut manager };
        builder.legacy(config, console, &ending)?;
        let windows = builder.virtio(config)?;

        let cmdline = command_line(config, &windows);
        let source = boot::BootSource {
            kernel: &config.boot_source.kernel_image_path,
            initrd: config.boot_source.initrd_path.as_deref().map(boot::Initrd::File),
            cmdline: &cmdline,
            protocol: boot::Protocol::Auto,
        };
        let cpus = config.machine.vcpu_count;
        // Each pin that the MP table lists costs an emulated guest kernel milliseconds: list those in use.
        let irq_pins = FIRST_VIRTIO_GSI as u8 + windows.len() as u8;
        let platform = boot::Platform { cpus, ioapic: IOAPIC_BASE, lapic: LAPIC_BASE, irq_pins };
        let state = boot::load(ram, &source, &platform)?;
        boot::acpi::write(ram, &acpi_platform(cpus, &windows))?;
        let shared = Shared { pio: Arc::new(pio), mmio: Arc::new(mmio), ram: ram.clone(), ioapic };
        let vcpus = create_vcpus(&host_kvm, &vm, cpus, &state, &shared)?;
        let handle = Handle { ending, vcpus: Arc::default() };
        Ok(Machine { handle, vcpus, manager, _vm: vm, _memory: memory })
    }

    /// A handle to steer it with.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs it to its end, on this thread (the event loop) and one thread a vCPU.
    pub fn run(mut self, on_event: &mut dyn FnMut(Event)) -> Result<ExitReason, VmmError> {
        let ending = self.handle.ending.clone();
        {
            let mut threads = self.handle.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
            for vcpu in self.vcpus.drain(..) {
                threads.push(vcpu.spawn(on_end(ending.clone())).map_err(io_error("vCPU thread"))?);
            }
        }
        on_event(Event::Phase { phase: Phase::Run, at_ns: monotonic_ns() });
        self.handle.resume();
        while !ending.is_set() {
            match self.manager.run() {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e.into()),
            }
        }
        // Ends and joins the vCPU threads, all told before the first is waited for.
        let threads = std::mem::take(&mut *self.handle.vcpus.lock().unwrap_or_else(PoisonError::into_inner));
        threads.iter().for_each(VcpuThread::stop);
        drop(threads);
        let how = ending.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let reason = how.unwrap_or(Ok(ExitReason::Stopped))?;
        let counts = *ending.counts.lock().unwrap_or_else(PoisonError::into_inner);
        on_event(Event::Exit { reason, at_ns: monotonic_ns(), counts });
        Ok(reason)
    }
}

/// What a vCPU thread reports at its end.
fn on_end(ending: Arc<Ending>) -> Box<dyn FnOnce(Ended, Counts) + Send> {
    Box::new(move |ended, counts| {
        {
            let mut sum = ending.counts.lock().unwrap_or_else(PoisonError::into_inner);
            *sum = *sum + counts;
        }
        match ended {
            Ended::Stopped => {}
            Ended::Guest(reason) => ending.report(Ok(reason)),
            Ended::Failed(error) => ending.report(Err(error)),
        }
    })
}

/// Grows the descriptor table while there is one thread, which is free; later it waits for an RCU grace period.
fn reserve_descriptors() {
    // SAFETY: plain descriptor calls; a descriptor that comes back is ours alone, and is closed at once. A limit too
    // low for it only means that the table grows later.
    unsafe {
        let high = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, FD_ROOM);
        if high >= 0 {
            libc::close(high);
        }
    }
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

fn create_vcpus(
    host_kvm: &Kvm,
    vm: &VmFd,
    count: u8,
    boot: &boot::CpuState,
    shared: &Shared,
) -> Result<Vec<Vcpu>, VmmError> {
    let supported = host_kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let tsc_deadline = host_kvm.check_extension(Cap::TscDeadlineTimer);
    let create = |index: u8| {
        let mut fd = vm.create_vcpu(u64::from(index)).map_err(kvm("KVM_CREATE_VCPU"))?;
        let mut cpuid = supported.clone();
        cpuid::specialise(&mut cpuid, Identity { index, count, tsc_deadline });
        fd.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        registers::set_common_state(&fd).map_err(kvm("initial vCPU state"))?;
        if index == 0 {
            registers::set_boot_state(&fd, boot).map_err(kvm("boot vCPU registers"))?;
        }
        // It pays where instructions are completed here, and costs a copy an exit where they are not.
        if host::kind() == host::KvmKind::SoftwareNested {
            complete::enable_register_sync(vm, &mut fd);
        }
        let scratch = XsaveScratch::new(vm).map_err(io_error("XSAVE buffer"))?;
        Ok(Vcpu::new(index, fd, shared.clone(), scratch))
    };
    (0..count).map(create).collect()
}

/// Puts devices on their buses, wires their interrupts and events.
struct Assembly<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    pio: &'a Bus,
    mmio: &'a Bus,
    manager: &'a mut EventManager<Subscriber>,
}

impl Assembly<'_> {
    fn line(&self, gsi: u32) -> Result<Arc<dyn InterruptLine>, VmmError> {
        Ok(Arc::new(IrqFdLine::new(self.vm, gsi).map_err(io_error("irqfd"))?))
    }

    fn legacy(&mut self, config: &VmConfig, console: Option<Console>, ending: &Arc<Ending>) -> Result<(), VmmError> {
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
        let serial = Arc::new(Mutex::new(Serial::new(self.line(SERIAL_GSI)?, console.output)));
        self.pio.insert(SERIAL_PORT, 8, serial.clone())?;
        self.pio.insert(I8042_PORT, 5, Arc::new(Mutex::new(I8042::new(sink.clone()))))?;
        self.pio.insert(EXIT_PORT, 1, Arc::new(Mutex::new(ExitPort::new(sink.clone()))))?;
        self.pio.insert(ACPI_PM_PORT, ACPI_PM_LEN, Arc::new(Mutex::new(AcpiPm::new(sink))))?;
        if let Some(input) = console.input {
            let input = crate::console::Input::new(input, serial).map_err(io_error("console input"))?;
            self.manager.add_subscriber(Arc::new(Mutex::new(input)));
        }
        Ok(())
    }

    /// Builds every configured virtio device, in the order of the device table; returns where they are.
    fn virtio(&mut self, config: &VmConfig) -> Result<Vec<MmioWindow>, VmmError> {
        let built = devices::virtio::build_all(&config.devices)?;
        let most = (u32::from(IOAPIC_PINS) - FIRST_VIRTIO_GSI) as usize;
        if built.len() > most {
            return Err(VmmError::TooManyDevices { asked: built.len(), most });
        }
        let mut windows = Vec::new();
        for (slot, device) in built.into_iter().enumerate() {
            let base = VIRTIO_MMIO_BASE + slot as u64 * VIRTIO_MMIO_SIZE;
            let gsi = FIRST_VIRTIO_GSI + slot as u32;
            let transport =
                MmioTransport::new(self.ram.clone(), device, self.line(gsi)?).map_err(io_error("queue events"))?;
            for (queue, event) in transport.queue_events().into_iter().enumerate() {
                let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
                self.vm.register_ioevent(&event, &address, queue as u32).map_err(kvm("KVM_IOEVENTFD"))?;
            }
            let transport = Arc::new(Mutex::new(transport));
            self.mmio.insert(base, VIRTIO_MMIO_SIZE, transport.clone() as Arc<Mutex<dyn BusDevice>>)?;
            self.manager.add_subscriber(transport);
            windows.push(MmioWindow { base, len: VIRTIO_MMIO_SIZE, gsi });
        }
        Ok(windows)
    }
}

/// The kernel's words: its devices first, so that the user's come last and win.
fn command_line(config: &VmConfig, windows: &[MmioWindow]) -> String {
    let mut words: Vec<String> =
        windows.iter().map(|w| format!("virtio_mmio.device=4K@{:#x}:{}", w.base, w.gsi)).collect();
    words.push(devices::virtio::table::kernel_args(&config.devices));
    words.push(config.boot_source.boot_args.clone());
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// The machine as kernels with ACPI see it. Ours have none and read the MP table.
fn acpi_platform(cpus: u8, windows: &[MmioWindow]) -> AcpiPlatform<'_> {
    let power = PowerPorts {
        sleep_control: ACPI_PM_PORT as u16,
        sleep_status: ACPI_PM_PORT as u16 + 1,
        reset: EXIT_PORT as u16,
        reset_value: EXIT_PORT_RESET,
    };
    let serial = Some(SerialPort { base: SERIAL_PORT as u16, gsi: SERIAL_GSI });
    AcpiPlatform { cpus, ioapic: IOAPIC_BASE, lapic: LAPIC_BASE, irq_pins: IOAPIC_PINS, serial, virtio: windows, power }
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
            let file = std::fs::File::create(path).map_err(|source| VmmError::Log { path: path.clone(), source })?;
            Console { input: None, output: Box::new(crate::console::Bounded::new(file, LOG_LIMIT)) }
        }
    })
}

/// Wakes the event loop when the machine has ended.
struct EndingEvent(Arc<Ending>);

impl MutEventSubscriber for EndingEvent {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Cleared so that the level-triggered loop does not spin between this and the end of `run`.
        let _ = self.0.event.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let event = Events::new_raw(self.0.event.as_raw_fd(), EventSet::IN);
        if let Err(e) = ops.add(event) {
            tracing::error!("end of the machine cannot be watched: {e:?}");
        }
    }
}
