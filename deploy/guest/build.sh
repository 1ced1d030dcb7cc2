#!/usr/bin/env bash
# build.sh OUTDIR: builds a small guest for demonstrations and tests from Debian's own packages.
#
# The kernel is that of linux-image-cloud-amd64, the user space is busybox-static and the file init beside this one.
# Nothing is installed: both packages are downloaded with apt-get and unpacked into a scratch directory.
# Writes OUTDIR/vmlinuz and OUTDIR/initrd.img; does nothing when those are up to date. Needs apt's package lists.
set -eEuo pipefail
trap 'echo "build.sh: line $LINENO failed: $BASH_COMMAND" >&2' ERR

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# What the guest needs to speak (first) and what it needs for everything that may be plugged into it (rest).
first=(virtio_pci virtio_net button evdev)
rest=(virtio_blk virtio_balloon virtio_mem virtio_scsi sd_mod sr_mod isofs ata_piix ahci virtio-rng virtio_console virtiofs e1000 e1000e)

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

packages() { # the lines of apt's index that name the kernel and the versions: one call, since each takes a second
    apt-cache show --no-all-versions linux-image-cloud-amd64 busybox-static 2>/dev/null |
        grep -E '^(Package|Version|Depends):' || true
}

fingerprint() { # fingerprint PACKAGES: everything that the result depends on
    echo "$1"
    sha256sum < "$here/build.sh"
    sha256sum < "$here/init"
}

download() { # download PACKAGE: into the present directory, unpacked under ./PACKAGE
    apt-get -qq -o APT::Sandbox::User=root download "$1" > /dev/null ||
        fail "apt-get cannot download $1. Run 'apt-get update', see that 'apt-cache policy $1' shows a candidate, and try again."
    dpkg-deb -x "$1"_*.deb "$1"
    rm -f "$1"_*.deb
}

find_module() { # find_module NAME: its file; '-' and '_' are the same in a module's name
    find . -name "${1//[-_]/[-_]}.ko*" -print -quit
}

plain_module() { # plain_module FILE: the uncompressed module on stdout
    case $1 in
    *.xz) "$busybox" xzcat "$1" ;;
    *.gz) gzip -dc "$1" ;;
    *.zst) zstd -dc "$1" ;;
    *) cat "$1" ;;
    esac
}

add_module() { # add_module NAME LIST: after everything that it depends on; one that is built in or absent is none
    local name=${1//-/_} file dependency
    [[ -e "$root/modules/$name.ko" ]] && return
    file=$(find_module "$name")
    [[ -n "$file" ]] || return 0
    plain_module "$file" > "$root/modules/$name.ko"
    for dependency in $(tr '\0' '\n' < "$root/modules/$name.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
        add_module "$dependency" "$2"
    done
    echo "$name.ko" >> "$root/modules/$2"
}

add_modules() {
    local name
    touch "$root/modules/first" "$root/modules/rest"
    for name in "${first[@]}"; do add_module "$name" first; done
    for name in "${rest[@]}"; do add_module "$name" rest; done
    [[ -s "$root/modules/first" ]] || echo "build.sh: this kernel has every driver built in." >&2
}

build() { # build KERNEL OUTDIR
    local root scratch busybox
    scratch=$(mktemp -d "$2/build.XXXXXX")
    # shellcheck disable=SC2064  # the path of now
    trap "rm -rf '$scratch'" EXIT
    root=$scratch/root
    mkdir -p "$root"/{bin,dev,proc,sys,run,modules}
    cd "$scratch"
    download "$1"
    download busybox-static
    busybox=$(find "$scratch/busybox-static" -type f -path '*/bin/busybox')
    install -m 755 "$busybox" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    install -m 755 "$here/init" "$root/init"
    cd "$scratch/$1"
    add_modules
    cd "$root"
    find . | LC_ALL=C sort | "$busybox" cpio -o -H newc 2>/dev/null | gzip -9n > "$scratch/initrd.img"
    install -m 644 "$scratch/initrd.img" "$2/initrd.img"
    install -m 644 "$scratch/$1"/boot/vmlinuz-* "$2/vmlinuz"
}

main() {
    [[ $# -eq 1 && "$1" != -* ]] || fail "usage: build.sh OUTDIR"
    local out index kernel wanted
    mkdir -p "$1"
    out=$(cd "$1" && pwd)
    exec 9> "$out/.lock"
    flock 9 # two callers at a time: the second finds it built
    index=$(packages)
    kernel=$(sed -n 's/^Depends: \(linux-image-[0-9][^ ,]*\).*/\1/p' <<< "$index")
    if [[ -z "$kernel" ]]; then
        [[ -s "$out/stamp" ]] && { echo "build.sh: apt has no package lists; the guest in $out stays as it is."; return; }
        fail "apt knows no linux-image-cloud-amd64. Run 'apt-get update' on an amd64 Debian 12 or newer and try again."
    fi
    wanted=$(fingerprint "$index")
    if [[ -e "$out/vmlinuz" && -e "$out/initrd.img" && "$(cat "$out/stamp" 2>/dev/null)" == "$wanted" ]]; then
        echo "build.sh: the guest in $out is up to date ($kernel)."
        return
    fi
    build "$kernel" "$out"
    echo "$wanted" > "$out/stamp"
    echo "build.sh: built $out/vmlinuz and $out/initrd.img ($kernel)."
}

main "$@"
