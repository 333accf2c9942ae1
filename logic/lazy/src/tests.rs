//! The protocol under loom: the crate's own code on loom's memory. The guest, the deadline that comes, whoever ends the attending, and
//! the departure to user space, behind which a host runs the guest that does not know of any page, are threads of their own.
//!
//! What must hold at the end of every interleaving: the guest's last deadline has a timer that leads to it, or has come. Neither lost nor
//! early. The host's threads exclude each other, as what the vCPU's thread does is done by one; nothing excludes the guest, so
//! what holds here needs no help from the guest being stopped. Each rule of the crate's head is taken away once, and loom finds the loss.

use crate::{GuestPage, Host, HostPage, Told, set, write};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::SeqCst;
use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

const NONE: u8 = 0;
const GUEST: u8 = 1;
const HOST: u8 = 2;

/// `WITHOUT` names the side whose barrier is missing.
struct Page<const WITHOUT: u8> {
    armed: AtomicU64,
    pending: AtomicU64,
}

impl<const WITHOUT: u8> GuestPage for Page<WITHOUT> {
    fn want(&self, deadline: u64) {
        self.pending.store(deadline, Relaxed);
    }
    fn barrier(&self) {
        if WITHOUT != GUEST {
            fence(SeqCst);
        }
    }
    fn armed(&self) -> u64 {
        self.armed.load(Relaxed)
    }
    fn told(&self) -> Told {
        Told::NOTHING
    }
    fn request(&self) {}
}

impl<const WITHOUT: u8> HostPage for Page<WITHOUT> {
    fn arm(&self, armed: u64) -> bool {
        self.armed.store(armed, Relaxed);
        true
    }
    fn barrier(&self) {
        if WITHOUT != HOST {
            fence(SeqCst);
        }
    }
    fn pending(&self) -> Option<u64> {
        Some(self.pending.load(Relaxed))
    }
    fn tell(&self, _: Told) -> bool {
        true
    }
}

/// What the host has of the vCPU.
#[derive(Default)]
struct Vcpu {
    lazy: Host,
    /// IA32_TSC_DEADLINE.
    deadline: u64,
    /// The last that came, by the clock of that moment.
    came: u64,
    /// The guest runs on a host that does not know the page.
    stranger: bool,
}

struct World<const WITHOUT: u8> {
    page: Page<WITHOUT>,
    v: Mutex<Vcpu>,
}

impl<const WITHOUT: u8> World<WITHOUT> {
    fn new() -> Arc<Self> {
        let page = Page { armed: AtomicU64::new(0), pending: AtomicU64::new(0) };
        Arc::new(Self { page, v: Mutex::new(Vcpu::default()) })
    }

    /// The guest sets its timer; `true`: with an exit.
    fn sets(&self, deadline: u64) -> bool {
        let exits = set(&self.page, deadline);
        if exits {
            self.written(deadline);
        }
        exits
    }

    fn written(&self, deadline: u64) {
        let mut v = self.v.lock().unwrap();
        v.deadline = deadline;
        if !v.stranger {
            v.lazy.update(&self.page, deadline);
        }
    }

    /// The host's timer fires at `now`.
    fn fires(&self, now: u64) {
        let mut v = self.v.lock().unwrap();
        if v.deadline == 0 || v.deadline > now {
            return;
        }
        let later = if v.stranger { None } else { v.lazy.clear(&self.page) };
        match later {
            Some(next) if next > now => {
                v.deadline = next;
                v.lazy.go_on(&self.page, next);
            }
            _ => {
                v.deadline = 0;
                v.came = now;
            }
        }
    }

    /// Something ends the attending.
    fn clears(&self) {
        let mut v = self.v.lock().unwrap();
        if let Some(last) = v.lazy.clear(&self.page) {
            v.deadline = last;
        }
    }

    /// To user space, and on a host without all this.
    fn departs(&self) {
        self.clears();
        self.v.lock().unwrap().stranger = true;
    }

