//! The same instructions in a real guest on this machine's KVM, whoever executes them: the hardware, KVM's emulator or
//! the completer. Without /dev/kvm there is nothing to test, and the test says so.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestMemoryBackend;

use super::*;
use crate::complete::{KvmVcpu, XsaveScratch, enable_register_sync, instruction_bytes};

const IDT: u64 = 0x7000;
/// A HLT for each vector, 16 bytes apart.
const HANDLERS: u64 = 0x20000;
const RESULT: u64 = DATA + 0x800;
const AREA: u64 = DATA + 0x1000;
const ABSENT: u64 = 0x40000;
/// Exits that a case may take before it counts as stuck.
const MAX_EXITS: u32 = 100;

/// A vCPU in ring 0 with an IDT, on the page tables and memory of [`Guest`].
///
/// Fields are dropped in order: the memory must outlive the VM.
struct Machine {
    fd: VcpuFd,
    scratch: XsaveScratch,
    completed: u32,
    _vm: VmFd,
    guest: Guest,
}

impl Machine {
    fn new(kvm: &Kvm, sync: bool) -> Machine {
        let guest = Guest::new();
        let vm = kvm.create_vm().unwrap();
        for (slot, region) in guest.ram.iter().enumerate() {
            use vm_memory::GuestMemoryRegion;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the memory is the guest's own and lives as long as the VM, which is never run without it.
            unsafe { vm.set_user_memory_region(slot) }.unwrap();
        }
        let cap = kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, args: [1, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap).unwrap();
        let mut fd = vm.create_vcpu(0).unwrap();
        fd.set_cpuid2(&kvm.get_supported_cpuid(256).unwrap()).unwrap();
        if sync && !enable_register_sync(&vm, &mut fd) {
            eprintln!("SKIPPED in part: this KVM has no register sync");
        }
        let scratch = XsaveScratch::new(&vm).unwrap();
        let mut machine = Machine { guest, fd, scratch, completed: 0, _vm: vm };
        machine.lay_out();
        machine
    }

