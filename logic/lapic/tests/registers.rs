//! Registers, modes and priorities, one test per rule of the SDM (vol. 3A, chapter 11) or of the KVM API.
// Most accesses are made for their effect on the registers, not for their `Work`.
#![allow(unused_must_use)]

mod common;
use common::*;
use exitless_lapic::*;
use exitless_x86::apic::*;

const ALL_LVT: [u32; 6] =
    [reg::LVT_TIMER, reg::LVT_THERMAL, reg::LVT_PC, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR];

/// 11.4.7.1: the state after power-up.
#[test]
fn power_up_state() {
    let cpu = Cpu::raw(3, false, Config::default());
    assert_eq!(cpu.l.apic_base(), 0xfee0_0800);
    assert_eq!(cpu.read(reg::ID), 3 << 24);
    assert_eq!(cpu.read(reg::VERSION), 0x0005_0014);
    for offset in
        [reg::TPR, reg::PPR, reg::LDR, reg::ESR, reg::ICR, reg::ICR2, reg::TMICT, reg::TMCCT, reg::TDCR]
    {
        assert_eq!(cpu.read(offset), 0, "{offset:#x}");
    }
    assert_eq!(cpu.read(reg::DFR), 0xffff_ffff);
    assert_eq!(cpu.read(reg::SVR), 0xff);
    for offset in ALL_LVT {
        assert_eq!(cpu.read(offset), lvt::MASKED, "{offset:#x}");
    }
    assert!(!cpu.s.accepts_ext_int());
    let bsp = Cpu::raw(0, true, Config::default());
    assert_eq!(bsp.l.apic_base(), 0xfee0_0900);
    assert_eq!(bsp.read(reg::LVT_LINT0), 0x700);
    assert!(bsp.s.accepts_ext_int(), "the boot CPU takes 8259 interrupts before software touches the APIC");
    let plain = Cpu::raw(0, true, Config { lint0_reenabled: false, ..Config::default() });
    assert_eq!(plain.read(reg::LVT_LINT0), lvt::MASKED);
}

/// 11.4.7.3: INIT resets all but the id and IA32_APIC_BASE; in x2APIC mode it stays there.
#[test]
fn init_keeps_id_and_base() {
    let mut cpu = Cpu::xapic(3);
    cpu.base(0xfec0_0800);
    cpu.write(reg::ID, 9 << 24);
    cpu.write(reg::LDR, 4 << 24);
    cpu.write(reg::TPR, 0x33);
    cpu.s.post(0x80, true);
    cpu.s.queue_nmi();
    cpu.l.reset(&cpu.s, Reset::Init);
    assert_eq!((cpu.read(reg::ID), cpu.l.apic_base()), (9 << 24, 0xfec0_0800));
    assert_eq!((cpu.read(reg::LDR), cpu.read(reg::TPR), cpu.read(reg::SVR)), (0, 0, 0xff));
    assert!(!cpu.s.has_irr() && !cpu.s.is_level(0x80));
    assert!(cpu.s.has_nmis(), "events are the vCPU's business");
    cpu.l.reset(&cpu.s, Reset::PowerUp);
    assert_eq!((cpu.read(reg::ID), cpu.l.apic_base()), (3 << 24, 0xfee0_0800));
    let mut cpu = Cpu::x2apic(0x123);
    cpu.l.reset(&cpu.s, Reset::Init);
    assert_eq!((cpu.l.mode(), cpu.rdmsr(reg::ID)), (Mode::X2Apic, Ok(0x123)));
    assert_eq!(cpu.rdmsr(reg::LDR), Ok(0x12_0008));
}

