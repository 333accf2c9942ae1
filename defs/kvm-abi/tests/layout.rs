//! Compares this crate with the system's `<linux/kvm.h>` through a small C program, and with rust-vmm's bindings
//! for what is younger than that header. Needs `cc` and the kernel's user-space headers.
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use table::{Struct, consts, structs};

/// Structures and constants younger than the 6.1 header; [`younger_items_agree_with_rust_vmm`] checks them.
const YOUNGER: &[&str] = &[
    "kvm_userspace_memory_region2",
    "kvm_memory_attributes",
    "kvm_create_guest_memfd",
    "kvm_pre_fault_memory",
    "kvm_run_memory_fault",
    "KVM_EXIT_MEMORY_FAULT",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE",
    "KVM_SET_USER_MEMORY_REGION2",
    "KVM_SET_MEMORY_ATTRIBUTES",
    "KVM_CREATE_GUEST_MEMFD",
    "KVM_PRE_FAULT_MEMORY",
    "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP",
    "KVM_CAP_PMU_EVENT_MASKED_EVENTS",
    "KVM_CAP_USER_MEMORY2",
    "KVM_CAP_MEMORY_FAULT_INFO",
    "KVM_CAP_MEMORY_ATTRIBUTES",
    "KVM_CAP_GUEST_MEMFD",
    "KVM_CAP_VM_TYPES",
    "KVM_CAP_PRE_FAULT_MEMORY",
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS",
    "KVM_CAP_X86_GUEST_MODE",
];

/// Names that only this crate has.
const OURS: &[&str] = &["KVM_RUN_EXIT_SIZE", "KVM_RUN_EXIT_OFFSET"];

/// The C expression for our structure as a type, where the header has it under another name or none.
fn c_type(name: &str) -> String {
    match name {
        "kvm_vcpu_events_exception" => "__typeof__(((struct kvm_vcpu_events *)0)->exception)".into(),
        "kvm_vcpu_events_interrupt" => "__typeof__(((struct kvm_vcpu_events *)0)->interrupt)".into(),
        "kvm_vcpu_events_nmi" => "__typeof__(((struct kvm_vcpu_events *)0)->nmi)".into(),
        "kvm_vcpu_events_smi" => "__typeof__(((struct kvm_vcpu_events *)0)->smi)".into(),
        _ => match name.strip_prefix("kvm_run_") {
            Some(member) => format!("__typeof__(((struct kvm_run *)0)->{member})"),
            None => format!("struct {name}"),
        },
    }
}

/// The C name of our field, or `None` for padding the compiler adds by itself there.
fn c_field<'a>(of: &str, field: &'a str) -> Option<&'a str> {
    match (of, field) {
        ("kvm_run_fail_entry" | "kvm_run_mmio" | "kvm_xen_exit", "pad") => None,
        ("kvm_msr_filter" | "kvm_msr_filter_range", "pad") => None,
        ("kvm_run", "exit") => Some("hw"),
        ("kvm_guest_debug", "debugreg") => Some("arch.debugreg"),
        ("kvm_vcpu_events", "triple_fault_pending") => Some("triple_fault.pending"),
        (_, "type_") => Some("type"),
        (_, field) => Some(field),
    }
}

/// Lines of C that print `key value` for every item of the table.
fn c_program() -> String {
    let mut c = String::from(
        "#define PAGE_SIZE 4096\n#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n\
         #define P(key, value) printf(\"%s %llu\\n\", key, (unsigned long long)(value))\nint main(void) {\n",
    );
    for s in structs().iter().filter(|s| !YOUNGER.contains(&s.name)) {
        let ty = c_type(s.name);
        c += &format!("P(\"{}\", sizeof({ty}));\n", s.name);
        for (field, _) in &s.fields {
            if let Some(cf) = c_field(s.name, field) {
                c += &format!("P(\"{}.{field}\", offsetof({ty}, {cf}));\n", s.name);
            }
        }
    }
    for (name, _) in consts() {
        if !YOUNGER.contains(&name) && !OURS.contains(&name) {
            c += &format!("P(\"{name}\", {name});\n");
        }
    }
    c + "return 0; }\n"
}

