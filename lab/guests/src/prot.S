/* Guests that start in 32-bit protected mode: flat segments, paging off, PAE or 4 MiB pages as the record says. */
.intel_syntax noprefix
.include "macros.inc"
.text
.code32

.macro GATE32 n, label
    mov eax, offset \label
    mov [idt32 + \n * 8], ax
    mov word ptr [idt32 + \n * 8 + 2], 0x18
    mov word ptr [idt32 + \n * 8 + 4], 0x8e00
    shr eax, 16
    mov [idt32 + \n * 8 + 6], ax
.endm

/* Own descriptor tables; the start state has cached segments only. */
.macro TABLES32
    lgdt [gdtr32]
    lidt [idtr32]
    .byte 0xea
    .long .Ltab\@
    .word 0x18
.Ltab\@:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x1ff0
.endm

GUEST_TEST "prot/hello", prot_hello, MODE_PROT32
prot_hello:
    EXIT32 0

GUEST_TEST "prot/segments", prot_segments, MODE_PROT32
prot_segments:
    TABLES32
    mov ax, 0x28                    /* 16-bit data, limit 64 KiB */
    mov fs, ax
    mov dword ptr fs:[0x600], 0x1234
    cmp dword ptr [0x600], 0x1234
    CHECK32 e, 16
    lsl eax, eax
    str ax
    sldt bx
    smsw cx
    test cx, 1
    CHECK32 nz, 17
    EXIT32 0

GUEST_TEST "prot/exceptions", prot_exceptions, MODE_PROT32
prot_exceptions:
    TABLES32
    GATE32 6, 2f
    GATE32 13, 4f
    GATE32 0x30, 6f
    xor ebx, ebx
1:  ud2
2:  pop eax                         /* #UD: no error code */
    cmp eax, offset 1b
    CHECK32 e, 16
    mov esp, 0x1ff0
    mov ax, 0x1238
3:  mov fs, ax                      /* beyond the limit of the GDT */
    EXIT32 17
4:  pop eax
    cmp eax, 0x1238
    CHECK32 e, 18
    pop eax
    cmp eax, offset 3b
    CHECK32 e, 19
    mov esp, 0x1ff0
    int 0x30
    cmp ebx, 5
    CHECK32 e, 20
    EXIT32 0
6:  mov ebx, 5
    iretd

GUEST_TEST "prot/segment_limit", prot_limit, MODE_PROT32
prot_limit:
    TABLES32
    GATE32 13, 2f
    mov ax, 0x28
    mov fs, ax
    mov eax, 0x20000
1:  mov ebx, fs:[eax]
    EXIT32 2                        /* skipped: this CPU (an emulator's) checks no limits */
2:  pop eax
    cmp eax, 0
    CHECK32 e, 17
    pop eax
    cmp eax, offset 1b
    CHECK32 e, 18
    EXIT32 0

GUEST_TEST "prot/port_and_mmio", prot_io, MODE_PROT32
prot_io:
    mov edx, 0x5000
    mov eax, 0xdeadbeef
    out dx, eax
    xor eax, eax
    in eax, dx
    cmp eax, 0xdeadbeef
    CHECK32 e, 16
    mov ebx, 0xd0000040
    mov dword ptr [ebx], 0x01020304
    add dword ptr [ebx], 0x10
    mov ax, [ebx]
    cmp ax, 0x0314
    CHECK32 e, 17
    movzx ecx, byte ptr [ebx + 3]
    cmp ecx, 1
    CHECK32 e, 18
    push dword ptr [ebx]
    pop eax
    cmp eax, 0x01020314
    CHECK32 e, 19
    EXIT32 0

GUEST_TEST "prot/string_io", prot_string, MODE_PROT32
prot_string:
    cld
    mov edx, 0x5010
    mov edi, 0x500ffd
    mov ecx, 6
    rep insb                        /* across a page */
    cmp edi, 0x501003
    CHECK32 e, 16
    cmp dword ptr [0x500ffe], 0x04030201
    CHECK32 e, 17
    mov edx, 0x5000
    mov esi, 0x500ffd
    mov ecx, 1
    rep outsd
    in eax, dx
    cmp eax, 0x03020100
    CHECK32 e, 18
    EXIT32 0