    fn lay_out(&mut self) {
        let guest = &self.guest;
        guest.map(ABSENT, 0);
        for vector in 0..32 {
            let handler = HANDLERS + vector * 16;
            guest.poke(IDT + vector * 16, handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48);
            guest.poke(handler, 0xf4);
        }
        guest.poke(GDT + 8, 0x00af_9b00_0000_ffff);
        guest.poke(GDT + 16, 0x00cf_9300_0000_ffff);
        let mut sregs = self.fd.get_sregs().unwrap();
        let ours = &guest.cpu.sregs;
        (sregs.cr0, sregs.cr3, sregs.efer) = (ours.cr0, ours.cr3, ours.efer);
        sregs.cr4 = ours.cr4 | 1 << 10;
        sregs.cs = ours.cs;
        for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *data = ours.ss;
        }
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 32 * 16 - 1);
        self.fd.set_sregs(&sregs).unwrap();
        let mut xcrs = self.fd.get_xcrs().unwrap();
        xcrs.nr_xcrs = 1;
        (xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) = (0, features());
        self.fd.set_xcrs(&xcrs).unwrap();
    }

    /// Runs `code` and a HLT; the vector of the exception that it ended with, if any.
    fn run(&mut self, code: &[u8]) -> Option<u64> {
        self.guest.ram.write_slice(&[code, &[0xf4]].concat(), GuestAddress(CODE)).unwrap();
        self.guest.cpu.regs.rip = CODE;
        self.fd.set_regs(&self.guest.cpu.regs).unwrap();
        for _ in 0..MAX_EXITS {
            match self.fd.run().unwrap() {
                VcpuExit::Hlt => {
                    let rip = KvmVcpu::new(&mut self.fd, &mut self.scratch).regs().unwrap().rip;
                    let handled = (HANDLERS..HANDLERS + 32 * 16).contains(&rip);
                    return handled.then_some((rip - 1).wrapping_sub(HANDLERS) / 16);
                }
                VcpuExit::InternalError => {
                    let bytes = instruction_bytes(self.fd.get_kvm_run());
                    let mut cpu = KvmVcpu::new(&mut self.fd, &mut self.scratch);
                    if let Err(e) = complete(&mut cpu, &self.guest.ram, bytes.as_deref()) {
                        panic!("{e}\n{}", describe_failure(&mut cpu, &self.guest.ram, bytes.as_deref()));
                    }
                    self.completed += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("no end after {MAX_EXITS} exits");
    }

    fn regs(&mut self) -> kvm_regs {
        KvmVcpu::new(&mut self.fd, &mut self.scratch).regs().unwrap()
    }

    /// The extended state up to the end of AVX. KVM lists PKRU among the components or not, whatever the guest's is: as the
    /// host's own register was when it last saved the state.
    fn extended(&mut self) -> Vec<u8> {
        let mut state = KvmVcpu::new(&mut self.fd, &mut self.scratch).load_xsave().unwrap()[..832].to_vec();
        let listed = int(&state, 512) & features();
        state[512..520].copy_from_slice(&listed.to_le_bytes());
        state
    }

    /// Fills x87, SSE and AVX state.
    fn fill_extended(&mut self) {
        let features = features();
        let mut cpu = KvmVcpu::new(&mut self.fd, &mut self.scratch);
        let buffer = cpu.load_xsave().unwrap();
        for at in (32..160).step_by(16) {
            // The upper 6 bytes of a register's 16 are reserved.
            buffer[at..at + 10].fill(0x11);
        }
        buffer[160..416].fill(0x22);
        buffer[24..28].copy_from_slice(&0x3f80_u32.to_le_bytes());
        if features & 4 != 0 {
            buffer[576..832].fill(0x33);
        }
        buffer[512..520].copy_from_slice(&features.to_le_bytes());
        cpu.store_xsave().unwrap();
    }
}

fn features() -> u64 {
    if std::arch::is_x86_feature_detected!("avx") { 7 } else { 3 }
}

/// Runs `test` with registers by ioctl and by `kvm_run`, or says why not.
fn on_kvm(test: impl Fn(&mut Machine)) {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return eprintln!("SKIPPED: /dev/kvm: {e}"),
    };
    for sync in [false, true] {
        let mut machine = Machine::new(&kvm, sync);
        test(&mut machine);
        eprintln!("register sync {sync}: {} instructions completed in user space", machine.completed);
    }
}

#[test]
fn integers_and_flags() {
    on_kvm(|machine| {
        machine.guest.cpu.regs.rcx = 0xff;
        // popcnt %rcx,%rax; crc32q %rcx,%rdx
        assert_eq!(machine.run(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1, 0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xd1]), None);
        let expected = (0..64).fold(0xff_u64, |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
        let regs = machine.regs();
        assert_eq!((regs.rax, regs.rdx), (8, expected));
        machine.guest.cpu.regs.rcx = 4;
        machine.guest.cpu.regs.rbx = 3;
        assert_eq!(machine.run(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f]), None);
        assert_eq!((machine.guest.peek(DATA), machine.guest.peek(DATA + 8)), (3, 4));
        if __cpuid_count(7, 0).ebx & 1 << 20 != 0 {
            // stac; pushfq; pop %rax; clac; pushfq; pop %rdx
            assert_eq!(machine.run(&[0x0f, 0x01, 0xcb, 0x9c, 0x58, 0x0f, 0x01, 0xca, 0x9c, 0x5a]), None);
            let regs = machine.regs();
            assert_eq!((regs.rax & flags::AC, regs.rdx & flags::AC), (flags::AC, 0));
        }
        // lsl %cx,%rax; verw of the code segment at (%rdi)
        machine.guest.cpu.regs.rcx = 16;
        machine.guest.poke(DATA, 8);
        assert_eq!(machine.run(&[0x48, 0x0f, 0x03, 0xc1, 0x0f, 0x00, 0x2f]), None);
        let regs = machine.regs();
        assert_eq!((regs.rax, regs.rflags & flags::ZF), (0xffff_ffff, 0));
    });
}

#[test]
fn fpu_control() {
    on_kvm(|machine| {
        machine.guest.poke(DATA, 0x3f80);
        machine.guest.cpu.regs.rsi = RESULT;
        // fninit; fnclex; emms; fwait; fnstsw %ax; ldmxcsr (%rdi); stmxcsr (%rsi)
        let code = [0xdb, 0xe3, 0xdb, 0xe2, 0x0f, 0x77, 0x9b, 0xdf, 0xe0, 0x0f, 0xae, 0x17, 0x0f, 0xae, 0x1e];
        assert_eq!(machine.run(&code), None);
        assert_eq!(machine.guest.peek(RESULT), 0x3f80);
        assert_eq!(machine.regs().rax, 0);
        machine.guest.cpu.regs.rcx = 0;
        assert_eq!(machine.run(&[0x0f, 0x01, 0xd0]), None);
        assert_eq!(machine.regs().rax, features());
        machine.guest.poke(DATA, u64::MAX);
        assert_eq!(machine.run(&[0x0f, 0xae, 0x17]), Some(13));
    });
}

#[test]
fn extended_state_goes_there_and_back() {
    let optional = __cpuid_count(0xd, 1).eax;
    let pairs: [(&[u8], &[u8], bool); 4] = [
        (&[0x48, 0x0f, 0xae, 0x27], &[0x48, 0x0f, 0xae, 0x2f], true),
        (&[0x48, 0x0f, 0xae, 0x37], &[0x48, 0x0f, 0xae, 0x2f], optional & 1 != 0),
        (&[0x48, 0x0f, 0xc7, 0x27], &[0x48, 0x0f, 0xae, 0x2f], optional & 2 != 0),
        (&[0x48, 0x0f, 0xc7, 0x2f], &[0x48, 0x0f, 0xc7, 0x1f], optional & 8 != 0),
    ];
    on_kvm(|machine| {
        machine.guest.cpu.regs.rdi = AREA;
        machine.guest.cpu.regs.rsi = DATA;
        (machine.guest.cpu.regs.rax, machine.guest.cpu.regs.rdx) = (u64::MAX, u64::MAX);
        for (save, restore, _) in pairs.iter().filter(|(_, _, there)| *there) {
            // An area in which everything is initial.
            machine.guest.ram.write_slice(&[0; 4096], GuestAddress(DATA)).unwrap();
            machine.guest.poke(DATA + 24, 0x1f80);
            machine.fill_extended();
            let before = machine.extended();
            assert_eq!(machine.run(save), None);
            assert_eq!(machine.guest.bytes(AREA + 160, 256), [0x22; 256]);
            // xrstor64 (%rsi)
            assert_eq!(machine.run(&[0x48, 0x0f, 0xae, 0x2e]), None);
            let cleared = machine.extended();
            assert_eq!((int(&cleared, 160), int(&cleared, 24) as u32), (0, 0x1f80));
            assert_eq!(machine.run(restore), None);
            let after = machine.extended();
            // Without the software-reserved bytes, in which KVM keeps what it likes.
            assert_eq!((&after[..416], &after[512..]), (&before[..416], &before[512..]), "{save:x?}");
        }
    });
}

#[test]
fn exceptions_reach_the_guest() {
    on_kvm(|machine| {
        // The frame: RIP behind INT3, and at UD2.
        machine.guest.cpu.regs.rsp = STACK;
        assert_eq!(machine.run(&[0x90, 0xcc]), Some(u64::from(VECTOR_BP)));
        assert_eq!(machine.guest.peek(STACK - 40), CODE + 2);
        assert_eq!(machine.run(&[0x0f, 0xb9, 0xc0]), Some(u64::from(VECTOR_UD)));
        assert_eq!(machine.guest.peek(STACK - 40), CODE);
        // A page fault: CR2 and an error code that says "write".
        (machine.guest.cpu.regs.rax, machine.guest.cpu.regs.rdx) = (u64::MAX, u64::MAX);
        machine.guest.cpu.regs.rdi = ABSENT;
        assert_eq!(machine.run(&[0x48, 0x0f, 0xae, 0x27]), Some(u64::from(VECTOR_PF)));
        assert_eq!((machine.guest.peek(STACK - 48), machine.guest.peek(STACK - 40)), (2, CODE));
        let cr2 = KvmVcpu::new(&mut machine.fd, &mut machine.scratch).sregs().unwrap().cr2;
        assert_eq!(cr2, ABSENT);
        // A header that XRSTOR does not take, and a task switch.
        machine.guest.cpu.regs.rdi = AREA;
        machine.guest.poke(AREA + 520, 1);
        assert_eq!(machine.run(&[0x48, 0x0f, 0xae, 0x2f]), Some(u64::from(VECTOR_GP)));
        // mov %cr0,%rax; or $8,%al; mov %rax,%cr0; xsave64 (%rdi)
        let code = [0x0f, 0x20, 0xc0, 0x0c, 0x08, 0x0f, 0x22, 0xc0, 0x48, 0x0f, 0xae, 0x27];
        assert_eq!(machine.run(&code), Some(u64::from(VECTOR_NM)));
    });
}
