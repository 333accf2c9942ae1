//! One virtual machine: its memory, its chips, its vCPUs. Shared by their fds; freed when the last one closes.
//!
//! Locks, outermost first: `lock` (configuration, vCPU creation) > `slots_lock` > `chips` (spinlock) > `mmu` (spinlock).
//! `claims` (spinlock) is taken with none of them and before none.
//! The list of all VMs (spinlock) > `clocks` (spinlock).
//! Readers of slots, routes and ioeventfds are in a read section: a vCPU's thread in its own ([`exitless_vcpu::section`]),
//! everybody else in the VM's SRCU.

pub mod bus;
pub mod clock;
pub mod ioctl;
pub mod irq;
pub mod irqfd;
pub mod memory;
pub mod window;

use crate::publish::Published;
use crate::stats::VmStats;
use crate::vcpu::VcpuObj;
use crate::vendor::svm::AvicTables;
use crate::vendor::vmx::PidTable;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, Ordering};
use exitless_host::cpu::VmCount;
use exitless_host::debugfs::Dir;
use exitless_host::eventfd;
use exitless_host::lock::{LockClass, Mutex, SpinLock};
use exitless_host::mem::{KArc, KBox, KSlice, Pages};
use exitless_host::mmu::MmuNotifier;
use exitless_host::srcu::Srcu;
use exitless_host::task::Mm;
use exitless_host::timer::Timer;
use exitless_host::wait::WaitQueue;
use exitless_host::{Errno, Result, cpu, task, time};
use exitless_ipi::{Address, Claim, Claims, Map, Whole};
use exitless_kvm_abi::{
    KVM_X86_DISABLE_EXITS_CSTATE, KVM_X86_DISABLE_EXITS_HLT, KVM_X86_DISABLE_EXITS_MWAIT,
    KVM_X86_DISABLE_EXITS_PAUSE,
};
use exitless_nospec::Guarded;
use exitless_vcpu::Request;
use exitless_vcpu::backend::InGuest;
use exitless_vcpu::chooser::{Facts, Mechanism, Reason, Set};
use exitless_vcpu::clock::tsc::Rate;
use exitless_vcpu::section::{Changes, Look};
use exitless_yielding::Rotation;

/// vCPUs a VM may have.
pub const MAX_VCPUS: usize = 1024;
/// Their ids are below this, with room for holes.
pub const MAX_VCPU_IDS: usize = 4 * MAX_VCPUS;

/// Ids for which each VM has room; for others there is [`HighIds`].
const IDS: usize = 256;

/// What only VMs with larger ids have.
type HighIds = [AtomicU16; MAX_VCPU_IDS - IDS];

/// From which the map is made.
#[derive(bytemuck::Zeroable)]
struct AllClaims {
    low: Claims<IDS>,
    /// For [`HighIds`].
    high: KSlice<Claim>,
}

/// Settings made by ioctls before and while vCPUs exist.
#[derive(bytemuck::Zeroable)]
pub struct Config {
    /// vCPUs created so far.
    pub vcpus: u32,
    /// `KVM_SET_BOOT_CPU_ID`.
    pub boot_cpu: u32,
    /// `KVM_CAP_MAX_VCPU_ID`: vCPU ids stay below this; 0: not set.
    pub max_id: u32,
    /// TSC rate of vCPUs to come (`KVM_SET_TSC_KHZ` of the VM).
    pub tsc_rate: Rate,
}

