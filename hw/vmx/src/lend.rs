//! The CPU's APIC timer, lent to the guest for a slice ([`exitless_vcpu::timer::Loan`] has the states): IA32_TSC_DEADLINE of the CPU
//! and what the guest writes mean the same (no offset, or one that the guest subtracts; no other rate), and it does so without an exit.
//!
//! The comparator knows nothing of VMX: offset and multiplier change what RDTSC reads, not when it fires (SDM vol. 3A, 11.5.4.1;
//! vol. 3C, 26.3). Its interrupt exits, whatever the guest's IF, and the exit acknowledges it: so the guest's expiry is known by the
//! vector in the CPU's own LVTT. WRMSR of the deadline is not serialising; those of one slice are to one register, and stay in order.
//! Lent inside, LVTT's vector is the notification's meanwhile: a change of the vector alone disarms nothing (SDM vol. 3A, 11.5.4.1). In xAPIC mode
//! the manual wants MFENCE between a write of LVTT and one of the deadline; in x2APIC mode the CPU keeps them in order.

use crate::enter::plan;
use crate::machine::{Machine, host_timer as h};
use crate::percpu::PerCpu;
use crate::vapic::NOTIFICATION;
use crate::vcpu::Vmx;
use exitless_vcpu::timer::{Found, Register};
use exitless_x86::msr::Msr;

/// This CPU's timer, of which LVTT names the vector.
struct Timer<'a, M> {
    m: &'a M,
    vector: u8,
}

impl<M: Machine> Register for Timer<'_, M> {
    fn now(&self) -> u64 {
        self.m.tsc_behind()
    }
    fn read(&self) -> u64 {
        self.m.rdmsr(Msr::TSC_DEADLINE.0)
    }
    fn write(&self, deadline: u64) {
        self.m.wrmsr(Msr::TSC_DEADLINE.0, deadline);
    }
    fn requested(&self) -> bool {
        self.m.interrupt_requested(self.vector)
    }
    fn notifies(&self, notifies: bool) {
        self.m.set_timer_vector(if notifies { NOTIFICATION } else { self.vector });
    }
}

impl PerCpu {
    /// The host is about to start or stop a timer on this CPU, and has its own back first. Interrupts are off.
    pub fn give_timer_back<M: Machine>(&self, m: &M) {
        if self.loan.is_lent() {
            self.loan.give_back(&self.timer(m));
            m.note_lent(false);
        }
    }

    fn timer<'a, M>(&self, m: &'a M) -> Timer<'a, M> {
        Timer { m, vector: self.timer_vector() }
    }
}

impl<M: Machine> Vmx<M> {
    /// See `Backend::lend_timer`.
    pub(crate) fn lend(&mut self, cpu: &PerCpu, deadline: u64, quiet: bool) -> bool {
        self.may_lend(cpu) && cpu.loan.lend(&cpu.timer(&self.m), deadline, quiet) && self.is_lent_now()
    }

    /// See `Backend::lend_timer_inside`.
    pub(crate) fn lend_inside(&mut self, cpu: &PerCpu, deadline: u64) -> bool {
        self.may_lend(cpu) && cpu.loan.lend_inside(&cpu.timer(&self.m), deadline) && self.is_lent_now()
    }

    fn may_lend(&mut self, cpu: &PerCpu) -> bool {
        let able = self.caps.preemption_timer() && self.caps.apicv() && self.caps.msr_bitmaps();
        able && self.knows_host_timer(cpu)
    }

    fn is_lent_now(&mut self) -> bool {
        self.m.note_lent(true);
        self.plan |= plan::LENDS;
        if !self.timer.on {
            self.timer.on = true;
            self.timer_at(None);
            self.controls_due();
        }
        self.timer_idle = false;
        true
    }

    /// What LVTT of this CPU says, looked at once for each time the thread comes here; where the kernel stops its timer while a thread
    /// runs, each time.
    fn knows_host_timer(&mut self, cpu: &PerCpu) -> bool {
        if !self.host_timer_known {
            let told = self.m.host_timer();
            self.host_timer_known = told & h::MAY_STOP == 0;
            cpu.set_timer_vector(if told & h::DEADLINE != 0 { told as u8 } else { 0 });
        }
        cpu.timer_vector() != 0
    }

    /// See `Backend::take_timer_back`.
    pub(crate) fn settle_timer(&mut self, cpu: &PerCpu) -> Option<Found> {
        if cpu.loan.is_lent() {
            self.m.note_lent(false);
        }
        cpu.loan.settle(&cpu.timer(&self.m))
    }

    /// The interrupt that the exit acknowledged is the guest's timer's: it is ended here, for the host's handler is not to hear of it.
    pub(crate) fn guests_timer(&self, cpu: &PerCpu, vector: u8) -> bool {
        // What fires inside does not exit.
        let guests = cpu.loan.is_lent() && !cpu.loan.is_inside() && vector == cpu.timer_vector();
        if guests {
            self.m.end_interrupt();
            cpu.loan.rang();
        }
        guests
    }

    /// The bitmaps follow the loan, whoever ended it.
    pub(crate) fn follow_loan(&mut self, cpu: &PerCpu) {
        if self.lends != cpu.loan.is_lent() {
            self.lends = !self.lends;
            self.controls_due();
        }
    }
}
