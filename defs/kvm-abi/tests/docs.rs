//! `docs/kvm-api.md` promises to name every ioctl and every capability: one row each, with a state and the number.

/// A capability or ioctl added to the crate without a word on its state would be a hole in the promise.
#[test]
fn kvm_api_page_is_complete() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let page = std::fs::read_to_string(format!("{dir}../../docs/kvm-api.md")).expect("docs/kvm-api.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|l| l.starts_with("| `KVM_"))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut named = 0;
    for file in ["src/cap.rs", "src/ioctl.rs"] {
        let text = std::fs::read_to_string(format!("{dir}{file}")).expect("source");
        for line in text.lines().filter_map(|l| l.strip_prefix("pub const KVM_")) {
            let (name, value) = line.split_once(": u32 = ").expect("a constant");
            let name = format!("`KVM_{name}`");
            if name == "`KVM_API_VERSION`" {
                continue;
            }
            let found: Vec<_> = rows.iter().filter(|r| r[0] == name).collect();
            assert_eq!(found.len(), 1, "{name} has {} rows", found.len());
            let state = if file == "src/cap.rs" {
                assert_eq!(found[0][1], value.trim_end_matches(';'), "number of {name}");
                found[0][3]
            } else {
                found[0][1]
            };
            assert!(["works", "not yet", "absent"].contains(&state), "{name} is {state}");
            named += 1;
        }
    }
    assert_eq!(named, rows.len(), "a row names what the crate does not");
}