/// See the file's head.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Vm {
    /// Protects readers of the published tables that are no vCPU's thread.
    pub srcu: Srcu,
    /// Numbers the changes of the published tables, for the vCPUs' read sections.
    pub changes: Changes,
    /// Woken by vCPUs that leave a read section for which somebody waits.
    pub left: WaitQueue,
    /// Configuration.
    pub lock: Mutex<Config>,
    /// Serialises slot changes.
    pub slots_lock: Mutex<memory::Update>,
    /// The slots.
    pub slots: Published<memory::SlotTable>,
    /// Second-level tables.
    pub mmu: SpinLock<memory::Mmu>,
    /// The 8259 pair, the I/O APIC and the 8254.
    pub chips: SpinLock<irq::Chips>,
    /// GSI routes.
    pub routes: Published<irq::RouteTable>,
    /// Serialises changes of routes, ioeventfds and coalesced zones, and owns the irqfds.
    pub wiring: Mutex<irqfd::Wiring>,
    /// ioeventfds.
    pub events: Published<bus::EventTable>,
    /// Coalesced zones.
    pub zones: Published<bus::ZoneTable>,
    /// Serialises writers of the ring.
    pub ring_lock: SpinLock<()>,
    /// Who hears that the guest ended interrupts.
    pub listeners: Published<irqfd::ListenerTable>,
    /// The VM's clocks.
    pub clocks: SpinLock<clock::Clocks>,
    /// Whom destinations of interrupts name.
    pub map: Map<IDS>,
    /// From which the map was made; its lock serialises those who change it.
    claims: SpinLock<AllClaims>,
    /// vCPUs whose APIC's page is not the default one, under the same lock.
    away: AtomicU32,
    /// KVM_X2APIC_API_*.
    pub x2apic_api: AtomicU32,
    /// Set once, before the first vCPU that needs it.
    high_ids: Published<HighIds>,
    /// The next in the list of all VMs, under that list's lock.
    pub next: AtomicPtr<Vm>,
    /// All vCPUs by index.
    vcpus: [AtomicPtr<VcpuObj>; MAX_VCPUS],
    /// How many of `vcpus` are set; grows only.
    nvcpus: AtomicU32,
    /// The 8259 pair and the I/O APIC live in the kernel, and the local APICs too.
    pub irqchip: AtomicBool,
    /// The local APICs live in the kernel, whoever has the other controllers (KVM_CAP_SPLIT_IRQCHIP: user space).
    pub lapics: AtomicBool,
    /// Where the I/O APIC's registers are.
    ioapic_base: AtomicU64,
    /// The 8254 lives in the kernel.
    pub pit: AtomicBool,
    /// Output of the 8259 pair.
    pub pic_output: AtomicBool,
    /// The address space is gone.
    pub dead: AtomicBool,
    /// `KVM_CAP_EXIT_ON_EMULATION_FAILURE`.
    pub exit_on_failure: AtomicBool,
    /// `KVM_CAP_X86_DISABLE_EXITS`: KVM_X86_DISABLE_EXITS_*. Set before vCPUs exist.
    pub idle_in_guest: AtomicU32,
    /// Pages of devices can be marked in the second-level tables.
    can_mark: bool,
    /// CPUs can log guests' writes.
    cpu_logs: bool,
    /// Some slot logs writes, and CPUs do it.
    pub logging: AtomicBool,
    /// The slot that is retiring (head of `memory.rs`) logs writes.
    retiring_logs: AtomicBool,
    /// The routes of GSIs below this are the pins of user space's I/O APIC, which wants their EOIs.
    pub user_pins: AtomicU32,
    /// Whose turn it is when a vCPU spins.
    pub turns: Rotation,
    /// `KVM_CAP_HALT_POLL`: longest wait awake in HLT, ns; `u32::MAX`: as the module's parameter.
    pub halt_poll_ns: AtomicU32,
    /// Its time is measured; under `lock`.
    pub measured: AtomicBool,
    /// Mechanisms whose switch is on: an [`exitless_vcpu::chooser::Set`].
    pub wanted: AtomicU64,
    /// Level-triggered pins with someone to notify (resample irqfds).
    pub resample_gsis: AtomicU64,
    /// Vectors whose EOI the I/O APIC wants.
    pub eoi_vectors: [AtomicU64; 4],
    /// The 8254's host timer.
    pub pit_timer: Timer,
    /// Tells us when the host takes pages away.
    notifier: Option<MmuNotifier>,
    /// The address space the VM belongs to.
    mm: Option<Mm>,
    /// The page behind the APIC's registers where the CPU virtualises them.
    apic_access: Option<Pages>,
    /// AVIC's tables.
    pub avic: AvicTables,
    /// Intel's IPI virtualization.
    pub pids: PidTable,
    /// The posted-interrupt descriptors, where CPUs have them.
    pub window: window::Window,
    /// vCPUs whose APICs CPUs do not find in them.
    pub unfound: AtomicU32,
    /// Someone is to be notified of the EOIs of edge-triggered interrupts.
    pub edge_eois: AtomicBool,
    /// The page of the coalesced writes' ring.
    pub ring: Option<Pages>,
    built: AtomicBool,
    /// No other VM's, as long as the module is loaded.
    pub id: u64,
    /// The thread that created it.
    pub pid: i32,
    /// Whose that was: its effective user id in the initial user namespace.
    pub uid: u32,
    /// Keeps CPUs away that could not run it.
    counted: Option<VmCount>,
    _pad2: [u8; 6],
    /// Counters in debugfs.
    pub debugfs: Mutex<Dir>,
    /// Counters of the VM.
    pub stats: VmStats,
}

