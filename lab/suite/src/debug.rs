//! KVM_SET_GUEST_DEBUG: steps over every kind of exit, breakpoints, events given to the guest, and the guest's own debugging.
//!
//! Stock KVM forgets the step of an instruction that ends with a device write in user space, and runs on.

use crate::env::*;
use exitless_runner::kvm::nr;
use kvm_bindings::*;
use libc::EBUSY;

pub(crate) const TESTS: &[Test] = &[
    ("debug/capabilities", capabilities),
    ("debug/steps_over_exits", steps_over_exits),
    ("debug/steps_in_protected_mode", steps_in_protected_mode),
    ("debug/steps_over_iterations", steps_over_iterations),
    ("debug/steps_over_halt", steps_over_halt),
    ("debug/steps_in_shadows", steps_in_shadows),
    ("debug/steps_hide_tf", steps_hide_tf),
    ("debug/steps_over_pushf", steps_over_pushf),
    ("debug/steps_with_interrupts_blocked", steps_with_interrupts_blocked),
    ("debug/breakpoints", breakpoints),
    ("debug/breakpoints_behind_exits", breakpoints_behind_exits),
    ("debug/watchpoints", watchpoints),
    ("debug/watchpoints_on_devices", watchpoints_on_devices),
    ("debug/registers_of_the_guest", registers_of_the_guest),
    ("debug/general_detect", general_detect),
    ("debug/software_breakpoint", software_breakpoint),
    ("debug/software_breakpoint_of_the_guest", software_breakpoint_of_the_guest),
    ("debug/inject", inject),
    ("debug/guests_own_breakpoints", guests_own_breakpoints),
    ("debug/guests_own_step", guests_own_step),
];

const ENABLE: u32 = 1;
const STEP: u32 = 2;
const SW_BP: u32 = 1 << 16;
const HW_BP: u32 = 1 << 17;
const INJECT_DB: u32 = 1 << 18;
const INJECT_BP: u32 = 1 << 19;
const BLOCKIRQ: u32 = 1 << 20;
const DB: u32 = 1;
const BP: u32 = 3;
const BS: u64 = 1 << 14;
const NEUTRAL: u64 = 0xffff_0ff0;
const NOP: u8 = 0x90;

fn control(g: &Small, control: u32) -> R {
    g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &kvm_guest_debug { control, ..Default::default() })?;
    Ok(())
}

/// Breakpoints in registers.
fn arm(g: &Small, db: [u64; 4], dr7: u64) -> R {
    let mut d = kvm_guest_debug { control: ENABLE | HW_BP, ..Default::default() };
    d.arch.debugreg[..4].copy_from_slice(&db);
    d.arch.debugreg[7] = dr7;
    g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &d)?;
    Ok(())
}

fn debug_exit(g: &Small) -> kvm_debug_exit_arch {
    // SAFETY: the callers saw the exit's reason.
    unsafe { g.vcpu.page().__bindgen_anon_1.debug.arch }
}

/// KVM_RUN that ends in this exit.
fn stops(g: &Small, exception: u32, pc: u64, what: &str) -> R {
    g.vcpu.run_to(KVM_EXIT_DEBUG)?;
    let a = debug_exit(g);
    same!((a.exception, a.pc), (exception, pc), "{what}");
    Ok(())
}

/// Device accesses are answered with whatever is there, until another exit.
fn run_over_devices(g: &Small) -> R {
    loop {
        g.vcpu.run()?;
        if ![KVM_EXIT_IO, KVM_EXIT_MMIO].contains(&g.vcpu.page().exit_reason) {
            return Ok(());
        }
    }
}

fn capabilities(e: &Env) -> R {
    let g = e.idle(Chips::None)?;
    same!(g.vm.cap(KVM_CAP_SET_GUEST_DEBUG), 1, "KVM_CAP_SET_GUEST_DEBUG");
    same!(g.vm.cap(KVM_CAP_SET_GUEST_DEBUG2), 0x1f_0003, "KVM_CAP_SET_GUEST_DEBUG2");
    Ok(())
}

/// An instruction in 16-bit code, and whether it ends with a write to user space's device.
type Instruction = (&'static str, &'static [u8], bool);

