# about: Two minutes of timers and IPIs of four vCPUs, each counted, while all mechanisms are switched at random (with `--cpu ipiv --params ipiv=1` IPI virtualization too).
# cpus: 2
# memory: 768
# timeout: 400
# needs: runner
# in test: no

check load load_module
STORM="lazy_deadline deadline_fastpath ipi_fastpath"
[ $VENDOR = amd ] || STORM="$STORM timer_passthrough timer_fastpath"
[ $MODULE = kvm ] || echo "0 +host_tsc" >/dev/exitless
check two_minutes switched_storm "$STORM" storm/two_minutes
check unused wait_unused 5
check unload unload_module
