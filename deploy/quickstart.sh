#!/usr/bin/env bash
# From a clean clone on a bare Debian 12 or 13 to two running guests, a network, a bridge and a TAP, made by kvmd.
set -eEuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly here
readonly venv=/opt/kvmd home=/var/lib/kvmd/quickstart specs=/etc/kvmd/specs/quickstart
readonly log=/var/log/kvmd-quickstart.log daemon_log=/var/log/kvmd.log
readonly made=$home/made # one word a line: what this script made and --down may therefore remove
readonly placeholder=$specs/removal.yaml
readonly guests=(quick-1 quick-2)
readonly objects=(VirtualMachine/quick-1 VirtualMachine/quick-2 Network/quickstart Tap/tap-quick Bridge/br-quick)
readonly packages=(
    libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base iproute2
    python3 python3-venv python3-libvirt ca-certificates
)
readonly qemu_conf=/etc/libvirt/qemu.conf conf_mark='# kvmd quickstart: this system is a chroot'
readonly kvm_group=kvmd-quickstart-kvm
readonly up_within=240 # seconds for both guests; about 15 where nothing else runs

missing=() changed=() step=0
yes='' down='' new_kvmd='' kvm_allowed=''

usage() {
    cat <<END
Usage: sudo deploy/quickstart.sh [--yes] [--down] [--help]

Installs kvmd and what it needs on this Debian 12 or 13, builds a small guest, and lets kvmd reconcile
specs/quickstart: a NAT network, a bridge, a TAP and two virtual machines. Run it again at any time: it changes
only what is not yet so.

  --yes    do not ask; it does not ask either where standard input is no terminal
  --down   remove the virtual machines, network, bridge and TAP, kvmd and its files; Debian's packages stay
  --help   this text

Everything that is installed or built writes its output to $log.
END
}

say() { printf '%s\n' "$*"; }

fail() { # fail WHAT-AND-WHY NEXT-STEP
    printf '\nquickstart: %s\n%s\n' "$1" "${2:-}" >&2
    exit 1
}

on_error() {
    printf '\nquickstart: line %s failed: %s\nThe end of %s:\n' "$1" "$2" "$log" >&2
    tail -n 15 "$log" 2>/dev/null | sed 's/^/    /' >&2
    say "Nothing is half done that a second run does not finish: put the cause right and run this again." >&2
}
trap 'on_error "$LINENO" "$BASH_COMMAND"' ERR

step() { # step TEXT: the heading of what comes; done_in ends its line
    step=$((step + 1))
    began=$SECONDS dot=$SECONDS
    printf '%2d. %s: ' "$step" "$1"
    printf '== %s\n' "$1" >> "$log"
}

done_in() { # done_in [RESULT]: ends the line of a step
    local took=$((SECONDS - began)) text=${1:-done}
    ((dot == began)) || text=" $text" # after the dots
    if ((took > 1)); then printf '%s (%d s)\n' "$text" "$took"; else printf '%s\n' "$text"; fi
}

did() { # did RESULT: the step changed something
    changed+=("$1")
    done_in "$1"
}

show_dot() { # every 3 seconds of a step
    ((SECONDS - dot >= 3)) || return 0
    printf .
    dot=$SECONDS
}

quietly() { # quietly COMMAND...: its output goes to the log, a dot every 3 seconds shows that it runs
    local pid
    "$@" >> "$log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.1
        show_dot
    done
    if ! wait "$pid"; then
        printf ' failed\n'
        on_error "${BASH_LINENO[0]}" "$*"
        exit 1
    fi
}

note() { # note WORD: remember that this script made it
    mkdir -p "$home"
    grep -qxF "$1" "$made" 2>/dev/null || echo "$1" >> "$made"
}