    /// The guest's last deadline.
    fn check(&self, wanted: u64) {
        let v = self.v.lock().unwrap();
        let exact = v.deadline == wanted;
        let attended = !v.stranger && v.lazy.armed() == v.deadline;
        let leads = v.deadline != 0 && v.deadline < wanted && attended;
        assert!(exact || leads || v.came >= wanted, "lost: {wanted}, armed for {}", v.deadline);
    }
}

/// The guest sets these one after the other, the first with an exit before the others begin; `host` does its part meanwhile.
fn race<const W: u8>(deadlines: &'static [u64], host: &'static [fn(&World<W>)]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(move || {
        let w = World::<W>::new();
        let (first, rest) = deadlines.split_first().unwrap();
        assert!(w.sets(*first));
        let threads: std::vec::Vec<_> = host
            .iter()
            .map(|act| {
                let w = w.clone();
                thread::spawn(move || act(&w))
            })
            .collect();
        for deadline in rest {
            w.sets(*deadline);
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        w.check(*deadlines.last().unwrap());
    });
}

fn fires<const W: u8>() {
    race::<W>(&[10, 30, 20], &[|w| w.fires(10)]);
    race::<W>(&[10, 20], &[|w| w.fires(10)]);
    race::<W>(&[10, 20, 5], &[|w| w.fires(10)]);
    race::<W>(&[10, 20], &[|w| w.fires(25)]);
}

fn clears<const W: u8>() {
    race::<W>(&[10, 20], &[|w| w.clears()]);
    race::<W>(&[10, 30, 20], &[|w| w.clears()]);
}

fn departs<const W: u8>() {
    race::<W>(&[10, 20], &[|w| w.departs()]);
    race::<W>(&[10, 30, 20], &[|w| w.departs()]);
}

#[test]
fn fires_while_the_guest_sets() {
    fires::<NONE>();
}

#[test]
fn cleared_while_the_guest_sets() {
    clears::<NONE>();
}

#[test]
fn departs_while_the_guest_sets() {
    departs::<NONE>();
}

/// All at once.
#[test]
fn fires_and_departs() {
    race::<NONE>(&[10, 20], &[|w| w.fires(10), |w| w.departs()]);
    race::<NONE>(&[10, 20], &[|w| w.fires(10), |w| w.clears()]);
}

#[test]
#[should_panic(expected = "lost")]
fn the_guest_needs_its_barrier_when_it_fires() {
    fires::<GUEST>();
}

#[test]
#[should_panic(expected = "lost")]
fn the_guest_needs_its_barrier_when_it_is_cleared() {
    clears::<GUEST>();
}

#[test]
#[should_panic(expected = "lost")]
fn the_guest_needs_its_barrier_when_it_departs() {
    departs::<GUEST>();
}

#[test]
#[should_panic(expected = "lost")]
fn the_host_needs_its_barrier_when_it_fires() {
    fires::<HOST>();
}

#[test]
#[should_panic(expected = "lost")]
fn the_host_needs_its_barrier_when_it_clears() {
    clears::<HOST>();
}

#[test]
#[should_panic(expected = "lost")]
fn the_host_needs_its_barrier_when_it_departs() {
    departs::<HOST>();
}

/// Who looks at *pending* before *armed* is 0 re-arms for what is not wanted any more.
#[test]
#[should_panic(expected = "lost")]
fn armed_is_cleared_before_the_look() {
    race::<NONE>(
        &[10, 30, 20],
        &[|w| {
            let mut v = w.v.lock().unwrap();
            if v.deadline == 10
                && let Some(next) = w.page.pending().filter(|next| *next > 10)
            {
                v.deadline = next;
                v.lazy.go_on(&w.page, next);
            }
        }],
    );
}

/// Who leaves without a word, or a last look, leaves a guest that never writes again.
#[test]
#[should_panic(expected = "lost")]
fn who_departs_clears() {
    race::<NONE>(&[10, 20], &[|w| w.v.lock().unwrap().stranger = true, |w| w.fires(10)]);
}

/// Page of one thread, with a hole.
#[derive(Default)]
struct Plain {
    armed: core::cell::Cell<u64>,
    pending: core::cell::Cell<u64>,
    offset: core::cell::Cell<u64>,
    gone: core::cell::Cell<bool>,
}

impl HostPage for Plain {
    fn arm(&self, armed: u64) -> bool {
        if !self.gone.get() {
            self.armed.set(armed);
        }
        !self.gone.get()
    }
    fn barrier(&self) {}
    fn pending(&self) -> Option<u64> {
        (!self.gone.get()).then(|| self.pending.get())
    }
    fn tell(&self, told: Told) -> bool {
        if !self.gone.get() {
            self.offset.set(told.offset);
        }
        !self.gone.get()
    }
}

impl GuestPage for Plain {
    fn want(&self, deadline: u64) {
        self.pending.set(deadline);
    }
    fn barrier(&self) {}
    fn armed(&self) -> u64 {
        self.armed.get()
    }
    fn told(&self) -> Told {
        Told { offset: self.offset.get(), inside: 0 }
    }
    fn request(&self) {}
}

/// From 0 and 0: the first exits; the same again and later ones do not, earlier ones do.
#[test]
fn which_exit() {
    let (p, mut h) = (Plain::default(), Host::default());
    assert!(h.begin(&p) && set(&p, 100));
    h.update(&p, 100);
    for (deadline, exits) in
        [(100, false), (101, false), (150, false), (120, false), (99, true), (u64::MAX, false)]
    {
        assert_eq!(set(&p, deadline), exits, "{deadline}");
    }
    assert_eq!(h.clear(&p), Some(u64::MAX));
    assert!(set(&p, 200), "not attended");
}

/// The guest's copy of *armed* is nothing that the host believes, and a *pending* before it nothing that it follows.
#[test]
fn garbage() {
    for garbage in [0, 1, 99, 101, u64::MAX] {
        let (p, mut h) = (Plain::default(), Host::default());
        set(&p, 100);
        h.update(&p, 100);
        p.armed.set(garbage);
        p.pending.set(120);
        assert_eq!(h.clear(&p), Some(120), "armed {garbage}");
        h.go_on(&p, 120);
        p.pending.set(garbage);
        assert_eq!(h.clear(&p), Some(garbage).filter(|g| *g > 120), "pending {garbage}");
        assert_eq!((h.armed(), p.armed.get()), (0, 0));
    }
}

/// Written to the MSR by somebody who does not know of the page: what stands there is of no meaning.
#[test]
fn of_somebody_else() {
    let (p, mut h) = (Plain::default(), Host::default());
    set(&p, 100);
    h.update(&p, 100);
    p.pending.set(500);
    h.update(&p, 300);
    assert_eq!((h.armed(), p.armed.get(), h.clear(&p)), (0, 0, None));
}

/// Not attended, nothing is read or written: stale words stay where they are.
#[test]
fn not_attended() {
    let (p, mut h) = (Plain::default(), Host::default());
    p.armed.set(7);
    p.pending.set(8);
    h.stop(&p);
    assert_eq!((h.clear(&p), p.armed.get()), (None, 7));
}

/// The page is out of reach: what is owed is written when it is back, and meanwhile nothing later than what was armed is believed.
#[test]
fn out_of_reach() {
    let (p, mut h) = (Plain::default(), Host::default());
    set(&p, 100);
    h.update(&p, 100);
    set(&p, 200);
    p.gone.set(true);
    assert_eq!(h.clear(&p), None);
    assert!(h.owes());
    h.settle(&p);
    assert!(h.owes());
    p.gone.set(false);
    h.settle(&p);
    assert!(!h.owes());
    assert_eq!(p.armed.get(), 0);
}

fn by(offset: u64) -> Told {
    Told { offset, inside: 0 }
}

/// A host whose TSC is the guest's less `offset`, and what it makes of writes.
struct Shifted {
    page: Plain,
    host: Host,
    offset: u64,
    /// It knows the page, and has the guest's word.
    knows: bool,
    /// In the guest's ticks.
    deadline: u64,
}

impl Shifted {
    fn new() -> Self {
        Self { page: Plain::default(), host: Host::default(), offset: 5000, knows: true, deadline: 0 }
    }
    fn wrmsr(&mut self, value: u64) {
        // Lent or not, it is in whose ticks the page says.
        self.deadline = value.wrapping_add(self.host.told().offset);
        if self.knows {
            self.host.tell(&self.page, self.deadline, by(self.offset));
        }
    }
    fn departs(&mut self, knows: bool, offset: u64) {
        self.host.tell(&self.page, 0, Told::NOTHING);
        (self.knows, self.offset) = (knows, offset);
    }
}

/// The guest's page, and what happens behind each look.
struct Taken<'a, F> {
    w: &'a core::cell::RefCell<Shifted>,
    happens: F,
}