/// 11.4.7.2: software disable masks the LVT and keeps it masked; pending interrupts stay deliverable.
#[test]
fn software_disable() {
    let mut cpu = Cpu::xapic(0);
    for offset in ALL_LVT {
        cpu.write(offset, 0x40);
        assert_eq!(cpu.read(offset), 0x40);
    }
    cpu.s.post(0x50, false);
    cpu.write(reg::SVR, 0xff);
    for offset in ALL_LVT {
        assert_eq!(cpu.read(offset), 0x40 | lvt::MASKED);
        cpu.write(offset, 0x41);
        assert_eq!(cpu.read(offset), 0x41 | lvt::MASKED);
    }
    assert_eq!(cpu.pending(), Some(0x50));
    assert_eq!(cpu.s.accept(&fixed(0, 0x60)), Accepted::None);
    assert_eq!(cpu.s.accept(&InterruptMessage { mode: DeliveryMode::NMI, ..fixed(0, 0) }), Accepted::Nmi);
    cpu.write(reg::SVR, 0x1ff);
    assert_eq!(cpu.read(reg::LVT_LINT1), 0x41 | lvt::MASKED, "enabling does not unmask");
    assert_eq!(cpu.s.accept(&fixed(0, 0x60)), Accepted::Event);
}

/// Figure 11-8: only the defined bits of each LVT entry are writable; delivery status and remote IRR are not.
#[test]
fn lvt_keeps_defined_bits() {
    let mut cpu = Cpu::xapic(0);
    let expected = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
    for (offset, expected) in ALL_LVT.into_iter().zip(expected) {
        cpu.write(offset, u32::MAX);
        assert_eq!(cpu.read(offset), expected, "{offset:#x}");
    }
    cpu.write(reg::LVT_CMCI, 0x55);
    assert_eq!(cpu.read(reg::LVT_CMCI), 0, "absent without the feature");
    cpu.l.set_config(Config { cmci: true, tsc_deadline: false, ..Config::default() });
    cpu.write(reg::LVT_CMCI, 0x55);
    assert_eq!((cpu.read(reg::LVT_CMCI), cpu.read(reg::VERSION)), (0x55, 0x0006_0014));
    cpu.write(reg::LVT_TIMER, u32::MAX);
    assert_eq!(cpu.read(reg::LVT_TIMER), 0x3_00ff, "no TSC-deadline bit without the feature");
}

/// 11.8.3.1: PPR is the TPR or the class in service, whichever class is higher; only higher classes are deliverable.
#[test]
fn priorities() {
    let mut cpu = Cpu::xapic(0);
    cpu.s.post(0x41, false);
    for (tpr, deliverable) in
        [(0x00, true), (0x3f, true), (0x40, false), (0x4f, false), (0xf0, false), (0x30, true)]
    {
        assert!(cpu.write(reg::TPR, tpr).rescan);
        assert_eq!(cpu.read(reg::PPR), tpr);
        assert_eq!(cpu.pending().is_some(), deliverable, "TPR {tpr:#x}");
    }
    assert_eq!(cpu.take(), Some(0x41));
    assert_eq!(cpu.read(reg::PPR), 0x40, "class in service, sub-class 0");
    assert_eq!(cpu.s.arbitration_priority(), 0x40);
    cpu.write(reg::TPR, 0x4c);
    assert_eq!(cpu.read(reg::PPR), 0x4c, "equal classes: the TPR");
    cpu.s.post(0x4f, false);
    assert_eq!(cpu.pending(), None, "same class waits for EOI");
    cpu.s.post(0x52, true);
    assert_eq!(cpu.take(), Some(0x52));
    let level = EoiWork { vector: 0x52, level: true, broadcast: true };
    assert_eq!(cpu.write(reg::EOI, 0), Work { eoi: Some(level), rescan: true, ..Work::default() });
    assert_eq!(cpu.eoi(), Some(EoiWork { vector: 0x41, level: false, broadcast: false }));
    cpu.l.set_cr8(&cpu.s, 3);
    assert_eq!((cpu.l.cr8(), cpu.l.tpr(), cpu.take()), (3, 0x30, Some(0x4f)));
    assert!(cpu.eoi().is_some());
    assert_eq!(cpu.write(reg::EOI, 0), Work::default(), "EOI with nothing in service");
}

