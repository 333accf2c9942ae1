//! Interrupt wiring as an ABI: routes, irqfds, ioeventfds, lines and messages.

use crate::env::*;
use crate::state::{reg, set_reg};
use exitless_runner::kvm::{self, Fd, Flex, nr, zeroed};
use kvm_bindings::*;
use libc::{EBADF, EBUSY, EEXIST, EINVAL, ENOENT};

pub(crate) const TESTS: &[Test] = &[
    ("irq/routing_limits", routing_limits),
    ("irq/routing_types", routing_types),
    ("irq/routing_replace", routing_replace),
    ("irq/routing_empty", routing_empty),
    ("irq/line", line),
    ("irq/msi", msi),
    ("irq/irqfd_errors", irqfd_errors),
    ("irq/irqfd_twice", irqfd_twice),
    ("irq/irqfd_deassign", irqfd_deassign),
    ("irq/irqfd_resample_errors", irqfd_resample),
    ("irq/irqfd_signalled_before_assign", irqfd_before),
    ("irq/irqfd_closed_eventfd", irqfd_closed),
    ("irq/irqfd_closed_while_it_holds_a_line", irqfd_closed_high),
    ("irq/whom_messages_reach", whom_messages_reach),
    ("irq/ids_above_255", ids_above_255),
    ("irq/ioeventfd_errors", ioeventfd_errors),
    ("irq/ioeventfd_conflicts", ioeventfd_conflicts),
    ("irq/ioeventfd_deassign", ioeventfd_deassign),
    ("irq/ioeventfd_many", ioeventfd_many),
    ("irq/coalesced_zones", coalesced),
];

type Routes = Flex<[u32; 2], kvm_irq_routing_entry, 5000>;

fn chip(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    e.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    e
}
fn msi_route(gsi: u32, vector: u32) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    e.u.msi = kvm_irq_routing_msi { address_lo: 0xfee0_0000, data: vector, ..Default::default() };
    e
}
fn route(vm: &Fd, entries: &[kvm_irq_routing_entry], flags: u32) -> kvm::Result<i32> {
    let mut r: Box<Routes> = zeroed();
    r.head = [entries.len() as u32, flags];
    r.entries[..entries.len()].copy_from_slice(entries);
    vm.with(nr::SET_GSI_ROUTING, &mut *r)
}

fn routing_limits(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let max = vm.cap(KVM_CAP_IRQ_ROUTING) as usize;
    ensure!(max < 5000, "limit {max}");
    let entries: Vec<_> = (0..=max as u32).map(|g| msi_route(g % 4096, 0x40)).collect();
    errno!(route(&vm, &entries, 0), EINVAL, "{} entries", max + 1);
    let entries: Vec<_> = (0..max.min(4096) as u32).map(|g| msi_route(g, 0x40)).collect();
    route(&vm, &entries, 0)?;
    errno!(route(&vm, &[msi_route(max as u32, 0x40)], 0), EINVAL, "GSI {max}");
    errno!(route(&vm, &[], 1), EINVAL, "flags");
    Ok(())
}

fn routing_types(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let bad = kvm_irq_routing_entry { gsi: 5, type_: 99, ..Default::default() };
    errno!(route(&vm, &[bad], 0), EINVAL, "type 99");
    errno!(route(&vm, &[chip(5, 2, 24)], 0), EINVAL, "pin 24 of the I/O APIC");
    errno!(route(&vm, &[chip(5, 0, 8)], 0), EINVAL, "pin 8 of a PIC");
    errno!(route(&vm, &[chip(5, 7, 0)], 0), EINVAL, "chip 7");
    errno!(route(&vm, &[chip(5, 2, 5), chip(5, 2, 6)], 0), EINVAL, "two pins of one chip for one GSI");
    let flagged = kvm_irq_routing_entry { flags: 0x80, ..msi_route(5, 0x40) };
    errno!(route(&vm, &[flagged], 0), EINVAL, "route flags");
    route(&vm, &[chip(5, 0, 5), chip(5, 2, 5), msi_route(24, 0x40)], 0)?;
    Ok(())
}

