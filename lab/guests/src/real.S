/* Guests that start in 16-bit real mode: CS base 0, all data segments 0, SP 0x1ff0, interrupt table at 0. */
.intel_syntax noprefix
.include "macros.inc"
.section .text16, "awx"
.code16

/* Sets a real-mode vector to a label of segment 0. */
.macro VECTOR n, label
    mov word ptr [\n * 4], offset \label
    mov word ptr [\n * 4 + 2], 0
.endm

GUEST_TEST "real/hello", real_hello, MODE_REAL
real_hello:
    EXIT16 0

GUEST_TEST "real/int_iret", real_int, MODE_REAL
real_int:
    VECTOR 0x42, 1f
    xor bx, bx
    stc
    int 0x42
    CHECK16 c, 16                   /* IRET restores CF */
    cmp bx, 0x1234
    CHECK16 e, 17
    cmp sp, 0x1ff0
    CHECK16 e, 18
    EXIT16 0
1:  clc
    mov bx, 0x1234
    iret

GUEST_TEST "real/divide_error", real_de, MODE_REAL
real_de:
    VECTOR 0, 2f
    xor bx, bx
    mov ax, 1
    xor cx, cx
1:  div cl
    EXIT16 16
2:  pop ax                          /* the faulting instruction's address, not the next one's */
    cmp ax, offset 1b
    CHECK16 e, 17
    EXIT16 0

GUEST_TEST "real/invalid_opcode", real_ud, MODE_REAL
real_ud:
    VECTOR 6, 2f
1:  ud2
    EXIT16 16
2:  pop ax
    cmp ax, offset 1b
    CHECK16 e, 17
    EXIT16 0

GUEST_TEST "real/single_step", real_tf, MODE_REAL
real_tf:
    VECTOR 1, 3f
    xor bx, bx
    pushf
    pop ax
    or ax, 0x100
    push ax
    popf
    nop
1:  nop
    nop
    cmp bx, 3
    jae 2f
    jmp 1b
2:  EXIT16 0
3:  inc bx
    cmp bx, 3
    jb 4f
    push bp
    mov bp, sp
    and word ptr [bp + 6], 0xfeff
    pop bp
4:  iret

GUEST_TEST "real/single_step_cpuid", real_tf_cpuid, MODE_REAL
real_tf_cpuid:                      /* the trap comes right after an instruction that exits */
    VECTOR 1, 3f
    pushf
    pop ax
    or ax, 0x100
    push ax
    xor eax, eax
    popf
    cpuid
2:  EXIT16 16
3:  pop ax
    cmp ax, offset 2b
    CHECK16 e, 17
    EXIT16 0

GUEST_TEST "real/far_jump", real_far, MODE_REAL
real_far:
    .byte 0xea
    .word 1f - 0x1000, 0x100
1:  mov ax, cs
    cmp ax, 0x100
    CHECK16 e, 16
    .byte 0x9a                      /* far call */
    .word 3f, 0
2:  cmp bx, 0x77
    CHECK16 e, 17
    mov ax, cs
    cmp ax, 0x100
    CHECK16 e, 18
    .byte 0xea
    .word 4f, 0
3:  mov bx, 0x77
    retf
4:  EXIT16 0

GUEST_TEST "real/segment_base", real_seg, MODE_REAL
real_seg:
    mov ax, 0x1f00
    mov ds, ax
    mov dword ptr [0x10], 0x55aa1234
    mov ax, 0x1f01
    mov es, ax
    mov eax, es:[0]
    cmp eax, 0x55aa1234
    CHECK16 e, 16
    EXIT16 0

GUEST_TEST "real/high_memory_area", real_hma, MODE_REAL
real_hma:                           /* ffff:0010 is the first byte above 1 MiB, without wrap */
    mov byte ptr [0], 0x5a
    mov ax, 0xffff
    mov es, ax
    mov al, es:[0x12]
    mov es:[0x12], al
    mov eax, es:[0x10]
    mov dword ptr [0], 0
    cmp eax, es:[0x10]
    CHECK16 e, 16
    EXIT16 0

GUEST_TEST "real/unreal", real_unreal, MODE_REAL
real_unreal:                        /* a 4 GiB data limit loaded in protected mode stays in real mode */
    cli
    lgdt [sipi_gdtr]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 0x10
    mov ds, bx
    mov es, bx
    and al, 0xfe
    mov cr0, eax
    jmp 1f
1:  xor bx, bx
    mov es, bx
    mov ebx, 0x500000
    mov dword ptr [ebx], 0xcafe1234
    mov eax, [ebx]
    cmp eax, 0xcafe1234
    CHECK16 e, 16
    mov eax, es:[ebx]               /* a real-mode load changes the base, not the limit */
    cmp eax, 0xcafe1234
    CHECK16 e, 17
    /* exits in this state, then once more */
    xor eax, eax
    cpuid
    mov dx, 0x5000
    in al, dx
    mov ebx, 0x500000
    mov eax, [ebx]
    cmp eax, 0xcafe1234
    CHECK16 e, 18
    EXIT16 0