/// 11.8.5: SVR bit 12 keeps level EOIs from the I/O APICs, where the version register offers it.
#[test]
fn directed_eoi() {
    for directed_eoi in [false, true] {
        let mut cpu = Cpu::raw(0, false, Config { directed_eoi, ..Config::default() });
        cpu.write(reg::SVR, 0x11ff);
        assert_eq!(cpu.read(reg::SVR), if directed_eoi { 0x11ff } else { 0x1ff });
        assert_eq!(cpu.read(reg::VERSION) >> 24 != 0, directed_eoi);
        cpu.s.post(0x66, true);
        cpu.take();
        assert_eq!(cpu.eoi(), Some(EoiWork { vector: 0x66, level: true, broadcast: !directed_eoi }));
        // Offered, but not asked for.
        cpu.write(reg::SVR, 0x1ff);
        cpu.s.post(0x66, true);
        cpu.take();
        assert_eq!(cpu.eoi(), Some(EoiWork { vector: 0x66, level: true, broadcast: true }));
        // In x2APIC mode the bit is reserved where it is not offered.
        cpu.base(cpu.l.apic_base() | apic_base::X2APIC).unwrap();
        assert_eq!(cpu.wrmsr(reg::SVR, 0x11ff).is_ok(), directed_eoi);
    }
}

/// The id that physical destinations name.
fn physical_id(cpu: &Cpu) -> u32 {
    let address = cpu.s.address();
    if address.x2apic() { address.x2apic_id() } else { address.xapic_id().into() }
}

/// What senders compare destinations with follows each write that changes it, and the write says so.
#[test]
fn what_senders_see_of_ids() {
    let routing = Work { routing_changed: true, ..Work::default() };
    let mut cpu = Cpu::raw(0x103, false, Config::default());
    assert_eq!(cpu.write(reg::SVR, 0x1ff), Work { rescan: true, ..routing });
    assert_eq!((cpu.l.id(), physical_id(&cpu), cpu.s.address().default_page()), (3, 3, true));
    cpu.write(reg::ID, 0x55 << 24);
    assert_eq!((cpu.l.id(), physical_id(&cpu)), (0x55, 0x55));
    cpu.write(reg::LDR, 0x42 << 24);
    assert_eq!(cpu.read(reg::LDR), 0x42 << 24);
    assert_eq!(cpu.base(0xfed0_0000 | apic_base::ENABLE), Ok(routing), "the page alone has moved");
    assert!(!cpu.s.address().default_page());
    cpu.base(apic_base::DEFAULT_ADDRESS | apic_base::ENABLE | apic_base::X2APIC).unwrap();
    assert_eq!((cpu.l.id(), physical_id(&cpu), cpu.s.address().default_page()), (0x103, 0x103, false));
    cpu.base(apic_base::DEFAULT_ADDRESS).unwrap();
    assert!(!cpu.s.address().default_page());
    cpu.base(apic_base::DEFAULT_ADDRESS | apic_base::ENABLE).unwrap();
    assert_eq!((physical_id(&cpu), cpu.s.address().default_page()), (3, true));
}

/// What hardware shows to the guest without an exit is what a read that exits gives.
#[test]
fn shown_registers_read_alike() {
    for cmci in [false, true] {
        let mut cpu = Cpu::raw(0x103, false, Config { cmci, ..Config::default() });
        cpu.write(reg::SVR, 0x1ff);
        for (offset, value) in [(reg::LDR, 0x42 << 24), (reg::LVT_LINT1, 0x400), (reg::TMICT, 1 << 20)] {
            cpu.write(offset, value);
        }
        cpu.write(reg::ICR2, 7 << 24);
        let mut shown = 0;
        cpu.l.show(|offset, value| {
            shown += 1;
            assert_eq!(value, cpu.read(offset), "{offset:x}");
        });
        assert_eq!(shown, 17);
        cpu.base(cpu.l.apic_base() | apic_base::X2APIC).unwrap();
        cpu.l.show(|offset, value| {
            let read = cpu.rdmsr(offset).map(|value| value as u32);
            // No such register in this mode, or hidden: nothing to compare with.
            assert!(read.is_err() || read == Ok(value), "{offset:x}");
        });
        assert_eq!(cpu.rdmsr(reg::ID), Ok(0x103));
    }
}

/// A host that restores may have loaded the ICR before the mode: it stays.
#[test]
fn the_host_keeps_the_icr_over_a_change_of_mode() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(reg::ICR2, 5 << 24);
    cpu.host_base(cpu.l.apic_base() | apic_base::X2APIC).unwrap();
    assert_eq!(cpu.rdmsr(reg::ICR).map(|icr| icr >> 32), Ok(5 << 24));
}

