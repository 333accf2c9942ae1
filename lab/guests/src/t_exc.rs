//! Exceptions: vectors, error codes, RIP and CR2, single steps over instructions that exit, double faults, CPL 3.

use crate::config::*;
use crate::cpu::*;
use crate::mem::{self, FREE_VA, NX, P, U, W};
use crate::report::*;
use crate::trap::{self, Frame, Shared, catch, expect};
use crate::{host, test};
use core::arch::asm;

test!(ud, "exc/ud");
fn ud() {
    let c = expect(6, 0, "UD2", || unsafe { asm!("ud2") });
    check_eq(unsafe { (c.rip as *const u16).read_unaligned() } as u64, 0x0b0f, "RIP");
}

test!(de, "exc/divide_error");
fn de() {
    expect(0, 0, "DIV by zero", || unsafe {
        asm!("xor ecx, ecx", "div ecx", out("ecx") _, out("eax") _, out("edx") _)
    });
}

test!(bp, "exc/int3");
fn bp() {
    let c = expect(3, 0, "INT3", || unsafe { asm!("int3") });
    check_eq(mem::r8(c.rip - 1) as u64, 0xcc, "RIP is after the INT3");
}

test!(int_n, "exc/int_n");
fn int_n() {
    static SEEN: Shared<u64> = Shared::new(0);
    trap::on(0x80, |f| *SEEN.get() = f.rip);
    let after: u64;
    unsafe { asm!("int 0x80", "lea {}, [rip]", out(reg) after) };
    check_eq(*SEEN.get(), after - 7, "RIP is after the INT");
}

test!(gp_selector, "exc/gp_selector_error_code");
fn gp_selector() {
    expect(13, 0x1230, "a selector beyond the GDT", || unsafe { asm!("mov fs, {0:x}", in(reg) 0x1233u64) });
}

test!(gp_idt_limit, "exc/gp_idt_limit_error_code");
fn gp_idt_limit() {
    let base = trap::idt_address();
    let short = [0x3ffu16, base as u16, (base >> 16) as u16, 0, 0];
    unsafe { asm!("lidt [{}]", in(reg) &short) };
    expect(13, 0x80 * 8 + 2, "INT through a gate beyond the IDT", || unsafe { asm!("int 0x80") });
}

test!(gp_noncanonical, "exc/gp_non_canonical");
fn gp_noncanonical() {
    expect(13, 0, "load from a non-canonical address", || {
        mem::r64(0x8000_0000_0000_0000);
    });
}

test!(np, "exc/segment_not_present");
fn np() {
    unsafe { *trap::gdt_entry(0x28) = 0x0000_1300_0000_ffff };
    expect(11, 0x28, "a segment that is not present", || unsafe { asm!("mov fs, {0:x}", in(reg) 0x28u64) });
}

fn pf(va: u64, error: u64, what: &str, f: fn(u64)) {
    let c = expect(14, error, what, || f(va));
    check_eq(c.cr2, va, "CR2");
}
fn read(va: u64) {
    mem::r8(va);
}
fn write(va: u64) {
    mem::w8(va, 1);
}
fn fetch(va: u64) {
    let f: extern "C" fn() = unsafe { core::mem::transmute(va) };
    f()
}

test!(pf_codes, "exc/page_fault_error_codes");
fn pf_codes() {
    let p = mem::page();
    let va = FREE_VA + 0x5000;
    mem::map(va, p, 0);
    pf(va + 5, 0, "read, not present", read);
    pf(va + 6, 2, "write, not present", write);
    mem::map(va, p, P);
    read(va);
    pf(va + 7, 3, "write, read-only", write);
    mem::map(va, p, P | W | NX);
    write(va);
    pf(va, 0x11, "fetch, no-execute", fetch);
    mem::map(va, p, P | W);
    mem::w8(p, 0xc3);
    fetch(va);
}