has_systemd() { [[ -d /run/systemd/system ]]; }
libvirt_answers() { timeout 5 virsh -q -c qemu:///system uri > /dev/null 2>&1; }
kvmd() { "$venv/bin/kvmd" "$@"; }

# ---------------------------------------------------------------------------------------------------- before acting

check_machine() {
    [[ $EUID -eq 0 ]] || fail "this needs root, for packages, links and libvirt." "Run: sudo $0 $*"
    # shellcheck disable=SC1091  # a file of the machine
    . /etc/os-release
    [[ "${ID:-}" == debian || "${ID_LIKE:-}" == *debian* ]] ||
        fail "this script knows Debian 12 and 13, and this is ${PRETTY_NAME:-something else}." \
            "Install libvirt, QEMU and python3-libvirt yourself and see docs/operations.md."
    [[ $(dpkg --print-architecture) == amd64 ]] ||
        fail "the demonstration guest is built for amd64, and this is $(dpkg --print-architecture)." \
            "kvmd itself runs here: see docs/operations.md for an installation without the quickstart."
    [[ -e /dev/net/tun ]] || fail "/dev/net/tun does not exist, and NICs of guests need it." "Run: modprobe tun"
}

find_missing_packages() {
    local name
    for name in "${packages[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
    done
}

announce() {
    say "This sees to it that the following is so on this machine, and does what is not yet done:"
    if ((${#missing[@]})); then
        say "  - Debian packages are installed with apt-get: ${missing[*]}, and what they depend on"
    fi
    if ! has_systemd && ! libvirt_answers; then
        say "  - virtlogd and libvirtd run; this script starts them, since no systemd runs here to do so"
        ! in_chroot || say "  - $qemu_conf says 'namespaces = []', since this is a chroot"
    fi
    say "  - libvirt's QEMU user may open /dev/kvm (only where its group has no name here does that need a change)"
    say "  - kvmd is in $venv (a Python virtual environment; pip downloads its libraries, pinned by hash)"
    say "  - a small guest, built from Debian's cloud kernel and busybox, is in $home"
    say "  - example specs are in $specs, and kvmd runs and makes from them:"
    say "      the libvirt network 'quickstart' (bridge virbr-qs, 192.168.151.0/24, NAT)"
    say "      the bridge br-quick (10.151.0.1/24) and its TAP tap-quick"
    say "      the virtual machines quick-1 and quick-2 (128 MiB each)"
    say "Nothing else is touched. 'deploy/quickstart.sh --down' removes it again. Details go to $log."
    [[ -z "$yes" && -t 0 ]] || return 0
    read -r -p "Go on? [Y/n] " answer
    [[ "${answer:-y}" == [Yy]* ]] || fail "stopped, nothing was done." ""
}

# ------------------------------------------------------------------------------------------------------------ steps

install_packages() {
    step "Debian packages"
    if ((${#missing[@]} == 0)); then
        done_in "already installed"
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update -q
    quietly apt-get install -y -q --no-install-recommends "${missing[@]}"
    local name
    for name in "${missing[@]}"; do note "package:$name"; done
    did "installed"
}

give_machine_id() {
    step "/etc/machine-id, from which MACs and UUIDs derive"
    if [[ -s /etc/machine-id && $(cat /etc/machine-id) != uninitialized ]]; then
        done_in "is there"
        return
    fi
    rm -f /etc/machine-id
    if command -v systemd-machine-id-setup > /dev/null; then
        quietly systemd-machine-id-setup
    else
        tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
    fi
    did "made"
}

start_libvirt() {
    step "libvirt"
    allow_kvm
    if libvirt_answers; then
        if [[ -n "$kvm_allowed" ]]; then did "answers; its QEMU user may open /dev/kvm now"; else done_in "answers"; fi
        return
    fi
    if has_systemd; then
        quietly systemctl enable --now virtlogd.socket libvirtd.service
    else
        allow_chroot
        launch virtlogd "$log" virtlogd
        launch libvirtd "$log" /usr/bin/python3 "$here/deploy/reaper.py" libvirtd
    fi
    local try
    for try in {1..100}; do
        libvirt_answers && break
        sleep 0.2
    done
    libvirt_answers || fail "libvirtd does not answer ${try:+after 20 s} on qemu:///system." \
        "See the end of $log, or run 'libvirtd' by hand to read what it says."
    did "started"
}

in_chroot() { # whoever enters a mount namespace stands at its root, outside any chroot that it came from
    [[ "$(nsenter --mount=/proc/$$/ns/mnt stat -Lc %d:%i / 2>/dev/null || true)" != "$(stat -Lc %d:%i /)" ]]
}

allow_chroot() { # libvirt enters the mount namespace of each QEMU, and would leave the chroot
    if in_chroot && ! grep -q '^namespaces' "$qemu_conf"; then
        printf '\n%s\nnamespaces = []\n' "$conf_mark" >> "$qemu_conf"
        note qemu.conf
    fi
}

# A container often gets /dev/kvm from a host where the group kvm has another number. libvirt then finds KVM with one
# look and none with the next, and examines QEMU anew for every definition: 10 to 20 seconds each.
allow_kvm() {
    local gid
    [[ -e /dev/kvm && $(stat -c %a /dev/kvm) == *[0-5] ]] || return 0
    gid=$(stat -c %g /dev/kvm)
    if [[ " $(id -G libvirt-qemu 2>/dev/null) " == *" $gid "* ]] || getent group "$gid" > /dev/null; then return 0; fi
    groupadd --gid "$gid" "$kvm_group" && usermod --append --groups "$kvm_group" libvirt-qemu
    note group
    kvm_allowed=1
}

pid_file() { echo "/run/kvmd-quickstart-$1.pid"; }

launch() { # launch NAME LOG COMMAND...: as a background process of its own
    # shellcheck disable=SC2016  # the inner shell expands it: its number is that of the command that it becomes
    setsid -f bash -c 'echo $$ > "$1"; shift; exec "$@"' launch "$(pid_file "$1")" "${@:3}" < /dev/null >> "$2" 2>&1
    note "process:$1"
}

fingerprint() { # of everything that the virtual environment is made from
    cd "$here"
    find kvmd requirements pyproject.toml -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
    /usr/bin/python3 -V
}

install_kvmd() {
    step "kvmd in $venv"
    local wanted
    wanted=$(fingerprint)
    if [[ "$(cat "$venv/fingerprint" 2>/dev/null)" == "$wanted" && -x "$venv/bin/kvmd" ]]; then
        done_in "is this version"
        return
    fi
    if [[ -e "$venv" && ! -e "$venv/fingerprint" ]] && ! grep -qxF venv "$made" 2>/dev/null; then
        fail "$venv exists and was not made by this script." "Move it away and run this again."
    fi
    [[ -e /var/lib/kvmd/specs.jsonl ]] || note state
    note venv
    # Debian's own libvirt binding is used: that of the package index would have to be compiled.
    quietly /usr/bin/python3 -m venv --clear --system-site-packages "$venv"
    quietly "$venv/bin/pip" install -q --require-hashes -r "$here/requirements/build.txt" -r "$here/requirements/runtime.txt"
    quietly install_checkout
    ln -sfn "$venv/bin/kvmd" /usr/local/bin/kvmd
    echo "$wanted" > "$venv/fingerprint"
    new_kvmd=1
    did "installed"
}

install_checkout() { # from a copy, since setuptools leaves files beside what it builds
    local copy
    copy=$(mktemp -d)
    mkdir "$copy/kvmd-agent"
    cp -r "$here/kvmd" "$here/pyproject.toml" "$copy/kvmd-agent/"
    cp "$here/README.md" "$copy/kvmd-agent/" 2>/dev/null || echo kvmd > "$copy/kvmd-agent/README.md"
    "$venv/bin/pip" install -q --no-deps --no-build-isolation "$copy/kvmd-agent"
    rm -rf "$copy"
}

build_guest() {
    step "the small guest"
    local before
    before=$(cat "$home/stamp" 2>/dev/null || true)
    note guest
    # apt's lists are fetched where they are absent (a fresh image), not each time: that would be a change each time
    apt-cache show linux-image-cloud-amd64 > /dev/null 2>&1 || quietly apt-get update -q
    quietly "$here/deploy/guest/build.sh" "$home"
    chmod 0711 "$(dirname "$home")"
    if [[ "$(cat "$home/stamp")" == "$before" ]]; then done_in "is up to date"; else did "built"; fi
}

copy_specs() {
    step "specs in $specs"
    local file copied=0 kept=0 target
    mkdir -p "$specs"
    for file in "$here"/specs/quickstart/*.yaml; do
        target=$specs/${file##*/}
        if [[ ! -e "$target" ]]; then
            # a file is whole from its first moment on: kvmd may already be watching
            cp "$file" "$specs/.${file##*/}.new" && mv "$specs/.${file##*/}.new" "$target"
            note "spec:${file##*/}"
            copied=$((copied + 1))
        elif ! cmp -s "$file" "$target"; then
            kept=$((kept + 1))
        fi
    done
    if ((copied)); then did "$copied copied"; elif ((kept)); then done_in "are there; $kept of them changed by you, and kept"; else done_in "are there"; fi
}

running_pid() { # of the kvmd that this script started without systemd
    local pid
    pid=$(cat "$(pid_file kvmd)" 2>/dev/null) || return 1
    [[ -d "/proc/$pid" ]] && tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q "kvmd run" && echo "$pid"
}

check_subnets() { # a second owner of a subnet would take this host's packets
    local subnet device owner
    while read -r subnet device; do
        owner=$(ip -4 route show "$subnet" | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
        [[ -z "$owner" || "$owner" == "$device" ]] || fail "the subnet $subnet is already in use here, on $owner." \
            "Choose another in $specs (Network and Bridge, and the ip: and kvmd.ip of the guests) and run this again."
    done <<< "192.168.151.0/24 virbr-qs
10.151.0.0/24 br-quick"
}

start_kvmd() {
    step "kvmd itself"
    if has_systemd; then start_unit; else start_process; fi
    local try
    for try in {1..150}; do
        kvmd get > /dev/null 2>&1 && return
        sleep 0.2
    done
    fail "kvmd does not answer ${try:+after 30 s}. The end of its log:" "$(daemon_words)"
}

start_unit() {
    local unit=/etc/systemd/system/kvmd.service
    if ! cmp -s "$here/deploy/systemd/kvmd.service" "$unit"; then
        install -m 644 "$here/deploy/systemd/kvmd.service" "$unit"
        note unit
        quietly systemctl daemon-reload
        new_kvmd=1
    fi
    if [[ -z "$new_kvmd" ]] && systemctl -q is-active kvmd; then
        done_in "runs"
        return
    fi
    quietly systemctl enable kvmd
    quietly systemctl restart kvmd
    did "started (systemctl status kvmd)"
}

start_process() {
    if pid=$(running_pid); then
        if [[ -z "$new_kvmd" ]]; then
            done_in "runs (process $pid)"
            return
        fi
        stop_process "$pid"
    fi
    launch kvmd "$daemon_log" "$venv/bin/kvmd" run
    did "started (no systemd here: a background process, log in $daemon_log)"
}

stop_process() { # stop_process PID: asks, and waits 30 s for the end
    kill "$1" 2>/dev/null || return 0
    local try
    for try in {1..150}; do
        [[ -d "/proc/$1" ]] || return 0
        sleep 0.2
    done
    say "process $1 did not end ${try:+within 30 s} and is left alone"
}

daemon_words() {
    if has_systemd; then journalctl -u kvmd -n 15 --no-pager 2>/dev/null; else tail -n 15 "$daemon_log" 2>/dev/null; fi
}

guest_up() { # guest_up NAME: the address that the guest named on its console
    sed -n "s/.*KVMD-GUEST-UP name=$1 address=\([0-9.]*\).*/\1/p" "$home/$1.console" 2>/dev/null | tail -n 1 | tr -d '\r' | grep .
}

guest_runs() { [[ $(virsh -q -c qemu:///system domstate "$1" 2>/dev/null) == running* ]]; }

wait_for_guests() {
    step "the guests, until each has said on its console that it is up"
    local name address up=()
    for name in "${guests[@]}"; do
        until address=$(guest_up "$name") && guest_runs "$name"; do
            ((SECONDS - began < up_within)) || guest_is_late "$name"
            sleep 0.5
            show_dot
        done
        up+=("$name with $address")
    done
    # one more look of kvmd's own, so that what is shown below is what has become of it
    kvmd wait --timeout 30s "${objects[@]}" >> "$log" 2>&1 || true
    done_in "${up[*]}"
}

guest_is_late() { # says everything that helps, and how to go on
    printf '\n\nThe last lines of the console of %s (%s):\n' "$1" "$home/$1.console"
    tail -n 15 "$home/$1.console" 2>/dev/null | tr -d '\r' | sed 's/^/    /' || true
    printf '\nkvmd get:\n'
    kvmd get 2>&1 | sed 's/^/    /' || true
    printf '\nkvmd says:\n'
    daemon_words | sed 's/^/    /' || true
    fail "$1 has not said within $up_within s that it is up." \
        "Look at 'kvmd describe VirtualMachine/$1' and 'kvmd check'; this script can be run again while kvmd works on."
}

show() {
    printf '\n$ kvmd get\n'
    kvmd get
    printf '\n$ kvmd topology\n'
    kvmd topology
    printf '\n'
    if ((${#changed[@]})); then say "Done in $SECONDS s."; else say "Nothing had to be changed."; fi
    cat <<END

Go on with:
  kvmd check                          is this host fit, and can it use KVM?
  kvmd describe VirtualMachine/quick-1
  \$EDITOR $specs/quick-1.yaml    change memory.guest to 192Mi: it reaches the guest while it runs
  kvmd plan                           what would be done, before it is
  kvmd events -w                      what is being done
  tail -f $home/quick-1.console
  curl -s http://127.0.0.1:9178/metrics
  sudo deploy/quickstart.sh --down    remove all of it
END
}

# ------------------------------------------------------------------------------------------------------------- down

was_made() { grep -qxF "$1" "$made" 2>/dev/null; }

others() { # spec files that are not this script's
    find /etc/kvmd/specs -type f \( -name '*.yaml' -o -name '*.yml' \) ! -path "$specs/*" 2>/dev/null
}

left() { # objects of this script that kvmd still knows
    local known ref
    known=$(kvmd get -o name) || fail "kvmd does not answer." "Run this again, or see the end of its log: $daemon_log"
    for ref in "${objects[@]}"; do
        ! grep -qixF "$ref" <<< "$known" || printf '%s ' "$ref"
    done
}

approve_ours() { # where the brake holds the removal; a list that names anything else is for the user to judge
    local held ref
    held=$(kvmd approve prune 2>&1 < /dev/null | sed -n 's/^  - \([^ :]*\).*/\1/p') || true
    [[ -n "$held" ]] || return 0
    while read -r ref; do
        [[ " ${objects[*]} " == *" $ref "* ]] || return 0
    done <<< "$held"
    kvmd approve prune --yes >> "$log" 2>&1 || true
}

# kvmd takes an empty directory for an accident and removes nothing; one spec that makes nothing says that it is meant.
leave_placeholder() {
    mkdir -p "$specs"
    cat > "$placeholder" <<END
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {name: quickstart-goes, annotations: {kvmd.dev/suspend: "true"}}
spec: {}
END
}

take_down_objects() { # kvmd removes what it made: their files go, and after the grace so do they
    step "the virtual machines, the network, the TAP and the bridge"
    local file rest
    leave_placeholder
    for file in "$here"/specs/quickstart/*.yaml; do rm -f "$specs/${file##*/}"; done
    while true; do
        rest=$(left) || exit 1
        [[ -n "$rest" ]] || break
        ((SECONDS - began < 180)) || {
            printf '\n'
            kvmd get >&2
            fail "kvmd still holds: $rest" "See 'kvmd get' and what it says of each, then run this again."
        }
        ((SECONDS - began < 30)) || approve_ours
        sleep 1
        show_dot
    done
    rm -f "$placeholder"
    rmdir "$specs" 2>/dev/null || true
    did "removed"
}

take_down_kvmd() {
    step "kvmd"
    local pid
    if was_made unit && has_systemd; then
        quietly systemctl disable --now kvmd
        rm -f /etc/systemd/system/kvmd.service
        quietly systemctl daemon-reload
    fi
    if pid=$(running_pid); then stop_process "$pid"; fi
    rm -f "$(pid_file kvmd)"
    if was_made venv; then
        rm -rf "$venv"
        if [[ -L /usr/local/bin/kvmd && ! -e /usr/local/bin/kvmd ]]; then rm -f /usr/local/bin/kvmd; fi
    fi
    rm -f "$daemon_log"
    ! was_made group || groupdel "$kvm_group" 2>/dev/null || true
    # what the daemon kept of its own; images and the like are the user's
    ! was_made state || rm -f /var/lib/kvmd/{specs.jsonl,applied.jsonl,ledger,digest-key}
    rm -rf /run/kvmd /var/cache/kvmd
    rmdir /etc/kvmd/specs /etc/kvmd 2>/dev/null || true
    did "removed"
}

take_down_libvirt() { # only where this script started it, and only if it serves nobody else
    local name pid
    was_made process:libvirtd || return 0
    step "libvirtd and virtlogd"
    if [[ -n "$(virsh -q -c qemu:///system list --name 2>/dev/null)$(virsh -q -c qemu:///system net-list --name 2>/dev/null)" ]]; then
        done_in "left running: others use them"
        return
    fi
    ! was_made qemu.conf || sed -i "/^$conf_mark\$/,/^namespaces = \[\]\$/d" "$qemu_conf"
    for name in libvirtd virtlogd; do
        pid=$(cat "$(pid_file "$name")" 2>/dev/null) || continue
        stop_process "$pid"
        rm -f "$(pid_file "$name")"
    done
    did "stopped"
}

take_down() {
    [[ -e "$made" ]] || { say "There is nothing to remove: this script has made nothing here, or it is already gone."; return; }
    say "Removing what this script made; Debian's packages stay."
    if kvmd get > /dev/null 2>&1; then
        take_down_objects
    elif virsh -q -c qemu:///system dominfo quick-1 > /dev/null 2>&1; then
        fail "kvmd does not answer, and only it knows what it made." "Run deploy/quickstart.sh first, then --down again."
    fi
    if [[ -n "$(others)" ]]; then
        say "kvmd stays, since it has other specs: $(others | tr '\n' ' ')"
    else
        take_down_kvmd
        take_down_libvirt
    fi
    local installed
    installed=$(sed -n 's/^package://p' "$made" | tr '\n' ' ')
    rm -rf "$home"
    rmdir /var/lib/kvmd/{boot,consoles,iso,images,seeds} 2>/dev/null || true # what holds nothing
    rmdir /var/lib/kvmd 2>/dev/null || true
    rm -f "$log"
    say "Done."
    [[ -z "$installed" ]] || say "The packages that it installed stay; to remove them: apt-get purge --autoremove $installed"
}

# ------------------------------------------------------------------------------------------------------------- main

main() {
    local word
    for word in "$@"; do
        case $word in
        -y | --yes) yes=1 ;;
        --down) down=1 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 64 ;;
        esac
    done
    check_machine "$@"
    [[ -z "$down" ]] || { take_down; return; }
    find_missing_packages
    announce
    install_packages
    give_machine_id
    start_libvirt
    install_kvmd
    build_guest
    copy_specs
    check_subnets
    [[ "${QUICKSTART_STOP_BEFORE:-}" != kvmd ]] || { say "Stopped before kvmd, as asked."; return; }
    start_kvmd
    wait_for_guests
    show
}

main "$@"
