//! The ABI of `/dev/exitless`, and of the same ioctls on a VM's descriptor: what mechanisms there are, where they are active and why
//! not, what they did, and their switches. `docs/control.md` describes it for programs in other languages.
//!
//! Every structure is laid out as C does it without padding, little endian, and its size is part of the ioctl's number; lists carry the
//! size of a record. Fields called `reserved` are zero. Numbers are never reused.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod times;

use bytemuck::{Pod, Zeroable};

/// [`EXITLESS_GET_VERSION`] answers this; also the second word of the text form.
pub const VERSION: u32 = 1;
/// The `type` byte of every ioctl here: none of KVM's.
pub const EXITLESSIO: u32 = 0xeb;

const fn ioc<T>(direction: u32, nr: u32) -> u32 {
    direction << 30 | (size_of::<T>() as u32 & 0x3fff) << 16 | EXITLESSIO << 8 | nr
}

/// No argument. The version.
pub const EXITLESS_GET_VERSION: u32 = ioc::<()>(0, 0);
/// A [`Words`]: `kind` and `number` in, the rest out. ENOENT: no such number.
pub const EXITLESS_GET_WORDS: u32 = ioc::<Words>(3, 1);
/// A [`Vms`]. Not on a VM's descriptor.
pub const EXITLESS_LIST_VMS: u32 = ioc::<Vms>(3, 2);
/// A [`States`].
pub const EXITLESS_GET_STATES: u32 = ioc::<States>(3, 3);
/// A [`Switch`].
pub const EXITLESS_SWITCH: u32 = ioc::<Switch>(1, 4);

/// A [`Counters`].
pub const EXITLESS_GET_COUNTERS: u32 = ioc::<Counters>(3, 5);
/// A [`Vcpus`].
pub const EXITLESS_LIST_VCPUS: u32 = ioc::<Vcpus>(3, 6);
/// A [`Measure`].
pub const EXITLESS_MEASURE: u32 = ioc::<Measure>(3, 7);
/// A [`Vcpus`], of [`HealthRecord`]s.
pub const EXITLESS_LIST_HEALTH: u32 = ioc::<Vcpus>(3, 8);

/// [`Words::kind`], and [`Counters::what`].
pub mod kind {
    /// Mechanisms: a place in the list of states, and a bit in [`super::Switch`].
    pub const MECHANISM: u32 = 0;
    /// Reasons why one is not active.
    pub const REASON: u32 = 1;
    /// Reasons why an active one left a case to the way there always is.
    pub const FALLBACK: u32 = 2;
    /// Exits, by the number that the CPU gives as reason (SVM: exit code; VMX: basic exit reason); named as in asm/svm.h and asm/vmx.h.
    pub const EXIT: u32 = 3;
    /// Counters with names of their own, most of them KVM's.
    pub const COUNTER: u32 = 4;
    /// RDMSR and WRMSR exits, by MSR; no words.
    pub const MSR: u32 = 5;
    /// Exits of IN, OUT, INS and OUTS, by port; no words.
    pub const PORT: u32 = 6;
    /// What time was spent on, ticks: [`super::times::spent_key`].
    pub const SPENT: u32 = 7;
    /// The time that exits took, by reason: [`super::times::key`]; no words.
    pub const TIME: u32 = 8;
    /// How late timers and IPIs were: [`super::times::key`].
    pub const LATE: u32 = 9;
}

/// [`Counter::key`]: all that have no key of their own.
pub const OTHERS: u64 = u64::MAX;

/// [`Words::flags`], of mechanisms.
pub mod about {
    /// New VMs have it switched on.
    pub const DEFAULT: u32 = 1 << 0;
    /// Only CAP_SYS_ADMIN switches it.
    pub const ROOT: u32 = 1 << 1;
    /// A choice holds for the whole VM, not for each vCPU.
    pub const VM: u32 = 1 << 2;
}