/// 11.5.3: vectors below 16 are illegal, for the error entry too.
#[test]
fn the_error_entry_has_a_legal_vector_or_none() {
    for (vector, sent) in [(15, 0), (16, 1 << 16)] {
        let mut cpu = Cpu::xapic(0);
        cpu.write(reg::LVT_ERROR, vector);
        cpu.s.accept(&fixed(0, 3));
        assert_eq!(cpu.read(reg::IRR), sent);
    }
}

/// 11.8.4: the TMR follows the trigger mode of the latest acceptance.
#[test]
fn trigger_mode_register() {
    let cpu = Cpu::xapic(0);
    assert!(cpu.s.post(0xa5, true));
    assert_eq!(cpu.read(reg::TMR + 0x50), 1 << 5);
    assert!(!cpu.s.post(0xa5, false), "coalesced, and edge now");
    assert_eq!(cpu.read(reg::TMR + 0x50), 0);
    assert_eq!(cpu.read(reg::IRR + 0x50), 1 << 5);
}

/// PV EOI is offered only if skipping the EOI can neither delay another interrupt nor hide a level EOI.
#[test]
fn pv_eoi_conditions() {
    let mut cpu = Cpu::xapic(0);
    assert_eq!(cpu.l.can_pv_eoi(&cpu.s), None);
    cpu.s.post(0x40, false);
    cpu.take();
    assert_eq!(cpu.l.can_pv_eoi(&cpu.s), Some(0x40));
    cpu.s.post(0x41, false);
    assert_eq!(cpu.l.can_pv_eoi(&cpu.s), None, "0x41 waits for the EOI");
    cpu.eoi();
    cpu.take();
    cpu.s.post(0x50, false);
    cpu.take();
    assert_eq!(cpu.l.can_pv_eoi(&cpu.s), None, "two in service");
    cpu.eoi();
    assert_eq!(cpu.l.can_pv_eoi(&cpu.s), Some(0x41));
    cpu.eoi();
    cpu.s.post(0x60, true);
    cpu.take();
    assert_eq!(cpu.l.can_pv_eoi(&cpu.s), None, "level triggered");
}

/// 11.5.3: errors collect, a write latches and clears, the error interrupt fires once until then.
#[test]
fn error_status() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(reg::LVT_ERROR, 0xfe);
    assert_eq!(
        cpu.write(reg::ICR, 0x0f),
        Work { rescan: true, ..Work::default() },
        "illegal vector is not sent"
    );
    assert_eq!(cpu.take(), Some(0xfe));
    assert_eq!(cpu.s.accept(&fixed(0, 0x0f)), Accepted::None, "error interrupt not rearmed");
    assert_eq!(cpu.read(reg::ESR), 0, "not latched yet");
    cpu.write(reg::ESR, 0);
    assert_eq!(cpu.read(reg::ESR), 0x60, "send and receive illegal vector");
    cpu.eoi();
    assert_eq!(cpu.s.accept(&fixed(0, 0x00)), Accepted::Event, "rearmed: LVT error posted");
    assert_eq!(cpu.s.top_irr(), Some(0xfe));
    cpu.write(reg::ESR, 0);
    assert_eq!(cpu.read(reg::ESR), 0x40);
    cpu.write(reg::ESR, 0);
    assert_eq!(cpu.read(reg::ESR), 0);
    cpu.take();
    cpu.write(reg::LVT_ERROR, 0x05);
    assert_eq!(cpu.s.accept(&fixed(0, 1)), Accepted::None, "an illegal error vector is not delivered either");
    assert!(!cpu.s.has_irr());
}