GUEST_TEST "real/unreal_mmio", real_unreal_mmio, MODE_REAL
real_unreal_mmio:
    cli
    lgdt [sipi_gdtr]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 0x10
    mov ds, bx
    and al, 0xfe
    mov cr0, eax
    mov ebx, 0xd0000010
    mov dword ptr [ebx], 0x11223344
    mov ax, [ebx + 1]
    cmp ax, 0x2233
    CHECK16 e, 16
    EXIT16 0

GUEST_TEST "real/cpuid_msr_tsc", real_cpuid, MODE_REAL
real_cpuid:
    xor eax, eax
    cpuid
    cmp eax, 1
    CHECK16 ae, 16
    mov ecx, 0x1b
    rdmsr
    test eax, 0x800
    CHECK16 nz, 17
    rdtsc
    mov ebx, eax
    rdtsc
    cmp eax, ebx
    CHECK16 ne, 18
    EXIT16 0

GUEST_TEST "real/mode_switches", real_switch, MODE_REAL
real_switch:                        /* real, 16-bit protected, 32-bit protected and back, ten times */
    cli
    mov bp, 10
    lgdt [sipi_gdtr]
1:  mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0xea
    .word 2f, 0x20
2:  mov ax, 0x28
    mov ds, ax
    mov ss, ax
    .byte 0x66, 0xea
    .long 3f
    .word 0x18
.code32
3:  mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ebx, 0x500000
    mov [ebx], ebp
    xor eax, eax
    cpuid
    mov ebx, 0x500000
    cmp [ebx], ebp
    CHECK32 e, 16
    .byte 0xea
    .long 4f
    .word 0x20
.code16
4:  mov ax, 0x28
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word 5f, 0
5:  xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov dx, 0x5000
    out dx, al
    dec bp
    jnz 1b
    EXIT16 0

GUEST_TEST "real/long_mode_and_back", real_long, MODE_REAL
real_long:
    cli
    mov bp, 3
    lgdt [sipi_gdtr]
1:  mov eax, 0x20
    mov cr4, eax
    mov eax, 0x90000
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000001
    mov cr0, eax
    .byte 0xea
    .word 2f, 8
.code64
2:  mov rax, 0x123456789abcdef0
    mov rbx, rax
    push 0x10
    pop rax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov ecx, 0xc0000080
    rdmsr
    test eax, 0x400
    jz 8f
    shr rbx, 32
    cmp ebx, 0x12345678
    jne 8f
    xor eax, eax
    cpuid
    mov rsp, 0x1ff0
    push 0x18
    push offset 3f
    retfq
8:  mov eax, 16
    mov edx, PORT_EXIT
    out dx, eax
    hlt
.code32
3:  mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    test eax, 0x400                 /* LMA follows paging */
    CHECK32 z, 17
    and eax, 0xfffffeff
    wrmsr
    xor eax, eax
    mov cr4, eax
    .byte 0xea
    .long 4f
    .word 0x20
.code16
4:  mov ax, 0x28
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word 5f, 0
5:  xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x1ff0
    dec bp
    jnz 1b
    EXIT16 0

GUEST_TEST "real/port_forms", real_port, MODE_REAL
real_port:
    mov dx, 0x5000
    mov al, 0x12
    out dx, al
    inc dx
    inc dx
    mov ax, 0x3456
    out dx, ax
    inc dx
    inc dx
    mov eax, 0x789abcde
    out dx, eax
    xor eax, eax
    in eax, dx
    cmp eax, 0x789abcde
    CHECK16 e, 16
    mov dx, 0x5002
    mov eax, 0xaaaaaaaa
    in ax, dx
    cmp eax, 0xaaaa3456             /* the upper half stays */
    CHECK16 e, 17
    mov dx, 0x5000
    in al, dx
    cmp eax, 0xaaaa3412
    CHECK16 e, 18
    in al, 0x21                     /* immediate port: the interrupt mask of the master PIC */
    out 0x21, al
    EXIT16 0

GUEST_TEST "real/string_in", real_ins, MODE_REAL
real_ins:
    mov dx, 0x5010
    mov di, 0x600
    mov cx, 16
    cld
    rep insb
    cmp cx, 0
    CHECK16 e, 16
    cmp di, 0x610
    CHECK16 e, 17
    cmp dword ptr [0x600], 0x03020100
    CHECK16 e, 18
    cmp dword ptr [0x60c], 0x0f0e0d0c
    CHECK16 e, 19
    std
    mov di, 0x606
    mov cx, 2
    rep insw                        /* 16 17 at 0x606, 18 19 at 0x604 */
    cld
    cmp di, 0x602
    CHECK16 e, 20
    cmp dword ptr [0x604], 0x11101312
    CHECK16 e, 21
    EXIT16 0