/// [`State::flags`].
pub mod state {
    /// The VM's switch is on.
    pub const WANTED: u32 = 1 << 0;
    /// Active in this vCPU, or in at least one.
    pub const ACTIVE: u32 = 1 << 1;
}

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Words {
    /// [`kind`].
    pub kind: u32,
    /// From 0 on.
    pub number: u32,
    /// [`about`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// One word, padded with zeroes; empty for reasons.
    pub name: [u8; 32],
    /// A sentence, padded with zeroes.
    pub text: [u8; 208],
}

/// A list of VMs, in the order they were created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Vms {
    /// In: the lowest id that is asked for.
    pub from: u64,
    /// In: where the records go.
    pub address: u64,
    /// In: the size of a [`VmRecord`].
    pub record: u32,
    /// In: for how many there is room. Out: how many were written; fewer than asked: there are no more.
    pub count: u32,
}

/// One VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VmRecord {
    /// Never that of another VM, while the module is loaded.
    pub id: u64,
    /// Switches that are on: a bit for each mechanism, by number.
    pub wanted: u64,
    /// The thread that created it, as the initial pid namespace numbers it.
    pub pid: i32,
    /// That thread's effective user id, as the initial user namespace numbers it.
    pub uid: u32,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`States::vcpu`]: the sums over all of the VM's.
pub const ALL_VCPUS: u32 = u32::MAX;

/// The states of mechanisms in one vCPU, or in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct States {
    /// In: the VM's id; on a VM's descriptor also 0: that VM.
    pub vm: u64,
    /// In: where the records go, one for each mechanism in the order of their numbers.
    pub address: u64,
    /// In: the size of a [`State`].
    pub record: u32,
    /// In: for how many there is room. Out: how many were written.
    pub count: u32,
    /// In: the vCPU's id, or [`ALL_VCPUS`].
    pub vcpu: u32,
    /// Zero.
    pub reserved: u32,
}

/// One mechanism. Counters count from the vCPU's creation; each is whole, but two may be of different moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct State {
    /// Its number.
    pub mechanism: u32,
    /// [`kind::REASON`] of the first vCPU where it is not active; 0: active in all.
    pub reason: u32,
    /// [`state`].
    pub flags: u32,
    /// In how many of the vCPUs that were asked for it is active.
    pub active: u32,
    /// Cases that it took.
    pub hits: u64,
    /// Exits that there would have been without it.
    pub saved: u64,
    /// Exits that there were for it alone.
    pub added: u64,
    /// Cases that it left to the way there always is, by [`kind::FALLBACK`].
    pub fallbacks: [u64; 16],
}

/// Moves switches: in effect for each vCPU when it next enters the guest, and running ones are made to. EPERM: not the caller's to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Switch {
    /// The VM's id; on a VM's descriptor also 0: that VM. On the device 0: the default for VMs to come.
    pub vm: u64,
    /// Mechanisms to switch on, a bit each by number.
    pub on: u64,
    /// Mechanisms to switch off; none of `on`.
    pub off: u64,
    /// Zero.
    pub reserved: u64,
}

/// Counters of one vCPU, or of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counters {
    /// In: the VM's id; on a VM's descriptor also 0: that VM.
    pub vm: u64,
    /// In: where the records go, in no order.
    pub address: u64,
    /// In: the size of a [`Counter`].
    pub record: u32,
    /// In: for how many there is room. Out: how many were written; as many as asked: there may be more.
    pub count: u32,
    /// In: the vCPU's id. [`ALL_VCPUS`]: sums.
    pub vcpu: u32,
    /// In: [`kind`], from [`kind::EXIT`] on.
    pub what: u32,
}

/// One counter, from the vCPU's creation on. Those that count nothing are left out, but for [`kind::COUNTER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counter {
    /// What is counted, or [`OTHERS`].
    pub key: u64,
    /// How often.
    pub count: u64,
}

