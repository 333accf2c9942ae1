//! Which mechanisms a vCPU chooses, and when it does so anew.

use crate::fake::guest::*;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::Request;
use exitless_vcpu::chooser::{Facts, Mechanism, Reason, Set};

fn facts(m: &Machine) -> Facts {
    m.sh.chosen.facts().expect("it ran")
}

/// Nothing is chosen before the first entry; then what is active is what its facts and the switches make of the table.
#[test]
fn chosen_before_the_first_entry() {
    let mut m = Machine::new([Op::Nop]);
    assert_eq!((m.sh.chosen.facts(), m.sh.chosen.active()), (None, Set::NONE));
    m.go();
    assert_eq!(m.sh.chosen.active(), exitless_vcpu::chooser::active(Set::ALL, &facts(&m)));
    assert!(m.sh.active(Mechanism::PortFastpath));
    assert!(facts(&m).has(Reason::NoTimer) && !facts(&m).has(Reason::NoIrqchip));
    let mut bare = Machine::without_irqchip([Op::Nop]);
    bare.go();
    assert!(facts(&bare).has(Reason::NoIrqchip));
}

/// Each fact that changes is looked at before the next entry. Left out, a mechanism goes on where it must not.
#[test]
fn facts_that_change() {
    let mut m = Machine::virtual_apic(true, [Op::Nop]);
    m.w.idles_in_guest.set(true);
    m.w.housekeeping.set(true);
    m.w.start_tick(1 << 40);
    m.go();
    let expected = [Reason::NotAsked, Reason::NotAgreed, Reason::NoIpiv, Reason::NotAllowed, Reason::NotRaw];
    assert_eq!(facts(&m).against, expected.iter().fold(0, |all, reason| all | 1 << *reason as u8));
    assert_ne!(facts(&m).features & 1 << 11, 0);
    // KVM_SET_CPUID2 without the TSC-deadline timer, and without a feature of KVM's.
    m.set_cpuid_with(|e| {
        if e.function == 1 {
            e.ecx &= !(1 << 24);
        }
        if e.function == 0x4000_0001 {
            e.eax &= !(1 << 11);
        }
    });
    m.then([Op::Nop]);
    assert!(facts(&m).has(Reason::NoDeadline) && !m.sh.active(Mechanism::DeadlineFastpath));
    assert_eq!(facts(&m).features & 1 << 11, 0);
    // The guest turns its APIC off: software has it.
    m.then([wrmsr(0x1b, 0xfee0_0100), Op::Nop]);
    assert!(facts(&m).has(Reason::NoDelivery));
    // The host's TSCs are found to differ.
    assert!(m.sh.active(Mechanism::TimerFastpath));
    m.w.unsteady.set(true);
    m.happen(Env::Ask(Request::TSC));
    m.then([Op::Nop]);
    assert!(facts(&m).has(Reason::UnsteadyTsc) && !m.sh.active(Mechanism::TimerFastpath));
}
