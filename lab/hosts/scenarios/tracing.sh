# about: Tools that people have for KVM find Exitless's events where stock KVM's are, with the same fields, and in them what guests did.
# cpus: 2
# memory: 1024
# timeout: 240
# needs: runner perf trace-cmd
# in test: svm, vmx

T=/sys/kernel/tracing
# One of each kind.
GUESTS="cpuid/custom msr/apic_base mmio/read_then_write pio/in_keeps pv/hypercall_unknown ipi/to_a_vcpu_in_user lapic/nested_isr deadline/wakes_hlt"
cd /tmp
check load load_module
# Says what it looks for when that is not there.
has() { grep -qE -- "$1" $2 || { echo "no $1 in:"; head -60 $2; return 1; }; }

# What guests did as the kernel's own file tells it. On stock KVM the same guests say the same.
listen() { echo 4096 >$T/buffer_size_kb && echo >$T/trace && echo 1 >$T/events/kvm/enable; }
events() {
    listen || return 1
    runner run $GUESTS >/tmp/out
    rc=$?
    echo 0 >$T/events/kvm/enable
    cat $T/trace >/tmp/trace
    [ $rc = 0 ] || { tail /tmp/out; return 1; }
    for event in entry exit cpuid msr apic apic_ipi apic_accept_irq hypercall pio mmio page_fault userspace_exit fpu vcpu_wakeup; do has " kvm_$event: " /tmp/trace || return 1; done
    has ' kvm_exit: vcpu 0 reason (cpuid|CPUID) rip 0x[0-9a-f]+ info1 0x' /tmp/trace || return 1
    has ' kvm_cpuid: func [0-9a-f]+ idx [0-9a-f]+ rax [0-9a-f]+ .*, cpuid entry found$' /tmp/trace || return 1
    has ' kvm_msr: msr_read 1b = 0xfee00900$' /tmp/trace || return 1
    has ' kvm_mmio: mmio unsatisfied-read len ' /tmp/trace || return 1
    echo "$(grep -cE ' kvm_exit: ' /tmp/trace) exits"
}
check events events
# Each vCPU thread's entries and exits alternate, those that are answered in the slice too.
alternate() {
    awk '{ for (i = 4; i < 7; i++) if ($i == "kvm_entry:" || $i == "kvm_exit:") { if (last[$1] == $i) { print NR ": " $0; bad++ } last[$1] = $i; n++ } }
        END { print n " entries and exits"; exit bad > 0 || n < 100 }' /tmp/trace
}
check alternate alternate
# A profile of exits, while it is recorded and afterwards.
profile() {
    perf kvm stat record -a -o p.data runner run $GUESTS >out 2>&1 || { cat out; return 1; }
    perf kvm -i p.data stat report --event=vmexit 2>&1 | tee out
    has '^ *(cpuid|CPUID) +[0-9]+ ' out || return 1
    perf kvm -i p.data stat report --event=ioport 2>&1 | tee out
    has '^ *0x3f8:POUT +[0-9]+ ' out || return 1
    perf kvm -i p.data stat report --event=mmio 2>&1 | tee out
    has '^ *0x[0-9a-f]+:[RW] +[0-9]+ ' out
}
check perf-record profile
# It shows each second what came, and does not always end when it is told to.
live() {
    [ $SLOW = 1 ] || { echo "not waited for on a slow machine"; return 4; }
    perf kvm stat live -a </dev/null >live 2>&1 &
    viewer=$!
    for i in 1 2 3 4 5 6 7 8; do
        runner run cpuid/custom >/dev/null
        sleep 1
        tr -d '\033' <live >out
        grep -qE '^ *(cpuid|CPUID) +[0-9]+ ' out && break
    done
    kill -INT $viewer
    (sleep 3; kill -KILL $viewer) 2>/dev/null &
    wait $viewer
    head -25 out
    has '^ *(cpuid|CPUID) +[0-9]+ ' out
}
check perf-live live
recorder() {
    trace-cmd record -q -o t.dat -e kvm runner run cpuid/custom >out 2>&1 || { cat out; return 1; }
    trace-cmd report -i t.dat >out 2>/dev/null
    head -20 out
    has ' kvm_exit: +vcpu 0 reason (cpuid|CPUID) rip' out
}
check trace-cmd recorder
formats() {
    for name in $(ls $T/events/kvm); do [ -f $T/events/kvm/$name/format ] && echo $name; done >/tmp/names
    for name in $(cat /tmp/names); do grep -v ^ID: $T/events/kvm/$name/format; done >/tmp/formats
    [ $(wc -l </tmp/names) -ge 28 ]
}
check formats formats
# What is still listened to ends with the module.
echo 1 >$T/events/kvm/kvm_exit/enable
check unload unload_module
# The kernel's own module has the same: fields, their types and order, and how they are printed.
as_stock() {
    MODULE=kvm load_module || return 1
    for name in $(cat /tmp/names); do grep -v ^ID: $T/events/kvm/$name/format; done >/tmp/stock
    diff /tmp/stock /tmp/formats && echo "$(wc -l </tmp/names) events are stock KVM's"
    rc=$?
    MODULE=kvm unload_module && return $rc
}
if [ $MODULE = exitless ]; then check as-stock as_stock; fi