/// DS begins where no memory is.
const EXITING: &[Instruction] = &[
    ("cpuid", &[0x0f, 0xa2], false),
    ("rdmsr", &[0x0f, 0x32], false),
    ("wrmsr", &[0x0f, 0x30], false),
    ("wbinvd", &[0x0f, 0x09], false),
    ("pause", &[0xf3, 0x90], false),
    ("mov eax, cr0", &[0x0f, 0x20, 0xc0], false),
    ("mov cr4, ebx", &[0x0f, 0x22, 0xe3], false),
    ("mov eax, dr3", &[0x0f, 0x21, 0xd8], false),
    ("mov dr3, eax", &[0x0f, 0x23, 0xd8], false),
    ("in al, 0x10", &[0xe4, 0x10], false),
    ("out 0x10, al", &[0xe6, 0x10], false),
    ("in al, 0x21", &[0xe4, 0x21], false),
    ("out 0x21, al", &[0xe6, 0x21], false),
    ("mov ax, [0x20]", &[0xa1, 0x20, 0], false),
    ("mov [0x20], ax", &[0xa3, 0x20, 0], true),
    ("add [0x20], ax", &[0x01, 0x06, 0x20, 0], true),
    ("cmp [0x20], ax", &[0x39, 0x06, 0x20, 0], false),
    ("nop", &[NOP], false),
];

/// A guest at the instruction, with controllers in the kernel.
fn at(e: &Env, code: &[u8]) -> Result<Small, Stop> {
    let g = e.guest(Chips::Full, code)?;
    let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    s.ds.base = 0x20_0000;
    g.vcpu.fd.set(nr::SET_SREGS, &s)?;
    // MTRR_DEF_TYPE, which always exits.
    let mut r = g.vcpu.regs()?;
    r.rcx = 0x2ff;
    g.vcpu.fd.set(nr::SET_REGS, &r)?;
    Ok(g)
}

fn followed_by_nops(insn: &[u8]) -> Vec<u8> {
    let mut code = insn.to_vec();
    code.extend([NOP, NOP, NOP, 0xf4]);
    code
}

fn steps_over_exits(e: &Env) -> R {
    for (name, insn, forgotten) in EXITING {
        if *forgotten && !exitless() {
            continue;
        }
        let g = at(e, &followed_by_nops(insn))?;
        control(&g, ENABLE | STEP)?;
        run_over_devices(&g)?;
        same!(g.vcpu.page().exit_reason, KVM_EXIT_DEBUG, "exit reason of {name}");
        let behind = ENTRY + insn.len() as u64;
        let a = debug_exit(&g);
        // Without a breakpoint armed, stock KVM tells of matches with whatever some other guest left in DR0 to DR3.
        let dr6 = if exitless() { a.dr6 } else { a.dr6 & !0xf };
        same!((a.exception, a.pc, dr6), (DB, behind, NEUTRAL | BS), "{name}");
        let r = g.vcpu.regs()?;
        same!((r.rip, r.rflags & 0x100), (behind, 0), "registers behind {name}");
        let d: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
        same!((d.dr6, d.dr7), (NEUTRAL, 0x400), "the guest's DR6 and DR7 behind {name}");
        control(&g, ENABLE | STEP)?;
        stops(&g, DB, behind + 1, name)?;
    }
    Ok(())
}

/// Flat 32-bit code at the same place.
fn protected(g: &Small) -> R {
    let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    s.cr0 |= 1;
    let flat = |type_: u8, selector: u16| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    s.cs = flat(11, 8);
    for seg in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
        *seg = flat(3, 16);
    }
    g.vcpu.fd.set(nr::SET_SREGS, &s)?;
    Ok(())
}

/// Hypercalls there are in protected mode only.
fn steps_in_protected_mode(e: &Env) -> R {
    let intel = core::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu");
    let hypercall: &[u8] = if intel { &[0x0f, 0x01, 0xc1] } else { &[0x0f, 0x01, 0xd9] };
    for (name, insn) in [("hypercall", hypercall), ("cpuid", &[0x0f, 0xa2]), ("nop", &[NOP])] {
        let g = e.guest(Chips::Full, &followed_by_nops(insn))?;
        protected(&g)?;
        control(&g, ENABLE | STEP)?;
        stops(&g, DB, ENTRY + insn.len() as u64, name)?;
        control(&g, ENABLE | STEP)?;
        stops(&g, DB, ENTRY + insn.len() as u64 + 1, name)?;
    }
    Ok(())
}

