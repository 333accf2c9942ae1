//! Negotiation against tables of capability MSRs.

use super::fake::{cpuid, negotiate, negotiate_as, skylake};
use crate::caps::Wish;
use crate::{Caps, Missing};
use exitless_x86::regs::cr0;
use exitless_x86::vmx::caps::{Allowed, msr};
use exitless_x86::vmx::control::{entry, exit, pin, primary, secondary};
use std::collections::BTreeMap;

/// Takes a bit away from those that may be 1 (in both forms of the MSR, where there are two).
fn without(msrs: &[u32], bit: u32) -> Result<crate::Caps, Missing> {
    let mut table = skylake();
    for n in msrs {
        *table.get_mut(n).unwrap() &= !(u64::from(bit) << 32);
    }
    negotiate(&table)
}

#[test]
fn skylake_has_it_all() {
    let c = negotiate(&skylake()).unwrap();
    assert_eq!(c.revision, 4);
    assert!(c.vpid() && c.pat() && c.msr_bitmaps() && c.rdtscp() && c.pause_loop() && c.ept_accessed_dirty());
    assert!(c.ept_1g() && c.ept_2m() && c.invept_single() && c.preemption_timer());
    assert!(!c.feature_control_unlocked() && !c.any_error_code());
    assert_eq!(c.timer_shift, 7);
    assert_eq!(c.cr0_must, 0x20, "PE and PG are free for an unrestricted guest");
}

/// Every word obeys its MSR: no must-be-one bit is 0, no bit is 1 that may not be.
#[test]
fn words_obey_the_processor() {
    let t = skylake();
    let c = negotiate(&t).unwrap();
    let obeys = |word: u32, n: u32, dynamic: u32| {
        let a = Allowed(t[&n]);
        assert_eq!(word & !a.may(), 0, "{n:#x}");
        assert_eq!(a.must() & !(word | dynamic), 0, "{n:#x}");
    };
    obeys(c.pin, msr::TRUE_PINBASED_CTLS, 0);
    obeys(c.primary, msr::TRUE_PROCBASED_CTLS, 0);
    obeys(c.exit, msr::TRUE_EXIT_CTLS, 0);
    obeys(c.entry, msr::TRUE_ENTRY_CTLS, 0);
    obeys(c.secondary, msr::PROCBASED_CTLS2, 0);
}

/// A fresh VMCS asks for no window, and passes CR8 and CR3.
#[test]
fn nothing_dynamic_is_on() {
    let c = negotiate(&skylake()).unwrap();
    let off = primary::INTERRUPT_WINDOW_EXITING
        | primary::NMI_WINDOW_EXITING
        | primary::CR8_LOAD_EXITING
        | primary::CR8_STORE_EXITING
        | primary::CR3_LOAD_EXITING
        | primary::CR3_STORE_EXITING
        | primary::RDTSC_EXITING;
    assert_eq!(c.primary & off, 0);
    assert_eq!(c.entry & entry::IA32E_MODE_GUEST, 0);
    assert_eq!(c.exit & exit::ACKNOWLEDGE_INTERRUPT, 0, "interrupts stay pending for the host");
}

/// What is needed refuses the module, by name.
#[test]
fn needed_controls() {
    let table: &[(&[u32], u32, &str)] = &[
        (&[msr::TRUE_PINBASED_CTLS], pin::VIRTUAL_NMIS, "virtual NMIs"),
        (&[msr::TRUE_PROCBASED_CTLS], primary::USE_TPR_SHADOW, "use TPR shadow"),
        (&[msr::TRUE_PROCBASED_CTLS], primary::SECONDARY, "activate secondary controls"),
        (&[msr::PROCBASED_CTLS2], secondary::ENABLE_EPT, "enable EPT"),
        (&[msr::PROCBASED_CTLS2], secondary::UNRESTRICTED_GUEST, "unrestricted guest"),
        (&[msr::TRUE_EXIT_CTLS], exit::LOAD_EFER, "load IA32_EFER (exit)"),
        (&[msr::TRUE_ENTRY_CTLS], entry::LOAD_EFER, "load IA32_EFER (entry)"),
    ];
    for &(msrs, bit, name) in table {
        let why = without(msrs, bit).unwrap_err();
        assert_eq!(why, Missing::Control(name));
        assert_eq!(why.control(), Some(name));
    }
}

