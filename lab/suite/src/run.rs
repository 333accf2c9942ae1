//! KVM_RUN as an ABI: exits and their completion, signals, immediate_exit, threads and processes.

use crate::env::*;
use exitless_runner::kvm::{Errno, nr, set_slot};
use kvm_bindings::*;
use libc::{EINTR, EINVAL, EIO};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("run/argument", argument),
    ("run/port_out", port_out),
    ("run/port_in", port_in),
    ("run/string_out", string_out),
    ("run/mmio_write", mmio_write),
    ("run/mmio_read", mmio_read),
    ("run/registers_changed_at_an_exit", change_at_exit),
    ("run/hlt", hlt),
    ("run/hlt_blocks_with_irqchip", hlt_blocks),
    ("run/shutdown", shutdown),
    ("run/fail_entry", fail_entry),
    ("run/immediate_exit", immediate),
    ("run/immediate_exit_completes_a_read", immediate_completes),
    ("run/immediate_exit_is_not_cleared", immediate_stays),
    ("run/signal", signal),
    ("run/signal_pending_before", signal_before),
    ("run/signal_mask", signal_mask),
    ("run/uninitialized_vcpu_blocks", uninitialized),
    ("run/fields_after_exits", fields),
    ("run/if_flag", if_flag),
    ("run/interrupt_window", window),
    ("run/interrupt_by_ioctl", interrupt),
    ("run/internal_error", internal_error),
    ("run/guest_debug_single_step", single_step),
    ("run/guest_debug_breakpoint", breakpoint),
    ("run/two_threads_one_vcpu", two_threads),
    ("run/moves_between_threads", moves),
    ("run/after_fork", after_fork),
    ("run/coalesced_mmio", coalesced),
    ("run/slot_added_between_runs", slot_between),
    ("run/tsc_goes_on", tsc_goes_on),
];

fn argument(e: &Env) -> R {
    let g = e.idle(Chips::None)?;
    errno!(g.vcpu.fd.call(nr::RUN, 1), EINVAL, "argument 1");
    Ok(())
}

fn port_out(e: &Env) -> R {
    // mov al, 0x5a; out 0x10, al; mov dx, 0x1234; mov ax, 0x6789; out dx, ax; hlt
    let g =
        e.guest(Chips::None, &[0xb0, 0x5a, 0xe6, 0x10, 0xba, 0x34, 0x12, 0xb8, 0x89, 0x67, 0xef, 0xf4])?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.io(), (0x10, 1, 1, 0x5a), "first");
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.io(), (0x1234, 2, 1, 0x6789), "second");
    g.vcpu.run_to(KVM_EXIT_HLT)
}

fn give(v: &Vcpu, b: &[u8]) {
    // SAFETY: called after an I/O exit.
    let offset = unsafe { v.page().__bindgen_anon_1.io.data_offset };
    v.map.write(offset, b);
}

fn port_in(e: &Env) -> R {
    // mov eax, -1; in al, 0x10; hlt
    let g = e.guest(Chips::None, &[0x66, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xe4, 0x10, 0xf4])?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let (port, size, direction, _) = g.vcpu.io();
    same!((port, size, direction), (0x10, 1, 0), "exit");
    give(&g.vcpu, &[0x42]);
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(g.vcpu.regs()?.rax, 0xffff_ff42, "rax");
    Ok(())
}

fn string_out(e: &Env) -> R {
    // mov si, 0x2000; mov cx, 10; mov dx, 0x99; cld; rep outsb; hlt
    let g = e.guest(Chips::None, &[0xbe, 0, 0x20, 0xb9, 10, 0, 0xba, 0x99, 0, 0xfc, 0xf3, 0x6e, 0xf4])?;
    g.mem.write(0x2000, b"0123456789");
    let mut got = Vec::new();
    loop {
        g.vcpu.run()?;
        if g.vcpu.page().exit_reason == KVM_EXIT_HLT {
            break;
        }
        same!(g.vcpu.page().exit_reason, KVM_EXIT_IO, "exit");
        // SAFETY: an I/O exit.
        let io = unsafe { g.vcpu.page().__bindgen_anon_1.io };
        same!((io.port, io.size, io.direction), (0x99, 1, 1), "exit");
        ensure!(io.count >= 1 && got.len() + io.count as usize <= 10, "count {}", io.count);
        let mut b = vec![0; io.count as usize];
        g.vcpu.map.read(io.data_offset, &mut b);
        got.extend(b);
    }
    same!(got, b"0123456789", "bytes");
    Ok(())
}