fn routing_replace(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    for i in 0..50 {
        route(&vm, &[msi_route(24 + i % 3, 0x40 + i)], 0)?;
    }
    Ok(())
}

fn routing_empty(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    route(&vm, &[], 0)?;
    // No route, no effect, no error.
    raise(&vm, 5, 1)?;
    Ok(())
}

fn raise(vm: &Fd, gsi: u32, level: u32) -> kvm::Result<i32> {
    let mut l = kvm_irq_level { level, ..Default::default() };
    l.__bindgen_anon_1.irq = gsi;
    vm.set(nr::IRQ_LINE, &l)
}

fn line(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    for gsi in [0, 4, 15, 23] {
        raise(&g.vm, gsi, 1)?;
        raise(&g.vm, gsi, 0)?;
    }
    // A GSI beyond the table is ignored.
    raise(&g.vm, 1000, 1)?;
    Ok(())
}

fn msi(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let m = kvm_msi { address_lo: 0xfee0_0000, data: 0x40, ..Default::default() };
    // The APIC is still software-disabled: accepted as a call, delivered to nobody.
    ensure!(g.vm.set(nr::SIGNAL_MSI, &m).is_ok(), "SIGNAL_MSI");
    errno!(g.vm.set(nr::SIGNAL_MSI, &kvm_msi { flags: 0x80, ..m }), EINVAL, "flags");
    let (_s, bare) = e.vm()?;
    errno!(bare.set(nr::SIGNAL_MSI, &m), EINVAL, "without interrupt chips");
    Ok(())
}

fn irqfd(vm: &Fd, fd: i32, gsi: u32, flags: u32, resample: i32) -> kvm::Result<i32> {
    let i = kvm_irqfd { fd: fd as u32, gsi, flags, resamplefd: resample as u32, ..Default::default() };
    vm.set(nr::IRQFD, &i)
}

fn irqfd_errors(e: &Env) -> R {
    let (s, vm) = e.vm_with_chips()?;
    let ev = kvm::eventfd()?;
    errno!(irqfd(&vm, -1, 5, 0, -1), EBADF, "no descriptor");
    errno!(irqfd(&vm, s.raw(), 5, 0, -1), EINVAL, "not an eventfd");
    errno!(irqfd(&vm, ev.raw(), 5, 0x80, -1), EINVAL, "flags");
    let (_s2, bare) = e.vm()?;
    errno!(irqfd(&bare, ev.raw(), 5, 0, -1), EINVAL, "without interrupt chips");
    Ok(())
}

fn irqfd_twice(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let (a, b) = (kvm::eventfd()?, kvm::eventfd()?);
    irqfd(&vm, a.raw(), 5, 0, -1)?;
    errno!(irqfd(&vm, a.raw(), 6, 0, -1), EBUSY, "one eventfd for two GSIs");
    irqfd(&vm, b.raw(), 5, 0, -1)?; // two eventfds on one GSI
    Ok(())
}

fn irqfd_deassign(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let a = kvm::eventfd()?;
    irqfd(&vm, a.raw(), 5, KVM_IRQFD_FLAG_DEASSIGN, -1)?; // not assigned: no error
    for _ in 0..20 {
        irqfd(&vm, a.raw(), 5, 0, -1)?;
        irqfd(&vm, a.raw(), 5, KVM_IRQFD_FLAG_DEASSIGN, -1)?;
    }
    errno!(irqfd(&vm, -1, 5, KVM_IRQFD_FLAG_DEASSIGN, -1), EBADF, "no descriptor");
    Ok(())
}