/// REP: a stop for each iteration.
fn steps_over_iterations(e: &Env) -> R {
    if !exitless() {
        return skip("stock KVM takes several iterations for one step");
    }
    // mov cx, 3; then rep outsb, rep insb (ES:DI is memory), rep lodsb from a device.
    for (name, insn) in [("rep outsb", [0xf3, 0x6e]), ("rep insb", [0xf3, 0x6c]), ("rep lodsb", [0xf3, 0xac])]
    {
        let g = at(e, &followed_by_nops(&insn))?;
        if name == "rep outsb" {
            real_mode(&g.vcpu.fd, ENTRY)?;
            let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
            s.ds.base = 0;
            g.vcpu.fd.set(nr::SET_SREGS, &s)?;
        }
        let mut r = g.vcpu.regs()?;
        (r.rcx, r.rdx, r.rsi, r.rdi) = (3, 0x10, 0x3000, 0x3000);
        g.vcpu.fd.set(nr::SET_REGS, &r)?;
        control(&g, ENABLE | STEP)?;
        for (left, pc) in [(2, ENTRY), (1, ENTRY), (0, ENTRY + 2)] {
            run_over_devices(&g)?;
            same!(g.vcpu.page().exit_reason, KVM_EXIT_DEBUG, "exit reason of {name}, {left} left");
            same!((g.vcpu.regs()?.rcx, g.vcpu.regs()?.rip), (left, pc), "{name}");
        }
    }
    Ok(())
}

fn steps_over_halt(e: &Env) -> R {
    let g = e.guest(Chips::Full, &[0xf4, NOP])?;
    control(&g, ENABLE | STEP)?;
    stops(&g, DB, ENTRY + 1, "HLT")?;
    let m: kvm_mp_state = g.vcpu.fd.get(nr::GET_MP_STATE)?;
    same!(m.mp_state, KVM_MP_STATE_HALTED, "state");
    Ok(())
}

/// STI holds no trap back, MOV SS does.
fn steps_in_shadows(e: &Env) -> R {
    // sti; nop; nop; xor ax, ax; mov ss, ax; nop; nop
    let g = e.guest(Chips::None, &[0xfb, NOP, NOP, 0x31, 0xc0, 0x8e, 0xd0, NOP, NOP, 0xf4])?;
    control(&g, ENABLE | STEP)?;
    for (behind, what) in [(1, "sti"), (2, "nop"), (3, "nop"), (5, "xor"), (8, "mov ss and nop"), (9, "nop")]
    {
        stops(&g, DB, ENTRY + behind, what)?;
    }
    Ok(())
}

/// The guest's own TF under a debugger's step, and none of the debugger's behind it.
fn steps_hide_tf(e: &Env) -> R {
    // nop; cpuid; nop; out 0x10, al
    let g = e.guest(Chips::None, &[NOP, 0x0f, 0xa2, NOP, 0xe6, 0x10])?;
    control(&g, ENABLE | STEP)?;
    stops(&g, DB, ENTRY + 1, "nop")?;
    // Registers are written back as they are read.
    let r = g.vcpu.regs()?;
    g.vcpu.fd.set(nr::SET_REGS, &r)?;
    control(&g, ENABLE | STEP)?;
    stops(&g, DB, ENTRY + 3, "cpuid")?;
    control(&g, 0)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.regs()?.rflags & 0x100, 0, "TF");
    Ok(())
}

/// The flags that the guest pushes have its own TF, which is clear.
fn steps_over_pushf(e: &Env) -> R {
    if !exitless() {
        return skip("stock KVM leaves its TF on the guest's stack");
    }
    // pushf; pop ax; pushfd; pop eax
    for (insn, pop) in [(&[0x9c][..], &[0x58][..]), (&[0x66, 0x9c], &[0x66, 0x58])] {
        let g = e.guest(Chips::None, &[insn, pop, &[0xf4]].concat())?;
        control(&g, ENABLE | STEP)?;
        stops(&g, DB, ENTRY + insn.len() as u64, "pushf")?;
        stops(&g, DB, ENTRY + 2 * insn.len() as u64, "pop")?;
        same!(g.vcpu.regs()?.rax & 0x300, 0, "TF and IF on the stack");
    }
    Ok(())
}

fn steps_with_interrupts_blocked(e: &Env) -> R {
    // nop; cpuid; nop; nop; jmp $; NMIs go to 0:3000: out 0x99, al
    let g = e.guest(Chips::Full, &[NOP, 0x0f, 0xa2, NOP, NOP, 0xeb, 0xfe])?;
    g.mem.write(8, &[0x00, 0x30, 0, 0]);
    g.mem.write(0x3000, &[0xe6, 0x99]);
    g.vcpu.fd.call(nr::NMI, 0)?;
    for behind in [1, 3, 4, 5] {
        control(&g, ENABLE | STEP | BLOCKIRQ)?;
        stops(&g, DB, ENTRY + behind, "step")?;
    }
    control(&g, 0)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.io().0, 0x99, "port of the handler");
    Ok(())
}

/// Each register, and one that is not enabled.
fn breakpoints(e: &Env) -> R {
    for n in 0..4 {
        let g = e.guest(Chips::None, &[NOP, NOP, NOP, NOP, NOP, 0xf4])?;
        let mut db = [ENTRY + 1; 4];
        db[n] = ENTRY + 3;
        arm(&g, db, 0x400 | 2 << (2 * n))?;
        stops(&g, DB, ENTRY + 3, "breakpoint")?;
        let a = debug_exit(&g);
        same!((a.dr6, a.dr7), (NEUTRAL | 1 << n, 0x400 | 2 << (2 * n)), "DR6 and DR7 for DR{n}");
        let d: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
        same!((d.db, d.dr6, d.dr7), ([0; 4], NEUTRAL, 0x400), "the guest's");
        control(&g, ENABLE)?;
        g.vcpu.run_to(KVM_EXIT_HLT)?;
    }
    Ok(())
}

/// On the instruction behind one that KVM finished.
fn breakpoints_behind_exits(e: &Env) -> R {
    for (name, insn, _) in EXITING {
        let g = at(e, &followed_by_nops(insn))?;
        arm(&g, [ENTRY + insn.len() as u64, 0, 0, 0], 0x402)?;
        run_over_devices(&g)?;
        same!(g.vcpu.page().exit_reason, KVM_EXIT_DEBUG, "exit reason behind {name}");
        let a = debug_exit(&g);
        same!((a.exception, a.pc, a.dr6), (DB, ENTRY + insn.len() as u64, NEUTRAL | 1), "{name}");
    }
    Ok(())
}

/// mov [0x3004], ax; mov ax, [0x3008]: traps, by writes and by any access.
fn watchpoints(e: &Env) -> R {
    let code = [0xa3, 4, 0x30, 0xa1, 8, 0x30, NOP, 0xf4];
    for (at, kind, behind) in [(0x3004, 1u64, 3), (0x3004, 3, 3), (0x3008, 3, 6)] {
        let g = e.guest(Chips::None, &code)?;
        // DR2, two bytes.
        arm(&g, [0, 0, at, 0], 0x400 | 2 << 4 | (kind | 1 << 2) << 24)?;
        stops(&g, DB, ENTRY + behind, "watchpoint")?;
        same!(debug_exit(&g).dr6, NEUTRAL | 4, "DR6");
    }
    let g = e.guest(Chips::None, &code)?;
    arm(&g, [0, 0, 0x3008, 0], 0x400 | 2 << 4 | (1 | 1 << 2) << 24)?;
    g.vcpu.run_to(KVM_EXIT_HLT)
}

/// Of instructions that hardware does not finish: on memory that is a device, and on ports. Stock KVM has none there.
fn watchpoints_on_devices(e: &Env) -> R {
    if !exitless() {
        return skip("the emulator of stock KVM looks at no watchpoints");
    }
    const IO: u64 = 2;
    for (name, insn, kind, at) in [
        ("mov ax, [0x20]", &[0xa1, 0x20, 0][..], 3, 0x20_0021),
        ("mov [0x20], ax", &[0xa3, 0x20, 0], 1, 0x20_0020),
        ("add [0x20], ax", &[0x01, 0x06, 0x20, 0], 1, 0x20_0020),
        ("out 0x10, al", &[0xe6, 0x10], IO, 0x10),
        ("in al, 0x10", &[0xe4, 0x10], IO, 0x10),
        ("in al, 0x21", &[0xe4, 0x21], IO, 0x21),
    ] {
        let g = self::at(e, &followed_by_nops(insn))?;
        let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
        // CR4.DE.
        s.cr4 |= 8;
        g.vcpu.fd.set(nr::SET_SREGS, &s)?;
        arm(&g, [0, at, 0, 0], 0x400 | 2 << 2 | kind << 20)?;
        run_over_devices(&g)?;
        same!(g.vcpu.page().exit_reason, KVM_EXIT_DEBUG, "exit reason of {name}");
        let a = debug_exit(&g);
        same!((a.pc, a.dr6), (ENTRY + insn.len() as u64, NEUTRAL | 2), "{name}");
    }
    Ok(())
}

/// The guest reads and writes its own while the debugger's are in force.
fn registers_of_the_guest(e: &Env) -> R {
    // mov eax, dr1; mov dr0, eax; mov ebx, dr7; mov ecx, dr6; mov eax, 0x455; mov dr7, eax; nop; hlt
    let code: &[u8] = &[
        0x0f, 0x21, 0xc8, 0x0f, 0x23, 0xc0, 0x0f, 0x21, 0xfb, 0x0f, 0x21, 0xf1, 0x66, 0xb8, 0x55, 4, 0, 0,
        0x0f, 0x23, 0xf8, NOP, 0xf4,
    ];
    let g = e.guest(Chips::None, code)?;
    let mut d: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
    d.db = [0x1111, 0x2222, 0x3333, 0x4444];
    (d.dr6, d.dr7) = (NEUTRAL | BS, 0x700);
    g.vcpu.fd.set(nr::SET_DEBUGREGS, &d)?;
    arm(&g, [0, 0, 0, ENTRY + 21], 0x480)?;
    stops(&g, DB, ENTRY + 21, "breakpoint")?;
    same!(debug_exit(&g).dr6, NEUTRAL | 8, "DR6 of the exit");
    let r = g.vcpu.regs()?;
    same!((r.rbx, r.rcx), (0x700, NEUTRAL | BS), "DR7 and DR6 as the guest read them");
    let now: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
    same!((now.db, now.dr6, now.dr7), ([0x2222, 0x2222, 0x3333, 0x4444], NEUTRAL | BS, 0x455), "the guest's");
    Ok(())
}

/// DR7.GD of the debugger's stops the guest's accesses.
fn general_detect(e: &Env) -> R {
    for insn in [[0x0f, 0x21, 0xc0], [0x0f, 0x23, 0xc0], [0x0f, 0x21, 0xf8]] {
        let g = e.guest(Chips::None, &[NOP, insn[0], insn[1], insn[2], 0xf4])?;
        arm(&g, [0; 4], 0x2400)?;
        stops(&g, DB, ENTRY + 1, "MOV DR")?;
        same!(debug_exit(&g).dr6, NEUTRAL | 1 << 13, "DR6");
        control(&g, 0)?;
        g.vcpu.run_to(KVM_EXIT_HLT)?;
    }
    Ok(())
}

/// INT3 stops at itself; replaced by what was there, the guest goes on.
fn software_breakpoint(e: &Env) -> R {
    let g = e.guest(Chips::None, &[NOP, 0xcc, NOP, 0xf4])?;
    control(&g, ENABLE | SW_BP)?;
    for _ in 0..2 {
        stops(&g, BP, ENTRY + 1, "INT3")?;
        same!(g.vcpu.regs()?.rip, ENTRY + 1, "RIP");
    }
    g.mem.write(ENTRY + 1, &[NOP]);
    control(&g, ENABLE | STEP)?;
    stops(&g, DB, ENTRY + 2, "step")?;
    control(&g, ENABLE | SW_BP)?;
    g.vcpu.run_to(KVM_EXIT_HLT)
}

/// Vectors 1 and 3 go to a HLT each; where its frame returns to.
fn handlers(g: &Small) {
    g.mem.write(4, &[0x00, 0x31, 0, 0]);
    g.mem.write(12, &[0x00, 0x33, 0, 0]);
    g.mem.write(0x3100, &[0xf4]);
    g.mem.write(0x3300, &[0xf4]);
}

fn handled(g: &Small, vector: u64, returns_to: u64, what: &str) -> R {
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    in_handler(g, vector, returns_to, what)
}

fn in_handler(g: &Small, vector: u64, returns_to: u64, what: &str) -> R {
    let r = g.vcpu.regs()?;
    same!(r.rip, 0x3001 + (vector << 8), "RIP, {what}");
    let mut ip = [0; 2];
    g.mem.read(r.rsp, &mut ip);
    same!(u64::from(u16::from_le_bytes(ip)), returns_to, "where it returns to, {what}");
    Ok(())
}

