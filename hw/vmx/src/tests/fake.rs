//! A processor in VMX operation, as far as the backend can tell.

use super::world::{Hand, World};
use crate::caps::Wish;
use crate::machine::{Machine, TaskSegments, how, switched};
use crate::pmu::{LONGEST, MsrAreas, Switched};
use crate::vcpu::Run;
use crate::{Caps, HostState, Pages, PerCpu, Residence, Vmx};
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use exitless_vcpu::backend::{InGuest, NoSender};
use exitless_x86::cpuid::CpuidResult;
use exitless_x86::vmx::caps::msr;
use exitless_x86::vmx::control::{entry, exit};
use exitless_x86::vmx::field::{self as f, Access, Field, Width};
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::vec::Vec;

const KERNEL_GS: u32 = 0xc000_0102;
/// IA32_TSC_DEADLINE.
pub(super) const DEADLINE: u32 = 0x6e0;
/// LVTT of the x2APIC, in the log of writes.
pub(super) const LVTT: u32 = 0x832;

type Script = Box<dyn FnMut(&Cpu, &mut Run) -> u32>;

/// One VMCS.
#[derive(Default)]
pub(super) struct Vmcs {
    fields: BTreeMap<u32, u64>,
    launched: bool,
}

/// See the file's head. One of them stands for whichever physical CPU runs: VMCSs are found by address.
#[derive(Default)]
pub(super) struct Cpu {
    pub(super) vmcs: RefCell<BTreeMap<u64, Vmcs>>,
    pub(super) current: Cell<u64>,
    pub(super) msrs: RefCell<BTreeMap<u32, u64>>,
    pub(super) segments: Cell<TaskSegments>,
    pub(super) restored: Cell<Option<TaskSegments>>,
    pub(super) cr3: Cell<u64>,
    /// The host's; `None`: as after boot, without machine checks.
    pub(super) cr4: Cell<Option<u64>>,
    pub(super) tsc: Cell<u64>,
    /// What LVTT says, as `Machine::host_timer` tells; the timer's bit in the IRR; EOIs; whether the kernel was told of a loan.
    pub(super) lvtt: Cell<u32>,
    pub(super) requested: Cell<bool>,
    /// At the IRR.
    pub(super) looks: Cell<u32>,
    pub(super) ended: Cell<u32>,
    pub(super) lent: Cell<bool>,
    /// How often the return to user mode was asked to call back.
    pub(super) user_returns: Cell<u32>,
    pub(super) dr6: Cell<u64>,
    pub(super) script: RefCell<VecDeque<Script>>,
    pub(super) reads: RefCell<Vec<u32>>,
    pub(super) writes: RefCell<Vec<u32>>,
    pub(super) wrmsrs: RefCell<Vec<u32>>,
    pub(super) rdmsrs: RefCell<Vec<u32>>,
    pub(super) invepts: RefCell<Vec<(u64, u64)>>,
    pub(super) invvpids: Cell<u32>,
    pub(super) barriers: Cell<u32>,
    /// What else happens around the run loop, where the test has one.
    pub(super) outside: RefCell<Option<Rc<World>>>,
    pub(super) flushed_l1d: Cell<bool>,
    /// What perf wants exchanged.
    pub(super) pmu: RefCell<Vec<Switched>>,
    pub(super) pmu_looks: Cell<u32>,
    /// What a guest of the tests in `pmu` found.
    pub(super) seen: RefCell<Vec<u64>>,
    /// What is in memory at `AREAS`.
    areas: Cell<Option<&'static MsrAreas>>,
}

