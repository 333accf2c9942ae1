//! Who is active: what is wanted, without what something stands against.

use crate::reason::Reason;
use crate::set::Set;
use crate::table::{Mechanism, TABLE};

/// What is known of a vCPU, its VM and the host. All-zero: nothing stands against anything, and the guest's CPUID shows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
pub struct Facts {
    /// A bit for each [`Reason`] that holds, by value.
    pub against: u64,
    /// The KVM_FEATURE_* bits that the guest's CPUID shows.
    pub features: u32,
}

impl Facts {
    /// With `reason`, if it `holds`.
    #[must_use]
    pub const fn with(self, reason: Reason, holds: bool) -> Self {
        Self { against: self.against | (holds as u64) << reason as u8, ..self }
    }

    /// Whether `reason` stands against what it matters to.
    pub const fn has(&self, reason: Reason) -> bool {
        self.against & 1 << reason as u8 != 0
    }
}

/// Why `m` is active or not.
fn reason(m: Mechanism, wanted: Set, facts: &Facts) -> Reason {
    let row = m.row();
    let against = row.against.iter().copied().find(|r| *r == Reason::NotBuilt || facts.has(*r));
    match against {
        Some(Reason::NotBuilt) => Reason::NotBuilt,
        _ if !wanted.has(m) => Reason::SwitchedOff,
        Some(reason) => reason,
        None if row.feature & !facts.features != 0 => Reason::NotInCpuid,
        None => Reason::Active,
    }
}

/// What an administrator sees of `m` where it is `wanted` now: whether it is active, and why. `chosen`: what the vCPU chose last, and
/// from which facts; it chooses anew when it next enters the guest.
pub fn shown(m: Mechanism, wanted: Set, chosen: Option<(Set, Facts)>) -> (bool, Reason) {
    let (active, facts) = chosen.unwrap_or((Set::NONE, Facts { features: !0, against: 0 }));
    match reason(m, wanted, &facts) {
        Reason::Active if !active.has(m) => (false, Reason::Pending),
        _ if active.has(m) => (true, Reason::Active),
        reason => (false, reason),
    }
}

