// The second processor, for programs that want one: its start-up code, of which the first has a copy at SECOND and sends it
// there (SDM vol. 3, 9.4.4), then the same as in `entry.s`. It enters `second`.

.set SECOND, 0x2000             // a free page of low memory, and one for its TSS
.set TSS2, 0x3000

.section .text.second, "ax"
.globl second_start, second_end
second_start:
.code16
    cli
    xor eax, eax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16        // lgdt, with 32 bits of address
    .word SECOND + second_gdt - second_start
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                    // jmp CODE32:
    .long SECOND + second_protected - second_start
    .word CODE32
.code32
second_protected:
    mov eax, 0x18
    mov ds, ax
    mov ss, ax
    mov eax, cr4
    or eax, SSE | 1 << 5                // PAE
    mov cr4, eax
    .byte 0xa1                          // mov eax, [second_tables], in the copy
    .long SECOND + second_tables - second_start
    mov cr3, eax
    mov ecx, 0xc0000080                 // EFER
    rdmsr
    or eax, 1 << 8                      // LME
    wrmsr
    mov eax, cr0
    or eax, 1 << 31                     // PG
    mov cr0, eax
    .byte 0xea                          // jmp CODE0:
    .long second_long
    .word CODE0
.balign 8
second_gdt:
    .word gdt_pointer - gdt - 1
    .long gdt
.balign 8
second_tables:
    .long 0                             // the first processor's, which it writes here
.globl second_tables
second_end:

.code64
.text
second_long:
    mov eax, 0x18
    mov ds, ax
    mov es, ax
    mov ss, ax
    lea rax, [rip + second_ring0_end]
    mov rsp, rax
    mov ecx, TSS2
    mov [rcx + 4], rax
    mov word ptr [rcx + 0x66], 0x68
    mov eax, TASK2
    ltr ax
    lea rax, [rip + idt2 + GP * 16]
    lea rcx, [rip + forbidden2]
    mov [rax], cx
    shr rcx, 16
    mov [rax + 6], cx
    lea rax, [rip + idt2 + WAKE * 16]
    lea rcx, [rip + wake2]
    mov [rax], cx
    shr rcx, 16
    mov [rax + 6], cx
    lidt [rip + idt2_pointer]
    mov eax, LAPIC + 0xf0
    mov dword ptr [rax], 0x1ff
    lea rax, [rip + second_ring3_end - 8]   // as if it had been called
    lea rcx, [rip + second]
    push DATA3
    push rax
    push FLAGS3
    push CODE3
    push rcx
    iretq

gates forbidden2, wake2, woken2

.data
idt2_pointer:
    .word idt2_end - idt2 - 1
    .quad idt2
woken2:
    .byte 0
.balign 16
idt2:
.fill 2 * GP, 8, 0
.word 0, CODE0, GATE, 0, 0, 0, 0, 0
.fill 2 * (WAKE - GP - 1), 8, 0
.word 0, CODE0, GATE, 0, 0, 0, 0, 0
idt2_end:

.bss
.balign 16
.skip 512
second_ring0_end:
.skip 8192
.balign 16
second_ring3_end:
