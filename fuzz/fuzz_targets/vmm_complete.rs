//! The completer of instructions: any bytes as instruction, registers, page tables and memory.
//!
//! Input: 15 bytes of instruction, 18 words of registers, 4 of system state, then (address, value) pairs that are written to
//! the 1 MiB of guest memory, on top of working page tables.

#![no_main]

use std::io;
use std::sync::OnceLock;

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::complete::{
    CompleteError, Completion, VcpuState, XsaveLayout, complete, describe_failure,
};

const RAM_SIZE: u64 = 1 << 20;
const STATE_SIZE: usize = 16384;

struct Cpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
    xcr0: u64,
    xss: u64,
    state: Vec<u8>,
}

impl VcpuState for Cpu {
    fn regs(&mut self) -> io::Result<kvm_regs> {
        Ok(self.regs)
    }
    fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()> {
        self.regs = *regs;
        Ok(())
    }
    fn sregs(&mut self) -> io::Result<kvm_sregs> {
        Ok(self.sregs)
    }
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()> {
        self.sregs = *sregs;
        Ok(())
    }
    fn events(&mut self) -> io::Result<kvm_vcpu_events> {
        Ok(self.events)
    }
    fn set_events(&mut self, events: &kvm_vcpu_events) -> io::Result<()> {
        self.events = *events;
        Ok(())
    }
    fn xcr0(&mut self) -> io::Result<u64> {
        Ok(self.xcr0)
    }
    fn xss(&mut self) -> io::Result<u64> {
        Ok(self.xss)
    }
    fn load_xsave(&mut self) -> io::Result<&mut [u8]> {
        Ok(&mut self.state)
    }
    fn xsave_buffer(&mut self) -> &mut [u8] {
        &mut self.state
    }
    fn store_xsave(&mut self) -> io::Result<()> {
        assert!(
            self.state[520..576].iter().all(|byte| *byte == 0),
            "a header that KVM refuses"
        );
        Ok(())
    }
    fn layout(&self) -> &'static XsaveLayout {
        XsaveLayout::host()
    }
}

/// Takes a word off the input; zeros where it has ended.
fn word(input: &mut &[u8]) -> u64 {
    let (head, tail) = input.split_at(input.len().min(8));
    *input = tail;
    let mut bytes = [0; 8];
    bytes[..head.len()].copy_from_slice(head);
    u64::from_le_bytes(bytes)
}

fn ram() -> &'static GuestMemoryMmap<()> {
    static RAM: OnceLock<GuestMemoryMmap<()>> = OnceLock::new();
    RAM.get_or_init(|| {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE as usize)]).expect("1 MiB")
    })
}

fn poke(address: u64, value: u64) {
    ram()
        .write_obj(value, GuestAddress(address))
        .expect("inside the memory");
}

/// Clears the memory and maps it 1:1.
fn reset_memory() {
    ram()
        .write_slice(&[0; RAM_SIZE as usize], GuestAddress(0))
        .expect("all of the memory");
    for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        poke(table, next | 7);
    }
    for page in 0..RAM_SIZE >> 12 {
        poke(0x4000 + page * 8, page << 12 | 3);
    }
}

fuzz_target!(|data: &[u8]| {
    let (code, mut input) = data.split_at(data.len().min(15));
    reset_memory();
    let r: [u64; 18] = std::array::from_fn(|_| word(&mut input));
    let mut cpu = Cpu {
        regs: kvm_regs {
            rax: r[0],
            rbx: r[1],
            rcx: r[2],
            rdx: r[3],
            rsi: r[4],
            rdi: r[5],
            rsp: r[6],
            rbp: r[7],
            r8: r[8],
            r9: r[9],
            r10: r[10],
            r11: r[11],
            r12: r[12],
            r13: r[13],
            r14: r[14],
            r15: r[15],
            rip: r[16],
            rflags: r[17],
        },
        sregs: kvm_sregs {
            // Inputs are differences from a kernel's usual state.
            cr0: 0x8005_0033 ^ word(&mut input),
            cr3: 0x1000,
            cr4: 0x4_0620 ^ word(&mut input),
            efer: 0xd01,
            ..Default::default()
        },
        events: kvm_vcpu_events::default(),
        xcr0: word(&mut input),
        xss: word(&mut input),
        state: vec![0; STATE_SIZE],
    };
    cpu.sregs.cs.l = 1;
    cpu.sregs.gdt.base = r[1];
    cpu.sregs.gdt.limit = r[2] as u16;
    cpu.state[512..520].copy_from_slice(&(XsaveLayout::host().user & cpu.xcr0).to_le_bytes());
    while !input.is_empty() {
        let address = word(&mut input) % (RAM_SIZE - 8);
        poke(address, word(&mut input));
    }
    let before = cpu.regs;
    match complete(&mut cpu, ram(), Some(code)) {
        Ok(Completion::Executed) => assert_ne!(cpu.regs.rip, before.rip),
        Ok(Completion::Raised { vector }) => assert_eq!(cpu.events.exception.nr, vector),
        Err(CompleteError::State { what, source }) => panic!("{what}: {source}"),
        Err(_) => assert_eq!(cpu.regs, before),
    }
    assert!(!describe_failure(&mut cpu, ram(), Some(code)).is_empty());
});