// SAFETY: everything inside is a lock, an atomic, a published pointer or set before the VM is shared.
unsafe impl Sync for Vm {}
// SAFETY: as above; nothing is bound to a thread but by `mm`, which every entry checks.
unsafe impl Send for Vm {}

impl Vm {
    /// Builds a VM for the calling process.
    pub fn create() -> Result<KArc<Vm>> {
        let mut arc = KArc::<Vm>::zeroed().ok_or(Errno::ENOMEM)?;
        let cookie = KArc::as_ptr(&arc).cast_mut().cast();
        let vm = KArc::get_mut(&mut arc).ok_or(Errno::EINVAL)?;
        vm.srcu.init()?;
        vm.left.init()?;
        vm.lock.init(LockClass::Vm)?;
        vm.slots_lock.init(LockClass::Slots)?;
        vm.wiring.init(LockClass::Irqfds)?;
        vm.mmu.init(LockClass::Mmu)?;
        vm.chips.init(LockClass::Irqchip)?;
        vm.claims.init(LockClass::Lapic)?;
        vm.clocks.init(LockClass::Clock)?;
        vm.ring_lock.init(LockClass::Ioeventfds)?;
        vm.debugfs.init(LockClass::Stats)?;
        vm.id = crate::global::next_identity();
        vm.pid = task::current_pid();
        vm.uid = task::current_euid();
        vm.wanted.store(crate::control::defaults().0, Ordering::Relaxed);
        vm.halt_poll_ns.store(u32::MAX, Ordering::Relaxed);
        vm.ring = Some(Pages::zeroed(0).ok_or(Errno::ENOMEM)?);
        vm.counted = Some(VmCount::one()?);
        let g = crate::global::get().ok_or(Errno::ENXIO)?;
        vm.apic_access = crate::vendor::apic_access_page(g)?;
        vm.avic = crate::vendor::svm::avic_tables(g)?;
        vm.pids = PidTable::new(g)?;
        vm.mm = Some(Mm::current().ok_or(Errno::EINVAL)?);
        vm.pit_timer.init(cookie, crate::callbacks::timer_kind::PIT)?;
        // Everything that `drop` uses exists; what fails from here on is taken down there.
        vm.built.store(true, Ordering::Release);
        cpu::guests_begin();
        vm.slots_lock.get_mut().init()?;
        vm.mmu.get_mut().init()?;
        vm.cpu_logs = crate::vendor::logs_writes(g);
        vm.can_mark = vm.mmu.get_mut().can_mark();
        vm.clocks.get_mut().start();
        vm.lock.get_mut().tsc_rate = Rate::host(time::tsc_khz());
        vm.notifier = Some(MmuNotifier::register(cookie)?);
        g.vms.lock().add(vm);
        Ok(arc)
    }

