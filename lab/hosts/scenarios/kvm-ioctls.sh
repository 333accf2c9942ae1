# about: The unit tests of the crate that Rust VMMs speak to /dev/kvm with.
# cpus: 4
# memory: 1024
# in test: svm, vmx
# timeout: 120
# needs: kvm-ioctls

# test_clock measures the time from a VM's creation to one ioctl and wants it longer than that between two other ioctls: a host that
# takes the CPU away in between fails it on any module. A wrong clock fails it each time.
attempts() {
    case $1 in
        *::vm::tests::test_clock) echo 1 2 3 4 5 ;;
        *) echo 1 ;;
    esac
}

unit_test() {
    for unit_attempt in $(attempts "$1"); do
        limit 20 kvm-ioctls --exact "$1" >/tmp/unit 2>&1 && return 0
    done
    return 1
}

# Each test in a process of its own; a line for each, as the lab's programs print them.
unit_tests() {
    unit_rc=0
    for unit_name in $(kvm-ioctls --list --format terse | sed -n 's/: test$//p'); do
        if unit_test "$unit_name"; then
            unit_result=ok
        else
            unit_rc=1
            unit_result="FAILED ($(grep -A 2 'panicked at' /tmp/unit | tr '\n' ' '))"
        fi
        echo "test $unit_name ... $unit_result"
    done
    [ -n "$unit_name" ] && return $unit_rc
}

check load load_module
check units unit_tests
check unused wait_unused 5
check unload unload_module