test!(pf_reserved, "exc/page_fault_reserved_bit");
fn pf_reserved() {
    let va = FREE_VA + 0x5000;
    mem::map(va, mem::page() | 1 << 51, P | W);
    match catch(|| read(va)) {
        Some(c) if c.vector == 14 && c.error == 8 => {
            skip("this CPU (an emulator's) leaves P out of the error code")
        }
        Some(c) => {
            check_eq(c.vector, 14, "vector");
            check_eq(c.error, 9, "error code");
            check_eq(c.cr2, va, "CR2");
        }
        None => fail("no fault on a reserved bit"),
    }
}

test!(pf_not_flushed, "exc/page_present_without_invlpg");
fn pf_not_flushed() {
    // Making a page present needs no invalidation; the fault must not come twice.
    let va = FREE_VA + 0x9000;
    let e = mem::entry(va, 1);
    pf(va, 0, "not present", read);
    unsafe { e.write_volatile(mem::page() | 3) };
    read(va);
}

test!(dirty, "exc/accessed_dirty_bits");
fn dirty() {
    let va = FREE_VA + 0x7000;
    mem::map(va, mem::page(), 3);
    let e = mem::entry(va, 1);
    check_eq(unsafe { e.read_volatile() } & 0x60, 0, "before");
    read(va);
    check_eq(unsafe { e.read_volatile() } & 0x60, 0x20, "accessed");
    write(va);
    check_eq(unsafe { e.read_volatile() } & 0x60, 0x60, "dirty");
}

test!(ss, "exc/stack_fault");
fn ss() {
    let c = catch(|| unsafe {
        asm!("mov rax, 0x1000000000000000", "mov rcx, [rsp + rax]", out("rax") _, out("rcx") _)
    });
    match c.map(|c| c.vector) {
        Some(13) => skip("this CPU (an emulator's) raises #GP for the stack"),
        v => check_eq(v.unwrap_or(!0), 12, "load through RSP from a non-canonical address"),
    }
}

test!(ac, "exc/alignment_check");
fn ac() {
    // Only CPL 3 raises #AC.
    set_cr0(cr0() | 1 << 18);
    let c = user_code(&[0x9c, 0x80, 0x4c, 0x24, 0x02, 0x04, 0x9d, 0x8b, 0x44, 0x24, 0xf1, 0xcd, 0x03]);
    if c.vector == 3 {
        skip("this CPU (an emulator's) raises no #AC")
    }
    check_eq(c.vector, 17, "vector");
    check_eq(c.error, 0, "error code");
}

test!(tf, "exc/single_step");
fn tf() {
    step("nop", step_nop as *const () as u64, 0);
}

core::arch::global_asm!(
    // Each sets TF, runs one instruction and notes where the trap must point.
    ".macro STEP name, insn:vararg",
    ".globl \\name",
    "\\name:",
    "push rbx",
    "mov edx, 0x5000",
    "xor eax, eax",
    "xor ecx, ecx",
    "mov esi, 0xd0000000",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "\\insn",
    "nop",
    "ud2",
    ".quad 0",
    ".endm",
    "STEP step_nop, nop",
    "STEP step_cpuid, cpuid",
    "STEP step_in, in al, dx",
    "STEP step_out, out dx, al",
    "STEP step_mmio, mov eax, [rsi]",
    "STEP step_mmio_store, mov [rsi], eax",
    ".globl step_rdmsr",
    "step_rdmsr:",
    "push rbx",
    "mov ecx, 0x1b",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "rdmsr",
    "nop",
    "ud2",
    ".globl step_wbinvd",
    "STEP step_wbinvd, wbinvd",
    "STEP step_cr8, mov cr8, rax",
);
unsafe extern "C" {
    fn step_nop();
    fn step_cpuid();
    fn step_in();
    fn step_out();
    fn step_mmio();
    fn step_mmio_store();
    fn step_rdmsr();
    fn step_wbinvd();
    fn step_cr8();
}

/// Steps over the instruction before the only NOP in the code at `f`; the trap must point at that NOP.
fn step(what: &str, f: u64, late: u64) {
    let c = expect(1, 0, what, || {
        let f: extern "C" fn() = unsafe { core::mem::transmute(f) };
        f()
    });
    check_eq(c.dr6 & 0xf00f, 0x4000, "DR6.BS");
    let at = |rip: u64| unsafe { (rip as *const [u8; 3]).read_unaligned() };
    let next = if at(c.rip - late) == [0x90, 0x0f, 0x0b] { at(c.rip - late) } else { at(c.rip) };
    check(next == [0x90, 0x0f, 0x0b], "the trap does not come right after the instruction");
}

