#!/bin/bash
# Prepare a Debian 12 or Ubuntu 24.04 machine: system packages, uv and the project's virtual environment.
# Safe to run again; with nothing to do it only looks and leaves. `make setup` calls it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACKAGES=(
    # the environment: libvirt-python is compiled against the system's libvirt
    python3-dev python3-venv gcc pkg-config libvirt-dev
    # a hypervisor host
    libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
    dnsmasq-base nftables iproute2 kmod
    # the guest image (deploy/guest/build.sh unpacks the rest without installing it)
    busybox-static cpio e2fsprogs zstd
    # the tests and the demo
    cloud-init iputils-ping openssh-client postgresql
)

die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

check_system() {
    [ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); Duranova supports x86_64"
    [ -r /etc/os-release ] || die "unknown operating system; Debian 12 or Ubuntu 24.04 is needed"
    local id version
    id=$(. /etc/os-release && echo "${ID:-}")
    version=$(. /etc/os-release && echo "${VERSION_ID:-0}")
    case "$id:${version%%.*}" in
        debian:1[2-9] | ubuntu:2[4-9]) ;;
        *) die "$id $version is not supported; Debian 12 or Ubuntu 24.04 (or newer) is needed" ;;
    esac
}

missing_packages() {
    comm -23 <(printf '%s\n' "${PACKAGES[@]}" | sort) \
        <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${PACKAGES[@]}" 2>/dev/null |
            sed -n 's/^installed //p' | sort)
}

as_root() {
    # a daemon started on the way must not inherit the lock of main
    if [ "$(id -u)" = 0 ]; then "$@" 9<&-; else sudo "$@" 9<&-; fi
}

# Runs apt-get quietly; its words are shown only when it fails.
apt() {
    local log
    log=$(mktemp)
    if ! as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q -y \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confdef \
        -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# Packages whose services would otherwise change how this machine behaves are told to stay quiet,
# unless the machine had them before: then they are the owner's business.
keep_services_quiet() {
    local missing=" $* "
    if [[ $missing == *" cloud-init "* ]]; then
        # Only its Python code is wanted, to check our metadata; this file keeps it off at boot.
        as_root install -D -m 644 /dev/null /etc/cloud/cloud-init.disabled
    fi
    if [[ $missing == *" postgresql "* && ! -e /etc/postgresql-common ]]; then
        # Tests start servers of their own; no cluster is to run beside them.
        echo 'create_main_cluster = false' |
            as_root install -D -m 644 /dev/stdin /etc/postgresql-common/createcluster.d/duranova.conf
    fi
}

# Without a running init (a container) starting services can only fail; Debian's own switch says so.
with_services_held() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [ -d /run/systemd/system ] || [ -e "$policy" ]; then "$@"; return; fi
    printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy"
    "$@" || status=$?
    as_root rm -f "$policy"
    return "$status"
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        die "these packages are missing and need root or sudo to install: ${missing[*]}"
    say "installing ${#missing[@]} system packages: ${missing[*]}"
    apt update || die "apt-get update failed; is the network up?"
    keep_services_quiet "${missing[@]}"
    with_services_held apt install --no-install-recommends "${missing[@]}" ||
        die "could not install the system packages (see above); is the network up?"
}

# The interpreter for new environments. The distribution's own comes first: its headers and its venv
# module are what the packages above bring.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; found $(python3 -V 2>&1 || echo none)"
}

install_uv() {
    .uv/bin/uv --version >/dev/null 2>&1 && return
    say "getting uv"
    rm -rf .uv
    "$1" -m venv .uv || die "$1 cannot make virtual environments"
    .uv/bin/pip install --quiet --disable-pip-version-check uv ||
        die "could not get uv from PyPI; is the network up?"
}

# The stamp names what the environment was made from; it lies inside, so it goes when that goes.
sync_environment() {
    local want stamp=.venv/.duranova-synced
    want=$(cat uv.lock pyproject.toml | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && .venv/bin/python -c '' 2>/dev/null; then
        return
    fi
    say "installing Python packages into .venv"
    local python=()
    .venv/bin/python -c '' 2>/dev/null || python=(--python "$1")
    # Compiled now, once: else every process of an account that may not write here, or is told not to
    # (PYTHONDONTWRITEBYTECODE), compiles all it imports at each start, which takes seconds.
    UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 \
        .uv/bin/uv sync --quiet --frozen --all-extras "${python[@]}" ||
        die "uv could not build .venv (see above)"
    echo "$want" >"$stamp"
}

main() {
    check_system
    exec 9<deploy/setup.sh
    flock 9 # two `make` at once must not both install
    install_packages
    local python
    python=$(find_python)
    install_uv "$python"
    sync_environment "$python"
}

main "$@"