// mov ax, 0x8000; mov ds, ax; ...; reaches 0x80000 + offset; memory ends at 1 MiB, so DS base is set by the tests.
fn outside(g: &Small) -> R {
    let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    s.ds.base = 0x20_0000;
    g.vcpu.fd.set(nr::SET_SREGS, &s)?;
    Ok(())
}

fn mmio_write(e: &Env) -> R {
    // mov dword [0x10], 0x11223344; hlt
    let g = e.guest(Chips::None, &[0x66, 0xc7, 0x06, 0x10, 0, 0x44, 0x33, 0x22, 0x11, 0xf4])?;
    outside(&g)?;
    g.vcpu.run_to(KVM_EXIT_MMIO)?;
    // SAFETY: an MMIO exit.
    let m = unsafe { g.vcpu.page().__bindgen_anon_1.mmio };
    same!((m.phys_addr, m.len, m.is_write), (0x20_0010, 4, 1), "exit");
    same!(m.data[..4], [0x44, 0x33, 0x22, 0x11], "data");
    g.vcpu.run_to(KVM_EXIT_HLT)
}

fn mmio_read(e: &Env) -> R {
    // mov ax, [0x20]; hlt
    let g = e.guest(Chips::None, &[0xa1, 0x20, 0, 0xf4])?;
    outside(&g)?;
    g.vcpu.run_to(KVM_EXIT_MMIO)?;
    // SAFETY: an MMIO exit.
    let m = unsafe { &mut g.vcpu.page().__bindgen_anon_1.mmio };
    same!((m.phys_addr, m.len, m.is_write), (0x20_0020, 2, 0), "exit");
    m.data[..2].copy_from_slice(&[0x34, 0x12]);
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(g.vcpu.regs()?.rax, 0x1234, "rax");
    Ok(())
}

fn change_at_exit(e: &Env) -> R {
    // again: out 0x10, al; dec cx; jnz again; hlt
    let g = e.guest(Chips::None, &[0xe6, 0x10, 0x49, 0x75, 0xfb, 0xf4])?;
    let mut r = g.vcpu.regs()?;
    r.rcx = 100;
    g.vcpu.fd.set(nr::SET_REGS, &r)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    // Complete the access first, as the API asks.
    g.vcpu.page().immediate_exit = 1;
    errno!(g.vcpu.run(), EINTR, "completion");
    g.vcpu.page().immediate_exit = 0;
    let mut r = g.vcpu.regs()?;
    same!(r.rip, ENTRY + 2, "RIP is after the OUT");
    same!(r.rcx, 99, "rcx");
    r.rcx = 1;
    g.vcpu.fd.set(nr::SET_REGS, &r)?;
    g.vcpu.run_to(KVM_EXIT_HLT)
}

fn hlt(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xf4, 0xf4])?;
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(g.vcpu.regs()?.rip, ENTRY + 1, "RIP");
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(g.vcpu.regs()?.rip, ENTRY + 2, "RIP");
    Ok(())
}

extern "C" fn nothing(_: i32) {}

pub(crate) fn catch_signals() {
    // SAFETY: an empty handler without SA_RESTART.
    unsafe {
        let mut a: libc::sigaction = std::mem::zeroed();
        a.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &a, std::ptr::null_mut());
    }
}