/// What is only wanted is done without.
#[test]
fn wanted_controls() {
    let c = without(&[msr::PROCBASED_CTLS2], secondary::ENABLE_VPID).unwrap();
    assert!(!c.vpid());
    let c = without(&[msr::TRUE_ENTRY_CTLS], entry::LOAD_PAT).unwrap();
    assert!(!c.pat() && c.exit & exit::LOAD_PAT == 0, "PAT by hardware on both ways or on none");
    let c = without(&[msr::TRUE_EXIT_CTLS], exit::LOAD_PAT).unwrap();
    assert!(!c.pat());
    assert!(!without(&[msr::TRUE_PROCBASED_CTLS], primary::USE_MSR_BITMAPS).unwrap().msr_bitmaps());
    assert!(!without(&[msr::PROCBASED_CTLS2], secondary::PAUSE_LOOP_EXITING).unwrap().pause_loop());
}

/// IA32_PERF_GLOBAL_CTRL by hardware on both ways or on none, and on no CPU that loses bits of it.
#[test]
fn perf_global_ctrl() {
    let c = negotiate(&skylake()).unwrap();
    assert!(c.perf_global_ctrl());
    assert_eq!(c.exit & exit::LOAD_PERF_GLOBAL_CTRL, 0, "only while perf needs it");
    assert_eq!(c.entry & entry::LOAD_PERF_GLOBAL_CTRL, 0, "only while perf needs it");
    assert!(!without(&[msr::TRUE_EXIT_CTLS], exit::LOAD_PERF_GLOBAL_CTRL).unwrap().perf_global_ctrl());
    assert!(!without(&[msr::TRUE_ENTRY_CTLS], entry::LOAD_PERF_GLOBAL_CTRL).unwrap().perf_global_ctrl());
    // CPUID.01H:EAX of a Westmere-EP, its newest stepping; and of its successor, which is not concerned.
    assert!(!negotiate_as(0x206c2, &skylake()).unwrap().perf_global_ctrl());
    assert!(negotiate_as(0x206d7, &skylake()).unwrap().perf_global_ctrl());
}

/// The first VT-x CPUs force CR3 exits; nobody here handles them.
#[test]
fn forced_controls() {
    let mut t = skylake();
    t.insert(msr::TRUE_PROCBASED_CTLS, t[&msr::PROCBASED_CTLS]);
    assert_eq!(negotiate(&t), Err(Missing::Forced("CR3-load exiting")));
}

/// Without BASIC bit 55 the true forms do not exist; reading them would be #GP.
#[test]
fn true_forms_only_where_they_exist() {
    let mut t = skylake();
    *t.get_mut(&msr::BASIC).unwrap() &= !(1 << 55);
    for n in [msr::TRUE_PINBASED_CTLS, msr::TRUE_PROCBASED_CTLS, msr::TRUE_EXIT_CTLS, msr::TRUE_ENTRY_CTLS] {
        t.remove(&n);
    }
    assert_eq!(negotiate(&t), Err(Missing::Forced("CR3-load exiting")));
    t.insert(msr::PROCBASED_CTLS, skylake()[&msr::TRUE_PROCBASED_CTLS]);
    assert!(negotiate(&t).is_ok());
}

#[test]
fn firmware() {
    let mut t = skylake();
    t.insert(0x3a, 1);
    assert_eq!(negotiate(&t), Err(Missing::DisabledByFirmware));
    t.insert(0x3a, 0);
    assert!(negotiate(&t).unwrap().feature_control_unlocked());
}

#[test]
fn ept_properties() {
    let mut t = skylake();
    t.insert(msr::EPT_VPID_CAP, skylake()[&msr::EPT_VPID_CAP] & !(1 << 20));
    assert_eq!(negotiate(&t), Err(Missing::Ept("INVEPT")));
    t.insert(msr::EPT_VPID_CAP, skylake()[&msr::EPT_VPID_CAP] & !(1 << 6));
    assert_eq!(negotiate(&t), Err(Missing::Ept("a page-walk length of 4")));
    t.insert(msr::EPT_VPID_CAP, skylake()[&msr::EPT_VPID_CAP] & !(1 << 42));
    assert!(!negotiate(&t).unwrap().vpid(), "VPIDs that can never be flushed are not used");
}

/// Regions below 4 GiB, uncached or bigger than a page: not on any CPU this is for.
#[test]
fn regions() {
    for bit in [1u64 << 48, 4 << 50] {
        let mut t = skylake();
        *t.get_mut(&msr::BASIC).unwrap() ^= bit;
        assert_eq!(negotiate(&t), Err(Missing::Region));
    }
}

