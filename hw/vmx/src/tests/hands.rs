//! The backend under the run loop: who has the CPU when. The operating system is the run loop's own fake.

use super::fake::{Bench, negotiate, skylake};
use super::{bare, os, world};
use crate::machine::switched;
use crate::percpu::PerCpu;
use exitless_vcpu::VcpuShared;
use exitless_vcpu::backend::Backend;
use exitless_x86::vmx::caps::msr;
use exitless_x86::vmx::control::{interruption as i, secondary};
use exitless_x86::vmx::exit::{BasicReason, ExitReason};
use exitless_x86::vmx::field as f;
use std::boxed::Box;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;
use world::Hand;

/// Runs a vCPU with its own breakpoints whose only entry ends in this way. What happened in that slice, in order.
fn slice(reason: u32, info: u32) -> Vec<Hand> {
    let mut msrs = skylake();
    *msrs.get_mut(&msr::PROCBASED_CTLS2).unwrap() |=
        u64::from(secondary::APIC_REGISTER_VIRTUALIZATION | secondary::VIRTUAL_INTERRUPT_DELIVERY) << 32;
    let caps = negotiate(&msrs).unwrap();
    assert!(caps.apicv(), "exits acknowledge interrupts");
    let bench = Bench::with(&caps);
    bench.load();
    let sh: Rc<VcpuShared> = Rc::new(bytemuck::Zeroable::zeroed());
    let w = world::World::new(sh.clone());
    let off: &'static PerCpu = Box::leak(Box::new(PerCpu::none()));
    let os = os::Os::with(w.clone(), [bench.percpu, off, off, off]);
    let mut v = Box::new(bare::bare(*bench.v));
    v.init(&sh, &os, 0, true);
    v.dr_live = true;
    v.b.set_dr_intercept(false);
    bench.cpu.outside.replace(Some(w.clone()));
    let signal = w.clone();
    bench.cpu.next(move |cpu, run| {
        run.reason = reason;
        // As the world switch has it: read for this reason only.
        run.interruption = if reason == 0 { info } else { 0 };
        cpu.store(f::EXIT_INTERRUPTION_INFO, info);
        signal.signal.set(true);
        switched::EXIT
    });
    let _ = exitless_vcpu::run(&mut *v, &sh, &os);
    w.trail.take()
}

/// The handler of an acknowledged interrupt used to run inside the entry, on the guest's XCR0, XSS and breakpoints: softirqs
/// behind it use the kernel's FPU, and the host panicked (#UD of an AVX-512 instruction) or lost a guest's registers.
#[test]
fn handlers_find_the_hosts_state() {
    for vector in 16..=255u8 {
        let trail = slice(
            u32::from(BasicReason::EXTERNAL_INTERRUPT.0),
            i::VALID | i::TYPE_EXTERNAL | u32::from(vector),
        );
        assert_eq!(trail, [Hand::Loaded, Hand::Entered, Hand::Unloaded, Hand::Interrupt(vector)]);
    }
    let mc = slice(0, i::VALID | i::TYPE_HARDWARE_EXCEPTION | 18);
    assert_eq!(mc, [Hand::Loaded, Hand::Entered, Hand::Unloaded, Hand::MachineCheck]);
    let late = slice(ExitReason::ENTRY_FAILURE | u32::from(BasicReason::ENTRY_MACHINE_CHECK.0), 0);
    assert_eq!(late, [Hand::Loaded, Hand::Entered, Hand::Unloaded, Hand::MachineCheck]);
}

/// No other exit makes the host run anything before the slice is over, whatever the exit.
#[test]
fn no_other_exit_runs_a_handler() {
    let quiet = vec![Hand::Loaded, Hand::Entered, Hand::Unloaded];
    for reason in (0..=80).filter(|r| *r != u32::from(BasicReason::EXTERNAL_INTERRUPT.0)) {
        assert_eq!(slice(reason, i::VALID | i::TYPE_NMI | 2), quiet, "{reason}");
        if reason != u32::from(BasicReason::ENTRY_MACHINE_CHECK.0) {
            assert_eq!(slice(ExitReason::ENTRY_FAILURE | reason, 0), quiet, "{reason}");
        }
    }
    for vector in (0..32).filter(|v| *v != 18) {
        assert_eq!(slice(0, i::VALID | i::TYPE_HARDWARE_EXCEPTION | vector), quiet, "{vector}");
    }
    // Acknowledge-on-exit found nothing: the interrupt is somebody else's by now.
    assert_eq!(slice(u32::from(BasicReason::EXTERNAL_INTERRUPT.0), 0), quiet);
}
