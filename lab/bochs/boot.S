# Boot sector of the VMX machine: enters a kernel that Bochs has already put in memory, by its PVH entry point.
#
# The BIOS runs this at 0:7c00 in real mode. The kernel wants flat 32-bit protected mode, paging off, interrupts off,
# and EBX = address of its start information. `pvh_entry` and `start_info` are given to the assembler (--defsym).

.code16
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    inb $0x92, %al              # A20 open, without the reset bit.
    orb $2, %al
    andb $0xfe, %al
    outb %al, $0x92
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $protected

.code32
protected:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movl $_start, %esp
    movl $start_info, %ebx
    movl $pvh_entry, %eax
    jmp *%eax

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff    # 8: code, flat
    .quad 0x00cf92000000ffff    # 10: data, flat
gdt_pointer:
    .word . - gdt - 1
    .long gdt

.org 510
    .word 0xaa55
