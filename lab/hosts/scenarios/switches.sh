# about: Guests do not notice which mechanisms are on: none, and all of them switched at random meanwhile; no timer and no IPI is lost or comes twice.
# cpus: 2
# memory: 768
# timeout: 240
# needs: runner
# in test: svm, vmx

check load load_module
# One sends and waits with timers, IPIs, EOIs and HLT, on up to 4 vCPUs; ports and doorbells beside.
GUESTS="ipi/ deadline/ timer/ lapic/self smp/ pio/ ioeventfd/"
[ $SLOW = 1 ] || GUESTS="ipi/sent ipi/rounds ipi/init deadline/each deadline/rewrite deadline/swept deadline/past deadline/of_four"
# Stock KVM has no switches: there both are the plain guests.
defaults() { [ $MODULE = kvm ] || echo "0 $1" >/dev/exitless; }
none() { defaults -all && runner run $GUESTS; }
random() { defaults default && runner run --switch $GUESTS; }
check none none
check random random
# Of four vCPUs each timer and IPI counted.
STORM="lazy_deadline deadline_fastpath ipi_fastpath"
[ $VENDOR = amd ] || STORM="$STORM timer_passthrough timer_fastpath"
storm() { defaults default,+host_tsc && switched_storm "$STORM" storm/timers_and_ipis_of_four; }
check storm storm
check unused wait_unused 5
check unload unload_module
