//! THE table of mechanisms: one row each, new ones at the end. A row's place is its number for user space, so none is ever removed.

use crate::reason::Reason;
use exitless_pv_abi::feature;

/// What a choice holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One vCPU: it may be active in some of a VM's and not in others.
    Vcpu,
    /// The VM: active in all of its vCPUs or in none.
    Vm,
}

/// Who may move a VM's switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The VM's process, its user, root.
    Owner,
    /// Root alone: while it is on, others may pay for it.
    Root,
}

/// One mechanism.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which.
    pub mechanism: Mechanism,
    /// As administrators write it.
    pub name: &'static str,
    /// What a choice holds for.
    pub scope: Scope,
    /// The module's default, unless its parameter says otherwise.
    pub default: bool,
    /// Who may move the switch.
    pub who: Who,
    /// What can stand against it: the first that does is told.
    pub against: &'static [Reason],
    /// KVM_FEATURE_* bits that the guest's CPUID must show; else [`Reason::NotInCpuid`].
    pub feature: u32,
    /// What it does, in one line.
    pub about: &'static str,
}

macro_rules! rows {
    ($($name:ident: $text:literal, $scope:ident, $default:literal, $who:ident, $against:expr, $feature:expr, $about:literal;)*) => {
        /// A mechanism; the value is its number for user space.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Mechanism {
            $(#[doc = $about] $name,)*
        }

        /// All of them; a mechanism's number is its row's place.
        pub static TABLE: [Row; COUNT] = [$(Row {
            mechanism: Mechanism::$name,
            name: $text,
            scope: Scope::$scope,
            default: $default,
            who: Who::$who,
            against: &$against,
            feature: $feature,
            about: $about,
        },)*];

        /// Those that are on unless somebody says otherwise, a bit each.
        pub(crate) const DEFAULTS: u64 = 0 $(| ($default as u64) << Mechanism::$name as u8)*;

        /// How many there are.
        pub const COUNT: usize = [$($text,)*].len();
    };
}

use Reason::*;

