//! What a guest and its VMM must leave alone on the host: registers, breakpoints, tables and accounts of the thread that
//! runs the vCPU.

use crate::env::*;
use exitless_runner::kvm::{self, nr};
use kvm_bindings::*;
use std::arch::{asm, x86_64};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("host/tsc_aux", tsc_aux),
    ("host/breakpoint", breakpoint),
    ("host/ldt_changed_during_a_run", ldt),
    ("host/guest_time", guest_time),
    ("host/timer_comes_along", timer),
    ("host/perf_samples_of_guest_kernel", |e| perf_samples(e, 0, GUEST_KERNEL)),
    ("host/perf_samples_of_guest_user", |e| perf_samples(e, 3, GUEST_USER)),
];

/// IA32_TSC_AUX.
const TSC_AUX: u32 = 0xc000_0103;
/// `jmp $`
const SPIN: [u8; 2] = [0xeb, 0xfe];

fn stay_on_this_cpu() -> R {
    // SAFETY: asks for a number.
    go_to_cpu(unsafe { libc::sched_getcpu() }.max(0) as usize)
}

fn go_to_cpu(cpu: usize) -> R {
    // SAFETY: an all-zero set is valid; the calls fill and read it.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// What RDTSCP says beside the time: the kernel's number of this CPU, on which getcpu() rests.
fn host_aux() -> u32 {
    let mut aux = 0;
    // SAFETY: the caller saw RDTSCP in CPUID.
    unsafe { x86_64::__rdtscp(&mut aux) };
    aux
}

/// KVM_SET_MSRS once wrote the CPU's register although no guest was loaded: every program on that CPU then had a wrong
/// CPU number.
fn tsc_aux(e: &Env) -> R {
    if x86_64::__cpuid(0x8000_0001).edx & (1 << 27) == 0 {
        return skip("no RDTSCP");
    }
    stay_on_this_cpu()?;
    let g = e.guest(Chips::None, &[0xf4, 0xf4])?;
    let before = host_aux();
    if !kvm::set_msr(&g.vcpu.fd, TSC_AUX, 0x5_1234)? {
        return skip("the guest has no TSC_AUX");
    }
    same!(host_aux(), before, "after KVM_SET_MSRS");
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(host_aux(), before, "after a run");
    same!(kvm::get_msr(&g.vcpu.fd, TSC_AUX)?, Some(0x5_1234), "the guest's");
    Ok(())
}

/// `struct perf_event_attr` up to `bp_len` (PERF_ATTR_SIZE_VER1).
#[repr(C)]
#[derive(Default)]
struct PerfAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    bp_addr: u64,
    bp_len: u64,
}

const PERF_TYPE_BREAKPOINT: u32 = 5;
const EXCLUDE_KERNEL_AND_HYPERVISOR: u64 = 1 << 5 | 1 << 6;
const HW_BREAKPOINT_W: u32 = 2;

static WATCHED: AtomicU64 = AtomicU64::new(0);

