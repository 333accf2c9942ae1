# about: Timers of guests that idle without exits are posted by a housekeeping CPU; other guests there keep the CPU's timer.
# cpus: 2
# memory: 768
# timeout: 240
# needs: runner
# host: nohz_full=1

check load load_module
# Stock KVM posts by itself where CPUs are isolated, and has no counters of it.
defaults() { [ $MODULE = kvm ] || echo "0 $1" >/dev/exitless; }
# These guests on the isolated CPU; WORDS must be (`seen`) or must not be (`unseen`) among their VMs' lines meanwhile.
watched() {
    taskset 2 /lab/runner run $3 >/tmp/guests 2>&1 &
    guests=$!
    found=unseen
    while kill -0 $guests 2>/dev/null; do
        [ $MODULE = kvm ] || ! grep -q "$2" /dev/exitless || found=seen
        sleep 0.1
    done
    wait $guests || { cat /tmp/guests; return 1; }
    [ $MODULE = kvm ] || [ $found = $1 ] || { echo "$2: $found"; return 1; }
}
check off watched unseen "posted_timer on" idle/deadlines
check allow defaults +posted_timer
check posted watched seen "posted_timer on active 1/1 hits [1-9]" "idle/deadlines idle/timer_in_hlt_x2apic"
check kept watched unseen "posted_timer on active [1-9]" "deadline/swept deadline/rewrite deadline/each"
check switched runner run --switch idle/deadlines idle/timer_in_hlt_xapic
check unused wait_unused 5
check unload unload_module
