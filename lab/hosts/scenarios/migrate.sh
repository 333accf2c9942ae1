# about: vCPU threads are moved between CPUs all the time, and QEMU is stopped and continued.
# cpus: 4
# memory: 1536
# timeout: 150
# needs: guest

check load load_module
moved() {
    start_guest 2 work /tmp/log
    mask=1
    while kill -0 $guest_pid 2>/dev/null; do
        for thread in /proc/$guest_pid/task/*; do
            taskset -p $mask ${thread##*/} >/dev/null 2>&1
            mask=$((mask == 8 ? 1 : mask * 2))
        done
        sleep 0.05
    done
    wait $guest_pid
    cat /tmp/log
    guest_passed /tmp/log
}
check moved moved
stopped() {
    start_guest 2 hackbench /tmp/log
    while kill -0 $guest_pid 2>/dev/null; do
        sleep 0.3
        kill -STOP $guest_pid 2>/dev/null
        sleep 0.1
        kill -CONT $guest_pid 2>/dev/null
    done
    wait $guest_pid
    cat /tmp/log
    guest_passed /tmp/log
}
check stopped stopped
check unload unload_module