/// Counts writes to `WATCHED` by this thread.
fn watch() -> Result<kvm::Fd, Stop> {
    let attr = PerfAttr {
        kind: PERF_TYPE_BREAKPOINT,
        size: size_of::<PerfAttr>() as u32,
        flags: EXCLUDE_KERNEL_AND_HYPERVISOR,
        bp_type: HW_BREAKPOINT_W,
        bp_addr: WATCHED.as_ptr() as u64,
        bp_len: 8,
        ..Default::default()
    };
    // SAFETY: perf_event_open reads the attributes and makes a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &attr, 0, -1, -1, 0) };
    if fd < 0 {
        return skip(&format!("no breakpoint events: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: a new descriptor.
    Ok(unsafe { kvm::Fd::from_raw(fd as i32) })
}

fn hits(fd: &kvm::Fd) -> Result<u64, Stop> {
    let mut n = 0u64;
    // SAFETY: n is 8 writable bytes.
    let got = unsafe { libc::read(fd.raw(), (&raw mut n).cast(), 8) };
    if got == 8 { Ok(n) } else { Err(std::io::Error::last_os_error().into()) }
}

/// Each #VMEXIT switches breakpoints off: the debugger of a vCPU's thread went blind after its first slice. And the guest's
/// addresses must never be armed in the host.
fn breakpoint(e: &Env) -> R {
    stay_on_this_cpu()?;
    let event = watch()?;
    WATCHED.store(1, Ordering::Relaxed);
    if hits(&event)? != 1 {
        return skip("breakpoints do not fire here");
    }
    for guest_has_its_own in [false, true] {
        let g = e.guest(Chips::None, &[0xf4, 0xf4])?;
        if guest_has_its_own {
            let mut d: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
            (d.db[0], d.dr7) = (ENTRY + 0x500, 0x402);
            g.vcpu.fd.set(nr::SET_DEBUGREGS, &d)?;
        }
        let before = hits(&event)?;
        g.vcpu.run_to(KVM_EXIT_HLT)?;
        WATCHED.store(2, Ordering::Relaxed);
        same!(hits(&event)?, before + 1, "hits after a run, guest's own: {guest_has_its_own}");
    }
    Ok(())
}

extern "C" fn nothing(_: i32) {}

/// Signals that end KVM_RUN and nothing else.
fn catch(signal: i32) {
    // SAFETY: an all-zero action with a handler that does nothing; without SA_RESTART calls end with EINTR.
    unsafe {
        let mut a: libc::sigaction = std::mem::zeroed();
        a.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(signal, &a, std::ptr::null_mut());
    }
}

/// Installs a present data segment as entry `number` of this process's LDT.
fn set_ldt(number: u32) -> bool {
    // entry_number, base_addr, limit, flags: 32 bit, limit in pages, usable.
    let entry = [number, 0u32, 0xf_ffff, 1 | 1 << 4 | 1 << 6];
    const WRITE: i32 = 0x11;
    // SAFETY: modify_ldt reads the structure.
    unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, entry.as_ptr(), size_of_val(&entry)) == 0 }
}

/// Does this CPU find LDT entry `number`?
fn has_ldt(number: u16) -> bool {
    let found: u8;
    // SAFETY: LAR reads a descriptor's rights or clears ZF; it changes nothing else.
    unsafe {
        asm!("lar {rights:e}, {selector:e}", "setz {found}",
            selector = in(reg) u32::from(number << 3 | 7), rights = out(reg) _, found = out(reg_byte) found,
            options(nomem, nostack));
    }
    found != 0
}

/// VMLOAD after an exit brings back the table register that was saved when the thread came to this CPU. Another thread
/// that installs a bigger table meanwhile frees the old one: its memory must not be this thread's table any more.
fn ldt(e: &Env) -> R {
    if !set_ldt(0) || !has_ldt(0) {
        return skip("no LDT here");
    }
    catch(libc::SIGUSR1);
    let g = e.guest(Chips::None, &SPIN)?;
    let runner = AtomicI32::new(0);
    let seen = std::thread::scope(|s| {
        let thread = s.spawn(|| {
            // SAFETY: asks for a number.
            runner.store(unsafe { libc::gettid() }, Ordering::Release);
            let r = g.vcpu.run();
            (r.is_err(), has_ldt(0), has_ldt(1000))
        });
        while runner.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(300));
        let installed = set_ldt(1000);
        std::thread::sleep(Duration::from_millis(300));
        while !thread.is_finished() {
            // SAFETY: a signal with a handler.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), runner.load(Ordering::Relaxed), libc::SIGUSR1)
            };
            std::thread::sleep(Duration::from_millis(50));
        }
        (installed, thread.join())
    });
    let (true, Ok((interrupted, first, second))) = seen else { return skip("the LDT did not grow") };
    ensure!(interrupted, "the run ended by itself");
    if (first, second) == (true, false) && !exitless() {
        // Stock KVM on SVM saves the host's state when the thread is loaded and brings back the old table after each exit.
        return skip("this KVM brings back a freed LDT");
    }
    same!((first, second), (true, true), "entries 0 and 1000 in the thread that ran the vCPU");
    Ok(())
}