GUEST_TEST "real/string_out", real_outs, MODE_REAL
real_outs:                          /* OUTS to storage ports: the last element stays there */
    mov dword ptr [0x600], 0x44332211
    mov dx, 0x5004
    mov si, 0x600
    mov cx, 2
    cld
    rep outsw
    cmp si, 0x604
    CHECK16 e, 16
    in ax, dx
    cmp ax, 0x4433
    CHECK16 e, 17
    mov cx, 0
    mov si, 0x700
    rep outsb
    cmp si, 0x700
    CHECK16 e, 18
    mov ax, 0x60
    mov es, ax
    xor si, si
    rep outsb
    es outsb                        /* segment override */
    in al, dx
    cmp al, 0x11
    CHECK16 e, 19
    mov esi, 0x600
    mov ecx, 4
    addr32 rep outsb
    cmp esi, 0x604
    CHECK16 e, 20
    in al, dx
    cmp al, 0x44
    CHECK16 e, 21
    EXIT16 0

GUEST_TEST "real/string_in_wrap", real_ins_wrap, MODE_REAL
real_ins_wrap:                      /* DI wraps at 64 KiB; ES base 0x20000 keeps the code out of the way */
    mov ax, 0x2000
    mov es, ax
    mov dx, 0x5010
    mov di, 0xfffe
    mov cx, 4
    cld
    rep insb
    cmp di, 2
    CHECK16 e, 16
    cmp word ptr es:[0xfffe], 0x0100
    CHECK16 e, 17
    cmp word ptr es:[0], 0x0302
    CHECK16 e, 18
    EXIT16 0

GUEST_TEST "real/mmio", real_mmio, MODE_REAL
real_mmio:
    mov ax, 0xa000
    mov es, ax
    mov dword ptr es:[0x100], 0x55667788
    mov al, es:[0x101]
    cmp al, 0x77
    CHECK16 e, 16
    or byte ptr es:[0x100], 0x0f
    cmp byte ptr es:[0x100], 0x8f
    CHECK16 e, 17
    mov ax, 0x1234
    xchg ax, es:[0x102]
    cmp ax, 0x5566
    CHECK16 e, 18
    cmp word ptr es:[0x102], 0x1234
    CHECK16 e, 19
    EXIT16 0

GUEST_TEST "real/mmio_string", real_mmio_string, MODE_REAL
real_mmio_string:
    mov ax, 0xa000
    mov es, ax
    cld
    mov dword ptr [0x600], 0x04030201
    mov dword ptr [0x604], 0x08070605
    mov si, 0x600
    mov di, 0xffc
    mov cx, 8
    rep movsb                       /* across a page */
    cmp di, 0x1004
    CHECK16 e, 16
    cmp dword ptr es:[0x1000], 0x08070605
    CHECK16 e, 17
    mov ax, 0x7777
    mov di, 0x2000
    mov cx, 3
    rep stosw
    cmp dword ptr es:[0x2002], 0x77777777
    CHECK16 e, 18
    push ds
    mov ax, 0xa000
    mov ds, ax
    xor ax, ax
    mov es, ax
    mov si, 0xffc
    mov di, 0x610
    mov cx, 4
    rep movsw
    lodsb
    pop ds
    cmp dword ptr [0x610], 0x04030201
    CHECK16 e, 19
    cmp dword ptr [0x614], 0x08070605
    CHECK16 e, 20
    EXIT16 0

GUEST_TEST "real/pic_timer_interrupt", real_timer, MODE_REAL
real_timer:                         /* PIT channel 0 through the master PIC, as a boot loader sees it */
    cli
    VECTOR 8, 3f
    xor bx, bx
    mov al, 0x11
    out 0x20, al
    mov al, 8
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, 0x00
    out 0x40, al
    mov al, 0x20
    out 0x40, al
1:  sti
    hlt
    cli
    cmp bx, 3
    jb 1b
    EXIT16 0
3:  inc bx
    push ax
    mov al, 0x20
    out 0x20, al
    pop ax
    iret

GUEST_TEST "real/string_memory", real_rep, MODE_REAL
real_rep:
    cld
    mov ax, 0x4000
    mov es, ax
    xor di, di
    mov cx, 0x8000
    mov ax, 0x5aa5
    rep stosw
    cmp di, 0
    CHECK16 e, 16
    cmp word ptr es:[0xfffe], 0x5aa5
    CHECK16 e, 17
    EXIT16 0

GUEST_TEST "real/interrupt_flag_stack", real_flags, MODE_REAL
real_flags:
    VECTOR 0x50, 2f
    sti
    int 0x50
    pushf
    pop ax
    test ax, 0x200                  /* IRET set it again */
    CHECK16 nz, 16
    cmp bx, 0
    CHECK16 e, 17
    EXIT16 0
2:  pushf
    pop bx
    and bx, 0x300                   /* IF and TF are clear inside */
    iret

GUEST_TEST "real/triple_fault", real_triple, MODE_REAL
real_triple:                        /* an interrupt table with limit 0 */
    mov dx, PORT_EXPECT
    mov eax, 8
    out dx, eax
    lidt [1f]
    ud2
1:  .word 0
    .long 0

.section .note.GNU-stack,"",@progbits