/// Figure 11-27: every transition from every state, by guest and by host.
#[test]
fn apic_base_transitions() {
    const DISABLED: u64 = 0xfee0_0000;
    const XAPIC: u64 = 0xfee0_0800;
    const X2APIC: u64 = 0xfee0_0c00;
    const INVALID: u64 = 0xfee0_0400;
    for from in [DISABLED, XAPIC, X2APIC] {
        for to in [DISABLED, XAPIC, X2APIC, INVALID] {
            for host in [false, true] {
                let mut cpu = Cpu::xapic(1);
                cpu.host_base(from).unwrap();
                let allowed = to != INVALID
                    && (host || (from, to) != (DISABLED, X2APIC) && (from, to) != (X2APIC, XAPIC));
                let done = if host { cpu.host_base(to) } else { cpu.base(to) };
                assert_eq!(done.is_ok(), allowed, "{from:#x} -> {to:#x}, host {host}");
                assert_eq!(cpu.l.apic_base(), if allowed { to } else { from });
                let mode = if allowed { to } else { from };
                assert_eq!(cpu.s.hw_enabled(), mode != DISABLED);
                assert_eq!(cpu.l.mmio_base(), (mode == XAPIC).then_some(0xfee0_0000));
                assert_eq!(cpu.rdmsr(reg::ID).is_ok(), mode == X2APIC);
            }
        }
    }
}

/// 11.4.4: reserved bits of IA32_APIC_BASE; the address may move anywhere below MAXPHYADDR.
#[test]
fn apic_base_reserved_bits() {
    let mut cpu = Cpu::xapic(1);
    for bit in 0..64 {
        let reserved = bit < 8 || bit == 9 || bit >= 40;
        let value = 0x800 | 1u64 << bit;
        for host in [false, true] {
            let caps = BaseCaps { x2apic: false, maxphyaddr: 40 };
            let done = cpu.l.set_apic_base(&cpu.s, value, caps, host);
            assert_eq!(done.is_err(), reserved || bit == 10, "bit {bit}, host {host}");
        }
    }
    cpu.base(0x12_3456_7800).unwrap();
    assert_eq!(cpu.l.mmio_base(), Some(0x12_3456_7000));
}

/// 11.4.3: a disabled APIC takes no messages, its pins are INTR and NMI, its timer is dead; enabling starts from reset state.
#[test]
fn hardware_disable() {
    let mut cpu = Cpu::xapic(1);
    cpu.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x30);
    cpu.deadline(u64::MAX);
    cpu.s.post(0x77, false);
    let work = cpu.base(0xfee0_0000).unwrap();
    assert!(work.timer_changed && work.routing_changed && work.rescan);
    assert_eq!((cpu.l.armed(), cpu.l.tsc_deadline(), cpu.pending()), (Armed::None, 0, None));
    cpu.deadline(1);
    assert!(!cpu.expire());
    assert!(cpu.s.accepts_ext_int());
    assert!(!cpu.s.address().names(&fixed(1, 0x40)) && !cpu.s.address().names(&fixed(0xff, 0x40)));
    for mode in 0..8 {
        let message = InterruptMessage { mode: DeliveryMode(mode), ..fixed(1, 0x40) };
        assert_eq!(cpu.s.accept(&message), Accepted::None, "mode {mode}");
    }
    cpu.base(0xfee0_0800).unwrap();
    assert_eq!((cpu.read(reg::SVR), cpu.read(reg::ID)), (0xff, 1 << 24));
    assert!(!cpu.s.has_irr() && !cpu.s.accepts_ext_int());
}

/// Restoring a vCPU: the host's mode changes keep registers, pending interrupts and timer.
#[test]
fn host_mode_changes_keep_state() {
    let mut cpu = Cpu::xapic(5);
    cpu.write(reg::TPR, 0x20);
    cpu.write(reg::LVT_TIMER, 0x30);
    cpu.write(reg::TMICT, 1000);
    cpu.s.post(0x77, false);
    for base in [0xfee0_0000, 0xfee0_0c00, 0xfee0_0800, 0xfee0_0c00] {
        cpu.host_base(base).unwrap();
    }
    assert_eq!((cpu.rdmsr(reg::TPR), cpu.pending()), (Ok(0x20), Some(0x77)));
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 2000));
    // The id goes back to the vCPU's on the way from x2APIC to xAPIC, whatever the guest had written.
    let mut cpu = Cpu::xapic(5);
    cpu.write(reg::ID, 77 << 24);
    cpu.host_base(0xfee0_0c00).unwrap();
    cpu.host_base(0xfee0_0800).unwrap();
    assert_eq!(cpu.read(reg::ID), 5 << 24);
}