/// A list of a VM's vCPUs, in the order they were created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Vcpus {
    /// In: the VM's id; on a VM's descriptor also 0: that VM.
    pub vm: u64,
    /// In: where the records go.
    pub address: u64,
    /// In: the size of a [`VcpuRecord`].
    pub record: u32,
    /// In: for how many there is room. Out: how many were written; fewer than asked: there are no more.
    pub count: u32,
    /// In: how many to leave out from the front.
    pub from: u32,
    /// Zero.
    pub reserved: u32,
}

/// One vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VcpuRecord {
    /// KVM's id of it, which is its APIC id.
    pub id: u32,
    /// The host CPU that its thread is loaded on; -1: on none.
    pub cpu: i32,
    /// `KVM_MP_STATE_*`.
    pub mp_state: u32,
    /// 1: in the guest at this moment.
    pub in_guest: u32,
    /// All exits.
    pub exits: u64,
    /// Exits that were answered straight after the exit.
    pub fast: u64,
    /// Returns to user space.
    pub user: u64,
}

/// [`HealthRecord::flags`].
pub mod health {
    /// Halted.
    pub const HALTED: u32 = 1 << 0;
    /// Halted with interrupts enabled.
    pub const OPEN: u32 = 1 << 1;
    /// Its APIC has an interrupt that is not being served.
    pub const PENDING: u32 = 1 << 2;
    /// In the guest at this moment.
    pub const IN_GUEST: u32 = 1 << 3;
}

/// What of a vCPU tells whether all is well with it. Each field is whole, but two may be of different moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct HealthRecord {
    /// KVM's id of it.
    pub id: u32,
    /// [`health`].
    pub flags: u32,
    /// All exits.
    pub exits: u64,
    /// HLT exits.
    pub halts: u64,
    /// Since when its thread sleeps, CLOCK_MONOTONIC in ns; 0: it does not.
    pub asleep: u64,
    /// When its APIC's timer is due, as it was when it fell asleep, CLOCK_MONOTONIC in ns; 0: none is armed.
    pub wakes_at: u64,
    /// Its TSC's rate, as a fraction of the host's.
    pub tsc_ratio: u64,
    /// What is added to that, in its ticks.
    pub tsc_offset: u64,
    /// Requests that it has not seen, of the kinds that a sleeper is woken for: a bit each, without a meaning here but that there are
    /// some.
    pub requests: u64,
}

/// [`Measure::set`].
pub mod measure {
    /// Only look.
    pub const LOOK: u32 = 0;
    /// Take time stamps from now on.
    pub const ON: u32 = 1;
    /// Take none any more; what was measured stays.
    pub const OFF: u32 = 2;
}

/// Whether a VM's time is measured. Who may switch may have it measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Measure {
    /// In: the VM's id; on a VM's descriptor also 0: that VM.
    pub vm: u64,
    /// In: [`measure`].
    pub set: u32,
    /// Out: 1: time stamps are taken.
    pub on: u32,
    /// Out: ticks per millisecond, of everything that is in ticks here.
    pub khz: u32,
    /// Zero.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// User space was compiled with these.
    #[test]
    fn numbers_stay() {
        assert_eq!(EXITLESS_GET_VERSION, 0x0000_eb00);
        assert_eq!(EXITLESS_GET_WORDS, 0xc100_eb01);
        assert_eq!(EXITLESS_LIST_VMS, 0xc018_eb02);
        assert_eq!(EXITLESS_GET_STATES, 0xc020_eb03);
        assert_eq!(EXITLESS_SWITCH, 0x4020_eb04);
        assert_eq!(EXITLESS_GET_COUNTERS, 0xc020_eb05);
        assert_eq!(EXITLESS_LIST_VCPUS, 0xc020_eb06);
        assert_eq!(EXITLESS_MEASURE, 0xc018_eb07);
        assert_eq!((EXITLESS_LIST_HEALTH, size_of::<HealthRecord>()), (0xc020_eb08, 64));
        assert_eq!((size_of::<VmRecord>(), size_of::<State>()), (32, 168));
        assert_eq!((size_of::<Counter>(), size_of::<VcpuRecord>()), (16, 40));
    }
}