GUEST_TEST "prot/code16", prot_code16, MODE_PROT32
prot_code16:                        /* a 16-bit code segment below 64 KiB under protected mode */
    TABLES32
    .byte 0xea
    .long prot_code16_low
    .word 0x20
.section .text16, "awx"
.code16
prot_code16_low:
    mov ax, 0x28
    mov ds, ax
    mov ss, ax
    mov sp, 0x1ff0
    mov eax, cr0
    test al, 1
    CHECK16 nz, 16
    mov word ptr [0x600], 0x55aa
    cmp word ptr [0x600], 0x55aa
    CHECK16 e, 17
    EXIT16 0
.text
.code32

/* 4 MiB entry 64 (256 MiB) becomes an alias of physical 4 MiB. */
GUEST_TEST "prot/pse_alias", prot_pse, MODE_PSE32
prot_pse:
    mov dword ptr [0x96000 + 64 * 4], 0x400083
    mov eax, cr3
    mov cr3, eax
    mov dword ptr [0x10000100], 0x13572468
    cmp dword ptr [0x400100], 0x13572468
    CHECK32 e, 16
    EXIT32 0

GUEST_TEST "prot/pse_page_fault", prot_pse_pf, MODE_PSE32
prot_pse_pf:
    TABLES32
    GATE32 14, 2f
    mov dword ptr [0x96000 + 65 * 4], 0
    invlpg [0x10400000]
1:  mov dword ptr [0x10400010], 1
    cmp dword ptr [0x800010], 1
    CHECK32 e, 16
    EXIT32 0
2:  pop eax
    cmp eax, 2                      /* write, not present */
    CHECK32 e, 17
    mov eax, cr2
    cmp eax, 0x10400010
    CHECK32 e, 18
    cmp dword ptr [esp], offset 1b
    CHECK32 e, 19
    mov dword ptr [0x96000 + 65 * 4], 0x800083
    iretd

GUEST_TEST "prot/two_level_4k", prot_4k, MODE_PSE32
prot_4k:
    TABLES32
    GATE32 14, 2f
    mov dword ptr [0x500000], 0x600003          /* page 0 of the table */
    mov dword ptr [0x500004], 0x601001          /* page 1, read-only */
    mov dword ptr [0x96000 + 64 * 4], 0x500003
    mov eax, cr3
    mov cr3, eax
    mov eax, cr0
    or eax, 0x10000
    mov cr0, eax
    mov dword ptr [0x10000ffc], 0x99
    cmp dword ptr [0x600ffc], 0x99
    CHECK32 e, 16
    test dword ptr [0x500000], 0x60             /* accessed and dirty */
    CHECK32 nz, 17
1:  mov dword ptr [0x10001000], 0x77
    cmp dword ptr [0x601000], 0x77
    CHECK32 e, 18
    EXIT32 0
2:  pop eax
    cmp eax, 3                      /* write, protection */
    CHECK32 e, 19
    mov dword ptr [0x500004], 0x601003
    iretd

GUEST_TEST "prot/pae_alias", prot_pae, MODE_PAE32
prot_pae:
    mov dword ptr [0x92000 + 128 * 8], 0x400083 /* 256 MiB */
    mov dword ptr [0x92000 + 128 * 8 + 4], 0
    mov eax, cr3
    mov cr3, eax
    mov dword ptr [0x10000200], 0x24681357
    cmp dword ptr [0x400200], 0x24681357
    CHECK32 e, 16
    EXIT32 0

GUEST_TEST "prot/pae_page_fault", prot_pae_pf, MODE_PAE32
prot_pae_pf:
    TABLES32
    GATE32 14, 2f
    mov dword ptr [0x92000 + 128 * 8], 0
    invlpg [0x10000000]
1:  mov eax, [0x10000020]
    EXIT32 0
2:  pop eax
    cmp eax, 0
    CHECK32 e, 16
    mov eax, cr2
    cmp eax, 0x10000020
    CHECK32 e, 17
    mov dword ptr [0x92000 + 128 * 8], 0x400083
    iretd

GUEST_TEST "prot/paging_on_off", prot_paging, MODE_PROT32
prot_paging:
    mov ebp, 5
