// Ring 0: as much of a kernel as the program needs. It is entered as Linux is by its 64-bit entry (all of the first 4 GiB
// mapped at its own addresses, for ring 0 only), lets ring 3 use the first 16 MiB, the virtio windows and both APICs, and enters
// it. From then on it does two things for ring 3, which asks by an instruction that ring 3 may not execute (#GP): HLT waits for
// an interrupt, IN and OUT are done for it. Anything else ends the machine as a panic.
//
// Software-nested KVM emulates this, at half a microsecond an instruction; ring 3 runs on the processor.

.set CODE0, 0x10
.set CODE3, 0x28 | 3
.set DATA3, 0x20 | 3
.set TASK, 0x30
.set CODE32, 0x40
.set TASK2, 0x48
.set TSS, 0x1000                // a free page of low memory
.set GATE, 0x8e00               // interrupt gate, ring 0 (SDM vol. 3, 6.14.1)
.set GP, 13
.set WAKE, 0x20                 // vector of the device's interrupt
.set USER, 1 << 2               // page-table entry: ring 3 may (SDM vol. 3, 4.5.4)
.set FLAGS3, 1 << 9 | 1 << 1    // RFLAGS of ring 3: interrupts on
.set SSE, 3 << 9                // CR4: OSFXSR, OSXMMEXCPT
.set WINDOWS, 0xd0000000
.set LAPIC, 0xfee00000
.set IOAPIC, 0xfec00000
.set PIN, 5                     // of the first virtio device
.set LARGE, 0x200000            // bytes of a page, of which each entry of a directory maps one

.section .text.entry, "ax"
.globl _start
_start:
    // PML4, PDPT, the directory of the first GiB, that of the windows (from 3 GiB on).
    mov rax, cr3
    mov [rip + page_tables], rax
    or byte ptr [rax], USER
    mov rax, [rax]
    and rax, -4096
    or byte ptr [rax], USER
    or byte ptr [rax + 3 * 8], USER
    mov rcx, [rax]
    and rcx, -4096
    mov edx, 8
8:  or byte ptr [rcx], USER
    add rcx, 8
    dec edx
    jnz 8b
    mov rcx, [rax + 3 * 8]
    and rcx, -4096
    or byte ptr [rcx + 8 * ((WINDOWS - 0xc0000000) / LARGE)], USER
    or byte ptr [rcx + 8 * ((IOAPIC - 0xc0000000) / LARGE)], USER
    or byte ptr [rcx + 8 * ((LAPIC - 0xc0000000) / LARGE)], USER
    mov rax, cr3
    mov cr3, rax
    mov rax, cr4
    or rax, SSE
    mov cr4, rax

    lgdt [rip + gdt_pointer]
    lea rax, [rip + ring0_stack_end]
    mov [TSS + 4], rax
    mov word ptr [TSS + 0x66], 0x68
    mov eax, TASK
    ltr ax
    lea rax, [rip + idt + GP * 16]
    lea rcx, [rip + forbidden]
    mov [rax], cx
    shr rcx, 16
    mov [rax + 6], cx
    lea rax, [rip + idt + WAKE * 16]
    lea rcx, [rip + wake]
    mov [rax], cx
    shr rcx, 16
    mov [rax + 6], cx
    lidt [rip + idt_pointer]

    // The local APIC on, the device's pin to it: edge, fixed, to processor 0.
    mov eax, LAPIC + 0xf0
    mov dword ptr [rax], 0x1ff
    mov eax, IOAPIC
    mov dword ptr [rax], 0x11 + 2 * PIN
    mov dword ptr [rax + 0x10], 0
    mov dword ptr [rax], 0x10 + 2 * PIN
    mov dword ptr [rax + 0x10], WAKE

    lea rax, [rip + ring3_stack_end - 8]    // as if it had been called
    lea rcx, [rip + ring3]
    push DATA3
    push rax
    push FLAGS3
    push CODE3
    push rcx
    iretq

// What a processor does for its ring 3. On the stack, where it asks by #GP: RAX, the error code, RIP. An interrupt that came since
// the last HLT ends this one at once: ring 3 may have looked too early to see what it was for.
.macro gates forbidden, wake, woken
\forbidden:
    push rax
    mov rax, [rsp + 16]
    cmp byte ptr [rax], 0xf4    // hlt
    je 2f
    cmp byte ptr [rax], 0xee    // out dx, al
    je 3f
    cmp byte ptr [rax], 0xec    // in al, dx
    je 4f
    cmp byte ptr [rax], 0xef    // out dx, eax
    je 5f
    cmp byte ptr [rax], 0xed    // in eax, dx
    je 6f
    cmp word ptr [rax], 0xef66  // out dx, ax
    jne panic
    add qword ptr [rsp + 16], 2
    pop rax
    out dx, ax
    jmp 7f

2:  inc rax
    mov [rsp + 16], rax
    pop rax
    add rsp, 8
    cmp byte ptr [rip + \woken], 0
    jne 1f
    sti
    hlt
    cli
1:  mov byte ptr [rip + \woken], 0
    iretq

3:  inc qword ptr [rsp + 16]
    pop rax
    out dx, al
    jmp 7f
4:  inc qword ptr [rsp + 16]
    pop rax
    in al, dx
    jmp 7f
5:  inc qword ptr [rsp + 16]
    pop rax
    out dx, eax
    jmp 7f
6:  inc qword ptr [rsp + 16]
    pop rax
    in eax, dx
7:  add rsp, 8
    iretq

\wake:
    push rax
    mov byte ptr [rip + \woken], 1
    mov eax, LAPIC + 0xb0       // end of interrupt
    mov dword ptr [rax], 0
    pop rax
    iretq
.endm

gates forbidden, wake, woken

panic:
    mov dx, 0x600
    mov al, 3
    out dx, al
    hlt
    jmp panic

// Compilers expect these.
.text
.globl memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret

.globl memset
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

.data
.balign 16
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    // CODE0, at the selector of the boot protocol
    .quad 0x00cf93000000ffff    // data of ring 0, likewise
    .quad 0x00cff3000000ffff    // DATA3
    .quad 0x00affb000000ffff    // CODE3
    .quad 0x0000890010000067, 0 // TASK: TSS, 0x68 bytes
    .quad 0x00cf9b000000ffff    // CODE32, on the second processor's way
    .quad 0x0000890030000067, 0 // TASK2
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
idt_pointer:
    .word idt_end - idt - 1
    .quad idt
woken:
    .byte 0
.balign 8
.globl page_tables
page_tables:
    .quad 0

.balign 16
idt:                            // entry fills in where the two gates lead
.fill 2 * GP, 8, 0
.word 0, CODE0, GATE, 0, 0, 0, 0, 0
.fill 2 * (WAKE - GP - 1), 8, 0
.word 0, CODE0, GATE, 0, 0, 0, 0, 0
idt_end:

.bss
.balign 16
.skip 512
ring0_stack_end:
.skip 65536                     // of which a page is there once it is used
.balign 16
ring3_stack_end:
