//! Interrupts and exceptions of the guest: handlers by vector, and *catching* a trap around a call.
//!
//! `catch(f)` runs `f` and gives back the first exception that it raised, with its error code and CR2, resuming after
//! the call as if `f` had returned. Interrupt handlers are set by `on(vector, f)`.
#![allow(dead_code)]

use crate::config::MAX_CPUS;
use crate::cpu::{self, cr2};
use crate::report;
use core::cell::UnsafeCell;

/// What the stubs push, lowest address first.
#[repr(C)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub flags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// A caught exception.
#[derive(Clone, Copy, Default)]
pub struct Caught {
    pub vector: u64,
    pub error: u64,
    pub cr2: u64,
    pub rip: u64,
    pub flags: u64,
    pub dr6: u64,
}

/// A value shared by all CPUs of the guest; tests synchronise by themselves.
pub struct Shared<T>(UnsafeCell<T>);
// SAFETY: a micro guest orders its own accesses; nothing here is more than plain memory.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    pub const fn new(v: T) -> Self {
        Shared(UnsafeCell::new(v))
    }
    #[allow(clippy::mut_from_ref)]
    pub fn get(&self) -> &mut T {
        // SAFETY: see above; the references are short-lived.
        unsafe { &mut *self.0.get() }
    }
}

#[derive(Clone, Copy)]
struct PerCpu {
    catch_rsp: u64,
    catching: bool,
    caught: Caught,
}

static CPUS: Shared<[PerCpu; MAX_CPUS]> = Shared::new(
    [PerCpu {
        catch_rsp: 0,
        catching: false,
        caught: Caught { vector: 0, error: 0, cr2: 0, rip: 0, flags: 0, dr6: 0 },
    }; MAX_CPUS],
);
static HANDLERS: Shared<[Option<fn(&mut Frame)>; 256]> = Shared::new([None; 256]);

/// The 64-bit task state segments; IST1 serves #DF, IST2 is free for tests.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct Tss {
    _0: u32,
    pub rsp0: u64,
    _1: [u64; 3],
    pub ist: [u64; 7],
    _2: u64,
    _3: u16,
    iomap: u16,
}
#[repr(C, align(16))]
struct Stack([u8; 16384]);
static TSS: Shared<[Tss; MAX_CPUS]> =
    Shared::new([Tss { _0: 0, rsp0: 0, _1: [0; 3], ist: [0; 7], _2: 0, _3: 0, iomap: 104 }; MAX_CPUS]);
static IST: Shared<[[Stack; 3]; MAX_CPUS]> = Shared::new([const { [const { Stack([0; 16384]) }; 3] }; MAX_CPUS]);

unsafe extern "C" {
    static trap_stubs: u8;
    static mut idt: [[u64; 2]; 256];
    static mut gdt: [u64; 8 + 2 * MAX_CPUS];
    fn catch_call(f: extern "C" fn(u64), arg: u64, rsp: *mut u64) -> u64;
    fn user_call(rip: u64, rsp: u64, rax: u64, keep: *mut u64) -> u64;
    fn catch_landing();
}

pub fn tss(cpu: usize) -> &'static mut Tss {
    &mut TSS.get()[cpu % MAX_CPUS]
}

/// Address of one entry of the GDT.
pub fn gdt_entry(selector: u16) -> *mut u64 {
    unsafe { (&raw mut gdt as *mut u64).add(selector as usize / 8) }
}

pub fn idt_address() -> u64 {
    &raw const idt as u64
}

/// Writes a gate: handler address, type (0xe interrupt, 0xf trap), DPL and IST.
pub fn set_gate(vector: usize, handler: u64, kind: u64, dpl: u64, ist: u64) {
    let lo = handler & 0xffff
        | 0x08 << 16
        | ist << 32
        | (0x80 | dpl << 5 | kind) << 40
        | (handler >> 16 & 0xffff) << 48;
    unsafe { idt[vector & 255] = [lo, handler >> 32] }
}

/// The stub of a vector, for a test that changes a gate and wants it back.
pub fn stub(vector: usize) -> u64 {
    // Every stub takes 16 bytes: at most two pushes (5 + 2) and a jump (5).
    &raw const trap_stubs as u64 + 16 * vector as u64
}

