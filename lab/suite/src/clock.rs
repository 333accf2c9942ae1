//! Clocks of several vCPUs: which TSC a vCPU gets, the pages of kvmclock, and when they may say that they agree.

use crate::env::*;
use exitless_runner::kvm::{self, Fd, nr};
use exitless_runner::machine::set_cpuid;
use kvm_bindings::*;
use std::thread::sleep;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("clock/pages_hold_one_pair", one_pair),
    ("clock/tscs_apart", apart),
    ("clock/tscs_restored_in_turn", in_turn),
    ("clock/tsc_offset_counts_for_all", offsets),
    ("clock/guest_writes_its_tsc", guest_writes),
    ("clock/stopped_until_seen", stopped),
];

const TSC: u32 = 0x10;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// Clock pages, one for each vCPU.
const PAGES: u64 = 0x2000;
/// `out 0x80, al`, for ever.
const EXITS: &[u8] = &[0xe6, 0x80, 0xeb, 0xfc];
/// `wrmsr`, and then the same.
const WRITES: &[u8] = &[0x0f, 0x30, 0xe6, 0x80, 0xeb, 0xfc];
/// In a page's flags: the pages agree; the guest was stopped.
const STABLE: u8 = 1;
const STOPPED: u8 = 2;
/// What the clocks of two readings may differ by: the time between, on a slow machine.
const SLACK: u64 = 300_000_000;

/// Some vCPUs with clock pages.
struct Vcpus {
    first: Small,
    others: Vec<Vcpu>,
}

/// A clock page as a guest reads it.
#[derive(Debug, PartialEq)]
struct Page {
    version: u32,
    tsc: u64,
    ns: u64,
    mul: u32,
    shift: i8,
    flags: u8,
}

impl Page {
    /// The time that a vCPU whose TSC is this takes from the page.
    fn at(&self, tsc: u64) -> u64 {
        let d = tsc.wrapping_sub(self.tsc);
        let d = if self.shift < 0 { d >> -self.shift } else { d << self.shift };
        self.ns + ((u128::from(d) * u128::from(self.mul)) >> 32) as u64
    }
}

impl Vcpus {
    fn new(e: &Env, count: u64, code: &[u8]) -> Result<Self, Stop> {
        let first = e.guest(Chips::Full, code)?;
        let mut some = Self { first, others: vec![] };
        (1..count).try_for_each(|_| some.add().map(|_| ()))?;
        for i in 0..count as usize {
            some.clock_on(i)?;
        }
        some.turn()?;
        if some.page(0).flags & STABLE == 0 {
            return skip("the host's clock source is not the TSC");
        }
        Ok(some)
    }

    /// One vCPU more.
    fn add(&mut self) -> Result<usize, Stop> {
        let n = self.others.len() + 1;
        let v = vcpu(&self.first.sys, &self.first.vm, n as u64)?;
        set_cpuid(&self.first.sys, &v.fd, n as u32)?;
        real_mode(&v.fd, ENTRY)?;
        v.fd.set(nr::SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
        self.others.push(v);
        Ok(n)
    }

    fn clock_on(&self, i: usize) -> R {
        ensure!(kvm::set_msr(self.fd(i), SYSTEM_TIME, (PAGES + 64 * i as u64) | 1)?, "no kvmclock");
        Ok(())
    }

    fn vcpu(&self, i: usize) -> &Vcpu {
        if i == 0 { &self.first.vcpu } else { &self.others[i - 1] }
    }
    fn fd(&self, i: usize) -> &Fd {
        &self.vcpu(i).fd
    }

    /// Each runs a little, and once more: who runs last may have news for who ran first.
    fn turn(&self) -> R {
        for i in (0..=self.others.len()).chain(0..=self.others.len()) {
            self.vcpu(i).run_to(KVM_EXIT_IO)?;
        }
        Ok(())
    }

    fn page(&self, i: usize) -> Page {
        let mut b = [0; 32];
        self.first.mem.read(PAGES + 64 * i as u64, &mut b);
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Page { version: word(0), tsc: long(8), ns: long(16), mul: word(24), shift: b[28] as i8, flags: b[29] }
    }

    fn tsc(&self, i: usize) -> Result<u64, Stop> {
        kvm::get_msr(self.fd(i), TSC)?.ok_or(Stop::Fail("no TSC".into()))
    }
    fn set_tsc(&self, i: usize, value: u64) -> R {
        ensure!(kvm::set_msr(self.fd(i), TSC, value)?, "TSC not written");
        Ok(())
    }

    fn attribute(&self, i: usize, request: u32, offset: &mut u64) -> kvm::Result<i32> {
        let a = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: offset as *mut u64 as u64,
            ..Default::default()
        };
        self.fd(i).set(request, &a)
    }
    fn offset(&self, i: usize) -> Result<u64, Stop> {
        let mut offset = 0;
        self.attribute(i, nr::GET_DEVICE_ATTR, &mut offset)?;
        Ok(offset)
    }
    fn set_offset(&self, i: usize, mut offset: u64) -> R {
        self.attribute(i, nr::SET_DEVICE_ATTR, &mut offset)?;
        Ok(())
    }