/// Guest time of this process in clock ticks: field 43 of /proc/self/stat.
fn guest_ticks() -> Result<u64, Stop> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let mut fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    Ok(fields.nth(40).and_then(|f| f.parse().ok()).unwrap_or(0))
}

/// Time in the guest is the guest's, not the system's: `top` and steal-time accounting live on it.
fn guest_time(e: &Env) -> R {
    catch(libc::SIGALRM);
    let g = e.guest(Chips::None, &SPIN)?;
    let (before, start) = (guest_ticks()?, Instant::now());
    // SAFETY: one signal to this process in two seconds.
    unsafe { libc::alarm(2) };
    errno!(g.vcpu.run(), libc::EINTR, "the alarm");
    let (ticks, passed) = (guest_ticks()? - before, start.elapsed());
    // Ticks are hundredths; a loaded host may give the thread half of the time.
    let most = passed.as_millis() as u64 / 10 + 2;
    ensure!(ticks * 4 >= most.min(200) && ticks <= most, "{ticks} ticks of guest time in {passed:?}");
    Ok(())
}

/// A register of the APIC's page: the spurious vector, the timer's entry, divider, initial and current count; a word of IRR.
fn apic_register(l: &mut kvm_lapic_state, at: usize) -> &mut [std::ffi::c_char] {
    &mut l.regs[at..at + 4]
}

/// The host's timer behind the APIC's fires on the CPU where the vCPU's thread is. It used to fire where it was armed, and
/// each thread that had moved since got an IPI from there besides.
fn timer(e: &Env) -> R {
    const VECTOR: u8 = 0x41;
    catch(libc::SIGALRM);
    if std::thread::available_parallelism()?.get() < 2 {
        return skip("one CPU");
    }
    go_to_cpu(0)?;
    // out 0x10, al; jmp $
    let g = e.guest(Chips::Full, &[0xe6, 0x10, 0xeb, 0xfe])?;
    let mut l: kvm_lapic_state = g.vcpu.fd.get(nr::GET_LAPIC)?;
    // Half a second, once, at the 1 GHz that KVM's APIC timers count by; divided by one.
    let half = 500_000_000;
    for (at, value) in [(0xf0, 0x1ff), (0x320, u32::from(VECTOR)), (0x3e0, 0xb), (0x380, half), (0x390, half)]
    {
        apic_register(&mut l, at).copy_from_slice(&value.to_le_bytes().map(|b| b as std::ffi::c_char));
    }
    g.vcpu.fd.set(nr::SET_LAPIC, &l)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    go_to_cpu(1)?;
    // SAFETY: one signal to this process in two seconds.
    unsafe { libc::alarm(2) };
    errno!(g.vcpu.run(), libc::EINTR, "the alarm");
    let mut l: kvm_lapic_state = g.vcpu.fd.get(nr::GET_LAPIC)?;
    let irr = apic_register(&mut l, 0x200 + usize::from(VECTOR / 32) * 16)[0] as u8;
    same!(irr >> (VECTOR % 32) & 1, 1, "the timer's vector in IRR");
    let file = format!("/sys/kernel/debug/kvm/{}-{}/foreign_timers", std::process::id(), g.vm.raw());
    match std::fs::read_to_string(file) {
        Ok(n) => same!(n.trim(), "0", "timers that fired on another CPU than the vCPU's"),
        Err(e) => ensure!(!exitless(), "no counter: {e}"),
    }
    Ok(())
}

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
const PERF_SAMPLE_IP: u64 = 1;
const PERF_RECORD_SAMPLE: u32 = 9;
/// PERF_RECORD_MISC_*: whom a sample has hit.
const CPUMODE: u16 = 7;
const GUEST_KERNEL: u16 = 4;
const GUEST_USER: u16 = 5;