test!(step_t_cpuid, "exc/single_step_cpuid");
fn step_t_cpuid() {
    step("CPUID", step_cpuid as *const () as u64, 0);
}
test!(step_t_in, "exc/single_step_in_user");
fn step_t_in() {
    step("IN", step_in as *const () as u64, 0);
}
test!(step_t_out, "exc/single_step_out_user");
fn step_t_out() {
    step("OUT", step_out as *const () as u64, 0);
}
test!(step_t_mmio, "exc/single_step_mmio_read");
fn step_t_mmio() {
    step("MMIO load", step_mmio as *const () as u64, 0);
}
test!(step_t_mmio_store, "exc/single_step_mmio_write");
fn step_t_mmio_store() {
    // KVM loses the trap of a store that user space completes and takes it one instruction later.
    step("MMIO store", step_mmio_store as *const () as u64, 1);
}
test!(step_t_rdmsr, "exc/single_step_rdmsr");
fn step_t_rdmsr() {
    step("RDMSR", step_rdmsr as *const () as u64, 0);
}
test!(step_t_wbinvd, "exc/single_step_wbinvd");
fn step_t_wbinvd() {
    step("WBINVD", step_wbinvd as *const () as u64, 0);
}
test!(step_t_cr8, "exc/single_step_cr8_write");
fn step_t_cr8() {
    step("MOV CR8", step_cr8 as *const () as u64, 0);
}

test!(watch, "exc/data_breakpoint");
fn watch() {
    static WORD: Shared<u64> = Shared::new(0);
    let a = WORD.get() as *mut u64 as u64;
    set_dr6(0);
    set_dr0(a);
    set_dr7(0x402 | 0x9 << 16); // write, 4 bytes
    let c = expect(1, 0, "store to the watched word", || mem::w32(a, 1));
    check_eq(c.dr6 & 0xf, 1, "DR6.B0");
    set_dr7(0x400);
    mem::w32(a, 2);
}

test!(break_exec, "exc/instruction_breakpoint");
fn break_exec() {
    set_dr6(0);
    set_dr1(step_nop as *const () as u64);
    set_dr7(0x408);
    let c = expect(1, 0, "call of the function with a breakpoint", || unsafe { step_nop() });
    set_dr7(0x400);
    check_eq(c.rip, step_nop as *const () as u64, "RIP is at the instruction");
    check_eq(c.dr6 & 0xf, 2, "DR6.B1");
}

test!(double, "exc/double_fault");
fn double() {
    // A page fault whose delivery finds its gate not present.
    unsafe { *((trap::idt_address() + 14 * 16) as *mut u64) &= !(0x80 << 40) };
    match catch(|| mem::w8(FREE_VA, 1)).map(|c| c.vector) {
        Some(11) => skip("this CPU (an emulator's) does not combine #PF and #NP"),
        v => check_eq(v.unwrap_or(!0), 8, "#PF through a gate that is not present"),
    }
}

test!(double_gp, "exc/double_fault_gp");
fn double_gp() {
    unsafe { *((trap::idt_address() + 13 * 16) as *mut u64) &= !(0x80 << 40) };
    let c = catch(|| {
        mem::r64(0x8000_0000_0000_0000);
    });
    match c.map(|c| c.vector) {
        Some(11) => skip("this CPU (an emulator's) does not combine #GP and #NP"),
        v => check_eq(v.unwrap_or(!0), 8, "#GP through a gate that is not present"),
    }
}

test!(double_injected, "exc/double_fault_injected_gp");
fn double_injected() {
    // The #GP comes from the hypervisor (an unknown MSR), the second fault from the CPU.
    unsafe { *((trap::idt_address() + 13 * 16) as *mut u64) &= !(0x80 << 40) };
    match catch(|| wrmsr(0x1234_5678, 0)).map(|c| c.vector) {
        Some(11) => skip("this CPU (an emulator's) does not combine an injected #GP and #NP"),
        v => check_eq(v.unwrap_or(!0), 8, "an injected #GP through a gate that is not present"),
    }
}