1:  mov eax, 0x10
    mov cr4, eax
    mov eax, 0x96000
    mov cr3, eax
    mov dword ptr [0x96000 + 64 * 4], 0x400083
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 2f
2:  mov [0x10000300], ebp
    mov dword ptr [0x96000 + 64 * 4], 0x10000083
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    jmp 3f
3:  cmp [0x400300], ebp
    CHECK32 e, 16
    dec ebp
    jnz 1b
    EXIT32 0

GUEST_TEST "prot/pse_to_pae", prot_switch_paging, MODE_PSE32
prot_switch_paging:                 /* two-level, off, PAE, off, two-level */
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    jmp 1f
1:  mov eax, 0x20
    mov cr4, eax
    mov eax, 0x97000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 2f
2:  mov dword ptr [0x500000], 0x42
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, 0x10
    mov cr4, eax
    mov eax, 0x96000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 3f
3:  cmp dword ptr [0x500000], 0x42
    CHECK32 e, 16
    EXIT32 0

GUEST_TEST "prot/page_fault_on_string_in", prot_ins_pf, MODE_PSE32
prot_ins_pf:                        /* REP INS stops at the fault with its registers at the element that faulted */
    TABLES32
    GATE32 14, 2f
    mov dword ptr [0x96000 + 65 * 4], 0
    invlpg [0x10400000]
    mov dword ptr [0x96000 + 64 * 4], 0x400083
    invlpg [0x10000000]
    cld
    xor ebx, ebx
    mov edx, 0x5010
    mov edi, 0x103ffffc
    mov ecx, 8
    rep insb
    cmp ebx, 1
    CHECK32 e, 16
    cmp edi, 0x10400004
    CHECK32 e, 17
    cmp dword ptr [0x7ffffc], 0x03020100
    CHECK32 e, 18
    mov eax, [0x800000]             /* a batch read before the fault may be lost: 4 5 6 7, or 8 9 a b */
    cmp eax, 0x07060504
    je 3f
    cmp eax, 0x0b0a0908
    CHECK32 e, 19
3:  EXIT32 0
2:  pop eax
    cmp eax, 2
    CHECK32 e, 20
    mov eax, cr2
    cmp eax, 0x10400000
    CHECK32 e, 21
    inc ebx
    mov dword ptr [0x96000 + 65 * 4], 0x800083
    iretd

/* The base of a descriptor in the GDT. */
.macro BASE32 selector, label
    mov eax, offset \label
    mov [gdt32 + \selector + 2], ax
    shr eax, 16
    mov [gdt32 + \selector + 4], al
.endm

/* Own tables; the running task is TSS a, and TSS b starts at the label with EBX 0x4321. */
.macro TASKS32 start
    TABLES32
    BASE32 0x48, tss_a
    BASE32 0x50, tss_b
    mov ax, 0x48
    ltr ax
    mov dword ptr [tss_b + 0x20], offset \start /* EIP */
    mov dword ptr [tss_b + 0x24], 2             /* EFLAGS */
    mov dword ptr [tss_b + 0x34], 0x4321        /* EBX */
    mov dword ptr [tss_b + 0x38], 0x1f00        /* ESP */
    mov dword ptr [tss_b + 0x48], 0x10          /* ES */
    mov dword ptr [tss_b + 0x4c], 0x18          /* CS */
    mov dword ptr [tss_b + 0x50], 0x10          /* SS */
    mov dword ptr [tss_b + 0x54], 0x10          /* DS */
    push eax                        /* QEMU forgets that it has switched if the page of the stack faults then */
    pop eax
    mov ebx, 0x1111
.endm

.macro JMP_TASK selector
    .byte 0xea
    .long 0
    .word \selector
.endm
.macro CALL_TASK selector
    .byte 0x9a
    .long 0
    .word \selector
.endm

/* Vector n goes through a task gate to TSS b. */
.macro TASK_GATE32 n
    mov dword ptr [idt32 + \n * 8], 0x500000
    mov dword ptr [idt32 + \n * 8 + 4], 0x8500
.endm

