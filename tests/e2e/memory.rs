//! RAM of machines that go on from a snapshot.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use tests::control::Control;
use tests::{Running, elf};

use crate::lab;
use crate::snapshots::can_poll;

/// Where the guest below waits for a byte: with which of its six parts it is to begin.
const GO: u64 = 0x20_0000;

/// Says "r", waits, and then uses memory that nothing was in before, by instructions that reach KVM in different ways: plain
/// and locked ones, across two pages, as a stack, repeated, and one that an emulator may not know. Says "k" if all of it
/// was memory, and powers off.
#[rustfmt::skip]
const USES_MEMORY: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8,%dx
    0xb0, 0x72, // mov $0x72,%al
    0xee, // out %al,(%dx)
    0xb0, 0x0a, // mov $0xa,%al
    0xee, // out %al,(%dx)
    0x0f, 0xb6, 0x34, 0x25, 0x00, 0x00, 0x20, 0x00, // 1: movzbl 0x200000,%esi
    0x85, 0xf6, // test %esi,%esi
    0x74, 0xf4, // je 1b
    0x83, 0xfe, 0x01, // cmp $0x1,%esi
    0x74, 0x19, // je t1
    0x83, 0xfe, 0x02, // cmp $0x2,%esi
    0x74, 0x48, // je t2
    0x83, 0xfe, 0x03, // cmp $0x3,%esi
    0x74, 0x5c, // je t3
    0x83, 0xfe, 0x04, // cmp $0x4,%esi
    0x74, 0x6e, // je t4
    0x83, 0xfe, 0x05, // cmp $0x5,%esi
    0x74, 0x75, // je t5
    0xe9, 0x96, 0x00, 0x00, 0x00, // jmp t6
    0xbf, 0x00, 0x50, 0x34, 0x12, // t1: mov $0x12345000,%edi
    0x48, 0x83, 0x3f, 0x00, // cmpq $0x0,(%rdi)
    0x0f, 0x85, 0xac, 0x00, 0x00, 0x00, // jne bad
    0x48, 0xc7, 0x07, 0x07, 0x00, 0x00, 0x00, // movq $0x7,(%rdi)
    0xb8, 0x05, 0x00, 0x00, 0x00, // mov $0x5,%eax
    0xf0, 0x48, 0x0f, 0xc1, 0x07, // lock xadd %rax,(%rdi)
    0x48, 0x83, 0xf8, 0x07, // cmp $0x7,%rax
    0x0f, 0x85, 0x91, 0x00, 0x00, 0x00, // jne bad
    0x48, 0x83, 0x3f, 0x0c, // cmpq $0xc,(%rdi)
    0x0f, 0x85, 0x87, 0x00, 0x00, 0x00, // jne bad
    0xbf, 0xf8, 0x0f, 0x00, 0x20, // t2: mov $0x20000ff8,%edi
    0x31, 0xc0, // xor %eax,%eax
    0xb9, 0x09, 0x00, 0x00, 0x00, // mov $0x9,%ecx
    0xf0, 0x48, 0x0f, 0xb1, 0x0f, // lock cmpxchg %rcx,(%rdi)
    0x75, 0x74, // jne bad
    0x48, 0x83, 0x3f, 0x09, // cmpq $0x9,(%rdi)
    0x75, 0x6e, // jne bad
    0xbf, 0xfc, 0x0f, 0x00, 0x28, // t3: mov $0x28000ffc,%edi
    0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // movabs $0x1122334455667788,%rax
    0x48, 0x89, 0x07, // mov %rax,(%rdi)
    0x48, 0x39, 0x07, // cmp %rax,(%rdi)
    0x75, 0x57, // jne bad
    0xbc, 0x00, 0x00, 0x00, 0x30, // t4: mov $0x30000000,%esp
    0x56, // push %rsi
    0x5b, // pop %rbx
    0x48, 0x39, 0xf3, // cmp %rsi,%rbx
    0x75, 0x4b, // jne bad
    0xbf, 0x00, 0xff, 0xff, 0x33, // t5: mov $0x33ffff00,%edi
    0xb9, 0x40, 0x00, 0x00, 0x00, // mov $0x40,%ecx
    0xb8, 0x03, 0x00, 0x00, 0x00, // mov $0x3,%eax
    0xf3, 0x48, 0xab, // rep stos %rax,%es:(%rdi)
    0x48, 0x39, 0x04, 0x25, 0x00, 0xff, 0xff, 0x33, // cmp %rax,0x33ffff00
    0x75, 0x2f, // jne bad
    0x48, 0x39, 0x04, 0x25, 0xf8, 0x00, 0x00, 0x34, // cmp %rax,0x340000f8
    0x75, 0x25, // jne bad
    0xbf, 0x00, 0x00, 0x00, 0x3c, // t6: mov $0x3c000000,%edi
    0xf3, 0x48, 0x0f, 0xb8, 0x07, // popcnt (%rdi),%rax
    0x75, 0x19, // jne bad
    0xb8, 0x06, 0x00, 0x00, 0x00, // mov $0x6,%eax
    0x48, 0x87, 0x07, // xchg %rax,(%rdi)
    0x48, 0x85, 0xc0, // test %rax,%rax
    0x75, 0x0c, // jne bad
    0x80, 0x3f, 0x06, // cmpb $0x6,(%rdi)
    0x75, 0x07, // jne bad
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8,%dx
    0xb0, 0x6b, // mov $0x6b,%al
    0xee, // out %al,(%dx)
    0x66, 0xba, 0xf8, 0x03, // bad: mov $0x3f8,%dx
    0xb0, 0x0a, // mov $0xa,%al
    0xee, // out %al,(%dx)
    0x66, 0xba, 0x00, 0x06, // mov $0x600,%dx
    0xb0, 0x01, // mov $0x1,%al
    0xee, // out %al,(%dx)
    0xf4, // hlt
];