impl Cpu {
    pub(super) fn field<W: Width, A: Access>(&self, f: Field<W, A>) -> W::Value {
        let all = self.vmcs.borrow();
        W::value(all[&self.current.get()].fields.get(&f.encoding()).copied().unwrap_or(0))
    }
    /// A VM entry or exit loads MSRs: by the control for IA32_PERF_GLOBAL_CTRL, then from its area.
    fn load_msrs(&self, by_control: Option<u64>, address: u64, count: u32) {
        let mut msrs = self.msrs.borrow_mut();
        if let Some(value) = by_control {
            msrs.insert(0x38f, value);
        }
        assert!(count as usize <= LONGEST);
        let Some(areas) = self.areas.get().filter(|_| count != 0) else { return };
        let area = if address == AREAS { &areas.entry } else { &areas.exit };
        assert!(address == AREAS || address == AREAS + MsrAreas::EXIT);
        for [number, value] in area.iter().take(count as usize) {
            msrs.insert(number.load(Relaxed) as u32, value.load(Relaxed));
        }
    }
    fn load_guest_msrs(&self) {
        let on = self.field(f::ENTRY_CONTROLS) & entry::LOAD_PERF_GLOBAL_CTRL != 0;
        let control = on.then(|| self.field(f::GUEST_PERF_GLOBAL_CTRL));
        self.load_msrs(control, self.field(f::ENTRY_MSR_LOAD_ADDRESS), self.field(f::ENTRY_MSR_LOAD_COUNT));
    }
    fn load_host_msrs(&self) {
        let on = self.field(f::EXIT_CONTROLS) & exit::LOAD_PERF_GLOBAL_CTRL != 0;
        let control = on.then(|| self.field(f::HOST_PERF_GLOBAL_CTRL));
        self.load_msrs(control, self.field(f::EXIT_MSR_LOAD_ADDRESS), self.field(f::EXIT_MSR_LOAD_COUNT));
    }
    /// What hardware stores on an exit, read-only fields too.
    pub(super) fn store<W: Width, A: Access>(&self, f: Field<W, A>, v: W::Value) {
        self.vmcs.borrow_mut().get_mut(&self.current.get()).unwrap().fields.insert(f.encoding(), W::raw(v));
    }
    pub(super) fn msr(&self, n: u32) -> u64 {
        self.msrs.borrow().get(&n).copied().unwrap_or(0)
    }
    /// The APIC's timer, after a write or after time has passed.
    pub(super) fn tick(&self) {
        let mut msrs = self.msrs.borrow_mut();
        if let Some(deadline) = msrs.get_mut(&DEADLINE).filter(|d| **d != 0 && **d <= self.tsc.get()) {
            *deadline = 0;
            let own = self.lvtt.get() & 0xff != u32::from(crate::vapic::NOTIFICATION);
            self.requested.set(self.requested.get() || own);
        }
    }
    pub(super) fn clear_logs(&self) {
        self.reads.borrow_mut().clear();
        self.writes.borrow_mut().clear();
        self.wrmsrs.borrow_mut().clear();
        self.rdmsrs.borrow_mut().clear();
        self.invepts.borrow_mut().clear();
    }
    pub(super) fn wrote<W: Width, A: Access>(&self, f: Field<W, A>) -> bool {
        self.writes.borrow().contains(&f.encoding())
    }
    pub(super) fn read_count<W: Width, A: Access>(&self, f: Field<W, A>) -> usize {
        self.reads.borrow().iter().filter(|&&e| e == f.encoding()).count()
    }
    /// The host's handler runs.
    fn hand(&self, hand: Hand) {
        if let Some(w) = &*self.outside.borrow() {
            w.host_runs(hand);
        }
    }
    /// The next entry ends like this.
    pub(super) fn next(&self, f: impl FnMut(&Cpu, &mut Run) -> u32 + 'static) {
        self.script.borrow_mut().push_back(Box::new(f));
    }
    /// The next entry ends with this exit reason and qualification.
    pub(super) fn exit(&self, reason: u32, qualification: u64) {
        self.next(move |cpu, run| {
            cpu.store(exitless_x86::vmx::field::EXIT_QUALIFICATION, qualification);
            run.reason = reason;
            run.interruption = 0;
            switched::EXIT
        });
    }
}

#[derive(Clone, Copy)]
pub(super) struct Fake(Option<&'static Cpu>);

// SAFETY: `None` is all-zero for an optional reference.
unsafe impl bytemuck::Zeroable for Fake {}

impl Fake {
    pub(super) fn new() -> (Self, &'static Cpu) {
        let cpu: &'static Cpu = Box::leak(Box::default());
        (Self(Some(cpu)), cpu)
    }
    fn cpu(&self) -> &'static Cpu {
        self.0.unwrap()
    }
}

