//! A guest moves to a new VM while it runs: all vCPUs stop, all state is taken, a VM is made over the same memory, all state is set, in one
//! of the orders that VMMs have, and the vCPUs go on. Its descriptors take the numbers of the old VM's.
//!
//! The guest's TSC stands still meanwhile. On Exitless the new VM has other mechanisms switched on than the old one had.
//!
//! With `--swap COMMAND` nothing of the old VM is left while COMMAND runs, which loads the other module: the new VM is that one's.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use exitless_chooser::Set;
use exitless_control_abi::{EXITLESS_SWITCH, Switch};
use kvm_bindings::*;

use crate::config::{NO_PIT, SPLIT};
use crate::harness::Outcome;
use crate::kvm::{self, Errno, Fd, nr};
use crate::machine::{Machine, Vcpu};

/// A part of a vCPU's state.
#[derive(Clone, Copy)]
enum Part {
    ApicBase,
    Deadline,
    Debug,
    Events,
    Lapic,
    Mp,
    /// All but the deadline.
    Msrs,
    Regs,
    Sregs,
    Xcrs,
    Xsave,
}
use Part::*;

/// How a VMM restores.
struct Order {
    vcpu: &'static [Part],
    /// The chips of the VM are restored before the vCPUs.
    chips_first: bool,
    /// The page of the APIC is saved behind the MSRs.
    lapic_last: bool,
    /// Stock KVM loses the deadline, which comes before the APIC's mode or the TSC.
    stock: bool,
}

const ORDERS: [Order; 4] = [
    // Firecracker.
    Order {
        vcpu: &[Mp, Regs, Sregs, Xsave, Xcrs, Debug, Lapic, Msrs, Deadline, Events],
        chips_first: false,
        lapic_last: false,
        stock: true,
    },
    // QEMU.
    Order {
        vcpu: &[ApicBase, Lapic, Sregs, Regs, Xsave, Xcrs, Msrs, Events, Mp, Deadline, Debug],
        chips_first: true,
        lapic_last: false,
        stock: true,
    },
    // crosvm.
    Order {
        vcpu: &[Regs, Sregs, Debug, Xcrs, Deadline, Msrs, Xsave, Events, Mp, Lapic],
        chips_first: false,
        lapic_last: true,
        stock: false,
    },
    // The deadline between the APIC and the TSC.
    Order {
        vcpu: &[Sregs, Lapic, Deadline, Msrs, Regs, Xsave, Xcrs, Events, Mp, Debug],
        chips_first: true,
        lapic_last: true,
        stock: false,
    },
];

const DEADLINE: u32 = 0x6e0;
const APIC_BASE: u32 = 0x1b;

struct State {
    mp: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<[u8; 4096]>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    msrs: Vec<(u32, u64)>,
    deadline: Option<u64>,
    cpuid: Box<kvm::Cpuid>,
}

impl State {
    fn save(f: &Fd, msrs: &[u32], order: &Order) -> kvm::Result<State> {
        let early = if order.lapic_last { None } else { Some(f.get(nr::GET_LAPIC)?) };
        let mut found = Vec::new();
        for msr in msrs {
            if let Some(value) = kvm::get_msr(f, *msr)? {
                found.push((*msr, value));
            }
        }
        let mut cpuid: Box<kvm::Cpuid> = kvm::zeroed();
        cpuid.head[0] = 256;
        f.with(nr::GET_CPUID2, &mut *cpuid)?;
        Ok(State {
            cpuid,
            mp: f.get(nr::GET_MP_STATE)?,
            regs: f.get(nr::GET_REGS)?,
            sregs: f.get(nr::GET_SREGS)?,
            xsave: Box::new(f.get(nr::GET_XSAVE)?),
            xcrs: f.get(nr::GET_XCRS)?,
            debug: f.get(nr::GET_DEBUGREGS)?,
            msrs: found,
            deadline: kvm::get_msr(f, DEADLINE)?,
            lapic: early.map_or_else(|| f.get(nr::GET_LAPIC), Ok)?,
            events: f.get(nr::GET_VCPU_EVENTS)?,
        })
    }

