//! The VM's clocks: one pair of host TSC and guest time for all vCPUs, and the TSC offsets that user space sets.

use super::Vm;
use exitless_host::time;
use exitless_vcpu::host::MasterClock;
use exitless_vcpu::tsc::{Rate, factors};

/// See the file's head.
#[derive(Clone, Copy, bytemuck::Zeroable)]
pub struct Clock {
    /// Host TSC of the pair.
    tsc: u64,
    /// Guest time at that TSC, ns.
    ns: u64,
    mul: u32,
    shift: i32,
    /// The last TSC value user space or creation wrote, the offset it got, and the rate of that vCPU, kHz.
    last_value: u64,
    last_offset: u64,
    last_host: u64,
    last_khz: u32,
    written: bool,
    stable: bool,
    _pad: [u8; 2],
}

fn scale(ticks: u64, mul: u32, shift: i32) -> u64 {
    let t = if shift < 0 { ticks >> -shift } else { ticks << shift };
    // 64 x 32 bits without a wide division: both halves.
    let (hi, lo) = (t >> 32, t & 0xffff_ffff);
    hi.wrapping_mul(u64::from(mul)).wrapping_add((lo * u64::from(mul)) >> 32)
}

impl Clock {
    /// Guest time zero is now.
    pub fn start(&mut self) {
        (self.mul, self.shift) = factors(time::tsc_khz());
        self.tsc = time::rdtsc_ordered();
        self.ns = 0;
        self.stable = !time::tsc_unstable();
    }

    fn at(&self, tsc: u64) -> u64 {
        self.ns.wrapping_add(scale(tsc.wrapping_sub(self.tsc), self.mul, self.shift))
    }
}

impl Vm {
    /// Guest time now, ns.
    pub fn clock_now(&self) -> u64 {
        self.clock.lock().at(time::rdtsc_ordered())
    }

    /// Guest time at a host TSC, ns.
    pub fn clock_at(&self, tsc: u64) -> u64 {
        self.clock.lock().at(tsc)
    }

    /// `KVM_SET_CLOCK`: guest time is `ns` now.
    pub fn clock_set(&self, ns: u64) {
        let mut c = self.clock.lock();
        c.tsc = time::rdtsc_ordered();
        c.ns = ns;
        drop(c);
        self.request_all(exitless_vcpu::Request::CLOCK);
    }

    /// The pair for clock pages.
    pub fn master_clock(&self) -> MasterClock {
        let mut c = *self.clock.lock();
        if !c.stable {
            // Without a synchronised TSC every vCPU needs a fresh pair.
            let tsc = time::rdtsc_ordered();
            c.ns = c.at(tsc);
            c.tsc = tsc;
        }
        MasterClock { tsc: c.tsc, ns: c.ns, stable: c.stable }
    }

    /// Offset for a TSC write. Writes that fall within a second of where the last written TSC is now mean "the same
    /// time on all vCPUs" and get the same offset, as on stock KVM, if their rates are the same.
    pub fn match_tsc(&self, value: u64, rate: &Rate) -> u64 {
        let mut c = self.clock.lock();
        let host = time::rdtsc_ordered();
        let second = u64::from(rate.khz()) * 1000;
        let expected = c.last_value.wrapping_add(rate.guest_ticks(host.wrapping_sub(c.last_host)));
        let near = value.wrapping_sub(expected).wrapping_add(second) < 2 * second;
        let same = c.written && c.last_khz == rate.khz() && (near || value == 0);
        let now = rate.guest_ticks(host);
        let offset = if same { c.last_offset } else { value.wrapping_sub(now) };
        c.written = true;
        c.last_value = now.wrapping_add(offset);
        c.last_host = host;
        c.last_offset = offset;
        c.last_khz = rate.khz();
        offset
    }
}
