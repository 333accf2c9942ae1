# about: Guests have the CPU's own APIC timer, whatever they write into it; the host's tasks beside them keep their timers.
# cpus: 1
# memory: 768
# timeout: 240
# needs: runner
# in test: vmx
# not on svm: the VMX-preemption timer holds what the host waits for meanwhile

check load load_module
defaults() { [ $MODULE = kvm ] || echo "0 $1" >/dev/exitless; }
timers() { defaults +timer_passthrough,+host_tsc && runner run deadline/ timer/one_shot_in lapic/timer_wakes; }
check timers timers
# Guests whose TSC is not the host's, which subtract the difference; attended or not where nothing is lent.
apart() { defaults -host_tsc && runner run ticks/ && defaults +lazy_deadline && runner run ticks/ && defaults -lazy_deadline,+host_tsc; }
check apart apart
# Guests that request their vector: nothing exits when it comes.
inside() { defaults +timer_in_guest && runner run inside/ && defaults -host_tsc && runner run inside/ && defaults -timer_in_guest,+host_tsc; }
check inside inside
# Switched at random among all others meanwhile.
random() { runner run --switch deadline/rewrite deadline/swept deadline/past deadline/rearmed deadline/disarmed; }
check random random
# A task that sleeps by the host's timers, on the one CPU that a guest storms: without its tick it would not come to its end.
sleeper() { n=0; while [ $n -lt 40 ]; do sleep 0.02; n=$((n + 1)); done; echo slept >/tmp/slept; }
storm() {
	rm -f /tmp/slept
	sleeper &
	until [ -e /tmp/slept ]; do runner run deadline/past_values || return 1; done
	wait
}
check storm storm
check unused wait_unused 5
check unload unload_module
