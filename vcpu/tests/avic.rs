//! Every ICR form, sent by a model of the hardware (APM vol. 2, 15.29) with software behind its exits, against software alone: the
//! same vectors in the same APICs, and who does not run is told.

use bytemuck::Zeroable;
use exitless_avic::{Entry, Native, Owed, incomplete};
use exitless_ipi::Few;
use exitless_lapic::{Accepted, ApicPage, Config, Lapic, Now, Shared, Targets, named, route};
use exitless_x86::apic::{Icr, InterruptMessage, Shorthand, apic_base, reg};
use exitless_x86::svm::avic::{Incomplete, MAX_INDEX, PhysicalEntry};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const T0: Now = Now { ns: 1_000_000, guest_tsc: 5_000_000 };
/// x2APIC ids, by index: two clusters and a hole.
const IDS: [u32; 6] = [0, 1, 2, 5, 16, 17];
/// The sender's index.
const SENDER: usize = 1;

/// The vCPUs, in x2APIC mode and enabled, with their backing pages.
struct Vm {
    apics: Vec<(Box<Lapic>, Box<Shared>, &'static ApicPage)>,
}

impl Vm {
    fn new() -> Self {
        let apics = IDS.map(|id| {
            let page: &'static ApicPage = Box::leak(Box::new(ApicPage::zeroed()));
            let (mut l, mut s) = (Box::new(Lapic::zeroed()), Box::new(Shared::zeroed()));
            s.use_page_for_irr(page);
            l.init(&s, id, id == 0, Config::default());
            let caps = exitless_lapic::BaseCaps { x2apic: true, maxphyaddr: 40 };
            let _ = l.set_apic_base(&s, l.apic_base() | apic_base::X2APIC, caps, false).unwrap();
            let _ = l.msr_write(&s, 0x800 + reg::SVR / 16, 0x1ff, &T0).unwrap();
            (l, s, page)
        });
        Self { apics: apics.into() }
    }

    /// What software makes of an ICR write; who is told.
    fn software(&mut self, icr: u64) -> BTreeSet<usize> {
        let (l, s, _) = &mut self.apics[SENDER];
        let Ok(work) = l.msr_write(s, 0x800 + reg::ICR / 16, icr, &T0) else { panic!("reserved bits") };
        let mut told = BTreeSet::from([SENDER]);
        if let Some(msg) = work.ipi {
            route(&msg, Some(SENDER), self, |index, _, accepted| {
                told.extend((accepted == Accepted::Event).then_some(index))
            });
        }
        told
    }

    fn irrs(&self) -> Vec<BTreeSet<u32>> {
        let has = |page: &ApicPage, v: u32| page.read(reg::IRR + v / 32 * 16) >> (v % 32) & 1 != 0;
        self.apics.iter().map(|(_, _, page)| (0..256).filter(|v| has(page, *v)).collect()).collect()
    }
}

impl Targets for Vm {
    type Vcpu = Shared;
    fn len(&self) -> usize {
        self.apics.len()
    }
    fn get(&self, index: usize) -> Option<&Shared> {
        self.apics.get(index).map(|(_, s, _)| &**s)
    }
    fn only(&self, _: &InterruptMessage) -> Option<usize> {
        None
    }
    fn resolve(&self, _: &InterruptMessage, _: Option<usize>) -> Option<Few> {
        None
    }
    fn rotation(&self) -> usize {
        0
    }
}

/// The physical table.
struct Hardware {
    entries: Vec<AtomicU64>,
}

impl Hardware {
    /// Entries of all vCPUs; those in `running` run, vCPU n on CPU n + 100.
    fn new(running: u32) -> Self {
        let entries: Vec<_> = (0..=MAX_INDEX).map(|_| AtomicU64::new(0)).collect();
        for (index, id) in IDS.into_iter().enumerate() {
            // SAFETY: an entry is such a word, and nothing else.
            let entry = unsafe { &*(&raw const entries[id as usize]).cast::<Entry<Native>>() };
            entry.admit(0x1000 * (index as u64 + 1));
            if running >> index & 1 != 0 {
                entry.run(0x1000 * (index as u64 + 1), index as u32 + 100);
            }
        }
        Self { entries }
    }

    fn entry(&self, id: u32) -> Option<PhysicalEntry> {
        let word = self.entries.get(id as usize)?.load(SeqCst);
        Some(PhysicalEntry::from_bits(word)).filter(PhysicalEntry::valid)
    }