/// An xAPIC destination does not read back as an x2APIC one after the guest's switch; the rest of the ICR stays.
#[test]
fn icr_across_modes() {
    let mut cpu = Cpu::xapic(5);
    cpu.write(reg::ICR2, 7 << 24);
    cpu.write(reg::ICR, 0x4055);
    cpu.base(0xfee0_0c00).unwrap();
    assert_eq!(cpu.rdmsr(reg::ICR), Ok(0x4055));
}

/// Table 11-6, the whole MSR range: which registers read, which write (0), which #GP; outside x2APIC mode all #GP.
#[test]
fn x2apic_msr_permissions() {
    let readable = |offset: u32| match offset {
        reg::ID | reg::VERSION | reg::TPR | reg::PPR | reg::LDR | reg::SVR | reg::ESR | reg::ICR => true,
        0x100..=0x270 => true,
        0x320..=0x390 => true,
        _ => offset == reg::TDCR,
    };
    let writable = |offset: u32| match offset {
        reg::TPR | reg::EOI | reg::SVR | reg::ESR | reg::ICR | reg::TDCR => true,
        0x320..=0x380 => true,
        _ => offset == reg::SELF_IPI,
    };
    for index in 0..0x100 {
        let offset = index << 4;
        let mut cpu = Cpu::x2apic(1);
        assert_eq!(cpu.rdmsr(offset).is_ok(), readable(offset), "read {offset:#x}");
        assert_eq!(cpu.wrmsr(offset, 0).is_ok(), writable(offset), "write {offset:#x}");
        for mut cpu in [Cpu::xapic(1), {
            let mut c = Cpu::xapic(1);
            c.base(0xfee0_0000).unwrap();
            c
        }] {
            assert_eq!((cpu.rdmsr(offset), cpu.wrmsr(offset, 0)), (Err(Gp), Err(Gp)));
        }
    }
    let cpu = Cpu::x2apic(1);
    for msr in [0, 0x7ff, 0x900, u32::MAX] {
        assert_eq!(cpu.l.msr_read(&cpu.s, msr, &T0), Err(Gp));
    }
}

/// x2APIC mode raises #GP for each reserved bit and changes nothing.
#[test]
fn x2apic_reserved_bits() {
    let lint = 0x1_f7ff;
    let legal: [(u32, u64); 14] = [
        (reg::TPR, 0xff),
        (reg::EOI, 0),
        (reg::SVR, 0x3ff),
        (reg::ESR, 0),
        (reg::ICR, 0xffff_ffff_000c_dfff),
        (reg::LVT_TIMER, 0x7_10ff),
        (reg::LVT_THERMAL, 0x1_17ff),
        (reg::LVT_PC, 0x1_17ff),
        (reg::LVT_LINT0, lint),
        (reg::LVT_LINT1, lint),
        (reg::LVT_ERROR, 0x1_10ff),
        (reg::TMICT, 0xffff_ffff),
        (reg::TDCR, 0xb),
        (reg::SELF_IPI, 0xff),
    ];
    for (offset, legal) in legal {
        for bit in 0..64 {
            let mut cpu = Cpu::x2apic(1);
            let before = cpu.save();
            let done = cpu.wrmsr(offset, 1 << bit);
            assert_eq!(done.is_ok(), legal >> bit & 1 == 1, "{offset:#x} bit {bit}");
            assert!(done.is_ok() || cpu.save() == before);
        }
    }
}