test!(double_stack, "exc/double_fault_bad_stack");
fn double_stack() {
    // An exception whose frame cannot be written: #PF during delivery of #UD is no double fault, #PF during #PF is.
    expect(8, 0, "#PF with a stack that is not mapped", || unsafe {
        asm!("mov rsp, {}", "push rax", in(reg) FREE_VA + 0x10_0000, options(noreturn))
    });
}

test!(df_shutdown, "exc/no_double_fault_gate_is_shutdown");
fn df_shutdown() {
    host::expect_exit(8);
    for v in [8, 14] {
        unsafe { ((trap::idt_address() + v * 16) as *mut u64).write_volatile(0) };
    }
    mem::w8(FREE_VA, 1);
}

/// Runs machine code in CPL 3 on a page of its own with a stack page beside it.
fn user_code(code: &[u8]) -> trap::Caught {
    let (text, stack) = (mem::page(), mem::page());
    let va = FREE_VA + 0x20_0000;
    mem::map(va, text, P | U);
    mem::map(va + 0x1000, stack, P | W | U);
    unsafe { *(PML4 as *mut u64).add((va >> 39) as usize & 511) |= U };
    for (i, b) in code.iter().enumerate() {
        mem::w8(text + i as u64, *b);
    }
    trap::user(va, va + 0x1ff0, 0)
}

fn user_expect(code: &[u8], vector: u64, error: u64, what: &str) -> trap::Caught {
    let c = user_code(code);
    check_eq(c.vector, vector, what);
    check_eq(c.error, error, "error code");
    c
}

test!(user_int3, "exc/user_int3");
fn user_int3() {
    user_expect(&[0xcc], 3, 0, "INT3 at CPL 3");
}
test!(user_cli, "exc/user_privileged");
fn user_cli() {
    user_expect(&[0xfa], 13, 0, "CLI at CPL 3");
    user_expect(&[0xf4], 13, 0, "HLT at CPL 3");
    user_expect(&[0x0f, 0x20, 0xc0], 13, 0, "MOV from CR0 at CPL 3");
    user_expect(&[0x44, 0x0f, 0x20, 0xc0], 13, 0, "MOV from CR8 at CPL 3");
    user_expect(&[0x0f, 0x32], 13, 0, "RDMSR at CPL 3");
}
test!(user_port, "exc/user_port_without_bitmap");
fn user_port() {
    user_expect(&[0x66, 0xba, 0x00, 0x50, 0xec], 13, 0, "IN at CPL 3");
    user_expect(&[0x66, 0xba, 0x00, 0x50, 0xee], 13, 0, "OUT at CPL 3");
}
test!(user_mmio, "exc/user_page_faults");
fn user_mmio() {
    let c = user_expect(&[0xa0, 0, 0, 0, 0xd0, 0, 0, 0, 0], 14, 5, "supervisor page read at CPL 3");
    check_eq(c.cr2, 0xd000_0000, "CR2");
    let c = user_expect(&[0xa2, 0, 0, 0, 0, 0, 2, 0, 0], 14, 6, "missing page written at CPL 3");
    check_eq(c.cr2, 0x200_0000_0000, "CR2");
}
test!(user_cpuid, "exc/user_cpuid");
fn user_cpuid() {
    user_expect(&[0x31, 0xc0, 0x0f, 0xa2, 0xcc], 3, 0, "CPUID at CPL 3, then INT3");
}
test!(user_vmmcall, "exc/user_hypercall");
fn user_vmmcall() {
    // mov eax, 1; vmmcall; int3: refused with -EPERM, without a fault.
    let c = user_code(&[0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xcc]);
    check_eq(c.vector, 3, "VMMCALL at CPL 3");
}