/// Sends SIGUSR1 to the calling thread after a while, again and again until dropped.
pub(crate) struct Alarm(std::sync::Arc<AtomicBool>);
impl Alarm {
    pub(crate) fn new(first: Duration) -> Alarm {
        catch_signals();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        // SAFETY: no preconditions.
        let (me, flag) = (unsafe { libc::pthread_self() }, stop.clone());
        std::thread::spawn(move || {
            std::thread::sleep(first);
            while !flag.load(Ordering::SeqCst) {
                // SAFETY: the tests keep their thread until the alarm is dropped or the process ends.
                unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Alarm(stop)
    }
}
impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn hlt_blocks(e: &Env) -> R {
    let g = e.guest(Chips::Full, &[0xf4])?;
    let _a = Alarm::new(Duration::from_millis(50));
    let t = Instant::now();
    errno!(g.vcpu.run(), EINTR, "KVM_RUN");
    ensure!(t.elapsed() >= Duration::from_millis(40), "it did not block");
    let m: kvm_mp_state = g.vcpu.fd.get(nr::GET_MP_STATE)?;
    same!(m.mp_state, KVM_MP_STATE_HALTED, "state");
    Ok(())
}

fn shutdown(e: &Env) -> R {
    // lidt [0x2000] (zeros); ud2
    let g = e.guest(Chips::Full, &[0x0f, 0x01, 0x1e, 0, 0x20, 0x0f, 0x0b])?;
    g.vcpu.run_to(KVM_EXIT_SHUTDOWN)
}

/// A state that no instruction can bring about: VMX looks at it before each entry, SVM at other things.
fn fail_entry(e: &Env) -> R {
    const INVALID_GUEST_STATE: u64 = 1 << 31 | 33;
    if core::arch::x86_64::__cpuid(0).ebx != u32::from_le_bytes(*b"Genu") {
        return skip("VMRUN takes any code segment");
    }
    let g = e.guest(Chips::None, &[0xf4])?;
    let good: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    let mut bad = good;
    bad.cr0 |= 1;
    // CS as a data segment that cannot be written.
    bad.cs.type_ = 1;
    g.vcpu.fd.set(nr::SET_SREGS, &bad)?;
    for _ in 0..2 {
        g.vcpu.run_to(KVM_EXIT_FAIL_ENTRY)?;
        // SAFETY: the exit's reason says that this is the field in use.
        let fail = unsafe { g.vcpu.page().__bindgen_anon_1.fail_entry };
        same!(fail.hardware_entry_failure_reason, INVALID_GUEST_STATE, "reason");
        ensure!(fail.cpu < 64, "CPU {}", fail.cpu);
    }
    g.vcpu.fd.set(nr::SET_SREGS, &good)?;
    g.vcpu.run_to(KVM_EXIT_HLT)
}

fn immediate(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xf4])?;
    g.vcpu.page().immediate_exit = 1;
    errno!(g.vcpu.run(), EINTR, "KVM_RUN");
    same!(g.vcpu.regs()?.rip, ENTRY, "nothing ran");
    g.vcpu.page().immediate_exit = 0;
    g.vcpu.run_to(KVM_EXIT_HLT)
}

fn immediate_completes(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xe4, 0x10, 0xf4])?; // in al, 0x10; hlt
    g.vcpu.run_to(KVM_EXIT_IO)?;
    give(&g.vcpu, &[0x77]);
    g.vcpu.page().immediate_exit = 1;
    errno!(g.vcpu.run(), EINTR, "KVM_RUN");
    same!(g.vcpu.regs()?.rax & 0xff, 0x77, "the read is complete");
    same!(g.vcpu.regs()?.rip, ENTRY + 2, "RIP");
    // MMIO the same way: mov al, [0x20]; hlt
    let g = e.guest(Chips::None, &[0xa0, 0x20, 0, 0xf4])?;
    outside(&g)?;
    g.vcpu.run_to(KVM_EXIT_MMIO)?;
    // SAFETY: an MMIO exit.
    unsafe { g.vcpu.page().__bindgen_anon_1.mmio.data[0] = 0x66 };
    g.vcpu.page().immediate_exit = 1;
    errno!(g.vcpu.run(), EINTR, "KVM_RUN");
    same!(g.vcpu.regs()?.rax & 0xff, 0x66, "the load is complete");
    Ok(())
}