impl Machine for Fake {
    fn vmread(&self, encoding: u32) -> u64 {
        let cpu = self.cpu();
        cpu.reads.borrow_mut().push(encoding);
        let all = cpu.vmcs.borrow();
        all.get(&cpu.current.get()).and_then(|v| v.fields.get(&encoding)).copied().unwrap_or(0)
    }
    fn vmwrite(&self, encoding: u32, value: u64) -> bool {
        let cpu = self.cpu();
        cpu.writes.borrow_mut().push(encoding);
        assert_ne!(encoding >> 10 & 3, 1, "a read-only field");
        let mut all = cpu.vmcs.borrow_mut();
        let Some(v) = all.get_mut(&cpu.current.get()) else { return false };
        v.fields.insert(encoding, value);
        true
    }
    fn vmclear(&self, pa: u64) -> bool {
        let cpu = self.cpu();
        cpu.vmcs.borrow_mut().entry(pa).or_default().launched = false;
        if cpu.current.get() == pa {
            cpu.current.set(0);
        }
        true
    }
    fn vmptrld(&self, pa: u64) -> bool {
        let cpu = self.cpu();
        let known = cpu.vmcs.borrow().contains_key(&pa);
        cpu.current.set(pa);
        known
    }
    fn invept(&self, kind: u64, eptp: u64) -> bool {
        self.cpu().invepts.borrow_mut().push((kind, eptp));
        true
    }
    fn invvpid(&self, _: u64, _: u16) -> bool {
        self.cpu().invvpids.set(self.cpu().invvpids.get() + 1);
        true
    }
    fn enter(&self, run: &mut Run, bits: u32) -> u32 {
        let cpu = self.cpu();
        if let Some(w) = &*cpu.outside.borrow() {
            w.trail.borrow_mut().push(Hand::Entered);
        }
        let launched = bits & how::LAUNCHED != 0;
        cpu.flushed_l1d.set(bits & how::GUARD_L1D != 0 && bits & how::L1D_DIRTY != 0);
        {
            let mut all = cpu.vmcs.borrow_mut();
            let Some(v) = all.get_mut(&cpu.current.get()) else { return switched::FAILED };
            assert_eq!(v.launched, launched, "VMLAUNCH wants a clear VMCS, VMRESUME a launched one");
            v.launched = true;
        }
        let mut script = cpu.script.borrow_mut().pop_front().expect("an entry nobody expected");
        cpu.load_guest_msrs();
        let ended = script(cpu, run);
        if ended == switched::EXIT {
            cpu.load_host_msrs();
        }
        let late_failure = ended == switched::EXIT && run.reason >> 31 != 0;
        if ended != switched::EXIT || late_failure {
            cpu.vmcs.borrow_mut().get_mut(&cpu.current.get()).unwrap().launched = launched;
        } else {
            let info = exitless_x86::vmx::field::ENTRY_INTERRUPTION_INFO;
            cpu.store(info, cpu.field(info) & !(1 << 31));
        }
        ended
    }
    fn interrupt(&self, vector: u8) {
        self.cpu().hand(Hand::Interrupt(vector));
    }
    fn machine_check(&self) {
        self.cpu().hand(Hand::MachineCheck);
    }
    fn exit_address(&self) -> u64 {
        0xe817
    }
    fn rdmsr(&self, msr: u32) -> u64 {
        self.cpu().rdmsrs.borrow_mut().push(msr);
        self.cpu().msr(msr)
    }
    fn wrmsr(&self, msr: u32, value: u64) {
        self.cpu().wrmsrs.borrow_mut().push(msr);
        self.cpu().msrs.borrow_mut().insert(msr, value);
        self.cpu().tick();
    }
    fn call_on_user_return(&self) {
        self.cpu().user_returns.set(self.cpu().user_returns.get() + 1);
    }
    fn pmu_list(&self, list: &mut [Switched; LONGEST]) -> usize {
        let cpu = self.cpu();
        cpu.pmu_looks.set(cpu.pmu_looks.get() + 1);
        let wanted = cpu.pmu.borrow();
        list[..wanted.len()].copy_from_slice(&wanted);
        wanted.len()
    }
    fn tsc(&self) -> u64 {
        self.cpu().tsc.get()
    }
    fn host_timer(&self) -> u32 {
        self.cpu().lvtt.get()
    }
    fn interrupt_requested(&self, vector: u8) -> bool {
        assert_eq!(u32::from(vector), self.cpu().lvtt.get() & 0xff);
        self.cpu().looks.set(self.cpu().looks.get() + 1);
        self.cpu().requested.get()
    }
    fn set_timer_vector(&self, vector: u8) {
        let cpu = self.cpu();
        cpu.lvtt.set(cpu.lvtt.get() & !0xff | u32::from(vector));
        cpu.wrmsrs.borrow_mut().push(LVTT);
    }
    fn end_interrupt(&self) {
        self.cpu().ended.set(self.cpu().ended.get() + 1);
    }
    fn note_lent(&self, lent: bool) {
        assert_ne!(self.cpu().lent.replace(lent), lent, "told once");
    }
    fn host_cr3(&self) -> u64 {
        self.cpu().cr3.get()
    }
    fn host_cr4(&self) -> u64 {
        self.cpu().cr4.get().unwrap_or(0x2020)
    }
    fn dr6(&self) -> u64 {
        self.cpu().dr6.get()
    }
    fn set_dr6(&self, value: u64) {
        self.cpu().dr6.set(value);
    }
    fn task_segments(&self) -> TaskSegments {
        TaskSegments { gs_base: self.cpu().msr(KERNEL_GS), ..self.cpu().segments.get() }
    }
    fn restore_task_segments(&self, s: &TaskSegments) {
        let cpu = self.cpu();
        cpu.restored.set(Some(*s));
        if s.gs != 0 {
            // Loading GS replaces the inactive GS base.
            cpu.msrs.borrow_mut().insert(KERNEL_GS, 0x6666);
        }
    }
    fn without_interrupts<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }
    fn branch_barrier(&self) {
        self.cpu().barriers.set(self.cpu().barriers.get() + 1);
    }
}

