//! A machine's vCPUs: made, and about to enter a kernel.

use boot::acpi::MmioWindow;
use kvm_ioctls::{Cap, VcpuFd};

use super::ahead::{self, FirstVcpu};
use super::assembly::{self, IOAPIC_BASE, LAPIC_BASE};
use super::error::{VmmError, io_error, kvm};
use super::{Parts, generation};
use crate::complete::{self, XsaveScratch};
use crate::config::ConfigError;
use crate::cpuid::{self, Identity};
use crate::cpuid_cache;
use crate::host::{self, KvmKind};
use crate::vcpu::{Shared, Vcpu, registers};

/// Loads the kernel, and makes vCPUs of which the first, perhaps in the making, is about to enter it.
pub(super) fn boot(
    parts: &Parts,
    windows: &[MmioWindow],
    shared: &Shared,
    mut first: Option<FirstVcpu>,
) -> Result<Vec<Vcpu>, VmmError> {
    let config = &parts.config();
    let kernel = config.boot_source.as_ref().ok_or(ConfigError::NoSource)?;
    let cmdline = assembly::command_line(config, kernel, windows);
    let source = boot::BootSource {
        kernel: &kernel.kernel_image_path,
        initrd: kernel.initrd_path.as_deref().map(boot::Initrd::File),
        cmdline: &cmdline,
        protocol: kernel.protocol.into(),
    };
    let cpus = config.machine.vcpu_count;
    // Each pin that the MP table lists costs an emulated guest kernel milliseconds: list those in use.
    let irq_pins = assembly::pins_in_use(windows);
    let platform = boot::Platform { cpus, ioapic: IOAPIC_BASE, lapic: LAPIC_BASE, irq_pins };
    let state = boot::load(parts.memory.guest(), &source, &platform)?;
    boot::acpi::write(parts.memory.guest(), &assembly::acpi_platform(cpus, windows))?;
    generation::renew(parts.memory.guest())?;
    let supported = cpuid_cache::supported(&parts.kvm, config.cpuid_cache.as_deref());
    let supported = supported.map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let tsc_deadline = parts.kvm.check_extension(Cap::TscDeadlineTimer);
    let mut one = |index: u8| {
        create(parts, index, first.take(), shared, |fd, _| {
            let mut cpuid = supported.clone();
            cpuid::specialise(&mut cpuid, Identity { index, count: cpus, tsc_deadline });
            fd.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
            registers::set_common_state(fd).map_err(kvm("initial vCPU state"))?;
            if index == 0 {
                registers::set_boot_state(fd, &state).map_err(kvm("boot vCPU registers"))?;
            }
            Ok(())
        })
    };
    (0..cpus).map(&mut one).collect()
}

/// A vCPU whose state `set` sets: the first, if that is in the making.
pub(super) fn create(
    parts: &Parts,
    index: u8,
    first: Option<FirstVcpu>,
    shared: &Shared,
    set: impl FnOnce(&mut VcpuFd, &mut XsaveScratch) -> Result<(), VmmError>,
) -> Result<Vcpu, VmmError> {
    let mut fd = match first {
        Some(first) => ahead::first_vcpu(first, &parts.vm)?,
        None => ahead::create_vcpu(&parts.vm, index)?,
    };
    let mut scratch = XsaveScratch::new(&parts.vm).map_err(io_error("XSAVE buffer"))?;
    set(&mut fd, &mut scratch)?;
    // It pays where instructions are completed here, and costs a copy an exit where they are not.
    if host::kind() == KvmKind::SoftwareNested {
        complete::enable_register_sync(&parts.vm, &mut fd);
    }
    Ok(Vcpu::new(index, fd, shared.clone(), scratch))
}
