//! Compares the shared structures and numbers with the system's `<asm/kvm_para.h>`. Needs `cc` and those headers.
use exitless_pv_abi::*;
use std::collections::BTreeMap;
use std::io::Write;
use std::mem::{offset_of, size_of};
use std::process::{Command, Stdio};

/// C expressions with the value this crate has for them.
fn facts() -> Vec<(String, u64)> {
    let mut all = Vec::new();
    macro_rules! layout {
        ($($name:ident { $($field:ident)* })*) => { $(
            all.push((format!("sizeof(struct {})", stringify!($name)), size_of::<$name>() as u64));
            $(all.push((
                format!("offsetof(struct {}, {})", stringify!($name), stringify!($field)),
                offset_of!($name, $field) as u64,
            ));)*
        )* };
    }
    macro_rules! numbers { ($($name:ident)*) => { $(all.push((stringify!($name).into(), $name as u64));)* } }
    macro_rules! features {
        ($($name:ident)*) => { $(
            let bit = feature::$name.trailing_zeros();
            assert_eq!(feature::$name, 1 << bit);
            all.push((format!("KVM_FEATURE_{}", stringify!($name)), bit.into()));
        )* };
    }
    layout! {
        kvm_steal_time { steal version flags preempted u8_pad pad }
        kvm_vcpu_pv_apf_data { flags token pad enabled }
        kvm_clock_pairing { sec nsec tsc flags pad }
    }
    numbers! {
        KVM_CPUID_SIGNATURE KVM_CPUID_FEATURES KVM_MSR_ENABLED KVM_STEAL_VALID_BITS KVM_STEAL_RESERVED_MASK
        MSR_KVM_WALL_CLOCK MSR_KVM_SYSTEM_TIME MSR_KVM_WALL_CLOCK_NEW MSR_KVM_SYSTEM_TIME_NEW MSR_KVM_ASYNC_PF_EN
        MSR_KVM_STEAL_TIME MSR_KVM_PV_EOI_EN MSR_KVM_POLL_CONTROL MSR_KVM_ASYNC_PF_INT MSR_KVM_ASYNC_PF_ACK
        MSR_KVM_MIGRATION_CONTROL KVM_VCPU_PREEMPTED KVM_VCPU_FLUSH_TLB KVM_CLOCK_PAIRING_WALLCLOCK
        KVM_ASYNC_PF_ENABLED KVM_ASYNC_PF_SEND_ALWAYS KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT KVM_ASYNC_PF_DELIVERY_AS_INT
        KVM_PV_REASON_PAGE_NOT_PRESENT
        KVM_PV_EOI_BIT KVM_PV_EOI_MASK KVM_PV_EOI_ENABLED KVM_PV_EOI_DISABLED
        KVM_HC_VAPIC_POLL_IRQ KVM_HC_MMU_OP KVM_HC_FEATURES KVM_HC_KICK_CPU KVM_HC_CLOCK_PAIRING KVM_HC_SEND_IPI
        KVM_HC_SCHED_YIELD KVM_HC_MAP_GPA_RANGE
        KVM_ENOSYS KVM_EFAULT KVM_EINVAL KVM_E2BIG KVM_EPERM KVM_EOPNOTSUPP
    }
    features! {
        CLOCKSOURCE NOP_IO_DELAY MMU_OP CLOCKSOURCE2 ASYNC_PF STEAL_TIME PV_EOI PV_UNHALT PV_TLB_FLUSH
        ASYNC_PF_VMEXIT PV_SEND_IPI POLL_CONTROL PV_SCHED_YIELD ASYNC_PF_INT MSI_EXT_DEST_ID HC_MAP_GPA_RANGE
        MIGRATION_CONTROL
    }
    all.push((
        "KVM_FEATURE_CLOCKSOURCE_STABLE_BIT".into(),
        feature::CLOCKSOURCE_STABLE.trailing_zeros().into(),
    ));
    all.push(("1u << KVM_HINTS_REALTIME".into(), KVM_HINTS_REALTIME.into()));
    for (i, word) in KVM_SIGNATURE.into_iter().enumerate() {
        all.push((format!("((const unsigned *)KVM_SIGNATURE)[{i}]"), word.into()));
    }
    all
}

/// A guest kernel is built with the header; a number that differs here is a promise broken to every Linux guest.
#[test]
fn agrees_with_the_system_header() {
    let mut c = String::from(
        "#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm_para.h>\nint main(void) {\n",
    );
    let facts = facts();
    for (i, (expression, _)) in facts.iter().enumerate() {
        c += &format!("printf(\"{i} %llu\\n\", (unsigned long long)({expression}));\n");
    }
    c += "return 0; }\n";
    let exe = std::env::temp_dir().join(format!("exitless-pv-abi-{}", std::process::id()));
    let mut cc = Command::new("cc")
        .args(["-x", "c", "-", "-o"])
        .arg(&exe)
        .stdin(Stdio::piped())
        .spawn()
        .expect("this test needs the C compiler `cc`");
    cc.stdin.take().expect("piped").write_all(c.as_bytes()).expect("cc reads its input");
    assert!(cc.wait().expect("cc ends").success(), "the C side does not compile");
    let out = Command::new(&exe).output().expect("the C program runs").stdout;
    std::fs::remove_file(&exe).expect("remove the program");
    let theirs: BTreeMap<usize, u64> = String::from_utf8(out)
        .expect("ASCII")
        .lines()
        .map(|l| l.split_once(' ').expect("key value"))
        .map(|(k, v)| (k.parse().expect("index"), v.parse().expect("value")))
        .collect();
    assert_eq!(theirs.len(), facts.len());
    for (i, (expression, ours)) in facts.iter().enumerate() {
        assert_eq!(*ours, theirs[&i], "{expression}");
    }
}

/// The pvclock structures stand in no user-space header; their layout is pinned by every guest since 2008.
#[test]
fn pvclock_layout() {
    assert_eq!(size_of::<pvclock_vcpu_time_info>(), 32);
    assert_eq!(offset_of!(pvclock_vcpu_time_info, tsc_timestamp), 8);
    assert_eq!(offset_of!(pvclock_vcpu_time_info, system_time), 16);
    assert_eq!(offset_of!(pvclock_vcpu_time_info, tsc_to_system_mul), 24);
    assert_eq!(offset_of!(pvclock_vcpu_time_info, tsc_shift), 28);
    assert_eq!(offset_of!(pvclock_vcpu_time_info, flags), 29);
    assert_eq!(size_of::<pvclock_wall_clock>(), 12);
    assert_eq!(size_of::<kvm_steal_time>(), 64);
}