fn immediate_stays(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xf4])?;
    g.vcpu.page().immediate_exit = 1;
    for _ in 0..3 {
        errno!(g.vcpu.run(), EINTR, "KVM_RUN");
        same!(g.vcpu.page().immediate_exit, 1, "the field");
    }
    Ok(())
}

fn signal(e: &Env) -> R {
    let g = e.guest(Chips::Full, &[0xeb, 0xfe])?; // jmp $
    let _a = Alarm::new(Duration::from_millis(50));
    g.vcpu.page().exit_reason = 99;
    errno!(g.vcpu.run(), EINTR, "KVM_RUN");
    same!(g.vcpu.page().exit_reason, KVM_EXIT_INTR, "exit reason beside EINTR");
    Ok(())
}

fn signal_before(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xf4])?;
    catch_signals();
    // Blocked while it is sent, unblocked only by KVM_RUN's own mask.
    block(libc::SIGUSR1)?;
    // SAFETY: our own process.
    unsafe { libc::raise(libc::SIGUSR1) };
    let mask: [u32; 3] = [8, 0, 0];
    g.vcpu.fd.set(nr::SET_SIGNAL_MASK, &mask)?;
    g.vcpu.page().exit_reason = 99;
    errno!(g.vcpu.run(), EINTR, "KVM_RUN");
    same!(g.vcpu.page().exit_reason, KVM_EXIT_INTR, "exit reason");
    Ok(())
}

fn block(signal: i32) -> R {
    // SAFETY: a set of our own.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    Ok(())
}

fn signal_mask(e: &Env) -> R {
    let g = e.guest(Chips::Full, &[0xeb, 0xfe])?;
    block(libc::SIGUSR1)?;
    let _a = Alarm::new(Duration::from_millis(30));
    // Without a mask of its own KVM_RUN keeps the thread's: blocked. With an empty one the signal gets through.
    let mask: [u32; 3] = [8, 0, 0];
    g.vcpu.fd.set(nr::SET_SIGNAL_MASK, &mask)?;
    errno!(g.vcpu.run(), EINTR, "KVM_RUN");
    same!(g.vcpu.page().exit_reason, KVM_EXIT_INTR, "exit reason");
    Ok(())
}

fn uninitialized(e: &Env) -> R {
    let (s, vm) = e.vm_with_chips()?;
    let _bsp = vcpu(&s, &vm, 0)?;
    let ap = vcpu(&s, &vm, 1)?;
    let _a = Alarm::new(Duration::from_millis(50));
    let t = Instant::now();
    errno!(ap.run(), EINTR, "KVM_RUN of a vCPU that waits for SIPI");
    ensure!(t.elapsed() >= Duration::from_millis(40), "it did not block");
    let m: kvm_mp_state = ap.fd.get(nr::GET_MP_STATE)?;
    same!(m.mp_state, KVM_MP_STATE_UNINITIALIZED, "state");
    Ok(())
}

/// QEMU copies these back into the guest's state after every exit.
fn fields(e: &Env) -> R {
    let g = e.guest(Chips::Full, &[0xe6, 0x10, 0xe6, 0x10])?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.page().apic_base, 0xfee0_0900, "apic_base");
    same!(g.vcpu.page().cr8, 0, "cr8");
    same!(g.vcpu.page().if_flag, 0, "if_flag");
    same!(g.vcpu.page().flags & 1, 0, "SMM flag");
    let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    s.cr8 = 7;
    g.vcpu.fd.set(nr::SET_SREGS, &s)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.page().cr8, 7, "cr8");
    Ok(())
}

fn if_flag(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xfb, 0x90, 0xe6, 0x10, 0xfa, 0xe6, 0x10])?; // sti; nop; out; cli; out
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.page().if_flag, 1, "after STI");
    same!(g.vcpu.page().ready_for_interrupt_injection, 1, "ready");
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.page().if_flag, 0, "after CLI");
    same!(g.vcpu.page().ready_for_interrupt_injection, 0, "not ready");
    Ok(())
}