test!(user_syscall, "exc/syscall_sysret");
fn user_syscall() {
    wrmsr(0xc000_0081, 0x28 << 48 | 0x08 << 32);
    wrmsr(0xc000_0082, sys_entry as *const () as u64);
    wrmsr(0xc000_0084, 0x200);
    // syscall; int3 with rax from the entry
    let c = user_expect(&[0x0f, 0x05, 0xcc], 3, 0, "INT3 after SYSCALL and SYSRET");
    check_eq(unsafe { (&raw const sys_count).read_volatile() }, 1, "entries");
    check(c.flags & 0x200 != 0, "IF restored by SYSRET");
}
core::arch::global_asm!(
    "sys_entry:",
    "inc qword ptr [rip + sys_count]",
    "push rbx",
    "push rcx",
    "xor eax, eax",
    "cpuid",
    "pop rcx",
    "pop rbx",
    "sysretq",
    ".pushsection .data",
    ".globl sys_count",
    "sys_count: .quad 0",
    ".popsection"
);
unsafe extern "C" {
    fn sys_entry();
    static sys_count: u64;
}

test!(tf_user, "exc/single_step_user");
fn tf_user() {
    // pushfq; or dword [rsp], 0x100; popfq; nop; nop
    let c = user_expect(&[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90], 1, 0, "TF at CPL 3");
    check_eq(c.rip & 0xfff, 10, "RIP after one instruction");
}

/// INT1 and where its handler came from, each time.
fn count_int1() -> &'static [u64; 2] {
    static SEEN: Shared<[u64; 2]> = Shared::new([0; 2]);
    trap::on(1, |f| {
        let seen = SEEN.get();
        *seen = [seen[0] + 1, f.rip];
    });
    SEEN.get()
}

test!(icebp, "exc/icebp");
fn icebp() {
    let c = expect(1, 0, "INT1", || unsafe { asm!(".byte 0xf1") });
    check_eq(mem::r8(c.rip - 1) as u64, 0xf1, "RIP is after the INT1");
    let seen = count_int1();
    let after: u64;
    unsafe { asm!(".byte 0xf1, 0xf1", "2:", "lea {}, [rip + 2b]", out(reg) after) };
    check_eq(seen[0], 2, "each is delivered once");
    check_eq(seen[1], after, "and RIP is after the second");
}

test!(icebp_user, "exc/user_icebp");
fn icebp_user() {
    // Its gate's DPL does not count.
    let c = user_expect(&[0xf1, 0x90, 0x90], 1, 0, "INT1 at CPL 3");
    check_eq(c.rip & 0xfff, 1, "RIP is after the INT1");
}

test!(icebp_shadow, "exc/icebp_in_shadows");
fn icebp_shadow() {
    let seen = count_int1();
    let after: u64;
    unsafe {
        asm!("mov ecx, ss", "mov ss, ecx", ".byte 0xf1", "sti", ".byte 0xf1", "2:", "cli", "lea {}, [rip + 2b]",
            out(reg) after, out("rcx") _)
    };
    check_eq(seen[0], 2, "each is delivered once");
    check_eq(seen[1], after, "RIP is after the second");
}

test!(frame, "exc/frame_contents");
fn frame() {
    static F: Shared<[u64; 4]> = Shared::new([0; 4]);
    fn note(f: &mut Frame) {
        *F.get() = [f.cs, f.ss, f.flags, f.rsp];
        f.rip += 2;
    }
    trap::on(6, note);
    let sp: u64;
    unsafe { asm!("std", "stc", "mov {0}, rsp", "ud2", "cld", out(reg) sp) };
    let f = F.get();
    check_eq(f[0], 8, "CS");
    check_eq(f[1], 0x10, "SS");
    check_eq(f[2] & 0x401, 0x401, "DF and CF in the pushed flags");
    check_eq(f[3], sp, "RSP");
}

test!(handler_exits, "exc/exits_inside_handlers");
fn handler_exits() {
    fn h(f: &mut Frame) {
        outb(PIO_RAM, 1);
        cpuid(0, 0);
        mem::w32(MMIO, 1);
        f.rip += 2;
    }
    trap::on(6, h);
    for _ in 0..10 {
        unsafe { asm!("ud2") };
    }
    check(catch(|| {}).is_none(), "nothing left over");
}
