#!/usr/bin/env bash
# Everything that must hold: style, types, layers, and the tests, on a bare Debian 12 or 13.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly here
readonly venv=${KVMD_TEST_VENV:-/var/tmp/kvmd-test-venv-$UID}
readonly python=/usr/bin/python3 # Debian's own, for which Debian's libvirt binding is built
readonly base=(python3 python3-venv python3-libvirt ca-certificates)
readonly full=(
    libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base
    iproute2 iptables iputils-ping procps strace git python3-bcrypt
    nftables passt qemu-block-extra vsftpd tgt nfs-ganesha-vfs openssh-server openssh-client openssl ovmf swtpm swtpm-tools
)
readonly newer=(virtiofsd qemu-system-modules-spice) # from Debian 13 on; before that parts of QEMU's own packages
readonly rooted='root or libvirt or guest'
# Two at a time: much of a test is waiting. The tests of a file share a libvirtd, so they stay together.
readonly workers=(-n "${KVMD_TEST_WORKERS:-2}" --dist loadfile)

quick='' failed=() passed_tests=0 failed_tests=0 skipped_tests=0 ran=0

usage() {
    cat <<END
Usage: tests/run.sh [quick] [PYTEST-ARGUMENT...]

Without 'quick' it needs root: it installs Debian's libvirt and QEMU, and tests on the real kernel and libvirt, in
namespaces and a libvirtd of its own. With 'quick' it runs what needs neither. Either way it makes a virtual
environment in $venv (KVMD_TEST_VENV names another place).
Two tests run at a time (KVMD_TEST_WORKERS; 0: one, in the process itself).
END
}

say() { printf '%s\n' "$*"; }

fail() {
    printf 'tests/run.sh: %s\n' "$*" >&2
    exit 1
}

missing_packages() { # missing_packages PACKAGE...: those that are not installed
    local name
    for name in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || echo "$name"
    done
}

install_packages() {
    local wanted=("${base[@]}") missing
    [[ -n "$quick" ]] || wanted+=("${full[@]}")
    [[ -n "$quick" ]] || (($(sed -n 's/^VERSION_ID="\?\([0-9]*\).*/\1/p' /etc/os-release) < 13)) || wanted+=("${newer[@]}")
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    ((${#missing[@]})) || return 0
    say "Debian packages that the tests need and this machine lacks: ${missing[*]}"
    [[ $EUID -eq 0 ]] || fail "only root may install them. Run: sudo apt-get install --no-install-recommends ${missing[*]}"
    say "Installing them with apt-get..."
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } > "$log" 2>&1 < /dev/null || {
        tail -n 30 "$log" >&2
        fail "apt-get failed, see above. Put its cause right and run this again."
    }
    rm -f "$log"
}

make_venv() { # rebuilt when Python or a pinned version changes
    local wanted
    wanted=$("$python" -V && sha256sum < "$here/requirements/test.txt")
    [[ ! -e "$venv" || -O "$venv" ]] || fail "$venv belongs to somebody else. Name another place in KVMD_TEST_VENV."
    if [[ "$(cat "$venv/fingerprint" 2>/dev/null)" != "$wanted" ]]; then
        say "Making the virtual environment $venv (pinned by hash, about 20 s)..."
        "$python" -m venv --clear --system-site-packages "$venv"
        "$venv/bin/pip" install -q --require-hashes -r "$here/requirements/test.txt" < /dev/null ||
            fail "pip could not install requirements/test.txt, see above. Is the package index reachable?"
        echo "$wanted" > "$venv/fingerprint"
    fi
    export PATH=$venv/bin:$PATH PYTHONPATH=$here
}

part() { # part NAME COMMAND...: runs it, remembers whether it failed
    local name=$1 began=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if "$@"; then
        say "== $name: fine ($((SECONDS - began)) s)"
    else
        say "== $name: FAILED ($((SECONDS - began)) s)"
        failed+=("$name")
    fi
}

count() { # count WORD FILE: the number before WORD in the last summary line of pytest in FILE
    local number
    number=$(grep -E '(passed|failed|error|skipped|deselected|no tests ran).* in [0-9.]+' "$2" | tail -n 1 |
        grep -oE "[0-9]+ $1" | head -n 1 | cut -d' ' -f1) || true
    echo "${number:-0}"
}

tests() { # tests MARKERS [ARGUMENT...]
    local code=0 output
    output=$(mktemp)
    python -m pytest "${workers[@]}" -m "$1" "${@:2}" 2>&1 < /dev/null | tee "$output" || code=$?
    passed_tests=$((passed_tests + $(count passed "$output")))
    failed_tests=$((failed_tests + $(count failed "$output") + $(count error "$output")))
    skipped_tests=$((skipped_tests + $(count skipped "$output")))
    rm -f "$output"
    ((code == 5)) && return 0 # nothing of this part was asked for
    ran=1
    return "$code"
}

run_parts() {
    cd "$here"
    part "ruff format" ruff format --check .
    part "ruff check" ruff check .
    part "mypy --strict" mypy --strict
    part "import-linter" lint-imports
    part "quick tests" tests "not ($rooted)" "$@"
    [[ -n "$quick" ]] || part "tests on the real kernel and libvirt" tests "$rooted" "$@"
    ((ran)) || failed+=("no test ran")
}

main() {
    case ${1:-} in
    -h | --help) usage; exit 0 ;;
    quick) quick=1; shift ;;
    esac
    [[ -n "$quick" || $EUID -eq 0 ]] ||
        fail "the whole suite makes links and runs a libvirtd, which needs root. Run: sudo $0, or: $0 quick"
    install_packages
    make_venv
    run_parts "$@"
    printf '\n'
    if ((${#failed[@]})); then printf 'FAILED: %s\n' "${failed[@]}"; fi
    say "Total time: $SECONDS s"
    ((failed_tests > 0 || ${#failed[@]} == 0)) || failed_tests=${#failed[@]}
    say "$passed_tests passed, $failed_tests failed, $skipped_tests skipped"
    ((${#failed[@]} == 0))
}

main "$@"