fn irqfd_resample(e: &Env) -> R {
    let (s, vm) = e.vm_with_chips()?;
    let (a, b) = (kvm::eventfd()?, kvm::eventfd()?);
    errno!(irqfd(&vm, a.raw(), 5, KVM_IRQFD_FLAG_RESAMPLE, -1), EBADF, "no resample descriptor");
    errno!(
        irqfd(&vm, a.raw(), 5, KVM_IRQFD_FLAG_RESAMPLE, s.raw()),
        EINVAL,
        "resample descriptor of another kind"
    );
    irqfd(&vm, a.raw(), 5, KVM_IRQFD_FLAG_RESAMPLE, b.raw())?;
    irqfd(&vm, kvm::eventfd()?.raw(), 5, KVM_IRQFD_FLAG_RESAMPLE, kvm::eventfd()?.raw())?; // shared GSI
    irqfd(&vm, a.raw(), 5, KVM_IRQFD_FLAG_DEASSIGN, -1)?;
    let (c, d) = (kvm::eventfd()?, kvm::eventfd()?);
    if exitless() {
        // Stock KVM takes any GSI.
        let beyond = irqfd(&vm, c.raw(), 64, KVM_IRQFD_FLAG_RESAMPLE, d.raw());
        errno!(beyond, EINVAL, "a GSI whose EOI is not heard of");
    }
    irqfd(&vm, c.raw(), 63, KVM_IRQFD_FLAG_RESAMPLE, d.raw())?;
    irqfd(&vm, kvm::eventfd()?.raw(), 64, 0, -1)?;
    Ok(())
}

/// An event that is already there when the irqfd is assigned counts.
fn irqfd_before(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let a = kvm::eventfd()?;
    kvm::event_write(a.raw(), 1);
    irqfd(&vm, a.raw(), 5, 0, -1)?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut c = kvm_irqchip { chip_id: 0, ..Default::default() };
    vm.with(nr::GET_IRQCHIP, &mut c)?;
    // SAFETY: chip 0 is a PIC.
    let irr = unsafe { c.chip.pic.irr };
    ensure!(irr & 0x20 != 0, "IRR of the PIC is {irr:#x}");
    Ok(())
}

fn irqfd_closed(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    for gsi in 0..20 {
        let a = kvm::eventfd()?;
        irqfd(&vm, a.raw(), gsi, 0, -1)?;
        kvm::event_write(a.raw(), 1);
        drop(a);
    }
    Ok(())
}