GUEST_TEST "prot/task_switch", prot_task, MODE_PROT32
prot_task:                          /* a jump to a TSS, and back through the other */
    TASKS32 2f
    JMP_TASK 0x50
    cmp ebx, 0x1111
    CHECK32 e, 16
    str ax
    cmp ax, 0x48
    CHECK32 e, 17
    test byte ptr [gdt32 + 0x55], 2             /* not busy any more */
    CHECK32 z, 21
    EXIT32 0
2:  cmp ebx, 0x4321
    CHECK32 e, 18
    str ax
    cmp ax, 0x50
    CHECK32 e, 19
    mov eax, cr0
    test eax, 8                     /* a task switch sets CR0.TS */
    CHECK32 nz, 20
    test byte ptr [gdt32 + 0x4d], 2
    CHECK32 z, 22
    JMP_TASK 0x48

GUEST_TEST "prot/task_call", prot_task_call, MODE_PROT32
prot_task_call:                     /* CALL nests, IRET returns; a second CALL goes on behind that IRET */
    TASKS32 2f
    CALL_TASK 0x50
    cmp ebx, 0x1111
    CHECK32 e, 16
    str ax
    cmp ax, 0x48
    CHECK32 e, 17
    pushfd
    pop eax
    test eax, 0x4000
    CHECK32 z, 18
    test byte ptr [gdt32 + 0x55], 2
    CHECK32 z, 19
    test dword ptr [tss_b + 0x24], 0x4000       /* IRET clears NT in what it saves */
    CHECK32 z, 20
    cmp dword ptr [tss_b + 0x20], offset 3f
    CHECK32 e, 21
    CALL_TASK 0x50
    cmp ebx, 0x1111
    CHECK32 e, 22
    EXIT32 0
2:  pushfd
    pop eax
    test eax, 0x4000                /* NT */
    CHECK32 nz, 23
    cmp word ptr [tss_b], 0x48      /* the link */
    CHECK32 e, 24
    test byte ptr [gdt32 + 0x4d], 2
    CHECK32 nz, 25
    test byte ptr [gdt32 + 0x55], 2
    CHECK32 nz, 26
    mov ebx, 0x5555
    iretd
3:  cmp ebx, 0x5555
    CHECK32 e, 27
    iretd

GUEST_TEST "prot/task_gate", prot_task_gate, MODE_PROT32
prot_task_gate:                     /* an exception with an error code, then INT n, through a task gate */
    TASKS32 4f
    TASK_GATE32 13
    TASK_GATE32 0x30
    mov ax, 0x1238
2:  mov fs, ax
3:  cmp ebx, 0x1111
    CHECK32 e, 16
    cmp word ptr [tss_b + 0x38], 0x1f00         /* the error code was popped */
    CHECK32 e, 17
    int 0x30
    cmp ebx, 0x1111
    CHECK32 e, 18
    EXIT32 0
4:  pop eax
    cmp eax, 0x1238
    CHECK32 e, 19
    cmp dword ptr [tss_a + 0x20], offset 2b
    CHECK32 e, 20
    cmp word ptr [tss_b], 0x48
    CHECK32 e, 21
    mov dword ptr [tss_a + 0x20], offset 3b
    iretd
    cmp dword ptr [tss_a + 0x34], 0x1111        /* INT n: no error code */
    CHECK32 e, 22
    cmp esp, 0x1f00
    CHECK32 e, 23
    iretd

GUEST_TEST "prot/task_irq", prot_task_irq, MODE_PROT32
prot_task_irq:                      /* the PIT's interrupt through a task gate wakes HLT */
    TASKS32 2f
    TASK_GATE32 0x20
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x30
    out 0x43, al
    mov al, 0
    out 0x40, al
    mov al, 0x30
    out 0x40, al
    sti
    hlt
1:  cli
    cmp ebx, 0x1111
    CHECK32 e, 16
    cmp dword ptr [tss_b + 0x34], 0x4322        /* once */
    CHECK32 e, 17
    EXIT32 0
2:  inc ebx
    cmp dword ptr [tss_a + 0x20], offset 1b
    CHECK32 e, 18
    test dword ptr [tss_a + 0x24], 0x200
    CHECK32 nz, 19
    mov al, 0x20
    out 0x20, al
    iretd

