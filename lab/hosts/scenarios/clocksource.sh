# about: The host counts time by something else than its TSC, and by the TSC again; then its TSC turns out to be wrong.
# cpus: 1 2
# memory: 1024
# timeout: 240
# needs: runner guest tsc_fails

source=/sys/devices/system/clocksource/clocksource0/current_clocksource
# with TEST COMMAND...: runs while the guest does.
with() {
    runner run $1 &
    with_pid=$!; shift
    sleep 6 # Until the guest runs.
    "$@" || { kill -9 $with_pid; return 1; }
    wait $with_pid
}
other() {
    # The guest may not have begun: until it has seen both.
    while kill -0 $with_pid 2>/dev/null; do
        for name in acpi_pm tsc; do echo $name >$source || return 1; sleep 1; done
    done
}
fails() {
    insmod /lab/tsc_fails.ko && sleep 1 && [ "$(cat $source)" != tsc ]
}

check load load_module
# Stock KVM's pages never agree again after that.
[ $MODULE = kvm ] || check other with clock/while_the_host_counts_by_something_else other
check fails with clock/while_the_hosts_tsc_fails fails
check guest guest 2 work 60
# A CPU that comes now has the same capabilities as those that came before.
replug() {
    [ "$CPUS" -gt 1 ] || return 0
    echo 0 >/sys/devices/system/cpu/cpu1/online && echo 1 >/sys/devices/system/cpu/cpu1/online || return 1
    start_guest 1 boot /tmp/log
    taskset -p 2 $guest_pid >/dev/null
    wait $guest_pid
    cat /tmp/log
    guest_passed /tmp/log
}
check replug replug
check unused wait_unused 5
check unload unload_module
