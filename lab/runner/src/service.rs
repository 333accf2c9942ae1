//! The services a guest may ask for through `PORT_CMD`; one arm each, run on the calling vCPU's thread.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvm_bindings::*;

use crate::config::op;
use crate::harness::Outcome;
use crate::kvm::{self, Errno, Fd, nr};
use crate::machine::{Machine, Measurement, Vcpu, lock};
use crate::moves;

type Answer = kvm::Result<i64>;

/// Runs the command block at a guest-physical address and stores its result.
pub(crate) fn run(m: &Arc<Machine>, v: &Arc<Vcpu>, block: u64) {
    let Some(p) = m.guest(block, 64).filter(|_| block.is_multiple_of(8)) else {
        return m.end(Outcome::Failed(format!("command block at {block:#x}")));
    };
    let p = p.cast::<u64>();
    let mut words = [0; 7];
    for (i, w) in words.iter_mut().enumerate() {
        // SAFETY: eight aligned words inside guest memory.
        *w = unsafe { p.add(i).read_volatile() };
    }
    let mut args = [0; 6];
    args.copy_from_slice(&words[1..]);
    let result = service(m, v, words[0], args).unwrap_or_else(|e| -i64::from(e.0));
    // SAFETY: as above.
    unsafe { p.add(7).write_volatile(result as u64) };
}

fn service(m: &Arc<Machine>, v: &Arc<Vcpu>, op: u64, a: [u64; 6]) -> Answer {
    match op {
        op::QUERY_CAP => Ok(m.vm.cap(a[0] as u32).into()),
        op::IRQ_LINE => irq_line(m, a[0], a[1]),
        op::NMI => nmi(m, a[0]),
        op::MSI => signal_msi(m, a[0], a[1]),
        op::SLOT_SET => slot_set(m, a),
        op::SLOT_ZAP => slot_zap(m, a[0] as u32),
        op::PASS => {
            m.end(Outcome::Passed);
            Ok(0)
        }
        op::SLOT_MOVE => slot_move(m, a[0] as u32, a[1]),
        op::POOL_DONTNEED => pool(m, a[0], a[1], |p, n| {
            // SAFETY: inside the pool.
            unsafe { libc::madvise(p, n, libc::MADV_DONTNEED) }
        }),
        op::POOL_HUGE => pool(m, a[0], a[1], |p, n| {
            // SAFETY: inside the pool.
            unsafe { libc::madvise(p, n, libc::MADV_HUGEPAGE) }
        }),
        op::POOL_PROTECT => pool(m, a[0], a[1], |p, n| {
            // SAFETY: inside the pool; the runner touches protected parts only after making them accessible.
            unsafe { libc::mprotect(p, n, a[2] as i32) }
        }),
        op::POOL_REMAP => pool(m, a[0], a[1], remap),
        op::POOL_READ => Ok(m.pool.word(a[0]) as i64),
        op::POOL_WRITE => {
            m.pool.set_word(a[0], a[1]);
            Ok(0)
        }
        op::SLOW_PAGES => slow_pages(m, a[0], a[1]),
        op::PAGE_COMES => page_comes(m, a[0]),
        op::DIRTY_LOG => dirty_log(m, a[0] as u32, a[1]),
        op::IOEVENTFD => ioeventfd(m, a),
        op::IOEVENTFD_OFF => ioeventfd_off(m, a),
        op::EVENT_READ => Ok(kvm::event_read(event(m, a[0])?) as i64),
        op::IRQFD => irqfd(m, a[0], a[1] != 0),
        op::IRQFD_OF => irqfd_call(m, event(m, a[1])?, a[0], 0, -1),
        op::IRQFD_OFF => irqfd_call(m, event(m, a[1])?, a[0], KVM_IRQFD_FLAG_DEASSIGN, -1),
        op::EVENT_SIGNAL => Ok(i64::from(kvm::event_write(event(m, a[0])?, 1)) - 1),
        op::TSC_KHZ => Ok(v.fd.call(nr::GET_TSC_KHZ, 0)?.into()),
        op::SET_TSC_KHZ => Ok(v.fd.call(nr::SET_TSC_KHZ, a[0])?.into()),
        op::MMIO_LOG => mmio_log(m, a[0]),
        op::FIFO_READ => fifo(m, a[0], a[1]),
        op::INTERRUPT => Ok(v.fd.set(nr::INTERRUPT, &(a[0] as u32))?.into()),
        op::EXITS => count(m, "exits"),
        op::EMULATIONS => count(m, "insn_emulation"),
        op::HALTS => count(m, "halt_exits"),
        op::SLEEP_US => {
            std::thread::sleep(Duration::from_micros(a[0]));
            Ok(0)
        }
        op::KICK => kicks(m, a),
        op::ROUTE_MSI => routes(m, a[0], a[1]),
        op::BENCH => bench(m, a),
        op::BENCH_HOST => bench_host(m, a),
        op::CPU_TIME => cpu_time(),
        op::PROCESS => Ok(std::process::id().into()),
        op::CLOBBER_FPU => {
            clobber_vectors();
            Ok(0)
        }
        op::MIGRATE => migrate(a[0]),
        op::MOVE => {
            moves::start(m, a[0]);
            Ok(0)
        }
        op::STOP_AT => stop_at(v, a[0], a[1] != 0),
        op::MOVES => Ok(m.moves.load(Ordering::SeqCst) as i64),
        op::USER_EXITS => Ok(lock(&m.exit_counts).get(&(a[0] as u32)).copied().unwrap_or(0) as i64),
        op::AFTER => after(m, v, a),
        op::WINDOW_INJECT => {
            v.window.store(a[0] as u32, Ordering::SeqCst);
            Ok(0)
        }
        op::STATE_ROUND_TRIP => state_round_trip(v),
        op::GET_MSR => kvm::get_msr(&v.fd, a[0] as u32)?.map(|x| x as i64).ok_or(Errno(libc::ENOENT)),
        op::SET_MSR => Ok(kvm::set_msr(&v.fd, a[0] as u32, a[1])?.into()),
        op::MP_STATE => {
            let s: kvm_mp_state = target(m, a[0])?.fd.get(nr::GET_MP_STATE)?;
            Ok(s.mp_state.into())
        }
        op::GET_LAPIC => {
            let s: kvm_lapic_state = v.fd.get(nr::GET_LAPIC)?;
            let o = a[0] as usize & 0x3fc;
            let b: Vec<u8> = s.regs[o..o + 4].iter().map(|&x| x as u8).collect();
            Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]).into())
        }
        op::GET_CLOCK => Ok(m.vm.get::<kvm_clock_data>(nr::GET_CLOCK)?.clock as i64),
        op::HOST_CPUS => Ok(std::thread::available_parallelism().map_or(1, |n| n.get()) as i64),
        op::GET_PIT => {
            let s: kvm_pit_state2 = m.vm.get(nr::GET_PIT2)?;
            let c = &s.channels[a[1] as usize % 3];
            Ok(i64::from(c.mode) | i64::from(c.gate) << 8 | i64::from(c.count) << 16)
        }
        _ => Err(Errno(libc::ENOSYS)),
    }
}