GUEST_TEST "prot/task_double_fault", prot_task_df, MODE_PROT32
prot_task_df:                       /* no stack for #GP: the double fault's task has one of its own */
    TASKS32 2f
    TASK_GATE32 8
    mov ax, 0x1238
    lidt [1f]
    mov fs, ax
    EXIT32 16
1:  .word 9 * 8 - 1                 /* #GP lies behind the limit */
    .long idt32
2:  pop eax
    cmp eax, 0
    CHECK32 e, 17
    cmp dword ptr [tss_a + 0x34], 0x1111
    CHECK32 e, 18
    EXIT32 0

GUEST_TEST "prot/task_bad_segment", prot_task_bad, MODE_PROT32
prot_task_bad:                      /* DS of the new task has no segment: #TS, and the new task has it */
    TASKS32 2f
    GATE32 10, 3f
    mov dword ptr [tss_b + 0x54], 0x40
1:  JMP_TASK 0x50
    EXIT32 16
2:  EXIT32 17
3:  mov ax, 0x10
    mov ds, ax
    mov es, ax
    pop eax
    cmp eax, 0x40
    CHECK32 e, 18
    cmp ebx, 0x4321
    CHECK32 e, 19
    pop eax
    cmp eax, offset 2b
    je 4f
    cmp eax, offset 1b
    CHECK32 e, 20
    EXIT32 2                        /* skipped: this CPU (an emulator's) switches, and then tells the old EIP */
4:  EXIT32 0

/* Page tables stand for tss_a in CR3 and for tss_b at 0x500000, which map 256 MiB to 0x800000 and to 0xc00000. TASKS32's 2f is here. */
.macro TASK_SEES_ITS_OWN
    mov dword ptr [0x800100], 0xaaaa
    mov dword ptr [0xc00100], 0xbbbb
    mov eax, cr3
    mov cr3, eax
    mov [tss_a + 0x1c], eax
    mov dword ptr [tss_b + 0x1c], 0x500000
    cmp dword ptr [0x10000100], 0xaaaa
    CHECK32 e, 16
    CALL_TASK 0x50
    cmp dword ptr [0x10000100], 0xaaaa
    CHECK32 e, 17
    EXIT32 0
2:  cmp dword ptr [0x10000100], 0xbbbb
    CHECK32 e, 18
    mov eax, cr3
    cmp eax, 0x500000
    CHECK32 e, 19
    iretd
.endm

GUEST_TEST "prot/task_paging", prot_task_cr3, MODE_PSE32
prot_task_cr3:                      /* each task has its page directory; entry 64 (256 MiB) differs */
    TASKS32 2f
    mov esi, 0x96000
    mov edi, 0x500000
    mov ecx, 1024
    cld
    rep movsd
    mov dword ptr [0x96000 + 64 * 4], 0x800083
    mov dword ptr [0x500000 + 64 * 4], 0xc00083
    TASK_SEES_ITS_OWN

GUEST_TEST "prot/task_pae", prot_task_pae, MODE_PAE32
prot_task_pae:                      /* the same with PAE: the PDPTEs are loaded with CR3 */
    TASKS32 2f
    mov esi, 0x92000
    mov edi, 0x501000
    mov ecx, 1024
    cld
    rep movsd
    mov dword ptr [0x500000], 0x501001
    mov dword ptr [0x92000 + 128 * 8], 0x800083
    mov dword ptr [0x501000 + 128 * 8], 0xc00083
    TASK_SEES_ITS_OWN

GUEST_TEST "prot/task_switch_16", prot_task_16, MODE_PROT32
prot_task_16:                       /* a CALL to the 286's TSS, and IRET back */
    TASKS32 prot_task_16_low
    BASE32 0x58, tss_b
    mov word ptr [tss_b + 0x0e], offset prot_task_16_low
    mov word ptr [tss_b + 0x10], 2
    mov word ptr [tss_b + 0x18], 0x4321         /* BX */
    mov word ptr [tss_b + 0x1a], 0x1f00         /* SP */
    mov word ptr [tss_b + 0x22], 0x28           /* ES */
    mov word ptr [tss_b + 0x24], 0x20           /* CS */
    mov word ptr [tss_b + 0x26], 0x28           /* SS */
    mov word ptr [tss_b + 0x28], 0x28           /* DS */
    mov word ptr [tss_b + 0x2a], 0              /* LDT */
    mov ebx, 0x11112222
    CALL_TASK 0x58
    cmp ebx, 0x11112222
    CHECK32 e, 16
    cmp word ptr [tss_b + 0x18], 0x7777
    CHECK32 e, 17
    cmp word ptr [tss_b], 0x48
    CHECK32 e, 18
    EXIT32 0