/// A CPU that comes online: each bit of each capability MSR that differs makes it unfit, or makes no difference to what a VMCS
/// of the first CPU asks for. Nothing but the lock may differ unseen.
#[test]
fn another_cpu() {
    let first = negotiate(&skylake()).unwrap();
    assert_eq!(first.difference(&first), None);
    let mut unseen = BTreeMap::<u32, u64>::new();
    for (&n, &value) in &skylake() {
        for bit in 0..64 {
            let mut t = skylake();
            t.insert(n, value ^ 1 << bit);
            if let Ok(here) = negotiate(&t)
                && first.difference(&here).is_none()
            {
                *unseen.entry(n).or_default() |= 1 << bit;
            }
        }
    }
    let seen = |n: u32| !unseen.get(&n).copied().unwrap_or(0);
    // Every control that the words have or must have, in the half that says "may be 1".
    for (n, word) in [
        (msr::TRUE_PINBASED_CTLS, first.pin),
        (msr::TRUE_PROCBASED_CTLS, first.primary),
        (msr::PROCBASED_CTLS2, first.secondary),
        (msr::TRUE_EXIT_CTLS, first.exit),
        (msr::TRUE_ENTRY_CTLS, first.entry),
    ] {
        // What must be 1 is in the word whether or not it may.
        let chosen = word & !Allowed(skylake()[&n]).must();
        assert_eq!(seen(n) >> 32 & u64::from(chosen), u64::from(chosen), "{n:#x}: a control that is missing");
        let off = !word & Allowed(skylake()[&n]).may();
        // These two come and go with what each vCPU needs; no CPU forces them.
        let own =
            if n == msr::TRUE_PINBASED_CTLS { pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS } else { 0 };
        let forced = u64::from(off & !own);
        assert_eq!(seen(n) & forced, forced, "{n:#x}: a control that is forced");
    }
    for n in [msr::EPT_VPID_CAP, msr::CR0_FIXED1, msr::CR4_FIXED0, msr::CR4_FIXED1] {
        assert_eq!(seen(n), !0, "{n:#x}");
    }
    assert_eq!(seen(msr::CR0_FIXED0), !(cr0::PE | cr0::PG));
    assert_eq!(seen(msr::MISC) & 0x1f, 0x1f, "the timer's rate");
    assert_eq!(seen(msr::BASIC) & 0x7fff_ffff, 0x7fff_ffff, "the revision");
    assert_eq!(seen(0x3a), 4, "VMX outside SMX; whether firmware locked it is each CPU's own");
}

/// The host would wish otherwise now (its TSC was found unstable, after which the preemption timer is not used): the CPU that
/// comes online fits all the same, or none could ever come back.
#[test]
fn a_later_wish_counts_for_nothing() {
    let t = skylake();
    let (cpuid, msr) = (cpuid(0x50654), |n| t[&n]);
    for timer in [false, true] {
        let wish = Wish { preemption_timer: timer, ..Wish::default() };
        let first = Caps::negotiate(cpuid, msr, wish).unwrap();
        assert_eq!(first.preemption_timer(), timer);
        assert_eq!(first.difference(&first.negotiate_again(cpuid, msr).unwrap()), None);
        let now = Wish { preemption_timer: !timer, ..wish };
        assert!(first.difference(&Caps::negotiate(cpuid, msr, now).unwrap()).is_some());
    }
}

/// What is only asked for by the rest of the module: each by its own bit.
#[test]
fn single_abilities() {
    let c = negotiate(&skylake()).unwrap();
    assert!(c.guard_l1d() && c.invpcid() && c.xsaves() && c.rdtscp() && !c.apicv());
    let wish = Wish { guard_l1d: false, ..c.wish() };
    let table = skylake();
    assert!(!Caps::negotiate(cpuid(0x50654), |n| table[&n], wish).unwrap().guard_l1d());
    let lacks = |bit| without(&[msr::PROCBASED_CTLS2], bit).unwrap();
    assert!(!lacks(secondary::ENABLE_INVPCID).invpcid() && lacks(secondary::ENABLE_INVPCID).xsaves());
    assert!(!lacks(secondary::ENABLE_XSAVES).xsaves() && !lacks(secondary::ENABLE_RDTSCP).rdtscp());
    for (bit, has) in [(16, [false, true]), (17, [true, false])] {
        let mut t = skylake();
        *t.get_mut(&msr::EPT_VPID_CAP).unwrap() &= !(1 << bit);
        let c = negotiate(&t).unwrap();
        assert_eq!([c.ept_2m(), c.ept_1g()], has);
    }
    let mut t = skylake();
    *t.get_mut(&msr::BASIC).unwrap() |= 1 << 56;
    assert!(negotiate(&t).unwrap().any_error_code());
}