fn window(e: &Env) -> R {
    // out; sti; nop; nop; jmp $
    let g = e.guest(Chips::None, &[0xe6, 0x10, 0xfb, 0x90, 0x90, 0xeb, 0xfe])?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    g.vcpu.page().request_interrupt_window = 1;
    g.vcpu.run_to(KVM_EXIT_IRQ_WINDOW_OPEN)?;
    same!(g.vcpu.page().ready_for_interrupt_injection, 1, "ready");
    ensure!(g.vcpu.regs()?.rip >= ENTRY + 4, "after the shadow of STI");
    Ok(())
}

fn interrupt(e: &Env) -> R {
    // sti; nop; jmp $ -- vector 0x20 goes to 0:3000: hlt
    let g = e.guest(Chips::None, &[0xfb, 0x90, 0xeb, 0xfe])?;
    g.mem.write(0x80, &[0x00, 0x30, 0, 0]);
    g.mem.write(0x3000, &[0xf4]);
    let mut r = g.vcpu.regs()?;
    r.rflags |= 0x200;
    g.vcpu.fd.set(nr::SET_REGS, &r)?;
    g.vcpu.fd.set(nr::INTERRUPT, &0x20u32)?;
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(g.vcpu.regs()?.rip, 0x3001, "RIP");
    Ok(())
}

fn internal_error(e: &Env) -> R {
    // Code outside of memory: cs base beyond the slot.
    let g = e.guest(Chips::Full, &[0xf4])?;
    let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    s.cs.base = 0x20_0000;
    g.vcpu.fd.set(nr::SET_SREGS, &s)?;
    g.vcpu.run_to(KVM_EXIT_INTERNAL_ERROR)?;
    // SAFETY: the reason says which member is valid.
    let i = unsafe { g.vcpu.page().__bindgen_anon_1.internal };
    same!(i.suberror, KVM_INTERNAL_ERROR_EMULATION, "suberror");
    Ok(())
}

fn single_step(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0x90, 0x40, 0x90, 0xf4])?;
    if g.vm.cap(KVM_CAP_SET_GUEST_DEBUG) <= 0 {
        return skip("no KVM_CAP_SET_GUEST_DEBUG");
    }
    g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &kvm_guest_debug { control: 3, ..Default::default() })?;
    for i in 1..=3 {
        g.vcpu.run_to(KVM_EXIT_DEBUG)?;
        same!(g.vcpu.regs()?.rip, ENTRY + i, "RIP");
    }
    g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &kvm_guest_debug::default())?;
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(g.vcpu.regs()?.rflags & 0x100, 0, "TF does not stay");
    Ok(())
}

fn breakpoint(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0x90, 0x40, 0x90, 0xf4])?;
    if g.vm.cap(KVM_CAP_SET_GUEST_DEBUG) <= 0 {
        return skip("no KVM_CAP_SET_GUEST_DEBUG");
    }
    let mut d = kvm_guest_debug { control: 0x2_0001, ..Default::default() };
    d.arch.debugreg[0] = ENTRY + 2;
    d.arch.debugreg[7] = 0x402;
    g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &d)?;
    g.vcpu.run_to(KVM_EXIT_DEBUG)?;
    // SAFETY: a debug exit.
    let a = unsafe { g.vcpu.page().__bindgen_anon_1.debug.arch };
    same!((a.exception, a.pc), (1, ENTRY + 2), "exit");
    Ok(())
}

/// A second KVM_RUN on the same vCPU waits for the first; both end.
fn two_threads(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xe6, 0x10, 0xeb, 0xfc])?; // again: out; jmp again
    let fd = &g.vcpu.fd;
    std::thread::scope(|s| {
        let t: Vec<_> =
            (0..4).map(|_| s.spawn(move || (0..200).all(|_| fd.call(nr::RUN, 0) == Ok(0)))).collect();
        for t in t {
            ensure!(t.join().unwrap_or(false), "a KVM_RUN failed");
        }
        Ok(())
    })
}