/// All that are active.
pub fn active(wanted: Set, facts: &Facts) -> Set {
    let active = |m: &Mechanism| reason(*m, wanted, facts) == Reason::Active;
    TABLE.iter().map(|row| row.mechanism).filter(active).fold(Set::NONE, |set, m| set.put(m, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{COUNT, Row, Scope, Who};
    use crate::{Fallback, NotAMechanism};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    /// Names are words that need no quotes, and nobody's twice; numbers and values fit the sets they are bits of.
    #[test]
    fn the_table_can_be_written_down() {
        let names: BTreeSet<_> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), COUNT);
        assert!(COUNT <= 64 && Reason::ALL.iter().all(|r| (*r as u8) < 64));
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.mechanism as usize, i);
            assert_eq!(Mechanism::from_name(row.name), Some(row.mechanism));
            assert!(row.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && row.name.len() < 32);
            assert!(row.about.len() < 208, "{}", row.name);
        }
        assert!(Reason::ALL.iter().all(|r| r.words().len() < 208), "what user space has room for");
        assert!(Fallback::COUNT <= 16 && Fallback::ALL.iter().all(|f| f.name().len() < 32));
        let fallbacks: BTreeSet<_> = Fallback::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(fallbacks.len(), Fallback::COUNT);
    }

    fn row_as_written(row: &Row) -> String {
        let built = !row.against.contains(&Reason::NotBuilt);
        let default = if built { if row.default { "on" } else { "off" } } else { "not yet" };
        let against = row.against.iter().filter(|r| **r != Reason::NotBuilt).copied();
        let against = against.chain((row.feature != 0).then_some(Reason::NotInCpuid));
        let against = against.map(|r| format!("{r:?}")).collect::<Vec<_>>().join(", ");
        let (number, name, about) = (row.mechanism as u8, row.name, row.about);
        let (scope, who) =
            (format!("{:?}", row.scope).to_lowercase(), format!("{:?}", row.who).to_lowercase());
        format!("| {number} | `{name}` | {scope} | {default} | {who} | {about} | {against} |\n")
    }

    /// The tables of the document are the ones here; `EXITLESS_WRITE_DOCS=1 cargo test -p exitless-chooser` writes them.
    #[test]
    fn the_document_agrees() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/mechanisms.md");
        let have = std::fs::read_to_string(path).unwrap();
        let mut tables = [
            TABLE.iter().map(row_as_written).collect::<String>(),
            Reason::ALL.iter().map(|r| format!("| {} | {r:?} | {} |\n", *r as u8, r.words())).collect(),
            Fallback::ALL
                .iter()
                .map(|f| format!("| {} | `{}` | {} |\n", *f as u8, f.name(), f.words()))
                .collect(),
        ]
        .into_iter();
        let mut want = String::new();
        for line in have.lines().filter(|l| !l.starts_with("| ") || l.starts_with("| no. ")) {
            want += line;
            want += "\n";
            if line.starts_with("|---") {
                want += &tables.next().unwrap();
            }
        }
        if std::env::var_os("EXITLESS_WRITE_DOCS").is_some() {
            std::fs::write(path, &want).unwrap();
        }
        assert!(have == want && tables.next().is_none(), "docs/mechanisms.md is out of date");
    }

    /// What is active in all of a VM's vCPUs or in none hangs on nothing that its vCPUs may differ in.
    #[test]
    fn a_vms_mechanism_looks_at_no_vcpu() {
        let of_vcpus = [Reason::NoDelivery, Reason::NoTimer, Reason::NoDeadline];
        for row in TABLE.iter().filter(|row| row.scope == Scope::Vm) {
            assert!(row.feature == 0 && row.against.iter().all(|r| !of_vcpus.contains(r)), "{}", row.name);
        }
    }

    /// What others pay for nobody gets unasked.
    #[test]
    fn nothing_of_roots_by_default() {
        assert!(TABLE.iter().all(|row| row.who == Who::Owner || !row.default));
    }

    #[test]
    fn changes_as_administrators_write_them() {
        let change = |text| Set::DEFAULT.changed(text);
        assert_eq!(change(""), Ok(Set::DEFAULT));
        let both = Set::DEFAULT.put(Mechanism::IpiFastpath, false).put(Mechanism::PostedTimer, true);
        assert_eq!(change("-ipi_fastpath,+posted_timer"), Ok(both));
        assert_eq!(change(" -ipi_fastpath +posted_timer\n"), Ok(both));
        assert_eq!(change("-all"), Ok(Set::NONE));
        assert_eq!(change("-all,+boost"), Ok(Set::NONE.put(Mechanism::Boost, true)));
        assert_eq!(change("+all,default"), Ok(Set::DEFAULT));
        assert_eq!(change("+all").map(|s| s.iter().count()), Ok(COUNT));
        for bad in ["boost", "+bost", "+", "-", "all", "+default", "+boost+avic"] {
            assert_eq!(change(bad), Err(NotAMechanism(bad)));
        }
    }

    /// The first reason of the row's list is told; what was never built is not blamed on the switch.
    #[test]
    fn reasons_in_the_order_of_the_row() {
        use Reason::*;
        let m = Mechanism::TimerFastpath;
        let facts = Facts::default().with(NoTimer, true).with(UnsteadyTsc, true).with(NoDelivery, true);
        assert_eq!(reason(m, Set::ALL, &facts), NoTimer);
        assert_eq!(reason(m, Set::NONE, &facts), SwitchedOff);
        assert_eq!(reason(m, Set::ALL, &Facts::default().with(NoDelivery, true)), Active, "no matter here");
        for row in TABLE.iter().filter(|row| row.against.contains(&NotBuilt)) {
            assert_eq!(reason(row.mechanism, Set::NONE, &facts), NotBuilt);
        }
    }

    /// What is told is what is in force; a switch that moved since shows until the vCPU has chosen anew.
    #[test]
    fn what_is_shown() {
        use Reason::*;
        let (m, facts) = (Mechanism::TimerFastpath, Facts::default());
        let on = Set::NONE.put(m, true);
        assert_eq!(shown(m, on, None), (false, Pending));
        assert_eq!(shown(m, Set::NONE, None), (false, SwitchedOff));
        assert_eq!(shown(m, on, Some((Set::NONE, facts))), (false, Pending));
        assert_eq!(shown(m, on, Some((on, facts))), (true, Active));
        assert_eq!(shown(m, Set::NONE, Some((on, facts))), (true, Active), "until it looks");
        assert_eq!(shown(m, on, Some((Set::NONE, facts.with(NoTimer, true)))), (false, NoTimer));
        assert_eq!(
            shown(Mechanism::PvIpi, Set::ALL, Some((Set::NONE, facts))).1,
            reason(Mechanism::PvIpi, Set::ALL, &facts)
        );
    }

    /// Posting timers takes all of its conditions. A host with isolated CPUs alone makes no VM post: taking that for enough switched the
    /// CPU's timer, and its fast paths, off for every VM of hosts that isolate CPUs for packet processing.
    #[test]
    fn posting_timers_needs_all() {
        use Reason::*;
        let conditions = [NoIrqchip, NoDelivery, UnsteadyTsc, IdleExits, NoHousekeeping];
        for bits in 0..64u32 {
            let against = conditions.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0);
            let facts = against.fold(Facts::default(), |facts, (_, r)| facts.with(*r, true));
            let wanted = Set::NONE.put(Mechanism::PostedTimer, bits & 32 != 0);
            assert_eq!(active(wanted, &facts).has(Mechanism::PostedTimer), bits == 32, "{bits:06b}");
        }
    }

    proptest! {
        /// Active is wanted; nothing that stands against it holds; the guest was shown what it needs. And nothing else keeps it.
        #[test]
        fn active_is_wanted_and_possible(wanted: u64, against: u64, features: u32) {
            let (wanted, facts) = (Set(wanted), Facts { against, features });
            let active = active(wanted, &facts);
            for row in &TABLE {
                let built = !row.against.contains(&Reason::NotBuilt);
                let free = row.against.iter().all(|r| !facts.has(*r)) && row.feature & !features == 0;
                prop_assert_eq!(active.has(row.mechanism), built && wanted.has(row.mechanism) && free, "{}", row.name);
                prop_assert_eq!(active.has(row.mechanism), reason(row.mechanism, wanted, &facts) == Reason::Active);
            }
            prop_assert_eq!(active.0 & !wanted.0, 0);
        }

        /// A new fact against something switches nothing on, a switch moves nothing but its mechanism.
        #[test]
        fn facts_only_take_away(wanted: u64, against: u64, more: u64, features: u32, n in 0..COUNT) {
            let facts = Facts { against, features };
            let before = active(Set(wanted), &facts);
            let after = active(Set(wanted), &Facts { against: against | more, features });
            prop_assert_eq!(after.0 & !before.0, 0);
            let m = TABLE[n].mechanism;
            let moved = active(Set(wanted).put(m, !Set(wanted).has(m)), &facts);
            prop_assert_eq!((moved.0 ^ before.0) & !(1 << n), 0);
        }
    }
}