    fn set(&self, f: &Fd, part: Part) -> kvm::Result<()> {
        match part {
            ApicBase => msr(f, APIC_BASE, self.sregs.apic_base)?,
            Deadline => self.deadline.map_or(Ok(()), |value| msr(f, DEADLINE, value))?,
            Debug => drop(f.set(nr::SET_DEBUGREGS, &self.debug)?),
            Events => drop(f.set(nr::SET_VCPU_EVENTS, &self.events)?),
            Lapic => drop(f.set(nr::SET_LAPIC, &self.lapic)?),
            Mp => drop(f.set(nr::SET_MP_STATE, &self.mp)?),
            Msrs => self.msrs.iter().try_for_each(|(index, value)| msr(f, *index, *value))?,
            Regs => drop(f.set(nr::SET_REGS, &self.regs)?),
            Sregs => drop(f.set(nr::SET_SREGS, &self.sregs)?),
            Xcrs => drop(f.set(nr::SET_XCRS, &self.xcrs)?),
            Xsave => drop(f.set(nr::SET_XSAVE, &*self.xsave)?),
        }
        Ok(())
    }
}

fn msr(f: &Fd, index: u32, value: u64) -> kvm::Result<()> {
    if kvm::set_msr(f, index, value)? { Ok(()) } else { Err(Errno(libc::EDOM)) }
}

/// The chips that all vCPUs share.
struct Chips {
    irqchips: Vec<kvm_irqchip>,
    pit: Option<kvm_pit_state2>,
    clock: kvm_clock_data,
}

impl Chips {
    fn save(m: &Machine) -> kvm::Result<Chips> {
        let mut irqchips = Vec::new();
        for chip_id in 0..if m.has(SPLIT) { 0 } else { 3 } {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            m.vm.with(nr::GET_IRQCHIP, &mut chip)?;
            irqchips.push(chip);
        }
        let pit = !m.has(SPLIT) && !m.has(NO_PIT);
        let pit = if pit { Some(m.vm.get(nr::GET_PIT2)?) } else { None };
        Ok(Chips { irqchips, pit, clock: m.vm.get(nr::GET_CLOCK)? })
    }

    fn set(&self, vm: &Fd) -> kvm::Result<()> {
        if let Some(pit) = &self.pit {
            vm.set(nr::SET_PIT2, pit)?;
        }
        vm.set(nr::SET_CLOCK, &kvm_clock_data { clock: self.clock.clock, ..Default::default() })?;
        self.irqchips.iter().try_for_each(|chip| vm.set(nr::SET_IRQCHIP, chip).map(drop))
    }
}

/// Marsaglia's xorshift: the same moments and switches in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Moves that one between two modules stands for, as it takes so much longer.
const SWAP: u64 = 6;

/// Starts a thread that moves the VM so often, at random moments.
pub(crate) fn start(m: &Arc<Machine>, times: u64) {
    let m = m.clone();
    std::thread::spawn(move || {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let step = if m.swap.get().is_some() { SWAP } else { 1 };
        for n in 0..times.div_ceil(step) {
            std::thread::sleep(Duration::from_micros(random.next() >> 32 & 0xfff));
            if !stop_and_move(&m, n, step, &mut random) {
                return;
            }
        }
    });
}

/// Starts a thread that moves the VM once.
pub(crate) fn start_now(m: &Arc<Machine>) {
    let m = m.clone();
    std::thread::spawn(move || {
        let n = m.moves.load(Ordering::SeqCst);
        stop_and_move(&m, n, 1, &mut Random(0x9e37_79b9_7f4a_7c15 ^ n << 32));
    });
}

/// Move number `n`, which stands for `step` of them; false: the test is over.
fn stop_and_move(m: &Machine, n: u64, step: u64, random: &mut Random) -> bool {
    // Between two modules, or on stock KVM alone, the order must be one that this bears.
    let portable = m.swap.get().is_some() || !exitless();
    let orders: Vec<_> = ORDERS.iter().filter(|order| order.stock || !portable).collect();
    let order = orders[random.next() as usize % orders.len()];
    if !m.stop() {
        return false;
    }
    let moved = once(m, order, on(n, random));
    m.moves.fetch_add(step, Ordering::SeqCst);
    if let Err(why) = moved {
        m.end(Outcome::Failed(format!("move {n}: {why}")));
    }
    m.go_on();
    true
}

/// This module is loaded.
fn exitless() -> bool {
    std::path::Path::new("/sys/module/exitless").exists()
}

/// All mechanisms and none in turn, and any of them.
fn on(n: u64, random: &mut Random) -> u64 {
    match n % 3 {
        0 => Set::ALL.0,
        1 => 0,
        _ => random.next() & Set::ALL.0,
    }
}