/// Pages of samples behind the ring's first page.
const RING: usize = 16;

/// A sample each millisecond of this thread's time, and the ring they go to.
fn sample() -> Result<(kvm::Fd, kvm::Map), Stop> {
    let attr = PerfAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfAttr>() as u32,
        config: PERF_COUNT_SW_CPU_CLOCK,
        sample_period: 1_000_000,
        sample_type: PERF_SAMPLE_IP,
        ..Default::default()
    };
    // SAFETY: perf_event_open reads the attributes and makes a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &attr, 0, -1, -1, 0) };
    if fd < 0 {
        return skip(&format!("no clock events: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: a new descriptor.
    let fd = unsafe { kvm::Fd::from_raw(fd as i32) };
    let ring = kvm::Map::fd(fd.raw(), (1 + RING) * 4096, 0)?;
    Ok((fd, ring))
}

/// Whom each sample has hit, and where. The ring has room for some 4000.
fn samples(ring: &kvm::Map) -> Vec<(u16, u64)> {
    let word = |at: u64| {
        let mut b = [0; 8];
        ring.read(at, &mut b);
        u64::from_ne_bytes(b)
    };
    // perf_event_mmap_page.data_head.
    let (end, mut at) = (word(1024).min((RING * 4096) as u64), 0);
    let mut found = Vec::new();
    while at < end {
        let header = word(4096 + at);
        if header as u32 == PERF_RECORD_SAMPLE {
            found.push(((header >> 32) as u16 & CPUMODE, word(4096 + at + 8)));
        }
        at += (header >> 48).max(8);
    }
    found
}

/// Flat segments of 32 bits, without paging, at this privilege level.
fn protected_mode(fd: &kvm::Fd, level: u8) -> R {
    let mut s: kvm_sregs = fd.get(nr::GET_SREGS)?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10 | u16::from(level),
        type_: 3,
        present: 1,
        dpl: level,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    (s.ds, s.es, s.ss) = (data, data, data);
    s.cs = kvm_segment { selector: 8 | u16::from(level), type_: 0xb, ..data };
    s.cr0 |= 1;
    fd.set(nr::SET_SREGS, &s)?;
    Ok(())
}

/// A profile of the host tells the guest's time from the host's: samples that made the guest exit are the guest's, with its
/// RIP and its privilege level, and only they are.
fn perf_samples(e: &Env, level: u8, whose: u16) -> R {
    catch(libc::SIGALRM);
    let g = e.guest(Chips::None, &SPIN)?;
    protected_mode(&g.vcpu.fd, level)?;
    let (_event, ring) = sample()?;
    // SAFETY: one signal to this process in a second.
    unsafe { libc::alarm(1) };
    errno!(g.vcpu.run(), libc::EINTR, "the alarm");
    let in_run = samples(&ring);
    let guests: Vec<_> =
        in_run.iter().filter(|(mode, _)| [GUEST_KERNEL, GUEST_USER].contains(mode)).collect();
    // A loaded machine may give the thread a part of the time, and there is time between the alarm and the end of the run.
    ensure!(guests.len() >= 20 && guests.len() * 2 > in_run.len(), "{} of {}", guests.len(), in_run.len());
    if let Some((mode, ip)) = guests.iter().find(|s| ***s != (whose, ENTRY)) {
        return Err(Stop::Fail(format!("a sample of mode {mode} at {ip:#x}, want {whose} at {ENTRY:#x}")));
    }
    // In user space again: nothing is the guest's any more.
    let from = Instant::now();
    while from.elapsed() < Duration::from_millis(200) {}
    let after = samples(&ring).split_off(in_run.len());
    ensure!(after.len() >= 10, "{} samples of 200 ms", after.len());
    ensure!(
        after.iter().all(|(mode, _)| ![GUEST_KERNEL, GUEST_USER].contains(mode)),
        "the VMM's time is the guest's"
    );
    Ok(())
}
