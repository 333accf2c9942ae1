# about: CPUs with IPI virtualization: stock KVM's guests send interrupts without exits (so the emulation works), and so do the module's with ipiv=1; all arrive.
# cpu: ipiv
# cpus: 2
# memory: 768
# not on svm, ryzen: IPI virtualization is Intel's
# in test: vmx
# timeout: 150
# needs: runner

event=/sys/kernel/tracing/events/kvm/kvm_exit

on_stock() { MODULE=kvm PARAMS='' "$@"; }
# traced COMMAND...: with its exits from stock KVM counted by reason.
traced() {
    echo 'hist:keys=exit_reason' >$event/trigger && "$@"
    traced_rc=$?
    cat $event/hist >/tmp/hist
    echo '!hist:keys=exit_reason' >$event/trigger
    return $traced_rc
}
# Reasons 32 and 56, writes of MSRs and of the APIC's page: 200 of each and more are commands to send an interrupt, without the control.
few_exits() {
    grep exit_reason: /tmp/hist
    grep -q 'exit_reason: *12 ' /tmp/hist || { echo "nothing was traced"; return 1; }
    sed -n 's/^{ exit_reason: *\(32\|56\) *} hitcount: *\([0-9]*\).*/\2/p' /tmp/hist | while read -r count; do
        [ "$count" -lt 50 ] || return 1
    done
}

check load_stock on_stock load_module
check used_by_stock grep -q Y /sys/module/kvm_intel/parameters/enable_ipiv
check pairs traced runner run smp/ping_pong_halted
check without_exits few_exits
check stock runner run ipi/ lapic/self_ipi
# A module that is refused has not taken the wake-up vector from it.
refused_beside_stock() {
    ! insmod /lab/exitless.ko $PARAMS ipiv=1 || return 1
    runner run smp/ping_pong_halted
}
check refused_beside_stock refused_beside_stock
check unload_stock on_stock unload_module
check load load_module
check guests runner run ipi/ smp/ping_pong lapic/self_ipi
check unload unload_module
# And with it: ours are sent without exits too, sleepers are woken, and switching at random loses none.
check load_with_ipiv eval 'PARAMS="$PARAMS ipiv=1" load_module'
ours_without_exits() {
    runner run --exits smp/ping_pong_halted_x2apic >/tmp/ours || return 1
    grep -q ' HLT ' /tmp/ours || { echo "nothing was counted"; return 1; }
    grep -E ' (MSR_WRITE|APIC_WRITE) ' /tmp/ours
    awk '/ (MSR_WRITE|APIC_WRITE) / { n += $4 } END { exit n >= 50 }' /tmp/ours
}
check ours_without_exits ours_without_exits
# What is said by name holds, beside a parameter that asks for one.
said_by_name() {
    unload_module && PARAMS="$PARAMS ipiv=1 mechanisms=-all,+boost" load_module || return 1
    head -2 /dev/exitless
    grep -q '^defaults -ipi_fastpath,.*+boost,.*-ipi_virtualization' /dev/exitless || return 1
    echo "default" >/sys/module/exitless/parameters/mechanisms
    grep -q '^defaults +ipi_fastpath,.*-ipi_virtualization' /dev/exitless || return 1
    echo "+boost" >/sys/module/exitless/parameters/mechanisms
    grep -q '^defaults +ipi_fastpath,.*+ipi_virtualization' /dev/exitless
}
check said_by_name said_by_name
check guests_with_ipiv runner run --switch ipi/ smp/ping_pong lapic/self_ipi move/timers_and_ipis_x2apic
# Of four vCPUs each timer and IPI counted.
check storm_with_ipiv switched_storm "ipi_fastpath lazy_deadline" storm/timers_and_ipis_of_four
check unused wait_unused 5
check unload unload_module
