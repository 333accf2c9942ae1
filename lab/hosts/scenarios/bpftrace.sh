# about: bpftrace's programs on Exitless's events: exits by reason, how long each kind takes, who sent which IPI.
# cpus: 2
# memory: 2048
# timeout: 400
# needs: runner bpftrace
# in test: no

cd /tmp
check load load_module
# program SECONDS TEXT: what bpftrace prints about guests that run meanwhile.
program() {
    (while [ ! -e enough ]; do runner run cpuid/custom ipi/to_a_vcpu_in_user lapic/nested_isr; done >/dev/null 2>&1) &
    limit $(($1 + 120)) bpftrace -e "$2 interval:s:$1 { exit(); }" >out 2>&1
    program_rc=$?
    touch enough
    wait
    rm enough
    cat out
    return $program_rc
}
reasons() { program 5 'tracepoint:kvm:kvm_exit { @exits[args->isa, args->exit_reason] = count(); }' && grep -q '^@exits\[[12], [0-9]*\]: [0-9]' out; }
check reasons reasons
durations() {
    program 5 'tracepoint:kvm:kvm_exit { @at[tid] = nsecs; @why[tid] = args->exit_reason; }
        tracepoint:kvm:kvm_entry /@at[tid]/ { @ns[@why[tid]] = hist(nsecs - @at[tid]); delete(@at[tid]); delete(@why[tid]); } END { clear(@at); clear(@why); }' && grep -q '^@ns\[[0-9]*\]:' out
}
check durations durations
check unload unload_module
