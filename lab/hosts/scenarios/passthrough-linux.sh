# about: Linux guests have the CPU's own APIC timer: one whose TSC is the host's, and one that subtracts the offset, which exitless-guest.ko does.
# cpus: 2
# memory: 1024
# timeout: 300
# needs: guest exitless-guest load
# in test: vmx
# not on svm: the VMX-preemption timer holds what the host waits for meanwhile

guest_extras
check load load_module
defaults() { [ $MODULE = kvm ] || echo "0 $1" >/dev/exitless; }
plain() { defaults +timer_passthrough,+host_tsc && GUEST_APPEND="exitless.loops=100" guest 2 cyclictest,boot 120; }
check plain plain
deadlines() { cat /sys/kernel/debug/kvm/*-*/exits_by_msr | sed -n 's/^0x000006e0 //p'; }
# What exits of the deadlines that a guest writes: the first, and one behind each return to user space.
ticks() {
    defaults -host_tsc || return 1
    rm -f /tmp/log
    GUEST_APPEND="exitless.loops=150" start_guest 2 ticks /tmp/log
    wait_line 60 /tmp/log '^--- GUEST begin ticks' || return 1
    begun=$(deadlines)
    wait_line 60 /tmp/log '^--- GUEST end ticks' || return 1
    exits=$(($(deadlines) - begun))
    written=$(sed -n 's/^--- GUEST end ticks \([0-9]*\).*/\1/p' /tmp/log)
    wait_line 60 /tmp/log '^--- GUEST done' || return 1
    cat /tmp/log
    echo "$written deadlines written, $exits exits for them"
    [ $((exits * 4)) -lt "$written" ] || { echo "deadlines exit"; return 1; }
    guest_passed /tmp/log
}
[ $MODULE = kvm ] || check ticks ticks
check unused wait_unused 5
check unload unload_module