/// A resampling irqfd that ends by the close of its eventfd lets go of the line, as one that is deassigned.
fn irqfd_closed_high(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let high = || -> kvm::Result<bool> {
        let mut c = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        vm.with(nr::GET_IRQCHIP, &mut c)?;
        // SAFETY: chip 2 is the I/O APIC.
        Ok(unsafe { c.chip.ioapic.irr } & 1 << 5 != 0)
    };
    let (a, b) = (kvm::eventfd()?, kvm::eventfd()?);
    irqfd(&vm, a.raw(), 5, KVM_IRQFD_FLAG_RESAMPLE, b.raw())?;
    kvm::event_write(a.raw(), 1);
    // Both in the kernel's own time.
    let becomes = |level: bool| -> kvm::Result<bool> {
        for _ in 0..500 {
            if high()? == level {
                return Ok(true);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(false)
    };
    ensure!(becomes(true)?, "not raised");
    drop(a);
    ensure!(becomes(false)?, "still raised");
    Ok(())
}

/// Registers of an APIC, by offset.
fn lapic(v: &Vcpu, registers: &[(usize, u32)]) -> R {
    let mut l: kvm_lapic_state = v.fd.get(nr::GET_LAPIC)?;
    registers.iter().for_each(|&(at, value)| set_reg(&mut l, at, value));
    Ok(v.fd.set(nr::SET_LAPIC, &l).map(drop)?)
}

/// The vCPUs in whose APIC `vector` is pending.
fn pending(vcpus: &[Vcpu], vector: u32) -> Result<Vec<usize>, Stop> {
    let mut found = Vec::new();
    for (index, v) in vcpus.iter().enumerate() {
        let l: kvm_lapic_state = v.fd.get(nr::GET_LAPIC)?;
        if reg(&l, 0x200 + vector as usize / 32 * 16) >> (vector % 32) & 1 != 0 {
            found.push(index);
        }
    }
    Ok(found)
}

/// Messages of irqfds reach whom they name, one or more than can be told with interrupts off, in each addressing that a guest chooses,
/// and after APICs have moved.
fn whom_messages_reach(e: &Env) -> R {
    const CPUS: usize = 20;
    let (sys, vm) = e.vm_with_chips()?;
    let mut vcpus = Vec::new();
    for id in 0..CPUS as u32 {
        let v = vcpu(&sys, &vm, id.into())?;
        exitless_runner::machine::set_cpuid(&sys, &v.fd, id)?;
        let logical = if id < 8 { 1 << (24 + id) } else { 0 };
        lapic(&v, &[(0xf0, 0x1ff), (0xe0, u32::MAX), (0xd0, logical)])?;
        vcpus.push(v);
    }
    let mut vector = 0x40;
    let mut reaches = |vcpus: &[Vcpu], what: &str, destination: u32, logical: bool, want: &[usize]| -> R {
        vector += 1;
        let mut r = msi_route(24, vector);
        r.u.msi.address_lo = 0xfee0_0000 | destination << 12 | u32::from(logical) << 2;
        route(&vm, &[r], 0)?;
        let a = kvm::eventfd()?;
        irqfd(&vm, a.raw(), 24, 0, -1)?;
        kvm::event_write(a.raw(), 1);
        // A work item may have to deliver it; this waits for that.
        irqfd(&vm, a.raw(), 24, KVM_IRQFD_FLAG_DEASSIGN, -1)?;
        same!(pending(vcpus, vector)?, want, "{what}, destination {destination:#x}");
        Ok(())
    };
    let all: Vec<_> = (0..CPUS).collect();
    reaches(&vcpus, "physical", 5, false, &[5])?;
    reaches(&vcpus, "nobody's", 77, false, &[])?;
    reaches(&vcpus, "broadcast", 0xff, false, &all)?;
    reaches(&vcpus, "flat", 0x8f, true, &[0, 1, 2, 3, 7])?;
    lapic(&vcpus[5], &[(0x20, 0x55 << 24)])?;
    reaches(&vcpus, "where it was", 5, false, &[])?;
    reaches(&vcpus, "where it is", 0x55, false, &[5])?;
    for (id, v) in vcpus.iter().enumerate() {
        lapic(v, &[(0xe0, 0x0fff_ffff), (0xd0, (id as u32 / 4) << 28 | 1 << (24 + id % 4))])?;
    }
    reaches(&vcpus, "cluster", 0x2b, true, &[8, 9, 11])?;
    for v in &vcpus {
        let mut s: kvm_sregs = v.fd.get(nr::GET_SREGS)?;
        s.apic_base |= 0xc00;
        v.fd.set(nr::SET_SREGS, &s)?;
    }
    reaches(&vcpus, "x2APIC", 5, false, &[5])?;
    reaches(&vcpus, "x2APIC cluster", 0x0f, true, &[0, 1, 2, 3])?;
    reaches(&vcpus, "x2APIC broadcast", 0xff, false, &all)?;
    Ok(())
}

/// A VM of 300 vCPUs: messages of user space, of a route and of a vCPU reach the last, by the ways that KVM_CAP_X2APIC_API opens, and it
/// takes them. Without that API an id has 8 bits, and a device's 0xff is everybody. Whoever is in xAPIC mode is not taken for another.
fn ids_above_255(e: &Env) -> R {
    const CPUS: u32 = 300;
    const LAST: u32 = CPUS - 1;
    const TWIN: u32 = 0x101;
    /// Have their APICs on, in x2APIC mode; the third has the lower bits of the last one's id.
    const LISTEN: [u32; 5] = [0, 1, LAST & 0xff, 0xff, LAST];
    let (sys, vm) = e.vm_with_chips()?;
    let mem = kvm::Map::anon(MEM)?;
    kvm::set_slot(&vm, 0, 0, 0, MEM as u64, mem.addr())?;
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: our own structure; failure only means the old limit.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    let mut vcpus = Vec::new();
    for id in 0..CPUS {
        let v = vcpu(&sys, &vm, id.into())?;
        if LISTEN.contains(&id) {
            exitless_runner::machine::set_cpuid(&sys, &v.fd, id)?;
            let mut s: kvm_sregs = v.fd.get(nr::GET_SREGS)?;
            s.apic_base |= 0xc00;
            // Before x2APIC mode: a page with 8 bits of the id would be an id of its own on stock KVM.
            lapic(&v, &[(0xf0, 0x1ff)])?;
            v.fd.set(nr::SET_SREGS, &s)?;
        }
        vcpus.push(v);
    }
    let all: Vec<usize> = LISTEN.iter().map(|&id| id as usize).collect();
    let last = [LAST as usize];
    let to = |id: u32, vector| kvm_msi {
        address_lo: 0xfee0_0000 | (id & 0xff) << 12,
        address_hi: id & !0xff,
        data: vector,
        ..Default::default()
    };
    let id_of = |v: &Vcpu| -> Result<u32, Stop> { Ok(reg(&v.fd.get(nr::GET_LAPIC)?, 0x20)) };

    vm.set(nr::SIGNAL_MSI, &to(LAST, 0x41))?;
    same!(pending(&vcpus, 0x41)?, all[2..3], "8 bits of an id");
    vm.set(nr::SIGNAL_MSI, &to(0xff, 0x42))?;
    same!(pending(&vcpus, 0x42)?, all, "a device's 0xff");
    same!(id_of(&vcpus[last[0]])?, LAST << 24, "saved id, 8 bits");

    same!(vm.cap(KVM_CAP_X2APIC_API), 3, "KVM_CAP_X2APIC_API");
    errno!(vm.enable_cap(KVM_CAP_X2APIC_API, 0, [4, 0, 0, 0]), EINVAL, "an unknown flag");
    vm.enable_cap(KVM_CAP_X2APIC_API, 0, [KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.into(), 0, 0, 0])?;
    vm.set(nr::SIGNAL_MSI, &to(0xff, 0x43))?;
    same!(pending(&vcpus, 0x43)?, [0xff], "0xff as an id");
    vm.enable_cap(KVM_CAP_X2APIC_API, 0, [KVM_X2APIC_API_USE_32BIT_IDS.into(), 0, 0, 0])?;
    same!(id_of(&vcpus[last[0]])?, LAST, "saved id, 32 bits");
    let mut other: kvm_lapic_state = vcpus[last[0]].fd.get(nr::GET_LAPIC)?;
    set_reg(&mut other, 0x20, 1);
    errno!(vcpus[last[0]].fd.set(nr::SET_LAPIC, &other), EINVAL, "another id");
    vm.set(nr::SIGNAL_MSI, &to(LAST, 0x44))?;
    same!(pending(&vcpus, 0x44)?, last, "SIGNAL_MSI");
    vm.set(nr::SIGNAL_MSI, &to(0x8_00ff, 0x45))?;
    same!(pending(&vcpus, 0x45)?, [], "an id that nobody can have");
    let odd = kvm_msi { address_hi: 0x101, ..to(LAST, 0x45) };
    errno!(vm.set(nr::SIGNAL_MSI, &odd), EINVAL, "reserved bits of the address");
    let mut r = msi_route(24, 0x46);
    r.u.msi = kvm_irq_routing_msi {
        address_lo: to(LAST, 0).address_lo,
        address_hi: to(LAST, 0).address_hi,
        data: 0x46,
        ..Default::default()
    };
    route(&vm, &[r], 0)?;
    raise(&vm, 24, 1)?;
    same!(pending(&vcpus, 0x46)?, last, "a route");

    // MOV ECX, 830h; MOV EDX, destination; MOV EAX, command; WRMSR; OUT 80h, AL
    let ipi = |destination: u32, command: u32| {
        let number = |opcode: u8, v: u32| [&[0x66, opcode][..], &v.to_le_bytes()].concat();
        let code = [number(0xb9, 0x830), number(0xba, destination), number(0xb8, command)].concat();
        mem.write(ENTRY, &[&code[..], &[0x0f, 0x30, 0xe6, 0x80]].concat());
        real_mode(&vcpus[0].fd, ENTRY)?;
        vcpus[0].run_to(KVM_EXIT_IO)
    };
    ipi(LAST, 0x47)?;
    same!(pending(&vcpus, 0x47)?, last, "an IPI");
    ipi((LAST >> 4) << 16 | 1 << (LAST & 15), 1 << 11 | 0x48)?;
    same!(pending(&vcpus, 0x48)?, last, "an IPI to one of a cluster");

    // STI; HLT; and the handler of the highest vector: OUT 81h, AL
    let (code, handler) = (0x2000_u64, 0x3000_u64);
    mem.write(code, &[0xfb, 0xf4]);
    mem.write(handler, &[0xe6, 0x81]);
    mem.write(0x48 * 4, &(handler as u32).to_le_bytes());
    let v = &vcpus[last[0]];
    real_mode(&v.fd, code)?;
    v.fd.set(nr::SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
    v.run_to(KVM_EXIT_IO)?;
    same!(v.io().0, 0x81, "port of the handler");

    // One whose id has the lower 8 bits of another's, and that is in xAPIC mode still, as the firmware has not started it.
    let twin = &vcpus[TWIN as usize];
    lapic(twin, &[(0xf0, 0x1ff)])?;
    for id in [1, TWIN] {
        ipi(id, 0x49)?;
        same!(
            pending(&vcpus, 0x49)?,
            if id == 1 { vec![1] } else { vec![1, TWIN as usize] },
            "an IPI to {id}"
        );
    }
    if exitless() {
        // For stock KVM the former is none in xAPIC mode, and the latter is one.
        ipi(u32::MAX, 0x4a)?;
        same!(pending(&vcpus, 0x4a)?, [&all[..4], &[TWIN as usize], &last].concat(), "a broadcast");
        ipi(0xff, 0x4b)?;
        same!(pending(&vcpus, 0x4b)?, [0xff], "an IPI to 255");
    }
    let states = || -> Result<[u32; 2], Stop> {
        let of = |id: u32| vcpus[id as usize].fd.get::<kvm_mp_state>(nr::GET_MP_STATE).map(|s| s.mp_state);
        Ok([of(1)?, of(TWIN)?])
    };
    let [fresh, started] = [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_RUNNABLE];
    for (id, want) in [(1, [started, fresh]), (TWIN, [started, started])] {
        ipi(id, 0x4500)?;
        states()?;
        ipi(id, 0x4604)?;
        same!(states()?, want, "INIT and SIPI to {id}");
    }
    Ok(())
}

fn ioev(vm: &Fd, fd: i32, addr: u64, len: u32, flags: u32, datamatch: u64) -> kvm::Result<i32> {
    vm.set(nr::IOEVENTFD, &kvm_ioeventfd { datamatch, addr, len, fd, flags, ..Default::default() })
}
const MATCH: u32 = 1;
const PIO: u32 = 2;
const OFF: u32 = 4;

fn ioeventfd_errors(e: &Env) -> R {
    let (s, vm) = e.vm()?;
    let a = kvm::eventfd()?;
    for len in [3, 5, 16] {
        errno!(ioev(&vm, a.raw(), 0x1000, len, 0, 0), EINVAL, "length {len}");
    }
    errno!(ioev(&vm, a.raw(), 0x1000, 4, 0x80, 0), EINVAL, "flags");
    errno!(ioev(&vm, a.raw(), 0x1000, 0, MATCH, 0), EINVAL, "length 0 with datamatch");
    errno!(ioev(&vm, a.raw(), u64::MAX - 1, 4, 0, 0), EINVAL, "address wraps");
    errno!(ioev(&vm, -1, 0x1000, 4, 0, 0), EBADF, "no descriptor");
    errno!(ioev(&vm, s.raw(), 0x1000, 4, 0, 0), EINVAL, "not an eventfd");
    Ok(())
}

fn ioeventfd_conflicts(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let (a, b) = (kvm::eventfd()?, kvm::eventfd()?);
    ioev(&vm, a.raw(), 0x1000, 4, MATCH, 1)?;
    ioev(&vm, b.raw(), 0x1000, 4, MATCH, 2)?;
    errno!(ioev(&vm, b.raw(), 0x1000, 4, MATCH, 1), EEXIST, "same value");
    errno!(ioev(&vm, b.raw(), 0x1000, 4, 0, 0), EEXIST, "any value over one value");
    ioev(&vm, b.raw(), 0x1000, 4, PIO | MATCH, 1)?; // another bus
    ioev(&vm, b.raw(), 0x1000, 2, MATCH, 1)?; // another length
    ioev(&vm, a.raw(), 0x2000, 0, 0, 0)?;
    errno!(ioev(&vm, b.raw(), 0x2000, 4, MATCH, 1), EEXIST, "any length is there");
    Ok(())
}

fn ioeventfd_deassign(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let (a, b) = (kvm::eventfd()?, kvm::eventfd()?);
    errno!(ioev(&vm, a.raw(), 0x1000, 4, OFF, 0), ENOENT, "not assigned");
    ioev(&vm, a.raw(), 0x1000, 4, MATCH, 7)?;
    errno!(ioev(&vm, a.raw(), 0x1000, 4, OFF | MATCH, 8), ENOENT, "another value");
    errno!(ioev(&vm, b.raw(), 0x1000, 4, OFF | MATCH, 7), ENOENT, "another eventfd");
    ioev(&vm, a.raw(), 0x1000, 4, OFF | MATCH, 7)?;
    errno!(ioev(&vm, a.raw(), 0x1000, 4, OFF | MATCH, 7), ENOENT, "again");
    ioev(&vm, b.raw(), 0x1000, 4, 0, 0)?;
    Ok(())
}

fn ioeventfd_many(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let a = kvm::eventfd()?;
    for i in 0..300 {
        ioev(&vm, a.raw(), 0xd000_0000 + i * 16, 4, 0, 0)?;
        ioev(&vm, a.raw(), 0x4000 + i, 1, PIO, 0)?;
    }
    for i in (0..300).rev() {
        ioev(&vm, a.raw(), 0xd000_0000 + i * 16, 4, OFF, 0)?;
        ioev(&vm, a.raw(), 0x4000 + i, 1, PIO | OFF, 0)?;
    }
    Ok(())
}

fn coalesced(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    if vm.cap(KVM_CAP_COALESCED_MMIO) <= 0 {
        return skip("no KVM_CAP_COALESCED_MMIO");
    }
    let z = kvm_coalesced_mmio_zone { addr: 0xd000_0000, size: 4096, ..Default::default() };
    vm.set(nr::REGISTER_COALESCED_MMIO, &z)?;
    vm.set(nr::UNREGISTER_COALESCED_MMIO, &z)?;
    vm.set(nr::UNREGISTER_COALESCED_MMIO, &z)?; // nothing there: no error
    Ok(())
}