/// The KVM selftest of the ICR: xAPIC keeps all of ICR but delivery status and bits 31:24 of ICR2; x2APIC keeps all that is legal.
#[test]
fn icr_reads_back() {
    for value in
        [0xa5a5_a5a5_a5a5_a0a5u64, 0x5a5a_5a5a_5a5a_585a, 0xffff_ffff_ffff_f8ff, 0x0500_0000_0000_40ff]
    {
        let mut cpu = Cpu::xapic(0);
        cpu.write(reg::ICR2, (value >> 32) as u32);
        cpu.write(reg::ICR, value as u32);
        let expected = value & 0xff00_0000_ffff_efff;
        assert_eq!(u64::from(cpu.read(reg::ICR2)) << 32 | u64::from(cpu.read(reg::ICR)), expected);
        let page = cpu.save();
        assert_eq!(u64::from(at(&page, reg::ICR2)) << 32 | u64::from(at(&page, reg::ICR)), expected);
        let mut cpu = Cpu::x2apic(0);
        let legal = value & 0xffff_ffff_000c_dfff;
        cpu.wrmsr(reg::ICR, legal).unwrap();
        assert_eq!(cpu.rdmsr(reg::ICR), Ok(legal & !0x1000));
        let page = cpu.save();
        assert_eq!(u64::from(at(&page, reg::ICR2)) << 32 | u64::from(at(&page, reg::ICR)), legal & !0x1000);
    }
}

/// xAPIC order: ICR2 sends nothing, ICR sends to the destination written before.
#[test]
fn icr2_then_icr() {
    let mut cpu = Cpu::xapic(0);
    assert_eq!(cpu.write(reg::ICR2, 0x0700_0000), Work::default());
    let sent = cpu.write(reg::ICR, 0x4055).ipi;
    assert_eq!(sent, Some(fixed(7, 0x55)));
    assert_eq!(cpu.write(reg::ICR, 0x4855).ipi, Some(InterruptMessage { logical: true, ..fixed(7, 0x55) }));
    let mut cpu = Cpu::x2apic(0);
    let sent = cpu.wrmsr(reg::ICR, 0x1_0000_4055).unwrap().ipi;
    assert_eq!(
        sent,
        Some(InterruptMessage { x2apic: true, destination: 0x100, ..fixed(7, 0x55) })
            .map(|m| InterruptMessage { destination: 1, ..m })
    );
}

/// Trigger mode counts for INIT only: a "level" fixed IPI is edge triggered, its EOI is nobody's business.
#[test]
fn fixed_ipi_is_edge() {
    let mut cpu = Cpu::xapic(0);
    assert!(!cpu.write(reg::ICR, 0xc055).ipi.unwrap().level);
    let deassert = cpu.write(reg::ICR, 0x8500).ipi.unwrap();
    assert!(deassert.level && !deassert.assert);
    assert_eq!(cpu.s.accept(&deassert), Accepted::None);
    let assert = cpu.write(reg::ICR, 0xc500).ipi.unwrap();
    assert_eq!(cpu.s.accept(&assert), Accepted::Startup);
}

/// Each way to interrupt oneself: shorthand, own id (through `route`), SELF_IPI. An illegal vector is an error, not an interrupt.
#[test]
fn self_ipi_forms() {
    let mut cpu = Cpu::xapic(0);
    assert_eq!(cpu.write(reg::ICR, 0x4_4055), Work { rescan: true, ..Work::default() });
    assert_eq!(cpu.take(), Some(0x55));
    let mut cpu = Cpu::x2apic(3);
    assert_eq!(cpu.wrmsr(reg::ICR, 0x4_4056), Ok(Work { rescan: true, ..Work::default() }));
    assert_eq!(cpu.take(), Some(0x56));
    assert_eq!(cpu.wrmsr(reg::SELF_IPI, 0x77), Ok(Work { rescan: true, ..Work::default() }));
    assert_eq!(cpu.take(), Some(0x77));
    let message = cpu.wrmsr(reg::ICR, 0x3_0000_4088).unwrap().ipi.unwrap();
    assert!(cpu.s.address().names(&message));
    assert_eq!(cpu.s.accept(&message), Accepted::Event);
    assert_eq!(cpu.take(), Some(0x88));
    cpu.wrmsr(reg::SELF_IPI, 0x0f).unwrap();
    cpu.wrmsr(reg::ESR, 0).unwrap();
    assert_eq!((cpu.rdmsr(reg::ESR), cpu.s.has_irr()), (Ok(0x20), false));
    assert_eq!(
        cpu.write(reg::ICR, 0x4_0400).ipi.unwrap().shorthand,
        Shorthand::SelfOnly,
        "NMI to self is routed"
    );
}

