# about: The unit tests of the crate that Rust VMMs speak to /dev/kvm with.
# cpus: 4
# memory: 1024
# in test: svm, vmx
# timeout: 120
# needs: kvm-ioctls

# Each test in a process of its own; a line for each, as the lab's programs print them.
unit_tests() {
    unit_rc=0
    for unit_name in $(kvm-ioctls --list --format terse | sed -n 's/: test$//p'); do
        if limit 20 kvm-ioctls --exact "$unit_name" >/tmp/unit 2>&1; then
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