/// All of RAM is there for a guest from its first instruction on, though its memory slots may come later (vmm's `slots`).
#[test]
fn memory_is_there_at_once() {
    let lab = lab!("memory_is_there_at_once");
    if !can_poll("memory_is_there_at_once") {
        return;
    }
    let (kernel, snapshot, patience) = (lab.path("kernel"), lab.path("snapshot"), lab.patience(1));
    std::fs::write(&kernel, elf::executable(0x10_0000, USES_MEMORY, 4096)).unwrap();
    let machine = |name: &str, config: Value| {
        let (file, socket) = (lab.path(&format!("{name}.json")), lab.path(&format!("{name}.sock")));
        std::fs::write(&file, config.to_string()).unwrap();
        let arguments = ["vmm", "--config-file", file.to_str().unwrap(), "--api-sock", socket.to_str().unwrap()];
        (Running::start(lab.bulkhead(arguments)), socket)
    };
    let boot = json!({ "boot-source": { "kernel_image_path": kernel },
                       "machine-config": { "vcpu_count": 1, "mem_size_mib": 1024 } });
    let (mut running, socket) = machine("boot", boot);
    running.wait_for("r\n", patience);
    let control = Control::of(&running, socket, patience);
    control.done("PUT", "/snapshot/create", json!({ "snapshot_path": snapshot, "snapshot_type": "Full" }));
    control.done("PUT", "/bulkhead/v1/stop", Value::Null);
    assert_eq!(running.end(patience).code, Some(0));

    let memory = OpenOptions::new().write(true).open(snapshot.join("memory")).unwrap();
    for first in 1..=6u8 {
        // RAM begins at address 0, and so does the file.
        memory.write_all_at(&[first], GO).unwrap();
        // Without a control socket nobody names files, and the process is a user of its own if root starts it.
        for (paging, alone) in [("map", false), ("userfault", false), ("map", true), ("userfault", true)] {
            let source = json!({ "path": snapshot, "paging": paging });
            let (file, config) = (lab.path("restored.json"), json!({ "snapshot": source }));
            let running = if alone {
                std::fs::write(&file, config.to_string()).unwrap();
                Running::start(lab.bulkhead(["vmm", "--config-file", file.to_str().unwrap()]))
            } else {
                machine("restored", config).0
            };
            let ended = running.end(patience);
            let said = String::from_utf8_lossy(&ended.stdout);
            assert_eq!((ended.code, said.as_ref()), (Some(0), "k\n"), "{first}, {paging}, {alone}: {}", ended.stderr);
        }
    }
    assert!(snapshot.join("working-set").is_file(), "the first machine that was given its pages leaves it");
    lab.assert_clean();
}