/// ExtINT acceptance follows LINT0: unmasked, in ExtINT mode, the APIC enabled by software.
#[test]
fn local_pins() {
    let mut cpu = Cpu::xapic(0);
    for entry in [0x040, 0x240, 0x400, 0x500, 0x700, 0x340, 0x1_0400, 0x1_0700] {
        for offset in [reg::LVT_LINT0, reg::LVT_LINT1] {
            cpu.l.reset(&cpu.s, Reset::Init);
            cpu.write(reg::SVR, 0x1ff);
            let work = cpu.write(offset, entry);
            assert_eq!(work.rescan, offset == reg::LVT_LINT0);
            assert_eq!(cpu.s.accepts_ext_int(), offset == reg::LVT_LINT0 && entry == 0x700);
        }
    }
    cpu.write(reg::LVT_LINT0, 0x700);
    cpu.write(reg::SVR, 0xff);
    assert!(!cpu.s.accepts_ext_int(), "software disable masks LINT0 for the PIC too");
}

/// NMIs: two wait, a third is lost.
#[test]
fn queued_events() {
    let cpu = Cpu::xapic(0);
    let results: Vec<_> = (0..3).map(|_| cpu.s.queue_nmi()).collect();
    assert_eq!(results, [Accepted::Nmi, Accepted::Nmi, Accepted::Coalesced]);
    assert_eq!((cpu.s.take_nmis(), cpu.s.take_nmis(), cpu.s.has_nmis()), (2, 0, false));
}

/// INIT-SIPI-SIPI: the vector of the latest SIPI counts, an INIT forgets an older SIPI.
#[test]
fn startup_sequence() {
    let cpu = Cpu::xapic(0);
    let send = |mode, vector| cpu.s.accept(&InterruptMessage { mode, ..fixed(0, vector) });
    send(DeliveryMode::STARTUP, 0x9a);
    send(DeliveryMode::INIT, 0);
    assert_eq!(cpu.s.take_startup(), Startup { init: true, sipi: None });
    send(DeliveryMode::INIT, 0);
    send(DeliveryMode::STARTUP, 0x9b);
    send(DeliveryMode::STARTUP, 0x08);
    assert_eq!(cpu.s.take_startup(), Startup { init: true, sipi: Some(0x08) });
    assert_eq!(cpu.s.take_startup(), Startup::default());
    send(DeliveryMode::STARTUP, 0);
    assert_eq!(cpu.s.take_startup(), Startup { init: false, sipi: Some(0) });
}

/// A SIPI that waits is restored in two halves, in any order, even if the owner looks in between.
#[test]
fn a_sipi_is_restored() {
    let cpu = Cpu::xapic(0);
    let sipi = |page| Startup { init: false, sipi: Some(page) };
    cpu.s.restore_sipi_vector(7);
    assert_eq!(cpu.s.take_startup(), Startup::default());
    cpu.s.restore_sipi();
    assert_eq!(cpu.s.take_startup(), sipi(7));
    cpu.s.restore_sipi();
    cpu.s.restore_sipi_vector(9);
    assert_eq!(cpu.s.take_startup(), sipi(9));
}

/// Unknown registers and holes between registers read 0 and ignore writes, up to hostile offsets.
#[test]
fn unknown_registers() {
    let mut cpu = Cpu::xapic(0);
    cpu.s.post(0x20, false);
    let before = cpu.save();
    for offset in (0..0x1000).chain([u32::MAX, u32::MAX - 15]) {
        let known = offset % 16 == 0
            && (matches!(offset, 0x20 | 0x30 | 0x80 | 0xa0 | 0xd0..=0xf0 | 0x100..=0x280 | 0x300..=0x390 | 0x3e0)
                || offset == reg::EOI);
        if !known {
            assert_eq!(cpu.read(offset), 0, "{offset:#x}");
            assert_eq!(cpu.write(offset, u32::MAX), Work::default(), "{offset:#x}");
        }
    }
    for offset in [reg::VERSION, reg::PPR, 0x100, 0x170, 0x180, 0x200, 0x210, reg::TMCCT, reg::SELF_IPI] {
        assert_eq!(cpu.write(offset, u32::MAX), Work::default(), "read-only {offset:#x}");
    }
    assert_eq!(cpu.save(), before);
}
