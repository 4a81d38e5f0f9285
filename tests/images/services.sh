#!/usr/bin/env bash
# What the tests of services are made of (tests/e2e/services.rs): for each of nginx, Redis and PostgreSQL a build context with a
# Dockerfile and Debian's packages, and clients for them.
#
#   services.sh OUT_DIR
#
# OUT_DIR/nginx/, redis/                Dockerfile, and every package that the Debian image lacks for it, for dpkg in a RUN
# OUT_DIR/postgresql/                   Dockerfile, and a Debian in which mmdebstrap has installed it, its cluster made: in guests, some
#                                       300 MB of files and initdb are a matter of many minutes, whichever host they are on
# OUT_DIR/clients/                      curl, redis-cli, redis-benchmark, psql, pgbench: scripts that bring their libraries
# OUT_DIR/saved/                        empty: where the tests put the images that they have saved
#
# All of it comes from one Debian as debian.sh makes it, with mmdebstrap and the same variables; OUT_DIR is made anew.
set -euo pipefail

readonly SUITE=${BULKHEAD_DEBIAN_SUITE:-bookworm}
readonly MIRROR=${BULKHEAD_DEBIAN_MIRROR:-}
SELF=$(readlink -f "${BASH_SOURCE[0]}")
readonly SELF

die() {
    echo "services.sh: $*" >&2
    exit 1
}

# Downloads what a root lacks for a package: `download ROOT PACKAGE... DIR`. In mmdebstrap's hook: by the apt of this machine.
download() {
    local root=$1 to=${*: -1}
    mkdir -p "$to" "$root/var/cache/apt/archives/partial"
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --yes --no-install-recommends --download-only install "${@:2:$#-2}"
    mv "$root"/var/cache/apt/archives/*.deb "$to/"
}

# As mmdebstrap's hook, with the root it made: packages are fetched before others are installed, which would have some already.
fetch() {
    local root=$1 service
    # Those of the root itself.
    rm -f "$root"/var/cache/apt/archives/*.deb
    for service in nginx redis-server; do download "$root" $service "$root/out/${service%-server}"; done
    # The server brings pgbench, and nothing else is wanted of it here.
    download "$root" curl redis-tools postgresql "$root/packages"
    # Nothing is started meanwhile.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    chroot "$root" sh -c 'dpkg "$@" --install /packages/*.deb' dpkg --force-unsafe-io --path-exclude='/usr/share/doc/*' \
        --path-exclude='/usr/share/man/*' --path-exclude='/usr/share/locale/*'
    pack_clients "$root"
    mkdir "$root/out/postgresql"
    rm -rf "$root/packages"
    tar -C "$root" --sort=name --numeric-owner --xattrs --exclude=./out --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' \
        --exclude='./tmp/*' --exclude='./var/cache/apt/*' -cf "$root/out/postgresql/debian.tar" . || [ $? = 1 ] # 1: /sys changed meanwhile
}

# Each program and its libraries in one directory, behind a script that has Debian's own loader find them there.
pack_clients() {
    local root=$1 program name
    mkdir -p "$root/out/clients/lib"
    for program in "$root"/usr/bin/{curl,redis-cli,redis-benchmark} "$root"/usr/lib/postgresql/*/bin/{psql,pgbench}; do
        name=${program##*/} program=${program#"$root"}
        # Its links lead to places in the root.
        chroot "$root" sh -c 'cp -L "$0" $(ldd "$0" | grep -o "/[^ ]*") /out/clients/lib/' "$program"
        # shellcheck disable=SC2016
        printf '#!/bin/sh\nd=${0%%/*}/lib\nexec "$d/ld-linux-x86-64.so.2" --library-path "$d" "$d/%s" "$@"\n' "$name" \
            >"$root/out/clients/$name"
        chmod 755 "$root/out/clients/$name"
    done
}

# What all Dockerfiles begin with: packages as dpkg installs them, none of whose services is started meanwhile.
installed() {
    cat <<'DOCKERFILE'
FROM debian
COPY *.deb /packages/
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && \
    DEBIAN_FRONTEND=noninteractive dpkg --force-unsafe-io --path-exclude='/usr/share/doc/*' --path-exclude='/usr/share/man/*' \
        --path-exclude='/usr/share/locale/*' --install /packages/*.deb
DOCKERFILE
}

nginx() {
    installed
    cat <<'DOCKERFILE'
RUN ln -sf /dev/stdout /var/log/nginx/access.log && ln -sf /dev/stderr /var/log/nginx/error.log
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
DOCKERFILE
}

redis() {
    installed
    cat <<'DOCKERFILE'
USER redis
WORKDIR /var/lib/redis
EXPOSE 6379
CMD ["redis-server", "--protected-mode", "no"]
DOCKERFILE
}

# The package has made a cluster when it was installed.
postgresql() {
    cat <<'DOCKERFILE'
FROM scratch
ADD debian.tar /
RUN cd /etc/postgresql/*/main && echo "listen_addresses = '*'" >>postgresql.conf && echo 'host all all 0.0.0.0/0 trust' >>pg_hba.conf && \
    ln -s "$PWD" /etc/cluster && ln -s /usr/lib/postgresql/*/bin/postgres /usr/local/bin/ && \
    install -d -o postgres -g postgres /run/postgresql
USER postgres
EXPOSE 5432
STOPSIGNAL SIGINT
CMD ["postgres", "-c", "config_file=/etc/cluster/postgresql.conf"]
DOCKERFILE
}

main() {
    [ "${1:-}" != --fetch ] || { fetch "$2"; return; }
    [ $# -eq 1 ] || { echo "usage: services.sh OUT_DIR" >&2; exit 1; }
    command -v mmdebstrap >/dev/null || die "mmdebstrap is missing; install it with: apt-get install mmdebstrap"
    local out=$1 service
    rm -rf "$out"
    mkdir -p "$out"
    mmdebstrap --variant=minbase --include=usr-is-merged --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --dpkgopt=force-unsafe-io \
        --customize-hook="$SELF --fetch \"\$1\"" --customize-hook="sync-out /out \"$out\"" --format=null "$SUITE" /dev/null ${MIRROR:+"$MIRROR"} \
        >"$out/log" 2>&1 || {
        tail -n 30 "$out/log" >&2
        die "mmdebstrap could not make $SUITE"
    }
    rm "$out/log"
    for service in nginx redis postgresql; do "$service" >"$out/$service/Dockerfile"; done
    mkdir "$out/saved"
}

main "$@"