    /// A second, in ticks.
    fn second(&self) -> Result<u64, Stop> {
        Ok(self.fd(0).call(nr::GET_TSC_KHZ, 0)? as u64 * 1000)
    }

    /// All pages and KVM_GET_CLOCK say that they agree, or that they do not; and they tell the right time: each vCPU from
    /// its own page, and from that of vCPU 0 if they agree.
    fn say(&self, stable: bool, when: &str) -> R {
        self.turn()?;
        let clock: kvm_clock_data = self.first.vm.get(nr::GET_CLOCK)?;
        same!(clock.flags & KVM_CLOCK_TSC_STABLE != 0, stable, "{when}: KVM_GET_CLOCK");
        for i in 0..=self.others.len() {
            let own = self.page(i);
            same!(own.flags & STABLE != 0, stable, "{when}: page {i}");
            let tsc = self.tsc(i)?;
            for page in [Some(own), stable.then(|| self.page(0))].into_iter().flatten() {
                let t = page.at(tsc);
                ensure!(
                    t >= clock.clock && t - clock.clock < SLACK,
                    "{when}: vCPU {i} reads {t}, not {}",
                    clock.clock
                );
            }
        }
        Ok(())
    }
}

/// While TSCs agree all pages hold the same pair, also after it was set; an update has an even version.
fn one_pair(e: &Env) -> R {
    let s = Vcpus::new(e, 3, EXITS)?;
    s.say(true, "from the start")?;
    let new = kvm_clock_data { clock: 7_000_000_000_000, ..Default::default() };
    for when in ["from the start", "set"] {
        let first = s.page(0);
        for i in 1..3 {
            let p = s.page(i);
            same!(
                (p.tsc, p.ns, p.mul, p.shift),
                (first.tsc, first.ns, first.mul, first.shift),
                "{when}: page {i}"
            );
            same!(p.version & 1, 0, "{when}: version of page {i}");
        }
        s.first.vm.set(nr::SET_CLOCK, &new)?;
        s.say(true, "set")?;
    }
    ensure!(s.page(0).ns >= new.clock, "{}", s.page(0).ns);
    Ok(())
}

/// The same value 1.5 s apart means another time: the pages do not agree any more, until the TSCs do.
fn apart(e: &Env) -> R {
    let s = Vcpus::new(e, 2, EXITS)?;
    let value = 1 << 50;
    s.set_tsc(0, value)?;
    s.set_tsc(1, value)?;
    same!(s.offset(0)?, s.offset(1)?, "offsets, written at once");
    s.say(true, "written at once")?;
    s.set_tsc(0, 2 * value)?;
    sleep(Duration::from_millis(1500));
    s.set_tsc(1, 2 * value)?;
    let (late, second) = (s.offset(0)?.wrapping_sub(s.offset(1)?), s.second()?);
    ensure!(late > second, "{late} ticks apart");
    s.say(false, "apart")?;
    s.set_tsc(0, s.tsc(1)?)?;
    same!(s.offset(0)?, s.offset(1)?, "offsets, again");
    s.say(true, "again")
}