impl<F: Fn()> GuestPage for Taken<'_, F> {
    fn want(&self, deadline: u64) {
        self.w.borrow().page.want(deadline);
    }
    fn barrier(&self) {}
    fn armed(&self) -> u64 {
        0
    }
    fn told(&self) -> Told {
        let told = self.w.borrow().page.told();
        (self.happens)();
        told
    }
    fn request(&self) {}
}

/// Wherever between its looks and its writes the guest is taken away, however often, and to whomever: what stands in the MSR behind the last
/// look is what it wants, in whose ticks it may be.
#[test]
fn taken_away_between_the_looks() {
    const MOMENTS: u32 = 6;
    // At each of the first moments: stays, another host, one that does not know the page, one with another offset.
    for plan in 0..4u32.pow(MOMENTS) {
        let w = core::cell::RefCell::new(Shifted::new());
        let moment = core::cell::Cell::new(0);
        let happens = || {
            let n = moment.replace(moment.get() + 1);
            let mut w = w.borrow_mut();
            match if n < MOMENTS { plan / 4u32.pow(n) % 4 } else { 0 } {
                1 => w.departs(true, 5000),
                2 => w.departs(false, 70),
                3 => w.departs(true, 900),
                _ => {}
            }
        };
        let page = Taken { w: &w, happens };
        for deadline in [10_000, 9000] {
            assert!(set(&page, deadline));
            write(&page, deadline, |value| {
                w.borrow_mut().wrmsr(value);
                happens();
            });
            assert_eq!(w.borrow().deadline, deadline, "plan {plan}");
        }
    }
}