    /// The caller's address space is the VM's.
    pub fn check_mm(&self) -> Result<()> {
        let ours = self.mm.as_ref().is_some_and(Mm::is_current);
        if ours && !self.dead.load(Ordering::Relaxed) { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Number of vCPUs.
    pub fn vcpu_count(&self) -> usize {
        self.nvcpus.load(Ordering::Acquire) as usize
    }

    fn high_ids(&self) -> Option<&HighIds> {
        // SAFETY: it is not replaced as long as the VM lives.
        unsafe { self.high_ids.get() }
    }

    /// Whom destinations of interrupts name.
    pub fn whole_map<'a>(&'a self) -> Whole<'a, IDS, AtomicU16, impl Fn() -> &'a [AtomicU16]> {
        self.map.with(|| self.high_ids().map_or(&[], |ids| ids))
    }

    /// The map has room for this id. The caller holds `lock`.
    pub fn make_room(&self, id: u32) -> Result<()> {
        if (id as usize) < IDS || self.high_ids().is_some() {
            return Ok(());
        }
        let ids = KBox::zeroed().ok_or(Errno::ENOMEM)?;
        let claims = KSlice::zeroed(MAX_VCPU_IDS - IDS).ok_or(Errno::ENOMEM)?;
        // Nothing to be freed under the lock: there was none.
        let none = core::mem::replace(&mut self.claims.lock().high, claims);
        drop(none);
        drop(self.high_ids.replace(Some(ids)));
        Ok(())
    }

    /// The vCPU at `index`.
    pub fn vcpu(&self, index: usize) -> Option<&VcpuObj> {
        let p = self.vcpus.guarded(index)?.load(Ordering::Acquire);
        // SAFETY: a non-null entry is a vCPU that lives as long as the VM.
        unsafe { p.as_ref() }
    }

    /// The same, where the index is the map's and not a guest's.
    #[inline(always)]
    pub fn at(&self, index: usize) -> Option<&VcpuObj> {
        let p = self.vcpus.get(index)?.load(Ordering::Acquire);
        // SAFETY: as above.
        unsafe { p.as_ref() }
    }

    /// All vCPUs.
    pub fn each_vcpu(&self) -> impl Iterator<Item = &VcpuObj> {
        (0..self.vcpu_count()).filter_map(|i| self.vcpu(i))
    }

    /// Publishes a new vCPU, which the VM owns from now on. The caller holds `lock`. `false`: there is no room, the vCPU
    /// is still the caller's.
    pub fn add_vcpu(&self, v: *mut VcpuObj) -> bool {
        let n = self.vcpu_count();
        let Some(slot) = self.vcpus.get(n) else { return false };
        if self.avic.there() {
            // Broadcasts are for the new one too.
            self.unfound.fetch_add(1, Ordering::SeqCst);
            self.request_all(Request::EVENT);
        }
        slot.store(v, Ordering::Release);
        self.nvcpus.store(n as u32 + 1, Ordering::Release);
        self.vcpu(n).inspect(|v| self.apic_moved(v));
        self.tsc_changed();
        true
    }

    /// The ring page.
    pub fn ring_page(&self) -> *mut core::ffi::c_void {
        self.ring.as_ref().map_or(core::ptr::null_mut(), |r| r.page(0))
    }

    /// Posts a request to every vCPU; those in the guest come out.
    pub fn request_all(&self, r: Request) {
        self.request_each(self.each_vcpu(), r);
    }

    /// Posts a request to these vCPUs; those in the guest are interrupted together, so many at a time that interrupts are not off
    /// for long.
    pub fn request_each<'a>(&self, vcpus: impl Iterator<Item = &'a VcpuObj>, r: Request) {
        const TOGETHER: usize = 16;
        let mut vcpus = vcpus.peekable();
        while vcpus.peek().is_some() {
            cpu::kick_all(vcpus.by_ref().take(TOGETHER).filter_map(|v| {
                v.shared.request(r);
                v.wake_or_interrupt()
            }));
        }
    }

    /// Waits until no reader can use what a published table has replaced. vCPUs stay in their read sections while in the
    /// guest, so those that entered theirs before now are asked to leave. Sleeps.
    pub fn synchronize(&self) {
        let change = self.changes.next();
        // Early, so that vCPUs leave while the others' readers do.
        self.ask_to_leave(change);
        self.srcu.synchronize_expedited();
        loop {
            let seen = self.left.seen();
            if self.ask_to_leave(change) {
                return;
            }
            self.left.wait(seen);
        }
    }

    /// `true`: every vCPU has left what `change` replaced. Others are asked, by whoever marks them, and will wake us.
    fn ask_to_leave(&self, change: u64) -> bool {
        let mut left = true;
        let marked = self.each_vcpu().filter(|v| {
            let look = v.shared.section.look(change);
            left &= look == Look::Left;
            look == Look::Marked
        });
        self.request_each(marked, Request::QUIESCE);
        left
    }

    /// The VM's fd closed: nothing new can be wired, irqfds end.
    pub fn fd_closed(&self) {
        irqfd::drop_all(self);
        // One that hung up before is out of the list, and its worker, which holds no reference to the VM, may still be at it.
        eventfd::settle_hangups();
        *self.debugfs.lock() = bytemuck::Zeroable::zeroed();
    }