/// vCPUs restored one after the other, each within a second of the one before, have one TSC, however long all of them take.
fn in_turn(e: &Env) -> R {
    let s = Vcpus::new(e, 4, EXITS)?;
    for i in 0..4 {
        s.set_tsc(i, 1 << 50)?;
        sleep(Duration::from_millis(600));
    }
    for i in 1..4 {
        same!(s.offset(i)?, s.offset(0)?, "offset of vCPU {i}");
    }
    s.say(true, "restored")
}

/// After KVM_VCPU_TSC_OFFSET whoever is added, reset, or set to about that time gets that offset.
fn offsets(e: &Env) -> R {
    let mut s = Vcpus::new(e, 2, EXITS)?;
    let offset = s.offset(0)?.wrapping_add(500 * s.second()?);
    s.set_offset(0, offset)?;
    s.say(false, "one moved")?;
    s.set_offset(1, offset)?;
    s.say(true, "both moved")?;
    s.set_tsc(1, 0)?;
    same!(s.offset(1)?, offset, "reset");
    let added = s.add()?;
    same!(s.offset(added)?, offset, "added");
    s.clock_on(added)?;
    s.say(true, "added")?;
    s.set_offset(0, offset)?;
    s.set_tsc(1, s.tsc(0)? + s.second()? / 3)?;
    same!(s.offset(1)?, offset, "set to about that time");
    s.say(true, "set")
}

/// A guest that writes its TSC has its own from then on. (Stock KVM's pages say that they agree all the same.)
fn guest_writes(e: &Env) -> R {
    let s = Vcpus::new(e, 2, EXITS)?;
    let before = s.offset(1)?;
    // Not where the exit was that is being completed.
    let at = ENTRY + 0x100;
    s.first.mem.write(at, WRITES);
    let regs = kvm_regs { rip: at, rcx: TSC.into(), rdx: 1 << 20, rflags: 2, ..Default::default() };
    s.fd(1).set(nr::SET_REGS, &regs)?;
    s.vcpu(1).run_to(KVM_EXIT_IO)?;
    ensure!(s.offset(1)? != before, "the TSC is what it was");
    same!(s.offset(0)? == s.offset(1)?, false, "another's too");
    s.turn()?;
    let clock: kvm_clock_data = s.first.vm.get(nr::GET_CLOCK)?;
    if clock.flags & KVM_CLOCK_TSC_STABLE != 0 {
        return skip("stock KVM does not look at what guests write");
    }
    s.say(false, "the guest's own")
}

/// KVM_KVMCLOCK_CTRL: the flag stays until the guest has cleared it, whatever else changes the page, and is set once.
fn stopped(e: &Env) -> R {
    let s = Vcpus::new(e, 1, EXITS)?;
    let again = |ns| -> R {
        s.first.vm.set(nr::SET_CLOCK, &kvm_clock_data { clock: ns, ..Default::default() })?;
        s.turn()
    };
    s.fd(0).call(nr::KVMCLOCK_CTRL, 0)?;
    s.turn()?;
    same!(s.page(0).flags & STOPPED, STOPPED, "told");
    again(1 << 40)?;
    same!(s.page(0).flags & STOPPED, STOPPED, "not seen yet");
    s.first.mem.write(PAGES + 29, &[s.page(0).flags & !STOPPED]);
    again(1 << 41)?;
    same!(s.page(0).flags & STOPPED, 0, "seen");
    ensure!(s.page(0).ns >= 1 << 41, "the page was not written");
    Ok(())
}