fn target(m: &Machine, id: u64) -> kvm::Result<&Arc<Vcpu>> {
    m.vcpus.get(id as usize).ok_or(Errno(libc::EINVAL))
}

fn event(m: &Machine, id: u64) -> kvm::Result<RawFd> {
    lock(&m.events).get(id as usize).map(Fd::raw).ok_or(Errno(libc::EINVAL))
}

fn new_event(m: &Machine) -> kvm::Result<(i64, RawFd)> {
    let fd = kvm::eventfd()?;
    let raw = fd.raw();
    let mut events = lock(&m.events);
    events.push(fd);
    Ok((events.len() as i64 - 1, raw))
}

fn irq_line(m: &Machine, gsi: u64, level: u64) -> Answer {
    let mut l = kvm_irq_level::default();
    l.__bindgen_anon_1.irq = gsi as u32;
    l.level = level as u32;
    m.vm.with(nr::IRQ_LINE_STATUS, &mut l)?;
    // SAFETY: both members are 32-bit integers.
    Ok(unsafe { l.__bindgen_anon_1.status }.into())
}

/// KVM_NMI is a vCPU ioctl and would wait for KVM_RUN to end, so the vCPU's own thread does it.
fn nmi(m: &Machine, id: u64) -> Answer {
    let v = target(m, id)?;
    v.nmis.fetch_add(1, Ordering::SeqCst);
    v.kick();
    Ok(0)
}

fn signal_msi(m: &Machine, address: u64, data: u64) -> Answer {
    let msi = kvm_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data: data as u32,
        ..Default::default()
    };
    Ok(m.vm.set(nr::SIGNAL_MSI, &msi)?.into())
}

