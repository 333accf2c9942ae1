//! A vCPU from zeroes around any backend: `Vcpu::init` makes it a CPU after power-up. The tests of the backends use it too.

use bytemuck::Zeroable;
use exitless_vcpu::Vcpu;
use exitless_vcpu::clock::tsc::Rate;
use exitless_vcpu::journal::Journal;

pub(crate) fn bare<B>(b: B) -> Vcpu<B> {
    Vcpu {
        advance: Default::default(),
        passthrough: Default::default(),
        by_deadline: false,
        queue: Default::default(),
        vapic: exitless_vcpu::vcpu::vapic::Vapic::default(),
        b,
        lapic: Zeroable::zeroed(),
        stores: Default::default(),
        resolved_marks: (0, 0),
        chosen: false,
        journal: Journal::default(),
        pending_port: None,
        no_chip: false,
        reinject: None,
        exception: None,
        user_interrupt: None,
        user_eoi: None,
        want_window: false,
        nmi_pending: 0,
        injecting: None,
        asked: None,
        outside: None,
        event_dirty: false,
        flush: false,
        mp_state: 0,
        bsp: false,
        dr: [0; 4],
        dr_live: false,
        debug: Default::default(),
        xcr0: 0,
        pkru: 0,
        in_guest: Default::default(),
        opened: Default::default(),
        rate: Rate::host(0),
        tsc_offset: 0,
        cpuid: Zeroable::zeroed(),
        msrs: Zeroable::zeroed(),
        pv: Zeroable::zeroed(),
        stopwatch: Default::default(),
        async_pf: Default::default(),
        started: false,
        id: 0,
    }
}