fn moves(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0x40, 0xe6, 0x10, 0xeb, 0xfb])?; // again: inc ax; out; jmp again
    let fd = &g.vcpu.fd;
    for _ in 0..50 {
        let r = std::thread::scope(|s| s.spawn(move || fd.call(nr::RUN, 0)).join());
        ensure!(matches!(r, Ok(Ok(0))), "{r:?}");
    }
    same!(g.vcpu.regs()?.rax, 50, "rounds");
    Ok(())
}

/// The descriptors of another process' VM answer EIO.
fn after_fork(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let (vm, vcpu) = (g.vm.raw(), g.vcpu.fd.raw());
    // SAFETY: one thread; the child only makes system calls and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut r = kvm_regs::default();
        let c = |fd, n, a| exitless_runner::kvm::ioctl(fd, n, a) == Err(Errno(EIO));
        let ok = c(vm, nr::CREATE_VCPU, 1) && c(vcpu, nr::RUN, 0) && c(vcpu, nr::GET_REGS, &raw mut r as u64);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if ok { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    same!(status, 0, "the child got something else than EIO");
    g.vcpu.regs()?; // the parent goes on
    Ok(())
}

fn coalesced(e: &Env) -> R {
    // mov byte [0x10], 1; mov byte [0x11], 2; hlt
    let g = e.guest(Chips::None, &[0xc6, 0x06, 0x10, 0, 1, 0xc6, 0x06, 0x11, 0, 2, 0xf4])?;
    if g.vm.cap(KVM_CAP_COALESCED_MMIO) <= 0 {
        return skip("no KVM_CAP_COALESCED_MMIO");
    }
    outside(&g)?;
    let z = kvm_coalesced_mmio_zone { addr: 0x20_0000, size: 4096, ..Default::default() };
    g.vm.set(nr::REGISTER_COALESCED_MMIO, &z)?;
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    let ring = g.vm.cap(KVM_CAP_COALESCED_MMIO) as u64 * 4096;
    let heads = g.vcpu.map.word(ring);
    same!((heads as u32, (heads >> 32) as u32), (0, 2), "first and last of the ring");
    // Entries of 24 bytes: address, length, padding, data.
    same!(g.vcpu.map.word(ring + 8), 0x20_0010, "address of the first");
    same!(g.vcpu.map.word(ring + 8 + 24), 0x20_0011, "address of the second");
    same!(g.vcpu.map.word(ring + 8 + 24 + 16) & 0xff, 2, "data of the second");
    Ok(())
}

fn slot_between(e: &Env) -> R {
    // again: mov al, [0x20]; out 0x10, al; jmp again
    let g = e.guest(Chips::None, &[0xa0, 0x20, 0, 0xe6, 0x10, 0xeb, 0xf9])?;
    outside(&g)?;
    g.vcpu.run_to(KVM_EXIT_MMIO)?;
    // SAFETY: an MMIO exit.
    unsafe { g.vcpu.page().__bindgen_anon_1.mmio.data[0] = 1 };
    g.vcpu.run_to(KVM_EXIT_IO)?;
    g.mem.write(0x5020, &[0x33]);
    set_slot(&g.vm, 1, 0, 0x20_0000, 4096, g.mem.addr() + 0x5000)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(g.vcpu.io().3, 0x33, "read from the new slot");
    set_slot(&g.vm, 1, 0, 0, 0, 0)?;
    g.vcpu.run_to(KVM_EXIT_MMIO)
}

fn tsc_goes_on(e: &Env) -> R {
    // again: rdtsc; mov [0x2000], eax; mov [0x2004], edx; out 0x10, al; jmp again
    let g = e.guest(
        Chips::None,
        &[0x0f, 0x31, 0x66, 0xa3, 0, 0x20, 0x66, 0x89, 0x16, 0x04, 0x20, 0xe6, 0x10, 0xeb, 0xf1],
    )?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let a = g.mem.word(0x2000);
    std::thread::sleep(Duration::from_millis(20));
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let d = g.mem.word(0x2000).wrapping_sub(a);
    let khz = g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)? as u64;
    ensure!(d >= khz * 19, "20 ms became {d} ticks at {khz} kHz");
    Ok(())
}