/// Who wrote something else than it says it wants does not read the page: it is told nothing, and nothing any more.
#[test]
fn an_offset_is_for_who_looks() {
    let mut w = Shifted::new();
    w.page.want(10_000);
    w.wrmsr(9999);
    assert_eq!((w.page.offset.get(), w.host.told().offset), (0, 0));
    w.wrmsr(10_000);
    assert_eq!((w.page.offset.get(), w.host.told().offset), (5000, 5000));
    w.wrmsr(6000);
    assert_eq!((w.page.offset.get(), w.host.told().offset, w.deadline), (0, 0, 11_000));
}

/// Stopped between look and write, on the same host: what was written is what it wants, which no look is needed to mend.
#[test]
fn stale_and_known() {
    let mut w = Shifted::new();
    w.page.want(10_000);
    w.wrmsr(10_000);
    assert_eq!(w.host.stale(&w.page, 5000), None, "told: it is in the host's ticks");
    w.departs(true, 5000);
    assert_eq!(w.host.stale(&w.page, 5000), Some(10_000));
    assert_eq!((w.host.stale(&w.page, 5001), w.host.stale(&w.page, 10_000)), (None, None));
}

/// The page is out of reach: no offset holds that was not told, and one that cannot be taken back is owed before the guest runs.
#[test]
fn an_offset_out_of_reach() {
    let mut w = Shifted::new();
    w.page.want(10_000);
    w.page.gone.set(true);
    w.host.tell(&w.page, 10_000, by(5000));
    assert_eq!((w.host.told().offset, w.host.owes()), (0, false));
    w.page.gone.set(false);
    w.host.tell(&w.page, 10_000, by(5000));
    w.page.gone.set(true);
    w.host.tell(&w.page, 0, Told::NOTHING);
    assert!(w.host.owes() && w.host.told().offset == 0);
    w.page.gone.set(false);
    w.host.settle(&w.page);
    assert_eq!((w.host.owes(), w.page.offset.get()), (false, 0));
}