// Variant: name, scope, default, who switches it, what can stand against it, features of the guest's CPUID, what it does.
// A row that stands for what is still to be written begins its list with NotBuilt.
rows! {
    IpiFastpath: "ipi_fastpath", Vcpu, true, Owner, [NoIrqchip], 0,
        "an IPI (write of the ICR) is sent straight after the exit, interrupts off";
    DeadlineFastpath: "deadline_fastpath", Vcpu, true, Owner, [NoIrqchip, NoDeadline], 0,
        "a write of the TSC deadline is done straight after the exit";
    TimerFastpath: "timer_fastpath", Vcpu, true, Owner, [NoIrqchip, NoTimer, UnsteadyTsc], 0,
        "the CPU's timer that ran out delivers the guest's interrupt straight after the exit";
    HaltFastpath: "halt_fastpath", Vcpu, true, Owner, [NoIrqchip], 0,
        "HLT with an interrupt waiting goes on straight after the exit";
    EoiFastpath: "eoi_fastpath", Vcpu, true, Owner, [NoIrqchip], 0,
        "an EOI that exits is done straight after the exit";
    MsrFastpath: "msr_fastpath", Vcpu, true, Owner, [], 0,
        "MSRs that need nothing but the vCPU are read and written straight after the exit";
    PortFastpath: "port_fastpath", Vcpu, true, Owner, [], 0,
        "IN and OUT of chips in the kernel, and OUT to an ioeventfd, are done straight after the exit";
    DoorbellFastpath: "doorbell_fastpath", Vcpu, true, Owner, [], 0,
        "a write to a doorbell (ioeventfd) rings straight after the exit, without a look at the instruction";
    PostedTimer: "posted_timer", Vcpu, false, Root, [NoIrqchip, NoDelivery, UnsteadyTsc, IdleExits, NoHousekeeping], 0,
        "the APIC timer expires on a housekeeping CPU and is posted into the running vCPU";
    SleepUntil: "sleep_until", Vcpu, true, Owner, [NoIrqchip, UnsteadyTsc], 0,
        "the host's timer stays queued over deadlines that move away and wake-ups: a deadline and HLT are one sleep until then";
    PvUnhalt: "pv_unhalt", Vcpu, true, Owner, [NoIrqchip], feature::PV_UNHALT,
        "guests sleep in contended locks and wake each other by hypercall (KICK_CPU)";
    PvIpi: "pv_ipi", Vcpu, true, Owner, [NoIrqchip], feature::PV_SEND_IPI,
        "guests send IPIs to many vCPUs by one hypercall (SEND_IPI)";
    PvYield: "pv_yield", Vcpu, true, Owner, [], feature::PV_SCHED_YIELD,
        "a guest that waits for a preempted vCPU lets it run, by hypercall (SCHED_YIELD)";
    PvTlbFlush: "pv_tlb_flush", Vcpu, true, Owner, [], feature::PV_TLB_FLUSH | feature::STEAL_TIME,
        "guests leave the TLB flush of a preempted vCPU to the host";
    Boost: "boost", Vm, true, Owner, [], 0,
        "a spinning vCPU gives its time to one of the same VM that is ready: with an interrupt to take, or just sent an IPI";
    QueueHeadBoost: "queue_head_boost", Vcpu, true, Owner, [], feature::PV_UNHALT,
        "who unlocks lets the next in the lock's queue run at once";
    HaltPollGuest: "halt_poll_guest", Vcpu, true, Owner, [], feature::POLL_CONTROL,
        "where the guest waits awake before HLT, the host does not (POLL_CONTROL)";
    Avic: "avic", Vcpu, false, Root, [NoIrqchip, NoAvic, NoX2Apic, EdgeEois], 0,
        "AMD's AVIC delivers interrupts and IPIs without exits; untested on hardware";
    LazyDeadline: "lazy_deadline", Vcpu, false, Owner, [NoIrqchip, NoDeadline, NotAsked], 0,
        "a guest with exitless-guest.ko moves its timer later without an exit; off, such a guest does not find the module";
    TimerPassthrough: "timer_passthrough", Vcpu, false, Root,
        [NoIrqchip, NoTimer, NoDelivery, NoDeadline, UnsteadyTsc, HostTimer, IdlesInside, ApartTsc, OtherTimer], 0,
        "the guest has the CPU's APIC timer while it runs: deadlines are armed without an exit (Intel)";
    HostTsc: "host_tsc", Vm, false, Owner, [UnsteadyTsc, OwnTsc], 0,
        "a TSC that the VMM leaves at its start, or sets to 0, is the host's: what timer_passthrough needs, unless the guest adds the offset";
    IpiVirtualization: "ipi_virtualization", Vcpu, false, Root, [NoIrqchip, NoIpiv, NoX2Apic], 0,
        "Intel's IPI virtualization sends IPIs of guests in x2APIC mode without exits; untested on hardware";
    AsyncPf: "async_pf", Vcpu, true, Owner, [NoIrqchip], 0,
        "a guest does something else, or halts, while the host brings a page that takes time (swap, userfaultfd)";
    PvIpiRaw: "pvipi_raw", Vcpu, false, Owner,
        [NoIrqchip, NotAllowed, HostXApic, HardwarePosts, NoWindow, NoDelivery, NoX2Apic, NotRaw], 0,
        "the guest sends IPIs by itself, without an exit, and could send any to any CPU of the host (Intel)";
    IpiValidated: "ipi_validated", Vcpu, true, Owner, [NoIrqchip], 0,
        "a plain IPI of a guest in x2APIC mode is checked, posted and notified before anything else is done for its exit";
    TimerInGuest: "timer_in_guest", Vcpu, false, Root,
        [NoIrqchip, NoTimer, NoDelivery, NoDeadline, UnsteadyTsc, HostTimer, IdlesInside, ApartTsc, OtherTimer, HardwarePosts, NoWindow, NotAgreed], 0,
        "with timer_passthrough: what the guest armed fires without an exit, as a notification (Intel; guests that have agreed)";
}

impl Mechanism {
    /// Its row.
    pub fn row(self) -> &'static Row {
        // The first is for the compiler: every mechanism has a row.
        TABLE.get(self as usize).unwrap_or(&TABLE[0])
    }

    /// The mechanism of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.mechanism)
    }
}
