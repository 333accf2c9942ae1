# about: exitctl sees running guests, in each of its forms, and switches what spares their exits.
# cpus: 2
# memory: 768
# timeout: 300
# needs: runner exitctl
# in test: svm, vmx

check load load_module
# Bochs's guests are over before they are looked at a second time; there the suite measures (control/times, control/health).
slow() { ! grep -q '^flags.* svm' /proc/cpuinfo; }
# Guests come and go meanwhile, one of which stays for seconds: what is measured is looked at once more.
long=$(slow || echo storm/timers_and_ipis_of_four)
(while [ ! -e /tmp/enough ]; do runner run smp/ipi_storm ipi/rounds $long; done >/tmp/guests 2>&1) &

# Says what it looks for when that is not there.
has() { grep -q -- "$1" /tmp/out || { echo "no $1 in:"; cat /tmp/out; return 1; }; }
# Until a guest has been seen by it: "a_guest WHAT exitctl ..".
a_guest() {
    what=$1; shift
    for i in $(seq 100); do
        "$@" >/tmp/out 2>&1 && grep -q -- "$what" /tmp/out && return 0
        sleep 0.1
    done
    has "$what"
}
ready() { exitctl check >/tmp/out || { cat /tmp/out; return 1; }; has 'exitless is loaded'; }
check ready ready
mechanisms() { a_guest 'ipi_fastpath *active' exitctl check && has 'switched off'; }
check mechanisms mechanisms
profile() { a_guest 'x2APIC ICR' exitctl stat && has 'exits: .* % fast' && has '^VM [0-9]* runner (pid ' && has '^ *ipi_fastpath'; }
check profile profile
by_vcpu() { a_guest '^ *vCPU  *CPU  *state' exitctl stat --by vcpu --interval 0.2 --count 2; }
check by_vcpu by_vcpu
json() { a_guest '"exits":{"' exitctl stat --format json && has '"mechanisms":\[{"name":"ipi_fastpath","on":true'; }
check json json
csv() { a_guest ',exit,' exitctl stat --format csv && has '^vm,pid,name,kind,key,value' && has ',mechanism,ipi_fastpath.hits,'; }
check csv csv
# What is measured of a guest, until it shows: "measured WHAT exitctl ..".
measured() {
    what=$1; shift
    for i in $(seq 100); do
        exitctl measure on --all-vms >/tmp/out 2>&1 || { cat /tmp/out; return 1; }
        sleep 0.1
        "$@" >/tmp/out 2>&1 && grep -q -- "$what" /tmp/out && return 0
    done
    has "$what"
}
took() { measured '^ *[A-Za-z_]*  *[0-9]*  *[0-9.]* %  *[0-9.]* %  *[0-9.]* [num]*s ' exitctl stat && has '^ time: guest [0-9.]* %, fast' && has '^ *exit  *samples  *exits  *time  *min'; }
slow || check took took
# More vCPUs than CPUs.
waits() { a_guest '^ waited for a CPU: ' exitctl stat --by wait; }
check waits waits
took_json() { measured '"times":{"on":true,"spent":{"0":{' exitctl stat --format json && has '"p999_ns":'; }
slow || check took_json took_json
prometheus() {
    ip link set lo up
    exitctl exporter --listen 127.0.0.1:9404 2>/tmp/exporter &
    server=$!
    if slow; then
        a_guest '^exitless_exits_total{vm="' wget -q -O - http://127.0.0.1:9404/metrics && has '^# EOF'
    else
        measured 'exitless_exit_time_seconds_bucket{' wget -q -O - http://127.0.0.1:9404/metrics && has '^# EOF' && has '^exitless_exits_total{vm="'
    fi
    r=$?
    kill $server
    return $r
}
check prometheus prometheus
set_defaults() {
    exitctl set ipi_fastpath=off --default --dry-run >/tmp/out && has 'VMs to come: would be ipi_fastpath off' || return 1
    grep -q '^defaults +ipi_fastpath' /dev/exitless || { echo "a dry run switched"; return 1; }
    exitctl set ipi_fastpath=off --default || return 1
    grep -q '^defaults -ipi_fastpath' /dev/exitless || { echo "nothing was switched"; return 1; }
    a_guest 'ipi_fastpath *off *switched off' exitctl check || return 1
    exitctl set ipi_fastpath=on --default
    grep -q '^defaults +ipi_fastpath' /dev/exitless
}
check set set_defaults
persist() {
    rm -rf /etc/modprobe.d
    ! exitctl set boost=off --default --persist >/tmp/out 2>&1 && has 'not kept for the next load: .*: No such file' || return 1
    mkdir -p /etc/modprobe.d
    echo 'options exitless mechanisms=+boost' >/etc/modprobe.d/exitless.conf
    exitctl set boost=off --default --persist >/tmp/out && has '^/etc/modprobe.d/exitless.conf .* wins' || return 1
    cat /etc/modprobe.d/exitless-mechanisms.conf >/tmp/out
    rm -r /etc/modprobe.d
    exitctl set boost=on --default && has '^options exitless mechanisms=.*,-boost'
}
check persist persist
one_vm() {
    for i in $(seq 50); do
        vm=$(exitctl stat | sed -n 's/^VM \([0-9]*\) .*/\1/p' | head -n 1)
        [ -n "$vm" ] && exitctl set port_fastpath=off --vm $vm >/tmp/out 2>&1 && has "^VM $vm: port_fastpath off" && has 'active in 0 of .*: switched off' && return 0
    done
    return 1
}
slow || check one_vm one_vm
healthy() {
    for i in $(seq 100); do
        pid=$(exitctl stat | sed -n 's/^VM .*(pid \([0-9]*\)).*/\1/p' | head -n 1)
        [ -n "$pid" ] || continue
        # It would end between the two looks.
        kill -STOP $pid 2>/dev/null || continue
        exitctl check $pid >/tmp/out 2>&1
        r=$?
        kill -CONT $pid
        [ $r = 0 ] && has '^all is well' && return 0
    done
    has '^all is well'
}
slow || check healthy healthy
refused() { ! exitctl set bost=on --default 2>/tmp/out && has 'there are ipi_fastpath' && ! exitctl set boost=on --vm 0 2>/tmp/out && has 'VMs to come are --default' && ! exitctl set boost=on --vm 999999 2>/tmp/out && has 'no VM 999999'; }
check refused refused
benched() { exitctl bench --runner /lab/runner --rounds 1 --json /tmp/$1.json $2 cpuid >/tmp/out && has '^cpuid\|^ *cpuid '; }
bench() {
    benched on && has 'exitless, [0-9]* mechanisms on' && benched off --off && has 'exitless, all off' || return 1
    grep -q '^defaults +ipi_fastpath' /dev/exitless || { echo "switches did not come back"; return 1; }
    exitctl bench compare /tmp/off.json /tmp/on.json --plot /tmp/bench.svg >/tmp/out && has 'too few rounds' && grep -q '</svg>' /tmp/bench.svg
}
check bench bench
touch /tmp/enough
check unused wait_unused 20
check unload unload_module
without() { ! exitctl stat 2>/tmp/out && has 'the module is not loaded' && { exitctl check >/tmp/out; [ $? = 3 ]; } && has 'not loaded'; }
check without without