pub fn init() {
    for v in 0..256 {
        set_gate(v, stub(v), 0xe, if v == 3 || v == 4 { 3 } else { 0 }, if v == 8 { 1 } else { 0 });
    }
    for cpu in 0..MAX_CPUS {
        let t = tss(cpu);
        for (i, s) in IST.get()[cpu].iter().enumerate() {
            t.ist[i] = s as *const _ as u64 + 16384;
        }
        t.rsp0 = IST.get()[cpu][2].0.as_ptr() as u64 + 16384;
        let base = t as *const _ as u64;
        let d = gdt_entry(0x40 + 16 * cpu as u16);
        unsafe {
            // CPU 0 loaded its task register from the empty descriptor's place only after this; see below.
            *d = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
            *d.add(1) = base >> 32;
        }
    }
    load_tr(0);
}

/// Loads the task register of a CPU.
pub fn load_tr(cpu: usize) {
    let sel = 0x40 + 16 * cpu as u16;
    unsafe {
        *gdt_entry(sel) &= !(2 << 40);
        core::arch::asm!("ltr {0:x}", in(reg) sel);
    }
}

/// Sets the handler of a vector. Interrupt handlers do their own EOI.
pub fn on(vector: u8, f: fn(&mut Frame)) {
    HANDLERS.get()[vector as usize] = Some(f);
}

pub fn off(vector: u8) {
    HANDLERS.get()[vector as usize] = None;
}

extern "C" fn trampoline<F: FnMut()>(f: u64) {
    // SAFETY: `catch` passes the address of its own closure.
    unsafe { (*(f as *mut F))() }
}

/// Runs `f`; returns the exception that ended it, if any. Values live in `f` at that point are lost.
pub fn catch<F: FnMut()>(mut f: F) -> Option<Caught> {
    let me = &mut CPUS.get()[cpu::index()];
    me.catching = true;
    // SAFETY: the landing restores what the callee saved; `f` borrows nothing that a skipped rest would break.
    let r = unsafe { catch_call(trampoline::<F>, &raw mut f as u64, &raw mut me.catch_rsp) };
    me.catching = false;
    (r != 0).then_some(me.caught)
}

/// Enters CPL 3 at `rip` with `rsp` and `rax`; returns the exception (or INT) that came back.
pub fn user(rip: u64, rsp: u64, rax: u64) -> Caught {
    let me = &mut CPUS.get()[cpu::index()];
    me.catching = true;
    // SAFETY: every trap from user mode comes back through the landing.
    unsafe { user_call(rip, rsp, rax, &raw mut me.catch_rsp) };
    me.catching = false;
    me.caught
}

/// Catches and compares: the exception must be this vector with this error code.
pub fn expect<F: FnMut()>(vector: u64, error: u64, what: &str, f: F) -> Caught {
    match catch(f) {
        None => report::fail_eq(what, !0, vector),
        Some(c) => {
            if c.vector != vector {
                report::fail_eq(what, c.vector, vector)
            }
            if c.error != error {
                report::log("error code of ");
                report::fail_eq(what, c.error, error)
            }
            c
        }
    }
}

/// Like `expect` for checks that emulated CPUs are known to leave out: no exception means skipped.
pub fn expect_or_skip<F: FnMut()>(vector: u64, error: u64, what: &str, f: F) {
    match catch(f) {
        None => {
            report::log("this CPU (an emulator's) does not check: ");
            report::skip(what)
        }
        Some(c) => {
            report::check_eq(c.vector, vector, what);
            report::check_eq(c.error, error, "error code");
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn trap_handler(frame: &mut Frame) {
    if let Some(h) = HANDLERS.get()[frame.vector as usize & 255] {
        return h(frame);
    }
    let me = &mut CPUS.get()[cpu::index()];
    if me.catching && (frame.vector < 32 || frame.cs & 3 == 3) {
        me.caught = Caught {
            vector: frame.vector,
            error: frame.error,
            cr2: cr2(),
            rip: frame.rip,
            flags: frame.flags,
            dr6: if frame.vector == 1 { cpu::dr6() } else { 0 },
        };
        frame.rip = catch_landing as *const () as u64;
        frame.rsp = me.catch_rsp;
        frame.cs = 0x08;
        frame.ss = 0x10;
        frame.flags &= !0x5_0500; // no TF, DF, RF, AC
        frame.flags &= if frame.vector < 32 { !0 } else { !0x200 };
        return;
    }
    report::log_num("unexpected vector ", frame.vector);
    report::log_num(" error ", frame.error);
    report::log_num(" rip ", frame.rip);
    report::log_num(" cr2 ", cr2());
    report::exit(report::FAIL)
}
