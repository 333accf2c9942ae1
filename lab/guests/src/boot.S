/* Start-up of the micro guests: 64-bit entry, SIPI trampoline, interrupt stubs, fault catching, memory primitives. */
.intel_syntax noprefix
.include "macros.inc"

.set STACK_SIZE, 0x8000
.set TSS_SEL, 0x40

/* ---- application processors: real mode at a page named by the SIPI vector ---- */
.section .sipi, "awx"
.code16
.globl sipi_page
sipi_page:
    cli
    xor ax, ax
    mov ds, ax
    lgdt [sipi_gdtr]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long sipi32
    .word 0x18
.balign 8
.globl sipi_gdtr
sipi_gdtr:
    .word gdt_end - gdt - 1
    .long gdt
.code32
sipi32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, 0x6a0          /* PAE, PGE, OSFXSR, OSXMMEXCPT */
    mov cr4, eax
    mov eax, [ap_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900           /* LME, NXE */
    wrmsr
    mov eax, 0x80010033     /* PG, WP, NE, ET, MP, PE */
    mov cr0, eax
    .byte 0xea
    .long sipi64
    .word 0x08

.text
.code64
sipi64:
    mov eax, 1
    cpuid
    shr ebx, 24             /* initial APIC id = index of this CPU */
    mov edi, ebx
    lea rsi, [rip + 1f]
    jmp cpu_setup
1:  mov edi, ebx
    call ap_main
    ud2

.globl start64
start64:                    /* rdi = the test's function */
    mov rbp, rdi
    lgdt [rip + gdtr]
    lea rsp, [rip + stacks + STACK_SIZE]
    push 0x08
    lea rax, [rip + 1f]
    push rax
    retfq
1:  mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    xor edi, edi
    lea rsi, [rip + 2f]
    jmp cpu_setup
2:  mov rdi, rbp
    call bsp_main
    ud2

/* edi = CPU index, rsi = where to go on: sets stack, GDT, IDT and TR. There is no stack before. Keeps rbx and rbp. */
cpu_setup:
    lgdt [rip + gdtr]
    lidt [rip + idtr]
    mov eax, edi
    inc eax
    imul eax, eax, STACK_SIZE
    lea rsp, [rip + stacks]
    add rsp, rax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    fninit
    push 0x1f80
    ldmxcsr [rsp]
    add rsp, 8
    test edi, edi           /* CPU 0 loads TR in trap::init, when the descriptors are there */
    jz 3f
    /* TSS descriptor of this CPU; its busy bit is cleared so that a restarted CPU may load it again. */
    mov eax, edi
    shl eax, 4
    add eax, TSS_SEL
    lea rcx, [rip + gdt]
    and byte ptr [rcx + rax + 5], 0xfd
    ltr ax
3:  jmp rsi

/* ---- interrupt stubs: vector and error code on the stack, then one common path ---- */
.balign 16
.globl trap_stubs
trap_stubs:
.set i, 0
.rept 256
    .balign 16
    .if (i == 8) || (i == 10) || (i == 11) || (i == 12) || (i == 13) || (i == 14) || (i == 17) || (i == 21) || (i == 29) || (i == 30)
    .else
    push 0
    .endif
    .byte 0x68              /* push the vector, always with a 32-bit immediate */
    .long i
    jmp trap_common
    .set i, i + 1
.endr

trap_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbp, rsp
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]
    call trap_handler
    fxrstor64 [rsp]
    mov rsp, rbp
    .globl trap_return
trap_return:
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

/* catch_call(rdi = function, rsi = argument, rdx = where to keep rsp): returns 0, or 1 when a trap was caught.
   The trap handler resumes at catch_landing with rsp as saved. */
.globl catch_call
catch_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    mov [rdx], rsp
    mov rax, rdi
    mov rdi, rsi
    call rax
    xor eax, eax
    jmp 2f
.globl catch_landing
catch_landing:
    cld
    mov eax, 1
2:  add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

/* user_call(rdi = rip, rsi = rsp, rdx = argument in rax, rcx = where to keep rsp): iret to CPL 3.
   Comes back through catch_landing when a trap from user mode is caught; returns 1 then. */
.globl user_call
user_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    mov [rcx], rsp
    mov rax, rdx
    push 0x33               /* SS: user data */
    push rsi
    push 0x202              /* IF set */
    push 0x3b               /* CS: user code */
    push rdi
    iretq

/* ---- minimal interrupt handlers for the measurements: count, and EOI the x2APIC ---- */
/* Closes the emulator's window first. */
.globl bench_close
bench_close:
    .byte 0x0f, 0x1f, 0x80
    .long 0x1ed9e204
/* Notes the time first. */
.globl bench_timed
bench_timed:
    push rax
    push rdx
    rdtsc
    mov [rip + bench_time], eax
    mov [rip + bench_time + 4], edx
    pop rdx
    pop rax
.globl bench_isr
bench_isr:
    push rax
    push rcx
    push rdx
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    lock inc qword ptr [rip + bench_count]
    pop rdx
    pop rcx
    pop rax
    iretq
/* EOIs the xAPIC. */
.globl bench_isr_xapic
bench_isr_xapic:
    push rax
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
/* Of an NMI, which has no EOI. */
.globl bench_nmi
bench_nmi:
    lock inc qword ptr [rip + bench_count]
    iretq

.globl memcpy, memmove, memset, memcmp, bcmp
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
memmove:
    mov rax, rdi
    mov rcx, rdx
    cmp rdi, rsi
    jbe 1f
    lea rdi, [rdi + rcx - 1]
    lea rsi, [rsi + rcx - 1]
    std
    rep movsb
    cld
    ret
1:  rep movsb
    ret
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
bcmp:
memcmp:
    xor eax, eax
    xor ecx, ecx
1:  cmp rcx, rdx
    je 2f
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    je 1b
2:  ret

.data
.balign 16
.globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08 code, 64-bit */
    .quad 0x00cf93000000ffff    /* 0x10 data, flat */
    .quad 0x00cf9b000000ffff    /* 0x18 code, 32-bit */
    .quad 0x00009b000000ffff    /* 0x20 code, 16-bit, base 0 */
    .quad 0x000093000000ffff    /* 0x28 data, 16-bit, base 0 */
    .quad 0x00cff3000000ffff    /* 0x30 user data */
    .quad 0x00affb000000ffff    /* 0x38 user code, 64-bit */
    .zero 16 * MAX_CPUS             /* 0x40 TSS descriptors, filled by bsp_main */
gdt_end:
.globl gdt_end
.balign 8
gdtr:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 8
.globl idtr
idtr:
    .word 4095
    .quad idt
.globl ap_cr3
ap_cr3:
    .quad 0x90000
.globl bench_count
bench_count:
    .quad 0
.globl bench_time
bench_time:
    .quad 0

.bss
.balign 4096
.globl idt
idt:
    .zero 4096
.globl stacks
stacks:
    .zero STACK_SIZE * MAX_CPUS

.section .note.GNU-stack,"",@progbits
