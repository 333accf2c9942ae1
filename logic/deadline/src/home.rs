//! Where the timer belongs: a decision by stable facts, never by the CPU that the vCPU happens to be on.

/// Who shall have the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A timer in the CPU that ends guest mode.
    Cpu,
    /// The host's, on this CPU, which asks the thread.
    Host,
    /// The host's, on a CPU that keeps house, which posts the vector into the running guest.
    Posted,
}

/// What the choice follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The vCPU runs; else it is about to sleep.
    pub runs: bool,
    /// The CPU has a timer for guest mode.
    pub cpu_timer: bool,
    /// The guest idles by MWAIT in the guest, in C-states deeper than C2, where the CPU's timer does not count (SDM vol. 3C, 26.5.1).
    pub deep_idle: bool,
    /// One TSC for all CPUs: a moment of one means the same on the next.
    pub steady_tsc: bool,
    /// The VM's timers are posted: the chooser's decision.
    pub posts: bool,
    /// The APIC's timer is in TSC-deadline mode and not masked: it expires once, with nothing to compute.
    pub plain: bool,
}

/// Where the timer belongs.
pub fn place(f: Facts) -> Place {
    if f.runs && f.posts && f.plain && f.steady_tsc {
        Place::Posted
    } else if f.runs && f.cpu_timer && f.steady_tsc && !f.deep_idle {
        Place::Cpu
    } else {
        Place::Host
    }
}

#[cfg(test)]
mod tests {
    use super::{Facts, Place, place};

    #[test]
    fn every_row() {
        for bits in 0..64u8 {
            let [runs, cpu_timer, deep_idle, steady_tsc, posts, plain] =
                [1, 2, 4, 8, 16, 32].map(|b| bits & b != 0);
            let want = match (runs && steady_tsc, posts && plain, cpu_timer && !deep_idle) {
                (false, ..) => Place::Host,
                (true, true, _) => Place::Posted,
                (true, false, true) => Place::Cpu,
                (true, false, false) => Place::Host,
            };
            assert_eq!(
                place(Facts { runs, cpu_timer, deep_idle, steady_tsc, posts, plain }),
                want,
                "{bits:06b}"
            );
        }
    }
}
