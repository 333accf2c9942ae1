# about: Timers of guests that idle without exits are posted by housekeeping CPUs; other guests there keep the CPU's timer.
# cpus: 3
# memory: 768
# timeout: 300
# needs: runner
# in test: vmx
# not on svm: there is no delivery into a running guest without AVIC, which no emulator has
# not on ryzen: as on svm
# host: nohz_full=2

check load load_module
# Stock KVM posts by itself where CPUs are isolated, and has no counters of it.
defaults() { [ $MODULE = kvm ] || echo "0 $1" >/dev/exitless; }
# Guests on the isolated CPU.
isolated() { taskset 4 /lab/runner run "$@"; }
# These there; WORDS must be (`seen`) or must not be (`unseen`) among their VMs' lines meanwhile.
watched() {
    isolated $3 >/tmp/guests 2>&1 &
    guests=$!
    found=unseen
    while kill -0 $guests 2>/dev/null; do
        [ $MODULE = kvm ] || ! grep -q "$2" /dev/exitless || found=seen
        sleep 0.1
    done
    wait $guests
    watched_rc=$?
    # Also where they passed: documents name some of them.
    cat /tmp/guests
    [ $watched_rc = 0 ] || return 1
    [ $MODULE = kvm ] || [ $found = $1 ] || { echo "$2: $found"; return 1; }
}
# The housekeeper that may goes away and comes back while it has their timers.
offline() {
    isolated idle/deadlines idle/deadlines >/tmp/guests 2>&1 &
    guests=$!
    while kill -0 $guests 2>/dev/null; do
        echo 0 >/sys/devices/system/cpu/cpu1/online || return 1
        sleep 0.2
        echo 1 >/sys/devices/system/cpu/cpu1/online || return 1
        sleep 0.2
    done
    wait $guests || { cat /tmp/guests; return 1; }
}
check off watched unseen "posted_timer on" idle/deadlines
check allow defaults +posted_timer
check posted watched seen "posted_timer on active 1/1 hits [1-9]" "idle/deadlines idle/deadlines_come_without_exits idle/moved_deadlines_come_without_exits"
check kept watched unseen "posted_timer on active [1-9]" "deadline/swept deadline/rewrite"
check every isolated --idle deadline/ nmi/ pic/wakes lapic/timer ioapic/edge_wakes inject/hlt_wakes
check offline offline
check switched runner run --switch idle/deadlines idle/timer_in_hlt_xapic
check unused wait_unused 5
check unload unload_module