fn once(m: &Machine, order: &Order, on: u64) -> Result<(), String> {
    let at = |what: &'static str| move |e: Errno| format!("{what}: {e}");
    let msrs = saved_msrs(&m.sys).map_err(at("KVM_GET_MSR_INDEX_LIST"))?;
    let chips = Chips::save(m).map_err(at("saving the chips"))?;
    let mut states = Vec::new();
    for v in &m.vcpus {
        states.push(State::save(&v.fd, &msrs, order).map_err(at("saving a vCPU"))?);
    }
    if let Some(command) = m.swap.get() {
        swap(m, command)?;
        let known = saved_msrs(&m.sys).map_err(at("KVM_GET_MSR_INDEX_LIST"))?;
        states.iter_mut().for_each(|state| state.msrs.retain(|(index, _)| known.contains(index)));
    }
    let vm = m.new_vm()?;
    if exitless() {
        let switch = Switch { vm: 0, on, off: Set::ALL.0 & !on, reserved: 0 };
        vm.set(EXITLESS_SWITCH, &switch).map_err(at("EXITLESS_SWITCH"))?;
    }
    let vcpus: Vec<Fd> = m.vcpus.iter().map(|v| m.new_vcpu(&vm, v.id)).collect::<Result<_, _>>()?;
    for (state, fd) in states.iter_mut().zip(&vcpus) {
        fd.with(nr::SET_CPUID2, &mut *state.cpuid).map_err(at("KVM_SET_CPUID2"))?;
    }
    if order.chips_first {
        chips.set(&vm).map_err(at("setting the chips"))?;
    }
    for (state, fd) in states.iter().zip(&vcpus) {
        for part in order.vcpu {
            state.set(fd, *part).map_err(at("setting a vCPU"))?;
        }
    }
    if !order.chips_first {
        chips.set(&vm).map_err(at("setting the chips"))?;
    }
    for (v, fd) in m.vcpus.iter().zip(&vcpus) {
        replace(v, fd).map_err(at("mmap of the vCPU"))?;
    }
    take_number(&m.vm, &vm).map_err(at("dup2"))
}

/// Those that the kernel lists, but the deadline.
fn saved_msrs(sys: &Fd) -> kvm::Result<Vec<u32>> {
    let mut list: Box<kvm::Flex<u32, u32, 511>> = kvm::zeroed();
    list.head = 511;
    sys.with(nr::GET_MSR_INDEX_LIST, &mut *list)?;
    let all = list.entries.iter().take(list.head as usize);
    Ok(all.copied().filter(|index| *index != DEADLINE).collect())
}

/// Lets go of everything of the module's, has the command load another, opens that one.
fn swap(m: &Machine, command: &str) -> Result<(), String> {
    let at = |what: &'static str| move |e: Errno| format!("{what}: {e}");
    let none = kvm::open("/dev/null").map_err(at("/dev/null"))?;
    for v in &m.vcpus {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        map_over(v, flags, -1).map_err(at("mmap"))?;
        take_number(&v.fd, &none).map_err(at("dup2"))?;
    }
    take_number(&m.vm, &none).map_err(at("dup2"))?;
    take_number(&m.sys, &none).map_err(at("dup2"))?;
    let done = Command::new("sh").args(["-c", command]).output().map_err(|e| format!("{command}: {e}"))?;
    if !done.status.success() {
        let said = [done.stdout, done.stderr].concat();
        return Err(format!("`{command}`: {}", String::from_utf8_lossy(&said)));
    }
    let sys = kvm::open(&m.device).map_err(at("opening the device"))?;
    take_number(&m.sys, &sys).map_err(at("dup2"))
}

/// The vCPU's descriptor and page are the new one's.
fn replace(v: &Vcpu, new: &Fd) -> kvm::Result<()> {
    take_number(&v.fd, new)?;
    map_over(v, libc::MAP_SHARED, v.fd.raw())
}

fn map_over(v: &Vcpu, flags: i32, fd: i32) -> kvm::Result<()> {
    let (p, n) = (v.map.ptr().cast(), v.map.size());
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the place of the vCPU's page; its thread, the only user, stands still.
    let r = unsafe { libc::mmap(p, n, access, flags | libc::MAP_FIXED, fd, 0) };
    if r == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

fn take_number(old: &Fd, new: &Fd) -> kvm::Result<()> {
    // SAFETY: both are open; `old` stays one, of what `new` is.
    let r = unsafe { libc::dup2(new.raw(), old.raw()) };
    if r < 0 { Err(Errno::last()) } else { Ok(()) }
}