fn slot_set(m: &Machine, a: [u64; 6]) -> Answer {
    let r = kvm_userspace_memory_region {
        slot: a[0] as u32,
        flags: a[4] as u32,
        guest_phys_addr: a[1],
        memory_size: a[2],
        userspace_addr: m.pool.addr() + a[3],
    };
    let answer = m.vm.set(nr::SET_USER_MEMORY_REGION, &r)?;
    lock(&m.slots).insert(r.slot, r);
    Ok(answer.into())
}

fn slot_zap(m: &Machine, slot: u32) -> Answer {
    let r = *lock(&m.slots).get(&slot).ok_or(Errno(libc::EINVAL))?;
    m.vm.set(nr::SET_USER_MEMORY_REGION, &kvm_userspace_memory_region { memory_size: 0, ..r })?;
    Ok(m.vm.set(nr::SET_USER_MEMORY_REGION, &r)?.into())
}

fn slot_move(m: &Machine, slot: u32, gpa: u64) -> Answer {
    let mut r = *lock(&m.slots).get(&slot).ok_or(Errno(libc::EINVAL))?;
    r.guest_phys_addr = gpa;
    Ok(m.vm.set(nr::SET_USER_MEMORY_REGION, &r)?.into())
}

fn pool(m: &Machine, offset: u64, len: u64, f: impl Fn(*mut libc::c_void, usize) -> i32) -> Answer {
    if offset + len > m.pool.size() as u64 {
        return Err(Errno(libc::EINVAL));
    }
    let r = f(m.pool.ptr().wrapping_add(offset as usize).cast(), len as usize);
    if r < 0 { Err(Errno::last()) } else { Ok(r.into()) }
}

fn remap(p: *mut libc::c_void, n: usize) -> i32 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: a part of the pool, which nobody holds references into.
    unsafe {
        libc::munmap(p, n);
        if libc::mmap(p, n, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) == p { 0 } else { -1 }
    }
}

fn slow_pages(m: &Machine, offset: u64, len: u64) -> Answer {
    if offset + len > m.pool.size() as u64 {
        return Err(Errno(libc::EINVAL));
    }
    let uffd = kvm::userfaultfd()?;
    kvm::uffd_register(&uffd, m.pool.addr() + offset, len)?;
    *lock(&m.uffd) = Some(uffd);
    Ok(0)
}

fn page_comes(m: &Machine, offset: u64) -> Answer {
    let uffd = lock(&m.uffd);
    kvm::uffd_zero(uffd.as_ref().ok_or(Errno(libc::EINVAL))?, m.pool.addr() + offset, 4096)?;
    Ok(0)
}