    /// An ICR write: whom it rings, and the exit.
    fn icr(&self, vm: &Vm, icr: u64) -> (BTreeSet<u16>, Option<Incomplete>) {
        let fields = Icr::from(icr);
        if fields.delivery_mode() != 0 || fields.level() {
            return (BTreeSet::new(), Some(Incomplete::INVALID_TYPE));
        }
        if fields.vector() < 16 {
            return (BTreeSet::new(), Some(Incomplete::INVALID_VECTOR));
        }
        let Some(targets) = self.targets(fields) else {
            return (BTreeSet::new(), Some(Incomplete::INVALID_TARGET));
        };
        let (mut rung, mut exit) = (BTreeSet::new(), None);
        for entry in targets {
            let index = (entry.backing() - 1) as usize;
            let (page, v) = (vm.apics[index].2, u32::from(fields.vector()));
            let at = reg::IRR + v / 32 * 16;
            page.write(at, page.read(at) | 1 << (v % 32));
            if entry.is_running() {
                rung.insert(entry.host_id());
            } else {
                exit = Some(Incomplete::TARGET_NOT_RUNNING);
            }
        }
        (rung, exit)
    }

    /// `None`: one of those meant has no entry. A broadcast means those that have.
    fn targets(&self, icr: Icr) -> Option<Vec<PhysicalEntry>> {
        let all = || (0..=MAX_INDEX).filter_map(|id| self.entry(id)).collect();
        let me = IDS[SENDER];
        match icr.message(true).shorthand {
            Shorthand::SelfOnly => Some(vec![self.entry(me)?]),
            Shorthand::All => Some(all()),
            Shorthand::AllButSelf => {
                Some((0..=MAX_INDEX).filter(|id| *id != me).filter_map(|id| self.entry(id)).collect())
            }
            Shorthand::None if icr.destination() == u32::MAX => Some(all()),
            Shorthand::None if icr.logical() => {
                let cluster = icr.destination() >> 16;
                let members = (0..16).filter(|bit| icr.destination() >> bit & 1 != 0);
                members.map(|bit| self.entry(cluster * 16 + bit)).collect()
            }
            Shorthand::None => Some(vec![self.entry(icr.destination())?]),
        }
    }
}

/// One form: hardware first, software behind its exit, and software alone.
fn check(icr: u64, running: u32) {
    let (hw, mut vm, mut alone) = (Hardware::new(running), Vm::new(), Vm::new());
    let (rung, exit) = hw.icr(&vm, icr);
    let mut told: BTreeSet<usize> = rung.iter().map(|cpu| usize::from(*cpu) - 100).collect();
    match exit.map(incomplete) {
        None => {}
        Some(Owed::Tell) => {
            let msg: InterruptMessage = Icr::from(icr).message(true);
            named(&msg, Some(SENDER), &vm, |index, _| {
                told.insert(index);
            });
        }
        Some(Owed::Send) => told.extend(vm.software(icr)),
    }
    alone.software(icr);
    assert_eq!(vm.irrs(), alone.irrs(), "{icr:#x}, running {running:#b}, {exit:?}");
    for (index, irr) in vm.irrs().iter().enumerate() {
        assert!(
            irr.is_empty() || told.contains(&index),
            "{icr:#x}: {index} is not told, running {running:#b}"
        );
    }
}

#[test]
fn every_icr_form() {
    let destinations = (0..=20).chain([0xff, 0x7, 0x2_0001, 0x1_0003, 0x1_0007, 0x23, 0x1ff, 0x200, 1 << 31]);
    for (destination, running) in
        destinations.chain([u32::MAX]).flat_map(|d| [0, 2, 0x15, 0x3f].map(|r| (d, r)))
    {
        for form in 0..8u64 * 2 * 2 * 4 {
            let (mode, logical) = (form & 7, form >> 3 & 1);
            let (level, shorthand) = (form >> 4 & 1, form >> 5);
            if shorthand != 0 && destination != 0 {
                continue;
            }
            for vector in [5, 0x41] {
                let low = vector | mode << 8 | logical << 11 | 1 << 14 | level << 15 | shorthand << 18;
                check(u64::from(destination) << 32 | low, running);
            }
        }
    }
}