.section .text16, "awx"
.code16
prot_task_16_low:
    cmp bx, 0x4321
    CHECK16 e, 19
    str ax
    cmp ax, 0x58
    CHECK16 e, 20
    pushf
    pop ax
    test ax, 0x4000
    CHECK16 nz, 21
    mov bx, 0x7777
    iret
.text
.code32

GUEST_TEST "prot/vm86", prot_vm86, MODE_PROT32
prot_vm86:                          /* virtual-8086 code; its INT comes back as #GP with IOPL 0 */
    TABLES32
    GATE32 13, 2f
    mov eax, offset tss_a
    mov [gdt32 + 0x48 + 2], ax
    shr eax, 16
    mov [gdt32 + 0x48 + 4], al
    mov dword ptr [tss_a + 4], 0x1e00           /* ESP0 */
    mov dword ptr [tss_a + 8], 0x10             /* SS0 */
    mov word ptr [tss_a + 0x66], 104
    mov ax, 0x48
    ltr ax
    push 0                          /* GS FS DS ES */
    push 0
    push 0
    push 0
    push 0                          /* SS */
    push 0x1d00
    push 0x20002                    /* EFLAGS.VM */
    push 0
    push offset prot_vm86_low
    iretd
2:  mov cx, 0x10                    /* leaving virtual-8086 mode makes the data segments null */
    mov ds, cx
    pop eax                         /* error code */
    cmp word ptr [0x600], 0x8686
    CHECK32 e, 16
    pop eax
    cmp eax, offset prot_vm86_int
    CHECK32 e, 17
    pop eax
    pop eax
    test eax, 0x20000
    CHECK32 nz, 18
    EXIT32 0
.section .text16, "awx"
.code16
prot_vm86_low:
    mov word ptr [0x600], 0x8686
prot_vm86_int:
    int 0x21
    hlt
.text
.code32

GUEST_TEST "prot/triple_fault", prot_triple, MODE_PROT32
prot_triple:
    mov edx, PORT_EXPECT
    mov eax, 8
    out dx, eax
    lidt [1f]
    int3
1:  .word 0
    .long 0

GUEST_TEST "prot/hlt_pit_irq", prot_hlt, MODE_PROT32
prot_hlt:                           /* PIT channel 0 in mode 0: one interrupt through the PIC wakes HLT */
    TABLES32
    GATE32 0x20, 2f
    xor ebx, ebx
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x30
    out 0x43, al
    mov al, 0
    out 0x40, al
    mov al, 0x30
    out 0x40, al
    sti
    hlt
    cli
    cmp ebx, 1
    CHECK32 e, 16
    EXIT32 0
2:  inc ebx
    mov al, 0x20
    out 0x20, al
    iretd

.data
.balign 8
gdtr32:
    .word gdt32_end - gdt32 - 1
    .long gdt32
.balign 8
idtr32:
    .word 64 * 8 - 1
    .long idt32
.balign 16
gdt32:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08 64-bit code */
    .quad 0x00cf93000000ffff    /* 0x10 data */
    .quad 0x00cf9b000000ffff    /* 0x18 32-bit code */
    .quad 0x00009b000000ffff    /* 0x20 16-bit code */
    .quad 0x000093000000ffff    /* 0x28 16-bit data */
    .quad 0
    .quad 0
    .quad 0                     /* 0x40 */
    .quad 0x0000890000000067    /* 0x48 TSS a */
    .quad 0x0000890000000067    /* 0x50 TSS b */
    .quad 0x000081000000002b    /* 0x58 TSS b as the 286's */
gdt32_end:
.bss
.balign 16
idt32:
    .zero 64 * 8
tss_a:
    .zero 128
tss_b:
    .zero 128

.section .note.GNU-stack,"",@progbits