fn dirty_log(m: &Machine, slot: u32, gpa: u64) -> Answer {
    let p = m.guest(gpa, 4096).ok_or(Errno(libc::EINVAL))?;
    let mut bitmap = vec![0u64; 4096];
    let mut log = kvm_dirty_log { slot, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
    let r = m.vm.set(nr::GET_DIRTY_LOG, &log)?;
    // SAFETY: 4096 bytes of guest memory.
    unsafe { std::ptr::copy_nonoverlapping(bitmap.as_ptr().cast::<u8>(), p, 4096) };
    Ok(r.into())
}

fn ioeventfd_call(m: &Machine, fd: RawFd, a: [u64; 6], flags: u32) -> Answer {
    let e = kvm_ioeventfd {
        datamatch: a[3],
        addr: a[0],
        len: a[1] as u32,
        fd,
        flags: a[2] as u32 | flags,
        ..Default::default()
    };
    Ok(m.vm.set(nr::IOEVENTFD, &e)?.into())
}

fn ioeventfd(m: &Machine, a: [u64; 6]) -> Answer {
    let (id, fd) = new_event(m)?;
    ioeventfd_call(m, fd, a, 0)?;
    Ok(id)
}

fn ioeventfd_off(m: &Machine, a: [u64; 6]) -> Answer {
    ioeventfd_call(m, event(m, a[4])?, a, 1 << 2)
}

fn irqfd_call(m: &Machine, fd: RawFd, gsi: u64, flags: u32, resample: RawFd) -> Answer {
    let i = kvm_irqfd {
        fd: fd as u32,
        gsi: gsi as u32,
        flags,
        resamplefd: resample as u32,
        ..Default::default()
    };
    Ok(m.vm.set(nr::IRQFD, &i)?.into())
}

fn irqfd(m: &Machine, gsi: u64, resample: bool) -> Answer {
    let (id, fd) = new_event(m)?;
    if resample {
        let (_, back) = new_event(m)?;
        irqfd_call(m, fd, gsi, KVM_IRQFD_FLAG_RESAMPLE, back)?;
    } else {
        irqfd_call(m, fd, gsi, 0, -1)?;
    }
    Ok(id)
}

fn mmio_log(m: &Machine, gpa: u64) -> Answer {
    let p = m.guest(gpa, 64 * 24).ok_or(Errno(libc::EINVAL))?.cast::<u64>();
    let log = std::mem::take(&mut lock(&m.devices).log);
    for (i, a) in log.iter().enumerate() {
        let words = [a.address, u64::from(a.len) | u64::from(a.write) << 32, a.data];
        for (j, w) in words.into_iter().enumerate() {
            // SAFETY: at most 64 records fit by construction of the log.
            unsafe { p.add(i * 3 + j).write_unaligned(w) };
        }
    }
    Ok(log.len() as i64)
}

fn fifo(m: &Machine, gpa: u64, room: u64) -> Answer {
    let p = m.guest(gpa, room).ok_or(Errno(libc::EINVAL))?;
    let bytes = lock(&m.devices).take_fifo();
    let n = bytes.len().min(room as usize);
    // SAFETY: `room` bytes of guest memory.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), p, n) };
    Ok(bytes.len() as i64)
}

/// A count of the VM's, from debugfs (`<pid>-<vmfd>/exits`).
fn count(m: &Machine, name: &str) -> Answer {
    let text = m.statistics(name).map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EIO)))?;
    text.trim().parse().map_err(|_| Errno(libc::EIO))
}

fn kicks(m: &Arc<Machine>, a: [u64; 6]) -> Answer {
    let v = target(m, a[0])?.clone();
    let m = m.clone();
    std::thread::spawn(move || {
        for _ in 0..a[1] {
            if m.is_over() {
                break;
            }
            v.signal();
            std::thread::sleep(Duration::from_micros(a[2]));
        }
    });
    Ok(0)
}

fn routes(m: &Machine, gpa: u64, count: u64) -> Answer {
    let p = m.guest(gpa, count * 24).ok_or(Errno(libc::EINVAL))?.cast::<u64>();
    let mut table: Vec<kvm_irq_routing_entry> = Vec::new();
    let chip = |gsi: u32, irqchip: u32, pin: u32| {
        let mut e = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        e.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        e
    };
    for gsi in 0..16 {
        table.push(chip(gsi, if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE }, gsi & 7));
    }
    for gsi in 0..24 {
        table.push(chip(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    }
    for i in 0..count as usize {
        // SAFETY: inside guest memory, as checked above.
        let w = |j: usize| unsafe { p.add(i * 3 + j).read_unaligned() };
        let mut e =
            kvm_irq_routing_entry { gsi: w(0) as u32, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        e.u.msi = kvm_irq_routing_msi {
            address_lo: w(1) as u32,
            address_hi: (w(1) >> 32) as u32,
            data: w(2) as u32,
            ..Default::default()
        };
        table.push(e);
    }
    let mut buf: Box<kvm::Flex<[u32; 2], kvm_irq_routing_entry, 128>> = kvm::zeroed();
    buf.head[0] = table.len() as u32;
    buf.entries[..table.len()].copy_from_slice(&table);
    Ok(m.vm.with(nr::SET_GSI_ROUTING, &mut *buf)?.into())
}

fn bench(m: &Machine, a: [u64; 6]) -> Answer {
    let exits = (a[4] != u64::MAX).then_some(a[4]);
    let ticks = Some(a[2]);
    measured(m, a, Measurement { op: String::new(), ticks, count: a[3], exits, mark: a[5], batches: 1 })
}

fn bench_host(m: &Machine, a: [u64; 6]) -> Answer {
    let (mark, batches) = (a[3], a[4]);
    measured(m, a, Measurement { op: String::new(), ticks: None, count: a[2], exits: None, mark, batches })
}

fn measured(m: &Machine, a: [u64; 6], mut found: Measurement) -> Answer {
    let p = m.guest(a[0], a[1]).ok_or(Errno(libc::EINVAL))?;
    // SAFETY: a string in the guest's read-only data.
    let name = unsafe { std::slice::from_raw_parts(p, a[1] as usize) };
    found.op = String::from_utf8_lossy(name).into_owned();
    lock(&m.benches).push(found);
    Ok(0)
}

fn cpu_time() -> Answer {
    // SAFETY: plain data, filled by the call.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: room for one time.
    match unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } {
        0 => Ok(time.tv_sec * 1_000_000_000 + time.tv_nsec),
        _ => Err(Errno::last()),
    }
}

fn migrate(cpu: u64) -> Answer {
    // SAFETY: a set of our own; 0 means the calling thread.
    let r = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if r < 0 { Err(Errno::last()) } else { Ok(0) }
}

fn after(m: &Arc<Machine>, v: &Arc<Vcpu>, a: [u64; 6]) -> Answer {
    let (m, v) = (m.clone(), v.clone());
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_micros(a[0]));
        let args = [a[2], a[3], a[4], a[5], 0, 0];
        if let Err(e) = service(&m, &v, a[1], args) {
            m.end(Outcome::Failed(format!("delayed service {}: {e}", a[1])));
        }
    });
    Ok(0)
}