/// The capability MSRs of a Skylake server, with what a test changes.
pub(super) fn skylake() -> BTreeMap<u32, u64> {
    BTreeMap::from([
        (0x3a, 5),
        (msr::BASIC, 0x00da_0400_0000_0004),
        (msr::PINBASED_CTLS, 0x0000_00ff_0000_0016),
        (msr::TRUE_PINBASED_CTLS, 0x0000_00ff_0000_0016),
        (msr::PROCBASED_CTLS, 0xfff9_fffe_0401_e172),
        (msr::TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
        (msr::EXIT_CTLS, 0x01ff_ffff_0003_6dff),
        (msr::TRUE_EXIT_CTLS, 0x01ff_ffff_0003_6dfb),
        (msr::ENTRY_CTLS, 0x0003_ffff_0000_11ff),
        (msr::TRUE_ENTRY_CTLS, 0x0003_ffff_0000_11fb),
        (msr::MISC, 0x7004_c1e7),
        (msr::CR0_FIXED0, 0x8000_0021),
        (msr::CR0_FIXED1, 0xffff_ffff),
        (msr::CR4_FIXED0, 0x2000),
        (msr::CR4_FIXED1, 0x0077_2fff),
        (msr::PROCBASED_CTLS2, 0x035f_fcff_0000_0000),
        (msr::EPT_VPID_CAP, 0x0000_0f01_0673_4141),
    ])
}

/// CPUID of a CPU with VMX; `signature`: CPUID.01H:EAX.
pub(super) fn cpuid(signature: u32) -> impl Fn(u32) -> CpuidResult + Copy {
    move |leaf| match leaf {
        0 => CpuidResult { eax: 0x16, ..CpuidResult::default() },
        _ => CpuidResult { eax: signature, ecx: 1 << 5, ..CpuidResult::default() },
    }
}

pub(super) fn negotiate(msrs: &BTreeMap<u32, u64>) -> Result<Caps, crate::Missing> {
    negotiate_as(0x50654, msrs)
}

pub(super) fn negotiate_as(signature: u32, msrs: &BTreeMap<u32, u64>) -> Result<Caps, crate::Missing> {
    Caps::negotiate(
        cpuid(signature),
        |n| *msrs.get(&n).expect("an MSR that does not exist"),
        Wish { apicv: true, guard_l1d: true, preemption_timer: true, vpid: true, pml: true, ipiv: true },
    )
}

pub(super) fn host() -> HostState {
    HostState {
        cr0: 0x8005_0033,
        cs: 0x10,
        ss: 0x18,
        tr: 0x40,
        gs_base: 0x9000,
        tss_base: 0x7000,
        efer: 0xd01,
        ..HostState::default()
    }
}

/// A CPU with VMX on.
pub(super) fn online(m: Fake, number: u32) -> &'static PerCpu {
    let cpu: &'static PerCpu = Box::leak(Box::new(PerCpu::none()));
    cpu.enable(&m, number, &host(), true);
    cpu
}