    /// Interrupts the CPUs of all vCPUs that are in the guest and waits until each has answered. Does not sleep: a
    /// notification of the host's memory management may forbid it.
    pub fn kick_all_and_wait(&self) {
        let cpu = |v: &VcpuObj| u32::try_from(v.shared.cpu.load(Ordering::Relaxed)).ok();
        let running = self.each_vcpu().filter(|v| v.shared.needs_ipi()).filter_map(cpu);
        cpu::kick_all_and_wait(running);
    }

    /// Physical address of the page behind the APIC's registers; 0: there is none.
    pub fn apic_access_pa(&self) -> u64 {
        self.apic_access.as_ref().map_or(0, Pages::phys)
    }

    /// What its guest does without an exit.
    pub fn in_guest(&self) -> InGuest {
        let has = |bit: u64| u64::from(self.idle_in_guest.load(Ordering::Relaxed)) & bit != 0;
        InGuest {
            hlt: has(KVM_X86_DISABLE_EXITS_HLT),
            mwait: has(KVM_X86_DISABLE_EXITS_MWAIT),
            pause: has(KVM_X86_DISABLE_EXITS_PAUSE),
            cstates: has(KVM_X86_DISABLE_EXITS_CSTATE),
        }
    }

    /// The mechanism's switch is on.
    pub fn wants(&self, m: Mechanism) -> bool {
        Set(self.wanted.load(Ordering::Relaxed)).has(m)
    }

    /// What stands against mechanisms in this VM and on this host.
    pub fn facts(&self) -> Facts {
        let own = self.in_guest();
        Facts::default()
            .with(Reason::IdleExits, !(own.hlt || own.mwait))
            .with(Reason::NoHousekeeping, !exitless_host::timer::keeps_house())
            .with(Reason::NoAvic, !self.avic.there())
            .with(Reason::HostTimer, !crate::vendor::timer_fits())
            .with(
                Reason::NotAllowed,
                !(exitless_host::vmx::allows_raw_ipi() && exitless_host::wakeup::listens()),
            )
            // Of one of its vCPUs, whose descriptor any other would find in the window.
            .with(Reason::HardwarePosts, self.pids.is_there())
            .with(Reason::NoWindow, self.window.is_hidden())
            .with(Reason::HostXApic, !exitless_host::vmx::host_x2apic())
    }

    /// The address space, for looking at how the host maps it.
    pub fn mm(&self) -> Option<&Mm> {
        self.mm.as_ref()
    }

    /// The APIC of `v`, or `v` itself, is new, or has another id, mode or page, and has published it. Its caller is its only owner.
    pub fn apic_moved(&self, v: &VcpuObj) {
        let address = v.shared.apic.address();
        // Before the vCPU goes on: whoever it tells then finds it.
        let mut claims = self.claims.lock();
        let AllClaims { low, high } = &mut *claims;
        let old = Address::from(v.claimed.swap(address.into(), Ordering::Relaxed));
        self.whole_map().update(low, high, v.index as usize, old, address);
        match (old.default_page(), address.default_page()) {
            (true, false) => self.away.fetch_add(1, Ordering::SeqCst),
            (false, true) => self.away.fetch_sub(1, Ordering::SeqCst),
            _ => 0,
        };
        drop(claims);
        self.check_apic_page();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.built.load(Ordering::Acquire) {
            return;
        }
        if let Some(g) = crate::global::get() {
            g.vms.lock().remove(self);
        }
        // First of all that is in it: its readers look at everything else.
        *self.debugfs.get_mut() = bytemuck::Zeroable::zeroed();
        self.pit_timer.cancel();
        drop(self.notifier.take());
        for i in 0..self.vcpu_count() {
            if let Some(slot) = self.vcpus.get(i) {
                let p = slot.swap(core::ptr::null_mut(), Ordering::AcqRel);
                // SAFETY: the last reference to the VM is gone, so no fd and no thread uses the vCPU.
                unsafe { crate::vcpu::free(p) };
            }
        }
        self.zap_everything();
        self.mmu.get_mut().free_root();
        memory::free_slots(self.slots.replace(None));
        drop(self.routes.replace(None));
        drop(self.events.replace(None));
        drop(self.zones.replace(None));
        drop(self.listeners.replace(None));
        drop(self.high_ids.replace(None));
        cpu::guests_end();
    }
}
