# Part of `./x dist`: the compilers that link against an old glibc. Sourced by tools/packaging/dist.sh.

# The oldest glibc on which the program starts, and the Python tag of a wheel for it.
GLIBC=2.28
WHEEL_PLATFORM=manylinux_2_28_x86_64

# Programs for the build, as Python wheels: zig has the symbol lists of every glibc version, cargo-zigbuild makes it the
# linker and the C compiler of a Rust build, maturin makes
# Python wheels, meson and ninja build dav1d.
BUILD_WHEELS=('ziglang==0.17.1' 'cargo-zigbuild==0.24.1' 'maturin==1.16.0' 'meson==1.12.1' 'ninja==1.13.2')

# Installs the wheels once into $XDG_CACHE_HOME/reel/dist-tools, and puts their programs and the wrappers `zig-cc` and
# `zig-c++`, which compile for the old glibc, on the path.
toolchain() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/reel tools python
    tools=$cache/dist-tools
    mkdir -p "$cache"
    if [ "$(cat "$tools/wheels" 2>/dev/null)" != "${BUILD_WHEELS[*]}" ]; then
        python_with_venv >/dev/null || install_packages python3-venv
        python=$(python_with_venv) || die "dist: the compilers are Python wheels; install python3-venv, then try again"
        say "fetching the compilers for glibc $GLIBC into $tools"
        rm -rf "$tools"
        "$python" -m venv "$tools"
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
            "${BUILD_WHEELS[@]}" ||
            die "dist: pip could not fetch ${BUILD_WHEELS[*]}; check the network and pip's index"
        printf '%s\n' "${BUILD_WHEELS[*]}" >"$tools/wheels"
    fi
    local name
    for name in cc c++; do
        cat >"$tools/bin/zig-$name" <<TEXT
#!/bin/sh
# A shared library finds the libraries beside it.
case " \$* " in *" -shared "*) set -- "\$@" '-Wl,-rpath,\$ORIGIN' ;; esac
exec "$tools/bin/python-zig" $name -target x86_64-linux-gnu.$GLIBC "\$@"
TEXT
        chmod +x "$tools/bin/zig-$name"
    done
    export PATH=$tools/bin:$PATH
}

# Fails if one of the programs or shared libraries needs a newer glibc, or a library that is neither glibc's nor beside
# it. Prints the newest symbol version that each needs.
check_glibc() {
    local file newest other beside symbols
    beside=$(for file in "$@"; do basename "$file"; done)
    for file in "$@"; do
        newest=$(objdump -T "$file" | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1)
        [ -n "$newest" ] || die "dist: $file names no symbol of glibc; it was not linked as expected"
        symbols=$(objdump -T "$file" | awk -v version="$newest" 'index($0, version) { print $NF }' | sort -u | xargs)
        [ "$(printf '%s\n' "GLIBC_$GLIBC" "$newest" | sort -V | tail -n 1)" = "GLIBC_$GLIBC" ] ||
            die "dist: $file needs $newest, newer than glibc $GLIBC, for $symbols; link it by tools/packaging/toolchain.sh"
        other=$(objdump -p "$file" | awk '$1 == "NEEDED" { print $2 }' |
            grep -vE '^(lib(c|m|dl|pthread|rt|util)\.so\.[0-9]+|ld-linux-x86-64\.so\.2)$' |
            grep -vxF "$beside" || true)
        [ -z "$other" ] || die "dist: $file needs $(xargs <<<"$other"), which is not part of glibc"
        printf '%s: needs %s\n' "$(basename "$file")" "$newest" >&2
    done
}