/// Overwrites vector registers of this thread, as any code of a VMM may.
fn clobber_vectors() {
    // SAFETY: the clobbers are declared; AVX only where the CPU has it.
    unsafe {
        std::arch::asm!(
            "pcmpeqd xmm0, xmm0", "movaps xmm1, xmm0", "movaps xmm7, xmm0", "movaps xmm15, xmm0",
            out("xmm0") _, out("xmm1") _, out("xmm7") _, out("xmm15") _
        );
        if std::is_x86_feature_detected!("avx") {
            std::arch::asm!("vxorps ymm1, ymm1, ymm1", "vxorps ymm15, ymm15, ymm15", out("xmm1") _, out("xmm15") _);
        }
        std::arch::asm!("fninit", "fld1", "fld1", "fstp st(0)", "fstp st(0)",
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
    }
}

/// Completes the port access with an immediate exit, then reads and writes back all state of the vCPU.
fn state_round_trip(v: &Vcpu) -> Answer {
    // SAFETY: this thread owns the page between two KVM_RUN calls.
    unsafe { (*v.run()).immediate_exit = 1 };
    let r = v.fd.call(nr::RUN, 0);
    // SAFETY: as above.
    unsafe { (*v.run()).immediate_exit = 0 };
    if r != Err(Errno(libc::EINTR)) {
        return Err(Errno(libc::EPROTO));
    }
    let f = &v.fd;
    let events: kvm_vcpu_events = f.get(nr::GET_VCPU_EVENTS)?;
    let mp: kvm_mp_state = f.get(nr::GET_MP_STATE)?;
    let regs: kvm_regs = f.get(nr::GET_REGS)?;
    let xsave: Box<[u8; 4096]> = Box::new(f.get(nr::GET_XSAVE)?);
    let xcrs: kvm_xcrs = f.get(nr::GET_XCRS)?;
    let sregs: kvm_sregs = f.get(nr::GET_SREGS)?;
    let lapic: kvm_lapic_state = f.get(nr::GET_LAPIC)?;
    let debug: kvm_debugregs = f.get(nr::GET_DEBUGREGS)?;
    f.set(nr::SET_SREGS, &sregs)?;
    f.set(nr::SET_REGS, &regs)?;
    f.set(nr::SET_XSAVE, &*xsave)?;
    f.set(nr::SET_XCRS, &xcrs)?;
    f.set(nr::SET_LAPIC, &lapic)?;
    f.set(nr::SET_VCPU_EVENTS, &events)?;
    f.set(nr::SET_MP_STATE, &mp)?;
    f.set(nr::SET_DEBUGREGS, &debug)?;
    Ok(0)
}

/// DR7: the first breakpoint, at execution; bit 10 is always set.
const FIRST_BREAKPOINT: u64 = 0x402;

/// The next KVM_EXIT_DEBUG is the one asked for: see `Machine::stopped_at`.
fn stop_at(v: &Vcpu, at: u64, moves: bool) -> Answer {
    v.moves_there.store(moves, Ordering::SeqCst);
    let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
    let mut debug = kvm_guest_debug { control, ..Default::default() };
    (debug.arch.debugreg[0], debug.arch.debugreg[7]) = (at, FIRST_BREAKPOINT);
    v.fd.set(nr::SET_GUEST_DEBUG, &debug).map(i64::from)
}
