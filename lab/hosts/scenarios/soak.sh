# about: Guests' registers (XMM, YMM, ZMM, mask, debug, XCR0) over EXITS exits of every kind, while the host uses its FPU in softirqs.
# cpus: 2
# memory: 768
# timeout: 7200
# needs: runner fpu_load
# in test: no

# As many as a busy guest has in an hour, 10000 in a second: run by hand, with `--append soak=N` for another number.
EXITS=$(sed -n 's/.*soak=\([0-9]*\).*/\1/p' /proc/cmdline)
EXITS=${EXITS:-36000000}

soak() {
    soaked=0
    while [ "$soaked" -lt "$EXITS" ]; do
        runner run --exits soak/registers >/tmp/soak || { cat /tmp/soak; return 1; }
        grep -q 'soak/registers.* ok' /tmp/soak || { cat /tmp/soak; return 4; }
        soak_more=$(awk '/^exits/ { n += $NF } END { print n + 0 }' /tmp/soak)
        # Stock KVM does not count by reason.
        [ "$soak_more" -gt 0 ] || { echo "no counters"; [ $MODULE = kvm ] && return 4; return 1; }
        soaked=$((soaked + soak_more))
        note "$soaked of $EXITS exits, $(fpu_counter runs) softirqs"
    done
    awk '/^exits/ { print $3, $4 }' /tmp/soak | sort -k2 -n -r | head -20
    echo "$soaked exits"
}

check load load_module
check fpu_load insmod /lab/fpu_load.ko period_us=$((200 * SLOW))
check soak soak
check clean fpu_clean
check unused wait_unused 5
check remove rmmod fpu_load
check unload unload_module
