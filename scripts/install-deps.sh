#!/usr/bin/env bash
# Installs what builds, tests and the demo need and what is missing: Debian's packages
# only, and nothing is asked of apt when all of it is there.
set -euo pipefail

# program → package
declare -A needs=(
  [runc]=runc [nft]=nftables [ip]=iproute2 [gcc]=gcc [git]=git [psql]=postgresql-client
  [ssh]=openssh-client [/usr/sbin/sshd]=openssh-server [conntrack]=conntrack [ping]=iputils-ping [dnsmasq]=dnsmasq-base [promtool]=prometheus
  [qemu-system-x86_64]=qemu-system-x86 [depmod]=kmod [xz]=xz-utils
  [/usr/lib/postgresql/15/bin/postgres]=postgresql-15
  [/etc/ssl/certs/ca-certificates.crt]=ca-certificates
)
missing=()
for what in "${!needs[@]}"; do
  if [[ $what == /* ]]; then [[ -e $what ]] || missing+=("${needs[$what]}")
  else PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null || missing+=("${needs[$what]}"); fi
done
[[ -f /usr/include/stdlib.h ]] || missing+=(libc6-dev)
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $(id -u) -ne 0 ]]; then
  echo "error: missing packages: ${missing[*]}" >&2
  echo "hint: run this as root, or: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# The packages' own servers must not start: tests and the demo run servers of their own.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