/// What the C compiler says of every item.
fn c_answers() -> BTreeMap<String, u64> {
    let dir = std::env::temp_dir().join(format!("exitless-kvm-abi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    let exe = dir.join("layout");
    let mut cc = Command::new("cc")
        .args(["-x", "c", "-", "-o"])
        .arg(&exe)
        .stdin(Stdio::piped())
        .spawn()
        .expect("this test needs the C compiler `cc`");
    cc.stdin.take().expect("piped").write_all(c_program().as_bytes()).expect("cc reads its input");
    assert!(
        cc.wait().expect("cc ends").success(),
        "the C side does not compile: is <linux/kvm.h> older than 6.1?"
    );
    let out = Command::new(&exe).output().expect("the C program runs");
    std::fs::remove_dir_all(&dir).expect("remove the temporary directory");
    String::from_utf8(out.stdout)
        .expect("ASCII")
        .lines()
        .map(|l| l.split_once(' ').expect("key value"))
        .map(|(k, v)| (k.to_owned(), v.parse().expect("a number")))
        .collect()
}

/// Sizes, offsets and numbers are the header's: a wrong one would corrupt a VMM's memory or answer another question.
#[test]
fn agrees_with_the_system_header() {
    let c = c_answers();
    let mut wrong = Vec::new();
    let mut compared = 0;
    let mut check = |key: String, ours: u64| {
        if let Some(&theirs) = c.get(&key) {
            compared += 1;
            if ours != theirs {
                wrong.push(format!("{key}: ours {ours:#x}, header {theirs:#x}"));
            }
        }
    };
    for Struct { name, size, fields } in structs() {
        check(name.into(), size as u64);
        for (field, offset) in fields {
            check(format!("{name}.{field}"), offset as u64);
        }
    }
    for (name, value) in consts() {
        check(name.into(), value);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(compared, c.len(), "some answers of the C side were not compared");
}

/// A structure, field or constant added to the crate but not to the table would escape the comparison.
#[test]
fn the_table_is_complete() {
    let known: BTreeSet<String> = structs()
        .iter()
        .flat_map(|s| {
            let fields = s.fields.iter().map(|(f, _)| format!("{}.{f}", s.name));
            fields.chain([s.name.to_owned()]).collect::<Vec<_>>()
        })
        .chain(consts().iter().map(|(n, _)| (*n).to_owned()))
        .collect();
    let mut seen = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).expect("src") {
        let text = std::fs::read_to_string(file.expect("entry").path()).expect("source");
        let mut inside = None;
        for line in text.lines() {
            let word = |s: &str| s.split([':', ' ', '{']).next().unwrap_or_default().to_owned();
            let name = if let Some(rest) = line.strip_prefix("pub struct ") {
                inside = Some(word(rest));
                word(rest)
            } else if let Some(rest) = line.strip_prefix("pub const ").filter(|r| !r.starts_with("fn ")) {
                word(rest)
            } else if let (Some(s), Some(rest)) = (&inside, line.strip_prefix("    pub ")) {
                format!("{s}.{}", word(rest))
            } else {
                if line == "}" {
                    inside = None;
                }
                continue;
            };
            seen += 1;
            assert!(known.contains(&name), "{name} is missing in tests/table/mod.rs");
        }
    }
    assert_eq!(seen, known.len(), "the table and the sources do not name the same things");
}

/// Items younger than 6.1 have no C peer here; rust-vmm's bindings are made from a newer header.
#[test]
fn younger_items_agree_with_rust_vmm() {
    use exitless_kvm_abi as our;
    use kvm_bindings as peer;
    macro_rules! same {
        ($($name:ident)*) => { $(assert_eq!(u64::from(our::$name), u64::from(peer::$name), stringify!($name));)* };
    }
    macro_rules! same_layout {
        ($($name:ident / $peer:ident { $($field:ident)* })*) => { $(
            assert_eq!(size_of::<our::$name>(), size_of::<peer::$peer>(), stringify!($name));
            $(assert_eq!(
                std::mem::offset_of!(our::$name, $field),
                std::mem::offset_of!(peer::$peer, $field),
                stringify!($name.$field)
            );)*
        )* };
    }
    same! {
        KVM_EXIT_MEMORY_FAULT KVM_MEM_GUEST_MEMFD KVM_MEMORY_ATTRIBUTE_PRIVATE
        KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP KVM_CAP_PMU_EVENT_MASKED_EVENTS KVM_CAP_USER_MEMORY2
        KVM_CAP_MEMORY_FAULT_INFO KVM_CAP_MEMORY_ATTRIBUTES KVM_CAP_GUEST_MEMFD KVM_CAP_VM_TYPES
        KVM_CAP_PRE_FAULT_MEMORY KVM_CAP_X86_APIC_BUS_CYCLES_NS KVM_CAP_X86_GUEST_MODE
    }
    // Its number as QEMU sends it; the sizes of the others are compared below.
    assert_eq!(our::KVM_SET_USER_MEMORY_REGION2, 0x40a0_ae49);
    same_layout! {
        kvm_userspace_memory_region2 / kvm_userspace_memory_region2 {
            slot flags guest_phys_addr memory_size userspace_addr guest_memfd_offset guest_memfd pad1 pad2
        }
        kvm_memory_attributes / kvm_memory_attributes { address size attributes flags }
        kvm_create_guest_memfd / kvm_create_guest_memfd { size flags reserved }
        kvm_pre_fault_memory / kvm_pre_fault_memory { gpa size flags padding }
        kvm_run_memory_fault / kvm_run__bindgen_ty_1__bindgen_ty_27 { flags gpa size }
    }
}

/// docs/kvm-api.md, "Promises beyond": low bytes of ioctl numbers collide. A decoder that looks at the low byte alone confuses these.
#[test]
fn colliding_low_bytes_differ_as_a_whole() {
    use exitless_kvm_abi::*;
    for (a, b, x, y) in [
        (KVM_GET_TSC_KHZ, KVM_ENABLE_CAP, 0xaea3, 0x4068_aea3),
        (KVM_SIGNAL_MSI, KVM_SET_XSAVE, 0x4020_aea5, 0x5000_aea5),
        (KVM_SET_PIT2, KVM_SET_VCPU_EVENTS, 0x4070_aea0, 0x4040_aea0),
        (KVM_IRQ_LINE_STATUS, KVM_REGISTER_COALESCED_MMIO, 0xc008_ae67, 0x4010_ae67),
    ] {
        assert_eq!((a, b), (x, y));
        assert_ne!(a, b);
        assert_eq!(a & 0xff, b & 0xff);
    }
}

/// The views of the exit union and of the chip union put their bytes where the header's unions have them.
#[test]
fn unions_are_reached_through_their_views() {
    use exitless_kvm_abi::*;
    let mut run: kvm_run = bytemuck::Zeroable::zeroed();
    run.exit_mut::<kvm_run_io>().expect("fits").data_offset = 0x1122_3344_5566_7788;
    assert_eq!(&bytemuck::bytes_of(&run)[40..48], &0x1122_3344_5566_7788u64.to_le_bytes());
    assert!(run.exit::<[u64; 33]>().is_none(), "a view may not reach beyond the union");
    let mut chip: kvm_irqchip = bytemuck::Zeroable::zeroed();
    let ioapic = kvm_ioapic_state { base_address: 0xfec0_0000, redirtbl: [7; 24], ..Default::default() };
    chip.set_ioapic(&ioapic);
    assert_eq!(chip.ioapic(), ioapic);
    let pic = kvm_pic_state { elcr_mask: 0xde, ..Default::default() };
    chip.set_pic(&pic);
    assert_eq!(chip.pic(), pic);
    assert_eq!(bytemuck::bytes_of(&chip)[23], 0xde);
}