/// One vCPU on a fake CPU 0.
pub(super) struct Bench {
    pub(super) v: Box<Vmx<Fake>>,
    pub(super) at: &'static Residence,
    pub(super) percpu: &'static PerCpu,
    pub(super) cpu: &'static Cpu,
    pub(super) m: Fake,
}

/// Where a bench's MSR-load areas are for the CPU.
const AREAS: u64 = 0x9000;

#[repr(align(4096))]
struct Page(#[allow(dead_code)] [u8; 4096]);

pub(super) fn residence(pa: u64) -> &'static Residence {
    let at: &'static Residence = Box::leak(Box::new(bytemuck::Zeroable::zeroed()));
    at.init(pa, pa);
    at
}

impl Bench {
    /// Not loaded yet.
    pub(super) fn cold() -> Self {
        Self::with(&negotiate(&skylake()).unwrap())
    }
    pub(super) fn with(caps: &Caps) -> Self {
        let (m, cpu) = Fake::new();
        let percpu = online(m, 0);
        let at = residence(0x1000);
        let mut v: Box<Vmx<Fake>> = Box::new(bytemuck::Zeroable::zeroed());
        v.m = m;
        let page = Box::leak(Box::new(Page([0; 4096])));
        let areas: &'static MsrAreas = Box::leak(Box::new(bytemuck::Zeroable::zeroed()));
        cpu.areas.set(Some(areas));
        let log = Box::leak(Box::new(Page([0; 4096])));
        let pages = Pages {
            residence: NonNull::from(at),
            virtual_apic: NonNull::from(page).cast(),
            virtual_apic_pa: 0x5000,
            msr_areas: NonNull::from(areas),
            msr_areas_pa: AREAS,
            log: Some(NonNull::from(log).cast()),
            log_pa: 0xa000,
            descriptor_pa: 0x7040,
            apic_access_pa: 0x8000,
            pid_table_pa: 0xb000,
            last_pid: 0x1ff,
        };
        v.init(pages, caps, InGuest::default());
        v.use_msr_bitmaps(|set, place| 0x10_0000 + set as u64 * 0x7000 + place as u64 * 0x1000);
        Self { v, at, percpu, cpu, m }
    }
    /// Loaded on CPU 0.
    pub(super) fn new() -> Self {
        let b = Self::cold();
        b.load();
        b
    }
    pub(super) fn load(&self) {
        // SAFETY: the residence is leaked.
        unsafe { self.at.load(&self.m, self.percpu) }.unwrap();
    }
    pub(super) fn put(&self) {
        // SAFETY: loaded on this CPU.
        unsafe { self.at.put(&self.m) };
    }
    /// One slice of one entry.
    pub(super) fn enter(&mut self, flush: bool) -> exitless_vcpu::backend::Exit {
        use exitless_vcpu::backend::Backend;
        self.v.begin(self.percpu);
        self.v.enter(self.percpu, flush, || NoSender)
    }
    /// One entry that ends with this exit.
    pub(super) fn run(&mut self, reason: u32, qualification: u64) -> exitless_vcpu::backend::Exit {
        self.cpu.exit(reason, qualification);
        self.enter(false)
    }
}