/// User space gives an INT3 that it did not plant back to the guest.
fn software_breakpoint_of_the_guest(e: &Env) -> R {
    let g = e.guest(Chips::None, &[NOP, 0xcc, NOP, 0xf4])?;
    handlers(&g);
    control(&g, ENABLE | SW_BP)?;
    stops(&g, BP, ENTRY + 1, "INT3")?;
    let mut ev: kvm_vcpu_events = g.vcpu.fd.get(nr::GET_VCPU_EVENTS)?;
    (ev.exception.injected, ev.exception.nr, ev.exception.has_error_code) = (1, 3, 0);
    g.vcpu.fd.set(nr::SET_VCPU_EVENTS, &ev)?;
    handled(&g, 3, ENTRY + 2, "INT3")
}

fn inject(e: &Env) -> R {
    let g = e.guest(Chips::None, &[NOP, NOP, 0xf4])?;
    handlers(&g);
    let before: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
    control(&g, INJECT_DB)?;
    let again = kvm_guest_debug { control: INJECT_DB, ..Default::default() };
    errno!(g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &again), EBUSY, "a second one");
    handled(&g, 1, ENTRY, "#DB")?;
    let after: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
    same!(after.dr6, before.dr6, "DR6");
    // #BP is for an INT3 that user space heard of.
    let g = e.guest(Chips::None, &[NOP, 0xcc, 0xf4])?;
    handlers(&g);
    control(&g, ENABLE | SW_BP)?;
    stops(&g, BP, ENTRY + 1, "INT3")?;
    control(&g, INJECT_BP)?;
    handled(&g, 3, ENTRY + 2, "#BP")
}

/// Breakpoints of the guest's own, on the instruction behind one that KVM finished.
fn guests_own_breakpoints(e: &Env) -> R {
    for (name, insn, _) in EXITING {
        let behind = ENTRY + insn.len() as u64;
        let g = at(e, &followed_by_nops(insn))?;
        handlers(&g);
        // A loop instead of HLT, which would not come out: out 0x99, al.
        g.mem.write(0x3100, &[0xe6, 0x99]);
        let mut d: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
        (d.db[3], d.dr7) = (behind, 0x480);
        if insn.starts_with(&[0x0f, 0x21]) || insn.starts_with(&[0x0f, 0x23]) {
            // mov to DR3 and from it.
            (d.db, d.dr7) = ([behind, 0, 0, 0], 0x402);
        }
        g.vcpu.fd.set(nr::SET_DEBUGREGS, &d)?;
        run_to_handler(&g, name)?;
        let hit = if d.dr7 == 0x480 { 8 } else { 1 };
        let now: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
        same!((now.dr6, now.dr7), (NEUTRAL | hit, d.dr7), "DR6 and DR7 behind {name}");
        let mut ip = [0; 2];
        g.mem.read(g.vcpu.regs()?.rsp, &mut ip);
        same!(u64::from(u16::from_le_bytes(ip)), behind, "where #DB returns to, {name}");
    }
    Ok(())
}

/// Runs, past the instruction's own exits, until the handler of #DB says so at port 0x99.
fn run_to_handler(g: &Small, name: &str) -> R {
    loop {
        g.vcpu.run()?;
        let io = g.vcpu.page().exit_reason == KVM_EXIT_IO;
        if io && g.vcpu.io().0 == 0x99 {
            return Ok(());
        }
        ensure!(io || g.vcpu.page().exit_reason == KVM_EXIT_MMIO, "no #DB behind {name}");
    }
}

/// TF of the guest's own.
fn guests_own_step(e: &Env) -> R {
    for (name, insn, forgotten) in EXITING {
        if *forgotten && !exitless() {
            continue;
        }
        let behind = ENTRY + insn.len() as u64;
        let g = at(e, &followed_by_nops(insn))?;
        g.mem.write(4, &[0x00, 0x31, 0, 0]);
        g.mem.write(0x3100, &[0xe6, 0x99]);
        let mut r = g.vcpu.regs()?;
        r.rflags |= 0x100;
        g.vcpu.fd.set(nr::SET_REGS, &r)?;
        let mut d: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
        // BD stays until software clears it.
        d.dr6 |= 1 << 13;
        g.vcpu.fd.set(nr::SET_DEBUGREGS, &d)?;
        run_to_handler(&g, name)?;
        let now: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
        same!(now.dr6, NEUTRAL | BS | 1 << 13, "DR6 behind {name}");
        let mut ip = [0; 2];
        g.mem.read(g.vcpu.regs()?.rsp, &mut ip);
        same!(u64::from(u16::from_le_bytes(ip)), behind, "where #DB returns to, {name}");
    }
    Ok(())
}