/// Steppings whose timer counts wrongly, whatever the reserved bits of the signature hold.
#[test]
fn broken_timers() {
    for (signature, works) in [(0x106a5, false), (0xf001_06a5, false), (0x306a9, true)] {
        assert_eq!(negotiate_as(signature, &skylake()).unwrap().preemption_timer(), works, "{signature:#x}");
    }
}

/// Without write-back tables, and without any INVEPT, there is no EPT to be had.
#[test]
fn needed_ept_properties() {
    let caps = skylake()[&msr::EPT_VPID_CAP];
    for (lacks, why) in [
        (1 << 14, "write-back paging structures"),
        (1 << 25 | 1 << 26, "INVEPT"),
        (1 << 20 | 1 << 25 | 1 << 26, "INVEPT"),
    ] {
        let mut t = skylake();
        t.insert(msr::EPT_VPID_CAP, caps & !lacks);
        assert_eq!(negotiate(&t), Err(Missing::Ept(why)), "{lacks:#x}");
    }
    for one in [1 << 25, 1 << 26] {
        let mut t = skylake();
        t.insert(msr::EPT_VPID_CAP, caps & !one);
        assert!(negotiate(&t).is_ok(), "one kind is enough");
    }
}

/// APICv is all of it or nothing.
#[test]
fn apicv_is_whole() {
    use secondary as s;
    const BOTH: u32 = s::APIC_REGISTER_VIRTUALIZATION | s::VIRTUAL_INTERRUPT_DELIVERY;
    let whole = || {
        let mut t = skylake();
        *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() |= u64::from(BOTH) << 32;
        t
    };
    let c = negotiate(&whole()).unwrap();
    assert!(c.apicv() && c.exit & exit::ACKNOWLEDGE_INTERRUPT != 0);
    for (n, bit) in [
        (msr::TRUE_PINBASED_CTLS, pin::POSTED_INTERRUPTS),
        (msr::TRUE_EXIT_CTLS, exit::ACKNOWLEDGE_INTERRUPT),
        (msr::TRUE_PROCBASED_CTLS, primary::USE_MSR_BITMAPS),
        (msr::PROCBASED_CTLS2, s::VIRTUALIZE_X2APIC),
        (msr::PROCBASED_CTLS2, s::APIC_REGISTER_VIRTUALIZATION),
    ] {
        let mut t = whole();
        *t.get_mut(&n).unwrap() &= !(u64::from(bit) << 32);
        let c = negotiate(&t).unwrap();
        assert!(!c.apicv() && c.exit & exit::ACKNOWLEDGE_INTERRUPT == 0, "{n:#x} {bit:#x}");
    }
}

/// No VMX in CPUID, or no leaf that could say; a VMCS region that is too big or of another memory type.
#[test]
fn no_vmx() {
    use exitless_x86::cpuid::CpuidResult;
    let wish =
        Wish { apicv: true, guard_l1d: true, preemption_timer: true, vpid: true, pml: true, ipiv: true };
    let table = skylake();
    for (max, ecx) in [(0x16, 0), (0x16, !(1 << 5)), (0, 1 << 5)] {
        let cpuid = |leaf| match leaf {
            0 => CpuidResult { eax: max, ..CpuidResult::default() },
            _ => CpuidResult { ecx, ..CpuidResult::default() },
        };
        assert_eq!(Caps::negotiate(cpuid, |n| table[&n], wish), Err(Missing::Vmx), "{max} {ecx:#x}");
    }
    let cpuid = |leaf| match leaf {
        0 => CpuidResult { eax: 1, ..CpuidResult::default() },
        _ => CpuidResult { ecx: 1 << 5, ..CpuidResult::default() },
    };
    assert!(Caps::negotiate(cpuid, |n| table[&n], wish).is_ok(), "leaf 1 is enough");
    let basic = skylake()[&msr::BASIC] & !(0x1fff << 32);
    for (size, fits) in [(1024, true), (4096, true), (4097, false)] {
        let mut t = skylake();
        t.insert(msr::BASIC, basic | size << 32);
        assert_eq!(negotiate(&t).is_ok(), fits, "{size}");
    }
}
