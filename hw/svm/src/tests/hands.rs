//! The backend under the run loop: who has the CPU when. The operating system is the run loop's own fake.

use super::{ALL, Machine, OUTSIDE, PLAY, bare, os, world};
use crate::percpu::PerCpu;
use bytemuck::Zeroable;
use exitless_vcpu::VcpuShared;
use exitless_vcpu::backend::Backend;
use std::boxed::Box;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;
use world::Hand;

/// Runs a vCPU with its own breakpoints whose only entry ends with this code. What happened in that slice, in order.
fn slice(code: u64) -> Vec<Hand> {
    let sh: Rc<VcpuShared> = Rc::new(Zeroable::zeroed());
    let w = world::World::new(sh.clone());
    let on: &'static PerCpu = Box::leak(Box::new(PerCpu::zeroed()));
    on.enable(0, ALL.asids, 0);
    let off: &'static PerCpu = Box::leak(Box::new(PerCpu::none()));
    let os = os::Os::with(w.clone(), [on, off, off, off]);
    let mut machine = Machine::new(&ALL);
    let mut v = Box::new(bare::bare(core::mem::replace(&mut machine.v, Zeroable::zeroed())));
    v.init(&sh, &os, 0, true);
    v.dr_live = true;
    v.b.set_dr_intercept(false);
    OUTSIDE.set(Some(w.clone()));
    let signal = w.clone();
    PLAY.set(Some(Box::new(move |vmcb, _| {
        vmcb.control.exit_code = code;
        signal.signal.set(true);
        signal.trail.borrow_mut().push(Hand::Entered);
        false
    })));
    let _ = exitless_vcpu::run(&mut *v, &sh, &os);
    OUTSIDE.set(None);
    w.trail.take()
}

/// The host's machine check handler used to run inside the entry, on the guest's XCR0, XSS and breakpoints. No other exit makes
/// the host run anything before the slice is over.
#[test]
fn handlers_find_the_hosts_state() {
    let quiet = vec![Hand::Loaded, Hand::Entered, Hand::Unloaded];
    let machine_check = 0x40 + 18;
    for code in (0..=0xa6).chain(0x400..=0x403).chain([!0]) {
        let mut expected = quiet.clone();
        if code == machine_check {
            expected.push(Hand::MachineCheck);
        }
        assert_eq!(slice(code), expected, "{code:#x}");
    }
}
